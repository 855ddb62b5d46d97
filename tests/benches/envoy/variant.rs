//! The Envoys that are compared: how each is configured, started and measured. One worker each, no logs. Remora's are the
//! files that people copy; the others are those files with less in them, so that each row has one thing more.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::envoy::{self, replaced};
use tests::tools;

use crate::ENDPOINTS;
use crate::load::{self, Work};

/// How a request or connection finds its endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Envoy's own choice among endpoints that its configuration names: what the others are measured by.
    Static,
    /// Another filter, part of Envoy, names one endpoint; the cluster takes the name.
    Named,
    /// The same for HTTP, through the clusters of `envoy/http.yaml`, which give a retry another endpoint.
    NamedTwice,
    /// The static cluster, behind a module that does nothing.
    EmptyModule,
    /// Remora's file, with a module that always names the same endpoint: the least that a plugin which chooses can cost.
    FixedModule,
    /// Remora.
    Remora,
}

/// An Envoy at work. Dropping it ends it.
pub(crate) struct Running {
    pub(crate) variant: Variant,
    address: SocketAddr,
    child: Child,
}

impl Variant {
    pub(crate) fn of(work: Work) -> &'static [Self] {
        match work {
            Work::Http => &[
                Self::Static,
                Self::Named,
                Self::NamedTwice,
                Self::EmptyModule,
                Self::FixedModule,
                Self::Remora,
            ],
            Work::Tcp => &[Self::Static, Self::Named, Self::EmptyModule, Self::FixedModule, Self::Remora],
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Static => "static cluster",
            Self::Named => "named by Envoy's own filter",
            Self::NamedTwice => "the same, with retries elsewhere",
            Self::EmptyModule => "static cluster, empty module",
            Self::FixedModule => "named by a module, always the same",
            Self::Remora => "Remora",
        }
    }

    /// Starts it for `work`, with its files in `folder` and its feed at `feed`.
    pub(crate) fn start(self, work: Work, port: u16, feed: SocketAddr, folder: &Path) -> Running {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let name = format!("{}-{}", if work == Work::Http { "http" } else { "tcp" }, self as u8);
        let file = folder.join(format!("{name}.yaml"));
        let log = folder.join(format!("{name}.log"));
        std::fs::write(&file, self.configuration(work, address, port, feed, folder)).unwrap();
        let mut command = Command::new(tools::built("envoy"));
        command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning", "-c"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let mut running = Running { variant: self, address, child: command.spawn().unwrap() };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !load::is_served(work, address) {
            let ended = running.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{} does not serve: {}",
                self.name(),
                std::fs::read_to_string(&log).unwrap()
            );
            std::thread::yield_now();
        }
        running
    }

    fn configuration(
        self,
        work: Work,
        address: SocketAddr,
        port: u16,
        feed: SocketAddr,
        folder: &Path,
    ) -> String {
        let listen = format!("address: 127.0.0.1, port_value: {}", address.port());
        let admin = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}\n";
        let (file, listens) = match work {
            Work::Http => ("http.yaml", "address: 127.0.0.1, port_value: 8080"),
            Work::Tcp => ("tcp.yaml", "address: 127.0.0.1, port_value: 8081"),
        };
        let text = replaced(&envoy::configuration(file), listens, &listen);
        let text = replaced(
            &replaced(&text, admin, ""),
            "port_value: 64105",
            &format!("port_value: {}", feed.port()),
        );
        if self == Self::Remora {
            return text;
        }
        if self == Self::FixedModule {
            let module = crate::fixed_module(folder, &format!("{}:{port}", ENDPOINTS[0]));
            return replaced(&text, &envoy::filter().display().to_string(), &module.display().to_string());
        }
        // The filter that stands in Remora's place, and in that of the filter behind it.
        let (plugin, last) = match work {
            Work::Http => ("          - name: remora\n", "          - name: envoy.filters.http.router\n"),
            Work::Tcp => ("      - name: remora\n", "      - name: envoy.filters.network.tcp_proxy\n"),
        };
        let (head, rest) = text.split_once(plugin).unwrap();
        let (_, rest) = rest.split_once(last).unwrap();
        let (chain, clusters) = rest.split_once("  clusters:\n").unwrap();
        let chain = if work == Work::Http && self != Self::NamedTwice {
            // Without the header that Remora's route asks for, and without its retries.
            let (before, routes) = chain.split_once("              - match: {prefix: /, headers").unwrap();
            let (_, after) = routes.split_once("              # The fallback").unwrap();
            let route = "- match: {prefix: /}\n                route: {cluster: remora, timeout: 0s}";
            format!("{before}              {route}\n              #{after}")
        } else if work == Work::Http {
            replaced(chain, ", headers: [{name: x-remora-endpoint-1, present_match: true}]", "")
        } else {
            chain.to_owned()
        };
        let clusters = match self {
            Self::NamedTwice => clusters.to_owned(),
            Self::Named => original_destination(),
            _ => static_cluster(port),
        };
        format!("{head}{}{last}{chain}  clusters:\n{clusters}", self.filter(work, port, folder))
    }

    fn filter(self, work: Work, port: u16, folder: &Path) -> String {
        let (kind, indent) = if work == Work::Http { ("http", "          ") } else { ("network", "      ") };
        let endpoint = format!("{}:{port}", ENDPOINTS[0]);
        match self {
            Self::Static | Self::FixedModule | Self::Remora => String::new(),
            Self::Named => {
                let when = if work == Work::Http { "on_request_headers" } else { "on_new_connection" };
                format!(
                    "{indent}- {{name: endpoint, typed_config: {{\"@type\": \
                     type.googleapis.com/envoy.extensions.filters.{kind}.set_filter_state.v3.Config, {when}: [{{object_key: \
                     envoy.network.transport_socket.original_dst_address, format_string: {{text_format_source: \
                     {{inline_string: \"{endpoint}\"}}}}}}]}}}}\n"
                )
            }
            Self::NamedTwice => format!(
                "{indent}- {{name: endpoints, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config, metadata: [{{metadata_namespace: \
                 remora, value: {{endpoint-1: \"{endpoint}\", endpoint-2: \"{endpoint}\", endpoint-3: \"{endpoint}\"}}}}]}}}}\n"
            ),
            Self::EmptyModule => format!(
                "{indent}- {{name: empty, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.filters.{kind}.wasm.v3.Wasm, config: {{vm_config: {{runtime: \
                 envoy.wasm.runtime.v8, code: {{local: {{filename: {}}}}}}}}}}}}}\n",
                crate::empty_module(folder).display()
            ),
        }
    }
}

const LIMITS: &str = "circuit_breakers: {thresholds: [{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000}]}";

fn static_cluster(port: u16) -> String {
    let endpoints = ENDPOINTS.map(|ip| {
        format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
    });
    format!(
        "  - name: remora\n    type: STATIC\n    connect_timeout: 1s\n    {LIMITS}\n    load_assignment: {{cluster_name: \
         remora, endpoints: [{{lb_endpoints: [{}]}}]}}\n",
        endpoints.join(", ")
    )
}

fn original_destination() -> String {
    format!(
        "  - name: remora\n    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n    connect_timeout: 1s\n    {LIMITS}\n"
    )
}

impl Running {
    /// Does one round of `work`; the CPU time that it took, in seconds for each unit.
    pub(crate) fn round(&self, work: Work) -> f64 {
        let before = self.cpu();
        load::run(work, self.address);
        (self.cpu() - before).as_secs_f64() / work.units() as f64
    }

    /// CPU time used so far, by all of its threads.
    fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let nanos = threads.map(|thread| {
            let text = std::fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0)
        });
        Duration::from_nanos(nanos.sum())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
