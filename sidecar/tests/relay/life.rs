//! From binding to draining, and many connections at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use selection::ServiceName;
use sidecar::handover::Inherited;
use sidecar::tcp::{self, Entrance, Listen, Settings, StandIn};

use crate::world::{
    World, accept, assert_reset, endpoint, eventually, listener, name, named, patient, service,
};

fn listen(address: &str) -> Entrance {
    let (address, service) = (address.parse().unwrap(), ServiceName::new("shop", "web"));
    Entrance::Listen(Listen { address, service, port: "80".into() }, StandIn::default())
}

#[test]
fn an_address_that_somebody_has_is_not_shared_with_them() {
    let others = tcp::bind(&[listen("127.0.0.1:0")], Settings::default(), &mut Inherited::default()).unwrap();
    let [address] = others.addresses()[..] else { panic!("one address") };
    for taken in [address.to_string(), format!("0.0.0.0:{}", address.port())] {
        let Err(error) = tcp::bind(&[listen(&taken)], Settings::default(), &mut Inherited::default()) else {
            panic!("{taken} was bound although {address} is held with SO_REUSEPORT")
        };
        assert!(error.to_string().contains("another program"), "{error}");
        assert!(error.to_string().contains(&taken), "{error}");
    }
}

#[test]
fn an_address_that_cannot_be_had_is_named() {
    let Err(error) = tcp::bind(&[listen("192.0.2.1:80")], Settings::default(), &mut Inherited::default())
    else {
        panic!("bound")
    };
    assert!(error.to_string().contains("cannot listen on 192.0.2.1:80 for shop/web"), "{error}");
}

#[test]
fn every_thread_listens_on_the_free_port_that_the_first_got() {
    let settings = Settings { workers: 4, ..Settings::default() };
    let bound =
        tcp::bind(&[listen("127.0.0.1:0"), listen("[::1]:0")], settings, &mut Inherited::default()).unwrap();
    let addresses = bound.addresses();
    assert_eq!(addresses.len(), 2);
    for address in addresses {
        assert_ne!(address.port(), 0);
        (0..16).for_each(|_| drop(TcpStream::connect(address).unwrap()));
    }
}

#[test]
fn no_connection_of_a_storm_fails() {
    let endpoints: Vec<SocketAddr> = (b'a'..b'e').map(named).collect();
    let world = World::new(&endpoints);
    let address = world.address;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                for round in 0..25_u8 {
                    let burst: Vec<TcpStream> =
                        (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
                    for mut client in burst {
                        patient(&client);
                        client.write_all(&[round]).unwrap();
                        assert!((b'a'..b'e').contains(&name(&mut client)));
                        assert_eq!(name(&mut client), round);
                    }
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    world.reaches("all have ended", |counts| counts.active() == 0);
    let counts = world.counts();
    assert_eq!((counts.opened, counts.refused, counts.failures.iter().sum::<u64>()), (2_000, 0, 0));
    endpoints.iter().for_each(|endpoint| assert_eq!(world.tally(*endpoint), 0));
}

#[test]
fn one_connection_more_than_allowed_is_reset_and_the_others_stay() {
    let endpoint = named(b'a');
    let world = World::with(
        Settings { max_connections: 3, workers: 2, ..Settings::default() },
        service(),
        &[endpoint],
    );
    let mut open: Vec<TcpStream> = (0..3).map(|_| world.connect()).collect();
    open.iter_mut().for_each(|client| assert_eq!(name(client), b'a'));
    (0..5).for_each(|_| assert_reset(&mut world.connect()));
    world.reaches("all are counted", |counts| (counts.limited, counts.opened) == (5, 3));
    for client in &mut open {
        client.write_all(b"x").unwrap();
        assert_eq!(name(client), b'x');
    }
    drop(open.pop());
    world.reaches("one has ended", |counts| counts.active() == 2);
    assert_eq!(name(&mut world.connect()), b'a');
}

#[test]
fn an_open_connection_outlives_its_endpoint_in_the_table() {
    let endpoint = named(b'a');
    let world = World::new(&[endpoint]);
    let mut client = world.connect();
    assert_eq!(name(&mut client), b'a');
    world.publish(&service(), &[]);
    for byte in 0..10 {
        client.write_all(&[byte]).unwrap();
        assert_eq!(name(&mut client), byte);
    }
    assert_reset(&mut world.connect());
}

#[test]
fn a_drain_takes_those_that_wait_and_lets_open_connections_end() {
    let (listener, address) = listener();
    let world = World::new(&[address]);
    let front = world.address;
    let clients: Vec<TcpStream> = (0..50).map(|_| world.connect()).collect();
    let draining = thread::spawn(move || world.drain(Duration::from_secs(60)));
    // Every client that had connected is served, those included that nobody had accepted yet.
    let endpoints: Vec<TcpStream> = clients.iter().map(|_| accept(&listener)).collect();
    // Who asks below whether anybody listens may be served too: at an endpoint that refuses or resets them, or
    // they would stay open for as long as nobody takes them there.
    drop(listener);
    eventually("nobody listens", || match TcpStream::connect(front) {
        Ok(_) => Err("connected".into()),
        Err(_) => Ok(()),
    });
    for mut endpoint in endpoints {
        endpoint.write_all(b"served").unwrap();
    }
    for mut client in clients {
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "served");
    }
    assert_eq!(draining.join().unwrap().reset, 0);
}

#[test]
fn a_drain_resets_what_is_open_when_its_time_is_over() {
    let (listener, address) = listener();
    let world = World::new(&[address]);
    let traffic = world.traffic.clone();
    let (mut client, mut endpoint) = (world.connect(), accept(&listener));
    assert_eq!(world.drain(Duration::from_millis(50)).reset, 1);
    assert_reset(&mut client);
    assert_reset(&mut endpoint);
    assert_eq!(traffic.active(), 0);
}

#[test]
fn a_data_plane_without_connections_drains_at_once() {
    let world = World::new(&[named(b'a')]);
    assert_eq!(world.drain(Duration::from_secs(3_600)).reset, 0);
}

#[test]
fn both_sides_of_a_settled_connection_are_asked_whether_they_are_still_there() {
    let (listener, address) = listener();
    let settings = Settings { keep_alive_after: Duration::from_millis(50), ..Settings::default() };
    let world = World::with(settings, service(), &[address]);
    let (client, _endpoint) = (world.connect(), accept(&listener));
    for other_end in [client.local_addr().unwrap(), address] {
        eventually("the system has a keep-alive timer for it", || {
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            // `sl local_address rem_address st tx:rx tr:when`; timer 02 is keep-alive, see proc(5).
            let remote = format!("0100007F:{:04X}", other_end.port());
            let ours = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let timers: Vec<_> = ours.filter(|f| f[2] == remote).map(|f| f[5].to_owned()).collect();
            if timers.iter().any(|timer| timer.starts_with("02:")) {
                Ok(())
            } else {
                Err(format!("{timers:?}"))
            }
        });
    }
}

#[test]
fn an_idle_connection_is_kept() {
    let endpoint = endpoint(|mut stream| {
        let mut bytes = [0; 1];
        while stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes).unwrap();
        }
    });
    // Ten times as long as a connect may take: no timer of the relay runs on an open connection.
    let settings = Settings { connect_timeout: Duration::from_millis(50), ..Settings::default() };
    let world = World::with(settings, service(), &[endpoint]);
    let mut client = world.connect();
    client.write_all(b"a").unwrap();
    assert_eq!(name(&mut client), b'a');
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(client.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    client.write_all(b"b").unwrap();
    patient(&client);
    assert_eq!(name(&mut client), b'b');
}
