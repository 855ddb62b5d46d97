//! Services of type LoadBalancer: `remora loadbalancer` on a machine of its own, `remora node` on two nodes, a real API
//! server, and a client outside of the cluster.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use rustix::io::Errno;
use serde_json::{Value, json};
use tests::balancer::{HEALTH, Site, ips};
use tests::node_ports::{met, refused, wait_met};
use tests::{Cluster, Load, Namespace, Pod, SOON, World, wait_until};

tests::tests! {
    a_service_gets_an_address_of_each_family_and_clients_reach_its_endpoints,
    a_service_whose_address_cannot_be_had_is_told_why_and_gets_it_once_it_is_free,
    a_service_that_changes_its_type_is_cleaned_and_served_again,
    only_clients_of_the_source_ranges_are_answered,
    under_policy_local_only_nodes_with_endpoints_get_connections,
    a_node_that_dies_under_load_is_left_without_a_failed_connection,
    without_node_ports_connections_go_to_the_endpoints_themselves,
    another_load_balancer_takes_over_when_the_first_ends,
}

/// The contract's finalizer.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// What a connect to a dead node waits, by default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

async fn site(world: &World) -> Site {
    Site::start(world, Namespace::new(Cluster::shared().await).await).await
}

fn has_finalizer(service: &Value) -> bool {
    service["metadata"]["finalizers"].as_array().is_some_and(|all| all.contains(&json!(FINALIZER)))
}

async fn wait_event(site: &Site, name: &str, reason: &str) {
    wait_until(SOON, &format!("people are told of {name}: {reason}"), async || {
        let events = Api::<Event>::namespaced(site.namespace.client.clone(), &site.namespace.name);
        let events = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let told = events.iter().any(|event| {
            let about = event.regarding.as_ref().and_then(|about| about.name.as_deref()) == Some(name);
            about && event.reason.as_deref() == Some(reason)
        });
        if told { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
}

async fn a_service_gets_an_address_of_each_family_and_clients_reach_its_endpoints(world: World) {
    let site = site(&world).await;
    let _pods = [
        Pod::ready(&world, &site.namespace, "web", "web-0", "node-a").await,
        Pod::ready(&world, &site.namespace, "web", "web-1", "node-b").await,
    ];
    let balancer = site.balancer(&world, "balancer").await;
    let ports = json!([
        {"name": "web", "port": 80, "targetPort": "web"},
        {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"},
    ]);
    site.service("web", json!({"ipFamilyPolicy": "RequireDualStack", "ports": ports})).await;
    let addresses = site.addresses("web", 2).await;
    for address in &addresses {
        wait_met(&site.nodes[0], *address, "somebody answers", Result::is_ok).await;
        balancer.wait_interface(address.ip(), true).await;
    }
    let service = site.get("web").await;
    assert!(has_finalizer(&service), "{service:#}");
    let first = &service["status"]["loadBalancer"]["ingress"][0];
    assert_eq!(first["ipMode"], "Proxy");
    let udp = first["ports"].as_array().and_then(|ports| ports.iter().find(|port| port["protocol"] == "UDP"));
    assert_eq!(udp.expect("its UDP port")["error"], "remora.dev/ProtocolNotSupported");
    let conditions = service["status"]["conditions"].as_array().expect("conditions");
    assert!(
        conditions.iter().any(|condition| condition["type"] == "LoadBalancerPortsError"),
        "{conditions:?}"
    );
    wait_event(&site, "web", "EnsuringLoadBalancer").await;
    wait_event(&site, "web", "EnsuredLoadBalancer").await;
    // A Service of nobody's class is nobody's.
    site.namespace.service("other", json!({"type": "LoadBalancer"})).await;

    // One that ends and comes again changes nothing.
    let version = site.get("web").await["metadata"]["resourceVersion"].clone();
    let host = balancer.end().await;
    let balancer = site.balancer_at(&world, "balancer-again", host).await;
    for address in &addresses {
        wait_met(&site.nodes[0], *address, "somebody answers again", Result::is_ok).await;
    }
    assert_eq!(site.get("web").await["metadata"]["resourceVersion"], version);
    // One that is killed leaves its addresses, which the next one finds.
    balancer.program.kill();
    assert!(balancer.interface().contains(&format!(" {}/", addresses[0].ip())), "{}", balancer.interface());
    let balancer = site.balancer_at(&world, "balancer-at-last", balancer.host).await;
    for address in &addresses {
        wait_met(&site.nodes[0], *address, "somebody answers at last", Result::is_ok).await;
    }
    assert_eq!(site.get("web").await["metadata"]["resourceVersion"], version);

    site.namespace.services().delete("web", &DeleteParams::default()).await.expect("it is to be deleted");
    wait_until(SOON, "it is deleted", async || match site.namespace.services().get_opt("web").await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}; {}", balancer.program.state())),
    })
    .await;
    for address in &addresses {
        balancer.wait_interface(address.ip(), false).await;
    }
    let other = site.get("other").await;
    assert!(!has_finalizer(&other) && ips(&other).is_empty(), "{other:#}");
}

async fn a_service_whose_address_cannot_be_had_is_told_why_and_gets_it_once_it_is_free(world: World) {
    let site = site(&world).await;
    let _pod = Pod::ready(&world, &site.namespace, "web", "web-0", "node-a").await;
    let balancer = site.balancer(&world, "balancer").await;
    let wants = async |name: &str, ip: String| {
        site.service(name, json!({})).await;
        let annotations = json!({"metadata": {"annotations": {"remora.dev/addresses": ip}}});
        site.namespace.patch_service(name, annotations).await;
    };
    let wanted = site.address(5);
    wants("web", wanted.to_string()).await;
    site.wait_service("web", "it has what it wants", |service| ips(service) == [wanted]).await;
    let lacks = async |name: &str, why: &str| {
        site.wait_service(name, why, |service| {
            let conditions = service["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|condition| condition["reason"] == why) && ips(service).is_empty()
        })
        .await;
        wait_event(&site, name, "SyncLoadBalancerFailed").await;
    };
    wants("second", wanted.to_string()).await;
    lacks("second", "AddressInUse").await;
    wants("outside", "198.51.100.1".to_owned()).await;
    lacks("outside", "AddressOutsidePool").await;
    // Six of the family are free for everybody, and two of them are taken: one has what it wanted.
    for n in 0..5 {
        site.service(&format!("many-{n}"), json!({})).await;
        site.addresses(&format!("many-{n}"), 1).await;
    }
    site.service("one-more", json!({})).await;
    lacks("one-more", "AddressesExhausted").await;
    wait_met(&site.nodes[0], (wanted, 80).into(), "nobody else is harmed", Result::is_ok).await;
    site.namespace.services().delete("many-0", &DeleteParams::default()).await.expect("it is to be deleted");
    site.addresses("one-more", 1).await;
    site.namespace.services().delete("web", &DeleteParams::default()).await.expect("it is to be deleted");
    site.wait_service("second", "it has what it wants", |service| ips(service) == [wanted]).await;
    drop(balancer);
}

async fn a_service_that_changes_its_type_is_cleaned_and_served_again(world: World) {
    let site = site(&world).await;
    let _pod = Pod::ready(&world, &site.namespace, "web", "web-0", "node-a").await;
    let balancer = site.balancer(&world, "balancer").await;
    site.service("web", json!({})).await;
    for kind in ["ClusterIP", "NodePort"] {
        let [address] = site.addresses("web", 1).await[..] else { panic!("one address") };
        wait_met(&site.nodes[0], address, "it is served", Result::is_ok).await;
        site.namespace.patch_service("web", json!({"spec": {"type": kind, "loadBalancerClass": null}})).await;
        site.wait_service("web", "it is cleaned", |service| {
            let annotations = &service["metadata"]["annotations"];
            !has_finalizer(service) && annotations["remora.dev/balanced-by"].is_null()
        })
        .await;
        balancer.wait_interface(address.ip(), false).await;
        wait_event(&site, "web", "DeletedLoadBalancer").await;
        let back = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": site.class()}});
        site.namespace.patch_service("web", back).await;
    }
    // Of another class it is another's.
    site.addresses("web", 1).await;
    site.namespace
        .patch_service("web", json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}}))
        .await;
    let other = json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/other"}});
    site.namespace.patch_service("web", other).await;
    site.wait_service("web", "it is another's", |service| !has_finalizer(service) && ips(service).is_empty())
        .await;
}

async fn only_clients_of_the_source_ranges_are_answered(world: World) {
    let site = site(&world).await;
    let _pods = [
        Pod::ready(&world, &site.namespace, "web", "web-0", "node-a").await,
        Pod::ready(&world, &site.namespace, "web", "web-1", "node-b").await,
    ];
    let _balancer = site.balancer(&world, "balancer").await;
    site.service("web", json!({"sessionAffinity": "ClientIP"})).await;
    let [address] = site.addresses("web", 1).await[..] else { panic!("one address") };
    wait_met(&site.nodes[0], address, "everybody is answered", Result::is_ok).await;
    let first = met(address).await.expect("an answer");
    for _ in 0..20 {
        assert_eq!(met(address).await.as_ref(), Ok(&first), "a client stays with its endpoint");
    }
    for (range, is_answered) in
        [("203.0.113.0/24", false), ("10.244.0.1/32", true), ("203.0.113.0/24", false)]
    {
        let ranges = json!({"spec": {"loadBalancerSourceRanges": [range]}});
        site.namespace.patch_service("web", ranges).await;
        wait_met(&site.nodes[0], address, range, |met| match is_answered {
            true => met.is_ok(),
            false => *met == Err(Some(Errno::TIMEDOUT)),
        })
        .await;
    }
}

async fn under_policy_local_only_nodes_with_endpoints_get_connections(world: World) {
    let site = site(&world).await;
    let [near, far] = [
        Pod::ready(&world, &site.namespace, "web", "near", "node-a").await,
        Pod::ready(&world, &site.namespace, "web", "far", "node-b").await,
    ];
    let _balancer = site.balancer(&world, "balancer").await;
    site.service("web", json!({"externalTrafficPolicy": "Local"})).await;
    let [address] = site.addresses("web", 1).await[..] else { panic!("one address") };
    let nodes = Api::<Node>::all(site.namespace.client.clone());
    let exclude = async |value: Value| {
        let label = json!({"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": value}}});
        nodes.patch("node-a", &PatchParams::default(), &Patch::Merge(label)).await.expect("a label");
    };
    let only = async |names: &[&str]| {
        wait_until(SOON, &format!("{names:?} answer, and nobody else"), async || {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..20 {
                seen.insert(met(address).await.map_err(|error| format!("{error:?}"))?);
            }
            if seen.iter().eq(names) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    };
    only(&["far", "near"]).await;
    exclude(json!("")).await;
    only(&["far"]).await;
    exclude(json!(null)).await;
    only(&["far", "near"]).await;
    far.set_ready(false).await;
    only(&["near"]).await;
    near.set_ready(false).await;
    wait_met(&site.nodes[0], address, "nobody can serve", refused).await;
}

async fn a_node_that_dies_under_load_is_left_without_a_failed_connection(world: World) {
    let site = site(&world).await;
    let _pods = [
        Pod::ready(&world, &site.namespace, "web", "web-0", "node-a").await,
        Pod::ready(&world, &site.namespace, "web", "web-1", "node-a").await,
    ];
    let balancer = site.balancer(&world, "balancer").await;
    site.service("web", json!({})).await;
    let [address] = site.addresses("web", 1).await[..] else { panic!("one address") };
    wait_met(&site.nodes[0], address, "it is served", Result::is_ok).await;
    let load = Load::start(address, 50);
    let some = async |load: &Load, number: u64| {
        wait_until(SOON, "some connections", async || match load.done() {
            done if done >= number => Ok(()),
            done => Err(format!("{done}; {}", balancer.program.state())),
        })
        .await;
    };
    some(&load, 200).await;
    // Its machine says no word more, to nobody.
    let _dead = site.nodes[1].host.drop_packets("meta mark 0", "meta mark 0");
    let died = Instant::now();
    let found = format!("node={}:{HEALTH} is_healthy=false", site.nodes[1].host.ip4());
    wait_until(SOON, "it is found dead", async || match balancer.program.output() {
        output if output.contains(&found) => Ok(()),
        _ => Err(balancer.program.state()),
    })
    .await;
    eprintln!("found dead after {:?}", died.elapsed());
    wait_until(SOON, "nobody waits for it", async || {
        let later = Load::start(address, 50);
        some(&later, 50).await;
        let later = later.stop();
        later.assert_none_failed();
        match later.durations.last() {
            Some(longest) if *longest < CONNECT_TIMEOUT => Ok(()),
            longest => Err(format!("one took {longest:?}")),
        }
    })
    .await;
    // Those that met it when it had died were connected to the other one in the end. What was already connected to it
    // died with it: some of its bytes may have been taken.
    load.stop().assert_none_failed_after(died);
}

async fn without_node_ports_connections_go_to_the_endpoints_themselves(world: World) {
    let site = site(&world).await;
    let pod = Pod::ready(&world, &site.namespace, "web", "web-0", "node-a").await;
    let _balancer = site.balancer(&world, "balancer").await;
    let both = json!({"allocateLoadBalancerNodePorts": false, "ipFamilyPolicy": "RequireDualStack"});
    site.service("web", both).await;
    for address in site.addresses("web", 2).await {
        wait_met(&site.nodes[0], address, "the endpoint answers", Result::is_ok).await;
    }
    pod.set_ready(false).await;
    for address in site.addresses("web", 2).await {
        wait_met(&site.nodes[0], address, "nobody is left", refused).await;
    }
}

async fn another_load_balancer_takes_over_when_the_first_ends(world: World) {
    let site = site(&world).await;
    let _pod = Pod::ready(&world, &site.namespace, "web", "web-0", "node-a").await;
    let first = site.balancer(&world, "first").await;
    site.service("web", json!({})).await;
    let [address] = site.addresses("web", 1).await[..] else { panic!("one address") };
    let second = site.balancer(&world, "second").await;
    first.wait_interface(address.ip(), true).await;
    second.wait_interface(address.ip(), false).await;
    let version = site.get("web").await["metadata"]["resourceVersion"].clone();
    let first = first.end().await;
    second.wait_interface(address.ip(), true).await;
    wait_met(&site.nodes[0], address, "the second serves", Result::is_ok).await;
    assert_eq!(site.get("web").await["metadata"]["resourceVersion"], version);
    // One that dies is succeeded when its lease has ended.
    let third = site.balancer_at(&world, "third", first).await;
    second.program.kill();
    third.wait_interface(address.ip(), true).await;
}
