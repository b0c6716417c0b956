//! Figures of several rounds: the one in the middle, how far they lie apart, and how they are written.

use serde::Serialize;

/// The median over the rounds, and the extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The value in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of all values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// The median, and the extremes behind it.
pub fn shown(spread: Spread, places: usize) -> String {
    let Spread { median, min, max } = spread;
    // One round has no spread, and should not look as if it had none over many.
    if min == max {
        return format!("{median:.places$}");
    }
    format!("{median:.places$} [{min:.places$} .. {max:.places$}]")
}

/// As [`shown`], with commas between thousands.
pub fn shown_grouped(Spread { median, min, max }: Spread, places: usize) -> String {
    let grouped = |value| grouped(value, places);
    if min == max { grouped(median) } else { format!("{} [{} .. {}]", grouped(median), grouped(min), grouped(max)) }
}

/// A number with a comma between thousands.
pub fn grouped(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    let (whole, rest) = text.find('.').map_or((text.as_str(), ""), |dot| text.split_at(dot));
    let mut grouped = String::new();
    for (position, digit) in whole.chars().enumerate() {
        if position > 0 && (whole.len() - position) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0, 4.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(1_234_567.0, 0), "1,234,567");
        assert_eq!(grouped(999.0, 0), "999");
        assert_eq!(grouped(1_000.256, 2), "1,000.26");
    }
}
