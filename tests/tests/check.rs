//! `remora check` against a real API server: what is told of a cluster, and of an installation that does not work.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as KubeNamespace};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tests::cluster::{Etcd, create};
use tests::{Cluster, Namespace, World, tools};

tests::tests! {
    a_cluster_is_looked_at_before_anything_is_installed,
    who_may_do_little_is_told_what_was_not_looked_at,
    what_does_not_work_is_told_with_what_to_do,
    an_api_server_that_is_not_there_is_the_only_finding,
}

/// The labels of what the chart installs.
fn labels() -> Value {
    json!({"app.kubernetes.io/name": "remora", "app.kubernetes.io/component": "hub"})
}

fn check(kubeconfig: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(tools::own("remora", "sidecar"));
    command.env("KUBECONFIG", kubeconfig).arg("check").args(more);
    command.output().expect("remora")
}

/// Its findings, of which each is explained, and whether it ended well.
fn findings(kubeconfig: &Path, more: &[&str]) -> (Vec<Value>, bool) {
    let output = check(kubeconfig, &[&["-o", "json"], more].concat());
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let findings = report["findings"].as_array().expect("findings").clone();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/check.md"));
    let page = page.expect("the page");
    let headings: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    for finding in &findings {
        let name = finding["name"].as_str().expect("a name");
        assert!(headings.contains(name), "docs/check.md does not explain {name}");
        assert_eq!(finding["page"], format!("docs/check.md#{name}"));
        assert_eq!(finding["outcome"] == "ok", finding["next"].is_null(), "{finding}");
    }
    (findings, output.status.success())
}

/// How the check of a name ended, and what it says.
fn outcome<'f>(findings: &'f [Value], name: &str) -> (&'f str, &'f str) {
    let finding = findings.iter().find(|finding| finding["name"] == name);
    let finding = finding.unwrap_or_else(|| panic!("no {name} in {findings:#?}"));
    (finding["outcome"].as_str().expect("a word"), finding["says"].as_str().expect("a sentence"))
}

async fn a_cluster_is_looked_at_before_anything_is_installed(_world: World) {
    let cluster = Cluster::shared().await;
    cluster.nodes().await;
    let (findings, is_well) = findings(&cluster.administrator(), &["--pre"]);
    assert!(is_well, "{findings:#?}");
    let names: Vec<_> = findings.iter().map(|finding| finding["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["api", "version", "nodes", "cni", "dns", "namespaces", "permissions"]);
    for name in ["api", "version", "nodes", "cni", "permissions"] {
        assert_eq!(outcome(&findings, name).0, "ok", "{name}");
    }
    // There is none in this cluster.
    assert_eq!(outcome(&findings, "dns").0, "warning");
    let output = check(&cluster.administrator(), &["--pre"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("kubernetes\n  √ api          https://"), "{text}");
}

async fn who_may_do_little_is_told_what_was_not_looked_at(_world: World) {
    let cluster = Cluster::shared().await;
    let (findings, is_well) = findings(&cluster.user_with("nobody-much", json!([])).await, &["--pre"]);
    assert!(!is_well);
    let (failed, says) = outcome(&findings, "permissions");
    assert_eq!(failed, "failed");
    assert!(says.contains("clusterroles") && says.contains("deployments"), "{says}");
    let (warning, says) = outcome(&findings, "nodes");
    assert_eq!(warning, "warning");
    assert!(says.starts_with("not checked: nodes is forbidden"), "{says}");
}

async fn what_does_not_work_is_told_with_what_to_do(_world: World) {
    // Its own: what it makes is for the whole cluster.
    let cluster = Cluster::start("check", Etcd::New).await;
    let namespace = Namespace::new(cluster.clone()).await;
    let client = namespace.client.clone();
    let look = || findings(&cluster.administrator(), &[]);
    let (nothing, is_well) = look();
    assert!(!is_well);
    assert_eq!(outcome(&nothing, "hub"), ("failed", "no hub is installed"));
    assert_eq!(outcome(&nothing, "webhook").0, "warning");

    let hub = json!({
        "metadata": {"name": "remora-hub", "labels": labels()},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": labels()},
            "template": {
                "metadata": {"labels": labels()},
                "spec": {
                    "containers": [{"name": "hub", "image": "none"}],
                    "volumes": [{"name": "certificate", "secret": {"secretName": "none"}}],
                },
            },
        },
    });
    create::<Deployment>(&Api::namespaced(client.clone(), &namespace.name), hub).await;
    let hook = json!({
        "name": "inject.remora.dev", "clientConfig": {"url": "https://127.0.0.1:9/inject"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
        "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore",
    });
    let configurations = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let named = json!({"name": "remora-hub", "labels": labels()});
    create(&configurations, json!({"metadata": named, "webhooks": [hook]})).await;
    create::<ConfigMap>(
        &Api::namespaced(client.clone(), "kube-system"),
        json!({"metadata": {"name": "cilium-config"}, "data": {"bpf-lb-sock": "true"}}),
    )
    .await;
    let label = json!({"metadata": {"labels": {
        "remora.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "baseline",
    }}});
    let namespaces = Api::<KubeNamespace>::all(client);
    let patch = Patch::Merge(&label);
    namespaces.patch(&namespace.name, &PatchParams::default(), &patch).await.expect("it is labelled");

    let (findings, is_well) = look();
    assert!(!is_well);
    let name = &namespace.name;
    assert_eq!(
        outcome(&findings, "hub"),
        ("failed", &*format!("0 of 2 replicas of {name}/remora-hub are available"))
    );
    assert_eq!(outcome(&findings, "certificate"), ("warning", "not checked: there is none"));
    let (failed, says) = outcome(&findings, "webhook");
    assert!(failed == "failed" && says.contains("caBundle is empty"), "{says}");
    let (failed, says) = outcome(&findings, "injection");
    assert!(failed == "failed" && says.starts_with(&format!("a Pod in {name} gets no sidecar")), "{says}");
    let (failed, says) = outcome(&findings, "cni");
    assert!(failed == "failed" && says.starts_with("Cilium translates"), "{says}");
    let (warning, says) = outcome(&findings, "namespaces");
    assert!(warning == "warning" && says.contains(name.as_str()), "{says}");
    let output = check(&cluster.administrator(), &[]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(error.contains("checks failed"), "{error}");
}

async fn an_api_server_that_is_not_there_is_the_only_finding(world: World) {
    let kubeconfig = world.own_folder().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "users": [{"name": "a", "user": {}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).expect("a file");
    let (findings, is_well) = findings(&kubeconfig, &[]);
    assert!(!is_well);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(outcome(&findings, "api").0, "failed");
}
