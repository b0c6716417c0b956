//! Seeded storms: requests, endings and faults in any order. Never two requests at the upstream under one lock (I1, with
//! a host that grants on as soon as a session's TTL is over: so I3 too), and nothing left behind (I5, I6). With several
//! hosts, which share no store here, only the latter.

use std::env;

use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::proxy_wasm::{InFlight, ModelHost, Outcome, Policy, Response, Setup, Worker, endings};

use super::{MS, TRANSFER, configuration, transfer};

const SEEDS: u64 = 40;
const STEPS: usize = 150;
const KEYS: u64 = 3;

#[test]
fn storms_break_no_invariant() {
    run(&["turnstile_host"], &configuration(&[TRANSFER]));
}

#[test]
fn storms_over_several_hosts_leave_nothing_behind() {
    let clusters = ["a", "b", "c"];
    run(&clusters, &serde_json::json!({ "clusters": clusters, "rules": [TRANSFER] }).to_string());
}

fn run(clusters: &[&str], configuration: &str) {
    let clusters: Vec<String> = clusters.iter().map(|name| (*name).to_owned()).collect();
    let setup = Setup { clusters, ..Setup::new(configuration) };
    let one = env::var("TURNSTILE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(1..SEEDS + 1, |seed: u64| seed..seed + 1);
    for seed in seeds {
        println!("to replay: TURNSTILE_SEED={seed} cargo test -p turnstile-tests --test plugin_wasm storms");
        Storm::new(seed, &setup).run();
    }
}

struct Storm {
    random: u64,
    worker: Worker,
    hosts: Vec<ModelHost>,
    requests: Vec<(u32, InFlight)>,
}

impl Storm {
    fn new(seed: u64, setup: &Setup) -> Self {
        let worker = Worker::start(&plugin_wasm(), setup);
        let hosts: Vec<ModelHost> = (0..setup.clusters.len()).map(|index| worker.host_of(index)).collect();
        hosts.iter().for_each(|host| host.policy(Policy::Lock));
        Self { random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, worker, hosts, requests: Vec::new() }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            self.step();
            self.requests.retain(|(_, request)| !request.is_over());
            self.worker.check();
            self.check_exclusion();
        }
        self.heal();
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    fn step(&mut self) {
        let (what, which) = (self.below(22), self.below(self.hosts.len() as u64));
        let host = &self.hosts[which as usize];
        match what {
            0..=7 => {
                let account = self.below(KEYS) as u32;
                self.requests.push((account, self.worker.request(transfer(account))));
            }
            8..=12 => self.end_one(),
            13 => host.freeze(),
            14 => host.thaw(),
            15 => host.break_stream(),
            16 => host.go_down(),
            17 => host.come_up(),
            18 => host.go_away(),
            _ => {
                let ms = 1 + self.below(1_500) as u32;
                self.worker.advance(ms * MS);
            }
        }
    }

    fn end_one(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let (place, way) = (self.below(self.requests.len() as u64) as usize, self.below(5));
        let (_, request) = &self.requests[place];
        match (way, request.outcome()) {
            (0, _) => request.client_gone(),
            (1, Outcome::Upstream { .. }) => request.reset_by_upstream(),
            (2, Outcome::Upstream { .. }) => request.end(endings::route_timeout()),
            (_, Outcome::Upstream { .. }) => request.respond(Response::new(200, "done")),
            _ => {}
        }
    }

    fn check_exclusion(&self) {
        if self.hosts.len() > 1 {
            return;
        }
        for account in 0..KEYS as u32 {
            let at_upstream = |(of, request): &&(u32, InFlight)| {
                *of == account && matches!(request.outcome(), Outcome::Upstream { .. })
            };
            assert!(self.requests.iter().filter(at_upstream).count() <= 1, "two requests hold account {account}");
        }
    }

    /// Faults end, every request gets its answer, and then nothing is waited for or held.
    fn heal(&mut self) {
        self.hosts.iter().for_each(ModelHost::come_up);
        for _ in 0..100 {
            self.worker.advance(500 * MS);
            self.requests.retain(|(_, request)| !request.is_over());
            self.check_exclusion();
            let at_upstream = |request: &InFlight| matches!(request.outcome(), Outcome::Upstream { .. });
            for (_, request) in self.requests.iter().filter(|(_, request)| at_upstream(request)) {
                request.respond(Response::new(200, "done"));
            }
        }
        assert!(self.requests.is_empty(), "{} requests never ended", self.requests.len());
        for host in &self.hosts {
            assert_eq!((host.holding(), host.waiting()), (vec![], vec![]));
        }
        self.worker.check();
    }
}
