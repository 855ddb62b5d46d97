//! A client inside a Pod, an ordinary program that knows nothing of Remora:
//!
//! ```text
//! remora-test-client connect  ADDRESS:PORT TIMES      one connection after the other
//! remora-test-client try      ADDRESS:PORT TIMES      the same, where no answer soon is an answer too
//! remora-test-client hold     ADDRESS:PORT TIMES      all at once, each in use until the end
//! remora-test-client transfer ADDRESS:PORT MEGABYTES  through one connection and back, compared
//! remora-test-client streams  ADDRESS:PORT TIMES      all at once, each of another kind and length, compared
//! remora-test-client ask      ADDRESS:PORT            one datagram and its answer
//! ```
//!
//! Out: a line of JSON for every connection, which names who answered and the addresses that it saw,
//! or the step that failed with its errno: of connect(2) itself, since the socket blocks. `connect`
//! and `try` end with the first that fails. `hold` prints a line for each when it is open, and a last one for
//! each that broke; it ends with its input. It never tries anything again.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use serde_json::json;

/// Of who only tries: a connect or a read that takes longer has failed. More than a second, so that a SYN is repeated.
const BRIEF: Duration = Duration::from_millis(2500);

/// The same for a connection that must be served: whoever serves it may stand still for a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two uses of a connection that is held.
const PULSE: Duration = Duration::from_millis(50);

/// What went wrong: in which step, and how.
type Failure = (&'static str, io::Error);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (verb, address, number) = match words[..] {
        [verb, address] => (verb, address.parse(), Ok(1)),
        [verb, address, number] => (verb, address.parse(), number.parse()),
        _ => ("", "".parse(), Ok(0)),
    };
    match (verb, address, number) {
        ("connect", Ok(address), Ok(times)) => {
            (0..times).all(|_| tell(talk(address, PATIENCE)));
        }
        ("try", Ok(address), Ok(times)) => {
            (0..times).all(|_| tell(talk(address, BRIEF)));
        }
        ("transfer", Ok(address), Ok(megabytes)) => {
            tell(transfer(address, &Stream { seed: 1, chunks: megabytes * 16, ..Stream::default() }));
        }
        ("streams", Ok(address), Ok(times)) => thread::scope(|scope| {
            for number in 0..times {
                scope.spawn(move || tell(transfer(address, &Stream::of(number))));
            }
        }),
        ("ask", Ok(address), _) => {
            tell(ask(address));
        }
        ("hold", Ok(address), Ok(times)) => hold(address, times),
        _ => {
            eprintln!(
                "usage: remora-test-client connect|try|hold|transfer|streams|ask ADDRESS:PORT [NUMBER]"
            );
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Prints what became of a connection; the words of an answer are those of the greeting. Tells
/// whether it was answered.
fn tell(outcome: Result<String, Failure>) -> bool {
    let answered = outcome.is_ok();
    let line = match outcome {
        Ok(greeting) => {
            let mut words = greeting.split_whitespace();
            json!({"answered": {"by": words.next(), "source": words.next(), "at": words.next()}})
        }
        Err((step, error)) => {
            json!({"failed": {"step": step, "errno": error.raw_os_error(), "error": error.to_string()}})
        }
    };
    println!("{line}");
    answered
}

/// Connects and is greeted: the stream behind the greeting, and the greeting.
fn open(address: SocketAddr, patience: Duration) -> Result<(BufReader<TcpStream>, String), Failure> {
    let dialled = dial(address, patience).map_err(|error| ("connect", error))?;
    let mut stream = BufReader::new(dialled);
    let mut greeting = String::new();
    stream.read_line(&mut greeting).map_err(|error| ("read the greeting", error))?;
    if !greeting.ends_with('\n') {
        return Err(("read the greeting", io::ErrorKind::UnexpectedEof.into()));
    }
    Ok((stream, greeting))
}

/// A blocking connect(2), so that its error is the one that most programs get; after `patience` it
/// is EINPROGRESS.
fn dial(address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

/// One connection from first to last.
fn talk(address: SocketAddr, patience: Duration) -> Result<String, Failure> {
    let (mut stream, greeting) = open(address, patience)?;
    pulse(&mut stream)?;
    stream.get_ref().shutdown(Shutdown::Write).map_err(|error| ("end", error))?;
    let rest = stream.read_to_end(&mut Vec::new()).map_err(|error| ("read the end", error))?;
    if rest > 0 { Err(("read the end", io::ErrorKind::InvalidData.into())) } else { Ok(greeting) }
}

/// Sends a byte and gets it back.
fn pulse(stream: &mut BufReader<TcpStream>) -> Result<(), Failure> {
    stream.get_ref().write_all(b"!").map_err(|error| ("send", error))?;
    let mut echo = [0];
    stream.read_exact(&mut echo).map_err(|error| ("read the echo", error))?;
    if echo == *b"!" { Ok(()) } else { Err(("read the echo", io::ErrorKind::InvalidData.into())) }
}

/// What is sent through a connection and comes back, and how.
#[derive(Clone, Copy, Default)]
struct Stream {
    seed: u64,
    chunks: usize,
    /// The connection is reset after so many chunks have come back.
    reset_after: Option<usize>,
    /// Between two reads.
    pause: Duration,
}

impl Stream {
    /// One of each kind in turn: as fast as it goes, with an early end of the sending side, by a slow reader, reset.
    fn of(number: usize) -> Self {
        let seed = number as u64 + 1;
        let chunks = Bytes(seed).take()[64] as usize % 64;
        match number % 4 {
            0 => Self { seed, chunks, ..Self::default() },
            1 => Self { seed, chunks: chunks % 3, pause: Duration::from_millis(500), ..Self::default() },
            2 => Self { seed, chunks, pause: Duration::from_millis(seed % 60), ..Self::default() },
            _ => Self { seed, chunks: chunks + 1, reset_after: Some(chunks / 2), ..Self::default() },
        }
    }
}

/// Sends many bytes while they come back, and compares them.
fn transfer(address: SocketAddr, plan: &Stream) -> Result<String, Failure> {
    let (mut stream, greeting) = open(address, PATIENCE)?;
    let mut sender = stream.get_ref().try_clone().map_err(|error| ("send", error))?;
    let Stream { seed, chunks, reset_after, pause } = *plan;
    let sending = thread::spawn(move || {
        let mut bytes = Bytes(seed);
        (0..chunks).try_for_each(|_| sender.write_all(&bytes.take()))?;
        sender.shutdown(Shutdown::Write)
    });
    let mut bytes = Bytes(seed);
    let mut got = vec![0; CHUNK];
    for chunk in 0..chunks {
        if reset_after == Some(chunk) {
            // What was not read makes the end a reset, of the sender's half too. A short stream may be
            // through, both ways, in the socket's buffer: then there is nothing to shut any more.
            let socket = stream.get_ref();
            let shut = match set_socket_linger(socket, Some(Duration::ZERO)) {
                Ok(()) => rustix::net::shutdown(socket, rustix::net::Shutdown::Both),
                failed => failed,
            };
            let _ = sending.join();
            return match shut {
                Ok(()) | Err(Errno::NOTCONN) => Ok(greeting),
                Err(error) => Err(("reset", error.into())),
            };
        }
        thread::sleep(pause);
        stream.read_exact(&mut got).map_err(|error| ("read", error))?;
        if got != bytes.take() {
            return Err(("compare", io::ErrorKind::InvalidData.into()));
        }
    }
    let rest = stream.read_to_end(&mut got).map_err(|error| ("read the end", error))?;
    sending.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(|error| ("send", error))?;
    if rest > 0 { Err(("read the end", io::ErrorKind::InvalidData.into())) } else { Ok(greeting) }
}

const CHUNK: usize = 1 << 16;

/// Bytes without a pattern that a lost or repeated part could hide in.
struct Bytes(u64);

impl Bytes {
    fn take(&mut self) -> Vec<u8> {
        let mut word = || {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()
        };
        (0..CHUNK / 8).flat_map(|_| word()).collect()
    }
}

/// Sends a datagram from a connected socket, so that a refusal is heard, and waits for the answer.
fn ask(address: SocketAddr) -> Result<String, Failure> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let exchange = || -> io::Result<String> {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(BRIEF))?;
        socket.connect(address)?;
        socket.send(b"?")?;
        let mut answer = [0; 2048];
        let length = socket.recv(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer[..length]);
        let greeting = answer.strip_suffix('?').ok_or(io::ErrorKind::InvalidData)?;
        Ok(greeting.to_owned())
    };
    exchange().map_err(|error| ("ask", error))
}

/// Opens connections and uses each all the time, until the input ends.
fn hold(address: SocketAddr, times: usize) {
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..times {
            match open(address, PATIENCE) {
                Ok((stream, greeting)) => {
                    tell(Ok(greeting));
                    scope.spawn(|| use_until(stream, &end));
                }
                Err(failure) => {
                    tell(Err(failure));
                }
            }
        }
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        end.store(true, Ordering::Relaxed);
    });
}

/// Uses a connection until it shall end, then ends it; says so if it broke.
fn use_until(mut stream: BufReader<TcpStream>, end: &AtomicBool) {
    loop {
        // Looked at before the last use: a connection that was ended in between is no good end.
        let last = end.load(Ordering::Relaxed);
        if let Err(failure) = pulse(&mut stream) {
            tell(Err(failure));
            return;
        }
        if last {
            break;
        }
        thread::sleep(PULSE);
    }
    let ended = stream.get_ref().shutdown(Shutdown::Write).and_then(|()| stream.read_to_end(&mut Vec::new()));
    if let Err(error) = ended {
        tell(Err(("end", error)));
    }
}
