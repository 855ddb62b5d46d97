//! `remora capture`: prepares a network namespace so that connections to Services come to the sidecar in it.

pub mod agreement;
