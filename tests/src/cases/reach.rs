//! Who is reached, and as whom. In: a client. Never fewer than both families.

use serde_json::json;

use crate::cluster::KUBERNETES;
use crate::{Client, Outcome};

/// service.go: "should serve a basic endpoint from pods", dual_stack.go.
pub async fn a_cluster_ip_is_reached_in_both_families(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _pods = (client.near("web", "near").await, client.far("web", "far").await);
    client.wait_served(&web.port(80), &["near", "far"], "all endpoints of the Service").await;
}

/// networking.go: "should update endpoints".
pub async fn endpoints_come_and_go(client: &Client) {
    let web = client.service("web", json!({})).await;
    let first = client.far("web", "first").await;
    client.wait_served(&web.port(80), &["first"], "it is the only endpoint").await;
    let _second = client.near("web", "second").await;
    client.wait_served(&web.port(80), &["first", "second"], "an endpoint was added").await;
    first.delete().await;
    client.wait_served(&web.port(80), &["second"], "an endpoint is terminating").await;
    first.end().await;
    let _third = client.far("web", "third").await;
    client.wait_served(&web.port(80), &["second", "third"], "another endpoint was added").await;
}

/// service.go: "should preserve source pod IP for traffic thru service cluster IP".
pub async fn an_endpoint_sees_the_address_of_the_clients_pod(client: &Client) {
    let web = client.service("web", json!({})).await;
    let pods = [client.near("web", "near").await, client.far("web", "far").await];
    client.wait_served(&web.port(80), &["near", "far"], "both nodes have an endpoint").await;
    for (family, address) in web.port(80).into_iter().enumerate() {
        for outcome in client.connect(address, 20).await {
            let Outcome::Answered { by, source, at } = outcome else { panic!("{address}: {outcome:?}") };
            assert_eq!(source.ip(), client.pod.host.ips()[family], "{by} was called by the Pod itself");
            let pod = pods.iter().find(|pod| pod.name == by).expect("one of the Pods");
            assert_eq!(at, (pod.host.ips()[family], 8080).into(), "{by} was called at its own address");
        }
    }
}

/// service.go: "should allow pods to hairpin back to themselves through services".
pub async fn a_pod_reaches_itself_through_its_service(client: &Client) {
    let own = client.service("client", json!({})).await;
    client.wait_served(&own.port(80), &["client"], "it is the only endpoint of the Service").await;
    let _other = client.near("client", "other").await;
    client.wait_served(&own.port(80), &["client", "other"], "it is one of the endpoints").await;
}

/// networking.go: "should be able to handle large requests".
pub async fn large_transfers_arrive_whole(client: &Client) {
    let web = client.service("web", json!({})).await;
    let _far = client.far("web", "far").await;
    client.wait_served(&web.port(80), &["far"], "it is the only endpoint").await;
    for address in web.port(80) {
        let outcome = client.transfer(address, 64).await;
        assert_eq!(outcome.by(), Ok("far"), "64 MB through {address} and back");
    }
}

/// The endpoints are replaced one by one meanwhile, each with its server running on until the streams are through.
pub async fn two_hundred_streams_arrive_whole_while_endpoints_roll(client: &Client) {
    let web = client.service("web", json!({})).await.port(80);
    let first = [client.near("web", "web-0").await, client.far("web", "web-1").await];
    client.wait_served(&web, &["web-0", "web-1"], "they are ready").await;
    let [ip4, ip6] = web;
    let streams = async {
        let (four, six) = futures::join!(client.streams(ip4, 100), client.streams(ip6, 100));
        [four, six].concat()
    };
    let rolling = async {
        let mut pods = Vec::from(first);
        for number in 2..6 {
            let name = format!("web-{number}");
            pods.push(if number % 2 == 0 {
                client.near("web", &name).await
            } else {
                client.far("web", &name).await
            });
            pods[number - 2].delete().await;
        }
        pods
    };
    let (outcomes, pods) = futures::join!(streams, rolling);
    let broken: Vec<_> = outcomes.iter().filter(|outcome| outcome.by().is_err()).collect();
    assert!(broken.is_empty() && outcomes.len() == 200, "{} of {}: {broken:?}", broken.len(), outcomes.len());
    drop(pods);
}

/// apiserver.go: "should provide secure master service", as a container reaches it.
pub async fn the_api_server_is_reached_through_its_service(client: &Client) {
    assert!(client.touch((KUBERNETES, 443).into()).await, "TLS would be for the client to begin");
}
