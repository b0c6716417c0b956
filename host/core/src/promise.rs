//! The arithmetic of promises (ARCHITECTURE.md, "Time"): how long a client may believe, and until when it might.

use core::time::Duration;

use crate::{Config, Instant};

/// Clocks may run 1 % wrong, each in its own direction: 1.01 / 0.99 is less than 50 / 49. What is promised is made
/// smaller by this, what is remembered of it larger, so both stay within the time the promise rests on.
const SHRUNK: u128 = 49;
const FULL: u128 = 50;

/// The validity that may be promised for a time of `basis` after the heartbeat: whole milliseconds, as on the wire.
pub(crate) fn validity(basis: Duration) -> Duration {
    let millis = basis.as_micros() * SHRUNK / FULL / 1_000;
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX).min(u64::from(u32::MAX)))
}

/// How long a client to which `valid` was promised may believe, as this host's clock measures it.
pub(crate) fn belief(valid: Duration) -> Duration {
    let micros = (valid.as_micros() * FULL).div_ceil(SHRUNK);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// The least validity that must be left for a grant to be worth making: a grant that expires on its way is a waste
/// of everybody's turn.
pub(crate) fn useful_validity(config: &Config) -> Duration {
    (config.session_ttl / 8).min(Duration::from_millis(250))
}

/// What the host's lease in the store allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    /// Not yet had, or gone for good.
    None,
    /// Good until then; it may lapse and be renewed later.
    Until(Instant),
}

impl Lease {
    /// How long after `heard`, the instant of the last heartbeat, a client may rely on us, at `now`.
    pub(crate) fn basis(self, heard: Instant, now: Instant, session_ttl: Duration) -> Duration {
        match self {
            Self::Until(until) if now < until => until.saturating_since(heard).min(session_ttl),
            Self::Until(_) | Self::None => Duration::ZERO,
        }
    }

    /// How much longer it is good.
    pub(crate) fn left(self, now: Instant) -> Duration {
        match self {
            Self::Until(until) => until.saturating_since(now),
            Self::None => Duration::ZERO,
        }
    }

    /// A renewal never takes back what an earlier one gave.
    pub(crate) fn renewed(self, until: Instant) -> Self {
        match self {
            Self::Until(before) => Self::Until(before.max(until)),
            Self::None => Self::Until(until),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn belief_stays_within_the_basis_and_covers_clocks_one_percent_wrong() {
        for micros in (0..20_000_000).step_by(777) {
            let basis = Duration::from_micros(micros);
            let valid = validity(basis);
            assert!(belief(valid) <= basis, "{basis:?}");
            // A slow client and a fast host: what the host's clock shows when the client stops believing.
            let shown = valid.as_micros() * 101 / 99;
            assert!(belief(valid).as_micros() >= shown, "{basis:?}");
        }
    }

    #[test]
    fn a_lease_bounds_what_is_promised() {
        let second = Duration::from_secs(1);
        let at = |seconds| Instant::default() + second * seconds;
        assert_eq!(Lease::None.basis(at(1), at(2), second * 4), Duration::ZERO);
        assert_eq!(Lease::Until(at(9)).basis(at(1), at(2), second * 4), second * 4);
        assert_eq!(Lease::Until(at(3)).basis(at(1), at(2), second * 4), second * 2);
        assert_eq!(Lease::Until(at(3)).basis(at(1), at(3), second * 4), Duration::ZERO);
        assert_eq!(Lease::Until(at(3)).renewed(at(2)), Lease::Until(at(3)));
    }
}
