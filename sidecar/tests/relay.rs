//! The relay over real sockets on loopback: what clients and endpoints see of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails by panicking, as the test does"
)]

#[path = "relay/bytes.rs"]
mod bytes;
#[path = "relay/descriptors.rs"]
mod descriptors;
#[path = "relay/dialling.rs"]
mod dialling;
#[path = "relay/life.rs"]
mod life;
#[path = "relay/ways.rs"]
mod ways;
#[path = "relay/world.rs"]
mod world;
