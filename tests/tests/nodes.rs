//! Node ports: `remora node` on a host of its own, with a real API server, seen from outside of the cluster and from
//! inside. Where kube-proxy answers itself, its answers are compared.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use rustix::io::Errno;
use serde_json::{Value, json};
use tests::node_ports::{at, met, node_port, number, refused, wait_from, wait_met};
use tests::{Cluster, Host, Namespace, Pod, SOON, Sidecar, World, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

tests::tests! {
    a_node_port_serves_in_both_families_and_refuses_while_nobody_can_serve,
    a_service_that_changes_its_type_takes_its_node_port_along,
    under_policy_local_clients_outside_are_not_answered_by_a_node_without_endpoints,
    a_client_with_affinity_stays_with_its_endpoint_at_a_node_port,
    a_health_check_answers_as_that_of_kube_proxy_does,
    load_balancers_are_told_of_a_node_that_is_about_to_go_as_kube_proxy_tells_them,
    a_port_that_somebody_else_has_is_counted_and_served_once_it_is_free,
    a_node_port_goes_from_one_service_to_another,
    open_connections_outlive_their_node_port,
}

async fn a_node_port_serves_in_both_families_and_refuses_while_nobody_can_serve(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let node = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-a", &[]).await;
    let port = node_port(&namespace, json!({"ipFamilyPolicy": "RequireDualStack"})).await;
    for address in at(&node, port) {
        assert_eq!(met(address).await, Err(Some(Errno::CONNREFUSED)), "nobody serves");
    }
    let pods = [
        Pod::ready(&world, &namespace, "web", "web-0", "node-a").await,
        Pod::ready(&world, &namespace, "web", "web-1", "node-b").await,
    ];
    for address in at(&node, port) {
        wait_met(&node, address, "somebody answers", Result::is_ok).await;
        wait_until(SOON, &format!("both answer at {address}"), async || {
            let mut names = BTreeSet::new();
            for _ in 0..40 {
                names.extend(met(address).await);
            }
            if names.len() == 2 { Ok(()) } else { Err(format!("{names:?}")) }
        })
        .await;
    }
    for pod in pods {
        pod.delete().await;
        pod.end().await;
    }
    for address in at(&node, port) {
        wait_met(&node, address, "nobody is left", refused).await;
    }
}

async fn a_service_that_changes_its_type_takes_its_node_port_along(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let node = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-a", &[]).await;
    let _pod = Pod::ready(&world, &namespace, "web", "web-0", "node-b").await;
    namespace.service("web", json!({})).await;
    for (kind, name) in [("NodePort", None), ("LoadBalancer", None), ("ExternalName", Some("shop.example"))] {
        namespace.patch_service("web", json!({"spec": {"type": kind, "externalName": name}})).await;
        if name.is_none() {
            let [v4, _] = at(&node, number(&namespace).await);
            wait_met(&node, v4, kind, Result::is_ok).await;
        }
    }
    // What it was, is free again.
    namespace.patch_service("web", json!({"spec": {"type": "NodePort", "externalName": null}})).await;
    let [v4, _] = at(&node, number(&namespace).await);
    wait_met(&node, v4, "it has a node port again", Result::is_ok).await;
    let cluster_ip =
        json!({"spec": {"type": "ClusterIP", "ports": [{"name": "web", "port": 80, "targetPort": "web"}]}});
    namespace.patch_service("web", cluster_ip).await;
    wait_met(&node, v4, "it has none", refused).await;
    namespace.patch_service("web", json!({"spec": {"type": "NodePort"}})).await;
    let [v4, _] = at(&node, number(&namespace).await);
    wait_met(&node, v4, "it has one again", Result::is_ok).await;
    namespace.services().delete("web", &DeleteParams::default()).await.expect("the Service is deleted");
    wait_met(&node, v4, "it is gone", refused).await;
}

async fn under_policy_local_clients_outside_are_not_answered_by_a_node_without_endpoints(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let inside = Host::new(&world, "inside");
    let pods = format!("--pods={},{}", inside.ip4(), inside.ip6());
    let node = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-a", &[&pods]).await;
    let port = node_port(
        &namespace,
        json!({"externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack"}),
    )
    .await;
    let _far = Pod::ready(&world, &namespace, "web", "far", "node-b").await;
    for address in at(&node, port) {
        wait_met(&node, address, "nobody answers", |met| *met == Err(Some(Errno::TIMEDOUT))).await;
        wait_from(&inside, address, "far", "a client inside meets any endpoint").await;
        wait_from(&node.host, address, "far", "so does the node itself").await;
    }
    let near = Pod::ready(&world, &namespace, "web", "near", "node-a").await;
    for address in at(&node, port) {
        wait_met(&node, address, "the local endpoint answers", Result::is_ok).await;
        for _ in 0..20 {
            assert_eq!(met(address).await.as_deref(), Ok("near"), "only the local one");
        }
    }
    near.set_ready(false).await;
    for address in at(&node, port) {
        wait_met(&node, address, "nobody answers again", |met| *met == Err(Some(Errno::TIMEDOUT))).await;
    }
}

async fn a_client_with_affinity_stays_with_its_endpoint_at_a_node_port(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let node = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-a", &[]).await;
    let mut pods = Vec::new();
    for n in 0..4 {
        pods.push(Pod::ready(&world, &namespace, "web", &format!("web-{n}"), "node-b").await);
    }
    let [v4, _] = at(&node, node_port(&namespace, json!({"sessionAffinity": "ClientIP"})).await);
    wait_met(&node, v4, "somebody answers", Result::is_ok).await;
    let first = met(v4).await.expect("an answer");
    for _ in 0..20 {
        assert_eq!(met(v4).await.as_ref(), Ok(&first));
    }
}

async fn a_health_check_answers_as_that_of_kube_proxy_does(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let [kube_proxy, _] = namespace.cluster.nodes().await;
    let node = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-a", &[]).await;
    namespace.service("web", json!({"type": "LoadBalancer"})).await;
    let local = json!({"spec": {"externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack"}});
    namespace.patch_service("web", local).await;
    let spec = namespace.services().get("web").await.expect("the Service").spec.expect("a spec");
    let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).expect("a port");
    let _pods = [
        Pod::ready(&world, &namespace, "web", "near-0", "node-a").await,
        Pod::ready(&world, &namespace, "web", "near-1", "node-a").await,
        Pod::ready(&world, &namespace, "web", "far", "node-b").await,
    ];
    for (pods, expected) in [(2, "HTTP/1.1 200 OK"), (0, "HTTP/1.1 503 Service Unavailable")] {
        for (ours, theirs) in node.host.ips().into_iter().zip(kube_proxy.host.ips()) {
            let count = format!("\"localEndpoints\": {pods},");
            let answers =
                wait_until_both(&node, [ours, theirs].map(|ip| SocketAddr::new(ip, port)), &count).await;
            assert_eq!(answers[0], answers[1]);
            assert!(answers[0].contains(&expected.to_owned()), "{answers:?}");
        }
        if pods > 0 {
            for pod in &_pods[..2] {
                pod.delete().await;
            }
        }
    }
    namespace.patch_service("web", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await;
    wait_met(&node, SocketAddr::new(node.host.ip4().into(), port), "the check is gone", refused).await;
}

async fn load_balancers_are_told_of_a_node_that_is_about_to_go_as_kube_proxy_tells_them(world: World) {
    let cluster = Cluster::shared().await;
    let [_, kube_proxy] = cluster.nodes().await;
    let ours = Sidecar::node(&world, &cluster.kubeconfig(), "node-b", &[]).await;
    let nodes = Api::<Node>::all(cluster.client().await);
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    for (taints, code) in [(json!(null), 200), (taint, 503), (json!(null), 200)] {
        let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
        nodes.patch("node-b", &PatchParams::default(), &patch).await.expect("the node is changed");
        // Times aside, the answers are the same.
        wait_until(SOON, &format!("both say {code}, and the same"), async || {
            let mut said = [json!(null), json!(null)];
            let ask = [(ours.host.ip4(), 64104), (kube_proxy.host.ip4(), 10256)];
            for (said, server) in said.iter_mut().zip(ask) {
                *said = match tests::ask::get(server.into(), "/healthz").await {
                    Ok((is, body)) if is == code => without_times(serde_json::from_str(&body).expect("JSON")),
                    other => return Err(format!("{server:?}: {other:?}")),
                };
            }
            if said[0] == said[1] { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    }
}

fn without_times(mut said: Value) -> Value {
    for field in ["lastUpdated", "currentTime"] {
        said[field].as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok()).expect("a time");
        said[field] = json!("");
    }
    for family in ["IPv4", "IPv6"] {
        said["status"][family]["lastUpdated"] = json!("");
    }
    said
}

/// The answers of two servers to an odd request, as lines, once both have this in them.
async fn wait_until_both(node: &Sidecar, servers: [SocketAddr; 2], wanted: &str) -> [Vec<String>; 2] {
    let mut answers = [Vec::new(), Vec::new()];
    wait_until(SOON, &format!("both answer {wanted}"), async || {
        for (answer, server) in answers.iter_mut().zip(servers) {
            *answer = lines(server)
                .await
                .map_err(|error| format!("{server}: {error}; {}", node.program.state()))?;
            if !answer.iter().any(|line| line.trim() == wanted) {
                return Err(format!("{server}: {answer:?}"));
            }
        }
        Ok(())
    })
    .await;
    answers
}

/// The lines of an answer: headers sorted, but the date, then the body.
async fn lines(server: SocketAddr) -> std::io::Result<Vec<String>> {
    let mut stream = TcpStream::connect(server).await?;
    let request = format!(
        "POST /any/path HTTP/1.1\r\nHost: {server}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let mut lines: Vec<String> =
        head.lines().filter(|line| !line.starts_with("Date: ")).map(str::to_owned).collect();
    lines.sort();
    lines.extend(body.split('\n').map(str::to_owned));
    Ok(lines)
}

async fn a_port_that_somebody_else_has_is_counted_and_served_once_it_is_free(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let _pod = Pod::ready(&world, &namespace, "web", "web-0", "node-b").await;
    let port = node_port(&namespace, json!({})).await;
    let other = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-b", &[]).await;
    let [v4, _] = at(&other, port);
    wait_met(&other, v4, "it serves", Result::is_ok).await;
    // A second agent on the same host finds the port taken, says so, and gets it when the first has gone.
    let mut command = other.host.command(tests::tools::own("remora", "sidecar"));
    command.env("KUBECONFIG", namespace.cluster.kubeconfig());
    command.args(["node", "--source=kube", "--health=0.0.0.0:64106", "--admin=off", "--node=node-b"]);
    command.arg(format!("--node-ips={}", v4.ip()));
    let second = tests::Program::start(&world, "second", command);
    let metrics = SocketAddr::new(v4.ip(), 64106);
    let states = async |wanted: &str| {
        wait_until(SOON, wanted, async || match tests::ask::get(metrics, "/metrics").await {
            Ok((200, page)) if page.contains(wanted) => Ok(()),
            other => Err(format!("{other:?}; {}", second.state())),
        })
        .await;
    };
    wait_until(SOON, "a port is lacking", async || match tests::ask::get(metrics, "/metrics").await {
        Ok((200, page)) if !page.contains("remora_node_ports{state=\"lacking\"} 0") => Ok(()),
        other => Err(format!("{other:?}; {}", second.state())),
    })
    .await;
    let told = [format!("cannot listen on {v4}"), "another program holds this port".to_owned()];
    wait_until(SOON, "its log tells", async || {
        let log = std::fs::read_to_string(world.folder().join("second.log")).unwrap_or_default();
        if told.iter().all(|told| log.contains(told)) { Ok(()) } else { Err(log) }
    })
    .await;
    wait_until(SOON, "people are told", async || {
        let events = Api::<Event>::namespaced(namespace.client.clone(), &namespace.name);
        let events = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let told = events.iter().any(|event| {
            let about = event.regarding.as_ref().and_then(|about| about.name.as_deref()) == Some("web");
            about && event.reason.as_deref() == Some("NodePortTaken")
        });
        if told { Ok(()) } else { Err(format!("{events:?}; {}", second.state())) }
    })
    .await;
    other.program.kill();
    states("remora_node_ports{state=\"lacking\"} 0").await;
    wait_met(&other, v4, "the second serves", Result::is_ok).await;
}

async fn a_node_port_goes_from_one_service_to_another(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let node = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-a", &[]).await;
    let _pods = [
        Pod::ready(&world, &namespace, "web", "web-0", "node-b").await,
        Pod::ready(&world, &namespace, "db", "db-0", "node-b").await,
    ];
    let port = node_port(&namespace, json!({})).await;
    let [v4, _] = at(&node, port);
    for (before, next) in [("web", "db"), ("db", "web")] {
        wait_met(&node, v4, before, |met| met.as_ref().is_ok_and(|name| name.starts_with(before))).await;
        namespace.services().delete(before, &DeleteParams::default()).await.expect("the Service is deleted");
        let ports = json!([{"name": "web", "port": 80, "targetPort": "web", "nodePort": port}]);
        namespace.service(next, json!({"type": "NodePort", "ports": ports})).await;
    }
    wait_met(&node, v4, "web again", |met| met.as_ref().is_ok_and(|name| name.starts_with("web"))).await;
    // The other family follows on its own.
    wait_until(SOON, "no port is lacking", async || match node.get("/metrics").await {
        Ok((200, page)) if page.contains("remora_node_ports{state=\"lacking\"} 0") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let log =
        std::fs::read_to_string(world.folder().join(format!("{}.log", node.host.name()))).expect("its log");
    assert!(!log.contains("another program"), "{log}");
}

async fn open_connections_outlive_their_node_port(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let node = Sidecar::node(&world, &namespace.cluster.kubeconfig(), "node-a", &[]).await;
    let _pod = Pod::ready(&world, &namespace, "web", "web-0", "node-b").await;
    let [v4, _] = at(&node, node_port(&namespace, json!({})).await);
    wait_met(&node, v4, "it serves", Result::is_ok).await;
    let mut open = TcpStream::connect(v4).await.expect("a connection");
    let mut greeting = [0; 6];
    open.read_exact(&mut greeting).await.expect("a greeting");
    namespace.services().delete("web", &DeleteParams::default()).await.expect("the Service is deleted");
    wait_met(&node, v4, "it is gone", |met| *met == Err(Some(Errno::CONNREFUSED))).await;
    open.write_all(b"!").await.expect("it takes bytes");
    assert_eq!(open.read_u8().await.expect("an echo"), b'!');
}
