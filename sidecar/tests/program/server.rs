//! Endpoints: servers on loopback addresses that speak first, then echo.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Owning one means that it listens. To every client it says its IP address on a line, then echoes.
pub(crate) struct Server {
    address: SocketAddr,
    is_stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Servers on one free port of each of `ips`.
    pub(crate) fn all_on(ips: &[&str]) -> (Vec<Server>, u16) {
        for _ in 0..100 {
            let first = TcpListener::bind((ips[0], 0)).unwrap();
            let port = first.local_addr().unwrap().port();
            let others: Result<Vec<_>, _> =
                ips[1..].iter().map(|ip| TcpListener::bind((*ip, port))).collect();
            if let Ok(others) = others {
                return (std::iter::once(first).chain(others).map(Server::serve).collect(), port);
            }
        }
        panic!("no port is free on all of {ips:?}");
    }

    /// Where it listens, as it tells its clients.
    pub(crate) fn ip(&self) -> String {
        self.address.ip().to_string()
    }

    /// The port on which it listens.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    fn serve(listener: TcpListener) -> Server {
        let address = listener.local_addr().unwrap();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::spawn(move || echo(stream, address).is_ok());
            }
        });
        Server { address, is_stopped, accepting: Some(accepting) }
    }
}

fn echo(mut stream: TcpStream, address: SocketAddr) -> std::io::Result<()> {
    writeln!(stream, "{}", address.ip())?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

impl Drop for Server {
    /// Stops listening: who connects from here on is refused.
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}
