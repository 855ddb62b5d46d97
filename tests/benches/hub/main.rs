//! What ten thousand readers cost one hub: each on a connection of its own, each subscribed to some of the Services of a
//! large cluster. How soon a change reaches who subscribes to it, in how many bytes; the hub's memory and processor
//! meanwhile; and how long a hub that was killed is missed. Prints each figure beside its bound, and fails where a bound
//! is not kept. The hub, who feeds it and who reads share this machine's processors.

mod origin;
mod reader;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tests::world::{self, Test};
use tests::{Program, World, ask, tools, wait_until};

use origin::Origin;
use reader::Readers;

/// Readers, each by its own connection.
const READERS: usize = 10_000;
/// Services of the cluster.
const SERVICES: usize = 10_000;
/// Endpoints of each of them.
const ENDPOINTS: usize = 10;
/// Services that a reader subscribes to, as many as a Service has readers.
const EACH: usize = 50;
/// Endpoints that change in a second.
const RATE: u32 = 100;
/// How many change while the hub is measured.
const CHANGES: usize = 3_000;

/// A step takes no longer, or the bench gives up.
const PATIENCE: Duration = Duration::from_secs(240);

const FEED: &str = "127.0.0.1:64105";
const HEALTH: &str = "127.0.0.1:64104";

static IS_MISSED: Mutex<bool> = Mutex::new(false);

fn main() -> ExitCode {
    let ended = world::main(vec![Test {
        name: "ten_thousand_readers_of_one_hub",
        run: |world| Box::pin(ten_thousand_readers(world)),
    }]);
    if *IS_MISSED.lock().expect("no panic holds it") { ExitCode::FAILURE } else { ended }
}

/// A figure, and the bound that it is to keep.
fn row(what: &str, figure: f64, bound: Option<f64>) {
    let is_over = bound.is_some_and(|bound| figure > bound);
    *IS_MISSED.lock().expect("no panic holds it") |= is_over;
    let shown = bound.map(|bound| bound.to_string()).unwrap_or_default();
    println!("{what:<66}{figure:>10.2}{shown:>10}{}", if is_over { "  MISSED" } else { "" });
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

async fn ten_thousand_readers(world: World) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a descriptor for each reader; raise the limit with ulimit -n");
    let origin = Origin::start();
    let hub = hub(&world, &origin).await;
    println!(
        "{READERS} readers of {EACH} of {SERVICES} Services, {} endpoints; {RATE} of them change in a second",
        SERVICES * ENDPOINTS
    );
    println!("{:<66}{:>10}{:>10}", "", "", "bound");
    row("resident without readers, MB", megabytes(hub.resident()), None);

    let begun = Instant::now();
    let readers = Readers::start(Arc::clone(&origin.sent));
    let synced = async |round: usize, hub: &Program| {
        wait_until(PATIENCE, "all readers have a snapshot", async || match readers.synced(round) {
            READERS => Ok(()),
            synced => Err(format!("{synced} have; {}", hub.state())),
        })
        .await;
    };
    synced(1, &hub).await;
    row("all readers have their first snapshot after, s", begun.elapsed().as_secs_f64(), None);
    row("resident with idle readers, MB", megabytes(hub.resident()), Some(300.0));

    // What happens in the first moments is not what is measured.
    changes(&origin, &readers, RATE as usize).await;
    readers.take();
    let (begun, before, frames) = (Instant::now(), hub.cpu(), readers.frames());
    let idle = Duration::from_secs(10);
    wait_until(PATIENCE, "a while without changes", async || match begun.elapsed() {
        passed if passed >= idle => Ok(()),
        passed => Err(format!("{passed:?}")),
    })
    .await;
    let spent = |before: u64, begun: Instant| (hub.cpu() - before) as f64 / begun.elapsed().as_nanos() as f64;
    row("processors that it uses without changes", spent(before, begun), None);
    let beats = (readers.frames() - frames) as f64 / begun.elapsed().as_secs_f64();
    println!("  ({beats:.0} signs of life a second)");

    let (begun, before) = (Instant::now(), hub.cpu());
    changes(&origin, &readers, CHANGES).await;
    row("processors that it uses while endpoints change", spent(before, begun), Some(1.0));
    row("resident while endpoints change, MB", megabytes(hub.resident()), Some(300.0));
    let mut seen = readers.take();
    seen.times.sort_unstable();
    let within =
        |share: f64| seen.times[((seen.times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    row("a change reaches a reader after, ms, median", within(0.5), None);
    row("  99th percentile", within(0.99), Some(1_000.0));
    row("  the longest", within(1.0), None);
    row("bytes of a change for one reader, on average", seen.bytes as f64 / seen.times.len() as f64, None);
    row("  the most", seen.most as f64, Some(200.0));

    hub.kill();
    drop(hub);
    let begun = Instant::now();
    let hub = self::hub(&world, &origin).await;
    synced(2, &hub).await;
    row("all readers are back after a restart, s", begun.elapsed().as_secs_f64(), Some(60.0));
    row("resident after a restart, MB", megabytes(hub.resident()), Some(300.0));
    row("  at most at any moment, MB", megabytes(hub.most_resident()), Some(300.0));
    changes(&origin, &readers, RATE as usize).await;
}

/// So many endpoints change, at the rate; returns when every reader knows of each that it subscribes to.
async fn changes(origin: &Origin, readers: &Readers, count: usize) {
    let known = readers.known();
    origin.change(count);
    wait_until(PATIENCE, "every change is known to who subscribes to it", async || {
        match readers.known() - known {
            now if now == count * EACH * READERS / SERVICES => Ok(()),
            now => Err(format!("{now} of {} are known", count * EACH)),
        }
    })
    .await;
}

async fn hub(world: &World, origin: &Origin) -> Program {
    let mut command = Command::new(tools::own("remora", "sidecar"));
    command.args(["hub", "--source", &format!("feed:http://{}", origin.address)]);
    command.args(["--feed", FEED, "--health", HEALTH, "--log-level", "warn"]);
    let hub = Program::start(world, "hub", command);
    wait_until(PATIENCE, "the hub is ready", async || {
        match ask::get(HEALTH.parse().expect("an address"), "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", hub.state())),
        }
    })
    .await;
    hub
}
