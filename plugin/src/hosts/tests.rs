//! The choice among hosts in virtual time, against a network of small scripted hosts.

mod kin;
mod outages;
mod verdicts;

use core::time::Duration;
use std::collections::BTreeMap;

use prost::Message;
use turnstile_protocol::HOLDER_SECRET_BYTES;
use turnstile_protocol::v1::{self, RejectReason, client_item::Item};

use super::*;
use crate::session::{Granted, TICK};

const TTL: Duration = Duration::from_secs(4);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How a host can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    /// It answers.
    Fine,
    /// Streams are refused.
    Refusing,
    /// Streams stand, and nothing comes back.
    Silent,
}

/// One host: it welcomes and answers heartbeats by itself, and leaves requests to the test.
struct Scripted {
    network: Network,
    /// Whether it has a lease in its store.
    able: bool,
    draining: bool,
    incarnation: u64,
    sessions: u64,
    stream: Option<StreamToken>,
    heartbeat_seq: u64,
    hellos: u32,
    /// What was asked, and is not over.
    asked: BTreeMap<u64, v1::Acquire>,
    /// How much was asked in all.
    asked_for: u32,
    cancelled: Vec<u64>,
    released: Vec<(u64, Ending)>,
}

struct Bench {
    hosts: Hosts,
    now: Instant,
    streams: u32,
    net: BTreeMap<String, Scripted>,
    outcomes: Vec<(u32, Outcome)>,
    changes: Vec<(String, Change)>,
}

impl Bench {
    fn new(names: &[&str]) -> Self {
        let now = Instant::from_micros(1_000_000_000);
        let clusters: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let hosts = Hosts::new(&clusters, &Names::default(), 1, now);
        let scripted = |number: usize| Scripted {
            network: Network::Fine,
            able: true,
            draining: false,
            incarnation: 0x1000 * (number as u64 + 1),
            sessions: 0,
            stream: None,
            heartbeat_seq: 0,
            hellos: 0,
            asked: BTreeMap::new(),
            asked_for: 0,
            cancelled: Vec::new(),
            released: Vec::new(),
        };
        let net = clusters.into_iter().enumerate().map(|(number, name)| (name, scripted(number))).collect();
        Self { hosts, now, streams: 0, net, outcomes: Vec::new(), changes: Vec::new() }
    }

    fn host(&mut self, name: &str) -> &mut Scripted {
        self.net.get_mut(name).expect("a host of the bench")
    }

    /// A request for one key, with a wait in milliseconds.
    fn try_ask(&mut self, owner: u32, key: &str, wait_ms: u64) -> Result<(), Rejection> {
        self.try_join(owner, key, wait_ms, Reentry::Closed)
    }

    fn try_join(&mut self, owner: u32, key: &str, wait_ms: u64, reentry: Reentry) -> Result<(), Rejection> {
        let keys = vec![v1::KeyRequest { key: key.to_owned(), ..Default::default() }];
        let wait = Duration::from_millis(wait_ms);
        let ask = Ask { keys, wait, hold: Duration::from_secs(600), reentry, ..Ask::default() };
        let asked = self.hosts.acquire(self.now, RequestRef(owner), ask);
        self.turn();
        asked
    }

    fn ask(&mut self, owner: u32, key: &str, wait_ms: u64) {
        self.try_ask(owner, key, wait_ms).expect("taken on");
    }

    /// Lets everything be done that can be done at this instant.
    fn turn(&mut self) {
        loop {
            while let Some(cluster) = self.hosts.wanted_stream(self.now) {
                self.open(cluster);
            }
            let Some(output) = self.hosts.poll_output() else { break };
            match output {
                Output::Close(stream) => {
                    self.net
                        .values_mut()
                        .filter(|host| host.stream == Some(stream))
                        .for_each(|host| host.stream = None);
                }
                Output::Send(stream, message) => self.carry(stream, &message),
            }
        }
        while let Some((cluster, change)) = self.hosts.poll_change() {
            self.changes.push((cluster.to_owned(), change));
        }
        while let Some((owner, outcome)) = self.hosts.poll_outcome() {
            if let Outcome::Granted(granted) = &outcome {
                assert!(self.hosts.believes(self.now, owner, &granted.tokens), "an expired grant");
            }
            self.outcomes.push((owner.0, outcome));
        }
    }

    fn open(&mut self, cluster: ClusterRef) {
        let name = self.hosts.name(cluster).to_owned();
        self.streams += 1;
        let stream = StreamToken(self.streams);
        let host = self.host(&name);
        if host.network == Network::Refusing {
            return self.hosts.stream_refused(self.now, cluster);
        }
        host.stream = Some(stream);
        self.hosts.stream_opened(self.now, cluster, stream);
    }

    fn carry(&mut self, stream: StreamToken, message: &[u8]) {
        let host = self.net.values_mut().find(|host| host.stream == Some(stream));
        let Some(host) = host.filter(|host| host.network == Network::Fine) else { return };
        let message = v1::ClientMessage::decode(message).expect("a message");
        let answers = message.items.into_iter().flat_map(|item| host.hear(item.item.expect("known"))).collect();
        self.say(stream, answers);
    }

    fn say(&mut self, stream: StreamToken, items: Vec<v1::ServerItem>) {
        if !items.is_empty() {
            self.hosts.receive(self.now, stream, &v1::ServerMessage { items }.encode_to_vec());
        }
    }

    fn say_as(&mut self, name: &str, item: v1::ServerItem) {
        let stream = self.host(name).stream.expect("it has a stream");
        self.say(stream, vec![item]);
        self.turn();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + TICK;
            self.hosts.tick(self.now);
            self.turn();
        }
    }

    // What befalls hosts.

    fn grant(&mut self, name: &str, id: u64) {
        let host = self.host(name);
        let acquire = host.asked.get(&id).expect("it was asked");
        let keys = vec![v1::KeyGrant { token: id, barrier: id }; acquire.keys.len()];
        let mut holder_secret = acquire.reentry_secret.clone();
        if acquire.reentrant {
            holder_secret = host.incarnation.to_be_bytes().to_vec();
            holder_secret.resize(HOLDER_SECRET_BYTES, 0xa5);
        }
        let (heartbeat_seq, valid_ms) = (host.heartbeat_seq, 3_900);
        let grant = v1::Grant { id, keys, heartbeat_seq, valid_ms, holder_secret, ..Default::default() };
        self.say_as(name, grant.into());
    }

    fn reject(&mut self, name: &str, id: u64, reason: RejectReason) {
        self.host(name).asked.remove(&id);
        self.say_as(name, v1::Reject { id, reason: reason.into(), ..Default::default() }.into());
    }

    /// Its process dies: the stream ends, and others are refused.
    fn kill(&mut self, name: &str) {
        let host = self.host(name);
        host.network = Network::Refusing;
        host.incarnation += 1;
        host.asked.clear();
        self.break_stream(name);
    }

    fn break_stream(&mut self, name: &str) {
        if let Some(stream) = self.host(name).stream.take() {
            self.hosts.stream_closed(self.now, stream);
            self.turn();
        }
    }

    fn revive(&mut self, name: &str) {
        let host = self.host(name);
        (host.network, host.draining, host.able) = (Network::Fine, false, true);
    }

    fn drain(&mut self, name: &str) {
        self.host(name).draining = true;
        self.say_as(name, v1::GoAway::default().into());
    }

    // What is to be seen.

    /// The requests that wait or hold at a host, by its own numbers.
    fn at(&self, name: &str) -> Vec<u64> {
        self.net[name].asked.keys().copied().collect()
    }

    fn outcome(&mut self) -> (u32, Outcome) {
        assert_eq!(self.outcomes.len(), 1, "{:?}", self.outcomes);
        self.outcomes.remove(0)
    }

    fn is_granted(&mut self, owner: u32) {
        let outcome = self.outcome();
        assert!(matches!(outcome, (of, Outcome::Granted(_)) if of == owner), "{outcome:?}");
    }

    fn is_rejected(&mut self, owner: u32, rejection: Rejection) {
        assert_eq!(self.outcome(), (owner, Outcome::Rejected(rejection)));
    }

    fn changes(&mut self) -> Vec<(String, Change)> {
        core::mem::take(&mut self.changes)
    }
}

impl Scripted {
    fn hear(&mut self, item: Item) -> Vec<v1::ServerItem> {
        match item {
            Item::Hello(hello) => return self.greet(&hello),
            Item::Acquire(acquire) => {
                self.asked_for += 1;
                self.asked.insert(acquire.id, acquire);
            }
            Item::Cancel(v1::Cancel { id }) => {
                self.asked.remove(&id);
                self.cancelled.push(id);
            }
            Item::Release(release) => self.end(&release),
            Item::Heartbeat(v1::Heartbeat { seq }) => {
                self.heartbeat_seq = seq;
                let valid_ms = if self.able { 3_900 } else { 0 };
                return vec![v1::HeartbeatAck { seq, valid_ms }.into()];
            }
        }
        Vec::new()
    }

    fn greet(&mut self, hello: &v1::Hello) -> Vec<v1::ServerItem> {
        self.hellos += 1;
        self.heartbeat_seq = hello.heartbeat_seq;
        let incarnation = format!("{:016x}", self.incarnation);
        let resume = hello.resume.as_ref().filter(|resume| resume.incarnation == incarnation);
        match resume {
            Some(resume) => resume.releases.iter().for_each(|release| self.end(release)),
            None => {
                self.sessions += 1;
                // Holds of a session that is ending go on in it.
                if !self.draining {
                    self.asked.clear();
                }
            }
        }
        let welcome = v1::Welcome {
            incarnation,
            session_id: self.sessions,
            resumed: resume.is_some(),
            ttl_ms: TTL.as_millis() as u32,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
            ..Default::default()
        };
        let goodbye = self.draining.then(|| v1::GoAway::default().into());
        [welcome.into()].into_iter().chain(goodbye).collect()
    }

    fn end(&mut self, release: &v1::Release) {
        self.asked.remove(&release.id);
        self.released.push((release.id, release.ending()));
    }
}

/// A key that prefers the hosts in this order.
fn key(order: &[&str]) -> String {
    keys(order).next().expect("some key does")
}

/// Such keys.
fn keys(order: &[&str]) -> impl Iterator<Item = String> {
    let fits = move |key: &String| {
        let hash = KeyHash::of_request([key.as_str()].into_iter());
        order.is_sorted_by_key(|name| Reverse(ClusterHash::of(name).weight(hash)))
    };
    (0..).map(|number| format!("default/{number}")).filter(fits)
}

#[test]
fn each_request_is_asked_of_the_host_that_its_first_key_prefers() {
    let names = ["a", "b", "c"];
    let mut bench = Bench::new(&names);
    for (owner, name) in (1..).zip(names) {
        let mut order = names.to_vec();
        order.sort_by_key(|other| *other != name);
        bench.ask(owner, &key(&order), 5_000);
        assert_eq!(bench.at(name), [1]);
        bench.grant(name, 1);
        bench.is_granted(owner);
    }
    // A session is opened when it is first needed, once.
    assert_eq!(names.map(|name| bench.host(name).hellos), [1, 1, 1]);
    assert_eq!((bench.hosts.take_failovers(), bench.changes()), (0, vec![]));
    for owner in 1..=3 {
        bench.hosts.release(RequestRef(owner), Ending::Clean);
    }
    bench.turn();
    assert_eq!(names.map(|name| bench.host(name).released.clone()), [const { [(1, Ending::Clean)] }; 3]);
}

#[test]
fn hosts_that_nobody_needs_are_left_alone() {
    let mut bench = Bench::new(&["a", "b"]);
    bench.pass(Duration::from_secs(10));
    bench.ask(1, &key(&["a", "b"]), 20_000);
    bench.pass(Duration::from_secs(10));
    assert_eq!((bench.host("a").hellos, bench.host("b").hellos), (1, 0));
}
