//! The record of forced releases: in the log, in memory for whoever asks, and in a file if there is one.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Value, json};

/// Records kept in memory, and their bytes.
const KEPT_MAX: usize = 1_000;
const KEPT_MAX_BYTES: usize = 4 << 20;

/// One forced release, as it is about to be carried out.
#[derive(Debug)]
pub(super) struct Record<'a> {
    /// By the wall clock; nothing but a record relies on it.
    pub(super) time: SystemTime,
    pub(super) peer: Option<SocketAddr>,
    pub(super) by: &'a str,
    pub(super) reason: &'a str,
    pub(super) key: &'a str,
    pub(super) lock_delay: &'static str,
    /// Those meant, as they were seen.
    pub(super) holders: &'a [Value],
}

/// Where records go.
#[derive(Debug)]
pub(super) struct Audit {
    file: Option<PathBuf>,
    /// Held while the file is written.
    writing: tokio::sync::Mutex<()>,
    kept: Mutex<VecDeque<String>>,
}

impl Audit {
    /// Nothing is recorded yet, but it could be.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn open(file: Option<PathBuf>) -> io::Result<Self> {
        if let Some(file) = &file {
            append(file, "")?;
        }
        Ok(Self { file, writing: tokio::sync::Mutex::default(), kept: Mutex::default() })
    }

    /// Records; when this returns, the file has it for good.
    ///
    /// # Errors
    /// If the file cannot be written. Then nothing may be done.
    pub(super) async fn record(&self, record: &Record<'_>) -> io::Result<()> {
        let line = record.to_json().to_string();
        if let Some(file) = self.file.clone() {
            let _writing = self.writing.lock().await;
            let line = format!("{line}\n");
            tokio::task::spawn_blocking(move || append(&file, &line)).await.map_err(io::Error::other)??;
        }
        record.log();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(line);
        while kept.len() > KEPT_MAX || (kept.len() > 1 && kept.iter().map(String::len).sum::<usize>() > KEPT_MAX_BYTES)
        {
            kept.pop_front();
        }
        Ok(())
    }

    /// What was recorded lately, each as JSON.
    pub(super) fn newest_first(&self) -> Vec<String> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

impl Record<'_> {
    fn to_json(&self) -> Value {
        json!({
            "time": humantime::format_rfc3339_millis(self.time).to_string(),
            "action": "force-release",
            "by": self.by,
            "reason": self.reason,
            "key": self.key,
            "lock_delay": self.lock_delay,
            "peer": self.peer.map(|peer| peer.to_string()),
            "holders": self.holders,
        })
    }

    fn log(&self) {
        let all = |name: &str| {
            let texts = self.holders.iter().filter_map(|holder| holder.get(name));
            let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            texts.map(plain).collect::<Vec<_>>().join(",")
        };
        tracing::warn!(
            target: "turnstile::audit",
            by = self.by,
            reason = self.reason,
            key = self.key,
            lock_delay = self.lock_delay,
            peer = self.peer.map(tracing::field::display),
            tokens = all("token"),
            sessions = all("session"),
            who = all("who"),
            "forced release"
        );
    }
}

/// Appends a line for good. The file is opened each time: it may have been moved away meanwhile.
fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let torn = ends_torn(&mut file)?;
    // One write, so that those who append beside us do not mix their lines with it.
    file.write_all(if torn { format!("\n{line}") } else { line.to_owned() }.as_bytes())?;
    file.sync_all()?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Whether the last line has no end: it was being written when the machine stopped, or the disk was full.
fn ends_torn(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(reason: &str) -> Record<'_> {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            peer: None,
            by: "ann",
            reason,
            key: "default/a",
            lock_delay: "keep",
            holders: &[],
        }
    }

    #[tokio::test]
    async fn a_line_that_was_torn_does_not_swallow_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("audit.log");
        std::fs::write(&file, "{\"time\":").unwrap();
        let audit = Audit::open(Some(file.clone())).unwrap();
        audit.record(&record("one")).await.unwrap();
        audit.record(&record("two")).await.unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        for (line, reason) in lines[1..].iter().zip(["one", "two"]) {
            let value: Value = serde_json::from_str(line).unwrap();
            assert_eq!((&value["reason"], &value["time"]), (&json!(reason), &json!("1970-01-01T00:00:01.500Z")));
        }
        // Moved away, as a log is.
        std::fs::rename(&file, directory.path().join("audit.log.1")).unwrap();
        audit.record(&record("three")).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let audit = Audit::open(None).unwrap();
        for number in 0..=KEPT_MAX {
            audit.record(&record(&number.to_string())).await.unwrap();
        }
        let kept = audit.newest_first();
        assert_eq!(kept.len(), KEPT_MAX);
        assert!(kept[0].contains("\"1000\"") && kept[KEPT_MAX - 1].contains("\"reason\":\"1\""));
        let long = "x".repeat(KEPT_MAX_BYTES / 2);
        for _ in 0..3 {
            audit.record(&record(&long)).await.unwrap();
        }
        assert_eq!(audit.newest_first().len(), 1);
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Audit::open(Some(directory.path().join("none/audit.log"))).is_err());
        let file = directory.path().join("audit.log");
        let audit = Audit::open(Some(file.clone())).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(audit.record(&record("x")).await.is_err());
        assert!(audit.newest_first().is_empty());
    }
}
