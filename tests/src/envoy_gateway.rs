//! What Envoy Gateway makes of the objects in `envoy/envoy-gateway.yaml`, written by hand after the listeners, routes and
//! clusters in its own tests (1.9.1), with its patches applied. Envoy Gateway itself does not run.
//!
//! In: the objects. Out: a configuration for plain Envoy. The module comes from a file, which Envoy Gateway would serve.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::World;
use crate::discovery::{from_files, write};

/// The one listener: Gateway and listener of the file's patches.
const LISTENER: &str = "shop/web/http";
/// The one cluster: that of the first rule of the HTTPRoute.
const CLUSTER: &str = "httproute/shop/web/rule/0";
/// The name of the plugin's filter, and of its VM.
const PLUGIN: &str = "envoyextensionpolicy/shop/remora/wasm/0";

/// A configuration whose cluster has these endpoints (`IP`, port 9000); `filter` is the module.
///
/// # Panics
/// When the file is not as expected.
pub fn configuration(world: &World, filter: &Path, endpoints: &[String]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../envoy/envoy-gateway.yaml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let objects: Vec<Value> = text
        .split("\n---\n")
        .map(|text| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")))
        .collect();
    let spec = |kind: &str| {
        let object = objects.iter().find(|object| object["kind"] == kind);
        &object.unwrap_or_else(|| panic!("the file has no {kind}"))["spec"]
    };
    let plugin = &spec("EnvoyExtensionPolicy")["wasm"][0];
    let traffic = spec("BackendTrafficPolicy");
    let mut listener = listener(plugin, filter);
    let mut clusters = vec![cluster(traffic)];
    for patch in spec("EnvoyPatchPolicy")["jsonPatches"].as_array().expect("patches") {
        let operation = &patch["operation"];
        assert_eq!(operation["op"], "add");
        match patch["type"].as_str().and_then(|name| name.rsplit_once('.')) {
            Some((_, "Cluster")) => clusters.push(operation["value"].clone()),
            Some((_, "Listener")) => {
                assert_eq!(patch["name"], LISTENER);
                let (at, field) = (operation["jsonPath"].as_str(), operation["path"].as_str());
                let place = at.and_then(|at| find(&mut listener, at));
                place.unwrap_or_else(|| panic!("nothing is at {at:?}"))[field.expect("a path")] =
                    operation["value"].clone();
            }
            other => panic!("a patch of {other:?}"),
        }
    }
    let folder = world.own_folder();
    let endpoint = |ip: &String| {
        json!({"endpoint": {"address": {"socket_address": {"address": ip, "port_value": 9000}}},
            "load_balancing_weight": 1})
    };
    let endpoints = json!({"cluster_name": CLUSTER, "endpoints": [{
        "lb_endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "load_balancing_weight": 1, "locality": {"region": CLUSTER},
    }]});
    write(&folder, CLUSTER, "envoy.config.endpoint.v3.ClusterLoadAssignment", endpoints);
    write(&folder, LISTENER, "envoy.config.route.v3.RouteConfiguration", routes(traffic));
    let mut resources = json!({"listeners": [listener], "clusters": clusters});
    from_files(&mut resources, &folder);
    json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}},
        "node": {"id": "envoy-shop-web", "cluster": "shop/web"},
        "static_resources": resources,
    })
    .to_string()
}

/// Where a JSONPath of the form `..http_filters[?(@.FIELDS=='TEXT')].FIELDS` leads.
fn find<'v>(listener: &'v mut Value, path: &str) -> Option<&'v mut Value> {
    let (condition, fields) = path.strip_prefix("..http_filters[?(@.")?.split_once("')].")?;
    let (where_, text) = condition.split_once("=='")?;
    let pointer = |fields: &str| format!("/{}", fields.replace('.', "/"));
    let filters = listener.pointer_mut("/default_filter_chain/filters/0/typed_config/http_filters")?;
    let is_it = |filter: &&mut Value| filter.pointer(&pointer(where_)).and_then(Value::as_str) == Some(text);
    filters.as_array_mut()?.iter_mut().find(is_it)?.pointer_mut(&pointer(fields))
}

fn listener(plugin: &Value, filter: &Path) -> Value {
    let settings = json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": plugin["config"].to_string()});
    let wasm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {
            "name": plugin["name"], "root_id": plugin["rootID"], "configuration": settings,
            "vm_config": {"vm_id": PLUGIN, "runtime": "envoy.wasm.runtime.v8", "code": {"local": {"filename": filter}}},
        },
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "http2_protocol_options": {"initial_connection_window_size": 1048576,
            "initial_stream_window_size": 65536, "max_concurrent_streams": 100},
        // Only the routes of the policy use it.
        "http_filters": [
            {"disabled": true, "name": format!("envoy.filters.http.wasm/{PLUGIN}"), "typed_config": wasm},
            {"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "suppress_envoy_headers": true}},
        ],
        "merge_slashes": true,
        "normalize_path": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "rds": {"config_source": {"ads": {}, "resource_api_version": "V3"}, "route_config_name": LISTENER},
        "server_header_transformation": "PASS_THROUGH",
        "stat_prefix": "http-8080",
        "use_remote_address": true,
    });
    json!({
        "name": LISTENER,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
        "default_filter_chain": {"name": LISTENER, "filters":
            [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]},
        "max_connections_to_accept_per_socket_event": 1,
        "per_connection_buffer_limit_bytes": 32768,
    })
}

fn routes(traffic: &Value) -> Value {
    let retry = &traffic["retry"];
    let triggers: Vec<_> =
        retry["retryOn"]["triggers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    json!({
        "name": LISTENER,
        "ignore_port_in_host_matching": true,
        "virtual_hosts": [{"name": format!("{LISTENER}/www_example_com"), "domains": ["www.example.com"], "routes": [{
            "name": format!("{CLUSTER}/match/0/www_example_com"),
            "match": {"prefix": "/"},
            "route": {
                "cluster": CLUSTER,
                "retry_policy": {"retry_on": triggers.join(","), "num_retries": retry["numRetries"],
                    "host_selection_retry_max_attempts": "5",
                    "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config":
                        {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]},
                "upgrade_configs": [{"upgrade_type": "websocket"}],
            },
            "typed_per_filter_config": {format!("envoy.filters.http.wasm/{PLUGIN}"):
                {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}},
        }]}],
    })
}

fn cluster(traffic: &Value) -> Value {
    let balance = &traffic["loadBalancer"];
    assert_eq!(balance["type"], "LeastRequest");
    let own = json!({"name": "envoy.load_balancing_policies.least_request", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        "locality_lb_config": {"locality_weighted_lb_config": {}}}});
    let policy = json!({"name": "envoy.load_balancing_policies.override_host", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
        "override_host_sources": balance["endpointOverride"]["extractFrom"],
        "fallback_policy": {"policies": [{"typed_extension_config": own}]}}});
    json!({
        "name": CLUSTER,
        "type": "EDS",
        "circuit_breakers": {"thresholds": [{"max_retries": 1024}]},
        "common_lb_config": {},
        "connect_timeout": "10s",
        "dns_lookup_family": "V4_PREFERRED",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}, "service_name": CLUSTER},
        "ignore_health_on_host_removal": true,
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
        "per_connection_buffer_limit_bytes": 32768,
    })
}
