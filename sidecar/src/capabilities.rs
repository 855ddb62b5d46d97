//! The capabilities of this process: raised for the moment that needs them. In: nothing. Out: what the kernel allows.
//! Kubernetes gives a container that is not root no effective capabilities; those that its program file permits and
//! the container's bounding set has can be raised. Never asks for one that is not permitted.

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// What binding a transparent socket takes.
const WANTED: CapabilitySet = CapabilitySet::NET_RAW.union(CapabilitySet::NET_BIND_SERVICE);

/// Makes effective, in this thread and those that it starts, what is wanted and permitted. What is missing is told by
/// whatever needed it.
pub fn raise() {
    change(|permitted, effective| effective | (WANTED & permitted));
}

/// Takes back what [`raise`] did: nothing that moves bytes needs it.
pub fn lower() {
    change(|_, effective| effective - WANTED);
}

fn change(effective: impl Fn(CapabilitySet, CapabilitySet) -> CapabilitySet) {
    let changed = capabilities(None).and_then(|mut sets| {
        sets.effective = effective(sets.permitted, sets.effective);
        set_capabilities(None, sets)
    });
    if let Err(error) = changed {
        tracing::warn!(%error, "cannot change the capabilities of this process; going on with what it has");
    }
}
