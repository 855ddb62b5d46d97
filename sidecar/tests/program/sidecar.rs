//! A running `remora sidecar`, and what can be asked of it from outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Owning one means that it runs; it is killed with it.
pub(crate) struct Sidecar {
    child: Child,
    log: Arc<Mutex<String>>,
    /// The addresses of its listeners, in the order of `--listen`.
    pub(crate) listens: Vec<SocketAddr>,
    /// Where its feed is, as `--source feed:` takes it.
    pub(crate) feed: Option<String>,
    /// Where it answers DNS.
    pub(crate) dns: Option<SocketAddr>,
    pub(crate) health: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// `remora`, without anything of the environment that the developer may have set.
pub(crate) fn remora(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REMORA_")) {
        command.env_remove(name);
    }
    command.env_remove("KUBERNETES_SERVICE_HOST").args(arguments);
    command
}

/// Runs `remora` until it ends.
pub(crate) fn run(arguments: &[&str]) -> Output {
    remora(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The text that a program printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asks again until `ask` succeeds; fails with its last error.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(state) if start.elapsed() > PATIENCE => {
                panic!("{what}: not within {PATIENCE:?}; last: {state}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

impl Sidecar {
    /// Starts one with health and admin on free ports, unless `arguments` say where, and waits for it to say which.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, |_| ())
    }

    /// The same, with `prepare` for its environment.
    pub(crate) fn start_with(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        Self::run("sidecar", arguments, prepare)
    }

    /// Starts a hub, which can be asked the same.
    pub(crate) fn hub(arguments: &[&str]) -> Self {
        Self::run("hub", arguments, |_| ())
    }

    fn run(verb: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = remora(&[verb]);
        for flag in ["--health", "--admin"].iter().filter(|flag| !arguments.contains(flag)) {
            command.args([flag, "127.0.0.1:0"]);
        }
        prepare(&mut command);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let (mut listens, mut feed, mut dns, mut health) = (Vec::new(), None, None, None);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["listen", address, _] => listens.push(address.parse().unwrap()),
                ["feed", address] => feed = Some(address.to_owned()),
                ["dns", address] => dns = Some(address.parse().unwrap()),
                ["health", address] => health = Some(address.parse().unwrap()),
                ["admin", address] => {
                    let admin = address.parse().unwrap();
                    return Self { child, log, listens, feed, dns, health: health.unwrap(), admin };
                }
                _ => panic!("{line:?} is not an address"),
            }
        }
        panic!("it ended at once: {:?}\n{}", child.wait(), log.lock().unwrap());
    }

    /// Starts one with one listener for shop/web on 127.0.0.1.
    pub(crate) fn start_web(source: &str, more: &[&str]) -> Self {
        let arguments = ["--source", source, "--listen", "127.0.0.1:0=shop/web:80"];
        Self::start(&[&arguments, more].concat())
    }

    /// A client of its first listener.
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.listens[0]).unwrap()
    }

    /// Asks its health address.
    pub(crate) fn health(&self, path: &str) -> (u16, String) {
        get(self.health, path).unwrap()
    }

    /// Runs a command that asks its admin address.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        run(&[arguments, &["--admin", &self.admin.to_string()]].concat())
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has logged `text`: what it wrote comes through a pipe, later than what it did.
    pub(crate) fn wait_for_log(&self, text: &str) {
        until(&format!("the log says {text:?}"), || match self.log() {
            log if log.contains(text) => Ok(()),
            log => Err(log),
        });
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let (child, log) = (&mut self.child, &self.log);
        until("the sidecar ends", || match child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(log.lock().unwrap().clone()),
        })
    }

    /// Waits until it uses exactly these endpoints for shop/web.
    pub(crate) fn wait_for_endpoints(&self, ips: &[&str]) {
        until(&format!("it uses {ips:?}"), || {
            let output = self.command(&["endpoints", "shop/web", "-o", "json"]);
            let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let used = rows[0]["cluster"].as_array().cloned().unwrap_or_default();
            let used: Vec<_> = used.iter().map(|a| a.as_str().unwrap().rsplit_once(':').unwrap().0).collect();
            if used == ips { Ok(()) } else { Err(format!("{used:?}\n{}", self.log())) }
        });
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the sidecar's log:\n{}", self.log());
        }
    }
}

/// A connection to an endpoint that says its name and echoes.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    /// What the endpoint said.
    pub(crate) server: String,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut server = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte != *b"\n" {
            server.push(byte[0]);
        }
        if server.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { stream, server: String::from_utf8(server).unwrap() })
    }

    /// Sends `text` and reads it back.
    pub(crate) fn echo(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(text.as_bytes())?;
        let mut echo = vec![0; text.len()];
        self.stream.read_exact(&mut echo)?;
        assert_eq!(echo, text.as_bytes());
        Ok(())
    }

    /// Says that nothing more comes, and reads to the end.
    pub(crate) fn finish(mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }
}

/// One HTTP request: status and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// Any HTTP request: status and body.
pub(crate) fn exchange(address: SocketAddr, request: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
}
