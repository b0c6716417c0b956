//! Durations as the configuration writes them: `250ms`, `5s`, `2m`, `1h`, or a bare `0`.

use std::time::Duration;

use crate::faults::{Fault, Located};

/// What a duration of the configuration may be.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Whether zero is a duration here.
    pub(crate) zero: bool,
    /// The longest.
    pub(crate) max: Duration,
    /// The longest, as the configuration writes it.
    pub(crate) max_text: &'static str,
}

/// Parses a duration within its bounds.
pub(crate) fn parse(source: &Located<'_>, bounds: Bounds) -> Result<Duration, Fault> {
    let digits = source.text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = source.text.split_at(digits);
    let expected = "expected a whole number with a unit, as in 250ms, 5s, 2m or 1h";
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if !number.is_empty() && number.bytes().all(|digit| digit == b'0') => 0,
        "" if !number.is_empty() => {
            return Err(source.fault(digits, format!("the unit is missing; {expected}")));
        }
        _ => return Err(source.fault(if number.is_empty() { 0 } else { digits }, expected)),
    };
    if number.is_empty() {
        return Err(source.fault(0, expected));
    }
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis_per_unit));
    match millis.map(Duration::from_millis) {
        Some(duration) if duration.is_zero() && !bounds.zero => Err(source.fault(0, "must be longer than 0")),
        Some(duration) if duration <= bounds.max => Ok(duration),
        _ => Err(source.fault(0, format!("too long; at most {}", bounds.max_text))),
    }
}
