//! How long the API server waits for a Pod's sidecar: questions of the size of a Deployment's Pods, asked of a hub's webhook
//! as the API server does, over one connection by TLS and HTTP/2 that stays. Prints each figure beside its bound, and fails
//! where a bound is not kept. The hub and who asks share this machine's processors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench fails by panicking")]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A Pod is admitted within this, in milliseconds.
const BOUND: f64 = 5.0;
/// Questions of a row.
const QUESTIONS: usize = 4_000;
/// Questions under way while a Deployment grows.
const AT_ONCE: usize = 8;
/// Handshakes of a row.
const HANDSHAKES: usize = 200;
/// The hub answers within this.
const SOON: Duration = Duration::from_secs(20);

type Asking = SendRequest<Full<Bytes>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let folder = std::env::temp_dir().join(format!("remora-bench-admission-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let hub = Hub::start(&folder).await;
    println!("{:<62}{:>10}{:>10}{:>8}", "admission of a Pod, milliseconds", "p50", "p99", "bound");
    let body = Bytes::from(question().to_string());

    let mut connection = hub.connect().await.unwrap();
    let (mut times, mut together) = (Vec::new(), Vec::new());
    // Turn by turn, since a machine's speed drifts; the first of each warm it up.
    for turn in 0..QUESTIONS / AT_ONCE {
        for _ in 0..AT_ONCE {
            times.push(ask(&mut connection, &body).await);
        }
        together.extend(join_all((0..AT_ONCE).map(|_| ask_by(connection.clone(), &body))).await);
        if turn == 10 {
            (times, together) = (Vec::new(), Vec::new());
        }
    }
    let mut anew = Vec::new();
    for _ in 0..HANDSHAKES {
        let start = Instant::now();
        ask(&mut hub.connect().await.unwrap(), &body).await;
        anew.push(start.elapsed());
    }
    let are_kept = [
        row("one after the other", &mut times, Some(BOUND)),
        row(&format!("{AT_ONCE} under way"), &mut together, Some(BOUND)),
        row("each by a new connection, as after a restart", &mut anew, None),
    ];
    println!("  a question of {} bytes", body.len());
    drop(hub);
    let _ = std::fs::remove_dir_all(&folder);
    assert!(are_kept.iter().all(|is_kept| *is_kept), "a bound is not kept");
}

/// A row of the figures, and whether its bound is kept.
fn row(what: &str, times: &mut [Duration], bound: Option<f64>) -> bool {
    times.sort_unstable();
    let within = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e3;
    let (p50, p99) = (within(50), within(99));
    let is_kept = bound.is_none_or(|bound| p99 <= bound);
    let shown = bound.map(|bound| format!("{bound:.0}")).unwrap_or_default();
    println!("{what:<62}{p50:>10.3}{p99:>10.3}{shown:>8}{}", if is_kept { "" } else { "  NOT KEPT" });
    is_kept
}

/// What a Deployment's Pod looks like, with what the API server has filled in by then.
fn question() -> Value {
    let container = |name: &str| {
        let environment: Vec<_> = (0..20)
            .map(|number| json!({"name": format!("SETTING_{number}"), "value": "a value of some length"}))
            .collect();
        let probe =
            json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10});
        json!({
            "name": name, "image": format!("registry.example/shop/{name}:1.2.3"), "env": environment,
            "ports": [{"containerPort": 8080, "protocol": "TCP"}], "livenessProbe": probe, "readinessProbe": probe,
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
        })
    };
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u-1", "controller": true});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "web-6d4b75cb6d-", "namespace": "shop", "ownerReferences": [owner],
            "labels": {"app": "web"}, "annotations": {"remora.dev/log-level": "warn"},
        },
        "spec": {
            "containers": [container("web"), container("proxy")], "initContainers": [container("migrate")],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        },
    });
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-2", "kind": kind, "namespace": "shop", "operation": "CREATE", "object": pod},
    })
}

async fn ask_by(mut connection: Asking, body: &Bytes) -> Duration {
    ask(&mut connection, body).await
}

/// How long one answer took, which adds a sidecar.
async fn ask(connection: &mut Asking, body: &Bytes) -> Duration {
    let start = Instant::now();
    let request = Request::post("https://remora.remora.svc/inject?timeout=10s");
    let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body.clone())).unwrap();
    let response = connection.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let answer = response.into_body().collect().await.expect("an answer").to_bytes();
    let took = start.elapsed();
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert!(answer["response"]["patch"].is_string(), "{answer}");
    took
}

/// A hub without a cluster: no namespace forbids anything.
struct Hub {
    child: Child,
    address: SocketAddr,
    tls: TlsConnector,
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hub {
    async fn start(folder: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec!["remora.remora.svc".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap().pem();
        std::fs::write(folder.join("tls.crt"), &certificate).unwrap();
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
        let manifests = folder.join("manifests");
        std::fs::create_dir_all(&manifests).unwrap();
        // On an address that nobody else's connections come from.
        let address = TcpListener::bind("127.0.78.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
        command.args(["hub", "--log-level", "error", "--services", "10.96.0.0/16"]);
        command.arg("--source").arg(format!("manifests:{}", manifests.display()));
        command.arg("--feed").arg(format!("unix:{}", folder.join("feed").display()));
        command.arg("--webhook").arg(address.to_string()).arg("--certificate").arg(folder);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("remora");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let hub = Self { child, address, tls: TlsConnector::from(Arc::new(config)) };
        let deadline = Instant::now() + SOON;
        while let Err(error) = hub.connect().await {
            assert!(Instant::now() < deadline, "the hub does not answer at {address}: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        hub
    }

    async fn connect(&self) -> Result<Asking, Box<dyn std::error::Error>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("remora.remora.svc")?;
        let stream = TokioIo::new(self.tls.connect(name, stream).await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
