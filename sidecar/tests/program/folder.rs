//! A folder of manifests that a test owns.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Owning one keeps the folder; it goes with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("manifests-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(path.join("served")).unwrap();
        Self(path)
    }

    /// What `--source` gets.
    pub(crate) fn source(&self) -> String {
        format!("manifests:{}", self.0.join("served").display())
    }

    /// Puts a file there in one step, as editors and kubelets do.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let next = self.0.join("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, self.0.join("served").join(name)).unwrap();
    }

    /// A path in it where no manifest is looked for.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// The path of a kubeconfig of an API server that is not there: nobody listens on port 1.
    pub(crate) fn hopeless_kubeconfig(&self) -> String {
        let server = "server: http://127.0.0.1:1";
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: k, cluster: {{{server}}}}}], \
             users: [{{name: u, user: {{}}}}], contexts: [{{name: c, context: {{cluster: k, user: u}}}}]}}"
        );
        let path = self.path("kubeconfig");
        fs::write(&path, text).unwrap();
        path
    }

    /// The Service shop/web, port http 80, with these endpoints on `port`, all ready.
    pub(crate) fn put_web(&self, ips: &[&str], port: u16) {
        let mut text = String::from(
            "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.10, \
             clusterIPs: [10.96.0.10], ports: [{name: http, port: 80}]}}\n---\n\
             {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, namespace: shop, \
             labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ",
        );
        write!(text, "ports: [{{name: http, port: {port}}}], endpoints: [").unwrap();
        for ip in ips {
            write!(text, "{{addresses: [{ip}], conditions: {{ready: true}}}},").unwrap();
        }
        text.push_str("]}\n");
        self.put("web.yaml", &text);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
