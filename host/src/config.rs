//! The host's configuration: a TOML file and flags, made into types once, all faults reported together.

mod cluster;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use turnstile_core::HandoffBudget;

use crate::fields::{Fault, Section};
use crate::store::{etcd, sqlite};

/// Everything `turnstile host` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The port for proxies.
    pub sessions: Sessions,
    /// Where `/live` and `/ready` are answered.
    pub admin_listen: SocketAddr,
    /// The port for people and scripts, if there shall be one.
    pub api: Option<Api>,
    /// Where ownership of keys is recorded.
    pub store: Store,
    /// Bounds and durations of the lock engine.
    pub engine: turnstile_core::Config,
    /// Connections to the port for proxies at once.
    pub connections_max: usize,
    /// How long a drain waits for holds to run out.
    pub drain_grace: Duration,
}

/// The port for proxies, and what is told to them.
#[derive(Clone, Copy, Debug)]
pub struct Sessions {
    /// Loopback, unless `insecure` was set.
    pub listen: SocketAddr,
    /// How often proxies shall send heartbeats.
    pub heartbeat: Duration,
}

/// The port for people and scripts.
#[derive(Clone, Debug)]
pub struct Api {
    /// Loopback, unless `insecure` was set.
    pub listen: SocketAddr,
    /// Whoever reaches the port is trusted, and may call the host by any name.
    pub insecure: bool,
    /// Connections at once.
    pub connections_max: usize,
    /// Where forced releases are recorded before they are carried out.
    pub audit_file: Option<PathBuf>,
}

/// Which store, and how to reach it.
#[derive(Clone, Debug)]
pub enum Store {
    /// An embedded SQLite database in one file.
    Sqlite(sqlite::Config),
    /// An etcd cluster.
    Etcd(etcd::Config),
}

/// Flags that override the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// For `sessions.listen`.
    pub listen: Option<SocketAddr>,
    /// For `admin.listen`.
    pub admin_listen: Option<SocketAddr>,
    /// For `api.listen`.
    pub api_listen: Option<SocketAddr>,
    /// For `store.path`.
    pub database: Option<PathBuf>,
}

/// All faults of a configuration.
#[derive(Debug, thiserror::Error)]
pub struct Faults(Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

impl Config {
    /// Reads a configuration file's text (empty for all defaults) and lays `overrides` over it.
    ///
    /// # Errors
    /// Every fault of the text, each with its place and what was expected there.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, Faults> {
        let fields = toml::from_str(text).map_err(|error| Faults(vec![syntax_fault(&error)]))?;
        let mut faults = Vec::new();
        let mut root = Section::root(fields, &mut faults);
        let config = Self::read(&mut root, overrides);
        root.finish();
        if faults.is_empty() { Ok(config) } else { Err(Faults(faults)) }
    }

    fn read(root: &mut Section<'_>, overrides: &Overrides) -> Self {
        let (sessions, session_ttl) = root.section("sessions", |section| Sessions::read(section, overrides));
        let admin_listen = root.section("admin", |section| {
            let listen = section.address("listen", loopback(7879));
            overrides.admin_listen.unwrap_or(listen)
        });
        let api = root.section("api", |section| Api::read(section, overrides));
        let store = root.section("store", |section| Store::read(section, overrides, session_ttl));
        let mut engine = turnstile_core::Config { session_ttl, ..turnstile_core::Config::default() };
        let connections_max = root.section("limits", |section| read_limits(section, &mut engine));
        root.section("ownership", |section| read_ownership(section, &mut engine));
        let drain_grace =
            root.section("drain", |section| section.duration("grace", 30 * SECOND, Duration::ZERO..=24 * HOUR));
        Self { sessions, admin_listen, api, store, engine, connections_max, drain_grace }
    }
}

impl Sessions {
    /// The port's settings, and the session TTL, which belongs to the engine.
    fn read(section: &mut Section<'_>, overrides: &Overrides) -> (Self, Duration) {
        let listen = section.address("listen", loopback(7878));
        let listen = overrides.listen.unwrap_or(listen);
        let insecure = section.flag("insecure", false);
        let ttl = section.duration("ttl", 4 * SECOND, SECOND / 2..=300 * SECOND);
        let heartbeat = section.duration("heartbeat", ttl / 4, SECOND / 20..=100 * SECOND);
        if heartbeat * 3 > ttl {
            section.fault("heartbeat", "must be at most a third of `ttl`, so that one lost heartbeat ends no session");
        }
        require_loopback(section, listen, insecure);
        (Self { listen, heartbeat }, ttl)
    }
}

impl Api {
    fn read(section: &mut Section<'_>, overrides: &Overrides) -> Option<Self> {
        let enabled = section.flag("enabled", true) || overrides.api_listen.is_some();
        let listen = section.address("listen", loopback(7880));
        let listen = overrides.api_listen.unwrap_or(listen);
        let insecure = section.flag("insecure", false);
        let connections_max = section.count("connections", 1_024, 2..=1_000_000);
        let audit_file = section.file("audit_file");
        require_loopback(section, listen, insecure);
        enabled.then_some(Self { listen, insecure, connections_max, audit_file })
    }
}

fn require_loopback(section: &mut Section<'_>, listen: SocketAddr, insecure: bool) {
    if !listen.ip().is_loopback() && !insecure {
        section.fault(
            "listen",
            "is not a loopback address, and whoever reaches this port can take and free locks; \
             set `insecure = true` in this section if the network in front of it is trusted",
        );
    }
}

impl Store {
    fn read(section: &mut Section<'_>, overrides: &Overrides, session_ttl: Duration) -> Self {
        let kind = section.text("kind", "sqlite");
        let lease_ttl = section.duration("lease_ttl", 5 * SECOND, SECOND / 2..=300 * SECOND);
        if lease_ttl < session_ttl {
            section.fault(
                "lease_ttl",
                "must be at least `sessions.ttl`: no promise to a proxy may outlive the host's own lease",
            );
        }
        let epoch_max = usize::try_from(turnstile_core::Token::EPOCH_MAX.0 / 2).unwrap_or(usize::MAX);
        let epoch_base = section.count("epoch_base", 0, 0..=epoch_max) as u64;
        if kind == "etcd" {
            if overrides.database.is_some() {
                section.fault("kind", "is \"etcd\", and --database names a file for \"sqlite\": leave one of them out");
            }
            return Self::Etcd(cluster::read(section, lease_ttl, epoch_base));
        }
        if kind != "sqlite" {
            section.fault("kind", &format!("is {kind:?}; this version knows \"sqlite\" and \"etcd\""));
        }
        let path = PathBuf::from(section.text("path", "turnstile.db"));
        let path = overrides.database.clone().unwrap_or(path);
        Self::Sqlite(sqlite::Config { path, lease_ttl, epoch_base })
    }
}

/// The engine's bounds, and the number of connections, which are none of its business.
fn read_limits(section: &mut Section<'_>, engine: &mut turnstile_core::Config) -> usize {
    let connections_max = section.count("connections", 4_096, 1..=1_000_000);
    engine.sessions_max = section.count("sessions", engine.sessions_max, 1..=1_000_000);
    engine.waiters_max = section.count("waiters", engine.waiters_max, 1..=100_000_000);
    engine.waiters_per_session_max =
        section.count("waiters_per_session", engine.waiters_per_session_max, 1..=10_000_000);
    // A Resume lists no more.
    engine.holds_per_session_max = section.count("holds_per_session", engine.holds_per_session_max, 1..=65_536);
    engine.joins_per_hold_max = section.count("joins_per_hold", engine.joins_per_hold_max, 1..=10_000);
    engine.waiters_per_key_max = section.count("waiters_per_key", engine.waiters_per_key_max, 1..=10_000_000);
    engine.keys_max = section.count("keys", engine.keys_max, 1..=100_000_000);
    engine.wait_max = section.duration("wait", engine.wait_max, Duration::ZERO..=24 * HOUR);
    engine.hold_max = section.duration("hold", engine.hold_max, SECOND / 10..=24 * HOUR);
    engine.lock_delay_max = section.duration("lock_delay", engine.lock_delay_max, Duration::ZERO..=24 * HOUR);
    connections_max
}

fn read_ownership(section: &mut Section<'_>, engine: &mut turnstile_core::Config) {
    engine.claim_patience = section.duration("claim_patience", engine.claim_patience, SECOND / 100..=60 * SECOND);
    engine.idle_ownership = section.duration("idle", engine.idle_ownership, Duration::ZERO..=24 * HOUR);
    let HandoffBudget { grants, time } = engine.handoff_budget;
    let grants = section.count("handoff_grants", grants as usize, 0..=1_000_000);
    engine.handoff_budget = HandoffBudget {
        grants: u32::try_from(grants).unwrap_or(u32::MAX),
        time: section.duration("handoff_time", time, Duration::ZERO..=60 * SECOND),
    };
}

fn syntax_fault(error: &toml::de::Error) -> Fault {
    Fault { place: "TOML syntax".into(), problem: error.to_string().trim_end().into() }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        match Config::parse(text, &Overrides::default()) {
            Ok(config) => panic!("accepted: {config:?}"),
            Err(faults) => faults.to_string(),
        }
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let config = Config::parse("", &Overrides::default()).unwrap();
        assert_eq!(config.sessions.listen.to_string(), "127.0.0.1:7878");
        assert_eq!(config.engine.session_ttl, Duration::from_secs(4));
        assert_eq!(config.sessions.heartbeat, Duration::from_secs(1));
        assert_eq!((config.connections_max, config.engine.waiters_max), (4_096, 1_000_000));
    }

    #[test]
    fn all_faults_are_reported_together_with_their_places() {
        let text = "[sessions]\nttl = \"soon\"\nheartbeet = \"1s\"\n[store]\nkind = \"papyrus\"\n[limits]\nkeys = -1\n[oops]\n";
        let faults = faults(text);
        let lines: Vec<&str> = faults.lines().collect();
        assert_eq!(lines.len(), 5, "{faults}");
        for (line, place) in
            lines.iter().zip(["sessions.ttl", "sessions.heartbeet", "store.kind", "limits.keys", "oops"])
        {
            assert!(line.starts_with(place), "{line:?} should name {place}");
        }
    }

    #[test]
    fn a_port_beyond_loopback_needs_the_switch() {
        assert!(faults("[sessions]\nlisten = \"0.0.0.0:7878\"").contains("insecure"));
        Config::parse("[sessions]\nlisten = \"0.0.0.0:7878\"\ninsecure = true", &Overrides::default()).unwrap();
        assert!(faults("[api]\nlisten = \"0.0.0.0:7880\"").contains("insecure"));
        let overrides = Overrides { api_listen: Some(([0, 0, 0, 0], 0).into()), ..Overrides::default() };
        assert!(Config::parse("", &overrides).is_err());
        Config::parse("[api]\ninsecure = true", &overrides).unwrap();
    }

    #[test]
    fn the_api_can_be_switched_off_and_keeps_a_record_if_asked() {
        let api = |text: &str| Config::parse(text, &Overrides::default()).unwrap().api;
        assert!(api("[api]\nenabled = false").is_none());
        let overrides = Overrides { api_listen: Some(loopback(0)), ..Overrides::default() };
        assert!(Config::parse("[api]\nenabled = false", &overrides).unwrap().api.is_some());
        assert_eq!(api("").unwrap().audit_file, None);
        assert_eq!(api("[api]\naudit_file = \"a.log\"").unwrap().audit_file, Some("a.log".into()));
        assert!(faults("[api]\naudit_file = true").contains("api.audit_file"));
    }

    #[test]
    fn the_lease_covers_the_sessions_and_heartbeats_the_ttl() {
        assert!(faults("[sessions]\nttl = \"9s\"").contains("lease_ttl"));
        assert!(faults("[sessions]\nheartbeat = \"3s\"").contains("third"));
    }

    #[test]
    fn limits_are_taken_and_are_never_zero() {
        let config = Config::parse("[limits]\nconnections = 7\nwaiters = 9", &Overrides::default()).unwrap();
        assert_eq!((config.connections_max, config.engine.waiters_max), (7, 9));
        let faults = faults("[limits]\nconnections = 0\nwaiters = 0");
        assert!(faults.contains("limits.connections") && faults.contains("limits.waiters"), "{faults}");
    }

    #[test]
    fn an_etcd_cluster_is_described_completely() {
        let text = "[store]\nkind = \"etcd\"\nendpoints = [\"https://a:2379\", \"https://b:2379\"]\n\
            user = \"turnstile\"\npassword_file = \"p\"\nca_file = \"ca.pem\"\ncert_file = \"c\"\nkey_file = \"k\"";
        let Store::Etcd(store) = Config::parse(text, &Overrides::default()).unwrap().store else { panic!() };
        assert_eq!((store.endpoints.len(), store.prefix.as_str(), store.lease_ttl), (2, "turnstile/", 5 * SECOND));
        assert_eq!(store.user, Some(("turnstile".into(), "p".into())));
        assert_eq!(store.tls.unwrap().identity, Some(("c".into(), "k".into())));
    }

    #[test]
    fn what_does_not_fit_together_for_etcd_is_told() {
        let etcd = |more: &str| faults(&format!("[store]\nkind = \"etcd\"\n{more}"));
        let http = "endpoints = [\"http://a:2379\"]\n";
        assert!(etcd("").contains("store.endpoints: is missing"), "{}", etcd(""));
        assert!(etcd("endpoints = [\"http://a\", \"https://b\"]").contains("all http or all https"));
        assert!(etcd("endpoints = [\"https://a:2379\"]").contains("store.ca_file"));
        assert!(etcd(&format!("{http}ca_file = \"ca.pem\"")).contains("store.endpoints"));
        assert!(etcd(&format!("{http}user = \"u\"")).contains("store.password_file"));
        assert!(etcd(&format!("{http}password_file = \"u\"")).contains("store.user"));
        assert!(etcd(&format!("{http}lease_ttl = \"5500ms\"")).contains("whole seconds"));
        assert!(etcd(&format!("{http}request_timeout = \"4s\"")).contains("half of `lease_ttl`"));
        assert!(etcd(&format!("{http}prefix = \"locks\"")).contains("store.prefix"));
        assert!(etcd(&format!("{http}path = \"a.db\"")).contains("store.path: unknown"));
        let overrides = Overrides { database: Some("a.db".into()), ..Overrides::default() };
        assert!(Config::parse(&format!("[store]\nkind = \"etcd\"\n{http}"), &overrides).is_err());
    }

    #[test]
    fn flags_override_the_file() {
        let overrides = Overrides { database: Some("other.db".into()), ..Overrides::default() };
        let Store::Sqlite(store) = Config::parse("[store]\npath = \"a.db\"", &overrides).unwrap().store else {
            panic!()
        };
        assert_eq!(store.path, PathBuf::from("other.db"));
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        assert!(faults("[sessions\nttl = 1").contains("line 1"));
    }
}
