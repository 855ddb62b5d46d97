//! The feed: what a Remora knows of the cluster, told to others as bytes. Facts, never results: each reader builds the
//! table for its own place. Pure values; who carries the bytes, and what time it is, is the host's matter.
//!
//! ```text
//! store ──changes──▶ Encoder ══frames══▶ Decoder ──event──▶ store ──▶ table
//!                                       └───────────  Mirror  ───────────┘
//! ```
//! A reader says what it wants ([`Subscription`]) and gets *frames*: first a snapshot of everything, then what changes.
//! Where messages have no borders of their own (a streamed HTTP body) each frame follows its length, four bytes, the
//! highest first ([`Splitter`]); a gRPC stream carries one frame in a message, and so does a connection that has become a
//! stream of messages both ways ([`PROTOCOL`]).
//!
//! # A frame
//! Everything is a field as Protocol Buffers writes it, a number, a wire type and a value, so that it can be passed over
//! by who does not know it. A number is never used for something else later. The order of fields counts: strings come
//! before what refers to them, operations are applied one after the other.
//!
//! `n`: a varint; `8`: eight bytes, the lowest first; `s`: a string, as a varint: 0 the empty one, `i` the `i`th of this
//! frame; `a`: an address, 4 or 16 bytes; `m`: a message; `*`: any number of times; `?`: may be absent. What has neither
//! is 0 if it is absent.
//!
//! | frame | | |
//! |--|--|--|
//! | 1 | `8`? | a snapshot begins, of the server of this epoch |
//! | 2 | `n`? | changes begin, from this version |
//! | 3 | `n`? | complete: it is this version |
//! | 4 | `n`? | the writer's table was in step with its source so many ms ago |
//! | 5 | bytes* | a string |
//! | 6 | `n`? | what begins next is the answer to the [`Request`] of this number |
//! | 7 | `m`? | where the reader is, as the writer knows: 1 `s` its node, 2 `s` the zone of that |
//! | 8 | `m`* | a Service |
//! | 9 | `m`* | a Service is gone: 1 `s` namespace, 2 `s` name |
//! | 10 | `m`* | a slice |
//! | 11 | `m`* | a slice has changed |
//! | 12 | `n`* | the slice of this number is gone |
//! | 15 | | four bytes, the lowest first, the very last: the lower half of [`selection::fixed_hash`] of all before |
//!
//! | Service | | |
//! |--|--|--|
//! | 1, 2 | `s` | namespace, name |
//! | 3 | `n` | 1 ClusterIP, 2 headless, 3 NodePort, 4 LoadBalancer, 5 ExternalName |
//! | 4 | `s` | external name |
//! | 5, 7, 8 | `a`* | cluster IP, external IP, VIP of a load balancer |
//! | 6 | `m`* | port: 1 `s` name, 2 `n` protocol, 3 `n` port, 4 `n` node port |
//! | 9 | bytes* | source range: an address, and a byte that is the length of its prefix |
//! | 10 | `n` | the sum of 1 internal policy Local, 2 external policy Local, 4 selector, 8 PROXY protocol |
//! | 11 | `n`? | affinity, seconds |
//! | 12 | `n` | health check node port |
//! | 13 | `s`? | the other proxy |
//! | 14 | `n` | 0 least-connections, 1 random, 2 round-robin, 3 maglev, 4 off |
//!
//! | slice | | |
//! |--|--|--|
//! | 1 | `n` | its number |
//! | 2, 3, 4 | `s` | namespace, Service, name |
//! | 5 | `n` | 1 IPv4, 2 IPv6 |
//! | 6 | `n` | 1 headless |
//! | 7 | `m`* | port: 1 `s`? name, 2 `n` protocol, 3 `n` port |
//! | 8 | `m`* | endpoint |
//! | 9 | `n`? | triggered, ms since 1970 |
//!
//! | slice that has changed | | |
//! |--|--|--|
//! | 1 | `n` | its number |
//! | 7 | `m`* | endpoints as they were: 1 `n` pass over so many, 2 `n` then take so many |
//! | 8 | `m`* | an endpoint that is new, or looks different |
//! | 9 | `n`? | triggered, ms since 1970 |
//!
//! | endpoint | | |
//! |--|--|--|
//! | 1 | `a` | address |
//! | 2 | `n` | the sum of 1 ready, 2 serving, 4 terminating |
//! | 3, 4 | `s`? | node, zone |
//! | 5, 6 | `s`* | hint for a zone, hint for a node |
//! | 7 | `s`? | name of the Pod |
//! | 8 | `8` | identity of the Pod |
//!
//! A protocol is 0 TCP, 1 UDP, 2 SCTP. The number of a slice stands for namespace and name, and is told once in a
//! stream, so that changes are small. Of a changed slice the pieces of its list come in order, and no old endpoint is
//! taken twice.
//!
//! A *transaction* begins with field 1 or 2 and ends with field 3, in one frame or in several; a reader shows it as a
//! whole or not at all. Changes begin from the version that the last transaction ended with; else something was lost,
//! and only a snapshot helps. What a snapshot does not have does not exist. A frame without any of it says that the
//! writer lives; there is a frame at least every [`HEARTBEAT`].

#[cfg(feature = "feed")]
mod address;
#[cfg(feature = "feed")]
mod batches;
#[cfg(feature = "feed")]
mod call;
mod decoder;
mod encoder;
mod facts;
#[cfg(feature = "feed")]
mod follow;
mod mirror;
mod object;
#[cfg(feature = "feed")]
mod readers;
#[cfg(feature = "feed")]
mod request;
mod seal;
mod splitter;
mod strings;
mod subscription;
#[cfg(feature = "feed")]
mod teller;
#[cfg(feature = "feed")]
mod transaction;
#[cfg(feature = "feed")]
mod trust;
mod wire;

use std::time::Duration;

#[cfg(feature = "feed")]
pub use address::{Address, AddressError};
#[cfg(feature = "feed")]
pub(crate) use batches::{Batches, Opening};
pub use decoder::{Decoder, Progress};
pub use encoder::{Encoder, heartbeat, here};
pub use facts::{Changes, snapshot};
#[cfg(feature = "feed")]
pub(crate) use follow::follow;
pub use mirror::Mirror;
#[cfg(feature = "feed")]
pub(crate) use readers::Id as ReaderId;
#[cfg(feature = "feed")]
pub use request::Request;
pub use splitter::{PREFIX, Splitter, framed, prefix};
pub use subscription::{Names, Subscription};
#[cfg(feature = "feed")]
pub use teller::{Teller, Told};
#[cfg(feature = "feed")]
pub use trust::Trust;

/// What a connection of HTTP/1.1 becomes (RFC 9110, 7.8, by `GET /v1/feed`) to carry nothing but messages as in a gRPC
/// stream: requests to the writer, frames to the reader. Without the buffers of HTTP/2 a reader costs a fifth.
pub const PROTOCOL: &str = "remora-feed";
/// A writer fills a frame up to this size; it is larger only if one operation is. What it has takes a reader about half
/// a millisecond, and an Envoy's worker moves no bytes meanwhile.
pub const FRAME: usize = 32 << 10;
/// A reader takes no frame that is larger.
pub const LARGEST: usize = 1 << 20;
/// A writer says something at least this often.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// A writer that says nothing for so long is gone.
pub const SILENCE: Duration = Duration::from_secs(20);

/// Why bytes were refused. What was known before stays; a stream that had such bytes is to be opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Error {
    /// The bytes are no frame.
    #[error("the feed sent what is no frame")]
    Malformed,
    /// A frame or a transaction is larger than any writer makes it.
    #[error("the feed sent more at once than is taken")]
    TooLarge,
    /// Changes do not follow what is known: something was lost.
    #[error("the feed sent changes of a version that is not known here")]
    Gap,
}

impl Error {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Malformed, Self::TooLarge, Self::Gap];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too-large",
            Self::Gap => "gap",
        }
    }
}

#[cfg(test)]
mod tests;
