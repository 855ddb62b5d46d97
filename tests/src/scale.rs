//! A large cluster as manifest files.
//!
//! In: a folder of manifests, and how many Services. Out: files in it, of which one changes at a time. Nobody listens at
//! their addresses: these Services are there to be known.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Endpoints of each Service.
pub const ENDPOINTS: usize = 10;
/// Services in one file: what a change of one makes anew.
const IN_A_FILE: usize = 100;

/// Owning one means nothing: the files are the feeder's.
pub struct Cluster {
    folder: PathBuf,
    services: usize,
}

impl Cluster {
    /// Writes so many Services of [`ENDPOINTS`] endpoints each into a folder of manifests.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn write(folder: &Path, services: usize) -> Cluster {
        let cluster = Cluster { folder: folder.to_owned(), services };
        (0..services.div_ceil(IN_A_FILE)).for_each(|file| cluster.put(file, None));
        cluster
    }

    /// One endpoint of the Service `service-N` is another Pod from here on.
    pub fn replace_endpoint(&self, service: usize, generation: usize) {
        self.put(service / IN_A_FILE, Some((service, generation)));
    }

    fn put(&self, file: usize, changed: Option<(usize, usize)>) {
        let mut text = String::new();
        for number in (file * IN_A_FILE..(file + 1) * IN_A_FILE).filter(|number| *number < self.services) {
            let generation =
                changed.map_or(0, |(service, generation)| if service == number { generation } else { 0 });
            service(&mut text, number, generation);
        }
        // In one step, and where no manifest is looked for.
        let draft = self.folder.with_extension("large");
        std::fs::write(&draft, text).expect("the folder of the world");
        std::fs::rename(draft, self.folder.join(format!("large-{file:04}.yaml")))
            .expect("the folder of the world");
    }
}

/// As JSON, which is YAML and read faster.
fn service(text: &mut String, number: usize, generation: usize) {
    let namespace = number % 100;
    let ip = Ipv4Addr::from(0x0a70_0000 + number as u32);
    let mut endpoints = String::new();
    for n in 0..ENDPOINTS {
        let address = Ipv4Addr::from(0x6440_0000 + (number * ENDPOINTS + n) as u32);
        // Names as a Deployment gives them; the last one is the one that changes.
        let pod =
            format!("service-{number}-7d9c6f7b5c-{:05}", if n == ENDPOINTS - 1 { generation } else { n });
        let place = (number * ENDPOINTS + n) * 31 % 5_000;
        let written = write!(
            endpoints,
            "{}{{\"addresses\":[\"{address}\"],\"conditions\":{{\"ready\":true,\"serving\":true,\"terminating\":false}},\
             \"nodeName\":\"node-{place}\",\"zone\":\"zone-{}\",\"targetRef\":{{\"kind\":\"Pod\",\"name\":\"{pod}\",\
             \"namespace\":\"namespace-{namespace}\",\"uid\":\"{generation:08x}-0000-0000-{n:04x}-{number:012x}\"}}}}",
            if n == 0 { "" } else { "," },
            place % 3,
        );
        written.expect("text grows");
    }
    let written = writeln!(
        text,
        "---\n{{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"service-{number}\",\"namespace\":\
         \"namespace-{namespace}\"}},\"spec\":{{\"clusterIP\":\"{ip}\",\"ports\":[{{\"name\":\"http\",\"port\":80}}]}}}}\n\
         ---\n{{\"kind\":\"EndpointSlice\",\"apiVersion\":\"discovery.k8s.io/v1\",\"metadata\":{{\"name\":\
         \"service-{number}-x7k2p\",\"namespace\":\"namespace-{namespace}\",\"labels\":{{\"kubernetes.io/service-name\":\
         \"service-{number}\"}}}},\"addressType\":\"IPv4\",\"ports\":[{{\"name\":\"http\",\"port\":8080}}],\
         \"endpoints\":[{endpoints}]}}"
    );
    written.expect("text grows");
}
