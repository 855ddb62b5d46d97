use serde_json::json;

use super::*;

fn settings() -> Settings {
    Settings {
        image: "remora:1".into(),
        services: vec!["10.96.0.0/12".into()],
        source: "kube".into(),
        feed_ca: None,
        feed_audience: "remora".into(),
    }
}

fn inject(text: &str) -> (String, Vec<String>) {
    let (changed, report) = change(text, &Way::Inject(settings()));
    (changed, report.iter().map(ToString::to_string).collect())
}

fn uninject(text: &str) -> String {
    change(text, &Way::Uninject).0
}

fn pods(text: &str) -> Vec<Value> {
    let template = |value: Value| match value["kind"].as_str() {
        Some("Pod") => value,
        _ => value["spec"]["template"].clone(),
    };
    documents(text).filter_map(value).filter(|value| !value.is_null()).map(template).collect()
}

const DEPLOYMENT: &str = "\
# the shop's own
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}   # where it is
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      # the one that counts
      - name: web
        image: nginx   # any
        args: ['--port', \"80\"]
";

#[test]
fn a_template_gets_two_containers_in_front_and_keeps_every_byte_of_its_own() {
    let (changed, report) = inject(DEPLOYMENT);
    assert_eq!(report, ["Deployment shop/web: injected"]);
    let pod = &pods(&changed)[0];
    let names: Vec<_> = items(&pod["spec"]["initContainers"]).map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["remora-capture", "remora"]);
    assert_eq!(pod["metadata"]["annotations"][INJECTED], env!("CARGO_PKG_VERSION"));
    let mut added: Vec<&str> = changed.lines().collect();
    for line in DEPLOYMENT.lines() {
        let at = added.iter().position(|added| *added == line);
        added.remove(at.unwrap_or_else(|| panic!("{line:?} is gone from\n{changed}")));
    }
    assert!(added.len() > 40, "{added:?}");
    assert_eq!(uninject(&changed), DEPLOYMENT);
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[test]
fn the_containers_are_what_the_design_wants() {
    let (changed, _) = inject(DEPLOYMENT);
    let containers = &pods(&changed)[0]["spec"]["initContainers"];
    assert_eq!(
        containers[0],
        json!({
            "name": "remora-capture",
            "image": "remora:1",
            "args": ["capture", "up", "--services=10.96.0.0/12"],
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
                "runAsGroup": 0, "runAsNonRoot": false, "runAsUser": 0,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        })
    );
    let sidecar = &containers[1];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["args"], json!(["sidecar", "--source=kube", "--capture"]));
    assert_eq!(sidecar["securityContext"]["capabilities"], json!({"add": ["NET_RAW"], "drop": ["ALL"]}));
    assert_eq!(sidecar["securityContext"]["runAsUser"], 64102);
    assert_eq!(sidecar["startupProbe"]["httpGet"], json!({"path": "/livez", "port": 64104}));
    assert_eq!(sidecar["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": 64104}));
}

/// Of a hub on another machine.
fn by_hub() -> Settings {
    let feed_ca = Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned());
    Settings { source: "feed:https://remora.remora.svc:64105".into(), feed_ca, ..settings() }
}

#[test]
fn a_sidecar_that_a_hub_feeds_gets_a_token_and_whom_to_trust() {
    let way = Way::Inject(by_hub());
    let mine = "kind: Pod\nmetadata: {name: a}\nspec:\n  volumes:\n  - name: mine\n    emptyDir: {}\n  containers:\n  - name: a\n";
    for text in FORMS.iter().chain(&[DEPLOYMENT, mine]) {
        let (changed, report) = change(text, &way);
        assert!(report.iter().all(|line| line.to_string().ends_with(": injected")), "{report:?} of\n{text}");
        assert_eq!(uninject(&changed), *text, "from\n{changed}");
        assert_eq!(change(&changed, &way).0, changed);
    }
    let (changed, _) = change(DEPLOYMENT, &way);
    let pod = &pods(&changed)[0];
    let sidecar = &pod["spec"]["initContainers"][1];
    assert_eq!(sidecar["env"][2], json!({"name": "REMORA_FEED_CA", "value": by_hub().feed_ca}));
    assert_eq!(
        sidecar["env"][3],
        json!({"name": "REMORA_FEED_TOKEN", "value": "/var/run/secrets/remora/token"})
    );
    assert_eq!(
        sidecar["volumeMounts"],
        json!([{"name": "remora-token", "mountPath": "/var/run/secrets/remora", "readOnly": true}])
    );
    let token = json!({"audience": "remora", "expirationSeconds": 3600, "path": "token"});
    assert_eq!(
        pod["spec"]["volumes"][0],
        json!({"name": "remora-token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    );
    let taken =
        "kind: Pod\nmetadata: {name: a}\nspec: {volumes: [{name: remora-token}], containers: [{name: a}]}\n";
    let (changed, report) = change(taken, &way);
    assert_eq!(changed, taken);
    assert!(report[0].is_mistake() && report[0].to_string().contains("a volume named"), "{report:?}");
}

#[test]
fn injecting_twice_changes_nothing_more() {
    let (once, _) = inject(DEPLOYMENT);
    let (twice, report) = inject(&once);
    assert_eq!(twice, once);
    assert_eq!(report, ["Deployment shop/web: skipped: it has a sidecar already"]);
    assert_eq!(change(DEPLOYMENT, &Way::Uninject).1[0].to_string(), "Deployment shop/web: had no sidecar");
}

/// Each with a Pod that can be injected: the ways in which people write them.
const FORMS: &[&str] = &[
    "kind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: a\n",
    "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    b: c\nspec:\n  initContainers:\n    - name: first\n      image: x\n\n    - name: second\n  containers:\n  - name: a",
    "{\"kind\": \"Pod\", \"metadata\": {\"name\": \"a\"}, \"spec\": {\"containers\": [{\"name\": \"a\"}]}}",
    "{\n  \"kind\": \"Pod\",\n  \"metadata\": {\n    \"name\": \"a\",\n    \"annotations\": {\n      \"b\": \"c\"\n    }\n  },\n  \"spec\": {\n    \"initContainers\": [\n      {\"name\": \"i\"}\n    ],\n    \"containers\": []\n  }\n}\n",
    "kind: Pod\nmetadata: {name: a, annotations: {b: c}}\nspec: {initContainers: [{name: i}], containers: [{name: a}]}\n",
    "kind: Job\nmetadata: {name: a}\nspec:\n  template:\n    spec:\n      containers:\n      -\n        # a\n        name: a\n      restartPolicy: Never\n",
    "kind: CronJob\nmetadata: {name: a}\nspec:\n  jobTemplate:\n    spec:\n      template:\n        metadata: {labels: {a: b}}\n        spec:\n          containers: [{name: a}]\n",
    "kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n  spec:\n    containers:\n    - name: a\n- spec:\n    containers:\n    - name: b\n  kind: Pod\n  metadata:\n    name: b\n- kind: Service\n  metadata: {name: s}\n",
    "kind: Pod\r\nmetadata:\r\n  name: a\r\nspec:\r\n  containers:\r\n  - name: a\r\n",
    "--- # one\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    text: |\n      a: b\n\n      - c\nspec:\n  initContainers:\n  # the first\n  - args: [\n      a ]\n    name: first\n  containers:\n  - name: a\n    command: [\"sh\", \"-c\", \"echo 'ä: ü'; sleep 1\"]\n...\n",
    "kind: Pod\nmetadata:\n  name: \"ä\"\nspec:\n  'containers':\n  - &a\n    name: a\n  - *a\n",
];

#[test]
fn every_form_is_edited_in_place_and_given_back_byte_for_byte() {
    for text in FORMS {
        let (changed, report) = inject(text);
        assert!(report.iter().all(|line| line.ends_with(": injected")), "{report:?} of\n{text}");
        let injected = changed.matches("remora-capture").count();
        assert_eq!(injected, report.len(), "{changed}");
        assert_eq!(uninject(&changed), *text, "from\n{changed}");
        assert_eq!(inject(&changed).0, changed);
    }
}

#[test]
fn what_is_left_empty_by_its_owner_is_filled() {
    for text in [
        "kind: Pod\nmetadata:\n  annotations:\nspec:\n  initContainers:\n  containers: []\n",
        "kind: Pod\nmetadata: {annotations: ~}\nspec: {initContainers: null, containers: []}\n",
        "kind: Pod\nmetadata: {annotations: {}}\nspec: {initContainers: [], containers: []}\n",
        "kind: Pod\nmetadata:\n  annotations: # none\nspec:\n  initContainers:   \n  containers: []\n",
    ] {
        let (changed, report) = inject(text);
        assert_eq!(report, ["Pod without a name: injected"], "{text}");
        let bare = pods(&uninject(&changed));
        assert_eq!(bare, [json!({"kind": "Pod", "spec": {"containers": []}})], "{changed}");
    }
}

#[test]
fn everything_else_passes_through_byte_for_byte() {
    let other = "# a comment alone\n---\n\nkind: ConfigMap   # odd  spacing\ndata:\n  pod: |\n    kind: Pod\n    spec: {}\n---\n";
    assert_eq!(inject(other), (other.to_owned(), Vec::new()));
    let mixed = format!("{other}{DEPLOYMENT}---\n{{not yaml\n---\nkind: Service\n");
    let (changed, report) = inject(&mixed);
    assert!(changed.starts_with(other) && changed.ends_with("---\n{not yaml\n---\nkind: Service\n"));
    assert_eq!(
        report,
        [
            "Deployment shop/web: injected",
            "document 4: not changed: is neither YAML nor JSON; it is passed on as it is"
        ]
    );
    assert_eq!(uninject(&changed), mixed);
    assert_eq!(inject(""), (String::new(), Vec::new()));
}

#[test]
fn an_alias_is_not_edited_for_others_use_it_too() {
    let text =
        "kind: Deployment\nmetadata: {name: a}\nx: &pod {spec: {containers: []}}\nspec:\n  template: *pod\n";
    let (changed, report) = inject(text);
    assert_eq!(changed, text);
    assert!(report[0].starts_with("Deployment a: not changed: its template at .spec.template uses aliases"));
}

#[test]
fn a_pod_is_left_alone_for_a_reason() {
    let pod = |more: &str| {
        format!("kind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: a}}], {more}}}\n")
    };
    let annotated = |annotation: &str| {
        format!(
            "kind: Pod\nmetadata: {{name: a, annotations: {{{annotation}}}}}\nspec: {{containers: [{{name: a}}]}}\n"
        )
    };
    for (text, reason) in [
        (pod("hostNetwork: true"), "the network of its node"),
        (pod("os: {name: windows}"), "Windows"),
        (
            pod("initContainers: [{name: istio-proxy}]"),
            "Istio takes its connections already; use Remora's filter",
        ),
        (pod("initContainers: [{name: remora}]"), "a container named \"remora\", which is not ours"),
        (pod("securityContext: {runAsUser: 64102}"), "container \"a\" runs as user 64102"),
        (annotated("remora.dev/inject: disabled"), "it has remora.dev/inject: disabled"),
        (annotated("remora.dev/inject: 'no'"), "\"no\" is neither enabled nor disabled"),
        (annotated("ambient.istio.io/redirection: enabled"), "Istio's ambient mode takes"),
        (annotated("remora.dev/capture: disabled"), "there is nothing else to serve; name listeners"),
        (annotated("remora.dev/listen: '80=web:80'"), "an annotation is wrong: --listen 80=web:80"),
        (annotated("remora.dev/skip-ports: '0'"), "--skip-ports \"0\" is not a port"),
        (annotated("remora.dev/log-level: loud,"), "--log-level"),
        (annotated("remora.dev/memory-limit: much"), "\"much\" is no quantity"),
    ] {
        let (changed, report) = inject(&text);
        assert_eq!(changed, text);
        assert!(report[0].starts_with("Pod a: skipped: ") && report[0].contains(reason), "{report:?}");
    }
}

#[test]
fn annotations_say_how() {
    let text = "\
kind: Pod
metadata:
  name: a
  annotations:
    remora.dev/listen: '127.0.0.1:8080=shop/web:80, [::1]:8080=web:http'
    remora.dev/skip-ports: 9443,20000-20100
    remora.dev/skip-subnets: 10.96.1.0/24
    remora.dev/log-level: debug
    remora.dev/cpu-request: 50m
    remora.dev/memory-limit: 64Mi
spec: {containers: [{name: a}]}
";
    let (changed, _) = inject(text);
    let containers = &pods(&changed)[0]["spec"]["initContainers"];
    assert_eq!(
        containers[0]["args"],
        json!([
            "capture",
            "up",
            "--services=10.96.0.0/12",
            "--skip-ports=9443,20000-20100",
            "--skip-subnets=10.96.1.0/24"
        ])
    );
    assert_eq!(
        containers[1]["args"],
        json!([
            "sidecar",
            "--source=kube",
            "--capture",
            "--listen=127.0.0.1:8080=shop/web:80",
            "--listen=[::1]:8080=web:http",
            "--log-level=debug"
        ])
    );
    assert_eq!(containers[1]["resources"], json!({"requests": {"cpu": "50m"}, "limits": {"memory": "64Mi"}}));
}

#[test]
fn a_namespace_that_forbids_capture_gets_listeners_only() {
    let strict = "kind: Namespace\nmetadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: restricted}}\n---\n";
    let (_, report) = inject(&format!("{strict}{DEPLOYMENT}"));
    assert!(
        report[0]
            .contains("skipped: its namespace enforces Pod Security \"restricted\", which forbids capture")
    );
    let listening = DEPLOYMENT.replace(
        "      labels:\n",
        "      annotations: {remora.dev/listen: '127.0.0.1:8080=shop/web:80'}\n      labels:\n",
    );
    let (changed, report) = inject(&format!("{strict}{listening}"));
    assert!(report[0].starts_with("Deployment shop/web: injected without capture: its namespace enforces"));
    let containers =
        &value(documents(&changed).last().unwrap()).unwrap()["spec"]["template"]["spec"]["initContainers"];
    assert_eq!(containers.as_array().unwrap().len(), 1);
    assert_eq!(containers[0]["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
}

#[test]
fn quantities_are_those_of_kubernetes() {
    for text in ["100m", "0.5", "64Mi", "1e3", "1E-3", "2G", ".5"] {
        assert!(container::is_quantity(text), "{text}");
    }
    for text in ["", "m", "1.2.3", "10 Mi", "-1", "1mi", "1e", "Mi64", "1e999", "."] {
        assert!(!container::is_quantity(text), "{text}");
    }
}

#[test]
fn whatever_is_cut_or_changed_it_neither_panics_nor_lies() {
    for text in FORMS.iter().chain([&DEPLOYMENT]) {
        let (injected, _) = inject(text);
        // Every second place of what people write, some of what we add.
        for (text, stride) in [(*text, 2), (&*injected, 127)] {
            for at in (0..text.len()).step_by(stride).filter(|at| text.is_char_boundary(*at)) {
                let spoiled = [text[..at].to_owned(), format!("{}\t{}", &text[..at], &text[at..])];
                for spoiled in spoiled {
                    let (changed, report) = inject(&spoiled);
                    let done = report.iter().filter(|line| line.contains(": injected")).count();
                    assert!(done > 0 || changed == spoiled, "{spoiled:?}");
                    drop(uninject(&changed));
                }
            }
        }
    }
}
