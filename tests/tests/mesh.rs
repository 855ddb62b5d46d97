//! The filter with clusters that are not Remora's, in a real Envoy with two workers: the cluster keeps all its own ways,
//! and Remora says only which of its endpoints a request goes to. Each test of a file runs in the newest Envoy and in the
//! oldest that the files are for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use tests::envoy::{self, Envoy, Version, replaced};
use tests::feeder::{Feeder, Service};
use tests::http::{Client, Server};
use tests::{SOON, World, envoy_gateway, istio, wait_until};

fn main() -> ExitCode {
    envoy::main(tests::in_both_envoys![
        remora_chooses_among_the_endpoints_that_the_cluster_has,
        the_cluster_chooses_where_remora_says_nothing,
        an_endpoint_that_refuses_is_left_for_the_next_one_of_the_list,
        a_client_cannot_choose_among_the_endpoints_of_a_cluster,
        the_list_may_stay_a_header_until_the_endpoint_is_chosen,
        a_route_of_envoy_gateway_goes_where_remora_says_and_tells_no_endpoint,
        a_sidecar_of_istio_keeps_its_mutual_tls_and_its_retries_and_goes_where_remora_says,
    ])
}

const HTTP: &str = "127.0.0.1:8080";

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// The address of an endpoint.
fn endpoint(number: u8) -> SocketAddr {
    at(&format!("127.0.1.{number}:9000"))
}

async fn servers(count: u8) -> Vec<Server> {
    let mut servers = Vec::new();
    for number in 1..=count {
        servers.push(Server::start(&endpoint(number).to_string()).await);
    }
    servers
}

/// What Remora knows: these are the endpoints of the Service.
fn web(endpoints: &[u8]) -> Service {
    Service::new("web", "10.96.0.10", endpoints.iter().map(|number| endpoint(*number)))
}

/// What the cluster knows: an answer of a discovery service, in a file.
fn endpoints_of_cluster(world: &World, endpoints: &[u8]) -> PathBuf {
    let mut text = String::from(
        "version_info: '1'\nresources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  \
         cluster_name: web\n  endpoints:\n  - lb_endpoints:\n",
    );
    for endpoint in endpoints.iter().map(|number| endpoint(*number)) {
        let (ip, port) = (endpoint.ip(), endpoint.port());
        writeln!(
            text,
            "    - endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}"
        )
        .expect("text grows");
    }
    let path = world.own_folder().join("endpoints.yaml");
    std::fs::write(&path, text).expect("the folder of the world");
    path
}

/// An Envoy whose cluster has these endpoints.
async fn with_cluster(world: &World, version: Version, endpoints: &[u8]) -> Envoy {
    let file = endpoints_of_cluster(world, endpoints).display().to_string();
    let text = replaced(&envoy::configuration("override-host.yaml"), "/etc/remora/endpoints.yaml", &file);
    Envoy::ready(world, version, &text).await
}

/// As many requests, each on a connection of its own, so that all workers get some; how often who answered.
async fn answers(authority: &str, requests: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..requests {
        let mut client = Client::one(at(HTTP)).await.expect("a connection");
        let answer = client.get(authority, "/", &[]).await.expect("an answer");
        assert!(!answer.body.contains("x-remora"), "{answer:?}");
        *answers.entry(answer.who().to_owned()).or_default() += 1;
    }
    answers
}

/// Asks until these and no others answer.
async fn only(endpoints: &[u8]) {
    only_for("web.shop", endpoints).await;
}

async fn only_for(authority: &str, endpoints: &[u8]) {
    let wished: Vec<_> = endpoints.iter().map(|number| endpoint(*number).to_string()).collect();
    wait_until(SOON, "every worker has the table", async || {
        let answers = answers(authority, 32).await;
        if answers.keys().eq(&wished) { Ok(()) } else { Err(format!("{answers:?}")) }
    })
    .await;
}

async fn remora_chooses_among_the_endpoints_that_the_cluster_has(world: World, version: Version) {
    let servers = servers(5).await;
    let feeder = Feeder::ready(&world, &[web(&[1, 2])], &[]).await;
    let envoy = with_cluster(&world, version, &[1, 2, 3, 4]).await;
    only(&[1, 2]).await;
    // On one connection the turn goes round.
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let mut turns = BTreeMap::new();
    for _ in 0..40 {
        let answer = client.get("web.shop", "/", &[]).await.expect("an answer");
        *turns.entry(answer.who().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(turns.into_values().collect::<Vec<_>>(), [20, 20]);
    // The fifth is none of the cluster's, and is passed over.
    feeder.change(&[web(&[3, 5])]);
    only(&[3]).await;
    assert_eq!(servers[4].requests(), 0);
    // Nothing failed, and nobody is blamed for it.
    assert_eq!(envoy.number("wasmcustom.remora_connect_failures_total").await, Ok(0));
}

async fn the_cluster_chooses_where_remora_says_nothing(world: World, version: Version) {
    let _servers = servers(3).await;
    let services = [web(&[1]), Service::new("empty", "10.96.0.11", [])];
    let _feeder = Feeder::ready(&world, &services, &[]).await;
    let envoy = with_cluster(&world, version, &[1, 2, 3]).await;
    only(&[1]).await;
    let answers = answers("www.example.com", 60).await;
    assert_eq!(answers.len(), 3, "{answers:?}");
    envoy.wait_number("remora_requests_passed_total", |passed| passed >= 60).await;
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    let answer = client.get("empty.shop", "/", &[]).await.expect("an answer");
    assert_eq!((answer.status, &*answer.body), (503, "remora: no endpoint of the Service can serve\n"));
}

async fn an_endpoint_that_refuses_is_left_for_the_next_one_of_the_list(world: World, version: Version) {
    // Nobody listens at the third.
    let _servers = servers(2).await;
    let _feeder = Feeder::ready(&world, &[web(&[1, 2, 3])], &[]).await;
    let envoy = with_cluster(&world, version, &[1, 2, 3]).await;
    envoy.wait_number("remora_services", |services| services == 1).await;
    only(&[1, 2]).await;
    let answers = answers("web.shop", 100).await;
    assert!(answers.keys().eq(["127.0.1.1:9000", "127.0.1.2:9000"]), "{answers:?}");
    envoy.wait_number("remora_retries_total", |retries| retries > 0).await;
    envoy.wait_log("endpoint=127.0.1.3:9000").await;
    let log = envoy.program.output();
    for well in ["127.0.1.1:9000", "127.0.1.2:9000"] {
        assert!(!log.contains(&format!("endpoint={well}")), "{log}");
    }
}

async fn a_client_cannot_choose_among_the_endpoints_of_a_cluster(world: World, version: Version) {
    let servers = servers(3).await;
    // The second is dead for whoever goes by the list, so that what comes after it would be tried too.
    let _feeder = Feeder::ready(&world, &[web(&[1, 4])], &[]).await;
    let _envoy = with_cluster(&world, version, &[1, 2, 3, 4]).await;
    only(&[1]).await;
    let before = servers[1].requests() + servers[2].requests();
    let twice = [
        ("x-remora-endpoints", "127.0.1.3:9000"),
        ("X-Remora-Endpoints", "127.0.1.2:9000,127.0.1.3:9000"),
        ("x-remora-endpoint-1", "127.0.1.3:9000"),
        ("x-envoy-original-dst-host", "127.0.1.3:9000"),
    ];
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    for _ in 0..60 {
        let answer = client.get("web.shop", "/", &twice).await.expect("an answer");
        assert_eq!((answer.status, answer.who()), (200, "127.0.1.1:9000"), "{answer:?}");
        assert!(!answer.body.contains("x-remora-endpoints"), "{answer:?}");
    }
    assert_eq!(servers[1].requests() + servers[2].requests(), before);
    // Where Remora says nothing, what the client says is gone too, and the cluster chooses; the dead one as well.
    let mut met = BTreeMap::new();
    for _ in 0..60 {
        let answer = client.get("www.example.com", "/", &twice[..1]).await.expect("an answer");
        *met.entry(answer.who().to_owned()).or_insert(0) += 1;
    }
    let answered = (1..=3).filter(|number| met.contains_key(&endpoint(*number).to_string())).count();
    assert_eq!(answered, 3, "{met:?}");
}

/// What a mesh does whose clusters can only look into a header, and whose router takes it away.
async fn the_list_may_stay_a_header_until_the_endpoint_is_chosen(world: World, version: Version) {
    let servers = servers(2).await;
    let _feeder = Feeder::ready(&world, &[web(&[1, 4])], &[]).await;
    let file = endpoints_of_cluster(&world, &[1, 2, 4]).display().to_string();
    let text = replaced(&envoy::configuration("override-host.yaml"), "/etc/remora/endpoints.yaml", &file);
    let (before, rest) =
        text.split_once("          # Takes what Remora decided").expect("the filter is there");
    let (_, after) =
        rest.split_once("          - name: envoy.filters.http.router").expect("the router is there");
    let text = format!("{before}          - name: envoy.filters.http.router{after}");
    let text = replaced(
        &text,
        "override_host_sources: [{metadata: {key: remora, path: [{key: endpoints}]}}]",
        "override_host_sources: [{header: x-remora-endpoints}]",
    );
    let text = replaced(
        &text,
        "filters.http.router.v3.Router}",
        "filters.http.router.v3.Router, upstream_http_filters: [{name: remora-endpoints, typed_config: {\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: \
         {request_mutations: [{remove: x-remora-endpoints}]}}}, {name: envoy.filters.http.upstream_codec, \
         typed_config: {\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec}}]}",
    );
    let envoy = Envoy::ready(&world, version, &text).await;
    only(&[1]).await;
    let before = servers[1].requests();
    let retries = envoy.number("wasmcustom.remora_retries_total").await.expect("a number");
    // Now and then the fourth is tried first, where nobody listens, and the first is next.
    wait_until(SOON, "some are tried again", async || {
        let answers = answers("web.shop", 32).await;
        assert!(answers.keys().eq(["127.0.1.1:9000"]), "{answers:?}");
        match envoy.number("wasmcustom.remora_retries_total").await? {
            number if number > retries => Ok(()),
            number => Err(format!("{number} retries")),
        }
    })
    .await;
    assert_eq!(servers[1].requests(), before);
}

async fn a_route_of_envoy_gateway_goes_where_remora_says_and_tells_no_endpoint(
    world: World,
    version: Version,
) {
    let servers = servers(3).await;
    let feeder = Feeder::ready(&world, &[web(&[1, 2])], &[]).await;
    let ips: Vec<_> = (1..=4).map(|number| endpoint(number).ip().to_string()).collect();
    let text = envoy_gateway::configuration(&world, &envoy::filter(), &ips);
    let envoy = Envoy::ready(&world, version, &text).await;
    // Whatever a client calls the Service: the plugin knows whom the route is for.
    only_for("www.example.com", &[1, 2]).await;
    let before = servers[2].requests();
    let steering = [("x-remora-endpoints", "127.0.1.3:9000"), ("X-Remora-Endpoints", "127.0.1.3:9000")];
    let mut client = Client::one(at(HTTP)).await.expect("a connection");
    for _ in 0..40 {
        let answer = client.get("www.example.com:8080", "/", &steering).await.expect("an answer");
        assert!(answer.status == 200 && !answer.body.contains("x-remora"), "{answer:?}");
    }
    assert_eq!(servers[2].requests(), before);
    // Nobody listens at the fourth.
    feeder.change(&[web(&[3, 4])]);
    only_for("www.example.com", &[3]).await;
    envoy.wait_number("remora_retries_total", |retries| retries > 0).await;
}

/// An address of the Service, as the Pod `client` dials it.
const DIALLED: &str = "10.96.0.10:80";

/// A request to the Service, from the Pod: which Pod answered, and all that its server saw.
async fn from_pod(authority: &str, more: &[(&str, &str)]) -> Result<(String, String), String> {
    let answer = Client::one(at(DIALLED)).await?.get(authority, "/", more).await?;
    if answer.status != 200 {
        return Err(format!("{answer:?}"));
    }
    Ok((answer.who().to_owned(), answer.body))
}

/// Asks until these Pods and no others answer, each request well.
async fn only_pods(authority: &str, pods: &[u8]) {
    let wished: Vec<_> = pods.iter().map(|number| format!("127.0.2.{number}:9000")).collect();
    wait_until(SOON, &format!("the Pods {pods:?} answer"), async || {
        let mut answers = BTreeMap::new();
        for _ in 0..40 {
            *answers.entry(from_pod(authority, &[]).await?.0).or_insert(0) += 1;
        }
        if answers.keys().eq(&wished) { Ok(()) } else { Err(format!("{answers:?}")) }
    })
    .await;
}

async fn a_sidecar_of_istio_keeps_its_mutual_tls_and_its_retries_and_goes_where_remora_says(
    world: World,
    version: Version,
) {
    istio::assert_current();
    let mut servers = Vec::new();
    for number in 1..=3 {
        servers.push(Server::start(&format!("127.0.2.{number}:9000")).await);
    }
    let feeder = Feeder::ready(&world, &[web(&[1, 2])], &[]).await;
    istio::certificates(&world);
    // Nobody listens at the fourth Pod.
    let _pods = Envoy::start_as(&world, "pods", version, &istio::pods(&world, &[1, 2, 3]));
    let envoy = Envoy::ready(&world, version, &istio::client(&world, &envoy::filter())).await;
    // What istio-init does in a Pod.
    run("ip", &["addr", "replace", "10.96.0.10/32", "dev", "lo"]);
    run("nft", &["add table ip istio"]);
    run("nft", &["add chain ip istio output { type nat hook output priority -100; }"]);
    run("nft", &["add rule ip istio output ip daddr 10.96.0.0/12 meta l4proto tcp redirect to :15001"]);

    for authority in ["web", "web.shop", "web.shop.svc.cluster.local", "10.96.0.10"] {
        only_pods(authority, &[1, 2]).await;
    }
    let steering = [("x-remora-endpoints", "127.0.1.3:9000"), ("x-remora-endpoints", "127.0.1.3:9000")];
    for _ in 0..20 {
        let (who, seen) = from_pod("web.shop", &steering).await.expect("an answer");
        assert_ne!(who, "127.0.2.3:9000", "a client has chosen");
        assert!(seen.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "no mutual TLS: {seen}");
        assert!(!seen.contains("x-remora"), "{seen}");
    }
    // The fourth is tried now and then, and Istio's own retries go on to the third.
    feeder.change(&[web(&[3, 4])]);
    only_pods("web.shop", &[3]).await;
    envoy.wait_number("remora_retries_total", |retries| retries > 0).await;
    envoy.wait_log("endpoint put aside service=shop/web port= endpoint=127.0.1.4:9000").await;
    // Where Remora knows nothing, Istio chooses among all.
    feeder.change(&[]);
    only_pods("web.shop", &[1, 2, 3]).await;
    let requests = envoy.number("cluster.outbound|80||web.shop.svc.cluster.local;.upstream_rq_total").await;
    assert!(requests.as_ref().is_ok_and(|requests| *requests > 0), "not Istio's cluster: {requests:?}");
    run("nft", &["delete table ip istio"]);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("iproute2 and nftables");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
