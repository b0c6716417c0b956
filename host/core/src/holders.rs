//! The holds of one key, by mode: who holds it, whether one more may, and holds that ended uncleanly and linger.

use core::num::NonZeroU32;
use std::collections::BTreeMap;

use crate::requests::RequestIndex;
use crate::{Instant, Mode, Token};

/// The holds of a key. What only shared and limited ones need is boxed: most keys are idle, or held exclusively.
#[derive(Clone, Debug, Default)]
pub(crate) enum Holders {
    #[default]
    None,
    Exclusive(RequestIndex),
    Group(Box<Group>),
}

/// Holds that stand beside each other: all shared, or all limited.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    kind: Kind,
    /// By token: the first is the barrier of the next grant.
    live: BTreeMap<Token, Member>,
    /// Holds that ended uncleanly, by the instant until which their work may go on: each still counts in its mode. Of
    /// shared ones the last to end speaks for all.
    lingering: BTreeMap<(Instant, Token), Mode>,
    /// How often each limit is held, by live and lingering holds.
    limits: BTreeMap<u32, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Shared,
    Limited,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    request: RequestIndex,
    mode: Mode,
}

impl Holders {
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether a hold in this mode may stand beside those that are there.
    pub(crate) fn admits(&self, mode: Mode) -> bool {
        match self {
            Self::None => true,
            Self::Exclusive(_) => false,
            Self::Group(group) => group.admits(mode),
        }
    }

    pub(crate) fn add(&mut self, request: RequestIndex, mode: Mode, token: Token) {
        match (&mut *self, mode) {
            (_, Mode::Exclusive) => *self = Self::Exclusive(request),
            (Self::Group(group), _) => group.add(request, mode, token),
            (Self::None | Self::Exclusive(_), _) => {
                let kind = if mode == Mode::Shared { Kind::Shared } else { Kind::Limited };
                let (live, lingering, limits) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
                let mut group = Box::new(Group { kind, live, lingering, limits });
                group.add(request, mode, token);
                *self = Self::Group(group);
            }
        }
    }

    /// The hold of `token` is another request's from now on.
    pub(crate) fn pass_on(&mut self, token: Token, heir: RequestIndex) {
        match self {
            Self::None => {}
            Self::Exclusive(request) => *request = heir,
            Self::Group(group) => {
                if let Some(member) = group.live.get_mut(&token) {
                    member.request = heir;
                }
            }
        }
    }

    /// Ends the hold of `token`. With `linger_until`, a hold of a group goes on to count until then.
    pub(crate) fn end(&mut self, token: Token, linger_until: Option<Instant>) {
        match self {
            Self::None => {}
            Self::Exclusive(_) => *self = Self::None,
            Self::Group(group) => {
                group.end(token, linger_until);
                self.tidy();
            }
        }
    }

    /// Forgets holds whose lingering is over.
    pub(crate) fn end_lingering(&mut self, now: Instant) {
        if let Self::Group(group) = self {
            while let Some(entry) = group.lingering.first_entry().filter(|entry| entry.key().0 <= now) {
                let mode = entry.remove();
                group.forget_limit(mode);
            }
            self.tidy();
        }
    }

    /// Forgets all that linger.
    pub(crate) fn skip_lingering(&mut self) {
        self.end_lingering(Instant::from_micros(u64::MAX));
    }

    /// When the next of those that linger is over.
    pub(crate) fn next_lingering(&self) -> Option<Instant> {
        let Self::Group(group) = self else { return None };
        group.lingering.first_key_value().map(|((until, _), _)| *until)
    }

    /// When the last of those that linger is over.
    pub(crate) fn last_lingering(&self) -> Option<Instant> {
        let Self::Group(group) = self else { return None };
        group.lingering.last_key_value().map(|((until, _), _)| *until)
    }

    /// The lowest token that is still believed in, in a group.
    pub(crate) fn lowest(&self) -> Option<Token> {
        let Self::Group(group) = self else { return None };
        group.live.first_key_value().map(|(token, _)| *token)
    }

    /// Until when those that linger, if they are all there is, keep out a request in this mode.
    pub(crate) fn lingers_until(&self, mode: Mode) -> Option<Instant> {
        match (self, mode) {
            _ if self.admits(mode) => None,
            // One place is free as soon as the first of them is over.
            (Self::Group(group), Mode::Limit(_)) if group.kind == Kind::Limited => self.next_lingering(),
            _ => self.last_lingering(),
        }
    }

    /// How the key is held, live or lingering: the strictest mode among the holds, and how many they are.
    pub(crate) fn summary(&self) -> Option<(Mode, usize)> {
        let Self::Group(group) = self else {
            return matches!(self, Self::Exclusive(_)).then_some((Mode::Exclusive, 1));
        };
        let smallest = group.limits.first_key_value().and_then(|(smallest, _)| NonZeroU32::new(*smallest));
        Some((smallest.map_or(Mode::Shared, Mode::Limit), group.live.len() + group.lingering.len()))
    }

    pub(crate) fn are_limited(&self) -> bool {
        matches!(self, Self::Group(group) if group.kind == Kind::Limited)
    }

    /// Live holds.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Exclusive(_) => 1,
            Self::Group(group) => group.live.len(),
        }
    }

    /// The requests of the live holds, oldest token first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RequestIndex> {
        let (alone, group) = match self {
            Self::None => (None, None),
            Self::Exclusive(request) => (Some(*request), None),
            Self::Group(group) => (None, Some(group)),
        };
        alone.into_iter().chain(group.into_iter().flat_map(|group| group.live.values().map(|member| member.request)))
    }

    /// Those that linger, and until when.
    #[cfg(feature = "model")]
    pub(crate) fn lingering(&self) -> impl Iterator<Item = (Instant, Mode)> {
        let group = if let Self::Group(group) = self { Some(group) } else { None };
        group.into_iter().flat_map(|group| group.lingering.iter().map(|((until, _), mode)| (*until, *mode)))
    }

    fn tidy(&mut self) {
        if matches!(self, Self::Group(group) if group.live.is_empty() && group.lingering.is_empty()) {
            *self = Self::None;
        }
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn modes(&self) -> Vec<Mode> {
        match self {
            Self::None => Vec::new(),
            Self::Exclusive(_) => vec![Mode::Exclusive],
            Self::Group(group) => {
                let live = group.live.values().map(|member| member.mode);
                live.chain(group.lingering.values().copied()).collect()
            }
        }
    }
}

impl Group {
    fn admits(&self, mode: Mode) -> bool {
        match (self.kind, mode) {
            (_, Mode::Exclusive) | (Kind::Shared, Mode::Limit(_)) | (Kind::Limited, Mode::Shared) => false,
            (Kind::Shared, Mode::Shared) => true,
            (Kind::Limited, Mode::Limit(limit)) => self.has_place(limit.get()),
        }
    }

    /// Whether there are fewer holds than `limit`, and than the limit of each of them.
    fn has_place(&self, limit: u32) -> bool {
        let smallest = self.limits.first_key_value().map_or(limit, |(smallest, _)| limit.min(*smallest));
        self.live.len() + self.lingering.len() < smallest as usize
    }

    fn add(&mut self, request: RequestIndex, mode: Mode, token: Token) {
        self.live.insert(token, Member { request, mode });
        if let Mode::Limit(limit) = mode {
            *self.limits.entry(limit.get()).or_default() += 1;
        }
    }

    fn end(&mut self, token: Token, linger_until: Option<Instant>) {
        let Some(Member { mode, .. }) = self.live.remove(&token) else { return };
        let Some(until) = linger_until else { return self.forget_limit(mode) };
        if self.kind == Kind::Shared {
            if self.lingering.last_key_value().is_some_and(|((last, _), _)| *last >= until) {
                return;
            }
            self.lingering.clear();
        }
        self.lingering.insert((until, token), mode);
    }

    fn forget_limit(&mut self, mode: Mode) {
        let Mode::Limit(limit) = mode else { return };
        if let Some(count) = self.limits.get_mut(&limit.get()) {
            *count -= 1;
            if *count == 0 {
                self.limits.remove(&limit.get());
            }
        }
    }
}
