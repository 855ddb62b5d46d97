//! What can be wrong with a command line. Each is one sentence that says what was typed, and what to write instead.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::THREADS_MOST;

/// What is wrong with the command line, as one sentence.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A `--listen` cannot be read.
    #[error("--listen {0}: {1}; write it as 127.0.0.1:8080=shop/web:80")]
    Listen(String, String),
    /// Two listens for one address.
    #[error("--listen {0} is given twice; give each Service port an address or port of its own")]
    ListenTwice(SocketAddr),
    /// No such source.
    #[error("--{0}: {1}")]
    Source(&'static str, String),
    /// Not an address.
    #[error("--{0} {1:?} is not an IP address and a port; write it as {2}")]
    Address(&'static str, String, &'static str),
    /// Admin beyond loopback.
    #[error(
        "--admin {0} could be reached by other machines, and whoever reaches it sees everything; use a \
         loopback address such as 127.0.0.1:64103"
    )]
    AdminNotLoopback(SocketAddr),
    /// No place for a feed.
    #[error(
        "--feed: {0:?} is neither a loopback address and a port nor a path; write it as 127.0.0.1:64105 or unix:PATH"
    )]
    Feed(String),
    /// A feed beyond loopback.
    #[error(
        "--feed {0} could be reached by other machines, and nobody who reads proves who they are; use a loopback \
         address such as 127.0.0.1:64105, or unix:PATH, or remora hub with --certificate"
    )]
    FeedNotLoopback(SocketAddr),
    /// No place for a certificate.
    #[error("--certificate {0:?} names no Secret; write it as secret:NAME or secret:NAMESPACE/NAME")]
    Certificate(String),
    /// A certificate for nobody.
    #[error(
        "--certificate {0} is made for names, and there are none; say how clients call this hub with \
         --certificate-name, such as remora.remora.svc"
    )]
    CertificateWithoutName(String),
    /// A hub that cannot be known.
    #[error("--source {0}: nobody vouches for who answers there; name the hub's CA with --feed-ca")]
    FeedWithoutAuthority(String),
    /// Sidecars that could not know their hub.
    #[error(
        "--sidecar-source {0}: nobody vouches for who answers there; name the hub's CA with --sidecar-feed-ca"
    )]
    InjectWithoutAuthority(String),
    /// A certificate that cannot be read.
    #[error("--sidecar-feed-ca {0}: {1}; name a file with certificates, or write them, PEM")]
    Authority(String, String),
    /// A webhook that has nothing to show.
    #[error(
        "--webhook {0} is asked by TLS, and there is no certificate to show; name a folder with tls.crt and tls.key \
         with --certificate, or secret:NAME for one of its own"
    )]
    WebhookWithoutCertificate(SocketAddr),
    /// A DNS on every address.
    #[error(
        "--dns {0} is every address of this machine, and an answer might leave from another one than was asked; name \
         the address that clients ask, such as 127.0.0.1:53"
    )]
    DnsEverywhere(SocketAddr),
    /// A DNS by a source that does not know all names.
    #[error(
        "--dns needs --source kube or manifests:PATH: the feed of another Remora does not tell the host names of \
         endpoints"
    )]
    DnsByFeed,
    /// Not a server.
    #[error(
        "--dns-forward {0:?} is not an IP address; write it as 10.96.0.10, 10.96.0.10:53 or [fd00::a]:53"
    )]
    DnsForward(String),
    /// Not a zone.
    #[error("--dns-zone {0:?} is not the name of a zone; write it as cluster.local")]
    DnsZone(String),
    /// Files without a place where they are served.
    #[error(
        "--assets: files are served beside the feed, and there is none; say where with --feed 127.0.0.1:64105"
    )]
    AssetsWithoutFeed,
    /// Not a duration.
    #[error("--{0} {1:?} is not a duration; write a whole number and ms, s, m or h, such as {2}")]
    Duration(&'static str, String, &'static str),
    /// Not a range of addresses.
    #[error(
        "--{0} {1:?} is not a range of addresses; write it as 10.96.0.0/12, fd00:96::/112 or a single address"
    )]
    Range(&'static str, String),
    /// A range in which no Service can be.
    #[error(
        "--services {0} holds loopback, link-local or multicast addresses, which are no Service's; name the ranges of \
         the cluster's Services only, such as 10.96.0.0/12"
    )]
    NoServices(IpNet),
    /// Node ports are not handed over.
    #[error(
        "--handover is not for remora node, whose listeners come and go; leave it away: a successor has the node ports as \
         soon as this process drains"
    )]
    HandoverOfNode,
    /// A load balancer needs the API.
    #[error("--source: remora loadbalancer writes to the Kubernetes API; leave the flag away, or say kube")]
    BalancerSource,
    /// What a load balancer does not do.
    #[error(
        "--{0} is not for remora loadbalancer, which serves the addresses of its pool and nothing else; leave it away"
    )]
    NotForBalancer(&'static str),
    /// No addresses to give away.
    #[error("--pool is missing; name the addresses that Services may get, such as 192.0.2.0/28,fd00:5::/120")]
    NoPool,
    /// Addresses that nobody else can reach.
    #[error(
        "--pool {0} holds loopback, link-local or multicast addresses; name addresses that clients can reach"
    )]
    WrongPool(IpNet),
    /// Not a port.
    #[error("--node-health-port {0:?} is neither a port nor off; write it as 10256")]
    NodeHealthPort(String),
    /// Not a lease.
    #[error(
        "--lease {0:?} is not the name of a Lease; write it as remora-loadbalancer or kube-system/remora-loadbalancer"
    )]
    Lease(String),
    /// Not an address of this node.
    #[error("--node-ips {0:?} is not an IP address; write it as 192.168.1.10")]
    NodeIp(String),
    /// No addresses for node ports.
    #[error(
        "--nodeport-addresses {0:?} is neither primary, all or localhost, nor a range; write ranges as \
         192.168.0.0/16,fd00::/8"
    )]
    NodePortAddresses(String),
    /// Not a port.
    #[error("--skip-ports {0:?} is not a port or a range of ports; write them as 9443,20000-20100")]
    SkipPorts(String),
    /// Not a number of threads.
    #[error("--threads {0:?} is not a number of threads; write one from 1 to {THREADS_MOST}")]
    Threads(String),
    /// Not a number of connections.
    #[error("--max-connections {0:?} is not a number of connections; write a whole number from 1 on")]
    MaxConnections(String),
    /// Not a size.
    #[error(
        "--buffer-size {0:?} is not a size from 4KiB to 16MiB; write a whole number and KiB or MiB, such as 64KiB"
    )]
    BufferSize(String),
    /// Not a log level.
    #[error(
        "--log-level {0:?} is not a level; write error, warn, info, debug, trace or a filter such as info,watcher=debug"
    )]
    LogLevel(String),
    /// Not a Service.
    #[error("{0}; write NAMESPACE/NAME")]
    Service(String),
    /// Not an address to explain.
    #[error("{0:?} is not an IP address and a port; write it as 10.96.0.10:80 or [fd00::10]:80")]
    Explained(String),
    /// Not a client.
    #[error("--client {0:?} is not an IP address; write it as 10.1.2.3 or 10.1.2.3:4567")]
    Client(String),
}
