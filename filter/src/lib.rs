//! Remora inside Envoy: a proxy-wasm module with two plugins, by root id. `network` goes before `tcp_proxy` and gives
//! each connection its endpoint, `http` goes before the router and gives each request its endpoints.
//!
//! ```text
//! remora --feed ══frames══▶ root ──▶ Vm { Mirror, tallies, pins } ◀──pick── network · http
//! ```
//! A worker of Envoy has one VM, and all plugins in it share one table ([`vm::Vm`]). What is decided here is decided
//! by `selection`; nothing about choosing is written in this crate. `root`, `network` and `http` speak with Envoy
//! and exist only in the module; everything else is pure and is tested natively.
//!
//! For wasm32-unknown-unknown the same is a module for browsers, by wasm-bindgen: `web`, in the place of Envoy's plugins.

pub mod address;
pub mod authority;
#[cfg(feature = "cases")]
pub mod cases;
pub mod configuration;
pub mod counts;
pub mod inquiry;
pub mod json;
pub mod known;
pub mod link;
pub mod outcome;
pub mod vm;

#[cfg(target_os = "wasi")]
#[allow(unsafe_code, missing_docs, reason = "entries that the ABI prescribes, as the SDK writes them")]
mod entry;
#[cfg(target_os = "wasi")]
mod host;
#[cfg(target_os = "wasi")]
mod http;
#[cfg(target_os = "wasi")]
mod network;
#[cfg(target_os = "wasi")]
mod root;
#[cfg(target_os = "wasi")]
mod stream;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
mod web;
