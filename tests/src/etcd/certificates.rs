//! Certificates for an etcd with TLS: an authority of its own, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// An authority that lives in a directory.
pub struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
    server: Identity,
    operator: Identity,
    dir: PathBuf,
    made: AtomicU32,
}

impl Certificates {
    /// Makes an authority, and a certificate for servers at 127.0.0.1.
    ///
    /// # Panics
    /// If `dir` cannot be written to.
    pub fn make(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "an authority for tests");
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.self_signed(&key).expect("a certificate can be made");
        let ca = dir.join("ca.pem");
        fs::write(&ca, certificate.pem()).expect("a file can be written");
        let issuer = Issuer::new(params, key);
        let server = sign(&issuer, dir, "server", "etcd", &["127.0.0.1", "localhost"]);
        let operator = sign(&issuer, dir, "operator", "root", &[]);
        Self { issuer, ca, server, operator, dir: dir.to_owned(), made: AtomicU32::new(0) }
    }

    /// The authority's own certificate.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// For servers at 127.0.0.1.
    pub fn server(&self) -> &Identity {
        &self.server
    }

    /// For the harness's own use of etcdctl.
    pub(super) fn operator(&self) -> &Identity {
        &self.operator
    }

    /// A new certificate for a client; etcd may take the `common_name` for a user's name.
    ///
    /// # Panics
    /// If the directory cannot be written to.
    pub fn client(&self, common_name: &str) -> Identity {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        sign(&self.issuer, &self.dir, &format!("client{number}"), common_name, &[])
    }
}

fn sign(issuer: &Issuer<'static, KeyPair>, dir: &Path, file: &str, common_name: &str, addresses: &[&str]) -> Identity {
    let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    let mut params = CertificateParams::new(addresses).expect("addresses can be written into a certificate");
    params.distinguished_name.push(DnType::CommonName, common_name);
    let key = KeyPair::generate().expect("a key can be made");
    let certificate = params.signed_by(&key, issuer).expect("a certificate can be signed");
    let identity = Identity { certificate: dir.join(format!("{file}.pem")), key: dir.join(format!("{file}.key")) };
    fs::write(&identity.certificate, certificate.pem()).expect("a file can be written");
    fs::write(&identity.key, key.serialize_pem()).expect("a file can be written");
    identity
}
