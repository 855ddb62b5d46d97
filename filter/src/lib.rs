//! Remora inside Envoy: a proxy-wasm module with two plugins, by root id. `network` goes before `tcp_proxy` and gives
//! each connection its endpoint, `http` goes before the router and gives each request its endpoints.
//!
//! ```text
//! remora --feed ══frames══▶ root ──▶ Vm { Mirror, tallies, pins } ◀──pick── network · http
//! ```
//! A worker of Envoy has one VM, and all plugins in it share one table ([`vm::Vm`]). What is decided here is decided
//! by `selection`; nothing about choosing is written in this crate. `root`, `network` and `http` speak with Envoy
//! and exist only in the module; everything else is pure and is tested natively.

pub mod authority;
pub mod configuration;
pub mod counts;
pub mod json;
pub mod link;
pub mod outcome;
pub mod vm;

#[cfg(target_os = "wasi")]
mod host;
#[cfg(target_os = "wasi")]
mod http;
#[cfg(target_os = "wasi")]
mod network;
#[cfg(target_os = "wasi")]
mod root;

#[cfg(target_os = "wasi")]
#[allow(unsafe_code, missing_docs, reason = "the entry that the ABI prescribes, as the SDK writes it")]
mod entry {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|id| Box::new(crate::root::Root::new(id)));
    }}
}
