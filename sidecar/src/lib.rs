//! The remora program as a library: its parts, for benches and tests.

pub mod tcp;
pub mod traffic;
