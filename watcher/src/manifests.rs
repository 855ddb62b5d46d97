//! Manifest files as a source. In: a file or a folder, followed live. Out: events. Never lets go of what was good:
//! a file that breaks, or a folder that cannot be read, leaves everything as it was.
//!
//! Files end in `.yaml`, `.yml` or `.json`; folders are not entered; names that begin with a dot are passed over, as
//! are objects of kinds that do not matter here. What is watched is the folder, not the file: programs replace files
//! by renaming, and a ConfigMap replaces a whole folder by renaming the link `..data`.

pub mod document;
mod files;
mod locate;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use selection::{Here, Symbol};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::Scope;
use crate::store::{Event, Kind, Loss, Store, Stream};
use crate::watch::{Events, Report, wanted_node};
use document::{Contents, Lost, Problem, Syntax};
use files::{Double, Files};

/// After a change, this long without a further one means that a writer is done.
const QUIET: Duration = Duration::from_millis(50);
/// A writer that never rests is read in between.
const BUSY: Duration = Duration::from_millis(500);
/// Files are looked at this often even if nothing was noticed: not every file system tells.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Mistakes of one file that are logged one by one.
const LOGGED: usize = 20;

/// Why manifests cannot be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file or folder, or it may not be read.
    #[error("cannot read manifests at {}: {cause}; give a file or a folder of .yaml, .yml or .json files", .path.display())]
    Unreadable {
        /// What was to be read.
        path: PathBuf,
        /// Why it could not be.
        cause: io::Error,
    },
}

/// What was read at once.
#[derive(Debug)]
pub struct Reading {
    /// Everything that could be understood, its first table published.
    pub store: Store,
    /// One sentence for each thing that could not, with file, document, line and field.
    pub warnings: Vec<String>,
}

/// Reads the manifests at `path` once.
///
/// # Errors
/// If there is nothing to read. Mistakes in the files are [`Reading::warnings`].
pub fn read(path: &Path, here: Here) -> Result<Reading, Error> {
    let mut folder = Folder::new(path, Scope::All, wanted_node(&here));
    let news = folder.look().map_err(|cause| Error::Unreadable { path: path.to_owned(), cause })?;
    let mut store = Store::new(here);
    first_list(Scope::All.streams(), news.events).into_iter().for_each(|event| store.apply(event));
    store.publish();
    Ok(Reading { store, warnings: news.mistakes.iter().map(ToString::to_string).collect() })
}

/// Follows the manifests at `path` for ever.
pub(crate) fn follow(
    path: PathBuf,
    scope: Scope,
    node: Option<Symbol>,
    events: Events,
    report: Report,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let streams = scope.streams();
    let mut folder = Folder::new(&path, scope, node);
    let watching = Watching::start(&folder);
    let news = folder.look().map_err(|cause| Error::Unreadable { path: path.clone(), cause })?;
    Ok(async move {
        news.log(&report);
        for event in first_list(streams.clone(), news.events) {
            events.send(event).await;
        }
        info!(path = %path.display(), files = folder.seen.len(), "following manifests");
        follow_changes(folder, watching, &streams, &events, &report).await;
    })
}

async fn follow_changes(
    mut folder: Folder,
    mut watching: Watching,
    streams: &[Stream],
    events: &Events,
    report: &Report,
) {
    let mut is_lost = false;
    loop {
        for stream in streams.iter().filter(|_| !is_lost) {
            events.send(Event::InStep(stream.clone())).await;
        }
        watching.wait(&folder).await;
        // Reading and parsing large files would hold up whoever shares the thread.
        let looked = tokio::task::spawn_blocking(move || {
            let news = folder.look();
            (folder, news)
        });
        let news;
        (folder, news) = match looked.await {
            Ok(looked) => looked,
            // The runtime is being shut down.
            Err(_) => return,
        };
        match news {
            Ok(news) => {
                if is_lost {
                    info!(path = %folder.path.display(), "manifests can be read again");
                }
                is_lost = false;
                news.log(report);
                for event in news.events {
                    events.send(event).await;
                }
            }
            Err(cause) => {
                if !is_lost {
                    let path = folder.path.display();
                    warn!(%path, error = %cause, "manifests cannot be read; what was read stays");
                }
                for stream in streams.iter().filter(|_| !is_lost) {
                    events.send(Event::Lost(stream.clone(), Loss::Unreachable)).await;
                }
                is_lost = true;
            }
        }
    }
}

/// The first events of a source: every stream is listed.
fn first_list(streams: Vec<Stream>, events: Vec<Event>) -> Vec<Event> {
    let begins = streams.iter().cloned().map(Event::ListBegins);
    let ends = streams.iter().cloned().map(Event::ListEnds);
    begins.chain(events).chain(ends).collect()
}

/// Being told of changes by the system; or, where that fails, looking from time to time.
struct Watching {
    /// Keeps the system telling.
    watcher: Option<RecommendedWatcher>,
    changes: mpsc::Receiver<()>,
    /// Folders that are watched.
    watched: Vec<PathBuf>,
}

impl Watching {
    fn start(folder: &Folder) -> Self {
        let (changed, changes) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let is_reading = event.is_ok_and(|event| {
                matches!(event.kind, notify::EventKind::Access(kind) if
                !matches!(kind, notify::event::AccessKind::Close(notify::event::AccessMode::Write)))
            });
            if !is_reading {
                // Full means that a change is already waiting.
                let _ = changed.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| {
            warn!(%error, "the system does not tell of changed files; looking every {LOOK_EVERY:?}");
        });
        let mut watching = Self { watcher: watcher.ok(), changes, watched: Vec::new() };
        watching.renew(folder);
        watching
    }

    /// Returns when it is time to look.
    async fn wait(&mut self, folder: &Folder) {
        self.renew(folder);
        let timeout = tokio::time::timeout(LOOK_EVERY, self.changes.recv()).await;
        if !matches!(timeout, Ok(Some(()))) {
            // The watch of a folder that was replaced by another of its name is void without a word.
            self.forget();
            return;
        }
        let busy = tokio::time::Instant::now() + BUSY;
        while tokio::time::Instant::now() < busy {
            if !matches!(tokio::time::timeout(QUIET, self.changes.recv()).await, Ok(Some(()))) {
                return;
            }
        }
    }

    /// Watches the folders that matter.
    fn renew(&mut self, folder: &Folder) {
        let Some(watcher) = &mut self.watcher else { return };
        for path in folder.watchable() {
            if !self.watched.contains(&path) && watcher.watch(&path, RecursiveMode::NonRecursive).is_ok() {
                self.watched.push(path);
            }
        }
    }

    fn forget(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for path in self.watched.drain(..) {
            // Fails if the system has forgotten it already.
            let _ = watcher.unwatch(&path);
        }
    }
}

/// The files at a path, and what was read of them.
struct Folder {
    path: PathBuf,
    files: Files,
    seen: BTreeMap<String, Seen>,
    doubles: Vec<Double>,
}

/// By what a changed file is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
    device: u64,
    changed: (i64, i64),
}

/// What a look at the files brought.
struct News {
    events: Vec<Event>,
    mistakes: Vec<Mistake>,
}

/// Something wrong with a file.
#[derive(Debug)]
enum Mistake {
    Unreadable { file: PathBuf, cause: io::Error },
    Problem { file: PathBuf, problem: Problem },
    Double { folder: PathBuf, double: Double },
}

impl Folder {
    fn new(path: &Path, scope: Scope, node: Option<Symbol>) -> Self {
        Self {
            path: path.to_owned(),
            files: Files::new(scope, node),
            seen: BTreeMap::new(),
            doubles: Vec::new(),
        }
    }

    /// Reads what has changed since the last look.
    fn look(&mut self) -> io::Result<News> {
        let names = self.names()?;
        let mut mistakes = Vec::new();
        let gone: Vec<_> =
            self.files.names().filter(|name| !names.contains_key(*name)).map(str::to_owned).collect();
        for name in gone {
            self.files.remove(&name);
        }
        self.seen.retain(|name, _| names.contains_key(name));
        for (name, path) in names {
            let read = Seen::of(&path).and_then(|seen| {
                if self.seen.get(&name) == Some(&seen) {
                    return Ok(None);
                }
                self.seen.insert(name.clone(), seen);
                contents(&path, seen.length).map(Some)
            });
            match read {
                Ok(None) => {}
                Ok(Some(contents)) => {
                    let problems = contents.problems.iter().cloned();
                    mistakes.extend(problems.map(|problem| Mistake::Problem { file: path.clone(), problem }));
                    self.files.put(&name, contents);
                }
                // Gone since the folder was read; the next look finds out.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => mistakes.push(Mistake::Unreadable { file: path, cause }),
            }
        }
        let events = self.files.changes();
        let doubles = self.files.doubles();
        let new = doubles.iter().filter(|double| !self.doubles.contains(double)).cloned();
        let folder = if self.path.is_dir() { self.path.clone() } else { PathBuf::new() };
        mistakes.extend(new.map(|double| Mistake::Double { folder: folder.clone(), double }));
        self.doubles = doubles.to_vec();
        Ok(News { events, mistakes })
    }

    /// The manifest files by the names under which they are ordered.
    fn names(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        if !std::fs::metadata(&self.path)?.is_dir() {
            return Ok([(self.path.display().to_string(), self.path.clone())].into());
        }
        let mut names = BTreeMap::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let is_manifest = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if is_manifest && !name.starts_with('.') && path.is_file() {
                names.insert(name.to_owned(), path);
            }
        }
        Ok(names)
    }

    /// The folders in which a change may matter, and a file that links to somewhere else.
    fn watchable(&self) -> Vec<PathBuf> {
        let folder_of = |path: &Path| match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_owned(),
            None => PathBuf::from("/"),
        };
        let mut folders = vec![folder_of(&self.path)];
        if self.path.is_dir() {
            folders.push(self.path.clone());
        } else if let Ok(real) = self.path.canonicalize() {
            folders.push(folder_of(&real));
        }
        folders
    }
}

impl Seen {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self {
            modified: meta.modified().ok(),
            length: meta.len(),
            inode: meta.ino(),
            device: meta.dev(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

fn contents(path: &Path, length: u64) -> io::Result<Contents> {
    let syntax = if path.extension().is_some_and(|e| e == "json") { Syntax::Json } else { Syntax::Yaml };
    if length > document::MAX_BYTES as u64 {
        return Err(io::Error::other(format!(
            "{length} bytes are more than the {} allowed",
            document::MAX_BYTES
        )));
    }
    Ok(document::decode(&std::fs::read(path)?, syntax))
}

impl News {
    fn log(&self, report: &Report) {
        for mistake in &self.mistakes {
            if let Mistake::Problem { problem, .. } = mistake {
                report.skipped(problem.lost.kind().unwrap_or(Kind::Services), problem.reason);
            }
        }
        for mistake in self.mistakes.iter().take(LOGGED) {
            warn!("{mistake}");
        }
        if self.mistakes.len() > LOGGED {
            warn!(more = self.mistakes.len() - LOGGED, "further mistakes in manifests");
        }
    }
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable { file, cause } => {
                write!(f, "{}: cannot be read: {cause}; what was read of it before stays", file.display())
            }
            Self::Problem { file, problem } => {
                let rest = match problem.lost {
                    Lost::Document => "; its objects stay as they were",
                    Lost::Object(..) => "; the object stays as it was",
                    Lost::Part(_) => "; the rest of the object serves",
                };
                write!(f, "{}, {problem}{rest}", file.display())
            }
            Self::Double { folder, double: Double { key, first, last } } => {
                let (first, last) = (folder.join(first), folder.join(last));
                write!(
                    f,
                    "{key} is in {} and again in {}: the last one counts",
                    first.display(),
                    last.display()
                )
            }
        }
    }
}
