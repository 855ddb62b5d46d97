//! What a captured Pod of a large cluster costs that uses few of its Services: the memory of its sidecar, on demand and
//! knowing all; how long the first connection to a Service takes, and later ones. With the program of the image. Prints
//! each figure, the bounded one beside its bound, and fails if that is not kept.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tests::image::Image;
use tests::inside::{Client, ROOT};
use tests::world::{self, Test};
use tests::{Host, Program, World, ask, remora, scale, tools, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// A hub reads thousands of files.
const PATIENCE: Duration = Duration::from_secs(180);
/// Services of the cluster, of ten endpoints each.
const SERVICES: usize = 10_000;
/// Services that the Pod uses.
const USED: usize = 50;
/// Bytes that its sidecar may have resident.
const BOUND: u64 = 10_000_000;
/// The user of the sidecar, and where it tells how it is.
const USER: u32 = 64102;
const HEALTH: u16 = 64104;

static IS_MISSED: Mutex<bool> = Mutex::new(false);

fn main() -> ExitCode {
    let ended = world::main(vec![Test { name: "few_of_many", run: |world| Box::pin(few_of_many(world)) }]);
    if *IS_MISSED.lock().expect("no panic holds it") { ExitCode::FAILURE } else { ended }
}

async fn few_of_many(world: World) {
    let root = world.own_folder().join("root");
    std::fs::create_dir_all(&root).expect("the folder of the world");
    Image::built(&world).lay(&root);
    std::fs::create_dir_all("/run/programs").expect("a folder in memory");
    let program = Path::new("/run/programs/remora-of-the-image");
    tools::copy_program(&root.join("remora"), program);

    let manifests = world.own_folder().join("manifests");
    std::fs::create_dir_all(&manifests).expect("the folder of the world");
    let _cluster = scale::Cluster::write(&manifests, SERVICES);
    let feed = format!("unix:{}", world.own_folder().join("feed").display());
    let mut hub = Command::new(program);
    hub.args(["hub", "--feed", &feed, "--source", &format!("manifests:{}", manifests.display())]);
    let hub = Program::start(&world, "hub", hub);
    // Every endpoint is here.
    let routed =
        Command::new("ip").args(["route", "replace", "local", "100.64.0.0/10", "dev", "lo"]).status();
    assert!(routed.expect("ip, of iproute2").success(), "a route to the endpoints");
    let listener = TcpListener::bind("0.0.0.0:8080").await.expect("a free port");
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.write_all(b"here\n").await.is_ok() {
                kept.push(stream);
            }
        }
    });

    println!("{SERVICES} Services, {} endpoints, {USED} Services used", SERVICES * scale::ENDPOINTS);
    for (name, idle) in [("on demand", "10m"), ("knowing all", "off")] {
        let pod = Host::new(&world, "pod");
        let up = remora::run(&pod, &["capture", "up", "--services", "10.112.0.0/16"], None).await;
        up.expect("capture works");
        let mut command = pod.command_as(USER, &["net_raw"], program);
        let health = format!("0.0.0.0:{HEALTH}");
        command.args(["sidecar", "--capture", "--source", &format!("feed:{feed}"), "--health", &health]);
        command.args(["--on-demand-idle", idle]);
        let sidecar = Program::start(&world, name, command);
        let health = SocketAddr::new(pod.ip4().into(), HEALTH);
        let metric = async |name: &str| -> Result<u64, String> {
            let (_, page) = ask::get(health, "/metrics").await?;
            let value =
                page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
            value.ok_or(page)
        };
        wait_until(PATIENCE, "it captures", async || match metric("remora_capture_families").await {
            _ if remora::run(&pod, &["capture", "show"], None).await?.contains("sidecar alive: yes") => {
                Ok(())
            }
            other => Err(format!("{other:?}; {}; {}", sidecar.state(), hub.state())),
        })
        .await;
        let (mut first, mut later, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..USED {
            let service = Ipv4Addr::from(0x0a70_0000 + (number * 197 % SERVICES) as u32);
            for times in [&mut first, &mut later] {
                let begun = Instant::now();
                let client = Client::open(&pod, ROOT, (service, 80).into()).await;
                times.push(begun.elapsed());
                open.push(client.unwrap_or_else(|error| panic!("{service}: {error}; {}", sidecar.state())));
            }
        }
        let taken = metric("remora_services").await.expect("it is told");
        let resident = sidecar.resident();
        let median = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() * 1e3
        };
        println!(
            "{name:<12} {taken:>6} known, {:>6.1} MB resident; first connection {:.2} ms, later {:.2} ms (medians)",
            resident as f64 / 1e6,
            median(&mut first),
            median(&mut later)
        );
        if idle != "off" && (resident > BOUND || taken != USED as u64) {
            println!("NOT KEPT: {} MB, {USED} known", BOUND / 1_000_000);
            *IS_MISSED.lock().expect("no panic holds it") = true;
        }
        drop(open);
    }
}
