//! What a kubelet writes into the volumes of a Pod. In: the Pod. Out: files for each of its containers. It never changes them
//! later, as a kubelet would.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::text;
use crate::cluster::create;
use crate::{Namespace, wait_until};

/// Where a Pod has its token.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long something that is mounted may take to exist.
const PATIENCE: Duration = Duration::from_secs(60);

/// The files of each volume, by its name, and those that every container has.
pub(super) struct Volumes {
    named: BTreeMap<String, Vec<(String, String)>>,
    everywhere: Vec<(String, String)>,
}

impl Volumes {
    /// Of a Pod that says all that it needs.
    pub(super) async fn of(client: &Client, pod: &Value) -> Volumes {
        let mut named = BTreeMap::new();
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let mut files = Vec::new();
            if let Some(name) = volume["secret"]["secretName"].as_str() {
                files.extend(secret(client, pod, name).await);
            } else {
                for source in volume["projected"]["sources"].as_array().expect("a Secret, or projected") {
                    files.extend(projected(client, pod, source).await);
                }
            }
            named.insert(text(&volume["name"]).to_owned(), files);
        }
        Volumes { named, everywhere: Vec::new() }
    }

    /// The same. Where the API server does not mount the token of the namespace's own ServiceAccount itself, everybody gets
    /// one, which may read what Remora needs.
    pub(super) async fn with_account(namespace: &Namespace, pod: &Value) -> Volumes {
        let mut volumes = Volumes::of(&namespace.client, pod).await;
        let containers = pod["spec"]["initContainers"].as_array().expect("init containers").iter();
        let mut mounts =
            containers.flat_map(|container| container["volumeMounts"].as_array().into_iter().flatten());
        if !mounts.any(|mount| mount["mountPath"] == ACCOUNT) {
            furnish(namespace).await;
            let authority = std::fs::read_to_string(namespace.cluster.authority()).expect("a certificate");
            let token = token(&namespace.client, &namespace.name, "default", &json!({})).await;
            let files = [("token", token), ("ca.crt", authority), ("namespace", namespace.name.clone())];
            volumes.everywhere = files.map(|(name, content)| (format!("{ACCOUNT}/{name}"), content)).into();
        }
        volumes
    }

    /// What a container sees of them: paths, from `/`, and contents.
    pub(super) fn mounted(&self, container: &Value) -> Vec<(String, String)> {
        let mut all = self.everywhere.clone();
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let path = text(&mount["mountPath"]);
            let name = text(&mount["name"]);
            let files = self.named.get(name).unwrap_or_else(|| panic!("there is no volume {name}"));
            all.extend(files.iter().map(|(file, content)| (format!("{path}/{file}"), content.clone())));
        }
        all
    }
}

async fn secret(client: &Client, pod: &Value, name: &str) -> Vec<(String, String)> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), text(&pod["metadata"]["namespace"]));
    let found = wait_until(PATIENCE, &format!("there is a Secret {name}"), async || {
        secrets.get(name).await.map_err(|error| error.to_string())
    })
    .await;
    let content = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, content(value.0))).collect()
}

/// What one source of a projected volume gives.
async fn projected(client: &Client, pod: &Value, source: &Value) -> Vec<(String, String)> {
    let namespace = text(&pod["metadata"]["namespace"]);
    if let Some(wanted) = source.get("serviceAccountToken") {
        let bound = json!({
            "kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
        });
        let mut spec = json!({"expirationSeconds": wanted["expirationSeconds"], "boundObjectRef": bound});
        if let Some(audience) = wanted["audience"].as_str() {
            spec["audiences"] = json!([audience]);
        }
        let account = text(&pod["spec"]["serviceAccountName"]);
        vec![(text(&wanted["path"]).to_owned(), token(client, namespace, account, &spec).await)]
    } else if let Some(wanted) = source.get("configMap") {
        let (maps, name) = (Api::<ConfigMap>::namespaced(client.clone(), namespace), text(&wanted["name"]));
        let found = wait_until(PATIENCE, &format!("there is a ConfigMap {name}"), async || {
            maps.get(name).await.map_err(|error| error.to_string())
        })
        .await;
        let data = found.data.unwrap_or_default();
        let items = wanted["items"].as_array().expect("items").iter();
        items.map(|item| (text(&item["path"]).to_owned(), data[text(&item["key"])].clone())).collect()
    } else if let Some(wanted) = source.get("downwardAPI") {
        let items = wanted["items"].as_array().expect("items").iter();
        let field = |item: &Value| match text(&item["fieldRef"]["fieldPath"]) {
            "metadata.namespace" => namespace.to_owned(),
            other => panic!("{other} is a field that this kubelet does not know"),
        };
        items.map(|item| (text(&item["path"]).to_owned(), field(item))).collect()
    } else {
        panic!("{source} is a source that this kubelet does not know")
    }
}

/// Makes the namespace's own ServiceAccount, which may read what Remora needs.
async fn furnish(namespace: &Namespace) {
    let accounts: Api<ServiceAccount> = Api::namespaced(namespace.client.clone(), &namespace.name);
    create(&accounts, json!({"metadata": {"name": "default"}})).await;
    let binding = json!({
        "metadata": {"name": format!("remora-in-{}", namespace.name)},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "remora"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace.name}],
    });
    create::<ClusterRoleBinding>(&Api::all(namespace.client.clone()), binding).await;
}

async fn token(client: &Client, namespace: &str, account: &str, spec: &Value) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let request = Request::post(path).header("Content-Type", "application/json");
    let request = request.body(body.to_string().into_bytes()).expect("a request");
    let answer: Value = client.request(request).await.expect("a token");
    text(&answer["status"]["token"]).to_owned()
}
