//! What clients ask and what endpoints answer, both as cheap as they can be: Envoy is what works here. Every answer is
//! checked.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Clients at a time.
const CLIENTS: usize = 32;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: web.shop\r\nuser-agent: bench\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const WORD: &[u8] = b"ping";

/// One kind of work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Requests on connections that stay.
    Http,
    /// Connections with a word and its echo.
    Tcp,
}

impl Work {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP: requests with tiny answers over 32 connections that stay",
            Self::Tcp => "TCP: connect, four bytes there and back, close; 32 at a time",
        }
    }

    /// How many make a round.
    pub(crate) fn units(self) -> usize {
        match self {
            Self::Http => 8_000,
            Self::Tcp => 3_200,
        }
    }
}

/// Does one round of `work` through `address`.
pub(crate) fn run(work: Work, address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let each = work.units() / CLIENTS;
        let client = || async move {
            match work {
                Work::Http => requests(address, each).await,
                Work::Tcp => {
                    for _ in 0..each {
                        echo(address).await;
                    }
                }
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client())).collect();
        for client in clients {
            client.await.unwrap();
        }
    });
}

/// One unit of `work`, and whether it went well: Envoy may not be ready yet, or may not know the Service.
pub(crate) fn is_served(work: Work, address: SocketAddr) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (question, begins) = match work {
        Work::Http => (REQUEST, &b"HTTP/1.1 200 "[..]),
        Work::Tcp => (WORD, WORD),
    };
    let asked = async {
        let mut client = TcpStream::connect(address).await.ok()?;
        client.write_all(question).await.ok()?;
        let mut answer = vec![0; begins.len()];
        client.read_exact(&mut answer).await.ok()?;
        Some(answer == begins)
    };
    let answered = async { tokio::time::timeout(Duration::from_millis(500), asked).await };
    matches!(runtime.block_on(answered), Ok(Some(true)))
}

async fn requests(address: SocketAddr, count: usize) {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.set_nodelay(true).unwrap();
    let mut buffer = [0; 1024];
    for _ in 0..count {
        client.write_all(REQUEST).await.unwrap();
        let mut filled = 0;
        while !buffer[..filled].ends_with(b"\r\n\r\nok") {
            let read = client.read(&mut buffer[filled..]).await.unwrap();
            assert!(read > 0, "the answer ends early: {}", String::from_utf8_lossy(&buffer[..filled]));
            filled += read;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer[..filled]));
    }
}

async fn echo(address: SocketAddr) {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(WORD).await.unwrap();
    let mut word = [0; WORD.len()];
    client.read_exact(&mut word).await.unwrap();
    assert_eq!(word, WORD);
}

/// The endpoints: every address of this machine, one port for both kinds of work, in a process of their own, so that their
/// work is not counted as anybody's. Ends with its standard input.
pub(crate) fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(answer(stream));
            }
        });
        let _ = ended.await;
    });
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 2048];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        if buffer[..filled] == *WORD {
            stream.write_all(WORD).await?;
            filled = 0;
        } else if buffer[..filled].ends_with(b"\r\n\r\n") {
            stream.write_all(ANSWER).await?;
            filled = 0;
        }
    }
}
