//! Single questions to the API server, by path. In: a path of the Kubernetes API. Out: JSON, or why there is none. Never
//! follows anything; for that there is [`crate::start`].

use std::fmt;
use std::time::Duration;

use ::kube::Client;
use serde_json::Value;

use super::failure::chain;
use super::{Error, client};

/// No answer within this time is one.
const ANSWER: Duration = Duration::from_secs(10);
/// Objects of a list that come at once.
const PAGE: usize = 500;
/// Of an object only its metadata.
const METADATA_OF: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// Of the objects of a list only their metadata.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// An API server to ask. Owning one means that its address and our credentials are known, not that it answers.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    url: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such object, or no such kind of objects.
    Absent,
    /// We may not ask; in the words of the API server.
    Forbidden(String),
    /// The API server does not take what was posted; in its words.
    Invalid(String),
    /// It cannot be asked, or has a failure of its own.
    Failed(String),
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.url).finish()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is none"),
            Self::Forbidden(why) | Self::Invalid(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

impl Cluster {
    /// That of the kubeconfig, or of the Pod.
    ///
    /// # Errors
    /// If there is no way to a Kubernetes API.
    pub async fn new() -> Result<Self, Error> {
        let (client, url) = client().await?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned() })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// An object, or a list of a few.
    ///
    /// # Errors
    /// If it is not to be had.
    pub async fn get(&self, path: &str) -> Result<Value, Refusal> {
        parse(&self.text(path).await?)
    }

    /// What is there as text, as behind the API server's proxy.
    ///
    /// # Errors
    /// If it is not to be had.
    pub async fn text(&self, path: &str) -> Result<String, Refusal> {
        self.ask(http::Request::get(path).body(Vec::new())).await
    }

    /// The metadata of an object.
    ///
    /// # Errors
    /// If it is not to be had.
    pub async fn metadata_of(&self, path: &str) -> Result<Value, Refusal> {
        let request = http::Request::get(path).header(http::header::ACCEPT, METADATA_OF).body(Vec::new());
        Ok(parse(&self.ask(request).await?)?["metadata"].take())
    }

    /// The metadata of every object of a list, page by page.
    ///
    /// # Errors
    /// If one page is not to be had.
    pub async fn metadata(&self, path: &str) -> Result<Vec<Value>, Refusal> {
        let (mut objects, mut next) = (Vec::new(), String::new());
        let mark = if path.contains('?') { '&' } else { '?' };
        loop {
            let page = format!("{path}{mark}limit={PAGE}{next}");
            let request = http::Request::get(page).header(http::header::ACCEPT, METADATA).body(Vec::new());
            let mut list = parse(&self.ask(request).await?)?;
            let continues = list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if let Value::Array(items) = list["items"].take() {
                objects.extend(items.into_iter().map(|mut object| object["metadata"].take()));
            }
            if continues.is_empty() {
                return Ok(objects);
            }
            // The token is Base64 for URLs.
            next = format!("&continue={continues}");
        }
    }

    /// Creates an object, or asks what would become of it, if `path` says so.
    ///
    /// # Errors
    /// If the API server does not take it.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        let body = serde_json::to_vec(object).map_err(|error| Refusal::Failed(error.to_string()))?;
        let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        parse(&self.ask(request.body(body)).await?)
    }

    async fn ask(&self, request: Result<http::Request<Vec<u8>>, http::Error>) -> Result<String, Refusal> {
        let request = request.map_err(|error| Refusal::Failed(error.to_string()))?;
        match tokio::time::timeout(ANSWER, self.client.request_text(request)).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(refusal(&error)),
            Err(_) => Err(Refusal::Failed(format!("{} does not answer within {ANSWER:?}", self.url))),
        }
    }
}

fn parse(text: &str) -> Result<Value, Refusal> {
    serde_json::from_str(text).map_err(|error| Refusal::Failed(format!("the answer is no JSON: {error}")))
}

fn refusal(error: &::kube::Error) -> Refusal {
    match error {
        ::kube::Error::Api(status) => match status.code {
            404 => Refusal::Absent,
            401 | 403 => Refusal::Forbidden(status.message.clone()),
            400 | 422 => Refusal::Invalid(status.message.clone()),
            code => Refusal::Failed(format!("{} ({code})", status.message)),
        },
        error => Refusal::Failed(chain(error)),
    }
}
