//! From a manifest to a balanced Pod: what `remora inject` writes is taken by the real API server, and its containers run
//! exactly as it says.

use std::io::Write;
use std::process::Stdio;

use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Pod as KubePod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tests::cluster::SERVICES;
use tests::kubelet::Sidecars;
use tests::{Client, Cluster, Namespace, SOON, Way, World, ask, tools, wait_until};

tests::tests! {
    an_injected_pod_is_accepted_and_its_connections_are_balanced,
    every_kind_with_pods_is_accepted,
    where_capture_is_forbidden_a_pod_is_injected_without_it_and_starts,
}

const APP: &str = "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
  - name: app # does not matter here
    image: none
";

/// What `remora inject` makes of a manifest, and its report.
fn inject(manifest: &str) -> (String, String) {
    let mut command = std::process::Command::new(tools::own("remora", "sidecar"));
    command.args(["inject", "--services", &SERVICES.join(",")]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("remora");
    child.stdin.take().expect("its input").write_all(manifest.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (text(output.stdout), text(output.stderr))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

fn pod(manifest: &str) -> KubePod {
    let documents = serde_saphyr::from_multiple::<Value>(manifest).expect("YAML");
    let pod = documents.into_iter().find(|value| value["kind"] == "Pod").expect("a Pod");
    serde_json::from_value(pod).expect("a Pod")
}

/// The Pod as the API server has it.
async fn created(namespace: &Namespace, manifest: &str) -> Result<Value, String> {
    let pods: Api<KubePod> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let created = pods.create(&PostParams::default(), &pod(manifest)).await;
    created.map(|pod| serde_json::to_value(pod).expect("JSON")).map_err(|error| error.to_string())
}

async fn an_injected_pod_is_accepted_and_its_connections_are_balanced(world: World) {
    let client = Client::start(world, Way::KubeProxy).await;
    let [first, second] = [client.far("web", "web-0").await, client.far("web", "web-1").await];
    let addresses = client.service("web", json!({})).await.port(80);
    client.wait_served(&addresses, &["web-0", "web-1"], "the node serves").await;

    let (manifest, report) = inject(APP);
    assert_eq!(report, "Pod app: injected\n");
    let pod = created(&client.namespace, &manifest).await.expect("it is accepted");
    let sidecars = Sidecars::start(&client.world, &client.pod.host, &client.namespace, &pod, "node-a").await;
    let health = (client.pod.host.ip4(), 64104).into();
    let opened = async || {
        let (_, page) = ask::get(health, "/metrics").await?;
        let lines = page.lines().filter_map(|line| line.strip_prefix("remora_connections_opened_total"));
        Ok::<u64, String>(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    };
    wait_until(SOON, "Remora takes connections", async || {
        client.touch(addresses[0]).await;
        match opened().await {
            Ok(0) | Err(_) => Err(sidecars.only().program.state()),
            Ok(_) => Ok(()),
        }
    })
    .await;
    let status = sidecars.only().status().expect("its status");
    assert_eq!(status["Uid"].split_whitespace().next(), Some("64102"));
    assert_eq!((&*status["NoNewPrivs"], &*status["CapAmb"]), ("1", "0000000000000000"));
    client.wait_served(&addresses, &["web-0", "web-1"], "Remora serves").await;
    let before = opened().await.expect("a metric");
    second.delete().await;
    second.end().await;
    client.wait_served(&addresses, &["web-0"], "Remora follows").await;
    assert!(opened().await.expect("a metric") > before, "they went through the sidecar");
    drop(first);
}

async fn every_kind_with_pods_is_accepted(_world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let template = "{metadata: {labels: {app: a}}, spec: {restartPolicy: RESTART, containers: [{name: a, image: none}]}}";
    let template = |restart: &str| template.replace("RESTART", restart);
    let always = format!("selector: {{matchLabels: {{app: a}}}}, template: {}", template("Always"));
    let never = format!("template: {}", template("Never"));
    for (group, plural, kind, spec) in [
        ("apis/apps/v1", "deployments", "Deployment", always.clone()),
        ("apis/apps/v1", "daemonsets", "DaemonSet", always.clone()),
        ("apis/apps/v1", "statefulsets", "StatefulSet", format!("serviceName: a, {always}")),
        ("apis/apps/v1", "replicasets", "ReplicaSet", always),
        (
            "api/v1",
            "replicationcontrollers",
            "ReplicationController",
            format!("selector: {{app: a}}, template: {}", template("Always")),
        ),
        ("apis/batch/v1", "jobs", "Job", never.clone()),
        (
            "apis/batch/v1",
            "cronjobs",
            "CronJob",
            format!("schedule: '@daily', jobTemplate: {{spec: {{{never}}}}}"),
        ),
    ] {
        let version = group.split_once('/').map_or(group, |(_, version)| version);
        let manifest =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{{spec}}}\n");
        let (injected, report) = inject(&manifest);
        assert_eq!(report, format!("{kind} a: injected\n"));
        let object: Value = serde_saphyr::from_str(&injected).expect("YAML");
        // Nothing that the API server does not know, nothing twice.
        let path =
            format!("/{group}/namespaces/{}/{plural}?fieldValidation=Strict&dryRun=All", namespace.name);
        let request = http::Request::post(path).header("Content-Type", "application/json");
        let request = request.body(object.to_string().into_bytes()).expect("a request");
        let answer = namespace.client.request::<Value>(request).await;
        let answer = answer.unwrap_or_else(|error| panic!("{kind}: {error}\n{injected}"));
        assert!(answer.to_string().contains("remora-capture"), "{answer}");
    }
}

async fn where_capture_is_forbidden_a_pod_is_injected_without_it_and_starts(world: World) {
    let client = Client::start(world, Way::KubeProxy).await;
    let _web = client.far("web", "web-0").await;
    client.service("web", json!({})).await;
    let name = &client.namespace.name;
    for level in ["baseline", "restricted"] {
        let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        let namespaces: Api<KubeNamespace> = Api::all(client.namespace.client.clone());
        namespaces.patch(name, &PatchParams::default(), &Patch::Merge(labels)).await.expect("it is labelled");
        let refused = created(&client.namespace, &inject(APP).0).await.expect_err("capture is forbidden");
        assert!(refused.contains(&format!("violates PodSecurity \"{level}:")), "{refused}");
    }
    let listening = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}\n---\n{}",
        APP.replace(
            "metadata: {name: app}",
            &format!("metadata: {{name: app, namespace: {name}, annotations: {{remora.dev/listen: '127.0.0.1:8081={name}/web:80'}}}}"),
        )
        .replace("    image: none\n", "    image: none\n    securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}\n")
    );
    let (manifest, report) = inject(&listening);
    assert!(
        report.contains("injected without capture: its namespace enforces Pod Security \"restricted\""),
        "{report}"
    );
    let pod = created(&client.namespace, &manifest).await.expect("it is accepted");
    let sidecars = Sidecars::start(&client.world, &client.pod.host, &client.namespace, &pod, "node-a").await;
    let listener = (std::net::Ipv4Addr::LOCALHOST, 8081).into();
    wait_until(SOON, "the listener serves", async || match client.connect_once(listener).await.by() {
        Ok("web-0") => Ok(()),
        other => Err(format!("{other:?}; {}", sidecars.only().program.state())),
    })
    .await;
}
