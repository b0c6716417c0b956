//! Modes: how many requests may hold a key at once.

use std::num::NonZeroU16;

use crate::faults::{Fault, Located};
use crate::number;

/// How many requests may hold a key at once. Holders of different kinds exclude each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// One.
    #[default]
    Exclusive,
    /// Any number, all of them shared.
    Shared,
    /// At most so many; among holders with different limits the smallest counts.
    Limit(NonZeroU16),
}

impl Mode {
    pub(crate) fn parse(source: &Located<'_>) -> Result<Self, Fault> {
        match (source.text, source.split_once(':')) {
            ("exclusive", _) => Ok(Self::Exclusive),
            ("shared", _) => Ok(Self::Shared),
            (_, Some((name, limit))) if name.text == "limit" => number::parse(&limit, u16::MAX.into()).map(Self::Limit),
            _ => Err(source.fault(0, "expected exclusive, shared or limit:N")),
        }
    }

    /// The mode of a key that is asked for in both modes: never a weaker one than either.
    pub(crate) fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Exclusive }
    }
}
