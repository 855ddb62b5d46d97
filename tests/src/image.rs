//! The container image that `make image` builds, as a container runtime sees it.
//!
//! In: the archive. Out: what its configuration says, and its files, unpacked with their attributes. It never builds it:
//! what is missing is named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::World;

/// Owning one means that its archive is unpacked in the folder of a world.
pub struct Image {
    /// The `config` of its configuration: user, entrypoint, labels.
    pub config: Value,
    /// What is said about its platform: `architecture`, `os`.
    pub platform: Value,
    /// The name that it is loaded by, such as `remora:0.1.0`.
    pub name: String,
    /// Its archive.
    pub archive: PathBuf,
    /// The digests of its layers, the lowest first.
    pub layers: Vec<String>,
    folder: PathBuf,
}

impl Image {
    /// Reads the image that was built last.
    ///
    /// # Panics
    /// When there is none, with the command that builds it.
    pub fn built(world: &World) -> Image {
        let test = std::env::current_exe().expect("the path of the running test");
        let target = test.ancestors().nth(3).expect("tests run from target/PROFILE/deps");
        let archive = target.join("remora.tar");
        assert!(archive.exists(), "{} is not there: make image", archive.display());
        let folder = world.own_folder().join("image");
        fs::create_dir_all(&folder).expect("a folder");
        tar(&["-xf"], &archive, &folder);
        let index = json(&folder.join("index.json"));
        let [manifest] = &index["manifests"].as_array().expect("manifests")[..] else {
            panic!("not one image: {index}")
        };
        let name = text(&manifest["annotations"]["org.opencontainers.image.ref.name"]).to_owned();
        let manifest = json(&blob(&folder, text(&manifest["digest"])));
        let configuration = json(&blob(&folder, text(&manifest["config"]["digest"])));
        let layers = manifest["layers"].as_array().expect("layers");
        Image {
            config: configuration["config"].clone(),
            platform: configuration.clone(),
            name,
            archive,
            layers: layers.iter().map(|layer| text(&layer["digest"]).to_owned()).collect(),
            folder,
        }
    }

    /// Lays its files into an empty folder, as the root of a container.
    pub fn lay(&self, root: &Path) {
        for layer in &self.layers {
            tar(&["--xattrs", "--xattrs-include=*", "-xpf"], &blob(&self.folder, layer), root);
        }
    }

    /// What a container of it begins with; its Pod says the arguments.
    pub fn entrypoint(&self) -> Vec<&str> {
        self.config["Entrypoint"].as_array().expect("an entrypoint").iter().map(text).collect()
    }
}

fn blob(folder: &Path, digest: &str) -> PathBuf {
    folder.join("blobs").join(digest.replace(':', "/"))
}

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn tar(options: &[&str], archive: &Path, into: &Path) {
    let output = Command::new("tar").args(options).arg(archive).arg("-C").arg(into).output().expect("tar");
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr).trim());
}
