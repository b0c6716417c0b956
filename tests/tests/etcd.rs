//! The harness's etcd: that its faults are what their names say, on the real thing.

use turnstile_tests::etcd::{Durability, Elections, Etcd, EtcdConfig, Permission, Security};

#[tokio::test]
async fn data_outlives_kills_and_leases_have_numbers() {
    let mut etcd = Etcd::start(&EtcdConfig { durability: Durability::Fsync, ..EtcdConfig::default() }).await;
    etcd.put("a/1", "one").await;
    etcd.put("a/2", "two\n").await;
    etcd.put("b", "-").await;
    etcd.kill(0);
    assert!(etcd.try_ctl(&["get", "b"]).await.is_err());
    etcd.restart(0);
    etcd.ready().await;
    let keys = etcd.keys("a/").await;
    assert_eq!(keys.iter().map(|key| (&*key.key, &*key.value)).collect::<Vec<_>>(), [("a/1", "one"), ("a/2", "two\n")]);
    assert!(keys[0].mod_revision < keys[1].mod_revision && keys[1].mod_revision < etcd.revision().await);
    let granted = etcd.ctl(&["lease", "grant", "60"]).await;
    let lease = granted.split(' ').nth(1).expect("lease ID granted with TTL").to_owned();
    etcd.ctl(&["put", "--lease", &lease, "leased", ""]).await;
    let leased = etcd.keys("leased").await;
    assert_eq!(Ok(leased[0].lease), u64::from_str_radix(&lease, 16));
    let before = etcd.requests("LeaseRevoke").await;
    etcd.revoke(leased[0].lease).await;
    assert_eq!(etcd.requests("LeaseRevoke").await, before + 1);
    assert_eq!(etcd.keys("leased").await, []);
    etcd.delete("b").await;
    etcd.compact().await;
}

#[tokio::test]
async fn a_cluster_outlives_its_members() {
    let mut etcd = Etcd::start(&EtcdConfig { elections: Elections::Default, ..EtcdConfig::cluster() }).await;
    etcd.put("a", "1").await;
    let leader = etcd.leader().await;
    etcd.freeze(leader).await;
    let next = etcd.leader().await;
    assert_ne!(next, leader);
    etcd.patiently(&["put", "a", "2"]).await;
    etcd.thaw(leader);
    etcd.ready().await;
    etcd.kill(next);
    assert_ne!(etcd.leader().await, next);
    etcd.replace(next).await;
    assert_eq!(etcd.keys("a").await[0].value, "2");
    let snapshot = etcd.save().await;
    etcd.put("a", "3").await;
    let revision = etcd.revision().await;
    etcd.restore(&snapshot).await;
    assert_eq!(etcd.keys("a").await[0].value, "2");
    assert!(etcd.revision().await < revision);
    etcd.follower().await;
}

#[tokio::test]
async fn only_those_who_may_get_in() {
    let mut etcd = Etcd::start(&EtcdConfig { security: Security::MutualTls, ..EtcdConfig::default() }).await;
    etcd.enable_users(&[("us", "secret", "ours/", Permission::ReadWrite)]).await;
    etcd.put("theirs", "1").await;
    etcd.put("ours/a", "1").await;
    assert_eq!(etcd.keys("").await.len(), 2);
    let us = async |args: &[&str]| etcd.try_ctl_as("us", "secret", args).await;
    assert!(us(&["get", "ours/a"]).await.is_ok());
    assert!(us(&["put", "ours/b", "2"]).await.is_ok());
    let error = us(&["get", "theirs"]).await.expect_err("a user with rights for one prefix");
    assert!(error.contains("permission denied"), "{error}");
    let error = etcd.try_ctl_as("us", "wrong", &["get", "ours/a"]).await.expect_err("a wrong password");
    assert!(error.contains("authentication failed"), "{error}");
}
