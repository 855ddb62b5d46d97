//! What is installed: the hub, its webhook and certificates, and the sidecars that it made. In: objects of the Kubernetes
//! API, as JSON, and what the API server does with a Pod that is never made. Out: findings.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use watcher::kubernetes::{Cluster, Refusal};
use x509_parser::pem::Pem;
use x509_parser::time::ASN1Time;

use super::cluster::some;
use super::finding::{Finding, Section};
use crate::marks::{INJECT, INJECTED};

const HERE: Section = Section::Remora;

/// What the chart calls its things.
const LABELS: &str = "labelSelector=app.kubernetes.io%2Fname%3Dremora";
/// Namespaces whose Pods get sidecars.
const LABELLED: &str = "/api/v1/namespaces?labelSelector=remora.dev%2Finject%3Denabled";
/// Where a sidecar tells how it is, and where a hub feeds it.
const HEALTH: u16 = 64104;
const FEED: u64 = 64105;
/// Sidecars that are asked how old their table is.
const ASKED: usize = 10;
/// A table that was in step so long ago is old, in seconds.
const OLD: f64 = 60.0;
/// A certificate with fewer days is to be looked at: whoever renews it should have.
const DAYS: i64 = 7;
/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Checks it.
pub(super) async fn check(cluster: &Cluster) -> Vec<Finding> {
    let configurations =
        format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations?{LABELS}");
    let deployments = format!("/apis/apps/v1/deployments?{LABELS},app.kubernetes.io%2Fcomponent%3Dhub");
    let (hubs, webhooks, namespaces, policies, pods) = tokio::join!(
        cluster.get(&deployments),
        cluster.get(&configurations),
        cluster.metadata(LABELLED),
        cluster.get("/apis/networking.k8s.io/v1/networkpolicies"),
        cluster.metadata("/api/v1/pods"),
    );
    let namespaces: Vec<_> =
        namespaces.unwrap_or_default().iter().map(|namespace| text(&namespace["name"]).to_owned()).collect();
    let mut findings =
        vec![hubs.as_ref().map_or_else(|why| HERE.unknown("hub", why), |hubs| judge_hubs(items(hubs)))];
    if let Some(path) = hubs.iter().flat_map(items).find_map(secret) {
        findings.push(match cluster.get(&path).await {
            Ok(secret) => judge_certificate(
                "certificate",
                "the hub's certificate",
                ends(&secret["data"]["tls.crt"]).first().copied(),
            ),
            Err(why) => HERE.unknown("certificate", why),
        });
    }
    match webhooks.as_ref().map(items) {
        Ok([]) => findings.push(HERE.warning(
            "webhook",
            "there is none: Pods get sidecars by remora inject only",
            "install the chart with its webhook, or go on without",
        )),
        Ok(webhooks) => {
            findings.push(judge_webhooks(webhooks));
            findings.extend(webhooks.iter().filter_map(trusted).map(|bundle| {
                judge_certificate(
                    "authority",
                    "what the API server trusts of the webhook",
                    ends(bundle).into_iter().max(),
                )
            }));
            findings.push(injection(cluster, &namespaces).await);
        }
        Err(why) => findings.push(HERE.unknown("webhook", why)),
    }
    findings.push(match policies {
        Ok(policies) => judge_egress(items(&policies), &namespaces),
        Err(why) => HERE.unknown("egress", why),
    });
    match pods {
        Ok(pods) => {
            let injected: Vec<_> =
                pods.iter().filter(|pod| pod["annotations"][INJECTED].is_string()).collect();
            findings.push(judge_versions(&injected));
            if !injected.is_empty() {
                findings.push(tables(cluster, &injected).await);
            }
        }
        Err(why) => findings.push(HERE.unknown("sidecars", why)),
    }
    findings
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn judge_hubs(hubs: &[Value]) -> Finding {
    const NAME: &str = "hub";
    let named =
        |hub: &Value| format!("{}/{}", text(&hub["metadata"]["namespace"]), text(&hub["metadata"]["name"]));
    let available = |hub: &Value| hub["status"]["availableReplicas"].as_u64().unwrap_or(0);
    if hubs.is_empty() {
        return HERE.failed(
            NAME,
            "no hub is installed",
            "install it, see the README; before that, remora check --pre",
        );
    }
    for hub in hubs {
        let (available, wanted) = (available(hub), hub["spec"]["replicas"].as_u64().unwrap_or(1));
        let says = format!("{available} of {wanted} replicas of {} are available", named(hub));
        let next =
            format!("see kubectl describe and logs of the Pods in {}", text(&hub["metadata"]["namespace"]));
        match available {
            0 => return HERE.failed(NAME, says, next),
            _ if available < wanted => return HERE.warning(NAME, says, next),
            _ => {}
        }
        let version = text(&hub["metadata"]["labels"]["app.kubernetes.io/version"]);
        if version != VERSION {
            let says = format!("{} is {version}, this program {VERSION}", named(hub));
            return HERE.warning(NAME, says, "update one of them; two releases apart understand each other");
        }
    }
    let all: Vec<_> = hubs.iter().map(|hub| format!("{} ({})", named(hub), available(hub))).collect();
    HERE.ok(NAME, format!("available with all replicas: {}", some(&all)))
}

/// The path of the Secret with a hub's certificate.
fn secret(hub: &Value) -> Option<String> {
    let pod = &hub["spec"]["template"]["spec"];
    let own = text(&hub["metadata"]["namespace"]);
    let mounted = pod["volumes"].as_array().into_iter().flatten();
    let mounted = mounted.filter(|volume| volume["name"] == "certificate");
    let mut mounted = mounted.filter_map(|volume| volume["secret"]["secretName"].as_str());
    let arguments = pod["containers"].as_array().into_iter().flatten();
    let arguments = arguments.filter_map(|container| container["args"].as_array()).flatten();
    let mut made = arguments.filter_map(|argument| text(argument).strip_prefix("--certificate=secret:"));
    let (namespace, name) = match made.next() {
        Some(place) => place.split_once('/').unwrap_or((own, place)),
        None => (own, mounted.next()?),
    };
    Some(format!("/api/v1/namespaces/{namespace}/secrets/{name}"))
}

fn judge_webhooks(configurations: &[Value]) -> Finding {
    const NAME: &str = "webhook";
    let hooks = || configurations.iter().filter_map(|one| one["webhooks"].as_array()).flatten();
    let name = text(&configurations[0]["metadata"]["name"]);
    if configurations.iter().any(|one| trusted(one).is_none()) {
        return HERE.failed(
            NAME,
            format!("the API server trusts nobody to be the webhook of {name}: caBundle is empty"),
            "see the hub's log: it writes that, if --webhook-configuration names this configuration",
        );
    }
    if hooks().any(|hook| hook["failurePolicy"] != "Ignore") {
        return HERE.warning(
            NAME,
            format!("{name} stops Pods while no hub answers: failurePolicy is Fail"),
            "set failurePolicy: Ignore",
        );
    }
    HERE.ok(NAME, format!("{name} is registered, and stops no Pod if nobody answers"))
}

/// Whom the API server trusts to be a webhook.
fn trusted(configuration: &Value) -> Option<&Value> {
    let bundle = &configuration["webhooks"][0]["clientConfig"]["caBundle"];
    Some(bundle).filter(|bundle| !text(bundle).is_empty())
}

/// When each certificate of `pem`, PEM in Base64, ends.
fn ends(pem: &Value) -> Vec<ASN1Time> {
    let pem = STANDARD.decode(text(pem)).unwrap_or_default();
    let blocks = Pem::iter_from_buffer(&pem).filter_map(Result::ok);
    blocks.filter_map(|block| Some(block.parse_x509().ok()?.validity().not_after)).collect()
}

fn judge_certificate(name: &'static str, what: &str, end: Option<ASN1Time>) -> Finding {
    let Some(end) = end else {
        return HERE.failed(
            name,
            format!("{what} cannot be read"),
            "delete the Secret: the hub makes another",
        );
    };
    let days = (end.timestamp() - ASN1Time::now().timestamp()).div_euclid(86_400);
    let says = format!("{what} is good for {days} more days");
    match days {
        ..0 => {
            HERE.failed(name, format!("{what} ended on {end}"), "see the hub's log why it was not renewed")
        }
        0..DAYS => HERE.warning(name, says, "see the hub's log why it was not renewed"),
        _ => HERE.ok(name, says),
    }
}

/// Has a Pod made that is never there: comes it back with a sidecar, then the API server reaches the webhook.
async fn injection(cluster: &Cluster, namespaces: &[String]) -> Finding {
    const NAME: &str = "injection";
    let namespace = namespaces.first().map_or("default", String::as_str);
    let context = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65534,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "remora-check-", "labels": {INJECT: "enabled"},
            // Where capture is forbidden there is a sidecar only for listeners.
            "annotations": {"remora.dev/listen": "127.0.0.1:64100=default/kubernetes:443"},
        },
        "spec": {"containers": [{"name": "check", "image": "check", "securityContext": context}]},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
    match cluster.post(&path, &pod).await {
        Ok(pod) if pod["metadata"]["annotations"][INJECTED].is_string() => {
            HERE.ok(NAME, format!("a Pod in {namespace} gets a sidecar (tried without making it)"))
        }
        Ok(_) => HERE.failed(
            NAME,
            format!("a Pod in {namespace} gets no sidecar: the API server does not reach the webhook, or it declines"),
            "see the hub's log, and whether the control plane may connect to its Pods at port 64106",
        ),
        Err(Refusal::Invalid(why)) => HERE.failed(NAME, why, "see which other webhook or policy refuses it"),
        Err(why) => HERE.unknown(NAME, why),
    }
}

/// Whether Pods may connect to the hub.
fn judge_egress(policies: &[Value], namespaces: &[String]) -> Finding {
    const NAME: &str = "egress";
    // One rule that allows it is enough, and without any there is no restriction: (restricts, allows) by namespace.
    let mut found = BTreeMap::<&str, (bool, bool)>::new();
    for policy in policies {
        let namespace = text(&policy["metadata"]["namespace"]);
        let spec = &policy["spec"];
        let kinds = spec["policyTypes"].as_array().into_iter().flatten();
        if !namespaces.iter().any(|name| name == namespace) || !kinds.into_iter().any(|kind| kind == "Egress")
        {
            continue;
        }
        let (restricts, allows) = found.entry(namespace).or_default();
        *restricts = true;
        *allows |= spec["egress"].as_array().into_iter().flatten().any(allows_feed);
    }
    let closed: Vec<_> =
        found.iter().filter(|(_, (_, allows))| !allows).map(|(name, _)| (*name).to_owned()).collect();
    if closed.is_empty() {
        return HERE.ok(NAME, "no NetworkPolicy keeps sidecars from the hub");
    }
    HERE.warning(
        NAME,
        format!("NetworkPolicies in {} allow no egress to the hub", some(&closed)),
        format!("allow TCP to the hub's Pods at port {FEED} there; until then sidecars have no table and pass all on"),
    )
}

fn allows_feed(rule: &Value) -> bool {
    let Some(ports) = rule["ports"].as_array().filter(|ports| !ports.is_empty()) else { return true };
    ports.iter().any(|port| {
        let first = &port["port"];
        let last = port["endPort"].as_u64().or(first.as_u64()).unwrap_or(0);
        let is_tcp = matches!(port["protocol"].as_str(), None | Some("TCP"));
        is_tcp
            && (first.is_null()
                || first == "feed"
                || first.as_u64().is_some_and(|first| (first..=last).contains(&FEED)))
    })
}

fn judge_versions(injected: &[&Value]) -> Finding {
    const NAME: &str = "sidecars";
    let mut versions = BTreeMap::<&str, usize>::new();
    for pod in injected {
        *versions.entry(text(&pod["annotations"][INJECTED])).or_default() += 1;
    }
    let all: Vec<_> = versions.iter().map(|(version, count)| format!("{count} of {version}")).collect();
    match &all[..] {
        [] => HERE.ok(NAME, "no Pod has a sidecar yet"),
        _ if versions.keys().all(|version| *version == VERSION) => {
            HERE.ok(NAME, format!("Pods with sidecars: {}", some(&all)))
        }
        _ => HERE.warning(
            NAME,
            format!("Pods with sidecars: {}", some(&all)),
            format!("restart those that are not {VERSION}, such as by kubectl rollout restart"),
        ),
    }
}

/// Asks a few sidecars for the age of their tables.
async fn tables(cluster: &Cluster, injected: &[&Value]) -> Finding {
    let asked = injected.iter().take(ASKED).map(async |pod| {
        let name = format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:{HEALTH}/proxy/metrics",
            text(&pod["namespace"]),
            text(&pod["name"])
        );
        (name, cluster.text(&path).await.map(|page| age(&page)))
    });
    judge_tables(futures::future::join_all(asked).await)
}

/// The age of the table in a page of metrics, in seconds.
fn age(metrics: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix("remora_table_age_seconds "))?.parse().ok()
}

fn judge_tables(asked: Vec<(String, Result<Option<f64>, Refusal>)>) -> Finding {
    const NAME: &str = "tables";
    let number = asked.len();
    let (mut old, mut silent, mut oldest) = (Vec::new(), Vec::new(), 0.0_f64);
    for (name, answer) in asked {
        match answer {
            Ok(Some(age)) if age < OLD => oldest = oldest.max(age),
            Ok(Some(age)) => old.push(format!("{name} ({age:.0} s)")),
            Ok(None) => old.push(format!("{name} (none)")),
            Err(why @ Refusal::Forbidden(_)) => return HERE.unknown(NAME, why),
            Err(_) => silent.push(name),
        }
    }
    if !old.is_empty() {
        return HERE.warning(
            NAME,
            format!("sidecars without a table, or with an old one: {}", some(&old)),
            "see their logs whether they reach the hub; what they know serves on",
        );
    }
    if !silent.is_empty() {
        return HERE.warning(
            NAME,
            format!("sidecars that do not answer the API server: {}", some(&silent)),
            format!(
                "see whether the control plane may connect to Pods at port {HEALTH}; nothing else needs that"
            ),
        );
    }
    HERE.ok(
        NAME,
        format!("{number} sidecars were asked: no table was out of step for more than {oldest:.0} s"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome;
    use super::*;

    fn hub(available: u64, version: &str) -> Value {
        json!({
            "metadata": {"namespace": "remora", "name": "remora-hub", "labels": {"app.kubernetes.io/version": version}},
            "spec": {"replicas": 2, "template": {"spec": {"containers": [
                {"args": ["hub", "--certificate=secret:remora/remora-hub-certificate"]}
            ]}}},
            "status": {"availableReplicas": available},
        })
    }

    #[test]
    fn a_hub_works_with_one_replica_and_should_have_all() {
        assert_eq!(judge_hubs(&[]).outcome, Outcome::Failed);
        assert_eq!(judge_hubs(&[hub(0, VERSION)]).outcome, Outcome::Failed);
        assert_eq!(judge_hubs(&[hub(1, VERSION)]).outcome, Outcome::Warning);
        assert_eq!(judge_hubs(&[hub(2, "0.0.0")]).outcome, Outcome::Warning);
        assert_eq!(judge_hubs(&[hub(2, VERSION)]).outcome, Outcome::Ok);
    }

    #[test]
    fn the_secret_of_a_hub_is_found_mounted_or_made() {
        let path = "/api/v1/namespaces/remora/secrets/remora-hub-certificate";
        assert_eq!(secret(&hub(1, VERSION)).as_deref(), Some(path));
        let mounted = json!({
            "metadata": {"namespace": "remora"},
            "spec": {"template": {"spec": {"volumes": [
                {"name": "certificate", "secret": {"secretName": "remora-hub-certificate"}}
            ]}}},
        });
        assert_eq!(secret(&mounted).as_deref(), Some(path));
        assert_eq!(secret(&json!({})), None);
    }

    #[test]
    fn a_webhook_that_nobody_trusts_fails_and_one_that_stops_pods_is_told() {
        let configuration = |bundle: &str, policy: &str| {
            let hook = json!({"clientConfig": {"caBundle": bundle}, "failurePolicy": policy});
            judge_webhooks(&[json!({"metadata": {"name": "remora-hub"}, "webhooks": [hook]})]).outcome
        };
        assert_eq!(configuration("", "Ignore"), Outcome::Failed);
        assert_eq!(configuration("QQ==", "Fail"), Outcome::Warning);
        assert_eq!(configuration("QQ==", "Ignore"), Outcome::Ok);
    }

    #[test]
    fn the_days_of_a_certificate_are_told() {
        let judge = |pem: String| judge_certificate("certificate", "it", ends(&json!(pem)).first().copied());
        assert_eq!(judge("no PEM".to_owned()).outcome, Outcome::Failed);
        let key = rcgen::KeyPair::generate().expect("a key");
        let good_for = |days: i64| {
            let mut params =
                rcgen::CertificateParams::new(["remora-hub.remora.svc".to_owned()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after =
                time::OffsetDateTime::now_utc() + time::Duration::days(days) + time::Duration::hours(1);
            STANDARD.encode(params.self_signed(&key).expect("a certificate").pem())
        };
        assert_eq!(judge(good_for(-2)).outcome, Outcome::Failed);
        assert_eq!(judge(good_for(3)).outcome, Outcome::Warning);
        assert_eq!(judge(good_for(20)).says, "it is good for 20 more days");
        let both = [good_for(-2), good_for(30)].map(|pem| STANDARD.decode(pem).expect("Base64")).concat();
        assert_eq!(ends(&json!(STANDARD.encode(both))).len(), 2);
    }

    #[test]
    fn a_policy_that_closes_the_way_to_the_hub_is_told() {
        let policy = |egress: Value| json!([{"metadata": {"namespace": "shop"}, "spec": {"policyTypes": ["Egress"], "egress": egress}}]);
        let judge = |egress: Value| {
            judge_egress(policy(egress).as_array().expect("a list"), &["shop".to_owned()]).outcome
        };
        assert_eq!(judge(json!([])), Outcome::Warning);
        assert_eq!(judge(json!([{"ports": [{"port": 443}]}])), Outcome::Warning);
        assert_eq!(judge(json!([{"ports": [{"port": 64105, "protocol": "UDP"}]}])), Outcome::Warning);
        assert_eq!(judge(json!([{"to": []}])), Outcome::Ok);
        assert_eq!(judge(json!([{"ports": [{"port": 64000, "endPort": 65000}]}])), Outcome::Ok);
        assert_eq!(judge(json!([{"ports": [{"port": 443}]}, {"ports": [{"port": 64105}]}])), Outcome::Ok);
        let elsewhere = judge_egress(policy(json!([])).as_array().expect("a list"), &[]);
        assert_eq!(elsewhere.outcome, Outcome::Ok);
    }

    #[test]
    fn sidecars_of_other_versions_are_counted() {
        let pod = |version: &str| json!({"annotations": {INJECTED: version}});
        let (mine, old) = (pod(VERSION), pod("0.0.1"));
        assert_eq!(judge_versions(&[]).outcome, Outcome::Ok);
        assert_eq!(judge_versions(&[&mine]).outcome, Outcome::Ok);
        let finding = judge_versions(&[&mine, &old, &old]);
        assert_eq!(finding.outcome, Outcome::Warning);
        assert!(finding.says.contains("2 of 0.0.1"), "{}", finding.says);
    }

    #[test]
    fn old_tables_are_told_before_sidecars_that_cannot_be_asked() {
        let page = "# TYPE x gauge\nremora_table_age_seconds 2.5\n";
        assert_eq!(age(page), Some(2.5));
        let good = || ("shop/a".to_owned(), Ok(age(page)));
        let old = ("shop/b".to_owned(), Ok(Some(90.0)));
        let silent = || ("shop/c".to_owned(), Err(Refusal::Failed("no route".to_owned())));
        assert_eq!(judge_tables(vec![good()]).outcome, Outcome::Ok);
        assert!(judge_tables(vec![good(), silent()]).says.contains("shop/c"));
        assert!(judge_tables(vec![good(), old, silent()]).says.contains("shop/b (90 s)"));
    }
}
