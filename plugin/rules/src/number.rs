//! Whole numbers as the configuration writes them.

use std::num::NonZeroU32;
use std::str::FromStr;

use crate::faults::{Fault, Located};

/// Parses a whole number from 1 to `max`.
pub(crate) fn parse<N: FromStr + Copy + Into<NonZeroU32>>(source: &Located<'_>, max: u32) -> Result<N, Fault> {
    let is_number = source.text.bytes().all(|byte| byte.is_ascii_digit());
    let number = source.text.parse().ok().filter(|&number: &N| is_number && number.into().get() <= max);
    number.ok_or_else(|| source.fault(0, format!("expected a whole number from 1 to {max}")))
}
