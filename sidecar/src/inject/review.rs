//! One question of the API server: what a Pod that is about to be made gets. In: an AdmissionReview (admission.k8s.io/v1).
//! Out: the answer to it, always yes, with a JSON patch (RFC 6902) if the Pod gets a sidecar. Never forbids a Pod.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use watcher::kubernetes::{About, Notice};

use super::pod::{Additions, Around, Settings, Skip, additions};

/// Longer warnings are cut by the API server.
const WARNING: usize = 256;

/// The answer to a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reviewed {
    /// An AdmissionReview.
    pub(super) answer: Vec<u8>,
    /// A stable word: `injected`, or why not.
    pub(super) outcome: &'static str,
    /// What is told about a Pod that was meant to have a sidecar and is made without one.
    pub(super) notice: Option<Notice>,
}

/// What was asked is no AdmissionReview of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no AdmissionReview of admission.k8s.io/v1 about a Pod; the MutatingWebhookConfiguration is to name pods and \
     admissionReviewVersions: [v1]"
)]
pub(super) struct Malformed;

/// Answers `body`. `around` tells how a namespace is, `None` if that is not known yet.
pub(super) fn review(
    body: &[u8],
    settings: &Settings,
    around: impl Fn(&str) -> Option<Around>,
) -> Result<Reviewed, Malformed> {
    let review: Value = serde_json::from_slice(body).map_err(|_| Malformed)?;
    let request = &review["request"];
    let uid = request["uid"].as_str().ok_or(Malformed)?;
    if review["apiVersion"] != "admission.k8s.io/v1" || request["kind"]["kind"] != "Pod" {
        return Err(Malformed);
    }
    let pod = Some(&request["object"]).filter(|pod| pod["spec"].is_object()).ok_or(Malformed)?;
    let namespace = request["namespace"].as_str().unwrap_or("default");
    let added = around(namespace).ok_or(Skip::Namespace(namespace.to_owned()));
    let mut response = json!({"uid": uid, "allowed": true});
    let mut notice = None;
    let (outcome, warning) = match added.and_then(|around| additions(pod, &around, settings)) {
        Ok(additions) => {
            let patch = patch(pod, &additions).to_string();
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(patch));
            ("injected", additions.note.map(|note| format!("injected {note}")))
        }
        Err(skip) => {
            // Of a dry run there is no Pod.
            let is_told = request["dryRun"] != true && skip.was_wanted();
            notice = is_told.then(|| Notice {
                about: about(pod, namespace),
                is_warning: skip.is_mistake(),
                reason: "InjectionSkipped",
                action: "Inject",
                note: format!("a Pod is made without a sidecar: {skip}"),
            });
            (skip.label(), skip.is_mistake().then(|| format!("skipped: {skip}")))
        }
    };
    if let Some(mut warning) = warning.map(|warning| format!("remora: {warning}")) {
        warning.truncate(warning.floor_char_boundary(WARNING));
        response["warnings"] = json!([warning]);
    }
    let answer =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(Reviewed { answer: answer.to_string().into_bytes(), outcome, notice })
}

/// Where people look for what became of `pod`: at what makes it, which is there. A Pod that is made by nobody is named
/// without its uid: it has none before it is admitted.
fn about(pod: &Value, namespace: &str) -> About {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &pod["metadata"];
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    match owners.into_iter().find(|owner| owner["controller"] == true) {
        Some(owner) => About::Object {
            api_version: text(&owner["apiVersion"]),
            kind: text(&owner["kind"]),
            namespace: namespace.to_owned(),
            name: text(&owner["name"]),
            uid: owner["uid"].as_str().map(str::to_owned),
        },
        // Of a name that the API server is to complete, what it begins with; a name never ends like that.
        None => About::Object {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: namespace.to_owned(),
            name: metadata["name"]
                .as_str()
                .or(metadata["generateName"].as_str())
                .unwrap_or_default()
                .trim_end_matches(['-', '.'])
                .to_owned(),
            uid: None,
        },
    }
}

/// The steps that add `additions` to `pod`, each of which only adds.
fn patch(pod: &Value, additions: &Additions) -> Value {
    let add = |path: String, value: Value| json!({"op": "add", "path": path, "value": value});
    let mut steps = Vec::new();
    if !pod["metadata"]["annotations"].is_object() {
        steps.push(add("/metadata/annotations".to_owned(), json!({})));
    }
    for (key, value) in &additions.annotations {
        let escaped = key.replace('~', "~0").replace('/', "~1");
        steps.push(add(format!("/metadata/annotations/{escaped}"), json!(value)));
    }
    if !pod["spec"]["initContainers"].is_array() {
        steps.push(add("/spec/initContainers".to_owned(), json!([])));
    }
    for (at, container) in additions.init_containers.iter().enumerate() {
        steps.push(add(format!("/spec/initContainers/{at}"), json!(container)));
    }
    if !additions.volumes.is_empty() && !pod["spec"]["volumes"].is_array() {
        steps.push(add("/spec/volumes".to_owned(), json!([])));
    }
    for (at, volume) in additions.volumes.iter().enumerate() {
        steps.push(add(format!("/spec/volumes/{at}"), json!(volume)));
    }
    steps.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            image: "remora:1".into(),
            services: Vec::new(),
            source: "kube".into(),
            feed_ca: None,
            feed_audience: "remora".into(),
        }
    }

    fn question(pod: Value) -> Vec<u8> {
        let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
        let request = json!({"uid": "u-1", "kind": kind, "namespace": "shop", "object": pod});
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
            .to_string()
            .into_bytes()
    }

    /// The answer, and the patch in it.
    fn answer(pod: Value, around: Option<Around>) -> (Value, Value, &'static str) {
        let reviewed = review(&question(pod), &settings(), |_| around.clone()).unwrap();
        let answer: Value = serde_json::from_slice(&reviewed.answer).unwrap();
        assert_eq!(
            (&answer["response"]["uid"], &answer["response"]["allowed"]),
            (&json!("u-1"), &json!(true))
        );
        let patch = answer["response"]["patch"].as_str().map(|patch| STANDARD.decode(patch).unwrap());
        let patch = patch.map_or(Value::Null, |patch| serde_json::from_slice(&patch).unwrap());
        (answer["response"].clone(), patch, reviewed.outcome)
    }

    #[test]
    fn a_pod_gets_what_it_lacks_in_front_of_what_it_has() {
        let paths = |patch: &Value| -> Vec<String> {
            patch.as_array().unwrap().iter().map(|step| step["path"].as_str().unwrap().to_owned()).collect()
        };
        let bare = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}});
        let (response, patch, outcome) = answer(bare, Some(Around::default()));
        assert_eq!((outcome, &response["patchType"]), ("injected", &json!("JSONPatch")));
        let both = ["/spec/initContainers/0", "/spec/initContainers/1"];
        assert_eq!(
            paths(&patch),
            [
                &[
                    "/metadata/annotations",
                    "/metadata/annotations/remora.dev~1injected",
                    "/spec/initContainers"
                ],
                &both[..]
            ]
            .concat()
        );
        let full = json!({
            "metadata": {"annotations": {"a": "b"}},
            "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]},
        });
        let (_, patch, _) = answer(full, Some(Around::default()));
        assert_eq!(paths(&patch), [&["/metadata/annotations/remora.dev~1injected"], &both[..]].concat());
    }

    #[test]
    fn a_pod_is_let_through_whatever_is_wrong_with_it() {
        let pod = |annotations: Value| json!({"metadata": {"annotations": annotations}, "spec": {"containers": []}});
        let around = Some(Around::default());
        let (response, patch, outcome) = answer(pod(json!({"remora.dev/listen": "x"})), around.clone());
        assert_eq!((outcome, patch), ("annotation", Value::Null));
        assert!(
            response["warnings"][0].as_str().unwrap().starts_with("remora: skipped: an annotation is wrong")
        );
        let (response, patch, outcome) = answer(pod(json!({"remora.dev/inject": "disabled"})), around);
        assert_eq!((outcome, patch, &response["warnings"]), ("opted-out", Value::Null, &Value::Null));
        let (_, patch, outcome) = answer(pod(json!({})), None);
        assert_eq!((outcome, patch), ("namespace", Value::Null));
    }

    #[test]
    fn what_makes_a_pod_is_told_that_it_has_no_sidecar() {
        let notice = |pod: &Value, is_dry: bool| {
            let mut question: Value = serde_json::from_slice(&question(pod.clone())).unwrap();
            question["request"]["dryRun"] = is_dry.into();
            let around = |_: &str| Some(Around::default());
            review(question.to_string().as_bytes(), &settings(), around).unwrap().notice
        };
        let mut pod = json!({
            "metadata": {
                "generateName": "web-",
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "u-0"},
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u-1", "controller": true},
                ],
            },
            "spec": {"hostNetwork": true, "containers": [{"name": "a"}]},
        });
        let told = notice(&pod, false).expect("a notice");
        let of = |api_version: &str, kind: &str, name: &str, uid: Option<&str>| About::Object {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: uid.map(str::to_owned),
        };
        assert_eq!(told.about, of("apps/v1", "ReplicaSet", "web", Some("u-1")));
        assert!(!told.is_warning && told.note.contains("hostNetwork"), "{told:?}");
        assert_eq!(notice(&pod, true), None, "a dry run");
        pod["metadata"] = json!({"name": "web", "annotations": {"remora.dev/capture": "maybe"}});
        pod["spec"]["hostNetwork"] = false.into();
        let told = notice(&pod, false).expect("a notice");
        assert_eq!((told.about, told.is_warning), (of("v1", "Pod", "web", None), true));
        for settled in
            [json!({"remora.dev/inject": "disabled"}), json!({"remora.dev/injected": "1"}), json!({})]
        {
            pod["metadata"]["annotations"] = settled;
            assert_eq!(notice(&pod, false), None, "{pod}");
        }
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let question = question(json!({"spec": {}}));
        for spoiled in [
            &b"not json"[..],
            b"{}",
            b"[]",
            br#"{"apiVersion": "admission.k8s.io/v1", "request": {"uid": "u", "kind": {"kind": "Pod"}, "object": 7}}"#,
        ] {
            assert_eq!(review(spoiled, &settings(), |_| None), Err(Malformed));
        }
        for end in 0..question.len() {
            assert_eq!(review(&question[..end], &settings(), |_| None), Err(Malformed));
        }
    }
}
