//! From `kubectl apply` to a balanced Pod: the commands of the README's section *Installed*, on a real control plane that
//! makes the Pods, whose containers run from the image exactly as they say.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use tests::cluster::{Extent, create};
use tests::kubelet::{self, Around, Mounted, Sidecars};
use tests::{
    Client, Cluster, Container, Host, Image, Namespace, Program, SOON, Way, World, ask, tools, wait_until,
};

tests::tests! {
    what_the_readme_installs_balances_pods_and_leaves_them_alone_when_it_goes,
}

/// For what waits for a control plane that does several things one after the other.
const PATIENCE: Duration = Duration::from_secs(120);

async fn what_the_readme_installs_balances_pods_and_leaves_them_alone_when_it_goes(world: World) {
    let cluster = Cluster::shared_of(Extent::Deployments).await;
    let image = Image::built(&world);
    let client = Client::start(world, Way::KubeProxy).await;
    let namespace = &client.namespace;
    let [first, second] = [client.far("web", "web-0").await, client.far("web", "web-1").await];
    let addresses = client.service("web", json!({})).await.port(80);
    client.wait_served(&addresses, &["web-0", "web-1"], "the node serves").await;
    let container = json!({"name": "app", "image": "none"});
    let deployment = json!({
        "metadata": {"name": "app"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "app"}},
            "strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": "app"}}, "spec": {"containers": [container]}},
        },
    });
    create::<Deployment>(&Api::namespaced(namespace.client.clone(), &namespace.name), deployment).await;

    let [_, far] = client.nodes().await;
    let dns = far.place(&client.world, "dns");
    let dns_program = start_dns(&client.world, &dns, &cluster.kubeconfig());
    let around = |node| Around { node, image: Some(&image), dns: Some(dns.ip4()) };
    let commands = commands();
    let [apply, status, label, restart, delete, install, uninstall] = &commands[..] else {
        panic!("{commands:?}")
    };
    let run = async |command: &str| finish(shell(&client.world, namespace, command), command).await;

    run(apply).await;
    let hubs = start_hubs(&client, &around).await;
    run(status).await;
    run(label).await;
    let pods: Api<KubePod> = Api::namespaced(namespace.client.clone(), &namespace.name);
    wait_asked(&pods, &hubs).await;
    run(restart).await;
    let [pod, late] = injected_pods(&pods).await;
    let (pod, late) = (&pod, &late);

    // One of its Pods starts at once.
    kubelet::bind(&namespace.client, pod, "node-a").await;
    let host = &client.pod.host;
    let sidecars = Sidecars::start_around(&client.world, host, namespace, pod, &around("node-a")).await;
    let sidecar = sidecars.only();
    wait_until(SOON, "Remora takes connections", async || {
        client.touch(addresses[0]).await;
        match opened(host).await {
            Ok(0) | Err(_) => {
                Err(format!("{}; {}; {}", sidecar.program.state(), states(&hubs), dns_program.state()))
            }
            Ok(_) => Ok(()),
        }
    })
    .await;
    client.wait_served(&addresses, &["web-0", "web-1"], "Remora serves").await;
    let before = opened(host).await.expect("a metric");
    second.delete().await;
    second.end().await;
    client.wait_served(&addresses, &["web-0"], "Remora follows").await;
    wait_taken(&client, addresses[0], before).await;

    // The application as root.
    let before = opened(host).await.expect("a metric");
    assert_eq!(greeting(host, addresses[0]).await.as_deref(), Ok("web-0"));
    wait_until(SOON, "root's connections are taken too", async || match opened(host).await {
        Ok(opened) if opened > before => Ok(()),
        other => Err(format!("{other:?} after {before}")),
    })
    .await;

    // The hubs die, and what they told serves on.
    let mounted = Mounted::of(namespace, late).await;
    kubelet::bind(&namespace.client, late, "node-a").await;
    hubs.iter().for_each(|(hub, _)| hub.program.kill());
    let before = opened(host).await.expect("a metric");
    client.wait_served(&addresses, &["web-0"], "the sidecar serves without hubs").await;
    wait_taken(&client, addresses[0], before).await;

    // All is uninstalled, beside connections that are in use.
    let held = client.hold(addresses[0], 5).await;
    take_away(&client, delete).await;
    client.wait_served(&addresses, &["web-0"], "what was installed is gone").await;

    // Others install it by Helm, and take it away again.
    run(install).await;
    let hubs = start_hubs(&client, &around).await;
    run(status).await;
    wait_asked(&pods, &hubs).await;
    hubs.iter().for_each(|(hub, _)| hub.program.kill());
    take_away(&client, uninstall).await;
    client.wait_served(&addresses, &["web-0"], "what Helm installed is gone").await;
    let broken = held.let_go().await;
    assert!(broken.is_empty(), "{broken:?}");

    // The API server is down too. The other Pod, which was made before, starts, and its connections go through.
    cluster.kill_api();
    let [node, _] = client.nodes().await;
    let late_host = node.place(&client.world, "late");
    let late = Sidecars::start_mounted(&client.world, &late_host, late, &mounted, &around("node-a")).await;
    wait_until(SOON, "the late Pod's connections go through", async || {
        match greeting(&late_host, addresses[0]).await.as_deref() {
            Ok("web-0") => Ok(()),
            other => Err(format!("{other:?}; {}", late.only().program.state())),
        }
    })
    .await;
    client.wait_served(&addresses, &["web-0"], "without an API server").await;
    drop(first);
}

/// Waits until a connection of the client's went through the sidecar: while that stalls, the node takes them.
async fn wait_taken(client: &Client, address: SocketAddr, before: u64) {
    wait_until(SOON, "they go through the sidecar", async || {
        client.touch(address).await;
        match opened(&client.pod.host).await {
            Ok(opened) if opened > before => Ok(()),
            other => Err(format!("{other:?} after {before}")),
        }
    })
    .await;
}

/// Waits until the API server asks `hubs` about the Pods that are made.
async fn wait_asked(pods: &Api<KubePod>, hubs: &[(Container, Host)]) {
    wait_until(PATIENCE, "the API server asks the hub about the namespace's Pods", async || {
        let container = json!({"name": "app", "image": "none"});
        let try_out = json!({"metadata": {"name": "try"}, "spec": {"containers": [container]}});
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let made = pods.create(&dry, &serde_json::from_value(try_out).expect("a Pod")).await;
        match made.map(|pod| is_injected(&serde_json::to_value(pod).expect("JSON"))) {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}; {}", states(hubs))),
        }
    })
    .await;
}

/// Uninstalls what is installed by `command`, until nothing of it is left.
async fn take_away(client: &Client, command: &str) {
    let mut child = shell(&client.world, &client.namespace, command);
    let installed: Api<KubePod> = Api::namespaced(client.namespace.client.clone(), "remora");
    wait_until(PATIENCE, "nothing of it is left", async || {
        // What a kubelet does when containers have ended.
        let left = installed.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        for pod in left.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()) {
            let name = pod.metadata.name.as_deref().expect("a name");
            let _gone = installed.delete(name, &DeleteParams::default().grace_period(0)).await;
        }
        match child.try_wait() {
            Ok(Some(_)) if left.items.is_empty() => Ok(()),
            other => Err(format!("{other:?}, {} Pods", left.items.len())),
        }
    })
    .await;
    finish(child, command).await;
}

/// The commands of the README's section, in its order.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let section = readme.split("\n### Installed\n").nth(1).expect("a section Installed");
    let section = section.split("\n### ").next().expect("its text");
    let blocks = section.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Types a command, where `shop` is the test's own namespace.
fn shell(world: &World, namespace: &Namespace, command: &str) -> tokio::process::Child {
    let command = command.replace("shop", &namespace.name);
    let tools = ["kubectl", "helm"].map(|tool| tools::built(tool).parent().expect("a folder").to_owned());
    let usual = PathBuf::from(std::env::var_os("PATH").expect("PATH"));
    let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&usual))).expect("folders");
    let mut bash = tokio::process::Command::new("bash");
    bash.args(["-c", &command]).current_dir(root()).env("PATH", path).kill_on_drop(true);
    bash.env("KUBECONFIG", namespace.cluster.administrator()).env("HOME", world.own_folder());
    bash.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash")
}

/// Waits for the end of a command, which must be a good one.
async fn finish(child: tokio::process::Child, command: &str) {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{command} hangs")).expect("its end");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command}: {}\n{}", output.status, String::from_utf8_lossy(&said));
}

/// The cluster's DNS: a Remora.
fn start_dns(world: &World, host: &Host, kubeconfig: &Path) -> Program {
    let mut command = host.command(tools::own("remora", "sidecar"));
    command
        .env("KUBECONFIG", kubeconfig)
        .args(["sidecar", "--source", "kube", "--health", "off", "--admin", "off"]);
    command.args(["--dns", &format!("{}:53", host.ip4()), "--dns-forward", "127.0.0.1:1"]);
    Program::start(world, host.name(), command)
}

/// Runs the Pods of the hub's Deployment, one on each node, until they are ready.
async fn start_hubs<'a>(client: &Client, around: &impl Fn(&'a str) -> Around<'a>) -> Vec<(Container, Host)> {
    let api = &client.namespace.client;
    let pods: Api<KubePod> = Api::namespaced(api.clone(), "remora");
    let made = wait_until(PATIENCE, "the hub's Pods are made", async || {
        let made = listed(&pods).await?;
        if made.len() == 2 { Ok(made) } else { Err(format!("{made:?}")) }
    })
    .await;
    let mut hubs = Vec::new();
    for ((pod, node), name) in made.iter().zip(client.nodes().await).zip(["node-a", "node-b"]) {
        kubelet::bind(api, pod, name).await;
        let host = node.place(&client.world, "hub");
        let hub = kubelet::run(&client.world, &host, api, pod, &around(name)).await;
        kubelet::report(api, pod, &host).await;
        hubs.push((hub, host));
    }
    hubs
}

fn states(hubs: &[(Container, Host)]) -> String {
    hubs.iter().map(|(hub, _)| hub.program.state()).collect::<Vec<_>>().join("; ")
}

async fn listed(pods: &Api<KubePod>) -> Result<Vec<Value>, String> {
    let listed = pods.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
    Ok(listed.items.into_iter().map(|pod| serde_json::to_value(pod).expect("JSON")).collect())
}

fn is_injected(pod: &Value) -> bool {
    let containers = pod["spec"]["initContainers"].as_array();
    containers.is_some_and(|containers| containers.iter().any(|container| container["name"] == "remora"))
}

/// The Pods of the Deployment that were made with a sidecar.
async fn injected_pods(pods: &Api<KubePod>) -> [Value; 2] {
    wait_until(PATIENCE, "new Pods are made, with sidecars", async || {
        let mut listed = listed(pods).await?;
        // One that the API server did not ask about in time is made anew.
        let restarted = "kubectl.kubernetes.io/restartedAt";
        for pod in listed.iter().filter(|pod| !is_injected(pod)) {
            if pod["metadata"]["annotations"][restarted].is_string() {
                let name = pod["metadata"]["name"].as_str().expect("a name");
                let _gone = pods.delete(name, &DeleteParams::default().grace_period(0)).await;
            }
        }
        listed.retain(is_injected);
        <[Value; 2]>::try_from(listed).map_err(|listed| format!("{listed:?}"))
    })
    .await
}

/// How many connections the sidecar on a host has opened.
async fn opened(host: &Host) -> Result<u64, String> {
    let (_, page) = ask::get((host.ip4(), 64104).into(), "/metrics").await?;
    let lines = page.lines().filter_map(|line| line.strip_prefix("remora_connections_opened_total"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// Who greets a program of root's on a host.
async fn greeting(host: &Host, address: SocketAddr) -> Result<String, String> {
    let dial = format!(
        "exec 3<>/dev/tcp/{}/{} && read -r name _ <&3 && echo \"$name\"",
        address.ip(),
        address.port()
    );
    let mut command = host.command("timeout");
    command.args(["10", "bash", "-c", &dial]).stdin(Stdio::null());
    let output = tokio::process::Command::from(command).output().await.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
