//! Manifest files as people keep them: read once, and followed while they change under us.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use selection::{Here, Row, ServiceName, Table};
use watcher::{Scope, Source, Status, Watch};

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A folder of its own for each test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("remora-manifests-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes `text` in place, as an editor may.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Replaces the file by another, as most programs do.
    fn replace(&self, name: &str, text: &str) {
        let new = self.write(&format!(".{name}.new"), text);
        fs::rename(new, self.path(name)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn service(name: &str, last: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  selector: {{app: {name}}}\n  \
         clusterIP: 10.96.0.{last}\n  ports:\n  - port: 80\n    targetPort: 8080\n"
    )
}

fn slice(service: &str, endpoints: &[u8]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|last| format!("{{addresses: [10.0.0.{last}]}}")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-1\n  namespace: shop\n  labels: \
         {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nendpoints: [{}]\nports:\n- port: 8080\n",
        endpoints.join(", ")
    )
}

fn both(name: &str, last: u8, endpoints: &[u8]) -> String {
    format!("{}---\n{}", service(name, last), slice(name, endpoints))
}

async fn follow(path: &Path) -> Watch {
    let watch =
        watcher::start(Source::Manifests(path.to_owned()), Scope::All, Here::default()).await.unwrap();
    within("a first table", &watch, watch.tables.synced()).await;
    watch
}

/// `future`, or a panic that tells the state of the watch.
async fn within<T>(what: &str, watch: &Watch, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| {
        panic!(
            "not within {SOON:?}: {what}; the table has {:?}; {:?}",
            all(&watch.tables.load()),
            watch.status()
        )
    })
}

fn endpoints(table: &Table, service: &str) -> Vec<String> {
    let ports = table.ports(&ServiceName::new("shop", service));
    ports.first().map(|port| Row::from(&**port).cluster).unwrap_or_default()
}

fn all(table: &Table) -> Vec<(String, Vec<String>)> {
    let mut all: Vec<_> =
        table.all().map(|port| Row::from(&**port)).map(|row| (row.service, row.cluster)).collect();
    all.sort();
    all
}

/// Waits until `service` has these endpoints.
async fn serves(watch: &Watch, service: &str, expected: &[u8]) {
    let expected: Vec<_> = expected.iter().map(|last| format!("10.0.0.{last}:8080")).collect();
    let reached = watch.tables.reaches(|table| endpoints(table, service) == expected);
    within(&format!("{service} has {expected:?}"), watch, reached).await;
}

/// Waits until the status is such.
async fn status(watch: &Watch, what: &str, is_it: impl Fn(&Status) -> bool) {
    let poll = async {
        while !is_it(&watch.status()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, watch, poll).await;
}

fn read(path: &Path) -> (Vec<(String, Vec<String>)>, Vec<String>) {
    let reading = watcher::manifests::read(path, Here::default()).unwrap();
    (all(reading.store.table()), reading.warnings)
}

#[track_caller]
fn assert_one<T: Debug>(list: &[T]) -> &T {
    assert_eq!(list.len(), 1, "{list:#?}");
    &list[0]
}

#[test]
fn a_file_of_several_documents_is_read_at_once() {
    let folder = Folder::new("once");
    let text = format!(
        "# by hand\n---\n{}---\nkind: Deployment\nspec: {{}}\n...\n---\n---\n",
        both("web", 1, &[1, 2])
    );
    let path = folder.write("web.yaml", &text);
    let (table, warnings) = read(&path);
    assert_eq!(table, [("shop/web".into(), vec!["10.0.0.1:8080".into(), "10.0.0.2:8080".into()])]);
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn lists_typed_lists_and_json_are_read_as_kubectl_prints_them() {
    let folder = Folder::new("lists");
    folder.write(
        "a.yml",
        r#"
apiVersion: v1
kind: ServiceList
metadata: {resourceVersion: ""}
items:
- metadata: {name: web, namespace: shop, uid: "1"}
  spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80, protocol: TCP}], selector: {app: web}}
  status: {loadBalancer: {}}
"#,
    );
    folder.write(
        "b.json",
        r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
             "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": true}}],
             "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": "web-2", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
             "endpoints": null, "ports": null}]}"#,
    );
    folder.write("c.txt", "not a manifest");
    folder.write(".d.yaml", "hidden: [");
    let (table, warnings) = read(&folder.0);
    assert_eq!(table, [("shop/web".into(), vec!["10.0.0.7:8080".into()])]);
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn a_path_that_does_not_exist_is_one_sentence() {
    let error =
        watcher::manifests::read(Path::new("/no/such/place"), Here::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot read manifests at /no/such/place: No such file or directory (os error 2); give a file or a folder of \
         .yaml, .yml or .json files"
    );
}

#[test]
fn a_broken_document_is_named_by_file_document_and_line_and_the_others_serve() {
    let folder = Folder::new("broken");
    let text =
        format!("{}---\nkind: Service\nmetadata: [a: }}\n---\n{}", service("web", 1), slice("web", &[1]));
    let path = folder.write("web.yaml", &text);
    let (table, warnings) = read(&path);
    assert_eq!(table, [("shop/web".into(), vec!["10.0.0.1:8080".into()])]);
    let warning = assert_one(&warnings);
    assert!(warning.starts_with(&format!("{}, document 2, line 12, column ", path.display())), "{warning}");
}

#[test]
fn a_wrong_field_is_named_with_its_line_and_costs_no_more_than_its_part() {
    let folder = Folder::new("field");
    let text = format!(
        "{}---\n{}",
        both("web", 1, &[1, 2]).replace("10.0.0.2", "10.0.0.256"),
        service("bad", 2).replace("port: 80", "port: 0").replace("10.96.0.2", "10.96.0.400")
    );
    let path = folder.write("web.yaml", &text);
    let (table, warnings) = read(&path);
    assert_eq!(table, [("shop/web".into(), vec!["10.0.0.1:8080".into()])]);
    let path = path.display();
    assert_eq!(
        warnings,
        [
            format!(
                "{path}, document 2, line 18, column 51, EndpointSlice shop/web-1, endpoints[1].addresses[0]: \
                 \"10.0.0.256\" is not an IPv4 address; the rest of the object serves"
            ),
            format!(
                "{path}, document 3, line 27, column 14, Service shop/bad, spec.clusterIP: \"10.96.0.400\" is not an \
                 IP address; the object stays as it was"
            ),
        ]
    );
}

#[test]
fn an_object_that_is_there_twice_is_a_warning_and_the_last_counts() {
    let folder = Folder::new("twice");
    folder.write("b.yaml", &slice("web", &[2]));
    folder.write("a.yaml", &both("web", 1, &[1]));
    let (table, warnings) = read(&folder.0);
    assert_eq!(table, [("shop/web".into(), vec!["10.0.0.2:8080".into()])]);
    let (a, b) = (folder.path("a.yaml"), folder.path("b.yaml"));
    assert_eq!(
        warnings,
        [format!(
            "EndpointSlice shop/web-1 is in {} and again in {}: the last one counts",
            a.display(),
            b.display()
        )]
    );
}

#[test]
fn our_zone_is_read_from_our_node() {
    let folder = Folder::new("node");
    let node = "kind: Node\napiVersion: v1\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}\n";
    let hinted = slice("web", &[1, 2])
        .replace("[10.0.0.1]", "[10.0.0.1], hints: {forZones: [{name: a}]}")
        .replace("[10.0.0.2]", "[10.0.0.2], hints: {forZones: [{name: b}]}");
    folder.write("all.yaml", &format!("{node}---\n{}---\n{hinted}", service("web", 1)));
    let here = Here { node: Some("n1".into()), zone: None };
    let reading = watcher::manifests::read(&folder.0, here).unwrap();
    assert_eq!(endpoints(reading.store.table(), "web"), ["10.0.0.1:8080"]);
}

#[test]
fn seventy_thousand_endpoints_are_read() {
    let folder = Folder::new("many");
    let mut text = service("web", 1);
    for n in 0..70 {
        let endpoint =
            |e: u32| format!("- addresses: [10.{n}.{}.{}]\n  nodeName: node-{e}\n", e / 250, e % 250 + 1);
        let endpoints: String = (0..1_000).map(endpoint).collect();
        text += &format!(
            "---\nkind: EndpointSlice\napiVersion: discovery.k8s.io/v1\nmetadata:\n  name: web-{n}\n  namespace: shop\n  \
             labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n{endpoints}"
        );
    }
    let (table, warnings) = read(&folder.write("web.yaml", &text));
    assert_eq!((table[0].1.len(), warnings.len()), (70_000, 0));
}

#[tokio::test]
async fn files_are_followed_as_they_are_written_replaced_and_removed() {
    let folder = Folder::new("live");
    folder.write("web.yaml", &both("web", 1, &[1]));
    let watch = follow(&folder.0).await;
    serves(&watch, "web", &[1]).await;
    folder.write("web.yaml", &both("web", 1, &[1, 2]));
    serves(&watch, "web", &[1, 2]).await;
    folder.replace("web.yaml", &both("web", 1, &[3]));
    serves(&watch, "web", &[3]).await;
    folder.replace("web.yaml", &both("web", 1, &[3, 4]));
    serves(&watch, "web", &[3, 4]).await;
    folder.write("api.yml", &both("api", 2, &[9]));
    serves(&watch, "api", &[9]).await;
    fs::remove_file(folder.path("web.yaml")).unwrap();
    serves(&watch, "web", &[]).await;
    serves(&watch, "api", &[9]).await;
}

#[tokio::test]
async fn a_single_file_is_followed_through_renames() {
    let folder = Folder::new("single");
    let path = folder.write("web.yaml", &both("web", 1, &[1]));
    folder.write("other.yaml", &both("other", 2, &[5]));
    let watch = follow(&path).await;
    serves(&watch, "web", &[1]).await;
    for last in 2..5 {
        folder.replace("web.yaml", &both("web", 1, &[last]));
        serves(&watch, "web", &[last]).await;
    }
    assert!(endpoints(&watch.tables.load(), "other").is_empty(), "only the one file was asked for");
}

/// As the kubelet updates the volume of a `ConfigMap`: a new folder, and the link `..data` renamed over the old.
fn swap(folder: &Folder, version: u32, text: &str) {
    let real = folder.path(&format!("..{version}"));
    fs::create_dir(&real).unwrap();
    fs::write(real.join("web.yaml"), text).unwrap();
    symlink(format!("..{version}"), folder.path("..data_tmp")).unwrap();
    fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
    if version > 1 {
        fs::remove_dir_all(folder.path(&format!("..{}", version - 1))).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_that_swaps_its_data_is_followed() {
    let folder = Folder::new("swap");
    swap(&folder, 1, &both("web", 1, &[1]));
    symlink("..data/web.yaml", folder.path("web.yaml")).unwrap();
    let (as_folder, as_file) = (follow(&folder.0).await, follow(&folder.path("web.yaml")).await);
    for version in 2..6 {
        let last = u8::try_from(version).unwrap();
        swap(&folder, version, &both("web", 1, &[last]));
        serves(&as_folder, "web", &[last]).await;
        serves(&as_file, "web", &[last]).await;
    }
}

#[tokio::test]
async fn a_file_that_breaks_keeps_its_last_good_objects() {
    let folder = Folder::new("keeps");
    folder.write("web.yaml", &format!("{}---\n{}", both("web", 1, &[1]), both("api", 2, &[2])));
    let watch = follow(&folder.0).await;
    serves(&watch, "api", &[2]).await;
    folder.replace("web.yaml", "kind: [");
    status(&watch, "the mistake is counted", |s| {
        s.skipped.iter().any(|(_, reason, n)| *reason == "syntax" && *n >= 1)
    })
    .await;
    folder.replace("web.yaml", &format!("{}---\nkind: [\n", both("web", 1, &[5])));
    serves(&watch, "web", &[5]).await;
    serves(&watch, "api", &[2]).await;
    folder.replace("web.yaml", &both("web", 1, &[6]));
    serves(&watch, "web", &[6]).await;
    serves(&watch, "api", &[]).await;
}

#[tokio::test]
async fn an_object_that_breaks_stays_as_it_was_while_the_rest_of_its_file_moves_on() {
    let folder = Folder::new("object");
    folder.write("web.yaml", &both("web", 1, &[1]));
    let watch = follow(&folder.0).await;
    let broken = slice("web", &[2]).replace("IPv4", "IPv5");
    folder.replace("web.yaml", &format!("{}---\n{broken}---\n{}", service("web", 9), both("api", 2, &[2])));
    serves(&watch, "api", &[2]).await;
    serves(&watch, "web", &[1]).await;
    let table = watch.tables.load();
    assert_eq!(table.ports(&ServiceName::new("shop", "web"))[0].cluster_ip, Some([10, 96, 0, 9].into()));
}

#[tokio::test]
async fn a_folder_that_goes_away_empties_nothing_and_is_followed_again_when_it_is_back() {
    let folder = Folder::new("away");
    folder.write("web.yaml", &both("web", 1, &[1]));
    let watch = follow(&folder.0).await;
    serves(&watch, "web", &[1]).await;
    let elsewhere = folder.0.with_extension("elsewhere");
    fs::rename(&folder.0, &elsewhere).unwrap();
    status(&watch, "the loss is known", |status| !status.broken.is_empty()).await;
    serves(&watch, "web", &[1]).await;
    fs::rename(&elsewhere, &folder.0).unwrap();
    folder.replace("web.yaml", &both("web", 1, &[2]));
    serves(&watch, "web", &[2]).await;
    status(&watch, "nothing is broken", |status| status.broken.is_empty()).await;
    folder.replace("web.yaml", &both("web", 1, &[3]));
    serves(&watch, "web", &[3]).await;
}

#[tokio::test]
async fn a_scope_leaves_out_the_rest() {
    let folder = Folder::new("scope");
    folder.write("all.yaml", &format!("{}---\n{}", both("web", 1, &[1]), both("api", 2, &[2])));
    let scope = Scope::Services(vec![ServiceName::new("shop", "api")]);
    let watch = watcher::start(Source::Manifests(folder.0.clone()), scope, Here::default()).await.unwrap();
    serves(&watch, "api", &[2]).await;
    assert_eq!(all(&watch.tables.load()).len(), 1);
    assert_eq!((watch.status().services, watch.status().slices), (1, 1));
}

#[tokio::test]
async fn what_is_known_of_a_service_is_told_on_demand() {
    let folder = Folder::new("inspect");
    folder.write("web.yaml", &format!("{}---\n{}", both("web", 1, &[1]), service("lonely", 2)));
    let watch = follow(&folder.0).await;
    let web = watch.inspect(ServiceName::new("shop", "web")).await.unwrap();
    let endpoint = assert_one(&assert_one(&web.ports).endpoints);
    assert_eq!((endpoint.address.to_string(), endpoint.in_cluster), ("10.0.0.1:8080".to_owned(), true));
    assert!(watch.inspect(ServiceName::new("shop", "nobody")).await.is_none());
    let all = watch.inspect_all().await;
    let names: Vec<_> = all.iter().map(|inspection| inspection.service.to_string()).collect();
    assert_eq!(names, ["shop/lonely", "shop/web"]);
    assert!(assert_one(&all[0].warnings).contains("kubectl get endpointslices"));
}

#[tokio::test]
async fn the_status_counts_events_and_times() {
    let folder = Folder::new("status");
    folder.write("web.yaml", &both("web", 1, &[1]));
    let watch = follow(&folder.0).await;
    folder.replace("web.yaml", &both("web", 1, &[1, 2]));
    serves(&watch, "web", &[1, 2]).await;
    status(&watch, "one change is timed", |status| status.received_to_table.count == 1).await;
    let status = watch.status();
    assert!(status.synced && status.version == 2 && status.age.is_some(), "{status:?}");
    let count = |kind, change| status.events().find(|(k, c, _)| (*k, *c) == (kind, change)).unwrap().2;
    assert_eq!((count("services", "added"), count("endpointslices", "changed")), (1, 1));
    assert_eq!(status.missed().map(|(_, count)| count).sum::<u64>(), 0);
}
