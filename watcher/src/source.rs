//! Where Services come from and which of them are followed. Values; parsed, never opened here.

#[cfg(feature = "manifests")]
use std::path::PathBuf;

use selection::{ServiceName, Symbol};

#[cfg(feature = "feed")]
use crate::feed::Subscription;
use crate::store::{Kind, Part, Stream};

/// Where Services and their slices come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A manifest file, or a folder of them.
    #[cfg(feature = "manifests")]
    Manifests(PathBuf),
    /// The Kubernetes API.
    #[cfg(feature = "kube")]
    Kube(crate::kubernetes::Options),
    /// The feed of another Remora.
    #[cfg(feature = "feed")]
    Feed(crate::feed::Address),
}

impl Source {
    /// The source that `text` names: `kube`, `manifests:PATH`, or `feed:` and [`crate::feed::Address`].
    ///
    /// # Errors
    /// If it names none.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        match text.split_once(':') {
            #[cfg(feature = "kube")]
            None if text == "kube" => Ok(Self::Kube(crate::kubernetes::Options::default())),
            #[cfg(feature = "manifests")]
            Some(("manifests", "")) => Err(ParseError::NoPath),
            #[cfg(feature = "manifests")]
            Some(("manifests", path)) => Ok(Self::Manifests(path.into())),
            #[cfg(feature = "feed")]
            Some(("feed", address)) => Ok(Self::Feed(crate::feed::Address::parse(address)?)),
            _ => Err(ParseError::Unknown(text.to_owned())),
        }
    }
}

impl std::str::FromStr for Source {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            #[cfg(feature = "manifests")]
            Self::Manifests(path) => write!(f, "manifests:{}", path.display()),
            #[cfg(feature = "kube")]
            Self::Kube(_) => f.write_str("kube"),
            #[cfg(feature = "feed")]
            Self::Feed(address) => write!(f, "feed:{address}"),
        }
    }
}

/// Why a text names no source.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is neither of the words.
    #[error("{0:?} is not a source: say kube, manifests:PATH, or feed:http://127.0.0.1:PORT")]
    Unknown(String),
    /// Manifests without a path.
    #[error("manifests: needs a path: say manifests:PATH with a file or a folder")]
    NoPath,
    /// A feed that is nowhere.
    #[cfg(feature = "feed")]
    #[error("feed: {0}")]
    Feed(#[from] crate::feed::AddressError),
}

/// What of a source is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every Service.
    #[default]
    All,
    /// Those of some namespaces.
    Namespaces(Vec<Symbol>),
    /// Some Services.
    Services(Vec<ServiceName>),
}

impl Scope {
    /// The streams that cover it: of Services and of slices for each part.
    pub fn streams(&self) -> Vec<Stream> {
        let parts: Vec<Part> = match self {
            Self::All => vec![Part::All],
            Self::Namespaces(namespaces) => namespaces.iter().cloned().map(Part::Namespace).collect(),
            Self::Services(services) => services.iter().cloned().map(Part::Service).collect(),
        };
        let mut streams: Vec<Stream> = Vec::new();
        for part in parts {
            let of = |kind| Stream { kind, part: part.clone() };
            if !streams.contains(&of(Kind::Services)) {
                streams.extend([of(Kind::Services), of(Kind::Slices)]);
            }
        }
        streams
    }

    /// What is to be asked of a feed.
    #[cfg(feature = "feed")]
    pub(crate) fn subscription(&self) -> Subscription {
        match self {
            Self::All => Subscription::All,
            Self::Namespaces(namespaces) => Subscription::namespaces(namespaces.iter().cloned()),
            Self::Services(services) => Subscription::services(services.iter().cloned()),
        }
    }

    /// Whether it has `service`.
    pub fn covers(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(namespaces) => namespaces.contains(&service.namespace),
            Self::Services(services) => services.contains(service),
        }
    }
}

#[cfg(all(test, feature = "manifests", feature = "kube"))]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_parsed_from_the_words_of_the_flag() {
        assert!(matches!(Source::parse("kube"), Ok(Source::Kube(_))));
        assert_eq!(Source::parse("manifests:a/b:c").unwrap().to_string(), "manifests:a/b:c");
        #[cfg(feature = "feed")]
        assert_eq!(Source::parse("feed:unix:/a").unwrap().to_string(), "feed:unix:/a");
        assert_eq!(Source::parse("manifests:").unwrap_err(), ParseError::NoPath);
        for wrong in ["", "manifests", "file:x", "kube:"] {
            assert_eq!(Source::parse(wrong).unwrap_err(), ParseError::Unknown(wrong.into()));
        }
    }

    #[test]
    fn a_service_named_twice_is_followed_once() {
        let web = ServiceName::new("shop", "web");
        assert_eq!(Scope::Services(vec![web.clone(), web.clone()]).streams().len(), 2);
        assert_eq!(Scope::All.streams(), [Stream::all(Kind::Services), Stream::all(Kind::Slices)]);
    }
}
