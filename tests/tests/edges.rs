//! The filter in a real Envoy where things end: VMs that break, listeners that come and go, IPv6, three thousand requests
//! at once, connections that are tried again. Each test of a file runs in the newest Envoy and in the oldest that the
//! files are for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, ExitCode};

use tests::envoy::{self, Envoy, Version, replaced};
use tests::feeder::{Feeder, Service};
use tests::greeter::greeter;
use tests::http::{Client, Server};
use tests::load::connect;
use tests::{Program, SOON, World, wait_until};

fn main() -> ExitCode {
    envoy::main(tests::in_both_envoys![
        a_vm_that_breaks_is_made_anew_for_requests,
        a_vm_that_breaks_is_made_anew_for_connections,
        listeners_that_come_and_go_leave_no_reader_of_the_feed_behind,
        requests_reach_services_and_endpoints_with_ipv6_addresses,
        connections_reach_endpoints_with_ipv6_addresses,
        three_thousand_requests_at_once_are_answered,
        a_connection_whose_endpoint_refuses_is_tried_on_another_one,
    ])
}

const HTTP: &str = "127.0.0.1:8080";
const TCP: &str = "127.0.0.1:8081";
/// Of each Envoy: one for each of two workers, and one of the main thread.
const READERS: u64 = 3;

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

async fn servers(count: u8) -> Vec<Server> {
    let mut servers = Vec::new();
    for number in 1..=count {
        servers.push(Server::start(&format!("127.0.1.{number}:9000")).await);
    }
    servers
}

fn web(endpoints: impl IntoIterator<Item = SocketAddr>) -> Service {
    Service::new("web", "10.96.0.10", endpoints)
}

/// So many of them, `web-FIRST` and on, each at an address of its own.
async fn greeters(world: &World, first: usize, addresses: &[SocketAddr]) -> Vec<Program> {
    let mut programs = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        programs.push(greeter(world, &format!("web-{}", first + number), *address).await);
    }
    programs
}

/// Asks on new connections, which any worker may take, until all are answered by endpoints.
async fn all_answered(authority: &str) {
    wait_until(SOON, "every worker has the table", async || {
        for _ in 0..16 {
            let answer = Client::one(at(HTTP)).await?.get(authority, "/", &[]).await?;
            if answer.status != 200 {
                return Err(format!("{answer:?}"));
            }
        }
        Ok(())
    })
    .await;
}

/// So many connections, one after the other: who answered how often, and how many were closed without an answer.
async fn dial(to: SocketAddr, connections: usize) -> (BTreeMap<String, usize>, usize) {
    let (mut answers, mut failed) = (BTreeMap::new(), 0);
    for _ in 0..connections {
        match connect(to).await {
            Ok(name) => *answers.entry(name).or_default() += 1,
            Err(_) => failed += 1,
        }
    }
    (answers, failed)
}

async fn served(to: SocketAddr, by: usize) {
    wait_until(SOON, "both workers have the table", async || match dial(to, 24).await {
        (answers, 0) if answers.len() == by => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

fn brittle(world: &World, file: &str) -> String {
    let (whole, brittle) = (envoy::filter(), envoy::brittle_filter(world));
    replaced(&envoy::configuration(file), &whole.display().to_string(), &brittle.display().to_string())
}

async fn a_vm_that_breaks_is_made_anew_for_requests(world: World, version: Version) {
    let servers = servers(3).await;
    let feeder = Feeder::ready(&world, &[web(servers.iter().map(|server| server.address))], &[]).await;
    let envoy = Envoy::ready(&world, version, &brittle(&world, "http.yaml")).await;
    all_answered("web.shop").await;
    feeder.wait_readers(READERS).await;
    let names: Vec<_> = (0..50).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (&**name, "1")).collect();
    for round in 1..=3 {
        let mut client = Client::one(at(HTTP)).await.expect("a connection");
        let answer = client.get("web.shop", "/", &many).await.expect("an answer");
        assert_eq!(answer.status, 503, "the request that breaks it is refused: {answer:?}");
        // On the same connection, so by the same worker; between two reloads Envoy lets a second pass.
        wait_until(SOON, "its worker answers again", async || {
            match client.get("web.shop", "/", &[]).await? {
                answer if answer.status == 200 => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
        .await;
        let reloads = envoy.number("wasm.remora-http.vm_reload_success").await.expect("a number");
        assert_eq!(reloads, round, "{}", envoy.program.state());
    }
    all_answered("web.shop").await;
    // The streams of the VMs that broke went with them.
    feeder.wait_readers(READERS).await;
}

async fn a_vm_that_breaks_is_made_anew_for_connections(world: World, version: Version) {
    let endpoints = [1, 2, 3].map(|n| at(&format!("127.0.1.{n}:9001")));
    let _programs = greeters(&world, 1, &endpoints).await;
    let feeder = Feeder::ready(&world, &[web(endpoints)], &[]).await;
    let envoy = Envoy::ready(&world, version, &brittle(&world, "tcp.yaml")).await;
    // Each VM breaks at its tenth connection.
    wait_until(SOON, "VMs have broken and been made anew", async || {
        dial(at(TCP), 10).await;
        match envoy.number("wasm.remora-web.vm_reload_success").await? {
            reloads if reloads >= 2 => Ok(()),
            reloads => Err(format!("{reloads} reloads")),
        }
    })
    .await;
    // One at a time: ten that come faster than the table of a new VM break it before it has served one.
    wait_until(SOON, "connections are served again", async || match dial(at(TCP), 1).await {
        (answers, 0) if !answers.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    feeder.wait_readers(READERS).await;
}

async fn listeners_that_come_and_go_leave_no_reader_of_the_feed_behind(world: World, version: Version) {
    let servers = servers(2).await;
    let feeder = Feeder::ready(&world, &[web(servers.iter().map(|server| server.address))], &[]).await;
    // The listener of the file, as a discovery service tells it: in a file of its own.
    let text = envoy::configuration("http.yaml");
    let (head, rest) = text.split_once("  listeners:\n").expect("the file has listeners");
    let (listeners, clusters) = rest.split_once("  clusters:\n").expect("the file has clusters");
    let file = world.own_folder().join("listeners.yaml");
    let with = with_type(listeners);
    let write = |resources: &str, version: u32| {
        let draft = file.with_extension("draft");
        std::fs::write(&draft, format!("version_info: '{version}'\nresources:{resources}"))
            .expect("a folder");
        std::fs::rename(&draft, &file).expect("a folder");
    };
    write(&format!("\n{with}"), 0);
    let configuration = format!(
        "{head}  clusters:\n{clusters}node: {{id: envoy, cluster: envoy}}\ndynamic_resources: {{lds_config: \
         {{path_config_source: {{path: {}}}}}}}\n",
        file.display()
    );
    let envoy = Envoy::ready(&world, version, &configuration).await;
    all_answered("web.shop").await;
    feeder.wait_readers(READERS).await;
    for round in 0..4 {
        write(" []", 2 * round + 1);
        // Also with a connection that a client keeps: it is drained.
        feeder.wait_readers(0).await;
        write(&format!("\n{with}"), 2 * round + 2);
        all_answered("web.shop").await;
        feeder.wait_readers(READERS).await;
    }
    // And another configuration in the place of the one that is there.
    write(&format!("\n{}", replaced(&with, r#""connectTimeout": 10"#, r#""connectTimeout": 20"#)), 100);
    envoy_has_updated(&envoy).await;
    all_answered("web.shop").await;
    feeder.wait_readers(READERS).await;
    assert!(!envoy.program.output().contains("panicked"), "{}", envoy.program.state());
}

/// A resource of a discovery service names its type.
fn with_type(listeners: &str) -> String {
    const TYPE: &str = "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener";
    listeners.replacen("  - name:", &format!("  - {TYPE}\n    name:"), 1)
}

async fn envoy_has_updated(envoy: &Envoy) {
    wait_until(SOON, "the listener was updated in place", async || {
        match envoy.number("listener_manager.total_listeners_draining").await? {
            0 if envoy.number("listener_manager.listener_modified").await?
                + envoy.number("listener_manager.listener_in_place_updated").await?
                > 0 =>
            {
                Ok(())
            }
            draining => Err(format!("{draining} listeners drain")),
        }
    })
    .await;
}

fn add_address(ip: &str) {
    let output = Command::new("ip").args(["addr", "replace", ip, "dev", "lo", "nodad"]).output();
    let output = output.expect("iproute2");
    assert!(output.status.success(), "{ip}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn requests_reach_services_and_endpoints_with_ipv6_addresses(world: World, version: Version) {
    for ip in ["fd00:1::1/128", "fd00:1::2/128"] {
        add_address(ip);
    }
    let four = servers(2).await;
    let six = [Server::start("[fd00:1::1]:9000").await, Server::start("[fd00:1::2]:9000").await];
    let addresses = |servers: &[Server]| servers.iter().map(|server| server.address).collect::<Vec<_>>();
    let services = [
        Service::new("six", "fd00::10", addresses(&six)),
        Service::new("both", "10.96.0.11,fd00::11", [addresses(&four), addresses(&six)].concat()),
    ];
    let _feeder = Feeder::ready(&world, &services, &[]).await;
    // Clients of both families.
    let text = replaced(
        &envoy::configuration("http.yaml"),
        "{socket_address: {address: 127.0.0.1, port_value: 8080}}\n",
        "{socket_address: {address: 127.0.0.1, port_value: 8080}}\n    additional_addresses: [{address: \
         {socket_address: {address: '::1', port_value: 8080}}}]\n",
    );
    let _envoy = Envoy::ready(&world, version, &text).await;
    all_answered("six.shop").await;
    for to in [HTTP, "[::1]:8080"] {
        let mut client = Client::one(at(to)).await.expect("a connection");
        for (authority, expected) in [
            ("six.shop", &six[..]),
            ("[fd00::10]", &six),
            ("[fd00::10]:80", &six),
            ("[fd00:0::0:10]:80", &six),
            // The Service's first family, and the one that the address is of.
            ("both.shop", &four),
            ("10.96.0.11", &four),
            ("[fd00::11]:80", &six),
        ] {
            let mut met = BTreeMap::new();
            for _ in 0..20 {
                let answer = client.get(authority, "/", &[]).await.expect("an answer");
                assert_eq!(answer.status, 200, "{authority}: {answer:?}");
                *met.entry(answer.who().to_owned()).or_insert(0) += 1;
            }
            let mut names: Vec<_> = expected.iter().map(|server| server.address.to_string()).collect();
            names.sort();
            assert!(met.keys().eq(&names), "{to} {authority}: {met:?}");
        }
        let answer = client.get("[fd00::99]:80", "/", &[]).await.expect("an answer");
        assert_eq!((answer.status, &*answer.body), (503, "no such Service\n"));
    }
}

async fn connections_reach_endpoints_with_ipv6_addresses(world: World, version: Version) {
    for ip in ["fd00:1::1/128", "fd00:1::2/128", "fd00::10/128"] {
        add_address(ip);
    }
    let addresses = [at("[fd00:1::1]:9001"), at("[fd00:1::2]:9001")];
    let _programs = greeters(&world, 1, &addresses).await;
    let _feeder = Feeder::ready(&world, &[Service::new("web", "fd00::10", addresses)], &[]).await;
    let _envoy = Envoy::ready(&world, version, &envoy::configuration("tcp.yaml")).await;
    served(at(TCP), 2).await;
    drop(_envoy);
    // As README.md says of connections that are redirected.
    let text = envoy::configuration("original-destination.yaml");
    let text =
        replaced(&text, "{address: 127.0.0.1, port_value: 15001}", "{address: '::1', port_value: 15001}");
    let text = replaced(&text, "{address: 0.0.0.0, port_value: 0}", "{address: '::', port_value: 0}");
    let _envoy = Envoy::ready(&world, version, &text).await;
    for rule in [
        "add table ip6 remora-envoy",
        "add chain ip6 remora-envoy output { type nat hook output priority -100; }",
        "add rule ip6 remora-envoy output ip6 daddr fd00::/112 meta l4proto tcp meta mark != 1 redirect to :15001",
    ] {
        let output = Command::new("nft").arg(rule).output().expect("nftables");
        assert!(output.status.success(), "{rule}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let _other = greeter(&world, "ordinary", at("[fd00::10]:81")).await;
    served(at("[fd00::10]:80"), 2).await;
    let (answers, failed) = dial(at("[fd00::10]:81"), 10).await;
    assert_eq!((answers.get("ordinary"), failed), (Some(&10), 0), "{answers:?}");
    let ended = Command::new("nft").arg("delete table ip6 remora-envoy").status();
    assert!(ended.expect("nftables").success());
}

async fn three_thousand_requests_at_once_are_answered(world: World, version: Version) {
    const REQUESTS: usize = 3_000;
    const WAVE: usize = 200;
    let servers = servers(3).await;
    let _feeder = Feeder::ready(&world, &[web(servers.iter().map(|server| server.address))], &[]).await;
    let envoy = Envoy::ready(&world, version, &envoy::configuration("http.yaml")).await;
    all_answered("web.shop").await;
    let arrived = || servers.iter().map(Server::requests).sum::<u64>() as usize;
    let before = arrived();
    let mut asked = tokio::task::JoinSet::new();
    // In waves, as a listener's queue holds a thousand; all are under way before the first is answered.
    for wave in 1..=REQUESTS / WAVE {
        for _ in 0..WAVE {
            asked.spawn(async {
                let mut client = Client::one(at(HTTP)).await?;
                client.get("web.shop", "/slow/25000", &[]).await
            });
        }
        wait_until(SOON, "the wave has arrived", async || match arrived() - before {
            count if count >= wave * WAVE => Ok(()),
            count => Err(format!("{count} requests")),
        })
        .await;
    }
    let active = envoy.number("http.http.downstream_rq_active").await.expect("a number");
    assert!(active as usize >= REQUESTS, "only {active} requests are under way");
    let mut met = BTreeMap::new();
    for answer in asked.join_all().await {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        *met.entry(answer.who().to_owned()).or_insert(0) += 1;
    }
    assert!(met.len() == 3 && met.values().all(|count| *count > REQUESTS / 4), "{met:?}");
}

async fn a_connection_whose_endpoint_refuses_is_tried_on_another_one(world: World, version: Version) {
    let addresses: Vec<_> = (1..=4).map(|number| at(&format!("127.0.1.{number}:9001"))).collect();
    let mut programs = greeters(&world, 0, &addresses[..3]).await;
    let service = |balance| Service { balance, ..web(addresses.iter().copied()) };
    let feeder = Feeder::ready(&world, &[service("round-robin")], &[]).await;
    let envoy = Envoy::ready(&world, version, &envoy::configuration("tcp-retry.yaml")).await;
    // Nobody listens at the fourth, and no client feels it.
    served(at(TCP), 3).await;
    let (answers, failed) = dial(at(TCP), 60).await;
    assert_eq!((answers.len(), failed), (3, 0), "{answers:?}");
    envoy.wait_number("remora_retries_total", |retries| retries > 0).await;
    envoy.wait_log("endpoint=127.0.1.4:9001").await;
    // Nor that one of them dies.
    programs.remove(0).kill();
    let (answers, failed) = dial(at(TCP), 60).await;
    assert_eq!((answers.len(), failed), (2, 0), "{answers:?}");
    // The plugin knows the client: it stays with its endpoint.
    feeder.change(&[Service { sticky: true, ..service("round-robin") }]);
    wait_until(SOON, "clients stay", async || match dial(at(TCP), 24).await {
        // With one for each worker, at most.
        (answers, 0) if answers.len() <= 2 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // Where nobody serves, the connection ends.
    feeder.change(&[web([])]);
    wait_until(SOON, "nobody serves", async || match dial(at(TCP), 12).await {
        (answers, 12) if answers.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
