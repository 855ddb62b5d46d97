//! What a kubelet makes of the containers of a Pod: containers as its CRI starts them, one after the other, each exactly as
//! the Pod says: user, capabilities, arguments, environment, what is mounted.
//!
//! In: a Pod as the API server has it, and a host that has its network. Out: those of its containers that are Remora's,
//! running. It takes over nothing that the Pod does not say, and fails on what it does not understand.

mod volumes;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::KUBERNETES;
use crate::container::{Container, File, Process};
use crate::{Host, Image, Namespace, World, ask, wait_until};
use volumes::Volumes;

/// How long a container may take to end, or to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node, as far as its Pods see it.
#[derive(Clone, Copy, Default)]
pub struct Around<'a> {
    /// Its name.
    pub node: &'a str,
    /// What containers are made of; without one, of the test's own build.
    pub image: Option<&'a Image>,
    /// The cluster's DNS, if there is one.
    pub dns: Option<Ipv4Addr>,
}

/// What the volumes of a Pod have. Owning one means that its containers can start without an API server.
pub struct Mounted(Volumes);

impl Mounted {
    /// Of a Pod that may be injected.
    pub async fn of(namespace: &Namespace, pod: &Value) -> Mounted {
        Mounted(Volumes::with_account(namespace, pod).await)
    }
}

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
        Sidecars::start_around(world, host, namespace, pod, &Around { node, ..Around::default() }).await
    }

    /// The same where more is said about the node.
    ///
    /// # Panics
    /// When one of them fails, with its log.
    pub async fn start_around(
        world: &World,
        host: &Host,
        namespace: &Namespace,
        pod: &Value,
        around: &Around<'_>,
    ) -> Sidecars {
        let mounted = Mounted::of(namespace, pod).await;
        Sidecars::start_mounted(world, host, pod, &mounted, around).await
    }

    /// The same of a Pod whose volumes are mounted already: the API server is not asked.
    ///
    /// # Panics
    /// When one of them fails, with its log.
    pub async fn start_mounted(
        world: &World,
        host: &Host,
        pod: &Value,
        mounted: &Mounted,
        around: &Around<'_>,
    ) -> Sidecars {
        let Mounted(volumes) = mounted;
        let mut running = Vec::new();
        for container in pod["spec"]["initContainers"].as_array().expect("init containers") {
            let started = start(world, host, pod, container, volumes, around).await;
            if container["restartPolicy"] == "Always" {
                wait_probed(host, container, "startupProbe", &started).await;
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

/// Runs the one container of `pod`, whose mounts are all its own, until it is ready.
///
/// # Panics
/// When that does not happen, with its log.
pub async fn run(
    world: &World,
    host: &Host,
    client: &kube::Client,
    pod: &Value,
    around: &Around<'_>,
) -> Container {
    let [container] = &pod["spec"]["containers"].as_array().expect("containers")[..] else {
        panic!("not one container: {pod:#}")
    };
    let volumes = Volumes::of(client, pod).await;
    let started = start(world, host, pod, container, &volumes, around).await;
    wait_probed(host, container, "readinessProbe", &started).await;
    started
}

/// Gives `pod` its node, as a scheduler does.
///
/// # Panics
/// When the API server refuses.
pub async fn bind(client: &kube::Client, pod: &Value, node: &str) {
    let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
    let request = Request::post(path).header("Content-Type", "application/json");
    let request = request.body(binding.to_string().into_bytes()).expect("a request");
    let bound = client.request::<Value>(request).await;
    bound.unwrap_or_else(|error| panic!("{name} is not bound to {node}: {error}"));
}

/// Says of `pod` that it runs on a host, and is ready.
///
/// # Panics
/// When the API server refuses.
pub async fn report(client: &kube::Client, pod: &Value, host: &Host) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), text(&pod["metadata"]["namespace"]));
    let [ip, ip6] = host.ips();
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": ip6}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let name = text(&pod["metadata"]["name"]);
    let written = pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await;
    written.unwrap_or_else(|error| panic!("cannot write the status of {name}: {error}"));
}

async fn start(
    world: &World,
    host: &Host,
    pod: &Value,
    container: &Value,
    volumes: &Volumes,
    around: &Around<'_>,
) -> Container {
    let name = text(&container["name"]);
    if let Some(image) = around.image {
        assert_eq!(text(&container["image"]), image.name, "{name}");
    }
    let own = &container["securityContext"];
    // What a container does not say, its Pod says for it.
    let security =
        |field: &str| if own[field].is_null() { &pod["spec"]["securityContext"][field] } else { &own[field] };
    assert_eq!(own["allowPrivilegeEscalation"], false, "{name}");
    assert_eq!(own["readOnlyRootFilesystem"], true, "{name}");
    assert_eq!(own["capabilities"]["drop"], json!(["ALL"]), "{name}");
    assert_eq!(security("seccompProfile")["type"], "RuntimeDefault", "{name}");
    let added = own["capabilities"]["add"].as_array().cloned().unwrap_or_default();
    let added: Vec<String> = added.iter().map(|add| format!("CAP_{}", text(add))).collect();
    let user = security("runAsUser").as_u64().and_then(|user| u32::try_from(user).ok()).expect("a user");
    assert_eq!(security("runAsGroup").as_u64(), Some(user.into()), "{name}");
    assert!(user != 0 || security("runAsNonRoot") != true, "{name} is root and says that it is not");

    let environment = environment(container, pod, around.node);
    let arguments: Vec<&str> = container["args"].as_array().expect("args").iter().map(text).collect();
    let mut files = volumes.mounted(container);
    if let Some(dns) = around.dns {
        let namespace = text(&pod["metadata"]["namespace"]);
        let search = format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local");
        files.push(("/etc/resolv.conf".to_owned(), format!("nameserver {dns}\n{search}\noptions ndots:5\n")));
    }
    let files: Vec<File<'_>> =
        files.iter().map(|(path, content)| File { name: path, content: content.clone() }).collect();
    let process = Process {
        image: around.image,
        user,
        capabilities: &added.iter().map(String::as_str).collect::<Vec<_>>(),
        environment: &environment.iter().map(String::as_str).collect::<Vec<_>>(),
        files: &files,
        arguments: &arguments,
    };
    Container::run(world, host, &format!("-{name}"), &process)
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

async fn wait_probed(host: &Host, container: &Value, probe: &str, started: &Container) {
    let request = &container[probe]["httpGet"];
    let ports = container["ports"].as_array().into_iter().flatten();
    let named =
        ports.filter(|port| port["name"] == request["port"]).map(|port| &port["containerPort"]).next();
    let port = named.unwrap_or(&request["port"]).as_u64().and_then(|port| u16::try_from(port).ok());
    let address = SocketAddr::new(host.ip4().into(), port.expect("a port"));
    let path = text(&request["path"]);
    wait_until(PATIENCE, &format!("{address}{path} says 200"), async || {
        match ask::get(address, path).await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}; {}", started.program.state())),
        }
    })
    .await;
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}
