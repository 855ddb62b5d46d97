//! The names by which Services, ports and places are known. Pure values.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A string that many objects share (a node, a zone, a namespace). Who reads the objects decides whether
/// equal symbols share their memory; equality never depends on it.
pub type Symbol = Arc<str>;

/// Names one Service of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace, never empty.
    pub namespace: Symbol,
    /// `metadata.name`.
    pub name: Symbol,
}

impl ServiceName {
    /// The name of the Service `name` in `namespace`.
    pub fn new(namespace: impl Into<Symbol>, name: impl Into<Symbol>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads what people write: `[NAMESPACE/]NAME`, the namespace being `default` if there is none. `None` if no
    /// Service can have such a name.
    pub fn written(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let is_name = |part: &str| !part.is_empty() && part.bytes().all(allowed);
        (is_name(namespace) && is_name(name)).then(|| Self::new(namespace, name))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The transport protocols that a Service port may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// The default of the API.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
    /// Known to the model; nothing here carries it.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// An address family; a dual-stack Service is served as two, one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// `IPv4`.
    #[serde(rename = "IPv4")]
    V4,
    /// `IPv6`.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The family of `ip`.
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

/// Where this instance runs: an input of building a table. Kubernetes: `spec.nodeName` of the Pod and the
/// label `topology.kubernetes.io/zone` of that node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The node; unknown means that no endpoint is local.
    pub node: Option<Symbol>,
    /// The zone; unknown means that no zone hint matches.
    pub zone: Option<Symbol>,
}
