//! Who is who in a cluster: an authority, the API server's certificate, one for each user.
//!
//! In: a folder. Out: PEM files in it, and kubeconfigs made of them. Users are certificates (common name: user, organisation:
//! group), so that one can be added while the API server runs. It never leaves the folder.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// Owning one means being able to say who somebody is.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes `ca.crt`, and `accounts.key` and `.pub`, with which the API server signs tokens.
    pub(crate) fn new(folder: &Path) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = named("remora-test", None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.self_signed(&key).expect("a certificate");
        write(folder, "ca.crt", &certificate.pem());
        let accounts = KeyPair::generate().expect("a key");
        write(folder, "accounts.key", &accounts.serialize_pem());
        write(folder, "accounts.pub", &accounts.public_key_pem());
        Authority { folder: folder.to_owned(), issuer: Issuer::new(parameters, key) }
    }

    /// Writes `server.crt` and `server.key`, for a server at these addresses.
    pub(crate) fn server(&self, addresses: &[IpAddr]) {
        let mut parameters = named("kube-apiserver", None);
        parameters.subject_alt_names = addresses.iter().map(|&address| SanType::IpAddress(address)).collect();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign("server", &parameters);
    }

    /// Writes `USER.crt` and `USER.key`.
    pub(crate) fn user(&self, user: &str, group: Option<&str>) {
        let mut parameters = named(user, group);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(user, &parameters);
    }

    /// A kubeconfig that holds all it needs, so that it is good wherever it is put, for a user who
    /// has been written before.
    pub(crate) fn kubeconfig(&self, user: &str, server: &str) -> Value {
        let data = |name: &str| {
            let path = self.folder.join(name);
            let pem =
                fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
            ByteString(pem)
        };
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": server,
                "certificate-authority-data": data("ca.crt"),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": data(&format!("{user}.crt")),
                "client-key-data": data(&format!("{user}.key")),
            }}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        })
    }

    fn sign(&self, name: &str, parameters: &CertificateParams) {
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        write(&self.folder, &format!("{name}.crt"), &certificate.pem());
        write(&self.folder, &format!("{name}.key"), &key.serialize_pem());
    }
}

fn named(name: &str, group: Option<&str>) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        parameters.distinguished_name.push(DnType::OrganizationName, group);
    }
    parameters
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap_or_else(|error| panic!("cannot write {name}: {error}"));
}
