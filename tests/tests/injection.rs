//! From a manifest to a balanced Pod: what `remora inject` writes is taken by the real API server, and its containers run
//! exactly as it says.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Pod as KubePod, Secret, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tests::cluster::{SERVICES, create};
use tests::kubelet::Sidecars;
use tests::{Client, Cluster, Host, Namespace, Program, SOON, Way, World, ask, tools, wait_until};

tests::tests! {
    an_injected_pod_is_accepted_and_its_connections_are_balanced,
    every_kind_with_pods_is_accepted,
    where_capture_is_forbidden_a_pod_is_injected_without_it_and_starts,
    the_webhook_injects_pods_as_they_are_made_and_a_dead_one_stops_nobody,
    a_certificate_is_replaced_without_a_gap,
    hubs_make_a_certificate_of_their_own_and_have_it_trusted,
    a_hub_is_read_by_tls_and_with_a_token_for_it_only,
    who_makes_a_pod_without_a_sidecar_is_told_why,
}

/// Where hubs serve their feed.
const FEED: u16 = 64105;

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
        // The plugin hears of the label by a watch of its own.
        let pods: Api<KubePod> = Api::namespaced(client.namespace.client.clone(), name);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let manifest = inject(APP).0;
        wait_until(SOON, &format!("capture is forbidden by {level}"), async || {
            match pods.create(&dry, &pod(&manifest)).await.map_err(|error| error.to_string()) {
                Err(refused) if refused.contains(&format!("violates PodSecurity \"{level}:")) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
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
    wait_until(SOON, "the listener serves", async || match client.try_once(listener).await.by() {
        Ok("web-0") => Ok(()),
        other => Err(format!("{other:?}; {}", sidecars.only().program.state())),
    })
    .await;
}

/// A hub that answers the API server, registered there for one namespace.
struct Hub {
    host: Host,
    program: Program,
    certificate: PathBuf,
    configurations: Api<MutatingWebhookConfiguration>,
    name: String,
}

impl Hub {
    /// One that shows what is in a folder, once the API server asks it.
    async fn start(world: &World, namespace: &Namespace) -> Hub {
        let host = Host::new(world, "hub");
        let certificate = world.own_folder().join("certificate");
        std::fs::create_dir_all(&certificate).expect("a folder");
        let bundle = put_certificate(&certificate, &host);
        let kubeconfig = hub_user(namespace, json!([])).await;
        let shown = certificate.to_str().expect("UTF-8");
        let services = SERVICES.join(",");
        let more = ["--certificate", shown, "--services", &services];
        let program = hub_program(world, &host, &kubeconfig, &more);
        let configurations = registered(namespace, &host, json!({"caBundle": ByteString(bundle)})).await;
        let hub = Hub { host, program, certificate, configurations, name: hub_name(namespace) };
        wait_until(SOON, "the API server asks", async || match hub.injects(namespace, APP).await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}; {}", hub.program.state())),
        })
        .await;
        hub
    }

    /// Whether a Pod, made for a try, comes back with a sidecar.
    async fn injects(&self, namespace: &Namespace, manifest: &str) -> Result<bool, String> {
        let made = self.tries(namespace, manifest).await?;
        let containers = made["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        Ok(containers.iter().filter(|container| container["name"] == "remora").count() == 1)
    }

    /// What comes back of a Pod that is made for a try.
    async fn tries(&self, namespace: &Namespace, manifest: &str) -> Result<Value, String> {
        let pods: Api<KubePod> = Api::namespaced(namespace.client.clone(), &namespace.name);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let made = pods.create(&dry, &pod(manifest)).await.map_err(|error| error.to_string())?;
        Ok(serde_json::to_value(made).expect("JSON"))
    }

    /// Has the API server trust what `bundle` has, and returns when it does: it hears of a change by a watch, and of this
    /// one together with who is left alone from here on, Pods with the label `without: WORD`.
    async fn trust(&self, namespace: &Namespace, bundle: Vec<u8>, word: &str) {
        let without =
            json!({"matchExpressions": [{"key": "without", "operator": "NotIn", "values": [word]}]});
        let patch = json!([
            {"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": ByteString(bundle)},
            {"op": "replace", "path": "/webhooks/0/objectSelector", "value": without},
        ]);
        let patch = Patch::<()>::Json(serde_json::from_value(patch).expect("a patch"));
        self.configurations.patch(&self.name, &PatchParams::default(), &patch).await.expect("it is changed");
        let labelled = APP.replace("{name: app}", &format!("{{name: app, labels: {{without: {word}}}}}"));
        wait_until(SOON, &format!("the API server knows of {word}"), async || {
            match self.injects(namespace, &labelled).await {
                Ok(false) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

fn hub_name(namespace: &Namespace) -> String {
    format!("hub-{}", namespace.name)
}

/// The kubeconfig of a user that may do what hubs need, and `more`.
async fn hub_user(namespace: &Namespace, more: Value) -> PathBuf {
    namespace.cluster.user_with(&hub_name(namespace), hub_rules(&more)).await
}

fn hub_rules(more: &Value) -> Value {
    let reads = ["get", "list", "watch"];
    let mut rules = json!([
        {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": reads},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": reads},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    ]);
    rules.as_array_mut().expect("rules").extend(more.as_array().expect("rules").iter().cloned());
    rules
}

fn hub_program(world: &World, host: &Host, kubeconfig: &Path, more: &[&str]) -> Program {
    let mut command = host.command(tools::own("remora", "sidecar"));
    command.env("KUBECONFIG", kubeconfig).args(["hub", "--source", "kube"]);
    command.args(["--feed", &SocketAddr::new(host.ip4().into(), FEED).to_string()]);
    command.args(["--webhook", &hub_address(host).to_string(), "--health", &health_of(host).to_string()]);
    command.args(more);
    Program::start(world, host.name(), command)
}

fn hub_address(host: &Host) -> SocketAddr {
    (host.ip4(), 8443).into()
}

fn health_of(host: &Host) -> SocketAddr {
    (host.ip4(), 64104).into()
}

/// Has the API server ask at a host about the Pods of a namespace; `client_config` says more of how.
async fn registered(
    namespace: &Namespace,
    host: &Host,
    client_config: Value,
) -> Api<MutatingWebhookConfiguration> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(namespace.client.clone());
    let mut hook = json!({
        "name": "inject.remora.dev",
        "clientConfig": client_config,
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
        "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore",
    });
    hook["clientConfig"]["url"] = format!("https://{}/inject", hub_address(host)).into();
    create(&configurations, json!({"metadata": {"name": hub_name(namespace)}, "webhooks": [hook]})).await;
    configurations
}

/// Writes a new certificate for a host, as a Secret is renewed: both files at one moment. What to trust, PEM.
fn put_certificate(folder: &Path, host: &Host) -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let parameters = CertificateParams::new(vec![host.ip4().to_string()]).expect("a name");
    let certificate = parameters.self_signed(&key).expect("a certificate").pem();
    for (name, text) in [("tls.crt", &certificate), ("tls.key", &key.serialize_pem())] {
        std::fs::write(folder.join(name), text).expect("a file");
    }
    certificate.into_bytes()
}

async fn the_webhook_injects_pods_as_they_are_made_and_a_dead_one_stops_nobody(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let hub = Hub::start(&world, &namespace).await;
    let (by_hand, _) = inject(APP);
    let made = APP.replace("name: app}", "name: made}");
    let by_webhook = created(&namespace, &made).await.expect("it is made");
    let expected = serde_json::to_value(pod(&by_hand)).expect("JSON");
    // The API server adds its defaults, to either in the same way.
    let same = created(&namespace, &by_hand.replace("name: app}", "name: same}")).await.expect("it is made");
    assert_eq!(by_webhook["spec"]["initContainers"], same["spec"]["initContainers"]);
    assert_eq!(by_webhook["metadata"]["annotations"], expected["metadata"]["annotations"]);

    let out = APP.replace("{name: app}", "{name: out, labels: {remora.dev/inject: disabled}}");
    assert_eq!(hub.injects(&namespace, &out).await, Ok(false), "it does not want one");
    let wrong = APP.replace("{name: app}", "{name: wrong, annotations: {remora.dev/listen: nowhere}}");
    assert_eq!(hub.injects(&namespace, &wrong).await, Ok(false), "a mistake stops nobody");

    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    let namespaces: Api<KubeNamespace> = Api::all(namespace.client.clone());
    namespaces
        .patch(&namespace.name, &PatchParams::default(), &Patch::Merge(labels))
        .await
        .expect("it is labelled");
    wait_until(SOON, "it knows what the namespace forbids", async || {
        match hub.injects(&namespace, APP).await {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let listening = APP.replace(
        "{name: app}",
        "{name: listening, annotations: {remora.dev/listen: '127.0.0.1:8081=a/b:80'}}",
    );
    assert_eq!(hub.injects(&namespace, &listening).await, Ok(true), "without capture");

    hub.program.kill();
    assert_eq!(hub.injects(&namespace, &listening).await, Ok(false), "a Pod is made all the same");
}

async fn a_certificate_is_replaced_without_a_gap(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let hub = Hub::start(&world, &namespace).await;
    let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).expect("a file");
    let old = read(&hub.certificate, "tls.crt");
    let next = world.own_folder().join("next");
    std::fs::create_dir_all(&next).expect("a folder");
    let new = put_certificate(&next, &hub.host);
    let all_are_injected = async |what: &str| {
        for _ in 0..20 {
            assert_eq!(hub.injects(&namespace, APP).await, Ok(true), "{what}: {}", hub.program.state());
        }
    };
    hub.trust(&namespace, [old, new.clone()].concat(), "both").await;
    all_are_injected("both are trusted").await;
    // In the worst order: for a while, the files do not fit.
    std::fs::write(hub.certificate.join("tls.crt"), read(&next, "tls.crt")).expect("a file");
    wait_until(SOON, "the hub sees half of it", async || {
        all_are_injected("half is there").await;
        let log = hub.program.state();
        if log.contains("the last one that worked is used on") { Ok(()) } else { Err(log) }
    })
    .await;
    std::fs::write(hub.certificate.join("tls.key"), read(&next, "tls.key")).expect("a file");
    wait_until(SOON, "the hub has the new one", async || {
        all_are_injected("all is there").await;
        let log = hub.program.state();
        if log.contains("there is a new certificate") { Ok(()) } else { Err(log) }
    })
    .await;
    hub.trust(&namespace, new, "new").await;
    all_are_injected("only the new one is trusted").await;
}

async fn hubs_make_a_certificate_of_their_own_and_have_it_trusted(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let name = hub_name(&namespace);
    let keeps = ["get", "list", "watch", "update"];
    let kubeconfig = hub_user(
        &namespace,
        json!([
            {"apiGroups": [""], "resources": ["secrets"], "verbs": keeps, "resourceNames": ["hub-tls"]},
            {"apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingwebhookconfigurations"],
             "verbs": keeps, "resourceNames": [name]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": ["list"]},
        ]),
    )
    .await;
    let secrets: Api<Secret> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let empty = json!({"metadata": {"name": "hub-tls"}, "type": "Opaque"});
    create(&secrets, empty.clone()).await;
    let hosts = ["hub", "other"].map(|name| Host::new(&world, name));
    let configurations = registered(&namespace, &hosts[0], json!({})).await;
    let place = format!("secret:{}/hub-tls", namespace.name);
    let start = |host: &Host| {
        let names = hosts.each_ref().map(|host| host.ip4().to_string()).join(",");
        let more = ["--certificate", &place, "--certificate-name", &names, "--webhook-configuration", &name];
        hub_program(&world, host, &kubeconfig, &more)
    };
    let [program, other] = hosts.each_ref().map(start);
    let [host, other_host] = hosts;
    let hub = Hub { host, program, certificate: PathBuf::new(), configurations, name };
    for (host, program) in [(&hub.host, &hub.program), (&other_host, &other)] {
        wait_until(SOON, "it is ready", async || match ask::get(health_of(host), "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", program.state())),
        })
        .await;
    }
    let injected = async |what: &str| {
        wait_until(SOON, what, async || match hub.injects(&namespace, APP).await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}; {}", hub.program.state())),
        })
        .await;
    };
    injected("the API server trusts it").await;
    let by_hand = serde_json::to_value(pod(&inject(APP).0)).expect("JSON");
    let arguments = |pod: &Value| pod["spec"]["initContainers"][0]["args"].clone();
    wait_until(SOON, "it has asked for the ranges of Services", async || {
        let made = hub.tries(&namespace, APP).await?;
        if arguments(&made) == arguments(&by_hand) { Ok(()) } else { Err(made["spec"].to_string()) }
    })
    .await;

    // Whoever applies the configuration again may take the authority away.
    let none = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let none = Patch::<()>::Json(serde_json::from_value(none).expect("a patch"));
    hub.configurations.patch(&hub.name, &PatchParams::default(), &none).await.expect("it is changed");
    let bundle = async || {
        let configuration = hub.configurations.get(&hub.name).await.expect("the configuration");
        let hooks = configuration.webhooks.expect("webhooks");
        let pem = hooks.first().and_then(|hook| hook.client_config.ca_bundle.clone()).map(|bundle| bundle.0);
        text(pem.unwrap_or_default()).matches("BEGIN").count()
    };
    wait_until(SOON, "it is trusted again", async || match bundle().await {
        1 => Ok(()),
        other => Err(format!("{other} authorities; {}", hub.program.state())),
    })
    .await;
    injected("it is asked again").await;

    // Another authority, as after a leak of its key: the old one is shown until the new one is trusted.
    secrets.delete("hub-tls", &DeleteParams::default()).await.expect("it is deleted");
    create(&secrets, empty).await;
    wait_until(SOON, "the new one is shown", async || {
        let answer = hub.injects(&namespace, APP).await;
        let log = hub.program.output();
        match log.matches("there is a new certificate").count() {
            1 => {
                assert_eq!(answer, Ok(true), "before that, the old one is: {log}");
                Err(hub.program.state())
            }
            _ => Ok(()),
        }
    })
    .await;
    injected("the API server trusts the new one").await;
    assert_eq!(bundle().await, 2, "both are trusted");
}

async fn a_hub_is_read_by_tls_and_with_a_token_for_it_only(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    namespace.service("web", json!({"ports": [{"port": 80}]})).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(namespace.client.clone(), &namespace.name);
    create(&accounts, json!({"metadata": {"name": "reader"}})).await;
    let keys = ["/openid/v1/jwks", "/.well-known/openid-configuration"];
    let asks = [
        json!({"nonResourceURLs": keys, "verbs": ["get"]}),
        json!({"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}),
    ];
    let host = Host::new(&world, "hub");
    let certificate = world.own_folder().join("certificate");
    std::fs::create_dir_all(&certificate).expect("a folder");
    let bundle = put_certificate(&certificate, &host);
    let authority = certificate.join("ca.crt");
    std::fs::write(&authority, &bundle).expect("a file");
    let stranger = world.own_folder().join("stranger");
    std::fs::create_dir_all(&stranger).expect("a folder");
    put_certificate(&stranger, &host);
    let file = |name: &str, text: &str| {
        let path = world.own_folder().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let right = file("right", &reader_token(&namespace, "remora").await);
    let other = file("other", &reader_token(&namespace, "somebody").await);
    let garbage = file("garbage", "a.b.c");
    let source = format!("feed:https://{}:{FEED}", host.ip4());
    let listen = format!("127.0.0.1:0={}/web:80", namespace.name);
    let reader = |number: u16, authority: &Path, token: Option<&Path>| {
        let health = SocketAddr::new(host.ip4().into(), 64120 + number);
        let mut command = host.command(tools::own("remora", "sidecar"));
        command.args(["sidecar", "--source", &source, "--listen", &listen, "--feed-ca"]).arg(authority);
        command.args(["--health", &health.to_string(), "--admin", "off"]);
        token.into_iter().for_each(|token| _ = command.arg("--feed-token").arg(token));
        (Program::start(&world, &format!("reader-{number}"), command), health)
    };
    let ready = async |(program, health): &(Program, SocketAddr)| {
        wait_until(SOON, "it knows the cluster", async || match ask::get(*health, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", program.state())),
        })
        .await;
    };
    // Judged by the cluster's keys, and where those are not to be had, by the API server.
    for (turn, asks) in asks.into_iter().enumerate() {
        let more = json!([asks]);
        let kubeconfig = match turn {
            0 => hub_user(&namespace, more).await,
            _ => {
                namespace.cluster.user_with(&format!("reviewing-{}", namespace.name), hub_rules(&more)).await
            }
        };
        let shown = certificate.to_str().expect("UTF-8");
        let hub = hub_program(&world, &host, &kubeconfig, &["--certificate", shown]);
        let refused = async |reason: &str| {
            let (_, page) = ask::get(health_of(&host), "/metrics").await?;
            let line = format!("remora_feed_refused_total{{reason=\"{reason}\"}} ");
            let count = page.lines().find_map(|text| text.strip_prefix(&line)?.parse::<u64>().ok());
            count.ok_or(page)
        };
        ready(&reader(0, &authority, Some(&right))).await;
        let audience = if turn == 0 { "audience" } else { "issuer" };
        for (number, token, reason, says) in [
            (
                1,
                Some(&other),
                audience,
                if turn == 0 { "another audience" } else { "not issued by this cluster" },
            ),
            (2, Some(&garbage), "malformed", "none of a ServiceAccount"),
            (3, None, "missing", "no token"),
        ] {
            let (program, health) = reader(number, &authority, token.map(PathBuf::as_path));
            wait_until(SOON, "it is told why", async || {
                let is_told = program.output().contains(says);
                let is_counted = refused(reason).await? > 0;
                if is_told && is_counted {
                    Ok(())
                } else {
                    Err(format!("{}; {}", program.state(), hub.state()))
                }
            })
            .await;
            let (status, _) = ask::get(health, "/readyz").await.expect("an answer");
            assert_eq!(status, 503, "it knows nothing of the cluster");
        }
        // Who is somebody else is told nothing, not even a token.
        let (program, _) = reader(4, &stranger.join("tls.crt"), Some(&right));
        wait_until(SOON, "it does not trust the hub", async || {
            let log = program.output();
            if log.contains("see that --feed-ca names who vouches") { Ok(()) } else { Err(log) }
        })
        .await;
    }
}

/// A token of the ServiceAccount `reader`, for an audience.
async fn reader_token(namespace: &Namespace, audience: &str) -> String {
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/reader/token", namespace.name);
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [audience]},
    });
    let request = http::Request::post(path).header("Content-Type", "application/json");
    let request = request.body(body.to_string().into_bytes()).expect("a request");
    let answer: Value = namespace.client.request(request).await.expect("a token");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

async fn who_makes_a_pod_without_a_sidecar_is_told_why(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let hub = Hub::start(&world, &namespace).await;
    let on_node = APP.replace("spec:\n", "spec:\n  hostNetwork: true\n");
    assert_eq!(hub.injects(&namespace, &on_node).await, Ok(false), "nobody is told of a dry run");
    let out = APP.replace("{name: app}", "{name: out, labels: {remora.dev/inject: disabled}}");
    created(&namespace, &out).await.expect("it is made, and nobody is told of what is wanted so");

    let sets = Api::<ReplicaSet>::namespaced(namespace.client.clone(), &namespace.name);
    let labels = json!({"app": "web"});
    let template =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": "none"}]}});
    let spec = json!({"selector": {"matchLabels": labels}, "template": template});
    let uid = create(&sets, json!({"metadata": {"name": "web"}, "spec": spec})).await.metadata.uid;
    let uid = uid.expect("a uid");
    let owned = format!(
        "{{generateName: web-, ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: {uid}, \
         controller: true}}]}}"
    );
    let owned = on_node.replace("{name: app}", &owned);
    let wrong =
        APP.replace("{name: app}", "{generateName: wrong-, annotations: {remora.dev/listen: nowhere}}");
    let told = async || {
        let events = Api::<Event>::namespaced(namespace.client.clone(), &namespace.name);
        let all = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let told = all.items.into_iter().filter(|event| event.reason.as_deref() == Some("InjectionSkipped"));
        Ok::<_, String>(told.collect::<Vec<_>>())
    };
    // The hub tells in the order of the Pods: with the last one told, all that came before are.
    for (manifest, kind, number) in [(&owned, "ReplicaSet", 3), (&wrong, "Pod", 1)] {
        wait_until(SOON, &format!("the {kind} is told"), async || {
            for _ in 0..number {
                // One that the API server did not ask about in time is made too.
                created(&namespace, manifest).await?;
            }
            let told = told().await?;
            let is_about = |event: &Event| {
                event.regarding.as_ref().is_some_and(|about| about.kind.as_deref() == Some(kind))
            };
            if told.iter().any(is_about) { Ok(()) } else { Err(format!("{told:?}; {}", hub.program.state())) }
        })
        .await;
    }
    let told = told().await.expect("Events");
    let [owner, bare] = &told[..] else { panic!("not one for each who makes Pods: {told:#?}") };
    let (owner, bare) = if owner.type_.as_deref() == Some("Normal") { (owner, bare) } else { (bare, owner) };
    let about = owner.regarding.clone().expect("an object");
    assert_eq!((about.name.as_deref(), about.uid), (Some("web"), Some(uid)));
    assert!(owner.note.as_ref().is_some_and(|note| note.contains("hostNetwork")), "{owner:?}");
    assert_eq!(bare.type_.as_deref(), Some("Warning"));
    assert!(
        bare.note
            .as_ref()
            .is_some_and(|note| note.contains("remora.dev/listen") || note.contains("--listen")),
        "{bare:?}"
    );
}
