//! A `remora loadbalancer` on a machine of its own, and two nodes with `remora node` behind it.
//!
//! In: a world and a Kubernetes namespace. Out: addresses that the test's own end reaches over the bridge, as a client
//! outside of the cluster does. Each has a class, a pool and a lease of its own, so that no test meets another's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as KubeNode, Service};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{Host, Namespace, Program, SOON, Sidecar, World, ask, tools, wait_until};

/// What a load balancer may do in a cluster, no more; the README has the same.
const RULES: &str = r#"[
    {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["services/status"], "verbs": ["patch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}
]"#;

/// Where it tells how it is.
pub const HEALTH: u16 = 64104;

/// Owning one means that its nodes and its machine run.
pub struct Site {
    /// Where its Services are.
    pub namespace: Namespace,
    /// What serves the node ports, `node-a` first.
    pub nodes: [Sidecar; 2],
    kubeconfig: std::path::PathBuf,
}

/// One load balancer. Owning one means that it runs.
pub struct Balancer {
    /// The process.
    pub program: Program,
    /// Its machine.
    pub host: Host,
}

impl Site {
    /// Starts the nodes.
    pub async fn start(world: &World, namespace: Namespace) -> Site {
        let cluster = &namespace.cluster;
        let kubeconfig = cluster.kubeconfig();
        let rules = serde_json::from_str(RULES).expect("rules of a role");
        let user = format!("balancer-{}", namespace.number);
        let own = cluster.user_with(&user, rules).await;
        let nodes = [
            Sidecar::node(world, &kubeconfig, "node-a", &[]).await,
            Sidecar::node(world, &kubeconfig, "node-b", &[]).await,
        ];
        let site = Site { namespace, nodes, kubeconfig: own };
        for (name, node) in ["node-a", "node-b"].into_iter().zip(&site.nodes) {
            let addresses = node.host.ips().map(|ip| json!({"type": "InternalIP", "address": ip}));
            let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
            let nodes = Api::<KubeNode>::all(site.namespace.client.clone());
            nodes
                .patch_status(name, &PatchParams::default(), &patch)
                .await
                .expect("a kubelet writes its addresses");
        }
        site
    }

    /// Starts a load balancer, and waits until it knows the cluster.
    pub async fn balancer(&self, world: &World, name: &str) -> Balancer {
        let host = Host::new(world, name);
        self.balancer_at(world, name, host).await
    }

    /// Starts one on a machine that is there.
    pub async fn balancer_at(&self, world: &World, name: &str, host: Host) -> Balancer {
        let mut command = host.command(tools::own("remora", "sidecar"));
        let [v4, v6] = self.pool();
        command.env("KUBECONFIG", &self.kubeconfig).args(["loadbalancer", "--interface=eth0"]);
        command.arg(format!("--pool={v4},{v6}")).arg(format!("--class={}", self.class()));
        command.arg(format!("--lease={}/balancer", self.namespace.name));
        command.arg(format!("--health=0.0.0.0:{HEALTH}")).arg(format!("--node-health-port={HEALTH}"));
        let program = Program::start(world, name, command);
        let health = SocketAddr::new(host.ip4().into(), HEALTH);
        wait_until(SOON, "the load balancer is ready", async || match ask::get(health, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", program.state())),
        })
        .await;
        Balancer { program, host }
    }

    /// Its addresses, of either family: six and more.
    pub fn pool(&self) -> [String; 2] {
        let number = 200 + self.namespace.number;
        [format!("10.244.{number}.0/29"), format!("fd00:244::{number}:0/120")]
    }

    /// An address of its pool.
    pub fn address(&self, last: u8) -> IpAddr {
        format!("10.244.{}.{last}", 200 + self.namespace.number).parse().expect("an address")
    }

    /// The class of its Services.
    pub fn class(&self) -> String {
        format!("remora.dev/test-{}", self.namespace.number)
    }

    /// Creates a Service of its class.
    pub async fn service(&self, name: &str, spec: Value) -> Service {
        let mut whole = json!({"type": "LoadBalancer", "loadBalancerClass": self.class()});
        for (field, value) in spec.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        self.namespace.service(name, whole).await
    }

    /// A Service as it is.
    pub async fn get(&self, name: &str) -> Value {
        let service = self.namespace.services().get(name).await.expect("the Service");
        serde_json::to_value(service).expect("JSON")
    }

    /// Waits until a Service looks as `is_it` says.
    pub async fn wait_service(&self, name: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        wait_until(SOON, &format!("{name}: {what}"), async || {
            let service = self.get(name).await;
            if is_it(&service) { Ok(service) } else { Err(format!("{service:#}")) }
        })
        .await
    }

    /// Waits until a Service has so many addresses: those, with port 80.
    pub async fn addresses(&self, name: &str, count: usize) -> Vec<SocketAddr> {
        let what = format!("it has {count} addresses");
        let service = self.wait_service(name, &what, |service| ips(service).len() == count).await;
        ips(&service).into_iter().map(|ip| SocketAddr::new(ip, 80)).collect()
    }
}

/// The addresses in a Service's status.
pub fn ips(service: &Value) -> Vec<IpAddr> {
    let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    ingress.into_iter().flatten().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
}

impl Balancer {
    /// The addresses of its interface, as `ip` prints them.
    pub fn interface(&self) -> String {
        let output = self.host.command("ip").args(["-o", "address", "show", "dev", "eth0"]).output();
        String::from_utf8_lossy(&output.expect("ip, of iproute2").stdout).into_owned()
    }

    /// Waits until its interface has an address, or has it no longer.
    pub async fn wait_interface(&self, ip: IpAddr, is_there: bool) {
        let what = format!("{ip} is on the interface: {is_there}");
        wait_until(SOON, &what, async || match self.interface() {
            addresses if addresses.contains(&format!(" {ip}/")) == is_there => Ok(()),
            addresses => Err(format!("{addresses}; {}", self.program.state())),
        })
        .await;
    }

    /// Ends it, and gives its machine back.
    pub async fn end(self) -> Host {
        let status = self.program.stop(Duration::from_secs(20)).await;
        assert!(status.success(), "{}", self.program.state());
        self.host
    }
}
