//! The real program, run as people run it: from manifests, on this machine, without a cluster or root.
//! In: files, sockets, signals. Out: what clients, Prometheus and people see. Looks into no process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails by panicking, as the test does"
)]

mod assets;
mod command;
mod control;
mod dns;
mod endings;
mod exposition;
mod feed;
mod folder;
mod handover;
mod inject;
mod kinds;
mod server;
mod serving;
mod sidecar;
