//! The hosts of a filter: one cluster each, and for every request the choice which of them is asked.
//!
//! A request goes to the host that its first key (by name) prefers, or else to the next one in that key's order
//! (`rendezvous`); a request that joins a hold goes to the host that granted it. Whether a host is there is what
//! `standing` remembers of it. A waiter whose host is away moves on with what is left of its wait; where it was asked
//! before it is withdrawn, so that it is granted once. Holds stay where they are. Which host is asked is a matter of
//! speed: what makes it safe is the store that the hosts share.

mod failover;
mod rendezvous;
#[cfg(test)]
mod simulation;
mod standing;
#[cfg(test)]
mod tests;

use core::cmp::Reverse;

use turnstile_protocol::v1::Ending;

use crate::backoff::{Backoff, Jitter};
use crate::clock::Instant;
use crate::reentry::{HolderSecret, Reentry};
use crate::session::{Ask, Names, Outcome, Output, Rejection, RequestRef, StreamToken, Tokens};
use crate::sessions::Sessions;
use rendezvous::{ClusterHash, KeyHash, Weight};
use standing::Standing;

pub use standing::{Absence, Change};

/// One of the filter's clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterRef(usize);

/// What a host is good for; the best come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    /// As far as is known, all is well.
    Up,
    /// It was away and answers again, but may not stay.
    Returning,
    /// It may answer yet: a session may be resumed, or a first attempt is under way.
    Doubtful,
    /// It was tried, and cannot be reached.
    Down,
}

/// A place for a request; the best come first.
type Place = (Fitness, Reverse<Weight>, ClusterRef);

#[derive(Debug)]
struct Cluster {
    name: String,
    hash: ClusterHash,
    sessions: Sessions,
    standing: Standing,
    /// Not told yet.
    change: Option<Change>,
}

/// All hosts of one filter in one worker. Most of its methods are those of [`Session`](crate::session::Session).
#[derive(Debug)]
pub struct Hosts {
    /// In the order of their names, so that what is decided by it is the same everywhere.
    clusters: Vec<Cluster>,
    failovers: u32,
    /// When all hosts were away last, and tried again.
    hurried: Option<Instant>,
}

impl Hosts {
    /// A session with each of the clusters, without a stream.
    pub fn new(clusters: &[String], names: &Names, seed: u64, now: Instant) -> Self {
        let mut jitter = Jitter::new(seed);
        let mut sorted: Vec<&String> = clusters.iter().collect();
        sorted.sort_unstable();
        let cluster = |name: &String| {
            let backoff = Backoff::new(Jitter::new(jitter.below(u64::MAX)));
            Cluster {
                name: name.clone(),
                hash: ClusterHash::of(name),
                sessions: Sessions::new(names.clone(), backoff, now),
                standing: Standing::default(),
                change: None,
            }
        };
        Self { clusters: sorted.into_iter().map(cluster).collect(), failovers: 0, hurried: None }
    }

    // Inputs: requests.

    /// See [`Session::acquire`](crate::session::Session::acquire).
    pub fn acquire(&mut self, now: Instant, owner: RequestRef, ask: Ask) -> Result<(), Rejection> {
        if let [only] = self.clusters.as_mut_slice() {
            return only.sessions.acquire(now, owner, ask);
        }
        let key = KeyHash::of_request(ask.keys.iter().map(|request| request.key.as_str()));
        let place = match &ask.reentry {
            Reentry::Closed | Reentry::Open => self.best(key, |_| true),
            Reentry::Join(secret) if self.is_left(secret.as_bytes()) => return Err(Rejection::NoSuchHold),
            Reentry::Join(secret) => self.place_of_hold(secret.as_bytes(), key, |_| true),
        };
        let Some((fitness, Reverse(weight), place)) = place else { return Err(Rejection::HostUnavailable) };
        let is_bound = matches!(ask.reentry, Reentry::Join(_));
        if fitness >= Fitness::Doubtful {
            // One that nobody has tried for long may be there.
            self.all().for_each(|sessions| sessions.wake(now));
        }
        let passed_over = !is_bound && self.wake_preferred(now, key, weight);
        let Some(cluster) = self.get_mut(place) else { return Err(Rejection::HostUnavailable) };
        cluster.sessions.acquire(now, owner, ask)?;
        self.failovers += u32::from(passed_over);
        Ok(())
    }

    /// See [`Session::cancel`](crate::session::Session::cancel).
    pub fn cancel(&mut self, owner: RequestRef) {
        self.all().for_each(|sessions| sessions.cancel(owner));
    }

    /// See [`Session::release`](crate::session::Session::release).
    pub fn release(&mut self, owner: RequestRef, ending: Ending) {
        self.all().for_each(|sessions| sessions.release(owner, ending));
    }

    /// See [`Session::believes`](crate::session::Session::believes).
    pub fn believes(&mut self, now: Instant, owner: RequestRef, tokens: &Tokens) -> bool {
        let believed = self.all().any(|sessions| sessions.believes(now, owner, tokens));
        if !believed && self.clusters.len() > 1 {
            // It came back too late to be asked for again.
            self.place_declined(now);
        }
        believed
    }

    // Inputs: streams and time.

    /// See [`Session::stream_opened`](crate::session::Session::stream_opened).
    pub fn stream_opened(&mut self, now: Instant, cluster: ClusterRef, stream: StreamToken) {
        if let Some(cluster) = self.get_mut(cluster) {
            cluster.sessions.stream_opened(now, stream);
        }
    }

    /// See [`Session::stream_refused`](crate::session::Session::stream_refused).
    pub fn stream_refused(&mut self, now: Instant, cluster: ClusterRef) {
        if let Some(cluster) = self.get_mut(cluster) {
            cluster.sessions.stream_refused(now);
        }
        self.settle(now);
    }

    /// See [`Session::stream_closed`](crate::session::Session::stream_closed).
    pub fn stream_closed(&mut self, now: Instant, stream: StreamToken) {
        self.all().for_each(|sessions| sessions.stream_closed(now, stream));
        self.settle(now);
    }

    /// See [`Session::receive`](crate::session::Session::receive).
    pub fn receive(&mut self, now: Instant, stream: StreamToken, message: &[u8]) {
        self.all().for_each(|sessions| sessions.receive(now, stream, message));
        self.settle(now);
    }

    /// See [`Session::tick`](crate::session::Session::tick).
    pub fn tick(&mut self, now: Instant) {
        self.all().for_each(|sessions| sessions.tick(now));
        self.settle(now);
    }

    // Outputs.

    /// The next cluster that a stream is to be opened to.
    pub fn wanted_stream(&self, now: Instant) -> Option<ClusterRef> {
        self.clusters.iter().position(|cluster| cluster.sessions.wants_stream(now)).map(ClusterRef)
    }

    /// See [`Session::poll_outcome`](crate::session::Session::poll_outcome).
    pub fn poll_outcome(&mut self) -> Option<(RequestRef, Outcome)> {
        if !self.has_outcome() {
            return None;
        }
        for cluster in &mut self.clusters {
            if let Some(loss) = cluster.sessions.poll_loss() {
                return Some(loss);
            }
        }
        let cluster = self.clusters.iter_mut().find(|cluster| cluster.sessions.has_outcome())?;
        cluster.sessions.poll_outcome()
    }

    /// See [`Session::poll_output`](crate::session::Session::poll_output).
    pub fn poll_output(&mut self) -> Option<Output> {
        if !self.has_output() {
            return None;
        }
        self.all().find_map(Sessions::poll_output)
    }

    /// What has become of a host.
    pub fn poll_change(&mut self) -> Option<(&str, Change)> {
        self.clusters.iter_mut().find_map(|cluster| Some((cluster.name.as_str(), cluster.change.take()?)))
    }

    /// How often, since the last call, another host than the preferred one was asked.
    pub fn take_failovers(&mut self) -> u32 {
        core::mem::take(&mut self.failovers)
    }

    // Getters.

    /// The name of a cluster in the proxy.
    pub fn name(&self, cluster: ClusterRef) -> &str {
        self.clusters.get(cluster.0).map_or("", |cluster| cluster.name.as_str())
    }

    /// Which cluster's stream it is.
    pub fn cluster_of(&self, stream: StreamToken) -> Option<ClusterRef> {
        self.clusters.iter().position(|cluster| cluster.sessions.has_stream(stream)).map(ClusterRef)
    }

    /// Whether the host of the cluster is known to be away.
    pub fn is_away(&self, cluster: ClusterRef) -> bool {
        self.clusters.get(cluster.0).is_some_and(|cluster| cluster.standing.is_away())
    }

    /// Whether [`Hosts::poll_outcome`] has one.
    pub fn has_outcome(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.sessions.has_outcome())
    }

    /// Whether [`Hosts::poll_output`] has one.
    pub fn has_output(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.sessions.has_output())
    }

    /// See [`Session::is_waking`](crate::session::Session::is_waking).
    pub fn is_waking(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.sessions.is_waking())
    }

    /// See [`Session::is_busy`](crate::session::Session::is_busy).
    pub fn is_busy(&self) -> bool {
        self.clusters.iter().any(|cluster| cluster.sessions.is_busy())
    }

    // Helpers: the choice.

    /// The best of the places that `may` be taken.
    fn best(&self, key: KeyHash, may: impl Fn(&Place) -> bool) -> Option<Place> {
        self.places(key).filter(may).min()
    }

    /// Where a request goes that joins the hold of this secret: to the host that is known to have granted it; else to one
    /// that may have, since this worker has not met it yet; else to any, which will know nothing of it.
    fn place_of_hold(&self, secret: &[u8], key: KeyHash, may: impl Fn(&Place) -> bool) -> Option<Place> {
        let rank = |place: &Place| match self.is_of(place.2, secret) {
            Some(true) => 0,
            None if place.0 < Fitness::Down => 1,
            None | Some(false) => 2,
        };
        self.places(key).filter(may).min_by_key(|place| (rank(place), *place))
    }

    /// Whether the hold of this secret is of the cluster's host; `None` if that host is not known now.
    fn is_of(&self, cluster: ClusterRef, secret: &[u8]) -> Option<bool> {
        let met = self.get(cluster)?.sessions.incarnation()?;
        Some(HolderSecret::incarnation_of(secret).is_some_and(|granted_by| granted_by == met))
    }

    /// Whether the hold of this secret is of a host that goes away.
    fn is_left(&self, secret: &[u8]) -> bool {
        !secret.is_empty() && self.clusters.iter().any(|cluster| cluster.sessions.is_left(secret))
    }

    fn places(&self, key: KeyHash) -> impl Iterator<Item = Place> {
        let place = move |(index, cluster): (usize, &Cluster)| {
            (cluster.fitness(), Reverse(cluster.hash.weight(key)), ClusterRef(index))
        };
        self.clusters.iter().enumerate().map(place)
    }

    /// Sees to it that the hosts that the key would prefer to one of this weight are tried; tells whether there are any.
    fn wake_preferred(&mut self, now: Instant, key: KeyHash, weight: Weight) -> bool {
        let mut passed_over = false;
        for cluster in self.clusters.iter_mut().filter(|cluster| cluster.hash.weight(key) > weight) {
            cluster.sessions.wake(now);
            passed_over = true;
        }
        passed_over
    }

    fn get(&self, cluster: ClusterRef) -> Option<&Cluster> {
        self.clusters.get(cluster.0)
    }

    fn get_mut(&mut self, cluster: ClusterRef) -> Option<&mut Cluster> {
        self.clusters.get_mut(cluster.0)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Sessions> {
        self.clusters.iter_mut().map(|cluster| &mut cluster.sessions)
    }
}

impl Cluster {
    fn observe(&mut self, now: Instant) {
        let departed = self.sessions.take_departure().then(|| self.standing.says_goodbye(now)).flatten();
        let seen = self.standing.observe(now, self.sessions.sign(now));
        let change = departed.or(seen);
        self.change = change.or(self.change);
    }

    fn fitness(&self) -> Fitness {
        if !self.standing.is_away() {
            Fitness::Up
        } else if self.standing.is_returning() {
            Fitness::Returning
        } else if self.sessions.is_host_down() {
            Fitness::Down
        } else {
            Fitness::Doubtful
        }
    }
}
