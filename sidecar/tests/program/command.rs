//! What the commands print, and what they say when they cannot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::folder::Folder;
use crate::sidecar::{run, text};

/// The manifests of `make demo`.
fn demo() -> String {
    format!("manifests:{}", Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/manifests").display())
}

fn vectors() -> Vec<Value> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../watcher/tests/vectors/kube-proxy.jsonl");
    let path = std::env::var_os("REMORA_VECTORS").map_or(own, PathBuf::from);
    let lines = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The rows that `remora endpoints -o json` prints for one case, without what they carry beyond kube-proxy's.
fn rows(case: &Value, folder: &Folder) -> Vec<Value> {
    folder
        .put("case.json", &json!({"apiVersion": "v1", "kind": "List", "items": case["objects"]}).to_string());
    let place = [case["node"].as_str().unwrap(), case["zone"].as_str().unwrap()];
    let source = folder.source();
    let arguments = ["endpoints", "--source", &source, "--node", place[0], "--zone", place[1], "-o", "json"];
    let output = run(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    // kube-proxy has none of those that are found by name alone.
    rows.retain(|row| row["type"] != "ExternalName" && row["clusterIP"] != "None");
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        assert!(row.remove("type").is_some());
        let endpoints = row.remove("endpoints").unwrap();
        let listed: Vec<&Value> = endpoints
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["inCluster"] == true)
            .map(|e| &e["address"])
            .collect();
        assert_eq!(listed.len(), row["cluster"].as_array().unwrap().len(), "{row:?} {endpoints}");
    }
    rows
}

fn order(row: &Value) -> [String; 4] {
    ["service", "family", "port", "protocol"].map(|key| row[key].as_str().unwrap().to_owned())
}

#[test]
fn endpoints_prints_what_kube_proxy_makes_of_every_case() {
    let cases = vectors();
    assert!(cases.len() >= 300, "{} cases", cases.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let folder = Folder::new();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut expected: Vec<Value> = case["expect"].as_array().unwrap().clone();
                    expected.sort_by_key(order);
                    let printed = rows(case, &folder);
                    assert!(printed.is_sorted_by_key(order), "{printed:?}");
                    assert_eq!(printed, expected, "{case}");
                }
            });
        }
    });
}

#[test]
fn endpoints_shows_who_serves_and_why_others_do_not() {
    let output = run(&["endpoints", "--source", &demo(), "--node", "node-a", "--zone", "east"]);
    assert_eq!(
        text(&output.stdout),
        "\
shop/cache port 6379/TCP, IPv4 10.96.0.11: 1 of 2 endpoints serve here
  internal policy Local: on its cluster IP only endpoints of this node serve
  ADDRESS        STATE                       NODE    ZONE  POD
  10.1.1.7:6379  serves                      node-a  east  cache-1
  10.1.2.7:6379  left out: not-on-this-node  node-b  east  cache-2

shop/db port pg 5432/TCP, IPv4 headless: 1 of 2 endpoints serve here
  ADDRESS        STATE                NODE    ZONE  POD
  10.1.1.9:5432  serves               node-a  east  db-0
  10.1.3.9:5432  left out: not-ready  node-c  west  db-1

shop/mail is an external name: smtp.example.com

shop/search port grpc 9000/TCP, IPv4 10.96.0.12: 1 of 4 endpoints serve here
  LoadBalancer, also at node port 30900; load balancer 203.0.113.12 for 192.0.2.0/24 alone
  ADDRESS        STATE                            NODE    ZONE  POD
  10.1.1.8:9000  serves                           node-a  east  search-1
  10.1.2.8:9000  left out: terminating            node-b  east  search-3
  10.1.2.9:9000  left out: not-ready              node-b  east  search-4
  10.1.3.8:9000  left out: hinted-for-other-zone  node-c  west  search-2

shop/web port http 80/TCP, IPv4 10.96.0.10: 3 endpoints serve here
  ADDRESS         STATE   NODE    ZONE  POD
  127.0.0.2:8080  serves  node-a  east  web-1
  127.0.0.3:8080  serves  node-b  east  web-2
  127.0.0.4:8080  serves  node-c  west  web-3

shop/legacy is not served: label service.kubernetes.io/service-proxy-name: another proxy serves it
"
    );
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn json_has_every_type_by_the_name_that_kubernetes_gives_it() {
    let output = run(&["endpoints", "--source", &demo(), "-o", "json"]);
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown = |row: &Value| {
        ["service", "type", "clusterIP", "externalName"]
            .map(|key| row[key].as_str().unwrap_or("-").to_owned())
    };
    let shown: Vec<_> = rows.as_array().unwrap().iter().map(shown).collect();
    assert_eq!(
        shown,
        [
            ["shop/cache", "ClusterIP", "10.96.0.11", "-"],
            ["shop/db", "ClusterIP", "None", "-"],
            ["shop/search", "LoadBalancer", "10.96.0.12", "-"],
            ["shop/web", "ClusterIP", "10.96.0.10", "-"],
            ["shop/mail", "ExternalName", "-", "smtp.example.com"],
        ]
    );
}

#[test]
fn an_unknown_service_is_one_sentence_and_exit_1() {
    let source = demo();
    let output = run(&["endpoints", "shop/nope", "--source", &source, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(
        text(&output.stderr),
        format!(
            "remora: {source} has no Service shop/nope; `remora endpoints` without a name lists those it has\n"
        )
    );
    let skipped = run(&["endpoints", "shop/legacy", "--source", &source, "-o", "json"]);
    assert_eq!((skipped.status.code(), text(&skipped.stdout)), (Some(0), "[]\n".to_owned()));
}

#[test]
fn warnings_go_to_standard_error_and_json_alone_to_standard_output() {
    let folder = Folder::new();
    folder.put(
        "web.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.9, selector: {app: web}, \
         clusterIPs: [10.96.0.9], ports: [{port: 80}]}}\n",
    );
    folder.put("broken.yaml", "kind: Service\n  name: [\n");
    let output = run(&["endpoints", "--source", &folder.source(), "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows[0]["service"], "default/web");
    let warnings = text(&output.stderr);
    assert!(
        warnings.contains("default/web has a selector but no EndpointSlices: export them with"),
        "{warnings}"
    );
    assert!(warnings.contains("broken.yaml"), "{warnings}");
}

#[test]
fn explain_tells_the_decision_step_by_step() {
    let explain = |arguments: &[&str]| {
        let output = run(&[&["explain", "--source", &demo(), "--node", "node-x"], arguments].concat());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
        text(&output.stdout)
    };
    assert_eq!(
        explain(&["10.96.0.11:6379"]),
        "\
10.96.0.11:6379/TCP, by a client inside the cluster
1. the cluster IP of shop/cache port 6379/TCP
2. internal policy Local: 0 endpoints may serve
3. no endpoint may serve here, though there are some elsewhere
=> dropped
"
    );
    assert_eq!(
        explain(&["203.0.113.12:9000", "--outside", "--client", "198.51.100.7"]),
        "\
203.0.113.12:9000/TCP from 198.51.100.7, by a client outside the cluster
1. the load balancer's address of shop/search port grpc 9000/TCP
2. external policy Cluster: 2 endpoints may serve
3. client 198.51.100.7 is outside of the source ranges 192.0.2.0/24
=> dropped
"
    );
    let chosen = explain(&["10.96.0.10:80", "--client", "10.1.2.3:4567"]);
    assert!(
        chosen.contains("\n2. internal policy Cluster: 3 endpoints may serve\n3. drawn by chance: "),
        "{chosen}"
    );
    assert!(chosen.contains("5. least-connections chooses 127.0.0."), "{chosen}");
    assert_eq!(
        chosen,
        explain(&["10.96.0.10:80", "--client", "10.1.2.3:4567"]),
        "equal values, equal endpoint"
    );

    let passes =
        "1. not a Service address for UDP: passes\n=> passes: goes where it would go without Remora\n";
    assert!(explain(&["10.96.0.10:80", "--protocol", "udp"]).ends_with(passes));
    let node_port = explain(&["192.0.2.99:30900"]);
    assert!(
        node_port.contains("1. if this is an address of a node: the node port of shop/search"),
        "{node_port}"
    );

    let story: Value = serde_json::from_str(&explain(&["10.96.0.11:6379", "-o", "json"])).unwrap();
    assert_eq!((&story["outcome"], &story["service"]), (&json!("drop"), &json!("shop/cache")));
    assert_eq!(story["steps"][2]["step"], "empty");
}

#[test]
fn a_wrong_command_line_is_exit_2_and_tells_the_next_step() {
    for (arguments, parts) in [
        (
            &["sidecar", "--listen", "127.0.0.1:8080=web"][..],
            ["--listen 127.0.0.1:8080=web", "port of the Service"],
        ),
        (&["sidecar", "--listen", "1.2.3.4:1=a:1", "--listen", "1.2.3.4:1=b:1"], ["1.2.3.4:1", "twice"]),
        (&["sidecar", "--drain-timeout", "5"], ["--drain-timeout \"5\"", "such as 30s"]),
        (&["sidecar", "--connect-timeout", "0s"], ["--connect-timeout \"0s\"", "such as 5s"]),
        (&["sidecar", "--source", "file:x"], ["file:x", "manifests:PATH"]),
        (&["sidecar", "--admin", "0.0.0.0:9"], ["0.0.0.0:9", "loopback"]),
        (&["sidecar", "--health", "9"], ["--health \"9\"", "0.0.0.0:64104"]),
        (&["sidecar", "--threads", "0"], ["--threads \"0\"", "from 1"]),
        (&["sidecar", "--log-level", "loud"], ["loud", "info"]),
        (&["endpoints", "Shop/web"], ["Shop/web", "NAMESPACE/NAME"]),
        (&["explain", "10.0.0.1"], ["10.0.0.1", "10.96.0.10:80"]),
        (&["explain", "10.0.0.1:80", "--client", "me"], ["me", "10.1.2.3:4567"]),
        (&["sidecar", "--log-format", "xml"], ["xml", "json"]),
        (&["capture"], ["capture", "--help"]),
    ] {
        let output = run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn completion_knows_the_verbs_and_flags_of_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completion", shell]);
        let script = text(&output.stdout);
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}");
        for word in ["sidecar", "capture", "hub", "endpoints", "explain", "drain-timeout", "skip-subnets"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn only_the_verbs_that_work_are_offered() {
    let help = text(&run(&["--help"]).stdout);
    let verbs: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // What is indented further goes on about the verb above.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|verb| !verb.is_empty()))
        .collect();
    let known = [
        "sidecar",
        "node",
        "loadbalancer",
        "capture",
        "hub",
        "inject",
        "uninject",
        "endpoints",
        "explain",
        "check",
        "completion",
        "help",
    ];
    assert_eq!(verbs, known);
}
