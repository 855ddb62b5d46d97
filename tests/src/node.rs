//! Nodes: hosts that route for the Pods on them and run the real kube-proxy.
//!
//! ```text
//!             ──────┬──────────────────────────────────────┬────── bridge
//!       node-a: 10.244.0.3                        node-b: 10.244.0.4
//!       kube-proxy, nftables                      kube-proxy, nftables
//!       10.129.0.1, fe80::1                       10.130.0.1, fe80::1
//!          │             │                           │
//!     10.129.0.2    10.129.0.3                  10.130.0.2           Pods: a cable each, no bridge
//!   fd00:128:0:1::2  fd00:128:0:1::3          fd00:128:0:2::2
//! ```
//!
//! In: a cluster and the name of one of its nodes. Out: a place for Pods from which Services are
//! reached as on any node. The node of a cluster is never changed by kube-proxy or by this: only its
//! addresses are written into the object, as a kubelet would, since kube-proxy asks for them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::cluster::NODES;
use crate::network::{self, Lease};
use crate::{Host, Program, World, ask, tools, wait_until};

/// What all Pods of all nodes have their addresses from, in either family.
const PODS: &str = "10.128.0.0/10,fd00:128::/48";

/// How long kube-proxy may take for its first rules, on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// Where kube-proxy tells how it is.
const HEALTH: u16 = 10256;

/// The last number given to a node. As with hosts, none is given twice.
static LAST: AtomicU8 = AtomicU8::new(0);

/// Owning one means that its kube-proxy runs and that Pods can be put on it.
pub struct Node {
    /// Its name, as the cluster knows it.
    pub name: String,
    /// Where its kube-proxy runs; its addresses are the node's.
    pub host: Host,
    proxy: Program,
    number: u8,
    pods: AtomicU16,
}

impl Node {
    /// Starts a node; `others` are those that run already, and learn the way to its Pods.
    pub(crate) async fn start(
        world: &World,
        client: Client,
        kubeconfig: &Path,
        name: &str,
        others: &[&Host],
    ) -> Node {
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number < 64, "more nodes than {PODS} has subnets for");
        let host = Host::new(world, name);
        host.forward();
        let [pods, pods6] = subnets(number);
        // What no Pod has must not wander about by the default route.
        host.route(&[format!("blackhole {pods}"), format!("blackhole {pods6}")]);
        let ways = ways(number, &host);
        network::route(&ways);
        for other in others {
            other.route(&ways);
        }
        write_addresses(&client, name, &host).await;
        let proxy = Program::start(world, &format!("kube-proxy-{name}"), kube_proxy(&host, name, kubeconfig));
        let node = Node { name: name.to_owned(), host, proxy, number, pods: AtomicU16::new(1) };
        node.wait_ready().await;
        move_to_its_zone(&client, name).await;
        node
    }

    /// Adds routes to the Pods of another node.
    pub(crate) fn learn(&self, other: &Node) {
        self.host.route(&ways(other.number, &other.host));
    }

    /// Makes the network of a Pod on this node.
    pub fn place(&self, world: &World, name: &str) -> Host {
        let pod = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let [high, low] = pod.to_be_bytes();
        let subnet = 128 + self.number;
        let lease = Lease {
            ip4: Ipv4Addr::new(10, subnet, high, low),
            ip6: Ipv6Addr::new(0xfd00, 0x128, 0, self.number.into(), 0, 0, 0, pod),
            gateway: Ipv4Addr::new(10, subnet, 0, 1),
        };
        Host::behind(world, name, &self.host, &lease)
    }

    /// The state of its kube-proxy, to say why something did not happen.
    pub fn state(&self) -> String {
        self.proxy.state()
    }

    /// Waits until kube-proxy has written its first rules, of both families.
    async fn wait_ready(&self) {
        let health = (self.host.ip4(), HEALTH).into();
        wait_until(READY, &format!("kube-proxy of {} serves", self.name), async || {
            assert!(self.proxy.ended().is_none(), "{}", self.state());
            match ask::get(health, "/healthz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("/healthz: {other:?}; {}", self.state())),
            }
        })
        .await;
    }
}

/// The subnets of a node's Pods.
fn subnets(number: u8) -> [String; 2] {
    [format!("10.{}.0.0/16", 128 + number), format!("fd00:128:0:{number:x}::/64")]
}

/// The way to a node's Pods for everybody on the bridge, IPv4 first.
fn ways(number: u8, host: &Host) -> Vec<String> {
    let [pods, pods6] = subnets(number);
    vec![format!("{pods} via {}", host.ip4()), format!("{pods6} via {}", host.ip6())]
}

/// What a kubelet writes into its node. kube-proxy takes the node's primary addresses from it, and
/// ends when they change.
async fn write_addresses(client: &Client, name: &str, host: &Host) {
    let addresses: Vec<_> =
        host.ips().iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
    let written =
        Api::<KubeNode>::all(client.clone()).patch_status(name, &PatchParams::default(), &patch).await;
    written.unwrap_or_else(|error| panic!("cannot write the addresses of {name}: {error}"));
}

/// Takes the zone from a node and gives it back. kube-proxy hears of its node before it says what it wants to do with the
/// zone, and misses it at its start if it is slow in between; it never misses a change.
async fn move_to_its_zone(client: &Client, name: &str) {
    let (_, zone) = NODES.iter().find(|(node, _)| *node == name).expect("a node of every cluster");
    for zone in [json!(null), json!(zone)] {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}));
        let moved = Api::<KubeNode>::all(client.clone()).patch(name, &PatchParams::default(), &patch).await;
        moved.unwrap_or_else(|error| panic!("cannot move {name} to {zone}: {error}"));
    }
}

fn kube_proxy(host: &Host, name: &str, kubeconfig: &Path) -> std::process::Command {
    let mut command = host.command(tools::built("kube-proxy"));
    command
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--hostname-override={name}"))
        .args(["--proxy-mode=nftables", "--detect-local-mode=ClusterCIDR"])
        .arg(format!("--cluster-cidr={PODS}"))
        .arg(format!("--healthz-bind-address={}:{HEALTH}", host.ip4()))
        // The machine's limits of conntrack are not a network namespace's to set.
        .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
        .args(["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"]);
    command
}
