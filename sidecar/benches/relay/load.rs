//! What clients do: one thread, bounded in count. Every answer is checked.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::endpoint::REQUEST;

/// Clients at a time.
const CLIENTS: usize = 32;
const REQUESTS: usize = 32_000;
const CONNECTIONS: usize = 6_400;
const BULK: u64 = 2 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Requests,
    Connections,
    Bulk,
}

impl Work {
    pub(crate) const ALL: [Self; 3] = [Self::Requests, Self::Connections, Self::Bulk];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Requests => "requests of 1 KB over 32 connections that stay",
            Self::Connections => "connect, request of 1 KB, close; 32 at a time",
            Self::Bulk => "one stream to the client",
        }
    }

    /// How much of it a run does: requests, connections, gigabits.
    pub(crate) fn units(self) -> f64 {
        match self {
            Self::Requests => REQUESTS as f64,
            Self::Connections => CONNECTIONS as f64,
            Self::Bulk => BULK as f64 * 8.0 / 1e9,
        }
    }

    pub(crate) fn cpu_unit(self) -> &'static str {
        if self == Self::Bulk { "CPU s/Gbit" } else { "CPU µs each" }
    }

    pub(crate) fn cpu_scale(self) -> f64 {
        if self == Self::Bulk { 1.0 } else { 1e6 }
    }

    pub(crate) fn rate_unit(self) -> &'static str {
        if self == Self::Bulk { "Gbit/s" } else { "thousand/s" }
    }

    pub(crate) fn rate_scale(self) -> f64 {
        if self == Self::Bulk { 1.0 } else { 1e-3 }
    }
}

/// Does `work` through `address`, and tells how long it took.
pub(crate) fn run(work: Work, address: SocketAddr) -> Duration {
    let runtime = runtime();
    let started = Instant::now();
    runtime.block_on(async {
        match work {
            Work::Requests => each_client(move || requests(address, REQUESTS / CLIENTS)).await,
            Work::Connections => {
                each_client(move || async move {
                    for _ in 0..CONNECTIONS / CLIENTS {
                        requests(address, 1).await;
                    }
                })
                .await;
            }
            Work::Bulk => stream(address).await,
        }
    });
    started.elapsed()
}

/// Opens connections that have made a request and then say nothing.
pub(crate) fn hold(count: usize, address: SocketAddr) -> Vec<std::net::TcpStream> {
    runtime().block_on(async {
        let mut held = Vec::with_capacity(count);
        for _ in 0..count {
            let mut client = TcpStream::connect(address).await.unwrap();
            request(&mut client, true).await;
            held.push(client.into_std().unwrap());
        }
        held
    })
}

/// How long each of `rate` requests a second took, over eight connections that stay, sorted.
pub(crate) fn latencies(address: SocketAddr, rate: u32, lasting: Duration) -> Vec<Duration> {
    const CLIENTS: u32 = 8;
    runtime().block_on(async {
        let client = |number: u32| async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.set_nodelay(true).unwrap();
            request(&mut client, true).await;
            let every = Duration::from_secs(1) * CLIENTS / rate;
            let mut ticks =
                tokio::time::interval_at(tokio::time::Instant::now() + every * number / CLIENTS, every);
            let mut took = Vec::new();
            for _ in 0..lasting.as_micros() / every.as_micros() {
                ticks.tick().await;
                let began = Instant::now();
                request(&mut client, false).await;
                took.push(began.elapsed());
            }
            took
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| tokio::spawn(client(number))).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.unwrap());
        }
        all.sort();
        all
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn each_client<F: Future<Output = ()> + Send + 'static>(client: impl Fn() -> F) {
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client())).collect();
    for client in clients {
        client.await.unwrap();
    }
}

async fn requests(address: SocketAddr, count: usize) {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.set_nodelay(true).unwrap();
    for number in 0..count {
        request(&mut client, number == 0).await;
    }
}

async fn request(client: &mut TcpStream, is_first: bool) {
    let mut bytes = [b'E'; REQUEST + 1];
    client.write_all(&bytes[usize::from(!is_first)..]).await.unwrap();
    let answer = &mut bytes[1..];
    answer.fill(0);
    client.read_exact(answer).await.unwrap();
    assert!(answer.iter().all(|byte| *byte == b'E'));
}

async fn stream(address: SocketAddr) {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"B").await.unwrap();
    client.write_u64(BULK).await.unwrap();
    let mut bytes = vec![0; 256 * 1024];
    let mut left = BULK;
    while left > 0 {
        let read = client.read(&mut bytes).await.unwrap();
        assert_ne!(read, 0, "{left} bytes are missing");
        left -= read as u64;
    }
}
