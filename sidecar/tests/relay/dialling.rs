//! Which endpoint a connection reaches, and what happens when one cannot be reached.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use selection::Balance;
use sidecar::tcp::Settings;
use sidecar::traffic::Failure;

use crate::world::{
    DEADLINE, World, accept, assert_reset, blackhole, listener, name, named, patient, refusing, service,
};

/// How often an endpoint that fails every time is tried at most, since it was put aside for a second first and then for
/// twice as long each time.
fn trials(began: Instant) -> u64 {
    1 + u64::from((began.elapsed().as_secs() + 1).ilog2())
}

fn impatient() -> Settings {
    Settings { connect_timeout: Duration::from_millis(300), ..Settings::default() }
}

#[test]
fn connections_are_spread_over_the_endpoints() {
    let endpoints = [named(b'a'), named(b'b'), named(b'c')];
    let world = World::new(&endpoints);
    let mut answers = BTreeMap::<u8, u32>::new();
    let clients: Vec<_> = (0..30).map(|_| world.connect()).collect();
    for mut client in clients {
        *answers.entry(name(&mut client)).or_default() += 1;
    }
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), [(b'a', 10), (b'b', 10), (b'c', 10)]);
    world.reaches("every connection has ended", |counts| counts.active() == 0);
    endpoints.iter().for_each(|endpoint| assert_eq!(world.tally(*endpoint), 0));
}

#[test]
fn a_client_meets_the_endpoint_with_fewer_connections() {
    let endpoints = [named(b'a'), named(b'b')];
    let mut service = service();
    service.balance = Balance::LeastConnections;
    let world = World::with(Settings::default(), service, &endpoints);
    let mut clients: Vec<_> = (0..40).map(|_| world.connect()).collect();
    clients.iter_mut().for_each(|client| {
        name(client);
    });
    let tallies = endpoints.map(|endpoint| world.tally(endpoint));
    assert_eq!(tallies[0] + tallies[1], 40);
    // Two threads may look at the same moment; one connection after the other would be 20 and 20.
    assert!(tallies[0].abs_diff(tallies[1]) <= 6, "{tallies:?}");
}

#[test]
fn a_connect_that_is_refused_goes_to_another_endpoint_with_what_the_client_has_sent() {
    let (_held, dead) = refusing();
    let (listener, alive) = listener();
    // Whichever is tried first, some of these meet the dead one.
    let world = World::new(&[dead, alive]);
    let began = Instant::now();
    for _ in 0..4 {
        let mut client = world.connect();
        client.write_all(b"question").unwrap();
        let mut endpoint = accept(&listener);
        let mut bytes = [0; 8];
        endpoint.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"question");
        endpoint.write_all(b"answer").unwrap();
        client.read_exact(&mut bytes[..6]).unwrap();
        assert_eq!(&bytes[..6], b"answer");
    }
    let counts = world.counts();
    let refused = counts.failures(Failure::Refused);
    assert!((1..=trials(began)).contains(&refused), "{counts:?}");
    assert_eq!((counts.retries, counts.refused), (refused, 0));
    assert_eq!(world.tally(dead), 0);
}

#[test]
fn an_endpoint_that_refused_is_put_aside_and_met_again_once_it_listens() {
    let (held, dead) = refusing();
    let world = World::new(&[dead, named(b'a'), named(b'b')]);
    let began = Instant::now();
    for _ in 0..30 {
        assert_ne!(name(&mut world.connect()), b'd');
    }
    let refused = world.counts().failures(Failure::Refused);
    assert!((1..=trials(began)).contains(&refused), "{refused} times; once, then it is put aside");

    drop(held);
    let listener = TcpListener::bind(dead).unwrap();
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while listener.accept().is_err() {
        assert!(Instant::now() < deadline, "the endpoint stays aside: {:?}", world.counts());
        let mut client = world.connect();
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // The one that meets the endpoint gets no name.
        let _ = client.read(&mut [0]);
    }
}

#[test]
fn a_connect_into_a_black_hole_times_out_and_goes_to_another_endpoint() {
    let (_waiting, _held, hole) = blackhole();
    let world = World::with(impatient(), service(), &[hole, named(b'a')]);
    let began = Instant::now();
    for _ in 0..4 {
        let mut client = world.connect();
        client.write_all(b"x").unwrap();
        assert_eq!(name(&mut client), b'a');
        assert_eq!(name(&mut client), b'x', "what was sent while the black hole was tried");
    }
    let counts = world.counts();
    let timeouts = counts.failures(Failure::Timeout);
    assert!((1..=trials(began)).contains(&timeouts), "{counts:?}");
    assert_eq!(counts.retries, timeouts);
}

#[test]
fn a_client_is_reset_when_every_endpoint_that_may_be_tried_has_failed() {
    let dead: Vec<_> = (0..5).map(|_| refusing()).collect();
    let addresses: Vec<SocketAddr> = dead.iter().map(|(_, address)| *address).collect();
    let world = World::new(&addresses);
    assert_reset(&mut world.connect());
    world.reaches("it is counted", |counts| counts.refused == 1 && counts.active() == 0);
    let counts = world.counts();
    assert_eq!((counts.failures(Failure::Refused), counts.retries), (3, 2), "three are tried");
}

#[test]
fn a_client_is_reset_at_once_when_nobody_can_serve_it() {
    let world = World::new(&[]);
    assert_reset(&mut world.connect());
    world.reaches("it is counted", |counts| counts.refused == 1);

    let mut other = service();
    other.name = selection::ServiceName::new("shop", "db");
    let world = World::with(Settings::default(), other, &[named(b'a')]);
    assert_reset(&mut world.connect());
    world.reaches("it is counted", |counts| counts.refused == 1);
}

#[test]
fn a_client_that_nobody_may_serve_here_is_reset_and_counted_apart() {
    let mut local = service();
    local.internal_local = true;
    let world = World::with(Settings::default(), local, &[named(b'a')]);
    assert_reset(&mut world.connect());
    world.reaches("it is counted", |counts| (counts.dropped, counts.refused) == (1, 0));
}

#[test]
fn a_failure_after_the_connection_stood_puts_nobody_aside() {
    let (listener, address) = listener();
    let world = World::new(&[address, named(b'a')]);
    for _ in 0..4 {
        let mut client = world.connect();
        client.write_all(b"x").unwrap();
        listener.set_nonblocking(true).unwrap();
        if let Ok((endpoint, _)) = listener.accept() {
            patient(&endpoint);
            crate::world::reset(endpoint);
        }
    }
    let table = world.tables.load();
    for port in table.all() {
        port.endpoints.iter().for_each(|endpoint| assert_eq!(endpoint.tally.failures(), 0));
    }
}

#[test]
fn a_client_with_affinity_meets_the_same_endpoint_on_every_thread() {
    let endpoints = [named(b'a'), named(b'b'), named(b'c'), named(b'd')];
    let mut sticky = service();
    sticky.affinity_seconds = Some(10_800);
    let settings = Settings { workers: 4, ..Settings::default() };
    let world = World::with(settings, sticky.clone(), &endpoints);
    let first = name(&mut world.connect());
    for _ in 0..40 {
        assert_eq!(name(&mut world.connect()), first);
    }
    // Its endpoint goes: another one, and that from then on.
    let others: Vec<_> =
        endpoints.iter().enumerate().filter(|(i, _)| b'a' + *i as u8 != first).map(|(_, e)| *e).collect();
    world.publish(&sticky, &others);
    let second = name(&mut world.connect());
    assert_ne!(second, first);
    for _ in 0..40 {
        assert_eq!(name(&mut world.connect()), second);
    }
}

#[test]
fn a_connection_waits_for_the_first_table() {
    let world = World::unsynced(Settings::default(), [127, 0, 0, 1].into());
    let mut client = world.connect();
    client.write_all(b"x").unwrap();
    world.reaches("it is taken", |counts| counts.opened == 1);
    world.publish(&service(), &[named(b'a')]);
    assert_eq!(name(&mut client), b'a');
    assert_eq!(name(&mut client), b'x');
}

#[test]
fn a_connection_is_reset_when_no_table_comes_in_time() {
    let world = World::unsynced(impatient(), [127, 0, 0, 1].into());
    assert_reset(&mut world.connect());
    world.reaches("it is counted", |counts| (counts.unsynced, counts.refused) == (1, 0));
}

#[test]
fn a_listener_of_one_family_reaches_a_service_that_has_only_the_other() {
    let six = || {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    };
    let (four, six) = (listener(), six());
    let world = World::unsynced(Settings::default(), IpAddr::from(Ipv6Addr::LOCALHOST));
    world.publish(&service(), &[four.1, six.1]);
    let _client = world.connect();
    accept(&six.0);

    let mut single = service();
    single.cluster_ips = Box::new([single.cluster_ips[0]]);
    world.publish(&single, &[four.1, six.1]);
    let _client = world.connect();
    accept(&four.0);
}
