//! The remora program as a library: its parts, for benches and tests.

pub mod admin;
pub mod arguments;
pub mod ask;
pub mod balancer;
pub mod capabilities;
pub mod capture;
pub mod config;
pub mod dns;
pub mod ending;
pub mod endpoints;
pub mod explain;
pub mod feed;
pub mod handover;
pub mod health;
pub mod http;
pub mod hub;
pub mod inject;
pub mod listeners;
pub mod logs;
pub mod look;
pub mod metrics;
mod netlink;
pub mod node;
pub mod sidecar;
pub mod signals;
pub mod tcp;
pub mod traffic;
