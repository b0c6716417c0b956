//! A real etcd of one member or several: started, killed, frozen, a member replaced, set back to a snapshot.

pub mod certificates;
mod ctl;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::artifacts;
use crate::http::Ask;
use crate::ports::free_port;
use crate::process::Process;
use crate::wait::{PATIENCE, until};
use certificates::Certificates;

pub use ctl::{KeyValue, Permission};

/// How long a member may take to answer whether it leads; one that takes longer is frozen.
const PROBE: Duration = Duration::from_secs(1);

/// How an etcd is started.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// How many members it has.
    pub members: usize,
    /// Whether writes reach the disk before they are acknowledged.
    pub durability: Durability,
    /// How soon a silent leader is replaced, and with it how short leases may be.
    pub elections: Elections,
    /// What clients speak. Members speak plain HTTP among themselves.
    pub security: Security,
    /// Further arguments of every member.
    pub more: Vec<String>,
}

/// Whether writes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// They do, as in any etcd that is for real.
    Fsync,
    /// They do not: fast, and good against everything but a power failure.
    NoFsync,
}

/// How soon a silent leader is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elections {
    /// As etcd has it: after 1 to 2 s; leases of 2 s and more.
    Default,
    /// After 0.5 to 1 s; leases of 1 s and more.
    Fast,
}

/// What clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Plain HTTP.
    Plain,
    /// TLS; anybody may connect.
    Tls,
    /// TLS; only clients with a certificate of the same authority may connect.
    MutualTls,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            members: 1,
            durability: Durability::NoFsync,
            elections: Elections::Fast,
            security: Security::Plain,
            more: Vec::new(),
        }
    }
}

impl EtcdConfig {
    /// Three members.
    pub fn cluster() -> Self {
        Self { members: 3, ..Self::default() }
    }
}

/// A running etcd in a temporary directory.
pub struct Etcd {
    members: Vec<Member>,
    config: EtcdConfig,
    certificates: Option<Certificates>,
    root_password: Option<String>,
    /// Makes the names of directories and files unique.
    made: u32,
    dir: TempDir,
}

struct Member {
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    /// Health and metrics, without TLS or users.
    probes: SocketAddr,
    data: PathBuf,
    process: Process,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Frozen,
    Down,
}

impl Etcd {
    /// Starts a new cluster, and waits until it is healthy.
    ///
    /// # Panics
    /// If it does not become healthy; the logs are shown.
    pub async fn start(config: &EtcdConfig) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let certificates = (config.security != Security::Plain).then(|| Certificates::make(dir.path()));
        let places: Vec<Place> = (0..config.members).map(Place::new).collect();
        let mut etcd =
            Self { members: Vec::new(), config: config.clone(), certificates, root_password: None, made: 0, dir };
        for place in &places {
            let data = etcd.new_path(&place.name);
            let process = etcd.launch(place, &places, &data, "new");
            etcd.members.push(Member::new(place.clone(), data, process));
        }
        etcd.ready().await;
        etcd
    }

    /// How many members it has.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// URLs for clients, in the order of the members. They never change.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.url(member.client)).collect()
    }

    /// Where a member listens for clients.
    pub fn client_address(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// `address` as a client would write it.
    pub fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.config.security == Security::Plain { "http" } else { "https" };
        format!("{scheme}://{address}")
    }

    /// The authority of its certificates.
    ///
    /// # Panics
    /// If it was started without TLS.
    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("this etcd was started with TLS")
    }

    /// The process of a member.
    pub fn process(&self, member: usize) -> &Process {
        &self.members[member].process
    }

    /// Kills a member at once; its data stays.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process.kill();
        self.members[member].state = State::Down;
    }

    /// Starts a member on its data again; returns at once.
    pub fn restart(&mut self, member: usize) {
        self.kill(member);
        let places: Vec<Place> = self.members.iter().map(Place::of).collect();
        let process = self.launch(&places[member], &places, &self.members[member].data, "existing");
        self.members[member].process = process;
        self.members[member].state = State::Running;
    }

    /// Stops a member in the middle of whatever it does.
    pub async fn freeze(&mut self, member: usize) {
        self.members[member].process.freeze().await;
        self.members[member].state = State::Frozen;
    }

    /// Lets a frozen member go on.
    pub fn thaw(&mut self, member: usize) {
        self.members[member].process.thaw();
        self.members[member].state = State::Running;
    }

    /// Waits until every running member says that it is healthy: there is a leader, and reads go through.
    ///
    /// # Panics
    /// If they do not.
    pub async fn ready(&self) {
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.state == State::Running) {
            until(&format!("{} to be healthy", member.name), PATIENCE, async || {
                // Without a leader every question about health leaves a line in the log.
                self.metric(index, "etcd_server_has_leader", "").await.filter(|has| *has == 1.0)?;
                let text = probe(member, "/health").await?;
                // 3.4 and 3.5 say {"health":"true"}, with more beside it or not.
                text.contains(r#""health":"true""#).then_some(())
            })
            .await;
        }
    }

    /// Which running member leads.
    ///
    /// # Panics
    /// If none does within [`PATIENCE`].
    pub async fn leader(&self) -> usize {
        until("a leader", PATIENCE, async || {
            for (index, member) in self.members.iter().enumerate() {
                if member.state == State::Running && self.metric(index, "etcd_server_is_leader", "").await == Some(1.0)
                {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// A running member that does not lead.
    ///
    /// # Panics
    /// If there is no leader, or nobody else.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        let other = |&index: &usize| index != leader && self.members[index].state == State::Running;
        (0..self.members.len()).find(other).expect("a member that does not lead")
    }

    /// The value of a metric of one member: the sum over all label sets that contain `labels`.
    pub async fn metric(&self, member: usize, name: &str, labels: &str) -> Option<f64> {
        let text = probe(&self.members[member], "/metrics").await?;
        let of_name = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(labels)
        };
        let values = text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.reduce(|sum, value| sum + value)
    }

    /// How many messages clients have sent to all running members by `method` (`LeaseKeepAlive`, `Txn`, ...).
    pub async fn requests(&self, method: &str) -> u64 {
        let mut sum = 0.0;
        for (index, _) in self.members.iter().enumerate().filter(|(_, member)| member.state == State::Running) {
            let labels = format!("grpc_method=\"{method}\"");
            sum += self.metric(index, "grpc_server_msg_received_total", &labels).await.unwrap_or_default();
        }
        sum as u64
    }

    /// Removes a member from the cluster and puts a new one, without data, in its place and at its addresses. Waits
    /// until it is healthy.
    ///
    /// # Panics
    /// If the cluster does not have it.
    pub async fn replace(&mut self, member: usize) {
        self.kill(member);
        let (name, peer) = (self.members[member].name.clone(), format!("http://{}", self.members[member].peer));
        let id = self.member_id(&name).await;
        self.patiently(&["member", "remove", &id]).await;
        // Refused until the others have been in touch for 5 s.
        self.patiently(&["member", "add", &name, &format!("--peer-urls={peer}")]).await;
        self.members[member].data = self.new_path(&name);
        self.restart(member);
        self.ready().await;
    }

    /// Writes a snapshot of the present state to a file.
    ///
    /// # Panics
    /// If that fails.
    pub async fn save(&mut self) -> PathBuf {
        let file = self.new_path("snapshot");
        let running = self.running().next().expect("a member runs").client;
        self.ctl_at(&[running], &["snapshot", "save", text(&file)]).await.expect("a snapshot can be saved");
        file
    }

    /// Kills all members and starts a new cluster at the same addresses on the snapshot, as an operator does it after a
    /// disaster. Waits until it is healthy.
    ///
    /// # Panics
    /// If the snapshot cannot be restored.
    pub async fn restore(&mut self, snapshot: &Path) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
        let places: Vec<Place> = self.members.iter().map(Place::of).collect();
        let cluster = initial_cluster(&places);
        for (member, place) in places.iter().enumerate() {
            let data = self.new_path(&place.name);
            let to = [
                format!("--data-dir={}", text(&data)),
                format!("--name={}", place.name),
                format!("--initial-cluster={cluster}"),
                format!("--initial-advertise-peer-urls=http://{}", place.peer),
            ];
            let args: Vec<&str> =
                ["snapshot", "restore", text(snapshot)].into_iter().chain(to.iter().map(String::as_str)).collect();
            self.ctl_at(&[], &args).await.expect("a snapshot can be restored");
            self.members[member].data = data;
            self.restart(member);
        }
        self.ready().await;
    }

    fn running(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.state == State::Running)
    }

    /// A path in our directory at which there is nothing yet.
    fn new_path(&mut self, what: &str) -> PathBuf {
        self.made += 1;
        self.dir.path().join(format!("{what}.{}", self.made))
    }

    fn launch(&self, place: &Place, all: &[Place], data: &Path, cluster_state: &str) -> Process {
        let (client, peer) = (self.url(place.client), format!("http://{}", place.peer));
        let mut args = vec![
            format!("--name={}", place.name),
            format!("--data-dir={}", text(data)),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", initial_cluster(all)),
            format!("--initial-cluster-state={cluster_state}"),
            format!("--listen-metrics-urls=http://{}", place.probes),
            "--logger=zap".to_owned(),
            "--log-outputs=stderr".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        match self.config.durability {
            Durability::Fsync => {}
            Durability::NoFsync => args.push("--unsafe-no-fsync".to_owned()),
        }
        match self.config.elections {
            Elections::Default => {}
            Elections::Fast => {
                args.extend(["--heartbeat-interval=50".to_owned(), "--election-timeout=500".to_owned()]);
            }
        }
        if let Some(certificates) = &self.certificates {
            let server = certificates.server();
            args.push(format!("--cert-file={}", text(&server.certificate)));
            args.push(format!("--key-file={}", text(&server.key)));
            if self.config.security == Security::MutualTls {
                args.push("--client-cert-auth".to_owned());
                args.push(format!("--trusted-ca-file={}", text(certificates.ca())));
            }
        }
        args.extend(self.config.more.iter().cloned());
        let log = self.dir.path().join(format!("{}.log", place.name));
        Process::start(&place.name, &artifacts::etcd(), &args, &log)
    }
}

impl Member {
    fn new(place: Place, data: PathBuf, process: Process) -> Self {
        let Place { name, client, peer, probes } = place;
        Self { name, client, peer, probes, data, process, state: State::Running }
    }
}

/// What a member is called and where it listens.
#[derive(Clone)]
struct Place {
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    probes: SocketAddr,
}

impl Place {
    fn new(index: usize) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self { name: format!("etcd{index}"), client: address(), peer: address(), probes: address() }
    }

    fn of(member: &Member) -> Self {
        Self { name: member.name.clone(), client: member.client, peer: member.peer, probes: member.probes }
    }
}

fn initial_cluster(all: &[Place]) -> String {
    all.iter().map(|place| format!("{}=http://{}", place.name, place.peer)).collect::<Vec<_>>().join(",")
}

/// What a member answers, if it answers with success.
async fn probe(member: &Member, path: &str) -> Option<String> {
    let answer = tokio::time::timeout(PROBE, Ask::get(path).send(member.probes)).await.ok()?.ok()?;
    (answer.status == 200).then(|| String::from_utf8_lossy(&answer.body).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
