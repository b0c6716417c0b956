//! The state of one guarded request: `Idle -> Waiting -> Holding -> Done`.

use turnstile_protocol::v1::Ending;
use turnstile_rules::{OnHostUnavailable, OnLost};

use crate::ending::{self, Facts};
use crate::session::Rejection;

/// Where a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// Not yet guarded.
    #[default]
    Idle,
    /// Paused, until its lock is granted.
    Waiting,
    /// It holds its lock.
    Holding(Progress),
    /// Nothing more is to be done.
    Done,
}

/// How far a request that holds its lock has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No response headers have been seen.
    Unanswered,
    /// A response has begun; this is how the hold ends if it is complete.
    Answering(Ending),
    /// The lock was lost, and the request is being aborted.
    Aborting,
}

/// What happened to the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'f> {
    /// A rule wants it to have a lock.
    Guarded,
    /// It has its lock.
    Granted,
    /// It will not get its lock.
    Rejected(Rejection, OnHostUnavailable),
    /// It has lost its lock.
    Lost(OnLost),
    /// The response headers passed by.
    ResponseHeaders {
        /// Whose response it is.
        facts: Facts<'f>,
        /// It has neither body nor trailers.
        end_of_stream: bool,
    },
    /// The last of the response's body or trailers passed by.
    ResponseEnd,
    /// The request is over, whatever came of it.
    Finished {
        /// How it ended.
        facts: Facts<'f>,
    },
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Pause the request and ask for its lock.
    Ask,
    /// Withdraw the question.
    Cancel,
    /// Add the token, and let the request through.
    Admit,
    /// Let the request through without a lock.
    Bypass,
    /// Answer the request.
    TurnAway(Rejection),
    /// Answer the request although it was let through; this resets it at the upstream.
    AbortWithReply,
    /// Reset the request: its response is under way.
    AbortWithReset,
    /// Tell the host that the hold is over.
    Release(Ending),
}

impl Flow {
    /// Whether `event` needs its [`Facts`]: finding them out costs calls to the proxy.
    pub fn needs_facts(self) -> bool {
        matches!(self, Self::Holding(Progress::Unanswered | Progress::Answering(_)))
    }

    /// Takes one event. An event that does not fit the state is none: callbacks of the proxy come in any order.
    pub fn step(&mut self, event: Event<'_>) -> Effect {
        let (next, effect) = match (*self, event) {
            (Self::Idle, Event::Guarded) => (Self::Waiting, Effect::Ask),

            (Self::Waiting, Event::Granted) => (Self::Holding(Progress::Unanswered), Effect::Admit),
            (Self::Waiting, Event::Rejected(Rejection::HostUnavailable, OnHostUnavailable::Allow)) => {
                (Self::Done, Effect::Bypass)
            }
            (Self::Waiting, Event::Rejected(rejection, _)) => (Self::Done, Effect::TurnAway(rejection)),
            // The proxy answers by itself (a timeout), or the client is gone.
            (Self::Waiting, Event::ResponseHeaders { .. } | Event::Finished { .. }) => (Self::Done, Effect::Cancel),

            (Self::Holding(Progress::Unanswered), Event::ResponseHeaders { facts, end_of_stream: false }) => {
                (Self::Holding(Progress::Answering(ending::of_complete_response(facts))), Effect::None)
            }
            (Self::Holding(Progress::Unanswered), Event::ResponseHeaders { facts, end_of_stream: true }) => {
                (Self::Done, Effect::Release(ending::of_complete_response(facts)))
            }
            (Self::Holding(Progress::Answering(ending)), Event::ResponseEnd) => (Self::Done, Effect::Release(ending)),
            (Self::Holding(Progress::Unanswered | Progress::Answering(_)), Event::Finished { facts }) => {
                (Self::Done, Effect::Release(ending::of_incomplete_response(facts)))
            }

            (Self::Holding(Progress::Unanswered), Event::Lost(OnLost::Abort)) => {
                (Self::Holding(Progress::Aborting), Effect::AbortWithReply)
            }
            (Self::Holding(Progress::Answering(_)), Event::Lost(OnLost::Abort)) => {
                (Self::Holding(Progress::Aborting), Effect::AbortWithReset)
            }
            (Self::Holding(Progress::Unanswered | Progress::Answering(_)), Event::Lost(OnLost::Continue)) => {
                (Self::Done, Effect::Release(Ending::Unclean))
            }
            (Self::Holding(Progress::Aborting), Event::Finished { .. }) => {
                (Self::Done, Effect::Release(Ending::Unclean))
            }

            (state, _) => (state, Effect::None),
        };
        *self = next;
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: Facts<'_> = Facts { details: b"via_upstream", attempts: Some(1), status: None };
    const TIMED_OUT: Facts<'_> = Facts { details: b"response_timeout", attempts: Some(1), status: None };
    const REFUSED: Facts<'_> = Facts {
        details: b"upstream_reset_before_response_started{remote_connection_failure}",
        attempts: Some(1),
        status: None,
    };
    const CLIENT_GONE: Facts<'_> = Facts { details: b"downstream_remote_disconnect", attempts: Some(1), status: None };
    const DENY: OnHostUnavailable = OnHostUnavailable::Deny;

    fn headers(facts: Facts<'_>, end_of_stream: bool) -> Event<'_> {
        Event::ResponseHeaders { facts, end_of_stream }
    }

    fn finished(facts: Facts<'_>) -> Event<'_> {
        Event::Finished { facts }
    }

    /// The effects of these events, one by one, and then of everything that a proxy may still report: nothing.
    #[track_caller]
    fn check(events: &[Event<'_>], effects: &[Effect]) {
        let mut flow = Flow::Idle;
        let seen: Vec<Effect> = events.iter().map(|&event| flow.step(event)).collect();
        assert_eq!(seen, effects, "for {events:?}");
        if flow == Flow::Done {
            let late = [
                Event::Guarded,
                Event::Granted,
                Event::Rejected(Rejection::Conflict, DENY),
                Event::Lost(OnLost::Abort),
                headers(UPSTREAM, true),
                Event::ResponseEnd,
                finished(UPSTREAM),
            ];
            for event in late {
                assert_eq!(flow.step(event), Effect::None, "done, and then {event:?}");
            }
        }
    }

    #[test]
    fn a_response_releases_at_its_end() {
        let granted = [Event::Guarded, Event::Granted];
        for (response, ending) in [
            (vec![headers(UPSTREAM, false), Event::ResponseEnd], Ending::Clean),
            (vec![headers(UPSTREAM, true)], Ending::Clean),
            (vec![headers(TIMED_OUT, false), Event::ResponseEnd], Ending::Unclean),
            (vec![headers(REFUSED, false), Event::ResponseEnd], Ending::Unsent),
            (vec![headers(UPSTREAM, false), finished(TIMED_OUT)], Ending::Unclean),
            (vec![headers(UPSTREAM, false), finished(UPSTREAM)], Ending::Unclean),
            (vec![finished(CLIENT_GONE)], Ending::Unclean),
        ] {
            let events = [granted.as_slice(), &response].concat();
            let mut effects = vec![Effect::Ask, Effect::Admit];
            effects.resize(events.len() - 1, Effect::None);
            effects.push(Effect::Release(ending));
            check(&events, &effects);
        }
    }

    #[test]
    fn who_stops_waiting_is_cancelled_once() {
        check(&[Event::Guarded, finished(CLIENT_GONE)], &[Effect::Ask, Effect::Cancel]);
        check(
            &[Event::Guarded, headers(TIMED_OUT, false), Event::ResponseEnd, finished(TIMED_OUT)],
            &[Effect::Ask, Effect::Cancel, Effect::None, Effect::None],
        );
        check(&[Event::Guarded, finished(CLIENT_GONE), Event::Granted], &[Effect::Ask, Effect::Cancel, Effect::None]);
    }

    #[test]
    fn a_rejection_is_answered_unless_the_rule_lets_it_pass() {
        let allow = OnHostUnavailable::Allow;
        for (rejection, policy, effect) in [
            (Rejection::Conflict, DENY, Effect::TurnAway(Rejection::Conflict)),
            (Rejection::Conflict, allow, Effect::TurnAway(Rejection::Conflict)),
            (Rejection::HostUnavailable, DENY, Effect::TurnAway(Rejection::HostUnavailable)),
            (Rejection::HostUnavailable, allow, Effect::Bypass),
        ] {
            check(&[Event::Guarded, Event::Rejected(rejection, policy)], &[Effect::Ask, effect]);
        }
    }

    #[test]
    fn a_lost_lock_aborts_and_releases_when_the_request_is_gone() {
        let release = Effect::Release(Ending::Unclean);
        check(
            &[
                Event::Guarded,
                Event::Granted,
                Event::Lost(OnLost::Abort),
                headers(Facts::default(), false),
                Event::ResponseEnd,
                finished(UPSTREAM),
            ],
            &[Effect::Ask, Effect::Admit, Effect::AbortWithReply, Effect::None, Effect::None, release],
        );
        check(
            &[Event::Guarded, Event::Granted, headers(UPSTREAM, false), Event::Lost(OnLost::Abort), finished(UPSTREAM)],
            &[Effect::Ask, Effect::Admit, Effect::None, Effect::AbortWithReset, release],
        );
    }

    #[test]
    fn a_lost_lock_may_be_carried_on_without() {
        check(
            &[Event::Guarded, Event::Granted, Event::Lost(OnLost::Continue), headers(UPSTREAM, true)],
            &[Effect::Ask, Effect::Admit, Effect::Release(Ending::Unclean), Effect::None],
        );
    }

    #[test]
    fn an_unguarded_request_is_left_alone() {
        check(&[headers(UPSTREAM, true), finished(UPSTREAM)], &[Effect::None, Effect::None]);
    }
}
