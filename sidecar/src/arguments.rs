//! The command line as it is typed: flags, their environment variables, help. In: argv. Out: words.
//! Never judges a value beyond its shape; [`crate::config`] does, in one place.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Balances connections to Kubernetes Services over their endpoints.
#[derive(Debug, Parser)]
#[command(name = "remora", version, about, propagate_version = true, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Take connections to Services and balance them over the endpoints
    Sidecar(Box<SidecarArguments>),
    /// Serve the node ports of every Service on this node's addresses, and the health checks of load balancers
    Node(Box<NodeArguments>),
    /// Be the load balancer of Services of type LoadBalancer: addresses from a pool, nodes behind them
    Loadbalancer(Box<LoadbalancerArguments>),
    /// Prepare a network namespace so that connections to Services come to the sidecar in it
    Capture {
        /// What to do.
        #[command(subcommand)]
        verb: CaptureVerb,
    },
    /// Know the cluster and serve its feed to other Remoras; takes no connections to Services
    Hub(Box<HubArguments>),
    /// Add sidecars to the Pods of manifests, and nothing else
    Inject(InjectArguments),
    /// Take the sidecars out of manifests again
    Uninject(ManifestArguments),
    /// Show which endpoints serve a Service here, and why each other one is left out
    Endpoints(EndpointsArguments),
    /// Tell step by step what becomes of a connection to an address
    Explain(ExplainArguments),
    /// Check whether a cluster is fit for Remora, and whether what is installed there works
    Check(CheckArguments),
    /// Print the completion script of a shell
    Completion {
        /// For which shell, such as: source <(remora completion bash)
        shell: clap_complete::Shell,
    },
}

/// `remora sidecar`.
#[derive(Debug, Args)]
pub struct SidecarArguments {
    /// Where to listen for which Service port, such as 127.0.0.1:8080=shop/web:80 or [::1]:8080=web:http;
    /// port 0 takes any free one. Repeatable, in the environment separated by commas
    #[arg(
        long,
        env = "REMORA_LISTEN",
        value_name = "ADDRESS:PORT=[NAMESPACE/]NAME:PORT",
        value_delimiter = ','
    )]
    pub listen: Vec<String>,
    /// Take connections to every Service's address that the rules of remora capture bring; needs CAP_NET_RAW
    #[arg(long, env = "REMORA_CAPTURE", value_parser = clap::builder::FalseyValueParser::new())]
    pub capture: bool,
    /// With --capture and a feed, only Services that are used are known, and one without a connection for so long is
    /// forgotten; off: every one is known
    #[arg(long, env = "REMORA_ON_DEMAND_IDLE", value_name = "DURATION|off", default_value = "10m")]
    pub on_demand_idle: String,
    /// How.
    #[command(flatten)]
    pub serving: ServingArguments,
}

/// `remora node`.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// At which addresses: primary, the node's own; all; localhost; or ranges such as 192.168.0.0/16, which mean this
    /// machine's addresses in them, and every one of a family without a range. Repeatable, or separated by commas
    #[arg(
        long,
        env = "REMORA_NODEPORT_ADDRESSES",
        default_value = "primary",
        value_name = "WHICH",
        value_delimiter = ','
    )]
    pub nodeport_addresses: Vec<String>,
    /// The node's primary addresses, one of a family, as the downward API has them in status.hostIPs; if absent, those
    /// from which this machine speaks to others
    #[arg(long, env = "REMORA_NODE_IPS", value_name = "ADDRESSES", value_delimiter = ',')]
    pub node_ips: Vec<String>,
    /// The addresses of Pods, such as 10.244.0.0/16: like this node itself, they are served by endpoints of any node,
    /// whatever the external traffic policy says
    #[arg(long, env = "REMORA_PODS", value_name = "CIDRS", value_delimiter = ',')]
    pub pods: Vec<String>,
    /// How.
    #[command(flatten)]
    pub serving: ServingArguments,
}

/// `remora loadbalancer`.
#[derive(Debug, Args)]
pub struct LoadbalancerArguments {
    /// Addresses that Services may get, such as 192.0.2.0/28,fd00:5::/120. Repeatable, or separated by commas
    #[arg(long, env = "REMORA_POOL", value_name = "CIDRS", value_delimiter = ',')]
    pub pool: Vec<String>,
    /// The interface that the addresses are put on, such as eth0; needs NET_ADMIN
    #[arg(long, env = "REMORA_INTERFACE", value_name = "NAME")]
    pub interface: String,
    /// spec.loadBalancerClass of the Services to serve; others are not touched
    #[arg(long, env = "REMORA_CLASS", default_value = watcher::balancer::CLASS, value_name = "NAME")]
    pub class: String,
    /// Serve Services of type LoadBalancer without a class too
    #[arg(long, env = "REMORA_DEFAULT_CLASS", value_parser = clap::builder::FalseyValueParser::new())]
    pub default_class: bool,
    /// The port at which nodes answer /healthz, asked of Services with external policy Cluster; off takes every node
    #[arg(long, env = "REMORA_NODE_HEALTH_PORT", default_value = "10256", value_name = "PORT")]
    pub node_health_port: String,
    /// The Lease by which several of these agree who serves
    #[arg(
        long,
        env = "REMORA_LEASE",
        default_value = "remora-loadbalancer",
        value_name = "[NAMESPACE/]NAME"
    )]
    pub lease: String,
    /// How.
    #[command(flatten)]
    pub serving: ServingArguments,
}

/// Where everything is known from.
#[derive(Clone, Debug, Args)]
pub struct SourceArguments {
    /// Where Services and EndpointSlices come from: kube, manifests:PATH with a file or a folder, or feed:ADDRESS where
    /// another Remora serves its --feed: feed:https://HOST:PORT, feed:http://127.0.0.1:PORT or feed:unix:PATH
    #[arg(long, env = "REMORA_SOURCE", default_value = "kube", value_name = "SOURCE")]
    pub source: String,
    /// Who vouches for the hub behind feed:https: certificates, PEM, or the path of a file with them
    #[arg(long, env = "REMORA_FEED_CA", value_name = "FILE|PEM")]
    pub feed_ca: Option<String>,
    /// A file with the token of a ServiceAccount that is shown to the hub behind feed:https
    #[arg(long, env = "REMORA_FEED_TOKEN", value_name = "FILE")]
    pub feed_token: Option<PathBuf>,
}

/// How connections are served: what `remora sidecar` and `remora node` have in common.
#[derive(Debug, Args)]
pub struct ServingArguments {
    /// Where Services and EndpointSlices come from.
    #[command(flatten)]
    pub source: SourceArguments,
    /// Where this process runs.
    #[command(flatten)]
    pub place: PlaceArguments,
    /// Where to answer the kubelet and Prometheus (/livez, /readyz, /metrics); off does not.
    /// [default: off; in a Pod [::]:64104]
    #[arg(long, env = "REMORA_HEALTH", value_name = "ADDRESS:PORT", verbatim_doc_comment)]
    pub health: Option<String>,
    /// Where to answer remora endpoints and remora explain, on loopback; off does not.
    /// [default: off; in a Pod 127.0.0.1:64103]
    #[arg(long, env = "REMORA_ADMIN", value_name = "ADDRESS:PORT", verbatim_doc_comment)]
    pub admin: Option<String>,
    /// Where to serve the feed to other Remoras and to Envoys, on loopback or at a Unix socket, such as
    /// 127.0.0.1:64105 or unix:/run/remora/feed; every Service is followed then
    #[arg(long, env = "REMORA_FEED", value_name = "ADDRESS:PORT|unix:PATH")]
    pub feed: Option<String>,
    /// Where to answer DNS, UDP and TCP, such as 127.0.0.1:53: names of Services by what the table knows, every other
    /// name by asking the cluster's DNS. Every Service is followed then
    #[arg(long, env = "REMORA_DNS", value_name = "ADDRESS:PORT")]
    pub dns: Option<String>,
    /// The cluster's DNS, such as 10.96.0.10, which is also asked for the external names of Services; as
    /// /etc/resolv.conf says if absent. Repeatable, or separated by commas
    #[arg(long, env = "REMORA_DNS_FORWARD", value_name = "ADDRESS[:PORT]", value_delimiter = ',')]
    pub dns_forward: Vec<String>,
    /// The zone that the cluster's names end with
    #[arg(long, env = "REMORA_DNS_ZONE", default_value = "cluster.local", value_name = "NAME")]
    pub dns_zone: String,
    /// A folder with what filter/build makes: filter.wasm is served beside the feed at /filter.wasm, its sha256 at
    /// /filter.wasm.sha256
    #[arg(long, env = "REMORA_ASSETS", value_name = "FOLDER")]
    pub assets: Option<PathBuf>,
    /// Connections at once; one more is reset [default: as many as there are descriptors]
    #[arg(long, env = "REMORA_MAX_CONNECTIONS", value_name = "NUMBER")]
    pub max_connections: Option<String>,
    /// How many bytes each direction of a connection may hold back for a slow receiver, 4KiB to 16MiB
    #[arg(long, env = "REMORA_BUFFER_SIZE", default_value = "64KiB", value_name = "SIZE")]
    pub buffer_size: String,
    /// How long a connect to an endpoint may take before another one is tried
    #[arg(long, env = "REMORA_CONNECT_TIMEOUT", default_value = "5s", value_name = "DURATION")]
    pub connect_timeout: String,
    /// How long open connections may go on after SIGTERM before they are reset
    #[arg(long, env = "REMORA_DRAIN_TIMEOUT", default_value = "30s", value_name = "DURATION")]
    pub drain_timeout: String,
    /// A path at which the listening sockets are offered to a successor: start another one with the same path,
    /// and it takes over without a client noticing
    #[arg(long, env = "REMORA_HANDOVER", value_name = "PATH")]
    pub handover: Option<PathBuf>,
    /// How log lines look, on standard error
    #[arg(long, env = "REMORA_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Which log lines: error, warn, info, debug, trace, or a filter such as info,watcher=debug
    #[arg(long, env = "REMORA_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// Log one line for each connection when it ends
    #[arg(long, env = "REMORA_LOG_CONNECTIONS", value_parser = clap::builder::FalseyValueParser::new())]
    pub log_connections: bool,
    /// Threads that move bytes [default: one for each CPU that this process may use]
    #[arg(long, env = "REMORA_THREADS", value_name = "NUMBER")]
    pub threads: Option<String>,
}

/// `remora hub`.
#[derive(Debug, Args)]
pub struct HubArguments {
    /// Where Services and EndpointSlices come from.
    #[command(flatten)]
    pub source: SourceArguments,
    /// Where to serve the feed to other Remoras and to Envoys: on loopback, at a Unix socket such as
    /// unix:/run/remora/feed, or, with --certificate, anywhere by TLS to who shows a token of a ServiceAccount
    #[arg(
        long,
        env = "REMORA_FEED",
        default_value = "127.0.0.1:64105",
        value_name = "ADDRESS:PORT|unix:PATH"
    )]
    pub feed: String,
    /// A folder with what filter/build makes: filter.wasm is served beside the feed at /filter.wasm, its sha256 at
    /// /filter.wasm.sha256
    #[arg(long, env = "REMORA_ASSETS", value_name = "FOLDER")]
    pub assets: Option<PathBuf>,
    /// Where to answer the API server, by TLS, which Pods get a sidecar: POST /inject; needs --certificate
    #[arg(long, env = "REMORA_WEBHOOK", value_name = "ADDRESS:PORT")]
    pub webhook: Option<String>,
    /// What is shown to whoever connects by TLS: a folder with tls.crt and tls.key, as a Secret of type
    /// kubernetes.io/tls has them; or a Secret in which hubs keep an authority and a certificate of their own. Either is
    /// followed
    #[arg(long, env = "REMORA_CERTIFICATE", value_name = "FOLDER|secret:[NAMESPACE/]NAME")]
    pub certificate: Option<String>,
    /// A name or address by which it is called, for a certificate of its own, such as remora.remora.svc. Repeatable, or
    /// separated by commas
    #[arg(long, env = "REMORA_CERTIFICATE_NAME", value_name = "NAME", value_delimiter = ',')]
    pub certificate_name: Vec<String>,
    /// The MutatingWebhookConfiguration whose caBundle shall have the certificate's authority
    #[arg(long, env = "REMORA_WEBHOOK_CONFIGURATION", value_name = "NAME")]
    pub webhook_configuration: Option<String>,
    /// What those Pods get.
    #[command(flatten)]
    pub injected: InjectedArguments,
    /// Where to answer the kubelet and Prometheus (/livez, /readyz, /metrics); off does not.
    /// [default: off; in a Pod [::]:64104]
    #[arg(long, env = "REMORA_HEALTH", value_name = "ADDRESS:PORT", verbatim_doc_comment)]
    pub health: Option<String>,
    /// Where to answer remora endpoints and remora explain, on loopback; off does not.
    /// [default: off; in a Pod 127.0.0.1:64103]
    #[arg(long, env = "REMORA_ADMIN", value_name = "ADDRESS:PORT", verbatim_doc_comment)]
    pub admin: Option<String>,
    /// How log lines look, on standard error
    #[arg(long, env = "REMORA_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Which log lines: error, warn, info, debug, trace, or a filter such as info,watcher=debug
    #[arg(long, env = "REMORA_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// `remora inject`.
#[derive(Debug, Args)]
pub struct InjectArguments {
    /// Of what.
    #[command(flatten)]
    pub manifests: ManifestArguments,
    /// What they get.
    #[command(flatten)]
    pub injected: InjectedArguments,
}

/// What Pods get: what `remora inject` and the webhook have in common.
#[derive(Debug, Args)]
pub struct InjectedArguments {
    /// The image of the sidecar and of the init container
    #[arg(long, env = "REMORA_IMAGE", default_value = concat!("remora:", env!("CARGO_PKG_VERSION")), value_name = "IMAGE")]
    pub image: String,
    /// The ranges of the cluster's Services, such as 10.96.0.0/12 [default: the init container asks the API server].
    /// Repeatable, or separated by commas
    #[arg(long, env = "REMORA_SERVICES", value_name = "CIDRS", value_delimiter = ',')]
    pub services: Vec<String>,
    /// Where the sidecars learn of Services, as remora sidecar takes it. With feed:https they get a token of their
    /// ServiceAccount to show
    #[arg(long, env = "REMORA_SIDECAR_SOURCE", default_value = "kube", value_name = "SOURCE")]
    pub sidecar_source: String,
    /// Who vouches for that hub: certificates, PEM, or the path of a file with them [default: this hub's own]
    #[arg(long, env = "REMORA_SIDECAR_FEED_CA", value_name = "FILE|PEM")]
    pub sidecar_feed_ca: Option<String>,
    /// For whom the tokens are that sidecars show to a hub, and that a hub takes
    #[arg(long, env = "REMORA_FEED_AUDIENCE", default_value = "remora", value_name = "AUDIENCE")]
    pub feed_audience: String,
}

/// Which manifests.
#[derive(Debug, Args)]
pub struct ManifestArguments {
    /// The manifests, YAML or JSON; - is standard input
    #[arg(long = "filename", short, default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
    /// How to print them; yaml leaves all as it was written
    #[arg(long, short, default_value = "yaml", value_name = "FORMAT")]
    pub output: ManifestFormat,
}

/// How manifests are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ManifestFormat {
    /// As they were written.
    Yaml,
    /// As JSON, one after the other.
    Json,
}

/// What `remora capture` can do.
#[derive(Debug, Subcommand)]
pub enum CaptureVerb {
    /// Begin to capture, explain each rule, and try whether it works; takes NET_ADMIN, once
    Up(CaptureUpArguments),
    /// Undo it: rules, routing rule and route
    Down,
    /// Show what is captured: each rule in words, and what the sets hold
    Show {
        /// How to print it
        #[arg(long, short, default_value = "text", value_name = "FORMAT")]
        output: OutputFormat,
    },
}

/// `remora capture up`.
#[derive(Debug, Args)]
pub struct CaptureUpArguments {
    /// A range of Service addresses, such as 10.96.0.0/12 or fd00:96::/112; asked of the Kubernetes API if absent.
    /// Repeatable, or separated by commas
    #[arg(long, env = "REMORA_SERVICES", value_name = "CIDR", value_delimiter = ',')]
    pub services: Vec<String>,
    /// Destination ports to leave alone, such as 9443,20000-20100
    #[arg(long, env = "REMORA_SKIP_PORTS", value_name = "PORTS", value_delimiter = ',')]
    pub skip_ports: Vec<String>,
    /// Parts of the ranges to leave alone, such as 10.96.128.0/20,10.96.0.1
    #[arg(long, env = "REMORA_SKIP_SUBNETS", value_name = "CIDRS", value_delimiter = ',')]
    pub skip_subnets: Vec<String>,
    /// The user that the sidecar runs as: its own connections are left alone, and only its signals count
    #[arg(long, env = "REMORA_USER", value_name = "NUMBER", default_value_t = crate::capture::agreement::USER)]
    pub user: u32,
    /// Fail if nothing can be captured, or if the probe does not arrive; else both are told only
    #[arg(long, env = "REMORA_STRICT", value_parser = clap::builder::FalseyValueParser::new())]
    pub strict: bool,
    /// How to print it
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub output: OutputFormat,
}

/// `remora check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Before anything is installed: check the cluster, and what you may do there
    #[arg(long)]
    pub pre: bool,
    /// With --pre: where it is to be installed
    #[arg(long, default_value = "remora", value_name = "NAMESPACE")]
    pub namespace: String,
    /// How to print it
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub output: OutputFormat,
}

/// Where this process runs.
#[derive(Debug, Args)]
pub struct PlaceArguments {
    /// The node that this runs on; if empty, that of our token's Pod, as a hub that judges tokens says; without one no
    /// endpoint is local
    #[arg(long, env = "REMORA_NODE", default_value = "", value_name = "NAME", hide_default_value = true)]
    pub node: String,
    /// The zone that this runs in; if empty, that of the node, from its labels, if the source is kube, or as the hub says
    #[arg(long, env = "REMORA_ZONE", default_value = "", value_name = "NAME", hide_default_value = true)]
    pub zone: String,
}

/// Whom to ask.
#[derive(Debug, Args)]
pub struct AskArguments {
    /// Look at this source instead of asking a running sidecar: kube, manifests:PATH, or feed:ADDRESS
    // Not from the environment: beside a sidecar that would be the sidecar's, which shall be asked.
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<String>,
    /// With --source: the place to look from.
    #[command(flatten)]
    pub place: PlaceArguments,
    /// Without --source: the running sidecar to ask
    #[arg(long, env = "REMORA_ADMIN", default_value = "127.0.0.1:64103", value_name = "ADDRESS:PORT")]
    pub admin: String,
    /// How to print it
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub output: OutputFormat,
}

/// `remora endpoints`.
#[derive(Debug, Args)]
pub struct EndpointsArguments {
    /// The Service; every one if absent. No namespace means default
    #[arg(value_name = "[NAMESPACE/]NAME")]
    pub service: Option<String>,
    /// Whom to ask.
    #[command(flatten)]
    pub ask: AskArguments,
}

/// `remora explain`.
#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// The address that the connection goes to, such as 10.96.0.10:80 or [fd00::10]:80
    #[arg(value_name = "ADDRESS:PORT")]
    pub address: String,
    /// Who connects; any client if absent
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub client: Option<String>,
    /// The client is outside of the cluster: neither a Pod nor a node
    #[arg(long)]
    pub outside: bool,
    /// The protocol of the connection
    #[arg(long, default_value = "tcp", value_name = "PROTOCOL")]
    pub protocol: ProtocolName,
    /// Whom to ask.
    #[command(flatten)]
    pub ask: AskArguments,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How answers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// A protocol as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_of_what_runs_on_is_an_environment_variable_of_the_same_stem() {
        let command = Arguments::command();
        let sidecar = command.find_subcommand("sidecar").unwrap();
        let up = command.find_subcommand("capture").unwrap().find_subcommand("up").unwrap();
        let hub = command.find_subcommand("hub").unwrap();
        let node = command.find_subcommand("node").unwrap();
        let flags = [sidecar, hub, node, up].into_iter().flat_map(clap::Command::get_arguments);
        let flags = flags.filter_map(|argument| Some((argument.get_long()?, argument.get_env())));
        for (long, env) in flags.filter(|(long, _)| *long != "output") {
            let expected = format!("REMORA_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(env.map(|env| env.to_string_lossy().into_owned()), Some(expected), "--{long}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
