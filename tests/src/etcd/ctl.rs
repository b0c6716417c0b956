//! What an operator does to an etcd: `etcdctl` against those of its members that run.

use std::net::SocketAddr;
use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use tokio::process::Command;

use super::{Etcd, Security, text};
use crate::artifacts;
use crate::wait::{PATIENCE, until};

const ROOT: &str = "root";

/// One key of an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key, prefix included.
    pub key: String,
    /// What it says.
    pub value: String,
    /// When it was made.
    pub create_revision: u64,
    /// When it was last written.
    pub mod_revision: u64,
    /// The lease that it goes with; 0 if none.
    pub lease: u64,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read and write everything below a prefix.
    ReadWrite,
    /// Only read it.
    Read,
}

impl Etcd {
    /// Runs `etcdctl` as root, against all running members; what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub async fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).await.unwrap_or_else(|error| panic!("etcdctl {args:?}: {error}"))
    }

    /// As [`Etcd::ctl`], until it succeeds.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub async fn patiently(&self, args: &[&str]) -> String {
        until(&format!("etcdctl {args:?} to succeed"), PATIENCE, async || self.try_ctl(args).await.ok()).await
    }

    /// As [`Etcd::ctl`]; what it wrote as an error, if it fails.
    ///
    /// # Errors
    /// What etcdctl wrote to its standard error.
    pub async fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        self.ctl_at(&self.running_clients(), args).await
    }

    /// As [`Etcd::try_ctl`], as another user.
    ///
    /// # Errors
    /// What etcdctl wrote to its standard error.
    pub async fn try_ctl_as(&self, user: &str, password: &str, args: &[&str]) -> Result<String, String> {
        self.run(&self.running_clients(), Some((user, password)), args).await
    }

    /// Against some of the members, or none for what is done to files.
    pub(super) async fn ctl_at(&self, members: &[SocketAddr], args: &[&str]) -> Result<String, String> {
        let root = self.root_password.as_deref().map(|password| (ROOT, password));
        self.run(members, root, args).await
    }

    fn running_clients(&self) -> Vec<SocketAddr> {
        self.running().map(|member| member.client).collect()
    }

    async fn run(&self, members: &[SocketAddr], user: Option<(&str, &str)>, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(artifacts::etcdctl());
        command.env("ETCDCTL_API", "3").stdin(Stdio::null()).kill_on_drop(true);
        if !members.is_empty() {
            let endpoints: Vec<String> = members.iter().map(|&member| self.url(member)).collect();
            command.arg(format!("--endpoints={}", endpoints.join(",")));
            if self.config.security != Security::Plain {
                let ours = self.certificates().operator();
                command.arg(format!("--cacert={}", text(self.certificates().ca())));
                command.arg(format!("--cert={}", text(&ours.certificate)));
                command.arg(format!("--key={}", text(&ours.key)));
            }
            if let Some((name, password)) = user {
                command.arg(format!("--user={name}:{password}"));
            }
        }
        let output = command.args(args).output().await.expect("etcdctl can be started");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// All keys that begin with `prefix`, sorted.
    ///
    /// # Panics
    /// If the cluster does not answer.
    pub async fn keys(&self, prefix: &str) -> Vec<KeyValue> {
        let answer: Range = parsed(&self.patiently(&["get", "--prefix", prefix, "--write-out=json"]).await);
        answer.kvs.into_iter().map(KeyValue::from).collect()
    }

    /// Writes a key by hand.
    ///
    /// # Panics
    /// If that fails.
    pub async fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", "--", key, value]).await;
    }

    /// Deletes a key by hand.
    ///
    /// # Panics
    /// If there was no such key.
    pub async fn delete(&self, key: &str) {
        assert_eq!(self.ctl(&["del", key]).await.trim(), "1", "{key} is there and can be deleted");
    }

    /// Revokes a lease, and so deletes all its keys.
    ///
    /// # Panics
    /// If there is no such lease.
    pub async fn revoke(&self, lease: u64) {
        self.ctl(&["lease", "revoke", &format!("{lease:x}")]).await;
    }

    /// The latest revision that a running member knows.
    ///
    /// # Panics
    /// If none answers.
    pub async fn revision(&self) -> u64 {
        let text = self.patiently(&["endpoint", "status", "--write-out=json"]).await;
        let all: Vec<EndpointStatus> = parsed(&text);
        all.iter().map(|one| one.status.header.revision).max().expect("a member runs")
    }

    /// Forgets all history before the latest revision.
    ///
    /// # Panics
    /// If that fails.
    pub async fn compact(&self) {
        let revision = self.revision().await.to_string();
        self.ctl(&["compaction", &revision]).await;
    }

    /// From now on only users get in: root, and one user for each `(name, password, prefix, permission)`, who may use
    /// what begins with the prefix and nothing else.
    ///
    /// # Panics
    /// If that fails.
    pub async fn enable_users(&mut self, users: &[(&str, &str, &str, Permission)]) {
        let root_password = "root's password";
        self.ctl(&["user", "add", &format!("{ROOT}:{root_password}")]).await;
        self.ctl(&["user", "grant-role", ROOT, "root"]).await;
        for &(name, password, prefix, permission) in users {
            let permission = match permission {
                Permission::ReadWrite => "readwrite",
                Permission::Read => "read",
            };
            self.ctl(&["role", "add", name]).await;
            self.ctl(&["role", "grant-permission", name, permission, prefix, "--prefix"]).await;
            self.ctl(&["user", "add", &format!("{name}:{password}")]).await;
            self.ctl(&["user", "grant-role", name, name]).await;
        }
        self.ctl(&["auth", "enable"]).await;
        self.root_password = Some(root_password.to_owned());
    }

    /// The id by which `etcdctl member` knows a member.
    pub(super) async fn member_id(&self, name: &str) -> String {
        let members: Members = parsed(&self.patiently(&["member", "list", "--write-out=json"]).await);
        let member = members.members.iter().find(|member| member.name == name).expect("the cluster knows its members");
        format!("{:x}", member.id)
    }
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<RawKeyValue>,
}

#[derive(Deserialize)]
struct RawKeyValue {
    key: String,
    #[serde(default)]
    value: String,
    create_revision: u64,
    mod_revision: u64,
    #[serde(default)]
    lease: u64,
}

impl From<RawKeyValue> for KeyValue {
    fn from(raw: RawKeyValue) -> Self {
        let decoded = |text: &str| {
            let bytes = BASE64_STANDARD.decode(text).expect("etcdctl writes keys and values in base 64");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self {
            key: decoded(&raw.key),
            value: decoded(&raw.value),
            create_revision: raw.create_revision,
            mod_revision: raw.mod_revision,
            lease: raw.lease,
        }
    }
}

#[derive(Deserialize)]
struct EndpointStatus {
    #[serde(rename = "Status")]
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    header: Header,
}

#[derive(Deserialize)]
struct Header {
    revision: u64,
}

#[derive(Deserialize)]
struct Members {
    members: Vec<MemberOfList>,
}

#[derive(Deserialize)]
struct MemberOfList {
    #[serde(rename = "ID")]
    id: u64,
    #[serde(default)]
    name: String,
}

fn parsed<T: for<'a> Deserialize<'a>>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("etcdctl wrote no such JSON: {error}: {text}"))
}
