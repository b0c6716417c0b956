//! A worker of the simulation: requests that come, act, give up and end.

use super::*;
use crate::session::TICK;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Acting { until: Instant },
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) keys: Keys,
    pub(super) state: State,
}

pub(super) struct Worker {
    pub(super) hosts: Hosts,
    last_stream: u32,
    /// Open streams, and where to.
    streams: BTreeMap<u32, usize>,
    /// When the network last broke a stream to a host.
    pub(super) broken_at: BTreeMap<usize, Instant>,
    pub(super) frozen_until: Instant,
    next_tick: Instant,
    pub(super) closed: VecDeque<u32>,
    pub(super) requests: BTreeMap<u32, Request>,
    next_owner: u32,
}

impl Worker {
    pub(super) fn new(hosts: Hosts, now: Instant) -> Self {
        Self {
            hosts,
            last_stream: 0,
            streams: BTreeMap::new(),
            broken_at: BTreeMap::new(),
            frozen_until: now,
            next_tick: now,
            closed: VecDeque::new(),
            requests: BTreeMap::new(),
            next_owner: 0,
        }
    }

    /// The latest stream to a host.
    pub(super) fn stream_to(&self, host: usize) -> Option<u32> {
        self.streams.iter().rev().find(|(_, to)| **to == host).map(|(&stream, _)| stream)
    }
}

impl World {
    pub(super) fn run_worker(&mut self, index: usize, busy: bool) {
        let now = self.now;
        while let Some(stream) = self.workers[index].closed.pop_front() {
            self.workers[index].streams.remove(&stream);
            self.workers[index].hosts.stream_closed(now, StreamToken(stream));
        }
        // A thawed worker may read before it ticks, or the other way round.
        if self.chance(2) {
            self.tick(index);
        }
        for message in take_due(&mut self.to_workers, |message| message.arrival <= now && message.worker == index) {
            self.workers[index].hosts.receive(now, StreamToken(message.stream), &message.bytes);
        }
        self.tick(index);
        self.open_streams(index);
        self.take_outcomes(index);
        if busy {
            self.act(index);
        }
        self.end_requests(index);
        while let Some(output) = self.workers[index].hosts.poll_output() {
            match output {
                Output::Send(StreamToken(stream), bytes) => {
                    let arrival = self.arrival(|world| &mut world.to_hosts);
                    self.to_hosts.push_back(Message { arrival, worker: index, stream, bytes });
                }
                Output::Close(StreamToken(stream)) => {
                    self.cut(index, stream);
                    self.workers[index].streams.remove(&stream);
                    self.workers[index].closed.retain(|closed| *closed != stream);
                }
            }
        }
    }

    fn tick(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.next_tick <= self.now {
            worker.next_tick = self.now + TICK;
            worker.hosts.tick(self.now);
        }
    }

    fn open_streams(&mut self, index: usize) {
        while let Some(cluster) = self.workers[index].hosts.wanted_stream(self.now) {
            let is_down = matches!(self.hosts[cluster.0].health, Health::Down { .. });
            // The proxy may know at once, or find out.
            let is_refused = is_down && self.chance(2);
            let worker = &mut self.workers[index];
            if is_refused {
                worker.hosts.stream_refused(self.now, cluster);
                continue;
            }
            worker.last_stream += 1;
            worker.streams.insert(worker.last_stream, cluster.0);
            self.hosts[cluster.0].expect_stream(index, worker.last_stream);
            worker.hosts.stream_opened(self.now, cluster, StreamToken(worker.last_stream));
            if is_down {
                worker.closed.push_back(worker.last_stream);
            }
        }
    }

    fn take_outcomes(&mut self, index: usize) {
        let (now, replay) = (self.now, self.replay());
        let work = Duration::from_millis(self.rng.below(800));
        let has_host = self.has_host_for(index);
        let worker = &mut self.workers[index];
        while let Some((owner, outcome)) = worker.hosts.poll_outcome() {
            let request = worker.requests.get_mut(&owner.0);
            match (outcome, request) {
                (Outcome::Granted(granted), Some(request)) if request.state == State::Waiting => {
                    if worker.hosts.believes(now, owner, &granted.tokens) {
                        request.state = State::Acting { until: now + work };
                    }
                }
                (Outcome::Rejected(rejection), Some(request)) if request.state == State::Waiting => {
                    let unfound = rejection == Rejection::HostUnavailable && has_host;
                    assert!(!unfound, "{:?} rejected at {now:?} with a host there; {replay}", request.keys);
                    worker.requests.remove(&owner.0);
                }
                (Outcome::Lost(_), Some(Request { state: State::Acting { .. }, .. })) => {
                    worker.requests.remove(&owner.0);
                    worker.hosts.release(owner, Ending::Unclean);
                }
                // It was cancelled or released, with the outcome under way.
                (_, None) => {}
                (outcome, request) => panic!("{outcome:?} for {request:?}; {replay}"),
            }
        }
    }

    fn act(&mut self, index: usize) {
        if self.chance(15) {
            let first = self.rng.below(KEYS);
            let others = self.rng.below(2);
            let keys: Keys = (first..=first + others).map(|key| format!("default/{}", key % KEYS)).collect();
            let wait_ms = if self.chance(4) { 0 } else { self.rng.below(6_000) };
            let wait = Duration::from_millis(wait_ms);
            self.ask(index, keys, wait);
        }
        if self.chance(60) {
            let worker = &mut self.workers[index];
            let waiting = worker.requests.iter().find(|(_, request)| request.state == State::Waiting);
            if let Some(owner) = waiting.map(|(&owner, _)| owner) {
                worker.requests.remove(&owner);
                worker.hosts.cancel(RequestRef(owner));
            }
        }
    }

    fn ask(&mut self, index: usize, keys: Keys, wait: Duration) {
        let (now, has_host) = (self.now, self.has_host_for(index));
        let worker = &mut self.workers[index];
        worker.next_owner += 1;
        let request = |key: &String| v1::KeyRequest { key: key.clone(), ..Default::default() };
        let wanted = keys.iter().map(request).collect();
        let ask = Ask { keys: wanted, wait, hold: Duration::from_secs(60), ..Default::default() };
        match worker.hosts.acquire(now, RequestRef(worker.next_owner), ask) {
            Ok(()) => {
                let request = Request { keys, state: State::Waiting };
                worker.requests.insert(worker.next_owner, request);
            }
            Err(rejection) => assert!(!has_host, "{rejection:?} at {now:?} with a host there; {}", self.replay()),
        }
    }

    fn end_requests(&mut self, index: usize) {
        let now = self.now;
        let worker = &mut self.workers[index];
        let hosts = &mut worker.hosts;
        worker.requests.retain(|&owner, request| match request.state {
            State::Acting { until } if until <= now => {
                hosts.release(RequestRef(owner), Ending::Clean);
                false
            }
            _ => true,
        });
    }
}
