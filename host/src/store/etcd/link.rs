//! One connection to one member of the cluster: made, used for registering, and listened to.
//!
//! A connection has one endpoint. Failing over is the worker's business: it makes a new connection to the next one.
//! Watches begin *now* and never at a past revision, since etcd serves those from a loop that runs every 100 ms; what
//! was missed is read once the watch stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, Event as WatchEvent, EventType, GetOptions,
    Identity, KeyValue, LeaseKeepAliveStream, LeaseKeeper, PutOptions, ResponseHeader, TlsOptions, Txn, TxnOp,
    TxnOpResponse, WatchOptions, WatchStream,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use turnstile_core::{Instant, LockKey};

use super::Config;
use super::hosts::{News, Sight};
use super::layout::{HostValue, Layout, MetaValue, SCHEMA, json};
use super::txn::{Call, Me};
use super::worker::Message;
use crate::clock;

/// Why something did not work, as far as it matters what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Nothing was written.
    #[error("{0}")]
    Unavailable(String),
    /// It may have been written.
    #[error("{0}")]
    Ambiguous(String),
    /// Our key in `hosts/` is gone, or was never ours.
    #[error("the lease is gone")]
    LeaseGone,
    /// The cluster is another, or older than we know it to be.
    #[error("{0}")]
    WentBack(String),
}

impl Fault {
    /// Of a request that writes.
    pub(super) fn of_write(error: &Error) -> Self {
        match error {
            Error::GRpcStatus(status) => {
                use tonic::Code;
                let reason = status.message().to_owned();
                match status.code() {
                    // Refused before anything was proposed. (Not so when space is exhausted: etcd says so after it has
                    // applied what it was asked for. Nor when an answer is too long.)
                    Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::PermissionDenied
                    | Code::Unauthenticated
                    | Code::Unimplemented => Self::Unavailable(reason),
                    _ => Self::Ambiguous(reason),
                }
            }
            Error::TransportError(_) | Error::IoError(_) => Self::Ambiguous(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }

    /// Of a request that only reads.
    pub(super) fn of_read(error: &Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// What we know of the cluster's identity and age, so that a restored backup is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Witness {
    cluster: Option<u64>,
    /// The highest revision that an answer has shown.
    pub(super) revision: i64,
    /// The highest revision at which a beat of ours is known to have landed, of whatever incarnation.
    pub(super) beaten: i64,
}

impl Witness {
    /// Takes in what a connection has learned by itself.
    pub(super) fn join(&mut self, other: Self) {
        self.cluster = other.cluster.or(self.cluster);
        self.revision = self.revision.max(other.revision);
        self.beaten = self.beaten.max(other.beaten);
    }

    /// Checks the header of an answer that went through the cluster's consensus. `before` is what was known when the
    /// question was sent: answers overtake each other.
    pub(super) fn check(&mut self, before: &Self, header: Option<&ResponseHeader>) -> Result<i64, Fault> {
        let Some(header) = header else { return Err(Fault::Unavailable("an answer without a header".into())) };
        let (cluster, revision) = (header.cluster_id(), header.revision());
        if let Some(known) = self.cluster
            && known != cluster
        {
            return Err(Fault::WentBack(format!("this is another cluster: {cluster:x}, where {known:x} was before")));
        }
        if revision < before.revision {
            let known = before.revision;
            return Err(Fault::WentBack(format!("the cluster's revision went back from {known} to {revision}")));
        }
        self.cluster = Some(cluster);
        self.revision = self.revision.max(revision);
        Ok(revision)
    }
}

/// `meta`, and its mod revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) epoch_base: u64,
    pub(super) revision: i64,
}

/// How often etcd is asked to keep our lease.
const KEEPALIVES_PER_TTL: u32 = 5;

/// A connection that is ready for use.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) since: Instant,
    listener: JoinHandle<()>,
    /// Requests that are under way end with it.
    open: watch::Sender<()>,
}

impl Link {
    /// Ends when the connection is given up.
    pub(super) fn given_up(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut open = self.open.subscribe();
        async move { while open.changed().await.is_ok() {} }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// What came of [`establish`].
pub(super) struct Established {
    pub(super) link: Link,
    pub(super) me: Me,
    pub(super) meta: Meta,
    /// All hosts, and the revision at which they were listed.
    pub(super) hosts: Vec<Sight>,
    pub(super) listed: i64,
    /// Before our key was written, if it was.
    pub(super) anchor: Option<Instant>,
    pub(super) witness: Witness,
}

/// What [`establish`] starts from.
pub(super) struct Errand {
    pub(super) config: Config,
    pub(super) layout: Layout,
    pub(super) endpoint: String,
    /// Numbers the connections.
    pub(super) generation: u64,
    /// Goes on as this incarnation; or registers a new one of this name.
    pub(super) who: Who,
    pub(super) witness: Witness,
    pub(super) messages: UnboundedSender<Message>,
}

/// As whom to connect.
pub(super) enum Who {
    Member(Me),
    New(String),
}

/// Connects, registers a new incarnation if asked to, and opens the streams. Each step within the request timeout.
pub(super) async fn establish(errand: Errand) -> Result<Established, Fault> {
    let (config, layout) = (&errand.config, &errand.layout);
    let mut witness = errand.witness;
    let mut client = within(config, connect(config, &errand.endpoint)).await?;
    let meta = ensure_meta(config, layout, &mut client, &mut witness).await?;
    let (me, anchor) = match errand.who {
        Who::Member(me) => (me, None),
        Who::New(name) => {
            let (me, anchor) = register(config, layout, &mut client, &mut witness, name).await?;
            (me, Some(anchor))
        }
    };
    // That a lease was not found proves nothing: the leader may not know yet that it is one.
    let kept = within(config, async {
        client.lease_client().keep_alive(me.lease).await.map_err(|error| Fault::of_read(&error))
    })
    .await;
    let (watch, of_hosts) = within(config, open_watches(layout, &mut client, &me)).await?;
    let before = witness;
    let hosts = within(config, async {
        let options = GetOptions::new().with_prefix();
        client.get(layout.hosts(), Some(options)).await.map_err(|error| Fault::of_read(&error))
    })
    .await?;
    let listed = witness.check(&before, hosts.header())?;
    let ours = hosts.kvs().iter().find(|kv| layout.parse_host(kv.key()).is_some_and(|name| name == me.name));
    if ours.is_none_or(|kv| kv.create_revision() != me.created) {
        return Err(Fault::LeaseGone);
    }
    let hosts: Vec<Sight> = hosts.kvs().iter().filter_map(|kv| sight(layout, kv)).collect();
    let (keeper, kept) = kept?;
    let listener = Listener {
        layout: layout.clone(),
        generation: errand.generation,
        of_hosts,
        keep: config.lease_ttl / KEEPALIVES_PER_TTL,
        messages: errand.messages,
    };
    let listener = tokio::spawn(listener.run(watch, keeper, kept));
    let link = Link { client, since: clock::now(), listener, open: watch::Sender::new(()) };
    Ok(Established { link, me, meta, hosts, listed, anchor, witness })
}

/// Gives up with [`Fault::Unavailable`] after the request timeout.
async fn within<T>(config: &Config, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = || Fault::Unavailable(format!("no answer within {:?}", config.request_timeout));
    tokio::time::timeout(config.request_timeout, work).await.unwrap_or_else(|_| Err(late()))
}

async fn connect(config: &Config, endpoint: &str) -> Result<Client, Fault> {
    let unreadable = |path: &Path, error| Fault::Unavailable(format!("cannot read {}: {error}", path.display()));
    let read = |path: &PathBuf| fs::read(path).map_err(|error| unreadable(path, error));
    let mut options = ConnectOptions::new()
        .with_connect_timeout(config.request_timeout)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(tls) = &config.tls {
        let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca_file)?));
        if let Some((cert, key)) = &tls.identity {
            with = with.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        options = options.with_tls(with);
    }
    if let Some((user, password_file)) = &config.user {
        let password = String::from_utf8_lossy(&read(password_file)?).into_owned();
        let password = password.lines().next().unwrap_or_default().to_owned();
        options = options.with_user(user, password);
    }
    Client::connect([endpoint], Some(options)).await.map_err(|error| Fault::Unavailable(format!("{endpoint}: {error}")))
}

/// Reads `meta`; makes it, or raises its epoch base to ours, where needed. Looks before all else whether the cluster has
/// lost what we wrote.
async fn ensure_meta(
    config: &Config,
    layout: &Layout,
    client: &mut Client,
    witness: &mut Witness,
) -> Result<Meta, Fault> {
    loop {
        let before = *witness;
        let read = Txn::new().and_then([TxnOp::get(layout.meta(), None), TxnOp::get(layout.pulse(), None)]);
        let found = within(config, async { client.txn(read).await.map_err(|error| Fault::of_read(&error)) }).await?;
        witness.check(&before, found.header())?;
        let mut answers = found.op_responses().into_iter();
        let (Some(TxnOpResponse::Get(meta)), Some(TxnOpResponse::Get(pulse))) = (answers.next(), answers.next()) else {
            return Err(Fault::Unavailable("an answer that does not fit the question".into()));
        };
        let pulse = pulse.kvs().first().map_or(0, KeyValue::mod_revision);
        if pulse < before.beaten {
            let beaten = before.beaten;
            return Err(Fault::WentBack(format!("our beat of revision {beaten} is not there any more")));
        }
        let (revision, value) = match meta.kvs().first() {
            None => (0, MetaValue { schema: SCHEMA, epoch_base: 0 }),
            Some(kv) => (kv.mod_revision(), parse_meta(layout, kv)?),
        };
        if revision > 0 && value.epoch_base >= config.epoch_base {
            return Ok(Meta { epoch_base: value.epoch_base, revision });
        }
        let value = MetaValue { epoch_base: config.epoch_base.max(value.epoch_base), ..value };
        let txn = Txn::new()
            .when([Compare::mod_revision(layout.meta(), CompareOp::Equal, revision)])
            .and_then([TxnOp::put(layout.meta(), json(&value), None)]);
        within(config, async { client.txn(txn).await.map_err(|error| Fault::of_write(&error)) }).await?;
    }
}

pub(super) fn parse_meta(layout: &Layout, kv: &KeyValue) -> Result<MetaValue, Fault> {
    let value: MetaValue = serde_json::from_slice(kv.value()).map_err(|error| {
        Fault::Unavailable(format!("{} is not Turnstile's ({error}): choose another prefix", layout.meta()))
    })?;
    if value.schema > SCHEMA {
        let (meta, found) = (layout.meta(), value.schema);
        return Err(Fault::Unavailable(format!(
            "{meta} was written by a newer Turnstile (schema {found}, this build knows {SCHEMA}): run that one"
        )));
    }
    Ok(value)
}

async fn register(
    config: &Config,
    layout: &Layout,
    client: &mut Client,
    witness: &mut Witness,
    name: String,
) -> Result<(Me, Instant), Fault> {
    let ttl_s = i64::try_from(config.lease_ttl.as_secs()).unwrap_or(i64::MAX);
    let granted =
        within(config, async { client.lease_grant(ttl_s, None).await.map_err(|error| Fault::of_read(&error)) }).await?;
    if granted.ttl() > ttl_s {
        tracing::warn!(
            store = "etcd",
            asked_s = ttl_s,
            granted_s = granted.ttl(),
            "the cluster allows no shorter leases: a death is noticed later than store.lease_ttl says"
        );
    }
    let lease = granted.id();
    let value = HostValue { ttl_ms: super::decide::millis_up(config.lease_ttl), beat: 0 };
    let before = *witness;
    let anchor = clock::now();
    let txn = Txn::new().when([Compare::create_revision(layout.host(&name), CompareOp::Equal, 0)]).and_then([
        TxnOp::put(layout.host(&name), json(&value), Some(PutOptions::new().with_lease(lease))),
        TxnOp::put(layout.pulse(), "", None),
    ]);
    let response = within(config, async { client.txn(txn).await.map_err(|error| Fault::of_write(&error)) }).await?;
    let created = witness.check(&before, response.header())?;
    if !response.succeeded() {
        return Err(Fault::LeaseGone);
    }
    witness.beaten = created;
    Ok((Me { name, lease, created }, anchor))
}

/// Opens both watches on one stream, and waits until they stand; with the id of that on hosts.
async fn open_watches(layout: &Layout, client: &mut Client, me: &Me) -> Result<(WatchStream, i64), Fault> {
    let fault = |error: Error| Fault::of_read(&error);
    let hosts = WatchOptions::new().with_prefix().with_prev_key();
    let mut watch = client.watch(layout.hosts(), Some(hosts)).await.map_err(fault)?;
    let of_hosts = created(&mut watch).await?;
    watch.watch(layout.wake(&me.name), None).await.map_err(fault)?;
    created(&mut watch).await?;
    Ok((watch, of_hosts))
}

/// Waits for the answer that a watch stands. Events of the first one may come before that of the second: the list of
/// hosts is read later, and has them.
async fn created(watch: &mut WatchStream) -> Result<i64, Fault> {
    loop {
        match watch.message().await.map_err(|error| Fault::of_read(&error))? {
            Some(response) if response.canceled() => {
                return Err(Fault::Unavailable(format!("the watch was refused: {}", response.cancel_reason())));
            }
            Some(response) if response.created() => return Ok(response.watch_id()),
            Some(_) => {}
            None => return Err(Fault::Unavailable("the watch ended before it stood".into())),
        }
    }
}

/// Keys that somebody else waits for: those of them that are ours are contended.
pub(super) async fn waited_for(
    config: &Config,
    layout: &Layout,
    mut client: Client,
    me: &Me,
) -> Result<Vec<LockKey>, Fault> {
    let end = end_of(&layout.queues());
    let (mut from, mut keys) = (layout.queues().into_bytes(), Vec::new());
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_keys_only();
        let page = within(config, async {
            client.get(from.clone(), Some(options)).await.map_err(|error| Fault::of_read(&error))
        })
        .await?;
        let parse = |kv: &KeyValue| layout.parse_place(kv.key()).filter(|(_, name)| *name != me.name);
        keys.extend(page.kvs().iter().filter_map(parse).map(|(key, _)| key));
        match page.kvs().last() {
            Some(last) if page.more() => from = after(last.key()),
            _ => return Ok(keys),
        }
    }
}

/// Keys in one answer.
pub(super) const PAGE: i64 = 1_000;

/// The end of the range of all keys that begin so. Ours are ASCII, so the last byte has a next one.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The first key behind this one.
pub(super) fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

pub(super) fn sight(layout: &Layout, kv: &KeyValue) -> Option<Sight> {
    let name = layout.parse_host(kv.key())?;
    let value: HostValue = serde_json::from_slice(kv.value()).ok()?;
    let (created, written) = (kv.create_revision(), kv.mod_revision());
    Some(Sight { name, created, written, ttl: Duration::from_millis(value.ttl_ms) })
}

/// Passes on what the streams of one connection bring, and asks etcd to keep the lease.
struct Listener {
    layout: Layout,
    generation: u64,
    /// The watch on hosts; the other one is on our wake key.
    of_hosts: i64,
    keep: Duration,
    messages: UnboundedSender<Message>,
}

impl Listener {
    async fn run(self, mut watch: WatchStream, mut keeper: LeaseKeeper, mut kept: LeaseKeepAliveStream) {
        let mut keep = tokio::time::interval(self.keep);
        let message = loop {
            let done = tokio::select! {
                heard = watch.message() => self.watched(heard),
                heard = kept.message() => self.kept(heard),
                _ = keep.tick() => match keeper.keep_alive().await {
                    Ok(()) => None,
                    Err(error) => Some(self.broken(format!("the keepalives broke: {error}"))),
                },
            };
            if let Some(message) = done {
                break message;
            }
        };
        let _ = self.messages.send(message);
    }

    /// An answer is the last thing that is passed on.
    fn watched(&self, heard: Result<Option<etcd_client::WatchResponse>, Error>) -> Option<Message> {
        let response = match heard {
            Ok(Some(response)) => response,
            Ok(None) => return Some(self.broken("the watch ended".into())),
            Err(error) => return Some(self.broken(format!("the watch broke: {error}"))),
        };
        if response.canceled() {
            return Some(self.broken(format!("the watch was cancelled: {}", response.cancel_reason())));
        }
        if response.watch_id() == self.of_hosts {
            let news = response.events().iter().filter_map(|event| self.news(event)).collect();
            let _ = self.messages.send(Message::Hosts { generation: self.generation, news });
        } else {
            let calls = response.events().iter().filter_map(call).collect();
            let _ = self.messages.send(Message::Called { generation: self.generation, calls });
        }
        None
    }

    fn news(&self, event: &WatchEvent) -> Option<News> {
        let kv = event.kv()?;
        match event.event_type() {
            EventType::Put => sight(&self.layout, kv).map(News::Beat),
            EventType::Delete => {
                let written = event.prev_kv().map(KeyValue::mod_revision);
                Some(News::Gone { name: self.layout.parse_host(kv.key())?, revision: kv.mod_revision(), written })
            }
        }
    }

    fn kept(&self, heard: Result<Option<etcd_client::LeaseKeepAliveResponse>, Error>) -> Option<Message> {
        match heard {
            Ok(Some(response)) if response.ttl() > 0 => None,
            // Only our key's absence proves that the lease is gone; a new connection looks for it.
            Ok(Some(_)) => Some(self.broken("the lease was not found".into())),
            Ok(None) => Some(self.broken("the keepalives ended".into())),
            Err(error) => Some(self.broken(format!("the keepalives broke: {error}"))),
        }
    }

    fn broken(&self, reason: String) -> Message {
        Message::Broken { generation: self.generation, reason }
    }
}

fn call(event: &WatchEvent) -> Option<Call> {
    let put = event.kv().filter(|_| event.event_type() == EventType::Put)?;
    Some(Call::parse(put.value_str().ok()?, put.mod_revision()))
}
