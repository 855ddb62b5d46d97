//! What a Kubernetes Service is, which endpoints may serve a flow here, and which one takes it.
//!
//! ```text
//! Service + Slices ──build──▶ ServicePort ──Table::with──▶ Table ──at──▶ ServicePort ──pick──▶ Endpoint
//! ```
//! Everything is a function of values: no I/O, no clock, no randomness, no logging. The same values give the
//! same endpoint natively and in wasm; integer arithmetic and hashes of fixed definition only.

mod draw;
mod eligibility;
mod failure;
mod maglev;
mod name;
mod pick;
mod pins;
mod port;
mod row;
mod service;
pub mod story;
mod table;
mod tally;

pub use draw::{Draw, Flow, Seed, client_hash, fixed_hash};
pub use eligibility::{LeftOut, Skip, Standing, Survey, build, skip, survey};
pub use failure::Failure;
pub use maglev::ENTRIES as MAGLEV_ENTRIES;
pub use name::{Family, Here, Protocol, ServiceName, Symbol};
pub use pick::{Pin, Question, Step, Tried, Unpinned, Verdict, explain, pick, put_aside};
pub use pins::Pins;
pub use port::{Destination, Endpoint, Path, Pool, PortId, ServicePort};
pub use row::Row;
pub use service::{Balance, Fact, Hints, Kind, Pod, Port, Service, Slice, SlicePort};
pub use table::{Change, Ports, Table};
pub use tally::{ASIDE_FIRST, ASIDE_LONGEST, Health, Tallies, Tally};

/// A time in milliseconds since an origin that the host chooses and keeps.
pub type Millis = u64;
