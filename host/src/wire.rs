//! Between the messages of the session protocol and the types of the lock engine: parsed once, here. The fuzz targets
//! compile this file by itself, so it uses nothing else of the host.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use turnstile_core::{
    Acquire, Ending, HeartbeatSeq, HolderSecret, Input, KeyGrant, KeyRequest, LockKey, LostReason, Mode, Reentry,
    RejectReason, RequestId, Resume, SessionId, SmallVec, Who,
};
use turnstile_protocol::{HOLDER_SECRET_BYTES, LIMIT_MAX, v1};

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
        Some(Item::Acquire(acquire)) => {
            let request = RequestId(acquire.id);
            Ok(match parse_acquire(acquire) {
                Ok(acquire) => Parsed::Input(Input::Acquire { session, acquire }),
                Err(reason) => Parsed::Refused { request, reason },
            })
        }
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
        let request = RequestId(acquire.id);
        match parse_acquire(acquire) {
            Ok(acquire) => waiters.push(acquire),
            Err(reason) => refused.push((request, reason)),
        }
    }
    let mut seen = HashSet::with_capacity(resume.holds.len());
    let holds = resume.holds.into_iter().filter(|id| seen.insert(*id)).map(RequestId).collect();
    let releases = resume.releases.into_iter().map(parse_release).collect::<Option<_>>();
    let releases = releases.ok_or(RELEASE_WITHOUT_ENDING)?;
    Ok(ParsedResume { beliefs: Resume { waiters, holds, releases }, refused })
}

fn parse_acquire(acquire: v1::Acquire) -> Result<Acquire, v1::RejectReason> {
    if acquire.keys.is_empty() || acquire.keys.len() > Acquire::KEYS_MAX {
        return Err(v1::RejectReason::Invalid);
    }
    let reentry = parse_reentry(&acquire)?;
    Ok(Acquire {
        request: RequestId(acquire.id),
        keys: acquire.keys.iter().map(parse_key).collect::<Option<_>>().ok_or(v1::RejectReason::Invalid)?,
        wait: millis(acquire.wait_ms),
        hold: (acquire.hold_ms > 0).then(|| millis(acquire.hold_ms)),
        lock_delay: millis(acquire.lock_delay_ms),
        fail_fast: acquire.fail_fast,
        queue_max: (acquire.queue_max > 0).then_some(acquire.queue_max),
        reentry,
        who: acquire.who.and_then(parse_who),
    })
}

fn parse_key(request: &v1::KeyRequest) -> Option<KeyRequest> {
    let key = LockKey::parse(&request.key).ok()?;
    let mode = match (request.mode(), NonZeroU32::new(request.limit)) {
        (v1::Mode::Exclusive, None) => Mode::Exclusive,
        (v1::Mode::Shared, None) => Mode::Shared,
        (v1::Mode::Limit, Some(limit)) if limit.get() <= LIMIT_MAX => Mode::Limit(limit),
        _ => return None,
    };
    Some(KeyRequest { key, mode })
}

fn parse_reentry(acquire: &v1::Acquire) -> Result<Reentry, v1::RejectReason> {
    match acquire.reentry_secret.last_chunk() {
        // What comes before names the incarnation, for people: another one's secrets are unknown here anyway.
        Some(secret) if acquire.reentry_secret.len() == HOLDER_SECRET_BYTES => Ok(Reentry::Join(HolderSecret(*secret))),
        _ if !acquire.reentry_secret.is_empty() => Err(v1::RejectReason::NoSuchHold),
        _ if acquire.reentrant => {
            let mut secret = HolderSecret([0; 16]);
            // Without randomness nobody may join: the request is refused rather than guarded by what can be guessed.
            getrandom::fill(&mut secret.0).map_err(|_| v1::RejectReason::Unsupported)?;
            Ok(Reentry::Offer(secret))
        }
        _ => Ok(Reentry::None),
    }
}

/// As much of each text is kept for people to look at.
const WHO_FIELD_MAX_BYTES: usize = 512;

fn parse_who(who: v1::Who) -> Option<Box<Who>> {
    let cut = |mut text: String| -> String {
        if text.len() > WHO_FIELD_MAX_BYTES {
            text.truncate(text.floor_char_boundary(WHO_FIELD_MAX_BYTES));
            text.shrink_to_fit();
        }
        text
    };
    let who = Who {
        method: cut(who.method),
        path: cut(who.path),
        route: cut(who.route),
        request_id: cut(who.request_id),
        client: cut(who.client),
    };
    (who != Who::default()).then(|| Box::new(who))
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

/// What a Grant command says.
#[derive(Debug)]
pub struct Granted {
    /// To whom.
    pub request: RequestId,
    /// One a key.
    pub keys: SmallVec<[KeyGrant; 1]>,
    /// Of a hold that others may join.
    pub secret: Option<HolderSecret>,
    /// For how long it waited.
    pub waited: Duration,
    /// What its validity is anchored at.
    pub seq: HeartbeatSeq,
    /// How long it may be believed in.
    pub valid: Duration,
}

/// A grant as it goes over the wire, from a host of this incarnation.
pub fn grant(granted: Granted, incarnation: [u8; 8]) -> v1::Grant {
    let of_key = |key: &KeyGrant| v1::KeyGrant { token: key.token.as_u64(), barrier: key.barrier.as_u64() };
    let holder_secret = granted.secret.map(|secret| [incarnation.as_slice(), secret.0.as_slice()].concat());
    v1::Grant {
        id: granted.request.0,
        keys: granted.keys.iter().map(of_key).collect(),
        holder_secret: holder_secret.unwrap_or_default(),
        waited_ms: to_millis(granted.waited),
        heartbeat_seq: granted.seq.0,
        valid_ms: to_millis(granted.valid),
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
    fn what_is_malformed_is_refused_and_never_weakened() {
        let (exclusive, shared) = (v1::Mode::Exclusive, v1::Mode::Shared);
        let limit = |limit| {
            let key = v1::KeyRequest { key: "a".into(), mode: v1::Mode::Limit.into(), limit };
            v1::Acquire { keys: vec![key], ..acquire(&[]) }
        };
        let many: Vec<(&str, v1::Mode)> = vec![("a", exclusive); 17];
        let mut with_limit = acquire(&[("a", shared)]);
        with_limit.keys[0].limit = 2;
        for message in [
            acquire(&[]),
            acquire(&many),
            acquire(&[("a", v1::Mode::Unspecified)]),
            acquire(&[("a", exclusive), ("white space", exclusive)]),
            acquire(&[(&"x".repeat(513), exclusive)]),
            limit(0),
            limit(65_536),
            with_limit,
        ] {
            assert_eq!(parse_acquire(message.clone()).unwrap_err(), v1::RejectReason::Invalid, "{message:?}");
        }
        for length in [1, 16, 23, 25] {
            let message = v1::Acquire { reentry_secret: vec![1; length], ..acquire(&[("a", exclusive)]) };
            assert_eq!(parse_acquire(message).unwrap_err(), v1::RejectReason::NoSuchHold);
        }
    }

    #[test]
    fn an_acquire_is_carried_whole() {
        let who = v1::Who { method: "POST".into(), client: "c".into(), ..v1::Who::default() };
        let message = v1::Acquire {
            keys: vec![
                v1::KeyRequest { key: "b".into(), mode: v1::Mode::Limit.into(), limit: 65_535 },
                v1::KeyRequest { key: "a".into(), mode: v1::Mode::Shared.into(), limit: 0 },
            ],
            hold_ms: 9,
            lock_delay_ms: 3,
            fail_fast: true,
            queue_max: 4,
            who: Some(who),
            ..acquire(&[])
        };
        let parsed = parse_acquire(message.clone()).unwrap();
        let modes: Vec<(&str, Mode)> = parsed.keys.iter().map(|key| (key.key.as_str(), key.mode)).collect();
        assert_eq!(modes, [("b", Mode::Limit(NonZeroU32::new(65_535).unwrap())), ("a", Mode::Shared)]);
        assert_eq!((parsed.wait, parsed.hold, parsed.lock_delay), (millis(1), Some(millis(9)), millis(3)));
        assert_eq!((parsed.fail_fast, parsed.queue_max, parsed.reentry), (true, Some(4), Reentry::None));
        assert_eq!(parsed.who.map(|who| (who.method, who.client)), Some(("POST".into(), "c".into())));
        let long = v1::Who { path: "\u{e9}".repeat(400), ..v1::Who::default() };
        let long = parse_acquire(v1::Acquire { who: Some(long), ..acquire(&[("a", v1::Mode::Shared)]) }).unwrap();
        assert_eq!(long.who.unwrap().path.len(), 512);
        let plain = parse_acquire(acquire(&[("a", v1::Mode::Exclusive)])).unwrap();
        assert_eq!((plain.hold, plain.queue_max, plain.fail_fast, plain.who), (None, None, false, None));
    }

    #[test]
    fn the_secret_of_a_grant_is_the_one_to_join_with() {
        let offers = v1::Acquire { reentrant: true, ..acquire(&[("a", v1::Mode::Exclusive)]) };
        let secrets: Vec<HolderSecret> = (0..2)
            .map(|_| match parse_acquire(offers.clone()).unwrap().reentry {
                Reentry::Offer(secret) => secret,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_ne!(secrets[0], secrets[1], "no two are the same");
        let granted = Granted {
            request: RequestId(7),
            keys: SmallVec::new(),
            secret: Some(secrets[0]),
            waited: millis(1),
            seq: HeartbeatSeq(1),
            valid: millis(1),
        };
        let reentry_secret = grant(granted, *b"incarnat").holder_secret;
        assert_eq!(reentry_secret.len(), HOLDER_SECRET_BYTES);
        assert!(reentry_secret.starts_with(b"incarnat"));
        let joins = v1::Acquire { reentry_secret, ..offers };
        assert_eq!(parse_acquire(joins).unwrap().reentry, Reentry::Join(secrets[0]));
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
        assert_eq!(Acquire::KEYS_MAX, turnstile_protocol::KEYS_PER_ACQUIRE_MAX);
    }
}
