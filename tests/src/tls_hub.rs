//! A hub that serves its feed by TLS, to who shows a token of the cluster; and tokens.
//!
//! In: a namespace of a cluster. Out: the hub, what its readers trust and show. The tokens are the API server's, or signed
//! with its key where it would not give one that is soon no good.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use rcgen::{Certificate, CertificateParams, KeyPair, SigningKey};
use serde_json::{Value, json};

use crate::cluster::{NODES, create};
use crate::{Host, Namespace, Program, World, ask, tools};

/// Where it serves the feed.
const FEED: u16 = 64105;
/// Where it tells how it is.
const HEALTH: u16 = 64104;
/// The name of hubs that the chart installs, which its certificate has too.
pub const NAME: &str = "remora-hub.remora.svc";
/// Where a reader answers.
const ADMIN: &str = "127.0.0.1:64103";
/// Bytes of either number of a signature.
const HALF: usize = 32;

/// Owning one means that it runs.
pub struct TlsHub {
    /// The process.
    pub program: Program,
    /// Where it runs; readers run there, too.
    pub host: Host,
    authority: PathBuf,
}

impl TlsHub {
    /// Starts one, and makes a ServiceAccount `reader`, for whom tokens are.
    pub async fn start(world: &World, namespace: &Namespace) -> TlsHub {
        let accounts: Api<ServiceAccount> = Api::namespaced(namespace.client.clone(), &namespace.name);
        create(&accounts, json!({"metadata": {"name": "reader"}})).await;
        let reads = ["get", "list", "watch"];
        let keys = ["/openid/v1/jwks", "/.well-known/openid-configuration"];
        let rules = json!([
            {"apiGroups": [""], "resources": ["services"], "verbs": reads},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": reads},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
            {"nonResourceURLs": keys, "verbs": ["get"]},
        ]);
        let kubeconfig = namespace.cluster.user_with(&format!("hub-{}", namespace.name), rules).await;
        let host = Host::new(world, "hub");
        let folder = world.own_folder().join("certificate");
        std::fs::create_dir_all(&folder).expect("a folder");
        let (certificate, key) = certificate(vec![host.ip4().to_string(), NAME.to_owned()]);
        let authority = folder.join("tls.crt");
        std::fs::write(&authority, certificate.pem()).expect("a file");
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).expect("a file");
        let mut command = host.command(tools::own("remora", "sidecar"));
        command.env("KUBECONFIG", kubeconfig).args(["hub", "--source", "kube", "--certificate"]).arg(&folder);
        command.args(["--feed", &SocketAddr::new(host.ip4().into(), FEED).to_string()]);
        command.args(["--health", &SocketAddr::new(host.ip4().into(), HEALTH).to_string()]);
        TlsHub { program: Program::start(world, "hub", command), host, authority }
    }

    /// The certificate of who vouches for it.
    pub fn authority(&self) -> String {
        std::fs::read_to_string(&self.authority).expect("a file")
    }

    /// One of its numbers, by name and labels.
    pub async fn metric(&self, name: &str) -> Result<u64, String> {
        metric(SocketAddr::new(self.host.ip4().into(), HEALTH), name).await
    }

    /// A sidecar for port 80 of `services` that reads it, and shows what is in the file `token`, beside it.
    pub fn reader(&self, world: &World, services: &[&str], token: &std::path::Path) -> Reader {
        let name = token.file_stem().expect("a name").to_str().expect("UTF-8").to_owned();
        // Readers have names of different lengths.
        let port = HEALTH + u16::try_from(name.len()).expect("a short name") + 10;
        let health = SocketAddr::new(self.host.ip4().into(), port);
        let mut command = self.host.command(tools::own("remora", "sidecar"));
        command.args(["sidecar", "--source", &format!("feed:https://{}:{FEED}", self.host.ip4())]);
        for service in services {
            command.args(["--listen", &format!("127.0.0.1:0={service}:80")]);
        }
        command.arg("--feed-ca").arg(&self.authority).arg("--feed-token").arg(token);
        command.args(["--health", &health.to_string(), "--admin", ADMIN]);
        Reader { program: Program::start(world, &name, command), health }
    }
}

/// Owning one means that it runs.
pub struct Reader {
    /// The process.
    pub program: Program,
    health: SocketAddr,
}

impl Reader {
    /// One of its numbers, by name and labels.
    pub async fn metric(&self, name: &str) -> Result<u64, String> {
        metric(self.health, name).await
    }

    /// All of its numbers.
    pub async fn metrics(&self) -> Result<String, String> {
        ask::get(self.health, "/metrics").await.map(|(_, page)| page)
    }

    /// Whether it is ready: status and body.
    pub async fn ready(&self) -> Result<(u16, String), String> {
        ask::get(self.health, "/readyz").await
    }
}

/// The certificate of somebody with the name of hubs who vouches for none of them.
pub fn foreign_authority() -> String {
    certificate(vec![NAME.to_owned()]).0.pem()
}

/// One that vouches for itself, and its key.
fn certificate(names: Vec<String>) -> (Certificate, KeyPair) {
    let key = KeyPair::generate().expect("a key");
    let parameters = CertificateParams::new(names).expect("names");
    (parameters.self_signed(&key).expect("a certificate"), key)
}

async fn metric(health: SocketAddr, name: &str) -> Result<u64, String> {
    let (_, page) = ask::get(health, "/metrics").await?;
    let number = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    number.ok_or_else(|| format!("there is no {name}"))
}

/// A slice of `service` with an endpoint for the zone of each of [`NODES`], there.
pub async fn slice(namespace: &Namespace, service: &str, addresses: [Ipv4Addr; 2], port: u16) {
    let endpoint = |(address, (node, zone)): (Ipv4Addr, (&str, &str))| json!({"addresses": [address], "nodeName": node, "hints": {"forZones": [{"name": zone}]}});
    let slice = json!({
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": addresses.into_iter().zip(NODES).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "", "port": port}],
    });
    create::<EndpointSlice>(&namespace.slices(), slice).await;
}

/// A token of the ServiceAccount `reader`, for hubs.
pub async fn token(namespace: &Namespace) -> String {
    request_token(namespace, json!({"audiences": ["remora"]})).await
}

/// The same, as a kubelet gets it for a Pod on `node`, which is made.
pub async fn token_of_pod(namespace: &Namespace, node: &str) -> String {
    let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let spec = json!({
        "nodeName": node, "serviceAccountName": "reader", "containers": [{"name": "app", "image": "none"}],
    });
    let pod = create(&pods, json!({"metadata": {"name": format!("on-{node}")}, "spec": spec})).await;
    let bound =
        json!({"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid});
    request_token(namespace, json!({"audiences": ["remora"], "boundObjectRef": bound})).await
}

/// The same, for somebody else.
pub async fn foreign_token(namespace: &Namespace) -> String {
    request_token(namespace, json!({"audiences": ["somebody-else"]})).await
}

async fn request_token(namespace: &Namespace, spec: Value) -> String {
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/reader/token", namespace.name);
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let request = http::Request::post(path).header("Content-Type", "application/json");
    let request = request.body(body.to_string().into_bytes()).expect("a request");
    let answer: Value = namespace.client.request(request).await.expect("a token");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

/// `token` as the cluster would have signed it, had it been asked for one that expires so many seconds from now.
pub fn expiring(namespace: &Namespace, token: &str, seconds: i64) -> String {
    let [header, claims, _]: [&str; 3] =
        token.split('.').collect::<Vec<_>>().try_into().expect("three parts of a token");
    let mut claims: Value = serde_json::from_slice(&decoded(claims)).expect("the claims of a token");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
    claims["exp"] = (i64::try_from(now).expect("a time") + seconds).into();
    let said = format!("{header}.{}", encoded(claims.to_string().into_bytes()));
    let key = std::fs::read_to_string(namespace.cluster.accounts_key()).expect("the cluster's key");
    let key = KeyPair::from_pem(&key).expect("the cluster's key");
    let signature = key.sign(said.as_bytes()).expect("a signature");
    format!("{said}.{}", encoded(fixed(&signature)))
}

/// A signature of ECDSA as a token has it: two numbers of a fixed length, instead of a sequence of two in ASN.1.
fn fixed(sequence: &[u8]) -> Vec<u8> {
    let mut numbers = &sequence[2..];
    let mut fixed = Vec::new();
    for _ in 0..2 {
        let (number, rest) = numbers[2..].split_at(numbers[1].into());
        let significant = &number[number.len().saturating_sub(HALF)..];
        fixed.extend(std::iter::repeat_n(0, HALF - significant.len()));
        fixed.extend(significant);
        numbers = rest;
    }
    fixed
}

/// As RFC 7515 has it: base64url without what fills it up.
fn encoded(bytes: Vec<u8>) -> String {
    let value = serde_json::to_value(ByteString(bytes)).expect("a text");
    let text = value.as_str().expect("a text").trim_end_matches('=');
    text.replace('+', "-").replace('/', "_")
}

fn decoded(text: &str) -> Vec<u8> {
    let mut text = text.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    serde_json::from_value::<ByteString>(text.into()).expect("base64").0
}
