//! Remora in a container as a CRI makes it, in place of a process with an ambient capability, which
//! Kubernetes has not. In: a client with Remora. Never a capability but NET_RAW.

use serde_json::json;

use crate::{Client, Injected};

/// User 64102, `add: [NET_RAW]`, `allowPrivilegeEscalation: false`, `readOnlyRootFilesystem: true`.
pub async fn in_a_container_one_capability_is_enough_to_serve(client: &Client) {
    client.remora().kill();
    let mut contained = Injected::start_in_container(client).await;
    contained.wait_taking(client).await;
    let web = client.service("web", json!({})).await;
    client.wait_refused(&web.port(80), "there is no endpoint").await;
    let _pods = (client.near("web", "near").await, client.far("web", "far").await);
    client.wait_served(&web.port(80), &["near", "far"], "from a container").await;
    contained.assert_taken().await;
}
