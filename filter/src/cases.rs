//! Cases of a test, answered by this build: how the native build, the module in Envoy and the module in a browser are
//! compared. In: [`Batch`]es as bytes. Out: their [`Answer`]s as bytes. Behind the feature `cases`, in no release; what it
//! calls is what the release has.
//!
//! In Envoy it is the plugin with the root id `cases`, which answers a request whose body they are; in a browser it is
//! the function `examine`.

mod batch;

pub use batch::{Answer, Batch, Connect, Settle, Step};

/// The answers to some batches, both as bytes.
///
/// # Errors
/// If the bytes are none, or have a step that cannot be: one sentence.
pub fn examine(batches: &[u8]) -> Result<Vec<u8>, String> {
    let batches: Vec<Batch> =
        postcard::from_bytes(batches).map_err(|error| format!("the batches cannot be read: {error}"))?;
    let answers = batches.iter().map(Batch::answers).collect::<Result<Vec<_>, _>>()?;
    postcard::to_allocvec(&answers).map_err(|error| format!("the answers cannot be written: {error}"))
}

/// Batches as [`examine`] reads them.
///
/// # Panics
/// Never: whatever a batch has can be written.
#[allow(clippy::expect_used, reason = "only a test calls it")]
pub fn write(batches: &[&Batch]) -> Vec<u8> {
    postcard::to_allocvec(batches).expect("memory")
}

/// Answers as [`examine`] writes them, a list for each batch.
///
/// # Errors
/// If they are none: one sentence.
pub fn read(answers: &[u8]) -> Result<Vec<Vec<Answer>>, String> {
    postcard::from_bytes(answers).map_err(|error| format!("the answers cannot be read: {error}"))
}

#[cfg(target_os = "wasi")]
mod envoy {
    use proxy_wasm::hostcalls;
    use proxy_wasm::traits::{Context, HttpContext, RootContext};
    use proxy_wasm::types::{Action, BufferType, ContextType};

    /// The root context of the plugin `cases`.
    pub(crate) struct Examiner;

    struct Request;

    impl Context for Examiner {}

    impl RootContext for Examiner {
        fn get_type(&self) -> Option<ContextType> {
            Some(ContextType::HttpContext)
        }

        fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
            Some(Box::new(Request))
        }
    }

    impl Context for Request {}

    impl HttpContext for Request {
        fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
            // The body comes all the same: `allow_on_headers_stop_iteration`.
            Action::Pause
        }

        fn on_http_request_body(&mut self, size: usize, is_last: bool) -> Action {
            if is_last {
                let batches = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size).ok().flatten();
                let (status, body) = match super::examine(&batches.unwrap_or_default()) {
                    Ok(answers) => (200, answers),
                    Err(why) => (400, why.into_bytes()),
                };
                let _ = hostcalls::send_http_response(status, Vec::new(), Some(&body));
            }
            Action::Pause
        }
    }
}

#[cfg(target_os = "wasi")]
pub(crate) use envoy::Examiner;

#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
mod browser {
    use wasm_bindgen::prelude::*;

    /// The answers to some batches of cases.
    #[wasm_bindgen]
    #[allow(unreachable_pub, reason = "JavaScript reaches it, and wasm-bindgen exports only what is public")]
    pub fn examine(batches: &[u8]) -> Result<Vec<u8>, JsError> {
        super::examine(batches).map_err(|why| JsError::new(&why))
    }
}
