//! Ways in that come and go while connections are served: node ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use selection::{Kind, Port, Protocol, Service};
use sidecar::tcp::{Entrance, NodePort};
use socket2::{Domain, Socket, Type};

use crate::world::{
    DEADLINE, World, endpoint, eventually, name, named, named_v6, patient, refusing, service,
};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The Service of the tests, with this port on the nodes.
fn on_nodes(node_port: u16, external_local: bool) -> Service {
    let ports = Box::new([Port { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port }]);
    Service { kind: Kind::NodePort, ports, external_local, ..service() }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    patient(&stream);
    stream
}

/// What a client at `from` meets: the name of an endpoint, or an error; no answer within some retransmissions of its SYN
/// is one.
fn met(from: &str, to: SocketAddr) -> Result<u8, ErrorKind> {
    let from: IpAddr = from.parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect_timeout(&to.into(), Duration::from_millis(1500)).map_err(|error| error.kind())?;
    let mut stream: TcpStream = socket.into();
    patient(&stream);
    let mut name = [0];
    stream.read_exact(&mut name).map(|()| name[0]).map_err(|error| error.kind())
}

#[test]
fn a_node_port_that_is_opened_serves_and_one_that_is_closed_refuses_and_keeps_its_connections() {
    let world = World::new(&[named(b'a')]);
    let (address, opened) = world.open_node_port(V4, &[]);
    world.publish(&on_nodes(address.port(), false), &[named(b'b')]);
    let mut first = connect(address);
    assert_eq!(name(&mut first), b'b');

    drop(opened);
    eventually("it is closed", || match TcpStream::connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        // One that came just before is served still, or finds the door closing.
        other => Err(format!("{other:?}")),
    });
    first.write_all(b"x").unwrap();
    let mut echoed = [0];
    first.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"x");
    let served = world.traffic.snapshot().into_iter().map(|(label, counts)| (label.port, counts.opened > 0));
    assert_eq!(served.collect::<Vec<_>>(), [("".into(), false), ("80".into(), false), ("http".into(), true)]);
}

#[test]
fn a_drain_closes_what_was_opened_and_opens_nothing_more() {
    let world = World::new(&[]);
    let (address, _opened) = world.open_node_port(V4, &[]);
    world.publish(&on_nodes(address.port(), false), &[named(b'd')]);
    let opener = world.opener();
    let mut open = connect(address);
    assert_eq!(name(&mut open), b'd');
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| world.drain(DEADLINE));
        let refused = |what: &str, address: SocketAddr| {
            eventually(what, || match TcpStream::connect(address) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{other:?}")),
            });
        };
        refused("it is closed", address);
        let entrance = Entrance::Node(NodePort { address, inside: [].into() });
        let _again = opener.open(&entrance).unwrap();
        refused("it is not opened again", address);
        open.write_all(b"x").unwrap();
        let mut echoed = [0];
        open.read_exact(&mut echoed).unwrap();
        drop(open);
        assert_eq!(drained.join().unwrap().reset, 0);
    });
}

#[test]
fn an_endpoint_is_told_who_the_client_is_also_when_another_one_failed_first() {
    let echo = endpoint(|mut stream| {
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..n]).unwrap();
        }
    });
    let (_held, dead) = refusing();
    let world = World::new(&[]);
    let (address, _opened) = world.open_node_port(V4, &[]);
    let service = Service { proxy_protocol: true, ..on_nodes(address.port(), false) };
    world.publish(&service, &[dead, echo]);
    for early in [&b""[..], b"early "] {
        // Whoever comes first in the round of endpoints, both begin a round once.
        for _ in 0..2 {
            let mut client = connect(address);
            client.write_all(early).unwrap();
            let mut header = [0; 28];
            client.read_exact(&mut header).unwrap();
            assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c");
            assert_eq!(&header[16..24], &[127, 0, 0, 1, 127, 0, 0, 1]);
            let ports = [client.local_addr().unwrap().port(), address.port()].map(u16::to_be_bytes);
            assert_eq!(&header[24..], ports.as_flattened());
            client.write_all(b"late").unwrap();
            let mut rest = vec![0; early.len() + 4];
            client.read_exact(&mut rest).unwrap();
            assert_eq!(rest, [early, b"late"].concat());
        }
    }
    // By another way in, nobody is told.
    let mut client = world.connect();
    client.write_all(b"bare").unwrap();
    let mut bare = [0; 4];
    client.read_exact(&mut bare).unwrap();
    assert_eq!(&bare, b"bare");
}

#[test]
fn under_policy_local_clients_outside_meet_the_local_endpoints_and_those_inside_all_of_them() {
    let world = World::new(&[named(b'a')]);
    let (address, opened) = world.open_node_port(V4, &["127.0.0.8/30"]);
    world.publish(&on_nodes(address.port(), true), &[named(b'e')]);
    // No endpoint is on this node, whose name the table does not know.
    assert_eq!(met("127.0.0.7", address), Err(ErrorKind::ConnectionReset));
    assert_eq!(met("127.0.0.9", address), Ok(b'e'));

    opened.admit(Some(&["10.0.0.0/8".parse().unwrap(), "127.0.0.8/30".parse().unwrap()])).unwrap();
    assert_eq!(met("127.0.0.7", address), Err(ErrorKind::TimedOut));
    assert_eq!(met("127.0.0.11", address), Ok(b'e'));
    opened.admit(None).unwrap();
    opened.admit(None).unwrap();
    assert_eq!(met("127.0.0.7", address), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_guarded_node_port_of_ipv6_lets_in_whom_it_shall_and_answers_nobody_else() {
    let world = World::new(&[]);
    let (address, opened) = world.open_node_port(V6, &[]);
    world.publish(&on_nodes(address.port(), false), &[named_v6(b'f')]);
    opened.admit(Some(&["fd00::/9".parse().unwrap(), "::1/128".parse().unwrap()])).unwrap();
    assert_eq!(met("::1", address), Ok(b'f'));
    opened.admit(Some(&["fd00::/9".parse().unwrap(), "::2/127".parse().unwrap()])).unwrap();
    assert_eq!(met("::1", address), Err(ErrorKind::TimedOut));
    opened.admit(Some(&[])).unwrap();
    assert_eq!(met("::1", address), Err(ErrorKind::TimedOut));
}
