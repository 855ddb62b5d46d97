//! The contexts of connections and requests: made, begun and ended as Envoy says. In: its numbers of contexts and
//! of the root contexts that they belong to. Never calls Envoy.

use std::cell::RefCell;
use std::rc::Rc;

use proxy_wasm::types::Action;

use crate::configuration::Plugin;
use crate::http::Request;
use crate::network::Connection;
use crate::root::Plan;

/// Envoy numbers contexts one after the other, so that they spread over these evenly. A map of the standard library would
/// be as fast, and kilobytes more of a module.
const BUCKETS: usize = 256;

thread_local! {
    static ROOTS: RefCell<Vec<(u32, Plugin, Rc<Plan>)>> = const { RefCell::new(Vec::new()) };
    // Made when the first one comes: as a constant it would be bytes of the module.
    static STREAMS: RefCell<Vec<Bucket>> = RefCell::new((0..BUCKETS).map(|_| Vec::new()).collect());
}

type Bucket = Vec<(u32, Box<Stream>)>;

enum Stream {
    Connection(Connection),
    Request(Request),
}

/// From here on, contexts of this root context are of this kind and plan.
pub(crate) fn configured(root: u32, plugin: Plugin, plan: &Rc<Plan>) {
    gone(root);
    ROOTS.with_borrow_mut(|roots| roots.push((root, plugin, Rc::clone(plan))));
}

/// The root context is gone.
pub(crate) fn gone(root: u32) {
    ROOTS.with_borrow_mut(|roots| roots.retain(|(other, ..)| *other != root));
}

/// Makes a context of this root context, if that was configured.
pub(crate) fn create(context: u32, root: u32) -> bool {
    let made = ROOTS.with_borrow(|roots| {
        let (_, plugin, plan) = roots.iter().find(|(id, ..)| *id == root)?;
        Some(match plugin {
            Plugin::Network => Stream::Connection(Connection::new(Rc::clone(plan))),
            Plugin::Http => Stream::Request(Request::new(Rc::clone(plan))),
        })
    });
    let Some(stream) = made else { return false };
    bucket(context, |streams| streams.push((context, Box::new(stream))));
    true
}

/// Its connection came, or its request's headers. `None` if it is not ours.
pub(crate) fn begin(context: u32) -> Option<Action> {
    with(context, |stream| match stream {
        Stream::Connection(connection) => connection.begin(),
        Stream::Request(request) => request.begin(),
    })
}

/// It is over, and Envoy is about to forget it. False if it is not ours.
pub(crate) fn end(context: u32) -> bool {
    let ended = bucket(context, |streams| {
        let at = streams.iter().position(|(id, _)| *id == context)?;
        Some(streams.swap_remove(at).1)
    });
    match ended {
        Some(mut stream) => match &mut *stream {
            Stream::Connection(connection) => connection.end(),
            Stream::Request(request) => request.end(),
        },
        None => return false,
    }
    true
}

/// Envoy calls nothing back from within what a stream calls: it does what would once the stream has returned.
fn with<T>(context: u32, work: impl FnOnce(&mut Stream) -> T) -> Option<T> {
    bucket(context, |streams| {
        let (_, stream) = streams.iter_mut().find(|(id, _)| *id == context)?;
        Some(work(stream))
    })
}

fn bucket<T>(context: u32, work: impl FnOnce(&mut Bucket) -> T) -> T {
    STREAMS.with_borrow_mut(|streams| work(&mut streams[context as usize % BUCKETS]))
}
