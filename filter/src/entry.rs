//! The ABI's entries that are the module's own. Connections and requests go past the SDK, whose tables and boxes would be
//! most of the work of a request; all else is the SDK's.
//!
//! ```text
//! Envoy ──▶ first_on_… ──▶ stream            connections and requests
//!                      └──▶ proxy_on_… (SDK)  root contexts
//! ```
//! The SDK has the ABI's names, so these have names of their own, and `filter/build` gives them the ABI's.
//!
//! Each entry into the VM costs, so a connection or request has as few as can be: `proxy_on_delete` is its end too, and
//! `proxy_on_log`, which comes right before it and can ask no more, is not exported.

use proxy_wasm::types::Action;

use crate::stream;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(crate::root::context);
}}

// SAFETY: functions of the SDK with these very signatures, which it exports for Envoy to call.
unsafe extern "C" {
    safe fn proxy_on_context_create(context: u32, root: u32);
    safe fn proxy_on_delete(context: u32);
    #[cfg(feature = "cases")]
    safe fn proxy_on_request_headers(context: u32, headers: usize, is_end: bool) -> Action;
}

#[unsafe(no_mangle)]
extern "C" fn first_on_context_create(context: u32, root: u32) {
    if !stream::create(context, root) {
        proxy_on_context_create(context, root);
    }
}

#[unsafe(no_mangle)]
extern "C" fn first_on_new_connection(context: u32) -> Action {
    stream::begin(context).unwrap_or(Action::Pause)
}

#[unsafe(no_mangle)]
extern "C" fn first_on_request_headers(context: u32, _headers: usize, _is_end: bool) -> Action {
    let begun = stream::begin(context);
    #[cfg(feature = "cases")]
    let begun = begun.or_else(|| Some(proxy_on_request_headers(context, _headers, _is_end)));
    begun.unwrap_or(Action::Pause)
}

#[unsafe(no_mangle)]
extern "C" fn first_on_delete(context: u32) {
    if !stream::end(context) {
        proxy_on_delete(context);
    }
}
