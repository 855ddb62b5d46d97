//! Whether a Pod gets a sidecar, and what it gets. In: a Pod or a Pod template as JSON, how its namespace is, what the
//! cluster wants. Out: what to add to it, or one sentence why not. Never changes anything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use clap::{Command, CommandFactory as _, FromArgMatches as _};
use serde::Serialize;
use serde_json::Value;

use super::container::{self, Container, Resources, Volume};
use crate::arguments::{Arguments, CaptureVerb, Verb};
use crate::config;
use crate::marks::{INJECT, INJECTED};

/// The user of the sidecar; the rules of `remora capture` know its packets by it.
pub(super) const USER: u32 = 64102;
/// `disabled`: no rules, listeners only.
const CAPTURE: &str = "remora.dev/capture";
const LISTEN: &str = "remora.dev/listen";
const SKIP_PORTS: &str = "remora.dev/skip-ports";
const SKIP_SUBNETS: &str = "remora.dev/skip-subnets";
const LOG_LEVEL: &str = "remora.dev/log-level";
const RESOURCES: [&str; 4] = [
    "remora.dev/cpu-request",
    "remora.dev/cpu-limit",
    "remora.dev/memory-request",
    "remora.dev/memory-limit",
];

/// Proxies of others, which take connections too: by container, and what to use beside them.
const MESHES: [(&str, &str); 3] =
    [("istio-proxy", "Istio"), ("linkerd-proxy", "Linkerd"), ("cilium-envoy", "Cilium")];
/// A Pod whose connections a node's proxy takes.
const AMBIENT: [(&str, &str); 2] =
    [("istio.io/dataplane-mode", "ambient"), ("ambient.istio.io/redirection", "enabled")];

/// What every Pod of a cluster gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The image of both containers.
    pub image: String,
    /// The ranges of Services, as `remora capture up --services` takes them; the init container asks the API server if
    /// there are none.
    pub services: Vec<String>,
    /// Where the sidecar learns of Services, as `--source` takes it.
    pub source: String,
    /// Who vouches for the hub there, PEM, if it is one by TLS.
    pub feed_ca: Option<String>,
    /// For whom the token is that the sidecar shows to that hub.
    pub feed_audience: String,
}

impl Settings {
    /// Whether the sidecar shows a token to a hub.
    pub(super) fn shows_token(&self) -> bool {
        self.source.starts_with("feed:https:")
    }
}

/// What a Pod is, besides itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// `pod-security.kubernetes.io/enforce` of its namespace, if known.
    pub pod_security: Option<String>,
}

/// What is added to a Pod. Nothing of it is there yet.
#[derive(Debug, Serialize)]
pub struct Additions {
    pub(super) annotations: BTreeMap<&'static str, String>,
    /// In front of all others.
    pub(super) init_containers: Vec<Container>,
    /// In front of all others, if there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) volumes: Vec<Volume>,
    /// What the user should know.
    #[serde(skip)]
    pub note: Option<String>,
}

/// Why a Pod stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It has a sidecar.
    Injected,
    /// It does not want one.
    OptedOut,
    /// It has the network of its node.
    HostNetwork,
    /// It is for Windows.
    Windows,
    /// A container of it has our name.
    Name(String),
    /// A volume of it has our name.
    Volume,
    /// A container runs as our user, whose packets go past the rules.
    User(String),
    /// A proxy of somebody else takes its connections.
    Mesh(&'static str),
    /// Its namespace forbids the rules, and there is no listener.
    PodSecurity(String),
    /// It wants no rules, and there is no listener.
    Nothing,
    /// An annotation is wrong.
    Annotation(String),
    /// Nothing is known of its namespace yet.
    Namespace(String),
    /// The sidecar would not know its hub.
    Authority,
}

impl Skip {
    /// A stable word, also the metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::OptedOut => "opted-out",
            Self::HostNetwork => "host-network",
            Self::Windows => "windows",
            Self::Name(_) => "name",
            Self::Volume => "volume",
            Self::User(_) => "user",
            Self::Mesh(_) => "mesh",
            Self::PodSecurity(_) => "pod-security",
            Self::Nothing => "nothing",
            Self::Annotation(_) => "annotation",
            Self::Namespace(_) => "namespace",
            Self::Authority => "authority",
        }
    }

    /// Whether the Pod was meant to have a sidecar.
    pub fn was_wanted(&self) -> bool {
        !matches!(self, Self::Injected | Self::OptedOut)
    }

    /// Whether somebody has to mend something.
    pub fn is_mistake(&self) -> bool {
        matches!(
            self,
            Self::Name(_) | Self::Volume | Self::User(_) | Self::Annotation(_) | Self::Namespace(_)
        )
    }
}

impl fmt::Display for Skip {
    /// The reason, and the next step where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Injected => f.write_str("it has a sidecar already"),
            Self::OptedOut => write!(f, "it has {INJECT}: disabled"),
            Self::HostNetwork => f.write_str(
                "it has the network of its node (hostNetwork); run `remora node` or `remora sidecar` there",
            ),
            Self::Windows => f.write_str("it is for Windows"),
            Self::Name(name) => {
                write!(f, "it has a container named {name:?}, which is not ours; give that one another name")
            }
            Self::Volume => write!(
                f,
                "it has a volume named {:?}, which is not ours; give that one another name",
                container::TOKEN
            ),
            Self::User(name) => write!(
                f,
                "container {name:?} runs as user {USER}, the sidecar's own, whose connections are not captured; take \
                 another user"
            ),
            Self::Mesh(mesh) => write!(
                f,
                "{mesh} takes its connections already; use Remora's filter in that mesh's Envoy, see envoy/README.md"
            ),
            Self::PodSecurity(level) => write!(
                f,
                "its namespace enforces Pod Security {level:?}, which forbids capture; name listeners with {LISTEN}: \
                 127.0.0.1:8080=shop/web:80"
            ),
            Self::Nothing => write!(
                f,
                "{CAPTURE} is disabled and there is nothing else to serve; name listeners with {LISTEN}: \
                 127.0.0.1:8080=shop/web:80"
            ),
            Self::Annotation(why) => f.write_str(why),
            Self::Authority => f.write_str(
                "nobody vouches for the hub that is to feed it; start the webhook with a certificate that has a ca.crt, \
                 or with --sidecar-feed-ca",
            ),
            Self::Namespace(namespace) => write!(
                f,
                "nothing is known of its namespace {namespace} yet, which may forbid capture; make the Pod once more"
            ),
        }
    }
}

/// What to add to `pod`, a Pod or the template of one.
///
/// # Errors
/// Why nothing is.
pub fn additions(pod: &Value, around: &Around, settings: &Settings) -> Result<Additions, Skip> {
    if !is_for_us(pod)? {
        return Err(Skip::OptedOut);
    }
    if settings.shows_token()
        && items(&pod["spec"]["volumes"]).any(|volume| volume["name"] == container::TOKEN)
    {
        return Err(Skip::Volume);
    }
    let wishes = Wishes::of(pod)?;
    let forbidden =
        around.pod_security.as_ref().filter(|level| matches!(&***level, "baseline" | "restricted"));
    let captures = wishes.captures && forbidden.is_none();
    if !captures && wishes.listen.is_empty() {
        return Err(forbidden.filter(|_| wishes.captures).cloned().map_or(Skip::Nothing, Skip::PodSecurity));
    }
    if settings.shows_token() && settings.feed_ca.is_none() {
        return Err(Skip::Authority);
    }
    let mut init_containers = Vec::new();
    if captures {
        init_containers.push(container::capture(settings, wishes.capture_arguments(settings)));
    }
    let arguments = wishes.sidecar_arguments(settings, captures);
    init_containers.push(container::sidecar(settings, arguments, captures, wishes.resources.clone()));
    for container in &init_containers {
        judge(&container.args, settings)?;
    }
    let note = forbidden.filter(|_| wishes.captures).map(|level| {
        format!(
            "without capture: its namespace enforces Pod Security {level:?}, which forbids it; listeners only"
        )
    });
    let annotations = BTreeMap::from([(INJECTED, env!("CARGO_PKG_VERSION").to_owned())]);
    Ok(Additions { annotations, init_containers, volumes: container::volumes(settings), note })
}

/// Whether `pod` is one that can have a sidecar, and wants one.
fn is_for_us(pod: &Value) -> Result<bool, Skip> {
    let spec = &pod["spec"];
    let containers = || ["initContainers", "containers"].iter().flat_map(|list| items(&spec[list]));
    let name = |container: &Value| container["name"].as_str().unwrap_or_default().to_owned();
    if annotation(pod, INJECTED).is_some() {
        return Err(Skip::Injected);
    }
    // A label can be selected by, an annotation cannot; either will do.
    match annotation(pod, INJECT).or(pod["metadata"]["labels"][INJECT].as_str()) {
        Some("disabled") => return Ok(false),
        None | Some("enabled") => {}
        Some(other) => {
            return Err(Skip::Annotation(format!("{INJECT}: {other:?} is neither enabled nor disabled")));
        }
    }
    if spec["hostNetwork"] == true {
        return Err(Skip::HostNetwork);
    }
    if spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows" {
        return Err(Skip::Windows);
    }
    let mesh = MESHES.iter().find(|(theirs, _)| containers().any(|container| container["name"] == *theirs));
    if let Some((_, mesh)) = mesh {
        return Err(Skip::Mesh(mesh));
    }
    let said = |key: &str, value: &str| {
        annotation(pod, key) == Some(value) || pod["metadata"]["labels"][key] == value
    };
    if AMBIENT.iter().any(|(key, value)| said(key, value)) {
        return Err(Skip::Mesh("Istio's ambient mode"));
    }
    if let Some(ours) = containers().find(|container| container::NAMES.contains(&&*name(container))) {
        return Err(Skip::Name(name(ours)));
    }
    let user = |security: &Value| security["runAsUser"].as_u64();
    let of_pod = user(&spec["securityContext"]);
    let is_user = |container: &&Value| user(&container["securityContext"]).or(of_pod) == Some(USER.into());
    match containers().find(is_user) {
        Some(container) => Err(Skip::User(name(container))),
        None => Ok(true),
    }
}

/// What the annotations of a Pod ask for.
struct Wishes<'p> {
    captures: bool,
    listen: Vec<&'p str>,
    skip_ports: Option<&'p str>,
    skip_subnets: Option<&'p str>,
    log_level: Option<&'p str>,
    resources: Resources,
}

impl<'p> Wishes<'p> {
    fn of(pod: &'p Value) -> Result<Self, Skip> {
        let captures = match annotation(pod, CAPTURE) {
            None | Some("enabled") => true,
            Some("disabled") => false,
            Some(other) => {
                return Err(Skip::Annotation(format!(
                    "{CAPTURE}: {other:?} is neither enabled nor disabled"
                )));
            }
        };
        let quantity = |key: &str| match annotation(pod, key) {
            Some(text) if !container::is_quantity(text) => {
                Err(Skip::Annotation(format!("{key}: {text:?} is no quantity; write it as 100m or 64Mi")))
            }
            text => Ok(text.map(str::to_owned)),
        };
        let [cpu_request, cpu_limit, memory_request, memory_limit] = RESOURCES.map(quantity);
        let listen = annotation(pod, LISTEN).unwrap_or_default().split(',');
        Ok(Self {
            captures,
            listen: listen.map(str::trim).filter(|listen| !listen.is_empty()).collect(),
            skip_ports: annotation(pod, SKIP_PORTS),
            skip_subnets: annotation(pod, SKIP_SUBNETS),
            log_level: annotation(pod, LOG_LEVEL),
            resources: Resources::of([cpu_request?, memory_request?], [cpu_limit?, memory_limit?]),
        })
    }

    fn capture_arguments(&self, settings: &Settings) -> Vec<String> {
        let mut arguments = vec!["capture".to_owned(), "up".to_owned()];
        arguments.extend(settings.services.iter().map(|range| format!("--services={range}")));
        arguments.extend(self.skip_ports.map(|ports| format!("--skip-ports={ports}")));
        arguments.extend(self.skip_subnets.map(|ranges| format!("--skip-subnets={ranges}")));
        arguments
    }

    fn sidecar_arguments(&self, settings: &Settings, captures: bool) -> Vec<String> {
        let mut arguments = vec!["sidecar".to_owned(), format!("--source={}", settings.source)];
        arguments.extend(captures.then(|| "--capture".to_owned()));
        arguments.extend(self.listen.iter().map(|listen| format!("--listen={listen}")));
        arguments.extend(self.log_level.map(|level| format!("--log-level={level}")));
        arguments
    }
}

/// Reads `arguments` as the container will, so that it starts.
fn judge(arguments: &[String], settings: &Settings) -> Result<(), Skip> {
    thread_local! {
        /// Made once: that takes longer than all the rest of a Pod.
        static COMMAND: RefCell<Command> = RefCell::new(Arguments::command());
    }
    let program = std::iter::once("remora").chain(arguments.iter().map(String::as_str));
    let parsed = COMMAND.with_borrow_mut(|command| {
        let mut matches = command.try_get_matches_from_mut(program)?;
        Arguments::from_arg_matches_mut(&mut matches)
    });
    let judged = match parsed.map(|arguments| arguments.verb) {
        Ok(Verb::Sidecar(mut typed)) => {
            // Its environment says so there.
            typed.serving.source.feed_ca = settings.feed_ca.clone();
            // It looks there how many processors it has, which takes a while.
            typed.serving.threads = Some("1".to_owned());
            config::Sidecar::new(*typed, true).map(drop)
        }
        Ok(Verb::Capture { verb: verb @ CaptureVerb::Up(_) }) => config::Capture::new(verb).map(drop),
        _ => return Err(Skip::Annotation("an annotation of remora.dev cannot be read as a flag".to_owned())),
    };
    judged.map_err(|error| Skip::Annotation(format!("an annotation is wrong: {error}")))
}

fn annotation<'p>(pod: &'p Value, key: &str) -> Option<&'p str> {
    pod["metadata"]["annotations"][key].as_str().map(str::trim)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
