//! Names of a real cluster by `remora sidecar --dns`: the cases of Kubernetes' own e2e tests for DNS, asked by dig and
//! by the resolver of C with its search path.

use std::net::SocketAddr;
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tests::cluster::create;
use tests::{Cluster, Host, Namespace, Program, SOON, World, tools, wait_until};

tests::tests! {
    the_pods_of_a_stateful_set_have_names_while_they_are_ready,
    slices_written_by_hand_have_names_together,
    the_ports_of_a_service_are_found_by_their_names,
    partial_names_are_found_by_the_search_path,
    a_service_changes_from_an_external_name_to_an_address_and_back,
    what_the_cluster_does_not_have_is_denied_and_while_the_source_is_broken_left_to_others,
}

/// A DNS on a host of its own, at port 53, where the resolver of C asks.
struct Dns {
    namespace: Namespace,
    host: Host,
    program: Program,
}

impl Dns {
    async fn start(world: &World) -> Dns {
        let namespace = Namespace::new(Cluster::shared().await).await;
        let host = Host::new(world, "dns");
        let mut command = host.command(tools::own("remora", "sidecar"));
        command.env("KUBECONFIG", namespace.cluster.kubeconfig()).args(["sidecar", "--source", "kube"]);
        let address = SocketAddr::new(host.ip4().into(), 53).to_string();
        // Nobody is behind it: what it knows, it knows from the cluster.
        command.args(["--dns", &address, "--dns-forward", "127.0.0.1:1"]);
        let program = Program::start(world, host.name(), command);
        let dns = Dns { namespace, host, program };
        dns.wait("kubernetes.default.svc.cluster.local", "A", &["10.96.0.1"]).await;
        dns
    }

    /// A name in the namespace of the test.
    fn name(&self, name: &str) -> String {
        format!("{name}.{}.svc.cluster.local", self.namespace.name)
    }

    /// What dig says in short: the records, or the outcome if there are none.
    fn dig(&self, name: &str, kind: &str) -> Result<Vec<String>, String> {
        let server = format!("@{}", self.host.ip4());
        let arguments = [&server, "+noall", "+answer", "+comments", "+tries=1", "+time=5", name, kind];
        let printed = run(self.host.command("dig").args(arguments))?;
        let status = printed.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        let records = printed.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
        let data = |line: &str| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ");
        let mut records: Vec<String> = records.map(data).collect();
        records.sort();
        match (status, records.is_empty()) {
            (Some(status), true) => Ok(vec![status.to_owned()]),
            (Some(_), false) => Ok(records),
            (None, _) => Err(printed),
        }
    }

    async fn wait(&self, name: &str, kind: &str, expected: &[&str]) {
        wait_until(SOON, &format!("{name} {kind} is {expected:?}"), async || match self.dig(name, kind) {
            Ok(found) if found == expected => Ok(()),
            other => Err(format!("{other:?}; {}", self.program.state())),
        })
        .await;
    }

    /// What the resolver of C says, in a Pod of the test's namespace: each address once.
    fn resolve(&self, world: &World, name: &str) -> Result<Vec<String>, String> {
        let file = world.folder().join("resolv.conf");
        let namespace = &self.namespace.name;
        let text = format!(
            "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\noptions ndots:5\n",
            self.host.ip4()
        );
        std::fs::write(&file, text).expect("a file of the test");
        let script = "mount --bind \"$1\" /etc/resolv.conf && exec getent ahosts \"$2\"";
        let mut command = self.host.command("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(&file).arg(name);
        let printed = run(&mut command)?;
        let mut found: Vec<String> =
            printed.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.namespace.client.clone(), &self.namespace.name)
    }

    /// A Pod as a StatefulSet's controller makes it for the Service `db`, at an address where nobody listens: names
    /// need none.
    async fn stateful_pod(&self, number: u8) {
        let name = format!("db-{number}");
        let spec = json!({
            "nodeName": "node-a", "hostname": name, "subdomain": "db",
            "containers": [{"name": "db", "image": "none", "ports": [{"name": "pg", "containerPort": 5432}]}],
        });
        create(&self.pods(), json!({"metadata": {"name": name, "labels": {"app": "db"}}, "spec": spec}))
            .await;
        self.set_ready(number, true).await;
    }

    async fn set_ready(&self, number: u8, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running", "podIP": ip(number), "podIPs": [{"ip": ip(number)}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        let name = format!("db-{number}");
        let patched = self.pods().patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await;
        patched.unwrap_or_else(|error| panic!("cannot write the status of {name}: {error}"));
    }
}

fn ip(number: u8) -> String {
    format!("10.123.45.{number}")
}

fn run(command: &mut Command) -> Result<String, String> {
    let output =
        command.output().map_err(|error| format!("{command:?}: {error}; tests/tools installs it"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
    }
}

async fn the_pods_of_a_stateful_set_have_names_while_they_are_ready(world: World) {
    let dns = Dns::start(&world).await;
    let ports = json!([{"name": "pg", "port": 5432, "targetPort": "pg"}]);
    dns.namespace.service("db", json!({"clusterIP": "None", "ports": ports})).await;
    dns.wait(&dns.name("db"), "A", &["NXDOMAIN"]).await;
    dns.stateful_pod(0).await;
    dns.stateful_pod(1).await;
    dns.wait(&dns.name("db"), "A", &[&ip(0), &ip(1)]).await;
    dns.wait(&dns.name("db-1.db"), "A", &[&ip(1)]).await;
    dns.wait(&dns.name("db-1.db"), "AAAA", &["NOERROR"]).await;
    let targets = [0, 1].map(|n| format!("0 50 5432 {}.", dns.name(&format!("db-{n}.db"))));
    dns.wait(&dns.name("_pg._tcp.db"), "SRV", &targets.each_ref().map(String::as_str)).await;
    dns.wait("1.45.123.10.in-addr.arpa", "PTR", &[&format!("{}.", dns.name("db-1.db"))]).await;
    dns.set_ready(1, false).await;
    dns.wait(&dns.name("db"), "A", &[&ip(0)]).await;
    dns.wait(&dns.name("db-1.db"), "A", &["NXDOMAIN"]).await;
    // Names of Pods that are not ready are wanted, where members of a cluster look for each other.
    dns.namespace.patch_service("db", json!({"spec": {"publishNotReadyAddresses": true}})).await;
    dns.wait(&dns.name("db-1.db"), "A", &[&ip(1)]).await;
}

/// "should provide DNS for services with multiple EndpointSlices and no Endpoints"
async fn slices_written_by_hand_have_names_together(world: World) {
    let dns = Dns::start(&world).await;
    let headless = json!({"clusterIP": "None", "selector": null, "ports": [{"name": "pg", "port": 5432}]});
    dns.namespace.service("hand", headless).await;
    for number in [1, 2] {
        let metadata =
            json!({"name": format!("hand-{number}"), "labels": {"kubernetes.io/service-name": "hand"}});
        let slice = json!({
            "metadata": metadata, "addressType": "IPv4", "ports": [{"name": "pg", "port": 5432}],
            "endpoints": [{"addresses": [ip(number)], "hostname": format!("host-{number}")}],
        });
        create(&dns.namespace.slices(), slice).await;
    }
    dns.wait(&dns.name("hand"), "A", &[&ip(1), &ip(2)]).await;
    dns.wait(&dns.name("host-2.hand"), "A", &[&ip(2)]).await;
    dns.namespace.slices().delete("hand-1", &DeleteParams::default()).await.expect("it was there");
    dns.wait(&dns.name("hand"), "A", &[&ip(2)]).await;
}

/// "should provide DNS for services", as far as ports and reverse names go, and "should work with a service name that
/// starts with a digit"
async fn the_ports_of_a_service_are_found_by_their_names(world: World) {
    let dns = Dns::start(&world).await;
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    for name in ["web", "1web"] {
        let service = dns.namespace.service(name, json!({"ports": ports})).await;
        let ip = service.spec.and_then(|spec| spec.cluster_ip).expect("a cluster IP");
        let whole = format!("{}.", dns.name(name));
        dns.wait(&dns.name(name), "A", &[&ip]).await;
        dns.wait(&dns.name(&format!("_http._tcp.{name}")), "SRV", &[&format!("0 100 80 {whole}")]).await;
        dns.wait(&dns.name(&format!("_dns._udp.{name}")), "SRV", &[&format!("0 100 53 {whole}")]).await;
        dns.wait(&dns.name(&format!("_http._udp.{name}")), "SRV", &["NXDOMAIN"]).await;
        let mut octets: Vec<&str> = ip.split('.').collect();
        octets.reverse();
        dns.wait(&format!("{}.in-addr.arpa", octets.join(".")), "PTR", &[&whole]).await;
    }
}

async fn partial_names_are_found_by_the_search_path(world: World) {
    let dns = Dns::start(&world).await;
    let service = dns.namespace.service("web", json!({})).await;
    let ip = service.spec.and_then(|spec| spec.cluster_ip).expect("a cluster IP");
    dns.wait(&dns.name("web"), "A", &[&ip]).await;
    let namespace = &dns.namespace.name;
    let names =
        ["web".to_owned(), format!("web.{namespace}"), format!("web.{namespace}.svc"), dns.name("web")];
    for name in names.iter().chain(&[format!("{}.", dns.name("web"))]) {
        assert_eq!(dns.resolve(&world, name), Ok(vec![ip.clone()]), "{name}");
    }
    assert_eq!(dns.resolve(&world, "kubernetes.default"), Ok(vec!["10.96.0.1".to_owned()]));
    let nothing = dns.resolve(&world, &format!("nothing.{namespace}.svc.cluster.local."));
    assert!(nothing.is_err_and(|error| error.starts_with("exit status: 2")), "there is no such name");
}

async fn a_service_changes_from_an_external_name_to_an_address_and_back(world: World) {
    let dns = Dns::start(&world).await;
    let external = |name: &str| json!({"spec": {"type": "ExternalName", "externalName": name}});
    let services = dns.namespace.services();
    let mut service = external("kubernetes.default.svc.cluster.local");
    service["metadata"] = json!({"name": "ext"});
    create(&services, service).await;
    dns.wait(&dns.name("ext"), "A", &["10.96.0.1", "kubernetes.default.svc.cluster.local."]).await;
    dns.wait(&dns.name("ext"), "CNAME", &["kubernetes.default.svc.cluster.local."]).await;
    dns.namespace.patch_service("ext", external("www.example.com")).await;
    dns.wait(&dns.name("ext"), "CNAME", &["www.example.com."]).await;
    // To itself: an API server takes it, nobody can follow it.
    dns.namespace.patch_service("ext", external(&dns.name("ext"))).await;
    dns.wait(&dns.name("ext"), "A", &["SERVFAIL"]).await;
    let cluster_ip: Value = json!({"spec": {
        "type": "ClusterIP", "externalName": null, "clusterIP": "10.96.77.7", "ports": [{"port": 80}],
    }});
    dns.namespace.patch_service("ext", cluster_ip).await;
    dns.wait(&dns.name("ext"), "A", &["10.96.77.7"]).await;
    dns.wait("7.77.96.10.in-addr.arpa", "PTR", &[&format!("{}.", dns.name("ext"))]).await;
    let mut back = external("www.example.com");
    back["spec"]["clusterIP"] = Value::Null;
    back["spec"]["clusterIPs"] = Value::Null;
    dns.namespace.patch_service("ext", back).await;
    dns.wait(&dns.name("ext"), "CNAME", &["www.example.com."]).await;
    services.delete("ext", &DeleteParams::default()).await.expect("it was there");
    dns.wait(&dns.name("ext"), "A", &["NXDOMAIN"]).await;
}

async fn what_the_cluster_does_not_have_is_denied_and_while_the_source_is_broken_left_to_others(
    world: World,
) {
    let dns = Dns::start(&world).await;
    dns.wait(&dns.name("nothing"), "A", &["NXDOMAIN"]).await;
    dns.wait("dns-version.cluster.local", "TXT", &["\"1.1.0\""]).await;
    dns.namespace.cluster.kill_api();
    // Nobody else can be asked here.
    dns.wait(&dns.name("nothing"), "A", &["SERVFAIL"]).await;
    dns.wait("kubernetes.default.svc.cluster.local", "A", &["10.96.0.1"]).await;
    dns.namespace.cluster.start_api().await;
    dns.wait(&dns.name("nothing"), "A", &["NXDOMAIN"]).await;
}
