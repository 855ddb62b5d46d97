//! The files of the filter, served beside the feed: the module that an Envoy fetches, and what a browser needs. In: a
//! folder, and a path of the list below. Out: the file as it is on disk at that moment, and its sha256. Never serves any
//! other name, and never holds more of a file than a few pieces.

use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{Either, Full};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode};
use ring::digest::{Context, SHA256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Body, Error, TAKES_WITHIN, WAITING, text};

/// Files that are on their way at once; one more is turned away, and may ask again.
const AT_ONCE: usize = 64;
/// A piece of a file.
const PIECE: usize = 32 << 10;

/// Where a file is asked for, its name in the folder, its media type.
const FILES: [(&str, &str, &str); 3] = [
    ("/filter.wasm", "filter.wasm", "application/wasm"),
    ("/remora.js", "remora.js", "text/javascript"),
    ("/remora_bg.wasm", "remora_bg.wasm", "application/wasm"),
];
/// Where the sha256 of the first is asked for: computed, so that it is that of the file that is served.
const SHA256_OF_FILTER: &str = "/filter.wasm.sha256";

/// The folder from which files are served.
#[derive(Clone, Debug)]
pub struct Assets {
    folder: Arc<Path>,
    places: Arc<Semaphore>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asset {
    name: &'static str,
    media: &'static str,
    sha256_only: bool,
}

impl Asset {
    /// The file of this path, if it is one of those that are served.
    pub(super) fn at(path: &str) -> Option<Self> {
        let sha256_only = path == SHA256_OF_FILTER;
        let path = if sha256_only { FILES[0].0 } else { path };
        let (_, name, media) = *FILES.iter().find(|(known, ..)| *known == path)?;
        Some(Self { name, media, sha256_only })
    }
}

impl Assets {
    /// Serves from `folder`, in which files may come and change later.
    ///
    /// # Errors
    /// If it is no folder that can be read.
    pub fn new(folder: &Path) -> Result<Self, Error> {
        std::fs::read_dir(folder).map_err(|error| Error::Assets(folder.to_owned(), error))?;
        let module = folder.join(FILES[0].1);
        if !module.is_file() {
            tracing::warn!(file = %module.display(), "there is no module to serve; filter/build makes it");
        }
        Ok(Self { folder: folder.into(), places: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// The answer to `request` for `asset`.
    pub(super) async fn answer<B>(&self, asset: Asset, request: &Request<B>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are understood here");
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "as many files as are served at once are on their way",
            );
        };
        match open(&self.folder.join(asset.name)).await {
            Ok((_, _, sha256)) if asset.sha256_only => text(StatusCode::OK, &sha256),
            Ok((file, length, sha256)) => sent(asset, request, file, length, &sha256, place),
            Err(error) => {
                let sentence = format!("cannot read {} in the folder of --assets: {error}", asset.name);
                text(StatusCode::NOT_FOUND, &sentence)
            }
        }
    }
}

/// The file, its length, and its sha256 in hexadecimal.
async fn open(path: &Path) -> std::io::Result<(File, u64, String)> {
    // To open what is a pipe waits for a writer.
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut file = File::open(path).await?;
    let (mut context, mut length) = (Context::new(&SHA256), 0);
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).await?;
        if read == 0 {
            break;
        }
        context.update(&piece[..read]);
        length += read as u64;
    }
    file.seek(SeekFrom::Start(0)).await?;
    let sha256 = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((file, length, sha256))
}

/// A file as the answer to `request`.
fn sent<B>(
    asset: Asset,
    request: &Request<B>,
    file: File,
    length: u64,
    sha256: &str,
    place: OwnedSemaphorePermit,
) -> Response<Body> {
    let tag = format!("\"{sha256}\"");
    let has = |known: &HeaderValue| known.to_str().is_ok_and(|known| known.contains(&tag));
    let mut response = Response::new(Either::Left(Full::default()));
    if request.headers().get(IF_NONE_MATCH).is_some_and(has) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(asset.media));
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        if request.method() == Method::GET {
            let (body, channel) = Channel::new(WAITING);
            tokio::spawn(send(file, length, body, place));
            *response.body_mut() = Either::Right(channel);
        }
    }
    let headers = response.headers_mut();
    // Another one may be there by the next time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.extend(HeaderValue::try_from(tag).map(|tag| (ETAG, tag)));
    response
}

/// Sends `left` bytes of `file`. One that has become shorter ends early, and the reader misses what it was promised.
async fn send(mut file: File, mut left: u64, mut body: Sender<Bytes>, place: OwnedSemaphorePermit) {
    while left > 0 {
        let mut piece = BytesMut::with_capacity(PIECE);
        match (&mut file).take(left).read_buf(&mut piece).await {
            Ok(read) if read > 0 => left = left.saturating_sub(read as u64),
            _ => break,
        }
        let Ok(Ok(())) = timeout(TAKES_WITHIN, body.send_data(piece.freeze())).await else { break };
    }
    drop(place);
}

/// What is said where nothing is served.
pub(super) fn none() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "no files are served here; start this process with --assets FOLDER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_the_list_are_files() {
        assert_eq!(
            Asset::at("/filter.wasm").map(|asset| (asset.name, asset.sha256_only)),
            Some(("filter.wasm", false))
        );
        assert_eq!(
            Asset::at(SHA256_OF_FILTER).map(|asset| (asset.name, asset.sha256_only)),
            Some(("filter.wasm", true))
        );
        for other in [
            "/",
            "/filter.wasm/",
            "//filter.wasm",
            "/./filter.wasm",
            "/../filter.wasm",
            "/filter%2ewasm",
            "/passwd",
            "filter.wasm",
        ] {
            assert_eq!(Asset::at(other), None, "{other}");
        }
    }
}
