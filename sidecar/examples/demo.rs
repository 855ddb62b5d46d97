//! The other programs of `make demo`: a tiny HTTP server that says its name, and a client that counts who answered.
//!
//! ```text
//! demo free ADDRESS...            prints a port that is free on every one of these addresses
//! demo serve NAME ADDRESS:PORT    answers NAME to every request, until it is killed
//! demo ask ADDRESS:PORT REQUESTS  asks that often, eight at a time, and prints who answered how often
//! demo name ADDRESS:PORT NAME      asks this DNS for a name, and prints its addresses
//! demo compare HOST ONE OTHER CLIENTS ENDPOINTS
//!                                 so many clients ask both addresses, and must meet the same endpoint; prints whom
//! ```
//! Uses nothing of Remora: what it talks to might be anything.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use socket2::{Domain, Socket, Type};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Clients at a time.
const CLIENTS: usize = 8;
/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// A client that the system gives an address.
const ANYBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// Clients of a comparison that are shown, and each one that meets different endpoints.
const SHOWN: usize = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["free", ref addresses @ ..] if !addresses.is_empty() => free(addresses),
        ["serve", name, address] => serve(name, address),
        ["ask", address, requests] => ask(address, requests),
        ["name", server, name] => addresses(server, name),
        ["compare", host, one, other, clients, endpoints] => compare(host, [one, other], clients, endpoints),
        _ => Err("usage: demo free ADDRESS... | serve NAME ADDRESS:PORT | ask ADDRESS:PORT REQUESTS | \
                  name ADDRESS:PORT NAME | compare HOST ONE OTHER CLIENTS ENDPOINTS"
            .into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn free(addresses: &[&str]) -> Result<()> {
    let ips = addresses.iter().map(|ip| ip.parse()).collect::<std::result::Result<Vec<IpAddr>, _>>()?;
    for _ in 0..100 {
        let first = TcpListener::bind((ips[0], 0))?;
        let port = first.local_addr()?.port();
        if ips[1..].iter().all(|ip| TcpListener::bind((*ip, port)).is_ok()) {
            println!("{port}");
            return Ok(());
        }
    }
    Err(format!("no port is free on all of {addresses:?}").into())
}

fn serve(name: &str, address: &str) -> Result<()> {
    let listener =
        TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("{name} listens on {address}");
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        // A client that goes away is no reason to end.
        std::thread::spawn(move || answer(stream, &name).is_ok());
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let length = name.len() + 1;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close"
    );
    stream.write_all(format!("{head}\r\n\r\n{name}\n").as_bytes())?;
    Ok(())
}

fn ask(address: &str, requests: &str) -> Result<()> {
    let (address, requests): (SocketAddr, usize) = (address.parse()?, requests.parse()?);
    let (started, next) = (Instant::now(), AtomicUsize::new(0));
    let client = || {
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        while next.fetch_add(1, Ordering::Relaxed) < requests {
            let answer = request(ANYBODY, address, "demo").unwrap_or_else(|error| format!("failed: {error}"));
            *answers.entry(answer).or_default() += 1;
        }
        answers
    };
    let mut total: BTreeMap<String, usize> = BTreeMap::new();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for answers in clients.into_iter().flat_map(|client| client.join()) {
            answers.into_iter().for_each(|(answer, count)| *total.entry(answer).or_default() += count);
        }
    });
    let failed: usize = total.iter().filter(|(answer, _)| answer.starts_with("failed")).map(|(_, n)| n).sum();
    let width = total.keys().map(String::len).max().unwrap_or(0);
    for (answer, count) in &total {
        println!("  {answer:width$}  {count:4}  {}", "#".repeat(count * 50 / requests.max(1)));
    }
    println!("  {failed} failed of {requests}, in {} ms", started.elapsed().as_millis());
    if failed == 0 { Ok(()) } else { Err(format!("{failed} requests failed").into()) }
}

/// Asks a DNS as any resolver does.
fn addresses(server: &str, name: &str) -> Result<()> {
    let socket = UdpSocket::bind((ANYBODY, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    let mut question = Message::new(1, MessageType::Query, OpCode::Query);
    let mut asked = Name::from_ascii(name)?;
    asked.set_fqdn(true);
    question.queries.push(Query::query(asked, RecordType::A));
    socket.send(&question.to_vec()?)?;
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer)?;
    let answer = Message::from_vec(&answer[..length])?;
    let ips: Vec<String> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(ip) => Some(ip.to_string()),
            _ => None,
        })
        .collect();
    println!("  {name:34}  {}", ips.join(", "));
    if ips.is_empty() { Err(format!("{name} has no address").into()) } else { Ok(()) }
}

/// Asks both addresses as each of many clients, who differ in their address.
fn compare(host: &str, addresses: [&str; 2], clients: &str, endpoints: &str) -> Result<()> {
    let addresses = [addresses[0].parse()?, addresses[1].parse()?];
    let (clients, endpoints): (u8, usize) = (clients.parse()?, endpoints.parse()?);
    addresses.iter().try_for_each(|address| served(*address, host))?;
    let (mut same, mut met) = (0, BTreeMap::<String, usize>::new());
    println!("  {:15}  {:9}  {:9}", "client", "sidecar", "Envoy");
    for number in 1..=clients {
        let client = Ipv4Addr::new(127, 0, 9, number);
        let [one, other] = [request(client, addresses[0], host)?, request(client, addresses[1], host)?];
        let is_same = one == other;
        if !is_same || usize::from(number) <= SHOWN {
            println!("  {client:15}  {one:9}  {other:9}  {}", if is_same { "same" } else { "DIFFERENT" });
        }
        same += usize::from(is_same);
        *met.entry(one).or_default() += 1;
    }
    println!("  {:15}  {:9}  {:9}", "...", "...", "...");
    let whom = met.iter().map(|(name, count)| format!("{name} {count}"));
    println!(
        "  {same} of {clients} clients met the same endpoint by both: {}",
        whom.collect::<Vec<_>>().join(", ")
    );
    if same != usize::from(clients) {
        return Err(format!("{} clients met different endpoints", usize::from(clients) - same).into());
    }
    // Were there but one, everybody would meet it.
    if met.len() == endpoints { Ok(()) } else { Err(format!("only {} endpoints answered", met.len()).into()) }
}

/// Waits until an address answers, again and again: each thread there may begin at a time of its own.
fn served(address: SocketAddr, host: &str) -> Result<()> {
    let (started, mut in_a_row) = (Instant::now(), 0);
    while in_a_row < 16 {
        match request(ANYBODY, address, host) {
            Ok(_) => in_a_row += 1,
            Err(error) if started.elapsed() > PATIENCE => return Err(format!("{address}: {error}").into()),
            Err(_) => {
                in_a_row = 0;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    Ok(())
}

/// One request of this client on a connection of its own; the body of the answer.
fn request(client: Ipv4Addr, address: SocketAddr, host: &str) -> Result<String> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if client != ANYBODY {
        socket.bind(&SocketAddr::from((client, 0)).into())?;
    }
    socket.connect_timeout(&address.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer ended early")?;
    if head.starts_with("HTTP/1.1 200 ") { Ok(body.trim().to_owned()) } else { Err(head.into()) }
}
