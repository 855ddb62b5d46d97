//! What a kubelet makes of the init containers of a Pod: containers as its CRI starts them, one after the other, each
//! exactly as the Pod says: user, capabilities, arguments, environment, the ServiceAccount's token.
//!
//! In: a Pod as the API server has it, and a host that has its network. Out: its sidecars, running. It takes over nothing
//! that the Pod does not say, and fails on what it does not understand.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use serde_json::{Value, json};

use crate::cluster::{KUBERNETES, create};
use crate::container::{Container, File, Process};
use crate::{Host, Namespace, World, ask, wait_until};

/// Where a Pod has its token.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a container may take to end, or to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Pod's init containers that run on: its sidecars.
pub struct Sidecars(Vec<Container>);

impl Sidecars {
    /// Runs the init containers of `pod`, a Pod on `node`, until its own containers could start.
    ///
    /// # Panics
    /// When one of them fails, with its log.
    pub async fn start(
        world: &World,
        host: &Host,
        namespace: &Namespace,
        pod: &Value,
        node: &str,
    ) -> Sidecars {
        let token = token(namespace).await;
        let authority =
            std::fs::read_to_string(namespace.cluster.authority()).expect("the cluster's certificate");
        let files = [("token", &token), ("ca.crt", &authority), ("namespace", &namespace.name)];
        let paths = files.map(|(name, _)| format!("{ACCOUNT}/{name}"));
        let mut running = Vec::new();
        for container in pod["spec"]["initContainers"].as_array().expect("init containers") {
            let name = text(&container["name"]);
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
            let added = security["capabilities"]["add"].as_array().cloned().unwrap_or_default();
            let added: Vec<String> = added.iter().map(|add| format!("CAP_{}", text(add))).collect();
            let environment = environment(container, pod, node);
            let arguments: Vec<&str> = container["args"].as_array().expect("args").iter().map(text).collect();
            let user = security["runAsUser"].as_u64().and_then(|user| u32::try_from(user).ok());
            let files: Vec<File<'_>> = std::iter::zip(&paths, files)
                .map(|(path, (_, content))| File { name: path, content: content.clone() })
                .collect();
            let process = Process {
                user: user.expect("a user"),
                capabilities: &added.iter().map(String::as_str).collect::<Vec<_>>(),
                environment: &environment.iter().map(String::as_str).collect::<Vec<_>>(),
                files: &files,
                arguments: &arguments,
            };
            let started = Container::run(world, host, &format!("-{name}"), &process);
            if container["restartPolicy"] == "Always" {
                wait_probed(host, &container["startupProbe"], &started).await;
                running.push(started);
            } else {
                let status = started.program.wait(PATIENCE).await;
                assert!(status.success(), "{}", started.program.state());
            }
        }
        Sidecars(running)
    }

    /// The only sidecar.
    pub fn only(&self) -> &Container {
        let [only] = &self.0[..] else { panic!("{} sidecars", self.0.len()) };
        only
    }
}

/// What the container's environment says, and what every container has.
fn environment(container: &Value, pod: &Value, node: &str) -> Vec<String> {
    let of_pod = |path: &str| match path {
        "spec.nodeName" => node.to_owned(),
        label if label.starts_with("metadata.labels['") => {
            let name = &label["metadata.labels['".len()..label.len() - 2];
            pod["metadata"]["labels"][name].as_str().unwrap_or_default().to_owned()
        }
        other => panic!("{other} is a field that this kubelet does not know"),
    };
    let own = container["env"].as_array().into_iter().flatten().map(|variable| {
        let value = match variable["value"].as_str() {
            Some(value) => value.to_owned(),
            None => of_pod(text(&variable["valueFrom"]["fieldRef"]["fieldPath"])),
        };
        format!("{}={value}", text(&variable["name"]))
    });
    let server = Ipv4Addr::from(KUBERNETES);
    let of_all = [format!("KUBERNETES_SERVICE_HOST={server}"), "KUBERNETES_SERVICE_PORT=443".to_owned()];
    own.chain(of_all).collect()
}

/// A token for the namespace's own ServiceAccount, which may read what Remora needs.
async fn token(namespace: &Namespace) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(namespace.client.clone(), &namespace.name);
    create(&accounts, json!({"metadata": {"name": "default"}})).await;
    let binding = json!({
        "metadata": {"name": format!("remora-in-{}", namespace.name)},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "remora"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace.name}],
    });
    create::<ClusterRoleBinding>(&Api::all(namespace.client.clone()), binding).await;
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/default/token", namespace.name);
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let request = Request::post(path).header("Content-Type", "application/json");
    let request = request.body(body.to_string().into_bytes()).expect("a request");
    let answer: Value = namespace.client.request(request).await.expect("a token");
    text(&answer["status"]["token"]).to_owned()
}

async fn wait_probed(host: &Host, probe: &Value, container: &Container) {
    let port = probe["httpGet"]["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    let address = SocketAddr::new(host.ip4().into(), port);
    let path = text(&probe["httpGet"]["path"]);
    wait_until(PATIENCE, &format!("{address}{path} says 200"), async || {
        match ask::get(address, path).await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", container.program.state())),
        }
    })
    .await;
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}
