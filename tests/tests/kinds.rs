//! Listeners of `remora sidecar` and the types of Services that have no address of their own, with a real API server and
//! its controllers: headless Services, external names, and a Service that becomes each type in turn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kube::api::DeleteParams;
use rustix::io::Errno;
use serde_json::{Value, json};
use tests::node_ports::{Met, met, wait_met};
use tests::{Cluster, Host, Namespace, Pod, Program, SOON, Sidecar, World, tools, wait_until};

tests::tests! {
    a_listener_of_a_headless_service_follows_its_pods_to_none_and_back,
    a_service_becomes_every_type_while_clients_connect_and_no_connection_fails,
    an_external_name_of_a_service_of_the_cluster_goes_to_its_pods,
}

/// Whether the connection was taken and reset: nobody serves behind the listener.
fn reset(met: &Met) -> bool {
    *met == Err(Some(Errno::CONNRESET)) || *met == Err(None)
}

/// Waits until `name` answers a new connection.
async fn wait_answer(sidecar: &Sidecar, address: SocketAddr, name: &str) {
    wait_met(sidecar, address, name, |met| met.as_deref() == Ok(name)).await;
}

/// Answers DNS for the same cluster as if its names ended with example.com: the world outside.
async fn outside(world: &World, namespace: &Namespace) -> (Host, Program) {
    let host = Host::new(world, "dns");
    let mut command = host.command(tools::own("remora", "sidecar"));
    command.env("KUBECONFIG", namespace.cluster.kubeconfig()).args(["sidecar", "--source", "kube"]);
    command.args(["--dns", &format!("{}:53", host.ip4()), "--dns-zone", "example.com"]);
    command.args(["--dns-forward", "127.0.0.1:1"]);
    let program = Program::start(world, host.name(), command);
    wait_until(SOON, "the DNS answers", async || match program.output().contains("dns ") {
        true => Ok(()),
        false => Err(program.state()),
    })
    .await;
    (host, program)
}

async fn a_listener_of_a_headless_service_follows_its_pods_to_none_and_back(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    namespace.service("db", json!({"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack"})).await;
    let listen = format!("5432={}/db:web", namespace.name);
    let sidecar = Sidecar::ready(&world, &namespace.cluster.kubeconfig(), &[&listen]).await;
    let address = sidecar.address(5432);
    wait_met(&sidecar, address, "nobody serves", reset).await;
    let first = Pod::ready(&world, &namespace, "db", "db-0", "node-a").await;
    wait_answer(&sidecar, address, "db-0").await;
    let second = Pod::start(&world, &namespace, "db", "db-1", "node-b").await;
    first.delete().await;
    first.end().await;
    wait_met(&sidecar, address, "the one that is left is not ready", reset).await;
    // Whoever looks for its fellows wants them before they are ready.
    namespace.patch_service("db", json!({"spec": {"publishNotReadyAddresses": true}})).await;
    wait_answer(&sidecar, address, "db-1").await;
    namespace.patch_service("db", json!({"spec": {"publishNotReadyAddresses": false}})).await;
    wait_met(&sidecar, address, "it is not ready again", reset).await;
    second.set_ready(true).await;
    wait_answer(&sidecar, address, "db-1").await;
    namespace.services().delete("db", &DeleteParams::default()).await.expect("it was there");
    wait_met(&sidecar, address, "the Service is gone", reset).await;
}

async fn a_service_becomes_every_type_while_clients_connect_and_no_connection_fails(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let (dns, _program) = outside(&world, &namespace).await;
    let _pods = [
        Pod::ready(&world, &namespace, "web", "inside", "node-a").await,
        Pod::start_at(&world, &namespace, "far", "outside", "node-b", &[("web", 80)]).await,
    ];
    _pods[1].set_ready(true).await;
    // The name of what is outside; its own port is that of the Service.
    namespace.service("far", json!({"clusterIP": "None"})).await;
    namespace.service("web", json!({})).await;
    let name = format!("far.{}.svc.example.com", namespace.name);
    wait_until(SOON, "the world outside knows the name", async || {
        let arguments = [&format!("@{}", dns.ip4()), "+short", "+tries=1", "+time=2", &name];
        let output = dns.command("dig").args(arguments).output().map_err(|error| error.to_string())?;
        if output.status.success() && !output.stdout.is_empty() { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .await;
    let listen = [format!("80={}/web:80", namespace.name)];
    let more = ["--dns-forward".to_owned(), dns.ip4().to_string()];
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let sidecar = Sidecar::start(&world, &namespace.cluster.kubeconfig(), &[&listen[0]], &more);
    let address = sidecar.address(80);
    wait_answer(&sidecar, address, "inside").await;
    let mut open = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let is_done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_done);
    let clients = tokio::spawn(async move {
        let (mut count, mut failed) = (0, Vec::new());
        while !stop.load(Ordering::SeqCst) {
            failed.extend(met(address).await.err());
            count += 1;
        }
        (count, failed)
    });
    let external = || json!({"spec": {"type": "ExternalName", "externalName": name, "clusterIP": null, "clusterIPs": null}});
    let of_type = |kind: &str| json!({"spec": {"type": kind, "externalName": null}});
    let headless: Value = json!({"spec": {"type": "ClusterIP", "externalName": null, "clusterIP": "None"}});
    for (patch, by) in [
        (of_type("NodePort"), "inside"),
        (external(), "outside"),
        (of_type("LoadBalancer"), "inside"),
        (external(), "outside"),
        (of_type("ClusterIP"), "inside"),
        (external(), "outside"),
        (headless, "inside"),
        (external(), "outside"),
    ] {
        namespace.patch_service("web", patch).await;
        wait_answer(&sidecar, address, by).await;
    }
    is_done.store(true, Ordering::SeqCst);
    let (count, failed) = clients.await.expect("the clients end");
    let state =
        || format!("{:?} of {count}, {} failed; {}", failed.first(), failed.len(), sidecar.program.state());
    assert!(count > 20 && failed.is_empty(), "{}", state());
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    open.write_all(b"hello").await.expect("it is open");
    let mut echo = [0; 12];
    open.read_exact(&mut echo).await.expect("it is open");
    assert_eq!(&echo, b"inside\nhello");
}

async fn an_external_name_of_a_service_of_the_cluster_goes_to_its_pods(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let _pod = Pod::ready(&world, &namespace, "web", "web-0", "node-a").await;
    namespace.service("web", json!({})).await;
    let name = format!("web.{}.svc.cluster.local", namespace.name);
    namespace.service("front", json!({"type": "ExternalName", "externalName": name, "ports": []})).await;
    let listen = format!("80={}/front:80", namespace.name);
    // Nobody answers DNS here.
    let forward = ["--dns-forward", "127.0.0.1:1"];
    let sidecar = Sidecar::start(&world, &namespace.cluster.kubeconfig(), &[&listen], &forward);
    wait_answer(&sidecar, sidecar.address(80), "web-0").await;
    let itself = format!("front.{}.svc.cluster.local", namespace.name);
    namespace.patch_service("front", json!({"spec": {"externalName": itself}})).await;
    wait_met(&sidecar, sidecar.address(80), "it leads back to itself", reset).await;
    wait_until(SOON, "the log says so", async || match sidecar.program.output() {
        log if log.contains("leads back to itself") => Ok(()),
        log => Err(log),
    })
    .await;
}
