//! A server behind a Service: `remora-test-endpoint [--tell] NAME [udp:]ADDRESS:PORT...`
//!
//! Each connection is greeted at once with the name and a line break (so it is the server who
//! speaks first), then gets back what it sends until it ends. With `--tell` the greeting is the
//! name, the client's address and the address that it has reached, all as seen here. A datagram is
//! answered with such a greeting and what it said. Out, when SIGTERM has come: no
//! connection is turned away that the kernel has accepted already, none is cut, and the last line of
//! the output counts them: `{"accepted":3,"served":3}`. It never ends a connection of its own accord.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let tell = arguments.next_if_eq("--tell").is_some();
    let (Some(name), addresses) = (arguments.next(), arguments.collect::<Vec<_>>()) else {
        eprintln!("usage: remora-test-endpoint [--tell] NAME [udp:]ADDRESS:PORT...");
        return ExitCode::from(2);
    };
    let greeting = Greeting { name, tell };
    match LocalSet::new().run_until(serve(greeting, &addresses)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot serve on {addresses:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many connections there have been.
#[derive(Default)]
struct Counts {
    /// Taken from the kernel.
    accepted: Cell<u64>,
    /// Greeted, and ended by the client in good order.
    served: Cell<u64>,
}

/// What a client is told first.
struct Greeting {
    name: String,
    /// The addresses of both ends too.
    tell: bool,
}

impl Greeting {
    fn to(&self, client: SocketAddr, here: SocketAddr) -> String {
        let Greeting { name, tell } = self;
        if *tell { format!("{name} {client} {here}\n") } else { format!("{name}\n") }
    }
}

/// Serves on all addresses until SIGTERM, then drains and prints the counts.
async fn serve(greeting: Greeting, addresses: &[String]) -> io::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let counts = Rc::new(Counts::default());
    let greeting = Rc::new(greeting);
    let mut listeners = Vec::new();
    for address in addresses {
        match address.strip_prefix("udp:") {
            Some(address) => {
                tokio::task::spawn_local(answer(UdpSocket::bind(address).await?, greeting.clone()));
            }
            None => listeners.push(TcpListener::bind(address).await?),
        }
    }
    println!("listening");
    let mut open = JoinSet::new();
    loop {
        let accepted =
            futures::future::select_all(listeners.iter().map(|listener| Box::pin(listener.accept())));
        tokio::select! {
            (connection, ..) = accepted => start(connection, &counts, &greeting, &mut open),
            _ = open.join_next(), if !open.is_empty() => (),
            _ = stop.recv() => break,
        }
    }
    for listener in listeners {
        // Asked of the kernel itself: the runtime tells only of what it has heard of.
        let listener = listener.into_std()?;
        loop {
            let accepted = match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                accepted => accepted,
            };
            start(accepted.and_then(of_runtime), &counts, &greeting, &mut open);
        }
    }
    while open.join_next().await.is_some() {}
    println!(r#"{{"accepted":{},"served":{}}}"#, counts.accepted.get(), counts.served.get());
    Ok(())
}

fn of_runtime((stream, client): (std::net::TcpStream, SocketAddr)) -> io::Result<(TcpStream, SocketAddr)> {
    stream.set_nonblocking(true)?;
    Ok((TcpStream::from_std(stream)?, client))
}

fn start(
    connection: io::Result<(TcpStream, SocketAddr)>,
    counts: &Rc<Counts>,
    greeting: &Rc<Greeting>,
    open: &mut JoinSet<()>,
) {
    // A connection that was reset while it waited to be accepted is none.
    let Ok((stream, client)) = connection else { return };
    counts.accepted.set(counts.accepted.get() + 1);
    let (counts, greeting) = (counts.clone(), greeting.clone());
    open.spawn_local(async move {
        match converse(stream, client, &greeting).await {
            Ok(()) => counts.served.set(counts.served.get() + 1),
            Err(error) => eprintln!("a connection failed: {error}"),
        }
    });
}

/// Greets, echoes until the client's end, ends.
async fn converse(mut stream: TcpStream, client: SocketAddr, greeting: &Greeting) -> io::Result<()> {
    let here = stream.local_addr()?;
    stream.write_all(greeting.to(client, here).as_bytes()).await?;
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..read]).await?;
    }
}

/// Answers each datagram, for ever.
async fn answer(socket: UdpSocket, greeting: Rc<Greeting>) {
    let mut buffer = [0; 2048];
    loop {
        // The errors here are others': a client that did not wait for its answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(here) = socket.local_addr() else { return };
        let mut said = greeting.to(client, here).into_bytes();
        said.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&said, client).await;
    }
}
