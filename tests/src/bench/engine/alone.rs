//! What the benches of `host/core` left: times from criterion's files, weights from what the other one printed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::Fault;
use super::super::figures::Spread;

/// The figures of the engine alone.
#[derive(Debug, Default)]
pub struct Alone {
    /// Nanoseconds of CPU, by the bench's name: `handoffs/one key/100`. One value a sample.
    times: Vec<(String, Spread)>,
    /// Bytes, by the thing's name; the first value is the one that counts.
    weights: Vec<(String, Vec<f64>)>,
}

impl Alone {
    /// Reads what is there of the two.
    ///
    /// # Errors
    /// If something is there, and is not what it should be.
    pub fn read(criterion: Option<&Path>, memory: Option<&Path>) -> Result<Self, Fault> {
        let mut alone = Self::default();
        if let Some(directory) = criterion {
            alone.read_times(directory)?;
            alone.times.sort_by(|one, other| one.0.cmp(&other.0));
        }
        if let Some(path) = memory {
            let text = fs::read_to_string(path).map_err(|error| Fault::File(path.to_owned(), error))?;
            alone.read_weights(&text);
        }
        Ok(alone)
    }

    /// Cycles per second of the bench with this name.
    pub fn per_second(&self, name: &str) -> Option<Spread> {
        let Spread { median, min, max } = self.nanos(name)?;
        Some(Spread { median: 1e9 / median, min: 1e9 / max, max: 1e9 / min })
    }

    /// Nanoseconds of the bench with this name.
    pub fn nanos(&self, name: &str) -> Option<Spread> {
        self.times.iter().find(|(other, _)| other == name).map(|(_, spread)| *spread)
    }

    /// Bytes of the thing with this name: what counts, and the extremes.
    pub fn bytes(&self, name: &str) -> Option<Spread> {
        let (_, values) = self.weights.iter().find(|(other, _)| other == name)?;
        let Spread { min, max, .. } = Spread::of(values.iter().copied())?;
        Some(Spread { median: *values.first()?, min, max })
    }

    /// All times, for the JSON.
    pub fn times(&self) -> &[(String, Spread)] {
        &self.times
    }

    /// Criterion has a directory a bench, and in it one named `new`.
    fn read_times(&mut self, directory: &Path) -> Result<(), Fault> {
        let fault = |error| Fault::File(directory.to_owned(), error);
        for entry in fs::read_dir(directory).map_err(fault)? {
            let path = entry.map_err(fault)?.path();
            if path.join("new/sample.json").is_file() {
                let name = json(&path.join("new/benchmark.json"))?["full_id"].as_str().unwrap_or_default().to_owned();
                let sample = json(&path.join("new/sample.json"))?;
                let times = numbers(&sample["times"]).zip(numbers(&sample["iters"])).map(|(time, count)| time / count);
                self.times.extend(Spread::of(times).map(|spread| (name, spread)));
            } else if path.is_dir() {
                self.read_times(&path)?;
            }
        }
        Ok(())
    }

    /// Lines of `thing count bytes`, among others.
    fn read_weights(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(thing), Some(Ok(_)), Some(Ok(bytes)), None) =
                (words.next(), words.next().map(str::parse::<u64>), words.next().map(str::parse::<f64>), words.next())
            else {
                continue;
            };
            match self.weights.iter_mut().find(|(other, _)| other == thing) {
                Some((_, values)) => values.push(bytes),
                None => self.weights.push((thing.to_owned(), vec![bytes])),
            }
        }
    }
}

fn json(path: &PathBuf) -> Result<Value, Fault> {
    let text = fs::read_to_string(path).map_err(|error| Fault::File(path.clone(), error))?;
    serde_json::from_str(&text).map_err(|error| Fault::File(path.clone(), error.into()))
}

fn numbers(list: &Value) -> impl Iterator<Item = f64> {
    list.as_array().into_iter().flatten().filter_map(Value::as_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criterions_samples_are_times_for_so_many_runs() {
        let dir = tempfile::tempdir().unwrap();
        let bench = dir.path().join("handoffs/one key/100/new");
        fs::create_dir_all(&bench).unwrap();
        fs::write(bench.join("benchmark.json"), r#"{"full_id":"handoffs/one key/100"}"#).unwrap();
        fs::write(bench.join("sample.json"), r#"{"iters":[10.0,20.0,30.0],"times":[5000.0,8000.0,30000.0]}"#).unwrap();
        let alone = Alone::read(Some(dir.path()), None).unwrap();
        assert_eq!(alone.nanos("handoffs/one key/100"), Some(Spread { median: 500.0, min: 400.0, max: 1_000.0 }));
        let per_second = Spread { median: 2_000_000.0, min: 1_000_000.0, max: 2_500_000.0 };
        assert_eq!(alone.per_second("handoffs/one key/100"), Some(per_second));
        assert_eq!(alone.per_second("handoffs"), None);
    }

    #[test]
    fn the_first_weight_counts() {
        let mut alone = Alone::default();
        alone.read_weights("$ cargo bench\nkey 1000000 276\nkey 900000 297\nkey 1048577 482\nhold 1 5 6\n");
        assert_eq!(alone.bytes("key"), Some(Spread { median: 276.0, min: 276.0, max: 482.0 }));
        assert_eq!(alone.bytes("hold"), None);
    }
}
