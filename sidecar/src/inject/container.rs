//! The two containers that a Pod gets, as the Kubernetes API has them. In: arguments. Out: values to be written.

use serde::Serialize;

use super::pod::{Settings, USER};

/// The names of both.
pub(super) const NAMES: [&str; 2] = ["remora-capture", "remora"];
/// The volume with the token, and where it is.
pub(super) const TOKEN: &str = "remora-token";
const TOKEN_FOLDER: &str = "/var/run/secrets/remora";
const TOKEN_FILE: &str = "/var/run/secrets/remora/token";
/// The kubelet renews it when a fifth of that is left.
const TOKEN_LASTS: u32 = 3600;
/// Where the kubelet asks the sidecar.
const HEALTH: u16 = 64104;

/// An init container; its fields stand in this order.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container {
    name: &'static str,
    image: String,
    pub(super) args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<Variable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volume_mounts: Vec<Mount>,
    /// `Always` makes it a sidecar, which starts before and ends after the Pod's own containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    startup_probe: Option<Probe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    readiness_probe: Option<Probe>,
    resources: Resources,
    security_context: SecurityContext,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Variable {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_from: Option<FieldSource>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    name: &'static str,
    mount_path: &'static str,
    read_only: bool,
}

/// What the sidecar shows to a hub: a token of the Pod's ServiceAccount, which is for nothing else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Volume {
    name: &'static str,
    projected: Projected,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Projected {
    sources: [Token; 1],
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    service_account_token: TokenProjection,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenProjection {
    audience: String,
    expiration_seconds: u32,
    path: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FieldSource {
    field_ref: Field,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Field {
    field_path: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: &'static str,
    container_port: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: HttpGet,
    period_seconds: u8,
    failure_threshold: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct HttpGet {
    path: &'static str,
    port: u16,
}

/// What a container may use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Resources {
    #[serde(skip_serializing_if = "Quantities::are_none")]
    requests: Quantities,
    #[serde(skip_serializing_if = "Quantities::are_none")]
    limits: Quantities,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Quantities {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    allow_privilege_escalation: bool,
    capabilities: Capabilities,
    read_only_root_filesystem: bool,
    run_as_group: u32,
    run_as_non_root: bool,
    run_as_user: u32,
    seccomp_profile: SeccompProfile,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Capabilities {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    add: Vec<&'static str>,
    drop: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct SeccompProfile {
    r#type: &'static str,
}

/// Installs the rules, once, as the only one with NET_ADMIN.
pub(super) fn capture(settings: &Settings, args: Vec<String>) -> Container {
    Container {
        name: NAMES[0],
        image: settings.image.clone(),
        args,
        env: Vec::new(),
        ports: Vec::new(),
        volume_mounts: Vec::new(),
        restart_policy: None,
        startup_probe: None,
        readiness_probe: None,
        resources: Resources::of([None, None], [None, None]),
        security_context: security(0, vec!["NET_ADMIN"]),
    }
}

/// Serves for as long as the Pod lives.
pub(super) fn sidecar(
    settings: &Settings,
    args: Vec<String>,
    captures: bool,
    resources: Resources,
) -> Container {
    let probe = |path, period_seconds, failure_threshold| Probe {
        http_get: HttpGet { path, port: HEALTH },
        period_seconds,
        failure_threshold,
    };
    let variable = |name, field_path| {
        let value_from = Some(FieldSource { field_ref: Field { field_path } });
        Variable { name, value: None, value_from }
    };
    let shows = settings.shows_token();
    let mut env = vec![
        variable("REMORA_NODE", "spec.nodeName"),
        // Clusters from 1.35 on copy it from the node; without it the sidecar asks for its node's.
        variable("REMORA_ZONE", "metadata.labels['topology.kubernetes.io/zone']"),
    ];
    if shows {
        let said = |name, value| Variable { name, value, value_from: None };
        env.push(said("REMORA_FEED_CA", settings.feed_ca.clone()));
        env.push(said("REMORA_FEED_TOKEN", Some(TOKEN_FILE.to_owned())));
    }
    let mount = Mount { name: TOKEN, mount_path: TOKEN_FOLDER, read_only: true };
    Container {
        name: NAMES[1],
        image: settings.image.clone(),
        args,
        env,
        ports: vec![Port { name: "remora-health", container_port: HEALTH }],
        volume_mounts: if shows { vec![mount] } else { Vec::new() },
        restart_policy: Some("Always"),
        // The Pod's own containers begin when it lives, with or without an API server.
        startup_probe: Some(probe("/livez", 1, 30)),
        readiness_probe: Some(probe("/readyz", 5, 3)),
        resources,
        security_context: security(USER, if captures { vec!["NET_RAW"] } else { Vec::new() }),
    }
}

/// The volumes that a Pod needs for its sidecar.
pub(super) fn volumes(settings: &Settings) -> Vec<Volume> {
    let service_account_token = TokenProjection {
        audience: settings.feed_audience.clone(),
        expiration_seconds: TOKEN_LASTS,
        path: "token",
    };
    let token = Volume { name: TOKEN, projected: Projected { sources: [Token { service_account_token }] } };
    if settings.shows_token() { vec![token] } else { Vec::new() }
}

fn security(user: u32, add: Vec<&'static str>) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: false,
        capabilities: Capabilities { add, drop: vec!["ALL"] },
        read_only_root_filesystem: true,
        run_as_group: user,
        run_as_non_root: user != 0,
        run_as_user: user,
        seccomp_profile: SeccompProfile { r#type: "RuntimeDefault" },
    }
}

impl Resources {
    /// CPU and memory, requested and at most. Where nothing is said, little is requested; a limit alone is a request too.
    pub(super) fn of(requested: [Option<String>; 2], limits: [Option<String>; 2]) -> Self {
        let ([cpu, memory], [cpu_limit, memory_limit]) = (requested, limits);
        let or = |said: Option<String>, limit: &Option<String>, default: &str| {
            said.or_else(|| limit.is_none().then(|| default.to_owned()))
        };
        Self {
            requests: Quantities {
                cpu: or(cpu, &cpu_limit, "10m"),
                memory: or(memory, &memory_limit, "16Mi"),
            },
            limits: Quantities { cpu: cpu_limit, memory: memory_limit },
        }
    }
}

impl Quantities {
    fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether `text` is an amount as Kubernetes writes it: `100m`, `0.5`, `64Mi`, `1e3`.
pub(super) fn is_quantity(text: &str) -> bool {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, suffix) = text.split_at(digits);
    let is_number = number.bytes().any(|byte| byte.is_ascii_digit()) && number.matches('.').count() <= 1;
    let suffixes = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let is_exponent = || {
        let exponent = suffix.strip_prefix(['e', 'E']).map(|e| e.strip_prefix(['+', '-']).unwrap_or(e));
        exponent.is_some_and(|e| !e.is_empty() && e.len() <= 2 && e.bytes().all(|byte| byte.is_ascii_digit()))
    };
    is_number && (suffixes.contains(&suffix) || is_exponent())
}
