//! The relays that are compared: how each is configured, started and measured. Two threads each, one endpoint,
//! no logs.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Direct,
    Remora,
    /// The same at a node port, where the table is asked whose connection it is; a load balancer does just that.
    Node,
    /// The program of the image, which is built to be small.
    Image,
    Haproxy,
    Nginx,
    Envoy,
}

/// A relay at work. Dropping it ends it.
pub(crate) struct Running {
    pub(crate) peer: Peer,
    pub(crate) address: SocketAddr,
    child: Option<Child>,
}

impl Peer {
    pub(crate) const ALL: [Self; 7] =
        [Self::Direct, Self::Remora, Self::Node, Self::Image, Self::Haproxy, Self::Nginx, Self::Envoy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Remora => "remora",
            Self::Node => "node port",
            Self::Image => "image",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// Starts it before `endpoint`, with its files in `folder`; an error says what is missing.
    pub(crate) fn start(self, endpoint: SocketAddr, folder: &Path) -> Result<Running, String> {
        if self == Self::Direct {
            return Ok(Running { peer: self, address: endpoint, child: None });
        }
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = folder.join(format!("{}.conf", self.name()));
        std::fs::write(&file, self.configuration(address, endpoint, folder)).unwrap();
        let mut command = self.command(address, &file);
        let log = std::fs::File::create(folder.join(format!("{}.log", self.name()))).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command
            .spawn()
            .map_err(|error| format!("{} ({error}); sidecar/benches/peers installs it", self.name()))?;
        let mut running = Running { peer: self, address, child: Some(child) };
        running.wait(folder)?;
        Ok(running)
    }

    fn command(self, address: SocketAddr, file: &Path) -> Command {
        match self {
            Self::Direct | Self::Remora | Self::Node | Self::Image => {
                let mut command = match self {
                    Self::Image => Command::new(place("sidecar/image", &["where"], "make image")),
                    _ => Command::new(env!("CARGO_BIN_EXE_remora")),
                };
                let manifest = file.with_extension("yaml");
                std::fs::copy(file, &manifest).unwrap();
                match self {
                    Self::Node => command.args(["node", "--nodeport-addresses", "localhost"]),
                    _ => command.args(["sidecar", "--listen", &format!("{address}=bench/endpoint:80")]),
                };
                command.args(["--source", &format!("manifests:{}", manifest.display())]);
                command.args(["--threads", "2", "--log-level", "error"]);
                command
            }
            Self::Haproxy => with_arguments("/usr/sbin/haproxy", &["-db", "-f"], file),
            Self::Nginx => with_arguments("/usr/sbin/nginx", &["-c"], file),
            Self::Envoy => {
                let mut command = with_arguments(
                    &place("tests/tools", &["where", "envoy"], "envoy"),
                    &["--concurrency", "2", "-l", "off", "-c"],
                    file,
                );
                command.arg("--disable-hot-restart");
                command
            }
        }
    }

    fn configuration(self, address: SocketAddr, endpoint: SocketAddr, folder: &Path) -> String {
        let (ip, port) = (endpoint.ip(), endpoint.port());
        let folder = folder.display();
        match self {
            Self::Direct => String::new(),
            Self::Remora | Self::Image => configuration(endpoint),
            Self::Node => {
                let ports = format!("type: NodePort, ports: [{{port: 80, nodePort: {}}}]", address.port());
                configuration(endpoint).replace("ports: [{port: 80}]", &ports)
            }
            Self::Haproxy => format!(
                "global\n nbthread 2\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n \
                 timeout server 1h\n option splice-request\n option splice-response\nlisten relay\n bind {address}\n \
                 server endpoint {endpoint}\n"
            ),
            Self::Nginx => format!(
                "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes 2;\ndaemon off;\n\
                 pid {folder}/nginx.pid;\nerror_log stderr error;\nevents {{ worker_connections 10000; }}\n\
                 stream {{ server {{ listen {address} reuseport; proxy_pass {endpoint}; }} }}\n"
            ),
            Self::Envoy => ENVOY
                .replace("LISTEN", &address.port().to_string())
                .replace("ENDPOINT_IP", &ip.to_string())
                .replace("ENDPOINT_PORT", &port.to_string()),
        }
    }
}

/// A manifest of the Service `bench/endpoint`, port 80, over this one endpoint.
pub(crate) fn configuration(endpoint: SocketAddr) -> String {
    let (ip, port) = (endpoint.ip(), endpoint.port());
    format!(
        "{{kind: Service, apiVersion: v1, metadata: {{name: endpoint, namespace: bench}}, spec: {{\
         clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}}}\n---\n{{kind: EndpointSlice, \
         apiVersion: discovery.k8s.io/v1, metadata: {{name: e, namespace: bench, labels: {{\
         kubernetes.io/service-name: endpoint}}}}, addressType: IPv4, ports: [{{name: '', port: {port}}}], \
         endpoints: [{{addresses: [{ip}]}}]}}\n"
    )
}

/// TCP proxy with one static endpoint; a circuit breaker that is out of the way.
const ENVOY: &str = r"static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: LISTEN}}
    enable_reuse_port: true
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: relay
          cluster: endpoint
  clusters:
  - name: endpoint
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 10000, max_pending_requests: 10000}]}
    load_assignment:
      cluster_name: endpoint
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: ENDPOINT_IP, port_value: ENDPOINT_PORT}}}
";

fn with_arguments(program: &str, arguments: &[&str], file: &Path) -> Command {
    let mut command = Command::new(program);
    let file = if program.ends_with("envoy") {
        let yaml = file.with_extension("yaml");
        std::fs::copy(file, &yaml).unwrap();
        yaml
    } else {
        file.to_owned()
    };
    command.args(arguments).arg(file);
    command
}

/// Where `sidecar/benches/peers` had Envoy installed; its plain name if it is not there, for the error to say.
/// Where a script of the project says that a program is; if it says nothing, `name`, by which a message tells it is missing.
fn place(script: &str, arguments: &[&str], name: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(script);
    let output = Command::new(script).args(arguments).output();
    let path = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    path.map_or_else(|| name.to_owned(), |path| String::from_utf8_lossy(&path).trim().to_owned())
}

impl Running {
    /// `child`, which is `peer` and listens on `address`.
    pub(crate) fn of(peer: Peer, address: SocketAddr, child: Child) -> Self {
        Self { peer, address, child: Some(child) }
    }

    fn wait(&mut self, folder: &Path) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(self.address).is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let log = folder.join(format!("{}.log", self.peer.name()));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("{} does not start: {log}", self.peer.name()));
            }
            std::thread::yield_now();
        }
        // One request through, so that nothing is made for the first time while it is measured.
        drop(load::hold(1, self.address));
        Ok(())
    }

    /// CPU time used so far, by all of its threads and processes.
    pub(crate) fn cpu(&self) -> Duration {
        let of_thread = |path: PathBuf| -> u64 {
            let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
        };
        let nanos =
            self.processes().iter().flat_map(|process| entries(&process.join("task"))).map(of_thread).sum();
        Duration::from_nanos(nanos)
    }

    /// Memory of its own that is resident, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let of_process = |process: &PathBuf| -> u64 {
            let text = std::fs::read_to_string(process.join("status")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        self.processes().iter().map(of_process).sum()
    }

    /// Its process and the processes that this one started.
    fn processes(&self) -> Vec<PathBuf> {
        let Some(child) = &self.child else { return Vec::new() };
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let children = std::fs::read_to_string(process.join(format!("task/{}/children", child.id())));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().map(|pid| PathBuf::from(format!("/proc/{pid}")));
        std::iter::once(process).chain(children).collect()
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = child.wait();
    }
}
