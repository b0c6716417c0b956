//! Between the messages of the session protocol and the types of the lock engine: parsed once, here.

use std::collections::HashSet;
use std::time::Duration;

use turnstile_core::{
    Acquire, Ending, HeartbeatSeq, Input, KeyGrant, LockKey, LostReason, RejectReason, RequestId, Resume, SessionId,
};
use turnstile_protocol::v1;

/// What one item of an established stream means.
#[derive(Debug)]
pub enum Parsed {
    /// For the engine.
    Input(Input),
    /// An Acquire that can be answered with a rejection, since its id is known.
    Refused {
        /// Whose answer it is.
        request: RequestId,
        /// Invalid or unsupported.
        reason: v1::RejectReason,
    },
}

/// Parses an item that came after the Hello.
///
/// # Errors
/// How it breaks the protocol, so that the stream must end.
pub fn parse_item(session: SessionId, item: v1::ClientItem) -> Result<Parsed, &'static str> {
    use v1::client_item::Item;
    match item.item {
        Some(Item::Acquire(acquire)) => Ok(match parse_acquire(&acquire) {
            Ok(acquire) => Parsed::Input(Input::Acquire { session, acquire }),
            Err(reason) => Parsed::Refused { request: RequestId(acquire.id), reason },
        }),
        Some(Item::Cancel(cancel)) => Ok(Parsed::Input(Input::Cancel { session, request: RequestId(cancel.id) })),
        Some(Item::Release(release)) => {
            let (request, ending) = parse_release(release).ok_or(RELEASE_WITHOUT_ENDING)?;
            Ok(Parsed::Input(Input::Release { session, request, ending }))
        }
        Some(Item::Heartbeat(heartbeat)) => {
            Ok(Parsed::Input(Input::Heartbeat { session, seq: HeartbeatSeq(heartbeat.seq) }))
        }
        Some(Item::Hello(_)) => Err("a second Hello on one stream"),
        None => Err("an empty item, or one of a later version of the protocol"),
    }
}

const RELEASE_WITHOUT_ENDING: &str = "a Release without an ending";

/// What a resuming client believes, as far as it can be understood.
#[derive(Debug)]
pub struct ParsedResume {
    /// For the engine.
    pub beliefs: Resume,
    /// Waiters that must be answered with a rejection.
    pub refused: Vec<(RequestId, v1::RejectReason)>,
}

/// Entries of each of the lists of a Resume at most. Far above what the filter keeps (waiters 4,096, holds 16,384,
/// releases 32,768): a Resume that is refused costs its session all holds.
const RESUME_LIST_MAX: usize = 65_536;

/// How many entries a Resume has.
pub fn resume_length(resume: &v1::Resume) -> usize {
    resume.waiters.len() + resume.holds.len() + resume.releases.len()
}

/// Parses what a resuming client believes.
///
/// # Errors
/// How it breaks the protocol, so that the stream must end.
pub fn parse_resume(resume: v1::Resume) -> Result<ParsedResume, &'static str> {
    let lengths = [resume.waiters.len(), resume.holds.len(), resume.releases.len()];
    if lengths.into_iter().any(|length| length > RESUME_LIST_MAX) {
        return Err("a Resume with more entries than are taken");
    }
    let mut waiters = Vec::with_capacity(resume.waiters.len());
    let mut refused = Vec::new();
    for acquire in resume.waiters {
        match parse_acquire(&acquire) {
            Ok(acquire) => waiters.push(acquire),
            Err(reason) => refused.push((RequestId(acquire.id), reason)),
        }
    }
    let mut seen = HashSet::with_capacity(resume.holds.len());
    let holds = resume.holds.into_iter().filter(|id| seen.insert(*id)).map(RequestId).collect();
    let releases = resume.releases.into_iter().map(parse_release).collect::<Option<_>>();
    let releases = releases.ok_or(RELEASE_WITHOUT_ENDING)?;
    Ok(ParsedResume { beliefs: Resume { waiters, holds, releases }, refused })
}

fn parse_acquire(acquire: &v1::Acquire) -> Result<Acquire, v1::RejectReason> {
    let [request] = acquire.keys.as_slice() else {
        return Err(if acquire.keys.is_empty() { v1::RejectReason::Invalid } else { v1::RejectReason::Unsupported });
    };
    if !acquire.reentry_secret.is_empty() {
        return Err(v1::RejectReason::Unsupported);
    }
    match request.mode() {
        v1::Mode::Exclusive => {}
        v1::Mode::Unspecified => return Err(v1::RejectReason::Invalid),
        v1::Mode::Shared | v1::Mode::Limit => return Err(v1::RejectReason::Unsupported),
    }
    let key = LockKey::parse(&request.key).map_err(|_| v1::RejectReason::Invalid)?;
    Ok(Acquire {
        wait: millis(acquire.wait_ms),
        hold: (acquire.hold_ms > 0).then(|| millis(acquire.hold_ms)),
        lock_delay: millis(acquire.lock_delay_ms),
        ..Acquire::of_key(RequestId(acquire.id), key)
    })
}

fn parse_release(release: v1::Release) -> Option<(RequestId, Ending)> {
    let ending = match release.ending() {
        v1::Ending::Clean => Ending::Clean,
        v1::Ending::Unclean => Ending::Unclean,
        v1::Ending::Unsent => Ending::Unsent,
        v1::Ending::Unspecified => return None,
    };
    Some((RequestId(release.id), ending))
}

/// A grant as it goes over the wire.
pub fn grant(request: RequestId, keys: &[KeyGrant], waited: Duration, seq: HeartbeatSeq, valid: Duration) -> v1::Grant {
    let of_key = |key: &KeyGrant| v1::KeyGrant { token: key.token.as_u64(), barrier: key.barrier.as_u64() };
    v1::Grant {
        id: request.0,
        keys: keys.iter().map(of_key).collect(),
        holder_secret: Vec::new(),
        waited_ms: to_millis(waited),
        heartbeat_seq: seq.0,
        valid_ms: to_millis(valid),
    }
}

/// A rejection as it goes over the wire.
pub fn reject(request: RequestId, reason: v1::RejectReason, retry_after: Option<Duration>, queue: usize) -> v1::Reject {
    v1::Reject {
        id: request.0,
        reason: reason.into(),
        retry_after_ms: retry_after.map_or(0, to_millis),
        queue_length: u32::try_from(queue).unwrap_or(u32::MAX),
    }
}

/// The engine's reason in the protocol's words.
pub fn reject_reason(reason: RejectReason) -> v1::RejectReason {
    match reason {
        RejectReason::Conflict => v1::RejectReason::Conflict,
        RejectReason::WaitTimeout => v1::RejectReason::WaitTimeout,
        RejectReason::QueueFull => v1::RejectReason::QueueFull,
        RejectReason::SessionFull => v1::RejectReason::SessionFull,
        RejectReason::KeysFull => v1::RejectReason::KeysFull,
        RejectReason::StoreUnavailable => v1::RejectReason::StoreUnavailable,
        RejectReason::Draining => v1::RejectReason::Draining,
        RejectReason::Invalid => v1::RejectReason::Invalid,
        RejectReason::TokensExhausted => v1::RejectReason::TokensExhausted,
        RejectReason::WaitHopeless => v1::RejectReason::WaitHopeless,
        RejectReason::NoSuchHold => v1::RejectReason::NoSuchHold,
        RejectReason::Upgrade => v1::RejectReason::Upgrade,
    }
}

/// The loss of a hold as it goes over the wire.
pub fn lost(request: RequestId, reason: LostReason) -> v1::Lost {
    let reason = match reason {
        LostReason::HoldLimit => v1::LostReason::HoldLimit,
        LostReason::Lease => v1::LostReason::Lease,
        LostReason::Forced => v1::LostReason::Forced,
        LostReason::Unknown => v1::LostReason::Unknown,
    };
    v1::Lost { id: request.0, reason: reason.into() }
}

/// Whole milliseconds, rounded down: a promise must never grow on its way.
pub fn to_millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn millis(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(keys: &[(&str, v1::Mode)]) -> v1::Acquire {
        let keys = keys.iter().map(|(key, mode)| v1::KeyRequest { key: (*key).into(), mode: (*mode).into(), limit: 0 });
        v1::Acquire { id: 7, keys: keys.collect(), wait_ms: 1, ..v1::Acquire::default() }
    }

    #[test]
    fn what_this_version_cannot_do_is_refused_and_never_weakened() {
        let exclusive = v1::Mode::Exclusive;
        for (message, reason) in [
            (acquire(&[]), v1::RejectReason::Invalid),
            (acquire(&[("a", exclusive), ("b", exclusive)]), v1::RejectReason::Unsupported),
            (acquire(&[("a", v1::Mode::Shared)]), v1::RejectReason::Unsupported),
            (acquire(&[("a", v1::Mode::Unspecified)]), v1::RejectReason::Invalid),
            (acquire(&[("white space", exclusive)]), v1::RejectReason::Invalid),
            (acquire(&[(&"x".repeat(513), exclusive)]), v1::RejectReason::Invalid),
            (v1::Acquire { reentry_secret: vec![1], ..acquire(&[("a", exclusive)]) }, v1::RejectReason::Unsupported),
        ] {
            assert_eq!(parse_acquire(&message).unwrap_err(), reason, "{message:?}");
        }
        assert_eq!(parse_acquire(&acquire(&[("a", exclusive)])).unwrap().hold, None);
    }

    #[test]
    fn a_release_must_say_how_it_ended() {
        assert_eq!(parse_release(v1::Release { id: 1, ending: 0 }), None);
        assert_eq!(parse_release(v1::Release { id: 1, ending: 99 }), None);
        assert_eq!(parse_release(v1::Release { id: 1, ending: 2 }), Some((RequestId(1), Ending::Unclean)));
    }

    #[test]
    fn a_resume_is_bounded_and_its_holds_count_once() {
        let holds = |count| v1::Resume { holds: (0..count).collect(), ..v1::Resume::default() };
        assert_eq!(parse_resume(holds(65_536)).unwrap().beliefs.holds.len(), 65_536);
        assert!(parse_resume(holds(65_537)).is_err());
        let releases = vec![v1::Release { id: 1, ending: 1 }; 65_537];
        assert!(parse_resume(v1::Resume { releases, ..v1::Resume::default() }).is_err());
        let waiters = vec![acquire(&[("a", v1::Mode::Exclusive)]); 65_537];
        assert!(parse_resume(v1::Resume { waiters, ..v1::Resume::default() }).is_err());
        let twice = v1::Resume { holds: vec![3, 1, 3, 1], ..v1::Resume::default() };
        assert_eq!(parse_resume(twice).unwrap().beliefs.holds, [RequestId(3), RequestId(1)]);
    }

    #[test]
    fn promises_are_rounded_down() {
        assert_eq!(to_millis(Duration::from_micros(1_999)), 1);
    }

    #[test]
    fn the_key_limits_of_engine_and_protocol_agree() {
        assert_eq!(LockKey::MAX_BYTES, turnstile_protocol::KEY_MAX_BYTES);
    }
}
