//! Who may in: TLS, users, and the fewest rights that do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;
use turnstile_core::ClaimId;
use turnstile_host::store::etcd::Tls;
use turnstile_host::store::{Event, Operation, Store, StoreError};
use turnstile_tests::etcd::certificates::Certificates;
use turnstile_tests::etcd::{Etcd, EtcdConfig, Permission, Security};

use crate::conformance::Harness;
use crate::conformance::hosts::{Host, key};
use crate::{EXPIRY_SLACK, LEASE_TTL, Place};

const DELAY: Duration = Duration::from_millis(300);

/// An open store that cannot get a lease says so in answer to every claim. Returns why.
async fn why_not(place: &Place) -> (String, Arc<dyn Store>, UnboundedReceiver<Event>) {
    let (store, mut events) = place.open().await;
    let key = key("t/account");
    let mut reason = String::new();
    // The first answers may be given before anything was tried.
    for claim in 0..5 {
        tokio::time::sleep(LEASE_TTL / 2).await;
        let (key, claim) = (key.clone(), ClaimId(claim));
        store.submit(Operation::Claim { key, claim, lock_delay: DELAY, new_epoch: false });
        match events.recv().await.unwrap() {
            Event::Failed { error: StoreError::Unavailable(why), .. } => reason = why,
            other => panic!("{other:?} without access"),
        }
    }
    (reason, store, events)
}

/// Everything that a host does: claims, queues, hand-over, deaths, reaping.
async fn everything_works(place: &Place) {
    let (mut a, mut b) = (Host::start(place).await, Host::start(place).await);
    let account = key("t/account");
    let epoch = a.take(&account, DELAY).await.epoch;
    b.queue_for(&account, DELAY).await;
    a.contended(&account).await;
    a.give_up(&account);
    assert!(b.gained(&account).await.epoch > epoch);
    a.queue_for(&account, DELAY).await;
    let lease = b.kill().await;
    let taken = a.gained(&account).await;
    assert!(taken.quarantined_until.max(taken.seen) >= lease + DELAY, "a dead host is waited out");
    a.end_lease().await;
}

struct Password {
    dir: TempDir,
}

impl Password {
    fn new(text: &str) -> Self {
        let password = Self { dir: tempfile::tempdir().unwrap() };
        password.change(text);
        password
    }

    fn change(&self, text: &str) {
        std::fs::write(self.file(), format!("{text}\n")).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("password")
    }
}

/// An etcd with users, of whom `turnstile` has this permission for the prefix of the place and no other right.
async fn with_user(permission: Permission) -> (Etcd, Place, Password) {
    let mut etcd = Etcd::start(&EtcdConfig::default()).await;
    let password = Password::new("right");
    let place = Place::on(&etcd).with(|config| config.user = Some(("turnstile".into(), password.file())));
    etcd.enable_users(&[("turnstile", "right", &place.config.prefix, permission)]).await;
    (etcd, place, password)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_for_the_prefix_are_enough() {
    let (etcd, place, _password) = with_user(Permission::ReadWrite).await;
    everything_works(&place).await;
    drop(etcd);
}

/// etcd forgets all tokens when it restarts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_etcd_forgot_is_renewed() {
    let (mut etcd, place, _password) = with_user(Permission::ReadWrite).await;
    let place = place.long_leases();
    let mut a = Host::start(&place).await;
    let epoch = a.take(&key("t/account"), DELAY).await.epoch;
    etcd.restart(0);
    assert!(a.take(&key("t/account"), DELAY).await.epoch > epoch);
    a.settle().await;
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0);
}

/// One that nobody uses lives for a while only: here, less than between two beats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_is_renewed() {
    let config = EtcdConfig { more: vec!["--auth-token-ttl=1".into()], ..EtcdConfig::default() };
    let mut etcd = Etcd::start(&config).await;
    let password = Password::new("right");
    let place = Place::on(&etcd).with(|config| {
        config.user = Some(("turnstile".into(), password.file()));
        config.lease_ttl = Duration::from_secs(15);
    });
    etcd.enable_users(&[("turnstile", "right", &place.config.prefix, Permission::ReadWrite)]).await;
    let mut a = Host::start(&place).await;
    let mut epoch = a.take(&key("t/account"), DELAY).await.epoch;
    for _ in 0..2 {
        a.renewed().await;
        let gained = a.take(&key("t/account"), DELAY).await;
        assert!(gained.epoch > epoch);
        epoch = gained.epoch;
    }
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_and_can_be_corrected() {
    let (_etcd, place, password) = with_user(Permission::ReadWrite).await;
    password.change("wrong");
    let (reason, _store, mut events) = why_not(&place).await;
    assert!(reason.contains("authentication failed"), "{reason}");
    password.change("right");
    let renewed = async { while !matches!(events.recv().await.unwrap(), Event::LeaseRenewed { .. }) {} };
    tokio::time::timeout(EXPIRY_SLACK * 5, renewed).await.expect("the file is read again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_only_read_gets_no_lease() {
    let (_etcd, place, _password) = with_user(Permission::Read).await;
    let (reason, ..) = why_not(&place).await;
    assert!(reason.contains("permission denied"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_of_others_is_closed() {
    let (_etcd, place, _password) = with_user(Permission::ReadWrite).await;
    let (reason, ..) = why_not(&place.with(|config| config.prefix = "others/".into())).await;
    assert!(reason.contains("permission denied"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_user_at_all_is_told() {
    let (_etcd, place, _password) = with_user(Permission::ReadWrite).await;
    let (reason, ..) = why_not(&place.with(|config| config.user = None)).await;
    assert!(reason.contains("user name is empty"), "{reason}");
}

fn trusting(ca: &Path) -> Option<Tls> {
    Some(Tls { ca_file: ca.to_owned(), identity: None })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_needs_an_authority_that_is_trusted() {
    let etcd = Etcd::start(&EtcdConfig { security: Security::Tls, ..EtcdConfig::default() }).await;
    let place = Place::on(&etcd).with(|config| config.tls = trusting(etcd.certificates().ca()));
    everything_works(&place).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Certificates::make(elsewhere.path());
    let (reason, ..) = why_not(&place.with(|config| config.tls = trusting(stranger.ca()))).await;
    assert!(reason.contains("certificate"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutual_tls_needs_a_certificate_of_our_own() {
    let etcd = Etcd::start(&EtcdConfig { security: Security::MutualTls, ..EtcdConfig::cluster() }).await;
    let ours = etcd.certificates().client("turnstile");
    let identified = Place::on(&etcd).with(|config| {
        let identity = Some((ours.certificate.clone(), ours.key.clone()));
        config.tls = Some(Tls { ca_file: etcd.certificates().ca().to_owned(), identity });
    });
    everything_works(&identified).await;
    let unknown = identified.with(|config| config.tls = trusting(etcd.certificates().ca()));
    let (reason, ..) = why_not(&unknown).await;
    assert!(!reason.is_empty());
}

/// A password over TLS whose certificate names nobody that etcd knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_users_go_together() {
    let mut etcd = Etcd::start(&EtcdConfig { security: Security::MutualTls, ..EtcdConfig::default() }).await;
    let ours = etcd.certificates().client("some machine");
    let ca_file = etcd.certificates().ca().to_owned();
    let password = Password::new("right");
    let place = Place::on(&etcd).with(|config| {
        config.tls = Some(Tls { ca_file, identity: Some((ours.certificate.clone(), ours.key.clone())) });
        config.user = Some(("turnstile".into(), password.file()));
    });
    etcd.enable_users(&[("turnstile", "right", &place.config.prefix, Permission::ReadWrite)]).await;
    everything_works(&place).await;
}
