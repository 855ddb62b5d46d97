//! What istiod tells the sidecar of a Pod, made into a configuration that plain Envoy runs, and the Pods that it leads to.
//!
//! In: the snapshot `tests/meshes/istio.json`, which istiod's own code has made from `envoy/istio.yaml`. Out: files for
//! Envoy. Only three things are changed in it: what would come from istiod or from Istio's agent (discovery services,
//! certificates) comes from files, filters that only Istio's build of Envoy has are left out, and the module is the one
//! of this build.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};

use crate::World;
use crate::discovery::{from_files, write};
use crate::envoy::INSTALLED;

/// Filters that only Istio's build of Envoy has: they count, and tell peers of each other.
pub const LEFT_OUT: [&str; 4] =
    ["istio.alpn", "istio.metadata_exchange", "istio.stats", "envoy.filters.http.peer_metadata"];

/// The snapshot.
///
/// # Panics
/// When it is not there.
pub fn snapshot() -> Value {
    let path = meshes().join("istio.json");
    let text = fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the snapshot is JSON")
}

/// The snapshot was made of what is to be copied as it is today, comments left aside.
///
/// # Panics
/// When it was not, with the command that makes it anew.
pub fn assert_current() {
    let bare = |text: &str| -> String {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.flat_map(|line| [line.trim_end(), "\n"]).collect()
    };
    let snapshot = snapshot();
    for (name, path) in [("kubernetes", "istio/kubernetes.yaml"), ("istio", "../../envoy/istio.yaml")] {
        let text = fs::read_to_string(meshes().join(path)).expect("a file of the project");
        let made_from = snapshot["made_from"][name].as_str().unwrap_or_default();
        assert_eq!(bare(&text), bare(made_from), "{path} has changed: run tests/meshes/generate");
    }
}

/// The folder of the snapshots and of what makes them.
pub fn meshes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("meshes")
}

/// An Envoy's configuration with all that the snapshot has; `filter` is the module.
///
/// # Panics
/// When the snapshot is not as expected.
pub fn client(world: &World, filter: &Path) -> String {
    let folder = world.own_folder();
    let mut snapshot = snapshot();
    leave_out(&mut snapshot);
    from_files(&mut snapshot, &folder);
    let mut of = |kind: &str| snapshot[kind].as_array_mut().map(std::mem::take).unwrap_or_default();
    for (kind, name, message) in [
        ("endpoints", "cluster_name", "envoy.config.endpoint.v3.ClusterLoadAssignment"),
        ("routes", "name", "envoy.config.route.v3.RouteConfiguration"),
        ("extensions", "name", "envoy.config.core.v3.TypedExtensionConfig"),
    ] {
        for resource in of(kind) {
            let name = resource[name].as_str().expect("a resource has a name").to_owned();
            write(&folder, &name, message, resource);
        }
    }
    let bootstrap = json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}},
        "node": {"id": "sidecar~10.1.0.9~client.shop~shop.svc.cluster.local", "cluster": "client.shop",
            "locality": {"zone": "a"}},
        "static_resources": {"listeners": of("listeners"), "clusters": of("clusters")},
    });
    let text = bootstrap.to_string();
    let extensions = fs::read_dir(&folder).expect("the folder of the world").flatten();
    for file in extensions.map(|entry| entry.path()).filter(|path| path.extension() == Some("xds".as_ref())) {
        let text = fs::read_to_string(&file).expect("a file just written");
        fs::write(&file, text.replace(INSTALLED, &filter.display().to_string()))
            .expect("a file just written");
    }
    text
}

/// An Envoy's configuration that stands for the sidecars of the Pods: at each of `pods` it takes connections with a
/// certificate of the mesh alone, and passes requests to the server of the same number in 127.0.2.0/24.
pub fn pods(world: &World, pods: &[u8]) -> String {
    let folder = world.own_folder();
    let listener = |number: &u8| {
        let file = |name: &str| json!({"filename": folder.join(name)});
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "pod", "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"uri": true},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes":
                [{"match": {"prefix": "/"}, "route": {"cluster": format!("pod-{number}")}}]}]},
        });
        json!({
            "name": format!("pod-{number}"),
            "address": {"socket_address": {"address": format!("127.0.1.{number}"), "port_value": 9000}},
            "filter_chains": [{
                "transport_socket": {"name": "tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": {
                        "tls_certificates": [{"certificate_chain": file("web.crt"), "private_key": file("web.key")}],
                        "validation_context": {"trusted_ca": file("ca.crt")},
                    },
                }},
                "filters": [{"name": "http", "typed_config": manager}],
            }],
        })
    };
    let cluster = |number: &u8| {
        let address = json!({"address": format!("127.0.2.{number}"), "port_value": 9000});
        json!({"name": format!("pod-{number}"), "load_assignment": {"cluster_name": "pod", "endpoints":
            [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": address}}}]}]}})
    };
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9902}}},
        "static_resources": {
            "listeners": pods.iter().map(listener).collect::<Vec<_>>(),
            "clusters": pods.iter().map(cluster).collect::<Vec<_>>(),
        },
    })
    .to_string()
}

/// Certificates as Istio's agent has them: the Pod `client`'s for its sidecar, and those of the Pods of `web`.
pub fn certificates(world: &World) {
    let folder = world.own_folder();
    let key = KeyPair::generate().expect("a key");
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, "mesh");
    let root = parameters.self_signed(&key).expect("a certificate").pem();
    fs::write(folder.join("ca.crt"), &root).expect("the folder of the world");
    let issuer = Issuer::new(parameters, key);
    for account in ["client", "web"] {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, account);
        let name = Ia5String::try_from(format!("spiffe://cluster.local/ns/shop/sa/{account}"));
        parameters.subject_alt_names = vec![SanType::URI(name.expect("ASCII"))];
        let certificate = parameters.signed_by(&key, &issuer).expect("a certificate").pem();
        fs::write(folder.join(format!("{account}.crt")), certificate).expect("the folder of the world");
        fs::write(folder.join(format!("{account}.key")), key.serialize_pem())
            .expect("the folder of the world");
    }
    let file = |name: &str| json!({"filename": folder.join(name)});
    const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";
    let own = json!({"certificate_chain": file("client.crt"), "private_key": file("client.key")});
    write(&folder, "default", SECRET, json!({"name": "default", "tls_certificate": own}));
    let root = json!({"trusted_ca": file("ca.crt")});
    write(&folder, "ROOTCA", SECRET, json!({"name": "ROOTCA", "validation_context": root}));
}

fn leave_out(value: &mut Value) {
    match value {
        Value::Array(values) => {
            values.retain(|value| !value["name"].as_str().is_some_and(|name| LEFT_OUT.contains(&name)));
            values.iter_mut().for_each(leave_out);
        }
        Value::Object(fields) => fields.values_mut().for_each(leave_out),
        _ => {}
    }
}
