//! What objects of the cluster say to Remora and about it, wherever more than one part reads it. Constants only.

/// `enabled` as a label of a namespace, or of a Pod: the webhook is asked. `disabled` of a Pod: it is left alone.
pub(crate) const INJECT: &str = "remora.dev/inject";
/// As an annotation of a Pod: it was injected, by the version that is the value.
pub(crate) const INJECTED: &str = "remora.dev/injected";
