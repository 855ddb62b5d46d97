//! A real Chromium, without a window, on a page of a [`crate::site::Site`], with the filter's module for browsers.
//!
//! In: the name of a page of `tests/pages`, in TypeScript. Out: a running browser; the page reports to its site. It never
//! reaches into the page.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::site::{Files, Site};
use crate::{Program, World, envoy, tools};

/// Owning one means that it runs.
pub struct Chromium {
    /// The process.
    pub program: Program,
}

/// Which of the modules for browsers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// What is released.
    Released,
    /// With what answers cases.
    Cases,
}

impl Module {
    /// Builds it, as its users do, and compiles `page` against its types. To be called before the world is entered.
    ///
    /// # Panics
    /// When the module does not build, or the page breaks its types.
    pub fn build(self, page: &str) {
        envoy::run_build(match self {
            Module::Released => &["web"],
            Module::Cases => &["web", "cases"],
        });
        let folder = self.folder(page);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let copy = |from: PathBuf| {
            let to = folder.join(from.file_name().expect("a file"));
            fs::copy(&from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        };
        for file in ["remora.js", "remora.d.ts", "remora_bg.wasm"] {
            copy(self.built().join(file));
        }
        for file in [&format!("{page}.ts"), "tsconfig.json"] {
            copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("pages").join(file));
        }
        let status = Command::new(tools::built("tsc")).current_dir(&folder).stdin(Stdio::null()).status();
        assert!(status.expect("node").success(), "tests/pages/{page}.ts does not compile; tsc has said why");
    }

    /// The files of a site with `page`, as [`Module::build`] made them.
    pub fn files(self, page: &str) -> Files {
        let folder = self.folder(page);
        let script = format!("{page}.js");
        let file = |name: &str| {
            let path = folder.join(name);
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (format!("/{name}"), bytes)
        };
        let mut files: Files = ["remora.js", "remora_bg.wasm", &script].map(file).into();
        let html =
            format!("<!doctype html><title>{page}</title><script type=module src=/{script}></script>\n");
        files.insert("/".to_owned(), html.into_bytes());
        files
    }

    fn built(self) -> PathBuf {
        let target = envoy::target();
        match self {
            Module::Released => target.join("web"),
            Module::Cases => target.join("cases/web"),
        }
    }

    fn folder(self, page: &str) -> PathBuf {
        envoy::target().join("pages").join(page)
    }
}

impl Chromium {
    /// Opens the site's page.
    pub fn open(world: &World, site: &Site) -> Chromium {
        let name = std::env::var_os("REMORA_CHROMIUM").unwrap_or_else(|| "chromium".into());
        let mut command = Command::new(name);
        // It is root in a world of its own, without a graphics card and perhaps with little shared memory.
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--enable-logging=stderr", "--log-level=2"]);
        command.arg(format!("--user-data-dir={}", world.own_folder().join("chromium").display()));
        command.arg(format!("http://{}/", site.address));
        Chromium { program: Program::start(world, "chromium", command) }
    }
}
