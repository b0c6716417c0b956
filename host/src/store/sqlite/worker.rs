//! The store's thread: takes submitted operations, groups them into transactions, beats, and reports.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use turnstile_core::Instant;

use super::database::{Database, Marks, random_name};
use super::liveness::{Lease, Observer};
use super::notice::Cursor;
use super::table::Table;
use super::transaction::Fault;
use super::{Config, Shared};
use crate::clock;
use crate::store::pending::Pending;
use crate::store::{Event, Operation, StoreError};

/// How often to look for news while a claim of ours is queued.
const POLL_QUEUED: Duration = Duration::from_millis(3);
/// How often to look whether another host wants a key of ours.
const POLL_OWNING: Duration = Duration::from_millis(20);

/// A connection with which nothing was committed for so many TTLs is given up.
const STUCK_TTLS: u32 = 2;

pub(super) struct Worker {
    pub(super) config: Config,
    inbox: mpsc::Receiver<Operation>,
    events: UnboundedSender<Event>,
    shared: Arc<Shared>,
    pub(super) phase: Phase,
    last_known: Marks,
    pub(super) pending: Pending,
    pub(super) table: Table,
    pub(super) observer: Observer,
    pub(super) cursor: Cursor,
    pub(super) upkeep: super::upkeep::Upkeep,
    pub(super) data_version: Option<i64>,
    next_beat: Instant,
    pub(super) next_poll: Instant,
    pub(super) next_batch: Instant,
    health: Health,
    /// Since when nothing is committed, for no reason that lies outside of our connection.
    stuck_since: Option<Instant>,
}

/// Where an incarnation is in its life.
pub(super) enum Phase {
    /// Has no lease, and tries to get one from this instant on.
    Joining { from: Instant, database: Option<Database> },
    /// Has a lease, as far as we know.
    Member { database: Database, lease: Lease },
    /// Has ended its lease.
    Left,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Working,
    Failing,
}

impl Worker {
    pub(super) fn new(
        config: Config,
        database: Database,
        inbox: mpsc::Receiver<Operation>,
        events: UnboundedSender<Event>,
        shared: Arc<Shared>,
    ) -> Self {
        let now = clock::now();
        Self {
            last_known: database.marks.clone(),
            phase: Phase::Joining { from: now, database: Some(database) },
            observer: Observer::new(config.lease_ttl),
            config,
            inbox,
            events,
            shared,
            pending: Pending::default(),
            table: Table::default(),
            cursor: Cursor::default(),
            upkeep: Default::default(),
            data_version: None,
            next_beat: now,
            next_poll: now,
            next_batch: now,
            health: Health::Working,
            stuck_since: None,
        }
    }

    /// Works until the handle is dropped.
    pub(super) fn run(mut self) {
        loop {
            for operation in self.inbox.try_iter() {
                self.pending.push(operation);
            }
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            self.step();
            match self.inbox.recv_timeout(self.idle_time()) {
                Ok(operation) => self.pending.push(operation),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// One round of everything that is due.
    pub(super) fn step(&mut self) {
        let now = clock::now();
        if let Phase::Joining { from, .. } = &self.phase
            && now >= *from
        {
            self.join(now);
        }
        match &self.phase {
            Phase::Joining { .. } => self.answer_all("this host has no lease at the moment", StoreError::Unavailable),
            Phase::Left => self.answer_all("this host has ended its lease", StoreError::Rejected),
            Phase::Member { .. } => {
                if now >= self.next_beat {
                    self.beat();
                }
                self.give_up_due(now);
                if now >= self.next_batch && !self.pending.is_empty() {
                    self.run_batch();
                }
                self.look_around();
            }
        }
    }

    /// How long there is nothing to do, unless something is submitted.
    fn idle_time(&self) -> Duration {
        let next = match &self.phase {
            Phase::Left => return Duration::from_secs(3_600),
            Phase::Joining { from, .. } => *from,
            Phase::Member { .. } => {
                let now = clock::now();
                let given_up = self.table.first_given_up().map(|(until, _)| *until);
                let batch = (!self.pending.is_empty()).then_some(self.next_batch);
                let poll = self.polls().map(|_| self.next_poll);
                // One that is overdue waits for our next beat.
                let judgement = self.observer.next_judgement().filter(|due| *due > now);
                let due = [Some(self.next_beat), given_up, batch, poll, judgement];
                due.into_iter().flatten().min().unwrap_or(self.next_beat)
            }
        };
        next.saturating_since(clock::now())
    }

    /// How often to look for news, if there can be any between two beats.
    pub(super) fn polls(&self) -> Option<Duration> {
        if self.table.is_queued_anywhere() {
            Some(POLL_QUEUED)
        } else {
            self.table.owns_anything().then_some(POLL_OWNING)
        }
    }

    // The lease.

    /// Registers a new incarnation.
    fn join(&mut self, now: Instant) {
        let Phase::Joining { database, .. } = &mut self.phase else { return };
        let reopened = match database.take() {
            Some(database) => Ok(database),
            None => Database::reopen(&self.config.path, self.config.epoch_base, &self.last_known)
                .map_err(|error| Fault::Unavailable(error.to_string())),
        };
        let ttl = self.config.lease_ttl;
        let joined = reopened.and_then(|mut database| {
            let name = random_name().map_err(|error| Fault::Unavailable(error.to_string()))?;
            let epoch = database.marks.epoch;
            let done = database.write(self.patience(), None, |connection, _| {
                Ok((Lease::register(connection, name, ttl)?, Cursor::at_end(connection, epoch)?))
            });
            match done {
                Ok((lease, cursor)) => Ok((database, lease, cursor)),
                // A row that landed although we think it did not is a stranger that never beats.
                Err(fault) => {
                    self.phase = Phase::Joining { from: now, database: Some(database) };
                    Err(fault)
                }
            }
        });
        match joined {
            Ok((database, mut lease, cursor)) => {
                tracing::info!(store = "sqlite", incarnation = lease.name, "joined as a new incarnation");
                let until = lease.landed(1, now);
                self.last_known = database.marks.clone();
                self.phase = Phase::Member { database, lease };
                self.cursor = cursor;
                self.observer.own_beat_landed(clock::now());
                self.next_beat = now + Lease::beat_interval(ttl);
                self.committed();
                self.report(Event::LeaseRenewed { until });
                self.data_version = None;
            }
            Err(fault @ Fault::Broken(_)) => self.handle(&fault),
            Err(fault) => {
                self.handle(&fault);
                if let Phase::Joining { from, .. } = &mut self.phase {
                    *from = now + Lease::beat_interval(ttl) / 2;
                }
            }
        }
    }

    pub(super) fn beat(&mut self) {
        let began = clock::now();
        self.next_beat = began + Lease::beat_interval(self.config.lease_ttl);
        let patience = Lease::beat_interval(self.config.lease_ttl);
        let Phase::Member { database, lease } = &mut self.phase else { return };
        let beat = lease.next_beat();
        match database.write(patience, Some(lease), |connection, _| lease.write_beat(connection, beat)) {
            Ok(()) => {
                let until = lease.landed(beat, began);
                self.observer.own_beat_landed(clock::now());
                self.committed();
                self.report(Event::LeaseRenewed { until });
                self.data_version = None;
                self.upkeep();
            }
            Err(fault) => {
                // Sooner than usual: most of the TTL may be gone in waiting for a lock.
                self.next_beat = clock::now() + Lease::beat_interval(self.config.lease_ttl) / 4;
                self.handle(&fault);
            }
        }
    }

    /// Acts on a fault of a transaction.
    pub(super) fn handle(&mut self, fault: &Fault) {
        let now = clock::now();
        match fault {
            Fault::Unavailable(_) | Fault::Ambiguous(_) => {
                self.failing(fault);
                self.reconnect_if_stuck(now);
            }
            Fault::Busy(_) | Fault::EpochsUsedUp => {
                self.failing(fault);
                self.stuck_since = None;
            }
            Fault::LeaseGone => {
                if let Phase::Member { database, lease } = std::mem::replace(&mut self.phase, Phase::Left) {
                    tracing::error!(
                        store = "sqlite",
                        incarnation = lease.name,
                        "the lease is lost: another host saw no beat for its TTL, or the row was removed"
                    );
                    self.last_known = database.marks.clone();
                    self.phase = Phase::Joining { from: now, database: Some(database) };
                    self.forget();
                }
            }
            Fault::Broken(reason) => self.broken(reason),
        }
    }

    /// A connection that fails for so long may not work ever again (a transaction that can be neither ended nor rolled
    /// back, a file handle gone bad). The lease has run out meanwhile.
    fn reconnect_if_stuck(&mut self, now: Instant) {
        let since = *self.stuck_since.get_or_insert(now);
        if now < since + self.config.lease_ttl * STUCK_TTLS {
            return;
        }
        self.stuck_since = None;
        let before = std::mem::replace(&mut self.phase, Phase::Joining { from: now, database: None });
        let was_member = matches!(before, Phase::Member { .. });
        if let Phase::Member { database, .. } | Phase::Joining { database: Some(database), .. } = before {
            tracing::error!(store = "sqlite", "nothing could be written for long: opening the database anew");
            self.last_known = database.marks.raised_to(&self.last_known);
        }
        if was_member {
            self.forget();
        }
    }

    /// All that anybody granted from the old file, and what it remembered of lock delays, must have passed before we
    /// grant anything from whatever is there now.
    fn broken(&mut self, reason: &str) {
        let before = std::mem::replace(&mut self.phase, Phase::Left);
        let was_member = matches!(before, Phase::Member { .. });
        if let Phase::Member { database, .. } | Phase::Joining { database: Some(database), .. } = before {
            self.last_known = database.last_marks().raised_to(&self.last_known);
        }
        let lock_delay = Duration::from_millis(self.last_known.lock_delay_ms.unsigned_abs());
        let wait = self.observer.longest_ttl() + lock_delay;
        self.phase = Phase::Joining { from: clock::now() + wait, database: None };
        tracing::error!(
            store = "sqlite", path = %self.config.path.display(), reason, wait_ms = wait.as_millis(),
            known_epoch = self.last_known.epoch,
            "the database is damaged or was replaced: nothing is granted until the wait is over and the file can be \
             opened; if it was restored or made anew, stop every host, set epoch_base above every epoch handed out, \
             and start them again"
        );
        if was_member {
            self.forget();
        }
    }

    /// What we had under the lost lease is nothing to us any more.
    fn forget(&mut self) {
        self.table = Table::default();
        self.upkeep = Default::default();
        self.observer = Observer::new(self.config.lease_ttl);
        self.report(Event::LeaseLost);
        self.answer_all("the lease was lost", StoreError::Unavailable);
    }

    // Small things.

    /// How long a transaction waits for a lock of another process.
    pub(super) fn patience(&self) -> Duration {
        self.config.lease_ttl / 10
    }

    pub(super) fn report(&self, event: Event) {
        // The driver is gone: so are we, soon.
        let _ = self.events.send(event);
    }

    pub(super) fn committed(&mut self) {
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        self.stuck_since = None;
        if self.health == Health::Failing {
            tracing::info!(store = "sqlite", "the store works again");
            self.health = Health::Working;
        }
    }

    pub(super) fn failing(&mut self, fault: &Fault) {
        if self.health == Health::Working {
            tracing::warn!(store = "sqlite", reason = fault.reason(), "the store does not work; trying again");
            self.health = Health::Failing;
        }
    }
}
