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
