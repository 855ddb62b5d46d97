//! One decision, everywhere: the native build, the module in a real Envoy and the module in a real Chromium answer the
//! same cases alike, and a page that follows a real feed says what `remora explain` says.

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use filter::cases::Answer;
use selection::story::Outcome;
use serde_json::{Value, json};
use tests::chromium::Module;
use tests::envoy::{self, Envoy, Version};
use tests::feeder::{Feeder, Service};
use tests::http::Poster;
use tests::sameness::{Cases, Count, random, vectors};
use tests::world::{self, Test};
use tests::{Chromium, Site, World, tools};

fn main() -> ExitCode {
    if !world::is_inside() && !std::env::args().any(|argument| argument == "--list") {
        envoy::build_filter_with_cases();
        Module::Cases.build(SAMENESS);
        Module::Released.build(TABLE);
    }
    macro_rules! each {
        ($($test:ident),+ $(,)?) => {
            vec![$(Test { name: stringify!($test), run: |world| Box::pin($test(world)) }),+]
        };
    }
    world::main(each![
        the_native_build_says_what_kube_proxy_and_the_facts_themselves_say,
        an_answer_that_differs_in_one_bit_is_found,
        the_module_in_envoy_answers_every_case_as_the_native_build,
        the_module_in_chromium_answers_every_case_as_the_native_build,
        a_page_that_follows_a_feed_says_what_remora_explain_says,
    ])
}

/// Random picks of which everything is told; there are half as many connections beside.
const PICKS: usize = 100_000;
/// The seed of the cases; another one is taken from `REMORA_SEED`.
const SEED: u64 = 0x5eed;

/// The pages of `tests/pages`.
const SAMENESS: &str = "sameness";
const TABLE: &str = "table";

/// How long a browser may take to start, and for one page of the cases, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn cases() -> &'static Cases {
    static CASES: OnceLock<Cases> = OnceLock::new();
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    CASES.get_or_init(|| {
        let seed =
            std::env::var("REMORA_SEED").map_or(SEED, |seed| seed.parse().expect("REMORA_SEED: a number"));
        let mut cases = vectors();
        cases.extend(random(seed, PICKS));
        Cases::new(cases)
    })
}

/// Panics with the difference, as it is to be read.
fn show(compared: Result<(), String>) {
    compared.unwrap_or_else(|difference| panic!("{difference}"));
}

async fn the_native_build_says_what_kube_proxy_and_the_facts_themselves_say(_: World) {
    let Count { asks, connects, tables } = cases().count();
    eprintln!("{asks} picks, {connects} connections, {tables} tables");
    assert!(asks >= PICKS + 5_000 && connects >= PICKS / 2 && tables >= 300 + PICKS / 40);
    // Cases in which nothing happens would prove nothing.
    let count = |is_it: fn(&Answer) -> bool| cases().answers().filter(|answer| is_it(answer)).count();
    let picked =
        |outcome| move |answer: &Answer| matches!(answer, Answer::Asked(reply) if reply.outcome == outcome);
    let outcomes = [Outcome::Endpoint, Outcome::Refuse, Outcome::Drop, Outcome::Pass]
        .map(|outcome| cases().answers().filter(|answer| picked(outcome)(answer)).count());
    assert!(outcomes[0] > asks / 2 && outcomes.iter().all(|count| *count > asks / 100), "{outcomes:?}");
    let pinned = count(|answer| matches!(answer, Answer::Asked(reply) if reply.pin.is_some()));
    let retried = count(|answer| matches!(answer, Answer::Connected(_, endpoints) if endpoints.len() > 1));
    let aside = count(|answer| matches!(answer, Answer::Settled(aside) if !aside.is_empty()));
    eprintln!(
        "{outcomes:?} endpoints, refused, dropped, passed; {pinned} with a pin; {retried} with a second endpoint; {aside} put aside"
    );
    assert!(pinned > asks / 10 && retried > connects / 10 && aside > connects / 20);
}

async fn an_answer_that_differs_in_one_bit_is_found(_: World) {
    let page = &cases().pages[0];
    let answers = filter::cases::examine(&page.bytes).expect("answers");
    show(cases().compare("the same build", page, &answers));
    for at in (0..answers.len()).step_by(answers.len() / 50) {
        let mut other = answers.clone();
        other[at] ^= 1;
        assert!(cases().compare("another build", page, &other).is_err(), "byte {at} may be anything");
    }
}

/// An Envoy whose only plugin answers cases. A body is read as a whole before anything is answered.
const EXAMINER: &str = r#"
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: http
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    per_connection_buffer_limit_bytes: 8388608
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          http_filters:
          - name: remora
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config:
                name: remora-cases
                root_id: cases
                allow_on_headers_stop_iteration: true
                vm_config: {vm_id: remora, runtime: envoy.wasm.runtime.v8, code: {local: {filename: FILTER}}}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 404}}]}
"#;

async fn the_module_in_envoy_answers_every_case_as_the_native_build(world: World) {
    let configuration = EXAMINER.replace("FILTER", &envoy::filter_with_cases().display().to_string());
    let envoy = Envoy::ready(&world, Version::Newest, &configuration).await;
    let address: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
    let mut poster = Poster::connect(address).await.expect("a connection");
    for (at, page) in cases().pages.iter().enumerate() {
        let answered = tokio::time::timeout(PATIENCE, poster.post("/", page.bytes.clone())).await;
        match answered {
            Ok(Ok((200, answers))) => {
                show(cases().compare("the module in Envoy", page, &answers));
            }
            other => panic!("page {at} of the cases: {other:?}; {}", envoy.program.state()),
        }
    }
}

async fn the_module_in_chromium_answers_every_case_as_the_native_build(world: World) {
    let mut files = Module::Cases.files(SAMENESS);
    let pages = cases().pages.iter().enumerate();
    files.extend(pages.map(|(at, page)| (format!("/cases/{at}"), page.bytes.clone())));
    let mut site = Site::start(files, None).await;
    let chromium = Chromium::open(&world, &site);
    for (at, page) in cases().pages.iter().enumerate() {
        let (word, answers) = reported(&mut site, &chromium).await;
        assert_eq!(word, at.to_string());
        show(cases().compare("the module in Chromium", page, &answers));
    }
    let (word, agent) = reported(&mut site, &chromium).await;
    eprintln!("{}", String::from_utf8_lossy(&agent));
    assert_eq!(word, "done");
}

async fn reported(site: &mut Site, chromium: &Chromium) -> (String, hyper::body::Bytes) {
    let report = site.report(PATIENCE).await;
    report.unwrap_or_else(|why| panic!("{why}; {}", chromium.program.state()))
}

/// Services of every balance, one of them sticky, one with nobody.
fn services(endpoints: u8) -> Vec<Service> {
    let addresses = || (1..=endpoints).map(|n| SocketAddr::from(([10, 244, 0, n], 8080)));
    let service = |name, ip, balance| Service { balance, ..Service::new(name, ip, addresses()) };
    vec![
        service("least", "10.96.0.10", "least-connections"),
        service("random", "10.96.0.11", "random"),
        service("turns", "10.96.0.12", "round-robin"),
        service("maglev", "10.96.0.13", "maglev"),
        Service { sticky: true, ..service("sticky", "10.96.0.14", "random") },
        Service::new("nobody", "10.96.0.15", []),
    ]
}

/// Each client to each of them, and to somebody whom nobody knows.
fn connections() -> Vec<Value> {
    let addresses = (10..=16).map(|last| format!("10.96.0.{last}:80"));
    let clients = |address: String| {
        (0..5).map(move |n| json!({"address": address, "client": format!("10.244.7.{n}:{}", 40_000 + n)}))
    };
    addresses.flat_map(clients).collect()
}

async fn a_page_that_follows_a_feed_says_what_remora_explain_says(world: World) {
    let connections = connections();
    let mut files = Module::Released.files(TABLE);
    let questions = json!({"here": {"node": "n1", "zone": "a"}, "connections": connections});
    files.insert("/questions.json".to_owned(), questions.to_string().into_bytes());
    let feeder = Feeder::ready(&world, &services(5), &[]).await;
    let mut site = Site::start(files, Some(("/v1/feed", feeder.feed()))).await;
    let chromium = Chromium::open(&world, &site);
    // The first table, and the one of a delta.
    for endpoints in [5, 7] {
        if endpoints != 5 {
            feeder.change(&services(endpoints));
        }
        let table = loop {
            let (word, text) = reported(&mut site, &chromium).await;
            assert_eq!(word, "table", "{}", String::from_utf8_lossy(&text));
            let table: Value = serde_json::from_slice(&text).expect("JSON");
            // Files may be read while they are changed, and changes come in as many tables as they like.
            let counts = table["services"].as_array().expect("a list").iter().map(|port| {
                (port["service"] != "shop/nobody").then(|| port["cluster"].as_array().expect("a list").len())
            });
            if counts.flatten().all(|count| count == usize::from(endpoints)) {
                break table;
            }
        };
        agrees(&table, &feeder, &connections);
    }
}

/// What a page reports of a table is what `remora` prints of the same.
fn agrees(table: &Value, feeder: &Feeder, connections: &[Value]) {
    let remora = |words: &[&str]| -> Value {
        let mut command = Command::new(tools::own("remora", "sidecar"));
        let source = feeder.source();
        command.args(words).args(["--source", &source, "--node", "n1", "--zone", "a", "-o", "json"]);
        let output = command.output().expect("remora");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let mut endpoints = 0;
    for ((connection, story), reply) in connections
        .iter()
        .zip(table["stories"].as_array().expect("a list"))
        .zip(table["replies"].as_array().expect("a list"))
    {
        let word = |key: &str| connection[key].as_str().expect("a text");
        let told = remora(&["explain", word("address"), "--client", word("client")]);
        assert_eq!(*story, told, "{connection}");
        let [outcome, endpoint] = ["outcome", "endpoint"].map(|key| &told[key]);
        assert_eq!([&reply["outcome"], &reply["endpoint"]], [outcome, endpoint], "{connection}");
        endpoints += usize::from(*outcome == "endpoint");
    }
    assert_eq!((endpoints, connections.len()), (25, 35), "five Services serve, two addresses do not");
    let mut listed = remora(&["endpoints"]);
    for row in listed.as_array_mut().expect("a list") {
        let row = row.as_object_mut().expect("an object");
        // Those that do not serve too, and why.
        row.remove("endpoints").expect("a list");
        // What no pick asks for, and no feed tells.
        row.remove("type").expect("a type");
    }
    assert_eq!(table["services"], listed);
    let of_one = table["endpoints"]["shop/least:80"].as_array().expect("a list");
    let cluster = table["services"][0]["cluster"].as_array().expect("a list");
    assert_eq!(
        of_one.iter().map(|endpoint| &endpoint["address"]).collect::<Vec<_>>(),
        cluster.iter().collect::<Vec<_>>()
    );
    assert!(table["age"].as_f64().is_some_and(|age| (0.0..60_000.0).contains(&age)), "{}", table["age"]);
    for (wrong, part) in [
        ("address", "the inquiry is wrong: invalid socket address"),
        ("service", "\"Shop\" is not the name"),
        ("client", "missing field `client`"),
    ] {
        let sentence = table["wrong"][wrong].as_str().expect("a sentence");
        assert!(sentence.contains(part), "{wrong}: {sentence}");
    }
    assert_eq!(table["noFeed"], "the feed sent what is no frame");
}
