//! The other programs of `make demo`: a tiny HTTP server that says its name, and a client that counts who answered.
//!
//! ```text
//! demo free ADDRESS...            prints a port that is free on every one of these addresses
//! demo serve NAME ADDRESS:PORT    answers NAME to every request, until it is killed
//! demo ask ADDRESS:PORT REQUESTS  asks that often, eight at a time, and prints who answered how often
//! ```
//! Uses nothing of Remora: what it talks to might be anything.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Clients at a time.
const CLIENTS: usize = 8;
/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["free", ref addresses @ ..] if !addresses.is_empty() => free(addresses),
        ["serve", name, address] => serve(name, address),
        ["ask", address, requests] => ask(address, requests),
        _ => Err("usage: demo free ADDRESS... | serve NAME ADDRESS:PORT | ask ADDRESS:PORT REQUESTS".into()),
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
            let answer = request(address).unwrap_or_else(|error| format!("failed: {error}"));
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

/// One request on a connection of its own; the body of the answer.
fn request(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer ended early")?;
    if head.starts_with("HTTP/1.1 200 ") { Ok(body.trim().to_owned()) } else { Err(head.into()) }
}
