//! What a source tells the store. Values only.

use selection::{Here, Service, ServiceName, Slice, Symbol};

use super::Piece;

/// One thing that happened to the source, or that it found out.
///
/// Of each stream, a source tells: `Follow`, then a list (`ListBegins`, an `Applied` or `Unreadable` for each
/// object, `ListEnds`), then changes, and a list again whenever it likes.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This stream is part of what is followed; nothing is published before it has been listed.
    Follow(Stream),
    /// A list of everything in the stream begins.
    ListBegins(Stream),
    /// The list is complete: what is not in it does not exist.
    ListEnds(Stream),
    /// An object exists and looks like this.
    Applied(Item),
    /// An object exists but cannot be understood: what was known of it stays.
    Unreadable(Key),
    /// An object has left the stream.
    Gone(Stream, Key),
    /// A slice that is known has other endpoints.
    Patched {
        /// `metadata.namespace`.
        namespace: Symbol,
        /// `metadata.name`.
        name: Symbol,
        /// The new list, made of the old one.
        pieces: Vec<Piece>,
        /// [`selection::Slice::triggered`].
        triggered: Option<u64>,
    },
    /// What follows belongs together: nothing is published before `Release`. Holding twice is holding once.
    Hold,
    /// What belonged together has been told.
    Release,
    /// Where we are, as far as the source knows; what we were told otherwise counts first.
    Here(Here),
    /// Whether load balancers may send connections to our own node; a store has no use for it.
    Eligible(bool),
    /// The stream broke; what is known stays, and may be old.
    Lost(Stream, Loss),
    /// What the request of this number asked for has been told; a store has no use for it.
    #[cfg(feature = "feed")]
    Answers(u64),
    /// Everything that happened in the stream until this moment has been told.
    InStep(Stream),
}

/// An object as selection wants it.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    Slice {
        /// `metadata.namespace`.
        namespace: Symbol,
        /// The label `kubernetes.io/service-name`: the Service in the same namespace that it belongs to. Without
        /// it, to none.
        service: Option<Symbol>,
        /// The facts.
        slice: Box<Slice>,
        /// The host names of its endpoints, ascending; most have none.
        hosts: Vec<Host>,
    },
}

/// `hostname` of one endpoint of a slice: names lead to it, no connection is chosen by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Which of [`Slice::endpoints`], from 0.
    pub at: u32,
    /// Its name within its Service.
    pub name: Symbol,
}

impl Item {
    /// Which object it is.
    pub fn key(&self) -> Key {
        match self {
            Self::Service(service) => Key::Service(service.name.clone()),
            Self::Slice { namespace, slice, .. } => {
                Key::Slice { namespace: namespace.clone(), name: slice.name.clone() }
            }
        }
    }
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    Slice {
        /// `metadata.namespace`.
        namespace: Symbol,
        /// `metadata.name`.
        name: Symbol,
    },
}

impl Key {
    /// The kind of the object.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Services,
            Self::Slice { .. } => Kind::Slices,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Slice { namespace, name } => write!(f, "EndpointSlice {namespace}/{name}"),
        }
    }
}

/// One list and the changes that follow it: all objects of a kind in a part of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Of which kind.
    pub kind: Kind,
    /// In which part.
    pub part: Part,
}

impl Stream {
    /// The stream of every object of `kind`.
    pub fn all(kind: Kind) -> Self {
        Self { kind, part: Part::All }
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.label();
        match &self.part {
            Part::All => write!(f, "{kind}"),
            Part::Namespace(namespace) => write!(f, "{kind} of namespace {namespace}"),
            Part::Service(node) if self.kind == Kind::Node => write!(f, "node {}", node.name),
            Part::Service(service) => write!(f, "{kind} of Service {service}"),
        }
    }
}

/// The kinds of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// v1 Services.
    Services,
    /// discovery.k8s.io/v1 EndpointSlices.
    Slices,
    /// Our own v1 Node; tells [`Event::Here`].
    Node,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Services, Self::Slices, Self::Node];

    /// The resource's name in the API, which is also its metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Slices => "endpointslices",
            Self::Node => "nodes",
        }
    }
}

/// The part of the cluster that a stream covers. The parts of one kind never overlap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    All,
    /// One namespace.
    Namespace(Symbol),
    /// One Service, with its slices. Of [`Kind::Node`]: the node of this name.
    Service(ServiceName),
}

impl Part {
    /// Whether `service` (and what belongs to it) is in this part.
    pub fn covers(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(namespace) => *namespace == service.namespace,
            Self::Service(name) => name == service,
        }
    }
}

/// Why a stream broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// The source did not answer, or the connection failed.
    Unreachable,
    /// The source said nothing for longer than it ever should.
    Silent,
    /// The source has forgotten where we were (410 Gone): everything is listed again.
    Expired,
    /// We may not read this stream. Others need not wait for it.
    Forbidden,
    /// We are not who we say (401): the credentials are no good.
    Unauthorized,
    /// The source answered with an error.
    Failed,
    /// The source answered with what cannot be understood.
    Malformed,
}

impl Loss {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Unreachable,
        Self::Silent,
        Self::Expired,
        Self::Forbidden,
        Self::Unauthorized,
        Self::Failed,
        Self::Malformed,
    ];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::Expired => "expired",
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
        }
    }
}
