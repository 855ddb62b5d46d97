//! A cluster: the real etcd, kube-apiserver and kube-controller-manager on a host of their own.
//!
//! In: which etcd. Out: clients, kubeconfig files, and faults that are real ones: compaction, a stop,
//! a kill. There is no kubelet and no scheduler: nodes and Pods are what the tests write
//! ([`crate::pods`]); a test that wants nodes with kube-proxies asks for them ([`crate::node`]). It never runs a controller
//! other than those of EndpointSlices, unless it is asked for [`Extent::Deployments`].

mod certificates;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http::Request;
use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Node as KubeNode, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{Host, Node, Program, World, tools, wait_until};
use certificates::Authority;

/// How long the API server may take to be ready: seconds, but on a busy machine more of them.
const READY: Duration = Duration::from_secs(120);

/// What Remora needs in a cluster, no more: the tests' sidecars have exactly this.
const RULES: &str = r#"[
    {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}
]"#;

/// The nodes of every cluster, and their zones.
pub const NODES: [(&str, &str); 2] = [("node-a", "zone-a"), ("node-b", "zone-b")];

/// The ranges of the addresses of Services, either family.
pub const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// The address of the Service `kubernetes`: the first of the range.
pub const KUBERNETES: [u8; 4] = [10, 96, 0, 1];

/// The etcd under a cluster.
#[derive(Clone, Copy)]
pub enum Etcd {
    /// The one that fits the API server: streaming lists work.
    New,
    /// Debian's 3.4, on which the API server refuses streaming lists.
    Old,
}

/// Which objects a cluster makes of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// EndpointSlices of Services and Pods; Pods have no ServiceAccount.
    Endpoints,
    /// Besides, Pods of Deployments, each with its namespace's ServiceAccount and what a kubelet is to mount for it; and
    /// what is deleted takes with it what was made of it.
    Deployments,
}

/// Owning one means that its programs run; dropping it ends them.
pub struct Cluster {
    extent: Extent,
    nodes: OnceCell<[Node; 2]>,
    authority: Authority,
    api: Mutex<Option<Program>>,
    controllers: Mutex<Option<Program>>,
    etcd: Program,
    host: Host,
    world: World,
}

/// The cluster that the tests of a binary share.
static SHARED: Mutex<Option<Arc<OnceCell<Arc<Cluster>>>>> = Mutex::new(None);

impl Cluster {
    /// The one cluster of this test binary, started by the first test that wants it.
    pub async fn shared() -> Arc<Cluster> {
        Cluster::shared_of(Extent::Endpoints).await
    }

    /// The same; where the first test wants another extent than [`Extent::Endpoints`], all have that.
    pub async fn shared_of(extent: Extent) -> Arc<Cluster> {
        let cell = SHARED.lock().expect("no panic holds it").get_or_insert_default().clone();
        cell.get_or_init(async || Cluster::start_of("cluster", Etcd::New, extent).await).await.clone()
    }

    /// Ends the shared cluster, at the end of the test binary.
    pub(crate) fn end_shared() {
        SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }

    /// Starts a cluster and returns when it serves.
    pub async fn start(name: &str, etcd: Etcd) -> Arc<Cluster> {
        Cluster::start_of(name, etcd, Extent::Endpoints).await
    }

    async fn start_of(name: &str, etcd: Etcd, extent: Extent) -> Arc<Cluster> {
        let started = Instant::now();
        let world = World::new(name);
        let host = Host::new(&world, "api");
        let authority = Authority::new(world.folder());
        authority.server(&[host.ip4().into(), IpAddr::from([127, 0, 0, 1]), IpAddr::from(KUBERNETES)]);
        let etcd = start_etcd(&world, &host, etcd);
        let cluster = Cluster {
            extent,
            nodes: OnceCell::new(),
            authority,
            api: Mutex::default(),
            controllers: Mutex::default(),
            etcd,
            host,
            world,
        };
        cluster.user("admin", Some("system:masters"));
        cluster.start_api().await;
        cluster.furnish().await;
        *cluster.controllers.lock().expect("no panic holds it") = Some(cluster.start_controllers());
        eprintln!("{name}: a cluster is ready after {:.1} s", started.elapsed().as_secs_f32());
        Arc::new(cluster)
    }

    /// Where the API server is.
    pub fn address(&self) -> Ipv4Addr {
        self.host.ip4()
    }

    /// The kubeconfig file of Remora's own user, who may do what it needs and no more.
    pub fn kubeconfig(&self) -> PathBuf {
        self.world.folder().join("remora.kubeconfig")
    }

    /// Its nodes with their kube-proxies, [`NODES`], started by the first test that wants them.
    pub async fn nodes(&self) -> &[Node; 2] {
        self.nodes
            .get_or_init(async || {
                // The API server itself makes what a user of this name may do.
                let proxy = self.user("system:kube-proxy", None);
                let [(a, _), (b, _)] = NODES;
                let start = async |name, others: &[&Host]| {
                    Node::start(&self.world, self.client().await, &proxy, name, others).await
                };
                let a = start(a, &[&self.host]).await;
                let b = start(b, &[&self.host, &a.host]).await;
                b.learn(&a);
                [a, b]
            })
            .await
    }

    /// Adds a user with a kubeconfig file, which is returned.
    pub fn user(&self, user: &str, group: Option<&str>) -> PathBuf {
        self.authority.user(user, group);
        let path = self.world.folder().join(format!("{user}.kubeconfig"));
        let config = self.authority.kubeconfig(user, &format!("https://{}:6443", self.host.ip4()));
        fs::write(&path, format!("{config:#}")).expect("a kubeconfig file");
        path
    }

    /// The kubeconfig of a user who exists, as a Pod has it: the API server is the Service
    /// `kubernetes`.
    pub fn kubeconfig_inside(&self, user: &str) -> Value {
        self.authority.kubeconfig(user, &format!("https://{}:443", Ipv4Addr::from(KUBERNETES)))
    }

    /// Adds a user who may do what `rules` (of a ClusterRole) say, anywhere.
    pub async fn user_with(&self, user: &str, rules: Value) -> PathBuf {
        let path = self.user(user, None);
        let client = self.client().await;
        create::<ClusterRole>(&Api::all(client.clone()), json!({"metadata": {"name": user}, "rules": rules}))
            .await;
        let binding = json!({
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        create::<ClusterRoleBinding>(&Api::all(client), binding).await;
        path
    }

    /// Replaces what a user of [`Cluster::user_with`] may do.
    pub async fn grant(&self, user: &str, rules: Value) {
        let roles = Api::<ClusterRole>::all(self.client().await);
        let patch = Patch::Merge(json!({"rules": rules}));
        roles.patch(user, &PatchParams::default(), &patch).await.expect("the role is changed");
    }

    /// The certificate of who signed the API server's.
    pub fn authority(&self) -> PathBuf {
        self.world.folder().join("ca.crt")
    }

    /// What the API server signs tokens with.
    pub fn accounts_key(&self) -> PathBuf {
        self.world.folder().join("accounts.key")
    }

    /// The kubeconfig of who may do everything.
    pub fn administrator(&self) -> PathBuf {
        self.world.folder().join("admin.kubeconfig")
    }

    /// A client that may do everything. It belongs to the runtime of the test that calls.
    pub async fn client(&self) -> Client {
        client(&self.administrator()).await
    }

    /// Asks the API server for a path, as somebody who may do everything.
    pub async fn get(&self, path: &str) -> Result<String, String> {
        let request = Request::get(path).body(Vec::new()).expect("a request");
        // Debug, since that shows the code too.
        self.client().await.request_text(request).await.map_err(|error| format!("{error:?}"))
    }

    /// What the API server says to somebody who wants a list as a stream: the events, or why not. On
    /// an etcd that is too old it accepts the request and refuses in the first event.
    pub async fn streaming_list(&self) -> Result<String, String> {
        let path = "/api/v1/services?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                    &allowWatchBookmarks=true&timeoutSeconds=1";
        let events = self.get(path).await?;
        if events.contains(r#""type":"ERROR""#) { Err(events) } else { Ok(events) }
    }

    /// What the API server says to somebody who wants the changes of Services since a version.
    pub async fn changes_since(&self, version: &str) -> Result<String, String> {
        self.get(&format!("/api/v1/services?watch=1&timeoutSeconds=1&resourceVersion={version}")).await
    }

    /// Starts the API server, and returns when it is ready.
    ///
    /// # Panics
    /// When it is not ready in time.
    pub async fn start_api(&self) {
        let program = self.api_program();
        *self.api.lock().expect("no panic holds it") = Some(program);
        let client = self.client().await;
        wait_until(READY, "the API server is ready", async || {
            let state = || {
                let api = self.api.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                format!("{}\n{}", api.as_ref().expect("started above").state(), self.etcd.state())
            };
            let ready = Request::get("/readyz").body(Vec::new()).expect("a request");
            match client.request_text(ready).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    let ended = self
                        .api
                        .lock()
                        .expect("no panic holds it")
                        .as_ref()
                        .is_some_and(|api| api.ended().is_some());
                    assert!(!ended, "{}", state());
                    Err(format!("{error}\n{}", state()))
                }
            }
        })
        .await;
    }

    /// Kills the API server, as the end of its machine would: connections end without a word.
    pub fn kill_api(&self) {
        self.api.lock().expect("no panic holds it").take().expect("an API server").kill();
    }

    /// Stops the API server (SIGSTOP): its connections stay open and nobody answers.
    pub fn stop_api(&self) {
        self.signal_api(Signal::STOP);
    }

    /// Lets a stopped API server go on.
    pub fn continue_api(&self) {
        self.signal_api(Signal::CONT);
    }

    fn signal_api(&self, signal: Signal) {
        self.api.lock().expect("no panic holds it").as_ref().expect("an API server").signal(signal);
    }

    /// Removes from etcd all revisions but the last. The API server keeps a window of its own; only
    /// one that starts after this does not know the past at all.
    pub async fn compact(&self) {
        let etcd = format!("http://{}:2379", self.host.ip4()).parse().expect("an address");
        let etcd = Client::try_from(Config::new(etcd)).expect("a client of etcd's HTTP gateway");
        let post = async |path: &str, body: Value| -> Value {
            let request = Request::post(path).body(body.to_string().into_bytes()).expect("a request");
            etcd.request(request).await.unwrap_or_else(|error| panic!("etcd {path}: {error}"))
        };
        let head = post("/v3/kv/range", json!({"key": "AA=="})).await;
        let revision = head["header"]["revision"].clone();
        post("/v3/kv/compaction", json!({"revision": revision, "physical": true})).await;
    }

    fn api_program(&self) -> Program {
        let mut command = self.host.command(tools::built("kube-apiserver"));
        let folder = self.world.folder();
        let file = |name: &str| folder.join(name).display().to_string();
        command
            .arg(format!("--etcd-servers=http://{}:2379", self.host.ip4()))
            .arg(format!("--advertise-address={}", self.host.ip4()))
            .args(["--bind-address=0.0.0.0", "--secure-port=6443"])
            .arg(format!("--tls-cert-file={}", file("server.crt")))
            .arg(format!("--tls-private-key-file={}", file("server.key")))
            .arg(format!("--client-ca-file={}", file("ca.crt")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-signing-key-file={}", file("accounts.key")))
            .arg(format!("--service-account-key-file={}", file("accounts.pub")))
            .arg(format!("--service-cluster-ip-range={}", SERVICES.join(",")))
            .arg("--authorization-mode=RBAC")
            // Webhooks of Services are asked at their endpoints: on this host is no kube-proxy.
            .arg("--enable-aggregator-routing=true")
            // Compaction is for tests to cause.
            .arg("--etcd-compaction-interval=0");
        if self.extent == Extent::Endpoints {
            // Pods would need a service account, which needs a controller that is not run.
            command.arg("--disable-admission-plugins=ServiceAccount");
        }
        Program::start(&self.world, "kube-apiserver", command)
    }

    fn start_controllers(&self) -> Program {
        let mut controllers = vec!["endpointslice-controller", "endpointslice-mirroring-controller"];
        if self.extent == Extent::Deployments {
            controllers.extend(["deployment-controller", "replicaset-controller", "namespace-controller"]);
            controllers.extend(["serviceaccount-controller", "root-ca-certificate-publisher-controller"]);
            controllers.push("garbage-collector-controller");
        }
        let mut command = self.host.command(tools::built("kube-controller-manager"));
        command
            .arg(format!("--kubeconfig={}", self.administrator().display()))
            .arg(format!("--controllers={}", controllers.join(",")))
            .arg(format!("--root-ca-file={}", self.authority().display()))
            .args(["--leader-elect=false", "--secure-port=0"])
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"]);
        Program::start(&self.world, "kube-controller-manager", command)
    }

    /// Makes what every test takes for granted: nodes, and Remora's user.
    async fn furnish(&self) {
        let nodes = Api::<KubeNode>::all(self.client().await);
        for (node, zone) in NODES {
            let labels = json!({"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": node});
            create(&nodes, json!({"metadata": {"name": node, "labels": labels}})).await;
        }
        self.user_with("remora", serde_json::from_str(RULES).expect("rules of a role")).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // In the order of a shutdown, so that no log is full of the others' absence.
        self.nodes.take();
        for program in [&self.controllers, &self.api] {
            program.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        }
        self.etcd.kill();
    }
}

fn start_etcd(world: &World, host: &Host, etcd: Etcd) -> Program {
    let mut command = host.command(tools::built(match etcd {
        Etcd::New => "etcd",
        Etcd::Old => "old-etcd",
    }));
    let url = format!("http://{}:2379", host.ip4());
    // In memory: a test has no use for a disk's patience.
    command
        .args(["--name=test", &format!("--data-dir=/run/{}.etcd", host.name())])
        .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
        .args([
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        ])
        .arg("--initial-cluster=test=http://127.0.0.1:2380");
    Program::start(world, "etcd", command)
}

async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig file of ours");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a kubeconfig of ours")).expect("a client")
}

/// Creates an object written as JSON.
///
/// # Panics
/// When the API server refuses, with what it says.
pub async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let object_: K = serde_json::from_value(object.clone()).expect("the object's type");
    match api.create(&PostParams::default(), &object_).await {
        Ok(created) => created,
        Err(error) => panic!("cannot create {object:#}: {error}"),
    }
}

/// A namespace of Kubernetes in a cluster, for one test alone.
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// The number in its name, which no other namespace of the test binary has.
    pub number: u32,
    /// Where it is.
    pub cluster: Arc<Cluster>,
    /// A client that may do everything.
    pub client: Client,
}

impl Namespace {
    /// Makes one, named like no other.
    pub async fn new(cluster: Arc<Cluster>) -> Namespace {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("shop-{number}");
        let client = cluster.client().await;
        create::<KubeNamespace>(&Api::all(client.clone()), json!({"metadata": {"name": name}})).await;
        if cluster.extent == Extent::Deployments {
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
            wait_until(READY, &format!("{name} has a ServiceAccount"), async || {
                accounts.get("default").await.map(drop).map_err(|error| error.to_string())
            })
            .await;
        }
        Namespace { name, number, cluster, client }
    }

    /// Its Services.
    pub fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Its EndpointSlices.
    pub fn slices(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates a Service over the Pods with the label `app: NAME`: port `web`, 80, to their port
    /// `web`, and whatever else `spec` says.
    pub async fn service(&self, name: &str, spec: Value) -> Service {
        let mut whole = json!({
            "selector": {"app": name},
            "ports": [{"name": "web", "port": 80, "targetPort": "web"}],
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        create(&self.services(), json!({"metadata": {"name": name}, "spec": whole})).await
    }

    /// Changes a Service: a merge patch.
    pub async fn patch_service(&self, name: &str, patch: Value) {
        let patched = self.services().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.unwrap_or_else(|error| panic!("cannot patch {name} with {patch}: {error}"));
    }

    /// The endpoints of a Service that its slices call ready, as `ip:port`, sorted: what the
    /// controller makes of the Pods, read in the plainest way.
    pub async fn ready(&self, service: &str) -> Result<Vec<String>, String> {
        let mine = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let slices = self.slices().list(&mine).await.map_err(|error| error.to_string())?;
        let mut ready = Vec::new();
        for slice in &slices {
            for port in slice.ports.iter().flatten().filter_map(|port| port.port) {
                for endpoint in slice.endpoints.iter().flatten() {
                    let conditions = endpoint.conditions.as_ref();
                    if conditions.and_then(|conditions| conditions.ready).unwrap_or(true) {
                        ready.push(address(&endpoint.addresses[0], port));
                    }
                }
            }
        }
        ready.sort();
        Ok(ready)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if thread::panicking() {
            self.cluster.world.tell();
        }
    }
}

/// `ip:port`, as Kubernetes and Remora print it.
fn address(ip: &str, port: i32) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
