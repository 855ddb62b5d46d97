//! What `remora inject` and `remora uninject` shall do.

use std::path::PathBuf;

use super::{Error, ranges, source};
use crate::arguments::{InjectArguments, InjectedArguments, ManifestArguments, ManifestFormat};
use crate::inject::{Settings, Way};

/// What `remora inject` or `remora uninject` shall do.
#[derive(Debug)]
pub struct Inject {
    /// Which of them, and how.
    pub way: Way,
    /// The manifests; standard input if `None`.
    pub file: Option<PathBuf>,
    /// How to print them.
    pub output: ManifestFormat,
}

impl Inject {
    /// Judges the command line of `remora inject`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(typed: InjectArguments) -> Result<Self, Error> {
        let settings = settings(typed.injected)?;
        if settings.feed_ca.is_none() && settings.source.starts_with("feed:https:") {
            return Err(Error::InjectWithoutAuthority(settings.source));
        }
        Ok(Self { way: Way::Inject(settings), ..Self::un(typed.manifests) })
    }

    /// The same for `remora uninject`, in which nothing can be wrong.
    pub fn un(typed: ManifestArguments) -> Self {
        let file = Some(typed.file).filter(|file| file.as_os_str() != "-");
        Self { way: Way::Uninject, file, output: typed.output }
    }
}

/// What Pods get; whoever vouches for their hub may be known later.
pub(super) fn settings(typed: InjectedArguments) -> Result<Settings, Error> {
    source("sidecar-source", &typed.sidecar_source)?;
    let services = ranges("services", &typed.services)?;
    let feed_ca = typed.sidecar_feed_ca.filter(|text| !text.trim().is_empty());
    let feed_ca = match feed_ca {
        Some(path) if !path.contains("-----BEGIN") => {
            Some(std::fs::read_to_string(&path).map_err(|error| Error::Authority(path, error.to_string()))?)
        }
        pem => pem,
    };
    Ok(Settings {
        image: typed.image,
        services: services.iter().map(ToString::to_string).collect(),
        source: typed.sidecar_source,
        feed_ca,
        feed_audience: typed.feed_audience,
    })
}
