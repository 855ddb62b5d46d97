//! Keeps a `selection` table in step with its source.
//!
//! ```text
//! Kubernetes API ─┐
//! manifest files ─┼─▶ source ──event──▶ store ──publish──▶ table ──borrow──▶ readers
//! another Remora ─┘                       └──▶ feed ══bytes══▶ mirror ──▶ table
//! ```
//! Nothing flows left: the store never sees a socket or a file, a source never sees a reader. The store is a
//! function of its events; what needs a clock, a file or a network is behind the features `manifests`, `kube` and
//! `feed`, and without features the crate compiles to wasm.
//!
//! Nothing is ever emptied because a source broke: the last good table serves on, and [`Status`] tells its age.

#[cfg(feature = "kube")]
pub mod balancer;
pub mod feed;
mod histogram;
pub mod inspect;
#[cfg(feature = "kube")]
pub mod kubernetes;
#[cfg(feature = "manifests")]
pub mod manifests;
#[cfg(feature = "names")]
mod names;
#[cfg(feature = "objects")]
pub mod object;
#[cfg(test)]
mod sample;
#[cfg(any(feature = "manifests", feature = "kube", feature = "feed"))]
mod source;
#[cfg(any(feature = "manifests", feature = "kube", feature = "feed"))]
mod status;
pub mod store;
mod symbols;
mod tables;
#[cfg(any(feature = "manifests", feature = "kube", feature = "feed"))]
mod watch;

pub use histogram::{BOUNDS, Histogram};
pub use inspect::Inspection;
#[cfg(feature = "names")]
pub use names::{CurrentNames, Named, NamedEndpoint, Names, NamesReader};
#[cfg(any(feature = "manifests", feature = "kube", feature = "feed"))]
pub use source::{Scope, Source};
#[cfg(any(feature = "manifests", feature = "kube", feature = "feed"))]
pub use status::Status;
pub use tables::{Reader, Tables};
#[cfg(feature = "kube")]
pub use watch::{Balance, balance};
#[cfg(feature = "feed")]
pub use watch::{Demand, demand};
#[cfg(any(feature = "manifests", feature = "kube", feature = "feed"))]
pub use watch::{Error, Watch, start};
