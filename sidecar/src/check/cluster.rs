//! The cluster itself: what Remora needs of it, installed or not. In: objects of the Kubernetes API, as JSON. Out:
//! findings. Never asks a node anything; what a node says about itself is in its Node.

use serde_json::{Value, json};
use watcher::kubernetes::{Cluster, Refusal};

use super::finding::{Finding, Section};
use crate::marks::INJECT;

const HERE: Section = Section::Kubernetes;

/// The oldest whose kubelets start native sidecars (KEP-753): Kubernetes 1.29.
const MINOR: u64 = 29;
/// The oldest kernel that has what the rules are made of: `socket` in nftables, rules of routing by protocol.
const KERNEL: (u64, u64) = (4, 20);

/// What an installation makes: API group, resource, and whether it is in the installation's namespace.
const MADE: [(&str, &str, bool); 9] = [
    ("", "namespaces", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("apps", "deployments", true),
    ("networking.k8s.io", "networkpolicies", true),
    ("policy", "poddisruptionbudgets", true),
];

/// Checks it. `before`: the namespace that Remora is to be installed in, if it is not yet.
pub(super) async fn check(cluster: &Cluster, before: Option<&str>) -> Vec<Finding> {
    let version = match cluster.get("/version").await {
        Ok(version) => version,
        Err(why) => {
            let next = "see that kubectl version works with the same kubeconfig";
            return vec![HERE.failed("api", format!("{} cannot be asked: {why}", cluster.url()), next)];
        }
    };
    let mut findings = vec![HERE.ok("api", format!("{} answers", cluster.url())), judge_version(&version)];
    let (nodes, cilium, calico, dns, namespaces) = tokio::join!(
        cluster.get("/api/v1/nodes"),
        cluster.get("/api/v1/namespaces/kube-system/configmaps/cilium-config"),
        cluster.get("/apis/crd.projectcalico.org/v1/felixconfigurations/default"),
        cluster.get(
            "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices\
             ?labelSelector=kubernetes.io%2Fservice-name%3Dkube-dns"
        ),
        cluster.metadata("/api/v1/namespaces"),
    );
    findings.push(nodes.map_or_else(|why| HERE.unknown("nodes", why), |nodes| judge_nodes(&nodes)));
    findings.push(judge_network(&cilium, &calico));
    findings.push(dns.map_or_else(|why| HERE.unknown("dns", why), |slices| judge_dns(&slices)));
    findings.push(match namespaces {
        Ok(namespaces) => judge_namespaces(&namespaces),
        Err(why) => HERE.unknown("namespaces", why),
    });
    if let Some(namespace) = before {
        findings.push(permissions(cluster, namespace).await);
    }
    findings
}

fn judge_version(version: &Value) -> Finding {
    let name = version["gitVersion"].as_str().unwrap_or("of no version").trim_start_matches('v');
    match numbers(name) {
        Some((1, minor)) if minor < MINOR => HERE.failed(
            "version",
            format!("Kubernetes {name} starts no native sidecars"),
            format!("update it to 1.{MINOR} or later"),
        ),
        Some(_) => HERE.ok("version", format!("Kubernetes {name}")),
        None => HERE.unknown("version", format!("the API server says it is {name}")),
    }
}

fn judge_nodes(nodes: &Value) -> Finding {
    let nodes = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
    let mut unfit = Vec::new();
    for node in nodes {
        let info = &node["status"]["nodeInfo"];
        let said = |field: &str| info[field].as_str().unwrap_or_default();
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        if said("operatingSystem") == "windows" {
            continue;
        }
        let kubelet = said("kubeletVersion").trim_start_matches('v');
        if numbers(kubelet).is_some_and(|version| version < (1, MINOR)) {
            unfit.push(format!("{name} (kubelet {kubelet})"));
        } else if numbers(said("kernelVersion")).is_some_and(|version| version < KERNEL) {
            unfit.push(format!("{name} (kernel {})", said("kernelVersion")));
        }
    }
    if unfit.is_empty() {
        return HERE.ok("nodes", format!("{} nodes, of which each can run sidecars", nodes.len()));
    }
    let (major, minor) = KERNEL;
    HERE.failed(
        "nodes",
        format!("Pods with sidecars do not start or are not captured on {}", some(&unfit)),
        format!(
            "update them to kubelet 1.{MINOR} and kernel {major}.{minor} or later, or keep such Pods away"
        ),
    )
}

/// Two networks translate a Service's address as soon as an application says `connect`: nothing is left to balance.
fn judge_network(cilium: &Result<Value, Refusal>, calico: &Result<Value, Refusal>) -> Finding {
    const NAME: &str = "cni";
    if let Ok(config) = cilium {
        let is = |key: &str| config["data"][key].as_str() == Some("true");
        let translates = is("bpf-lb-sock") || is("kube-proxy-replacement");
        if translates && !is("bpf-lb-sock-hostns-only") {
            return HERE.failed(
                NAME,
                "Cilium translates connections of Pods at the socket: none would come to a sidecar",
                "set socketLB.hostNamespaceOnly: true in its values, and restart its agents",
            );
        }
        return HERE.ok(NAME, "Cilium leaves connections of Pods to their network");
    }
    if let Ok(config) = calico {
        let spec = &config["spec"];
        let is_off = spec["bpfConnectTimeLoadBalancing"] == "Disabled"
            || spec["bpfConnectTimeLoadBalancingEnabled"] == false;
        if spec["bpfEnabled"] == true && !is_off {
            return HERE.failed(
                NAME,
                "Calico translates connections of Pods at the socket: none would come to a sidecar",
                "set bpfConnectTimeLoadBalancing: Disabled in the FelixConfiguration default",
            );
        }
        return HERE.ok(NAME, "Calico leaves connections of Pods to their network");
    }
    let mut refused = [cilium, calico].into_iter().filter_map(|config| config.as_ref().err());
    match refused.find(|why| **why != Refusal::Absent) {
        Some(why) => HERE.unknown(NAME, why),
        None => HERE.ok(NAME, "no network is known here that hides connections from sidecars"),
    }
}

fn judge_dns(slices: &Value) -> Finding {
    let slices = slices["items"].as_array().map_or(&[][..], Vec::as_slice);
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    match endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false).count() {
        0 => HERE.warning(
            "dns",
            "the Service kube-dns in kube-system has no ready endpoint",
            "see that the cluster's DNS runs; if it has another name, all is well",
        ),
        ready => HERE.ok("dns", format!("{ready} endpoints of kube-dns are ready")),
    }
}

/// Namespaces whose Pods get sidecars, and what keeps them from it.
fn judge_namespaces(namespaces: &[Value]) -> Finding {
    const NAME: &str = "namespaces";
    let label = |namespace: &Value, label: &str| namespace["labels"][label].as_str().map(str::to_owned);
    let labelled: Vec<_> = namespaces
        .iter()
        .filter(|namespace| label(namespace, INJECT).as_deref() == Some("enabled"))
        .collect();
    let named = |which: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let names = labelled.iter().filter(|namespace| which(namespace));
        names.map(|namespace| namespace["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let meshed = named(&|namespace| {
        label(namespace, "istio.io/dataplane-mode").as_deref() == Some("ambient")
            || label(namespace, "istio-injection").as_deref() == Some("enabled")
    });
    if !meshed.is_empty() {
        return HERE.warning(
            NAME,
            format!("Istio takes the connections of Pods in {}: they are skipped", some(&meshed)),
            "use the filter there (envoy/README.md), or take one of the two labels away",
        );
    }
    let strict = named(&|namespace| {
        let level = label(namespace, "pod-security.kubernetes.io/enforce");
        matches!(level.as_deref(), Some("baseline" | "restricted"))
    });
    if !strict.is_empty() {
        return HERE.warning(
            NAME,
            format!("Pod Security forbids capture in {}", some(&strict)),
            "annotate Pods there with remora.dev/listen and connect to that, or enforce privileged",
        );
    }
    match &named(&|_| true)[..] {
        [] => HERE.ok(NAME, format!("none has the label {INJECT}=enabled yet")),
        names => HERE.ok(NAME, format!("Pods get sidecars in {}", some(names))),
    }
}

async fn permissions(cluster: &Cluster, namespace: &str) -> Finding {
    const NAME: &str = "permissions";
    let mut missing = Vec::new();
    for (group, resource, is_within) in MADE {
        let within = if is_within { namespace } else { "" };
        let attributes = json!({"verb": "create", "group": group, "resource": resource, "namespace": within});
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        match cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await {
            Ok(answer) if answer["status"]["allowed"] == true => {}
            Ok(_) => missing.push(resource.to_owned()),
            Err(why) => return HERE.unknown(NAME, why),
        }
    }
    if missing.is_empty() {
        return HERE.ok(NAME, format!("you may install into namespace {namespace}"));
    }
    HERE.failed(
        NAME,
        format!("you may not create {}", missing.join(", ")),
        "ask somebody who may; installing makes a ClusterRole and a webhook",
    )
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A few names of many.
pub(super) fn some(names: &[String]) -> String {
    match names {
        [few @ .., _, _] if few.len() > 4 => {
            format!("{} and {} more", names[..5].join(", "), names.len() - 5)
        }
        few => few.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome;
    use super::*;

    fn list(items: Value) -> Value {
        json!({"items": items})
    }

    #[test]
    fn an_api_server_that_knows_no_native_sidecars_fails() {
        let judge = |version: &str| judge_version(&json!({"gitVersion": version})).outcome;
        assert_eq!(judge("v1.28.9"), Outcome::Failed);
        assert_eq!(judge("v1.29.0-eks-1"), Outcome::Ok);
        assert_eq!(judge("v2.0.0"), Outcome::Ok);
        assert_eq!(judge("unknown"), Outcome::Warning);
    }

    #[test]
    fn each_unfit_node_is_named_with_what_is_old() {
        let node = |name: &str, kubelet: &str, kernel: &str, os: &str| {
            let info = json!({"kubeletVersion": kubelet, "kernelVersion": kernel, "operatingSystem": os});
            json!({"metadata": {"name": name}, "status": {"nodeInfo": info}})
        };
        let good = node("a", "v1.37.2", "6.18.1-cloud", "linux");
        let windows = node("w", "v1.20.0", "10.0.17763", "windows");
        assert_eq!(judge_nodes(&list(json!([good, windows]))).outcome, Outcome::Ok);
        let old = [node("b", "v1.27.1", "6.1.0", "linux"), node("c", "v1.31.0", "4.18.0-553.el8", "linux")];
        let finding = judge_nodes(&list(json!(old)));
        assert_eq!(finding.outcome, Outcome::Failed);
        assert!(finding.says.contains("b (kubelet 1.27.1), c (kernel 4.18.0-553.el8)"), "{}", finding.says);
    }

    #[test]
    fn networks_that_translate_at_the_socket_fail() {
        let absent = || Err(Refusal::Absent);
        let cilium = |data: Value| judge_network(&Ok(json!({"data": data})), &absent()).outcome;
        assert_eq!(cilium(json!({"kube-proxy-replacement": "true"})), Outcome::Failed);
        assert_eq!(cilium(json!({"bpf-lb-sock": "true"})), Outcome::Failed);
        assert_eq!(cilium(json!({"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true"})), Outcome::Ok);
        assert_eq!(cilium(json!({"kube-proxy-replacement": "false"})), Outcome::Ok);
        let calico = |spec: Value| judge_network(&absent(), &Ok(json!({"spec": spec}))).outcome;
        assert_eq!(calico(json!({"bpfEnabled": true})), Outcome::Failed);
        assert_eq!(
            calico(json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled"})),
            Outcome::Ok
        );
        assert_eq!(calico(json!({})), Outcome::Ok);
        assert_eq!(judge_network(&absent(), &absent()).outcome, Outcome::Ok);
        let forbidden = Err(Refusal::Forbidden("no".to_owned()));
        assert_eq!(judge_network(&forbidden, &absent()).outcome, Outcome::Warning);
    }

    #[test]
    fn what_keeps_pods_of_labelled_namespaces_from_capture_is_told() {
        let namespace = |name: &str, more: Value| {
            let mut labels = json!({"remora.dev/inject": "enabled"});
            labels.as_object_mut().expect("labels").extend(more.as_object().expect("labels").clone());
            json!({"name": name, "labels": labels})
        };
        let plain = namespace("shop", json!({}));
        let bare = json!({"name": "other", "labels": {"istio-injection": "enabled"}});
        let finding = judge_namespaces(&[plain.clone(), bare]);
        assert_eq!((finding.outcome, &*finding.says), (Outcome::Ok, "Pods get sidecars in shop"));
        let strict = namespace("bank", json!({"pod-security.kubernetes.io/enforce": "baseline"}));
        let finding = judge_namespaces(&[plain.clone(), strict]);
        assert_eq!(finding.says, "Pod Security forbids capture in bank");
        let meshed = namespace("mesh", json!({"istio.io/dataplane-mode": "ambient"}));
        assert_eq!(judge_namespaces(&[plain, meshed]).outcome, Outcome::Warning);
    }

    #[test]
    fn a_dns_without_a_ready_endpoint_is_to_be_looked_at() {
        let slice = |ready: bool| list(json!([{"endpoints": [{"conditions": {"ready": ready}}]}]));
        assert_eq!(judge_dns(&slice(true)).outcome, Outcome::Ok);
        assert_eq!(judge_dns(&slice(false)).outcome, Outcome::Warning);
        assert_eq!(judge_dns(&list(json!([]))).outcome, Outcome::Warning);
    }

    #[test]
    fn of_many_names_a_few_are_told() {
        let names: Vec<_> = (0..9).map(|number| number.to_string()).collect();
        assert_eq!(some(&names), "0, 1, 2, 3, 4 and 4 more");
        assert_eq!(some(&names[..6]), "0, 1, 2, 3, 4, 5");
    }
}
