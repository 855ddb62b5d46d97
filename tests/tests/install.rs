//! From nothing to an installed Remora: the chart, and the file that is made from it, as helm, kubectl and a real API server
//! take them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tests::cluster::Extent;
use tests::{Cluster, World, tools};

tests::tests! {
    install_yaml_is_what_the_chart_gives,
    helm_finds_nothing_wrong_with_the_chart,
    values_that_cannot_be_are_refused_by_name,
    the_chart_gives_what_its_values_ask_for,
    the_api_server_takes_every_object_and_knows_every_field,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What a command says, or how it fails.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.current_dir(root()).stdin(Stdio::null()).output().expect("it starts");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

/// helm, with no settings of anybody's.
fn helm(world: &World, arguments: &[&str]) -> Result<String, String> {
    output(Command::new(tools::built("helm")).args(arguments).env("HOME", world.own_folder()))
}

/// The chart as it is installed in a namespace with these values, each as `--set-json` takes it.
fn template(world: &World, namespace: &str, values: &[&str]) -> Result<String, String> {
    let mut arguments = vec!["template", "remora", "chart", "--namespace", namespace];
    values.iter().for_each(|value| arguments.extend(["--set-json", value]));
    helm(world, &arguments)
}

fn objects(manifest: &str) -> Vec<Value> {
    let documents = serde_saphyr::from_multiple::<Value>(manifest).expect("YAML");
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|object| object["kind"] == kind).collect();
    let [only] = found[..] else { panic!("{} objects are {kind}", found.len()) };
    only
}

async fn install_yaml_is_what_the_chart_gives(world: World) {
    let given = output(Command::new("chart/install").env("HELM_CONFIG_HOME", world.own_folder()));
    let committed = std::fs::read_to_string(root().join("install.yaml")).expect("install.yaml");
    assert!(
        given.expect("chart/install") == committed,
        "install.yaml is older than the chart: make install.yaml"
    );
    let objects = objects(&committed);
    assert_eq!(objects[0]["kind"], "Namespace", "what is in it can be made only after it");
    let program = env!("CARGO_PKG_VERSION");
    let image = &only(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, &format!("remora:{program}"), "the image that `make image` builds");
}

async fn helm_finds_nothing_wrong_with_the_chart(world: World) {
    let said = helm(&world, &["lint", "--strict", "chart"]).expect("nothing is wrong");
    assert!(said.contains("0 chart(s) failed"), "{said}");
}

async fn values_that_cannot_be_are_refused_by_name(world: World) {
    for (value, says) in [
        ("replicas=0", "/replicas"),
        ("replicas=\"two\"", "/replicas"),
        ("services=[\"10.96.0.0\"]", "/services/0"),
        ("image.repository=\"\"", "/image/repository"),
        ("image.pullPolicy=\"Sometimes\"", "/image/pullPolicy"),
        ("logFormat=\"xml\"", "/logFormat"),
        ("webhook.timeoutSeconds=60", "/webhook/timeoutSeconds"),
        ("webhook.failurePolicy=\"Fail\"", "failurePolicy"),
        ("podMonitor.interval=\"often\"", "/podMonitor/interval"),
        ("replica=2", "'replica'"),
    ] {
        let refused = template(&world, "remora", &[value]).expect_err(value);
        assert!(refused.contains(says), "{value}: {refused}");
    }
    let two = ["certificate.secretName=\"mine\"", "certificate.certManager.enabled=true"];
    let refused = template(&world, "remora", &two).expect_err("two makers");
    assert!(refused.contains("two makers of one certificate"), "{refused}");
}

async fn the_chart_gives_what_its_values_ask_for(world: World) {
    let given = |values: &[&str]| objects(&template(&world, "place", values).expect("it is rendered"));
    let kinds = |objects: &[Value]| -> BTreeSet<String> {
        objects.iter().map(|object| object["kind"].as_str().expect("a kind").to_owned()).collect()
    };
    let standard = given(&[]);
    let optional = ["Namespace", "Certificate", "Issuer", "PodMonitor"];
    assert!(optional.iter().all(|kind| !kinds(&standard).contains(*kind)), "{:?}", kinds(&standard));
    let hooks = &only(&standard, "MutatingWebhookConfiguration")["webhooks"];
    for hook in hooks.as_array().expect("webhooks") {
        assert_eq!(hook["failurePolicy"], "Ignore");
        let left_alone = &hook["namespaceSelector"]["matchExpressions"][0];
        assert_eq!(
            (&left_alone["key"], &left_alone["operator"]),
            (&"kubernetes.io/metadata.name".into(), &"NotIn".into())
        );
        let left_alone = left_alone["values"].as_array().expect("names");
        assert!(
            ["kube-system", "place"].iter().all(|name| left_alone.contains(&(*name).into())),
            "{left_alone:?}"
        );
    }

    let alone = given(&["replicas=1", "networkPolicy.enabled=false"]);
    let gone: BTreeSet<_> = kinds(&standard).difference(&kinds(&alone)).cloned().collect();
    assert_eq!(gone, BTreeSet::from(["NetworkPolicy".to_owned(), "PodDisruptionBudget".to_owned()]));

    let monitored = given(&["podMonitor={\"enabled\":true,\"labels\":{\"release\":\"mine\"}}"]);
    assert_eq!(only(&monitored, "PodMonitor")["metadata"]["labels"]["release"], "mine");

    // Applied again, it leaves what the hubs wrote.
    let secret = only(&standard, "Secret");
    assert!(secret["data"].is_null() && secret["stringData"].is_null(), "{secret}");
    // Who does not make the certificate need not write Secrets.
    for values in [&["certificate.secretName=\"mine\""][..], &["certificate.certManager.enabled=true"]] {
        let given = given(values);
        assert!(["Role", "Secret"].iter().all(|kind| !kinds(&given).contains(*kind)), "{:?}", kinds(&given));
        let pod = &only(&given, "Deployment")["spec"]["template"]["spec"];
        assert!(
            pod["containers"][0]["args"]
                .as_array()
                .expect("args")
                .contains(&"--certificate=/certificate".into())
        );
        let made: Vec<_> = given.iter().filter(|object| object["kind"] == "Certificate").collect();
        let secret = &pod["volumes"][0]["secret"]["secretName"];
        let is_made = made.iter().any(|certificate| &certificate["spec"]["secretName"] == secret);
        assert!(is_made || secret == "mine", "{secret} is nobody's");
    }
    let issuer = "certificate.certManager={\"enabled\":true,\"issuerRef\":{\"name\":\"mine\",\"kind\":\"ClusterIssuer\"}}";
    let issued = given(&[issuer]);
    assert_eq!(only(&issued, "Certificate")["spec"]["issuerRef"]["name"], "mine");
    assert!(!kinds(&issued).contains("Issuer"));
}

async fn the_api_server_takes_every_object_and_knows_every_field(world: World) {
    let cluster = Cluster::shared_of(Extent::Deployments).await;
    let apply = |manifest: &str, dry: &str| {
        let mut command = Command::new(tools::built("kubectl"));
        command.args(["apply", "--server-side", "--validate=strict", dry, "-f", "-"]);
        command.env("KUBECONFIG", cluster.administrator()).env("HOME", world.own_folder());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("kubectl");
        child.stdin.take().expect("its input").write_all(manifest.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("its end");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(!said.contains("Warning"), "{said}");
        if output.status.success() { Ok(said) } else { Err(said) }
    };
    // Nothing can be tried in a namespace that is not there.
    let committed = std::fs::read_to_string(root().join("install.yaml")).expect("install.yaml");
    let namespace = objects(&committed).remove(0);
    apply(&namespace.to_string(), "--dry-run=none").expect("a namespace");
    let much = [
        "services=[\"10.96.0.0/12\",\"fd00:96::/112\"]",
        "imagePullSecrets=[{\"name\":\"mine\"}]",
        "nodeSelector={\"a\":\"b\"}",
        "tolerations=[{\"key\":\"a\",\"operator\":\"Exists\"}]",
        "affinity={\"podAntiAffinity\":{\"preferredDuringSchedulingIgnoredDuringExecution\":[{\"weight\":1,\
         \"podAffinityTerm\":{\"topologyKey\":\"a\",\"labelSelector\":{\"matchLabels\":{\"a\":\"b\"}}}}]}}",
        "priorityClassName=\"system-cluster-critical\"",
        "podAnnotations={\"a\":\"b\"}",
        "podLabels={\"a\":\"b\"}",
        "webhook.excludedNamespaces=[]",
        "certificate.secretName=\"mine\"",
    ];
    for manifest in [
        committed,
        template(&world, "remora", &much).expect("it is rendered"),
        template(&world, "remora", &["replicas=1", "logFormat=\"text\""]).expect("it is rendered"),
    ] {
        let said = apply(&manifest, "--dry-run=server").unwrap_or_else(|error| panic!("{error}\n{manifest}"));
        assert_eq!(said.lines().count(), objects(&manifest).len(), "{said}");
    }
    let broken = namespace.to_string().replace("\"labels\"", "\"lables\"");
    assert!(apply(&broken, "--dry-run=server").expect_err("no such field").contains("lables"));
}
