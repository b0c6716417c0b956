//! Sessions: the liveness of clients, what was promised to them, and the comparison of beliefs when one comes back.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::fault::{Fault, Step};
use crate::mutation::Mutation;
use crate::promise::{belief, validity};
use crate::requests::{Place, RequestIndex, Stage};
use crate::timers::Timer;
use crate::{
    Acquire, Command, EndReason, Ending, Engine, HeartbeatSeq, HolderId, Instant, LostReason, RequestId, Resume,
    SessionId,
};

/// One client's liveness.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// When its last heartbeat was processed: the anchor of all that is promised.
    pub(crate) heard: Instant,
    pub(crate) seq: HeartbeatSeq,
    /// The latest instant until which it may believe in its holds.
    pub(crate) promise: Instant,
    pub(crate) link: Link,
    /// When its timer goes off; its end is `heard` + TTL, which is this or later.
    pub(crate) looked_at: Instant,
    /// Walked through by [`Session::in_order`] alone: what happens must not depend on the map's order.
    pub(crate) requests: HashMap<RequestId, RequestIndex>,
    pub(crate) waiters: usize,
    pub(crate) last_request: Option<RequestId>,
    /// Some of its waiters were passed over because it had gone quiet.
    pub(crate) passed_over: bool,
}

impl Session {
    fn in_order(&self) -> Vec<(RequestId, RequestIndex)> {
        let mut requests: Vec<(RequestId, RequestIndex)> = self.requests.iter().map(|(id, at)| (*id, *at)).collect();
        requests.sort_unstable();
        requests
    }
}

/// Whether there is a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Connected,
    Suspended,
}

/// All sessions. Nothing ever goes through them in the map's order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    by_id: HashMap<SessionId, Session>,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn find(&self, session: SessionId) -> Option<&Session> {
        self.by_id.get(&session)
    }

    pub(crate) fn get(&self, session: SessionId) -> Step<&Session> {
        self.by_id.get(&session).ok_or(Fault::Broken("no such session"))
    }

    pub(crate) fn get_mut(&mut self, session: SessionId) -> Step<&mut Session> {
        self.by_id.get_mut(&session).ok_or(Fault::Broken("no such session"))
    }

    pub(crate) fn request(&self, holder: HolderId) -> Option<RequestIndex> {
        self.by_id.get(&holder.session)?.requests.get(&holder.request).copied()
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.by_id.iter().map(|(id, session)| (*id, session))
    }
}

impl Engine {
    pub(crate) fn open_session(&mut self, id: SessionId, seq: HeartbeatSeq) -> Step {
        if self.sessions.find(id).is_some() {
            return Err(Fault::SessionOpenedTwice(id));
        }
        if self.sessions.len() >= self.config.sessions_max {
            self.emit(Command::EndSession { session: id, reason: EndReason::TooMany });
            return Ok(());
        }
        let looked_at = self.now + self.session_ttl();
        let session = Session {
            heard: self.now,
            seq,
            promise: self.now,
            link: Link::Connected,
            looked_at,
            requests: HashMap::new(),
            waiters: 0,
            last_request: None,
            passed_over: false,
        };
        self.sessions.by_id.insert(id, session);
        self.timers.set(looked_at, Timer::SessionSilent(id));
        Ok(())
    }

    pub(crate) fn hear_session(&mut self, id: SessionId, seq: HeartbeatSeq) -> Step {
        if !self.knows_session(id) {
            return Ok(());
        }
        let session = self.sessions.get_mut(id)?;
        // A number that does not grow is no news, and what comes of a stream that broke is none either.
        if session.link == Link::Suspended || seq <= session.seq {
            return Ok(());
        }
        session.heard = self.now;
        session.seq = seq;
        let passed_over = session.passed_over;
        self.acknowledge(id)?;
        if passed_over {
            self.place_waiters(id, Place::Live)?;
        }
        Ok(())
    }

    pub(crate) fn suspend_session(&mut self, id: SessionId) -> Step {
        if !self.knows_session(id) {
            return Ok(());
        }
        self.sessions.get_mut(id)?.link = Link::Suspended;
        if self.mutated(Mutation::SuspendedGranted) {
            return Ok(());
        }
        self.place_waiters(id, Place::PassedOver)
    }

    /// The beliefs are compared as one change, so that nobody is granted on half of it: the session's own waiters
    /// stand in their places when its releases free a key. Requests that never reached us queue behind all others.
    /// The ack comes last: it renews nothing that was lost.
    pub(crate) fn resume_session(&mut self, id: SessionId, seq: HeartbeatSeq, mut resume: Resume) -> Step {
        if !self.knows_session(id) {
            return Ok(());
        }
        let session = self.sessions.get_mut(id)?;
        session.heard = self.now;
        session.seq = session.seq.max(seq);
        session.link = Link::Connected;
        let mut waiters = core::mem::take(&mut resume.waiters);
        // One listed twice is one request, and gets one answer.
        let mut seen = BTreeSet::new();
        waiters.retain(|acquire| seen.insert(acquire.request));
        let mut unknown = Vec::new();
        self.together(|engine| {
            let waiting = engine.still_waiting(id, &resume)?;
            engine.compare(id, &resume, &waiters)?;
            for acquire in waiters {
                // One that was turned away with the hold that it was to join has its answer.
                if !engine.compare_waiter(id, &acquire)? && !waiting.contains(&acquire.request) {
                    unknown.push(acquire);
                }
            }
            engine.place_waiters(id, Place::Live)
        })?;
        for acquire in unknown {
            self.admit(id, acquire)?;
        }
        self.acknowledge(id)
    }

    /// The session's waiters, less those that the client says are none any more.
    fn still_waiting(&self, id: SessionId, resume: &Resume) -> Step<BTreeSet<RequestId>> {
        let mut waiting = BTreeSet::new();
        for (request, index) in self.sessions.get(id)?.in_order() {
            if !self.requests.get(index)?.stage.is_hold() {
                waiting.insert(request);
            }
        }
        for request in resume.releases.iter().map(|(request, _)| request).chain(&resume.holds) {
            waiting.remove(request);
        }
        Ok(waiting)
    }

    /// Everything but the waiters that the client lists.
    fn compare(&mut self, session: SessionId, resume: &Resume, waiters: &[Acquire]) -> Step {
        let mut listed: BTreeSet<RequestId> = resume.holds.iter().copied().collect();
        listed.extend(waiters.iter().map(|acquire| acquire.request));
        let forgetful = self.mutated(Mutation::ReleaseLostInResume);
        if forgetful {
            listed.extend(resume.releases.iter().map(|(request, _)| *request));
        }
        self.drop_unlisted_waiters(session, &listed)?;
        for (request, ending) in resume.releases.iter().filter(|_| !forgetful) {
            self.release(session, *request, *ending)?;
        }
        for request in &resume.holds {
            self.compare_hold(HolderId { session, request: *request })?;
        }
        self.end_unlisted(session, &listed)
    }

    /// The client believes that it holds.
    fn compare_hold(&mut self, holder: HolderId) -> Step {
        let HolderId { session, request } = holder;
        let reason = match self.sessions.request(holder) {
            None => LostReason::Unknown,
            Some(index) => match self.requests.get(index)?.stage {
                Stage::Holding(_) => return Ok(()),
                Stage::Ending { reason, .. } => reason,
                Stage::Waiting(_) => {
                    self.drop_waiter(index)?;
                    LostReason::Unknown
                }
            },
        };
        self.emit(Command::Lost { session, request, reason });
        Ok(())
    }

    /// The client believes that it waits. False if we must take it as a new request.
    fn compare_waiter(&mut self, session: SessionId, acquire: &Acquire) -> Step<bool> {
        let holder = HolderId { session, request: acquire.request };
        let Some(index) = self.sessions.request(holder) else { return Ok(false) };
        match self.requests.get(index)?.stage {
            Stage::Waiting(_) => {
                self.hasten(index, acquire.wait)?;
                Ok(true)
            }
            Stage::Holding(hold) => {
                self.tell_grant(index, hold)?;
                Ok(true)
            }
            // Neither the grant nor its loss reached the client: the hold never was, and the request still is.
            Stage::Ending { .. } => {
                self.end_hold(index, Ending::Unsent)?;
                Ok(false)
            }
        }
    }

    /// What the client did not list: it does not wait any more, and what became of a hold we cannot know.
    fn end_unlisted(&mut self, id: SessionId, listed: &BTreeSet<RequestId>) -> Step {
        self.drop_unlisted_waiters(id, listed)?;
        for (_, index) in self.sessions.get(id)?.in_order().into_iter().filter(|(request, _)| !listed.contains(request))
        {
            self.end_hold(index, Ending::Unclean)?;
        }
        Ok(())
    }

    /// These go before any hold ends: that turns away those who wait to join it, and nobody waits for such an answer.
    fn drop_unlisted_waiters(&mut self, id: SessionId, listed: &BTreeSet<RequestId>) -> Step {
        for (_, index) in self.sessions.get(id)?.in_order().into_iter().filter(|(request, _)| !listed.contains(request))
        {
            if !self.requests.get(index)?.stage.is_hold() {
                self.drop_waiter(index)?;
            }
        }
        Ok(())
    }

    pub(crate) fn session_silent(&mut self, id: SessionId) -> Step {
        let ttl = self.session_ttl();
        let session = self.sessions.get_mut(id)?;
        let end = session.heard + ttl;
        if end > self.now {
            session.looked_at = end;
            self.timers.set(end, Timer::SessionSilent(id));
            return Ok(());
        }
        if session.promise > self.now && !self.mutated(Mutation::SessionCutShort) {
            return Err(Fault::PromiseOutlivesSession(id));
        }
        self.emit(Command::EndSession { session: id, reason: EndReason::Expired });
        self.together(|engine| engine.end_unlisted(id, &BTreeSet::new()))?;
        self.sessions.by_id.remove(&id);
        Ok(())
    }

    /// Answers the session's last heartbeat, and keeps in mind what that promises.
    fn acknowledge(&mut self, id: SessionId) -> Step {
        let (seq, valid) = self.promise(id)?;
        self.emit(Command::AckHeartbeat { session: id, seq, valid });
        Ok(())
    }

    /// What may be promised now; remembered as promised.
    pub(crate) fn promise(&mut self, id: SessionId) -> Step<(HeartbeatSeq, core::time::Duration)> {
        let ignored = self.mutated(Mutation::LeaseIgnored);
        let ttl = self.config.session_ttl;
        let (now, lease) = (self.now, self.lease);
        let session = self.sessions.get_mut(id)?;
        let basis = if ignored { ttl } else { lease.basis(session.heard, now, ttl) };
        let valid = validity(basis);
        session.promise = session.promise.max(session.heard + belief(valid));
        Ok((session.seq, valid))
    }

    /// Takes all waiters of the session out of their turn, or back into it.
    fn place_waiters(&mut self, id: SessionId, to: Place) -> Step {
        let session = self.sessions.get_mut(id)?;
        session.passed_over = to == Place::PassedOver;
        if session.waiters == 0 {
            return Ok(());
        }
        let requests = session.in_order();
        self.together(|engine| {
            for (_, index) in requests {
                if matches!(engine.requests.get(index)?.stage, Stage::Waiting(waiting) if waiting.place != to) {
                    engine.place_waiter(index, to)?;
                    engine.pump_queued(index)?;
                }
            }
            Ok(())
        })
    }

    /// False, and answered, if there is no such session.
    pub(crate) fn knows_session(&mut self, id: SessionId) -> bool {
        let known = self.sessions.find(id).is_some();
        if !known {
            self.emit(Command::EndSession { session: id, reason: EndReason::Unknown });
        }
        known
    }

    fn session_ttl(&self) -> core::time::Duration {
        if self.mutated(Mutation::SessionCutShort) { self.config.session_ttl / 2 } else { self.config.session_ttl }
    }
}
