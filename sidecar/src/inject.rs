//! `remora inject` and `remora uninject`: manifests with sidecars, or without. In: YAML or JSON, with anything in it. Out:
//! the same, in which every Pod and every template of Pods has its two containers more; and a report of what was done,
//! what was skipped, and why. Never touches a byte of anything else, not even a comment.

mod container;
mod edit;
mod pod;
mod review;
mod tree;
mod webhook;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Read as _;
use std::path::PathBuf;

use serde_json::{Map, Value};
use watcher::manifests::document::{documents, value};

pub use pod::{Additions, Around, Settings, Skip, additions};
pub use webhook::{Counts, Webhook};

use crate::arguments::ManifestFormat;
use crate::marks::INJECTED;
use edit::{Edits, Impossible};
use tree::{Node, Shape, Step};

/// Longer texts are a mistake.
const BYTES_MOST: usize = 128 << 20;
/// Kinds with a template of Pods, and where that is.
const KINDS: [(&str, &[&str]); 8] = [
    ("Pod", &[]),
    ("Deployment", &["spec", "template"]),
    ("DaemonSet", &["spec", "template"]),
    ("StatefulSet", &["spec", "template"]),
    ("ReplicaSet", &["spec", "template"]),
    ("ReplicationController", &["spec", "template"]),
    ("Job", &["spec", "template"]),
    ("CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// Lists of a Pod in which something is ours, and the names of that.
const OURS: [(&str, &[&str]); 2] = [("initContainers", &container::NAMES), ("volumes", &[container::TOKEN])];

/// Which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Adds sidecars.
    Inject(Settings),
    /// Takes them away.
    Uninject,
}

/// Why nothing, or not everything, was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no text.
    #[error("cannot read {0}: {1}; name a manifest with -f, or - for standard input")]
    Read(String, std::io::Error),
    /// Too long.
    #[error("{0} is longer than {BYTES_MOST} bytes; split it")]
    TooLong(String),
    /// Some of it stays as it is for a mistake in it; the report names it.
    #[error(
        "{0} of the objects could not be changed, see above; everything else was, and they are passed on as they were"
    )]
    Mistakes(usize),
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has sidecars, with what the user should know.
    Injected(Option<String>),
    /// It has none any more.
    Uninjected,
    /// It stays as it is.
    Skipped(Skip),
    /// It had nothing to be taken away.
    Clean,
    /// It cannot be changed.
    Impossible(String),
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Such as `Deployment shop/web`.
    pub object: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl Line {
    /// Whether somebody has to mend something.
    pub fn is_mistake(&self) -> bool {
        match &self.outcome {
            Outcome::Impossible(_) => true,
            Outcome::Skipped(skip) => skip.is_mistake(),
            _ => false,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, outcome } = self;
        match outcome {
            Outcome::Injected(None) => write!(f, "{object}: injected"),
            Outcome::Injected(Some(note)) => write!(f, "{object}: injected {note}"),
            Outcome::Uninjected => write!(f, "{object}: uninjected"),
            Outcome::Skipped(skip) => write!(f, "{object}: skipped: {skip}"),
            Outcome::Clean => write!(f, "{object}: had no sidecar"),
            Outcome::Impossible(why) => write!(f, "{object}: not changed: {why}"),
        }
    }
}

/// Reads the manifests, changes them, and writes the report to standard error.
///
/// # Errors
/// If there is nothing to read, or something in it is wrong.
pub fn run(
    way: &Way,
    file: Option<PathBuf>,
    format: ManifestFormat,
    out: impl FnOnce(&str),
) -> Result<(), Error> {
    let text = read(file)?;
    let (changed, report) = change(&text, way);
    out(&match format {
        ManifestFormat::Yaml => changed,
        ManifestFormat::Json => as_json(&changed),
    });
    let lines: String = report.iter().map(|line| format!("{line}\n")).collect();
    eprint!("{lines}");
    match report.iter().filter(|line| line.is_mistake()).count() {
        0 => Ok(()),
        mistakes => Err(Error::Mistakes(mistakes)),
    }
}

fn read(file: Option<PathBuf>) -> Result<String, Error> {
    let name = file.as_ref().map_or("standard input".to_owned(), |path| path.display().to_string());
    let failed = |error| Error::Read(name.clone(), error);
    let reader: Box<dyn std::io::Read> = match file {
        Some(path) => Box::new(std::fs::File::open(path).map_err(failed)?),
        None => Box::new(std::io::stdin()),
    };
    let mut text = String::new();
    reader.take(BYTES_MOST as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() > BYTES_MOST { Err(Error::TooLong(name)) } else { Ok(text) }
}

/// The manifests of `text`, changed, and what became of each that could have a sidecar.
pub fn change(text: &str, way: &Way) -> (String, Vec<Line>) {
    let (mut changed, mut report) = (String::with_capacity(text.len()), Vec::new());
    let documents: Vec<(&str, Option<Value>)> = documents(text).map(|text| (text, value(text))).collect();
    let security = pod_security(documents.iter().filter_map(|(_, value)| value.as_ref()));
    for (number, (text, value)) in documents.into_iter().enumerate() {
        let mut document = Document { text: text.to_owned(), number: number + 1, report: &mut report };
        match value {
            Some(value) => document.objects(value, &[], way, &security),
            None => document.tell("is neither YAML nor JSON; it is passed on as it is".to_owned()),
        }
        changed += &document.text;
    }
    (changed, report)
}

/// The Pod Security levels that Namespaces among the manifests enforce.
fn pod_security<'v>(values: impl Iterator<Item = &'v Value>) -> BTreeMap<String, String> {
    let level = |value: &Value| {
        let (name, labels) = (value["metadata"]["name"].as_str()?, &value["metadata"]["labels"]);
        let level = labels["pod-security.kubernetes.io/enforce"].as_str()?;
        (value["kind"] == "Namespace").then(|| (name.to_owned(), level.to_owned()))
    };
    values.filter_map(level).collect()
}

/// A document that is being changed.
struct Document<'r> {
    text: String,
    /// Which of the text, from 1.
    number: usize,
    report: &'r mut Vec<Line>,
}

impl Document<'_> {
    fn tell(&mut self, why: String) {
        let object = format!("document {}", self.number);
        self.report.push(Line { object, outcome: Outcome::Impossible(why) });
    }

    /// Changes the object at `path`, or those in it if it is a list.
    fn objects(&mut self, value: Value, path: &[Step<'_>], way: &Way, security: &BTreeMap<String, String>) {
        let kind = value["kind"].as_str().unwrap_or_default();
        if let (true, Some(items)) = (kind.ends_with("List"), value["items"].as_array()) {
            for (index, item) in items.iter().enumerate() {
                let path = [path, &[Step::Key("items"), Step::Index(index)]].concat();
                self.objects(item.clone(), &path, way, security);
            }
            return;
        }
        let Some((_, template)) = KINDS.iter().find(|(known, _)| *known == kind) else { return };
        let object = named(kind, &value["metadata"]);
        let path = [path, &template.iter().map(|key| Step::Key(key)).collect::<Vec<_>>()].concat();
        let pod = template.iter().fold(&value, |value, key| &value[*key]);
        let outcome = match way {
            Way::Inject(settings) => {
                let namespace = value["metadata"]["namespace"].as_str().unwrap_or("default");
                let around = Around { pod_security: security.get(namespace).cloned() };
                match additions(pod, &around, settings) {
                    Ok(additions) => {
                        let note = additions.note.clone();
                        self.edit(
                            pod,
                            &path,
                            |text, node| add(text, node, &additions),
                            |pod| added(pod, &additions),
                        )
                        .map(|()| Outcome::Injected(note))
                    }
                    Err(skip) => Ok(Outcome::Skipped(skip)),
                }
            }
            Way::Uninject if !is_injected(pod) => Ok(Outcome::Clean),
            Way::Uninject => self.edit(pod, &path, remove, removed).map(|()| Outcome::Uninjected),
        };
        let outcome = outcome.unwrap_or_else(|Impossible| {
            let path: String = template.iter().flat_map(|key| [".", key]).collect();
            Outcome::Impossible(format!(
                "its template at {} uses aliases or forms of YAML that cannot be edited in place; write it out plainly",
                if path.is_empty() { "." } else { &path }
            ))
        });
        self.report.push(Line { object, outcome });
    }

    /// Edits the text of the Pod at `path` so that it means what `meaning` makes of `pod`, or not at all.
    fn edit(
        &mut self,
        pod: &Value,
        path: &[Step<'_>],
        edit: impl FnOnce(&str, &Node) -> Result<String, Impossible>,
        meaning: impl FnOnce(&mut Value) -> Option<()>,
    ) -> Result<(), Impossible> {
        let root = tree::parse(&self.text).ok_or(Impossible)?;
        let edited = edit(&self.text, root.at(path).ok_or(Impossible)?)?;
        let mut expected = value(&self.text).ok_or(Impossible)?;
        let mut place = &mut expected;
        for step in path {
            let next = match step {
                Step::Key(key) => place.get_mut(*key),
                Step::Index(index) => place.get_mut(*index),
            };
            place = next.ok_or(Impossible)?;
        }
        if place != pod {
            return Err(Impossible);
        }
        meaning(place).ok_or(Impossible)?;
        // Whatever the text looks like, what it says is what counts.
        if value(&edited).as_ref() != Some(&expected) {
            return Err(Impossible);
        }
        self.text = edited;
        Ok(())
    }
}

fn named(kind: &str, metadata: &Value) -> String {
    let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or("without a name");
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// The text with `additions` in the Pod at `pod`.
fn add(text: &str, pod: &Node, additions: &Additions) -> Result<String, Impossible> {
    let mut edits = Edits::of(text);
    let spec = pod.entry("spec").ok_or(Impossible)?;
    match spec.value.entry("initContainers") {
        Some(old) => edits.add_items(&old.value, &additions.init_containers)?,
        None => edits.add_entry(&spec.value, "initContainers", &additions.init_containers)?,
    }
    if !additions.volumes.is_empty() {
        match spec.value.entry("volumes") {
            Some(old) => edits.add_items(&old.value, &additions.volumes)?,
            None => edits.add_entry(&spec.value, "volumes", &additions.volumes)?,
        }
    }
    match pod.entry("metadata") {
        None => {
            edits.add_entry(pod, "metadata", &BTreeMap::from([("annotations", &additions.annotations)]))?;
        }
        Some(metadata) => match metadata.value.entry("annotations") {
            None => edits.add_entry(&metadata.value, "annotations", &additions.annotations)?,
            Some(annotations) => {
                for (key, value) in &additions.annotations {
                    edits.add_entry(&annotations.value, key, value)?;
                }
            }
        },
    }
    Ok(edits.made())
}

/// What [`add`] means.
fn added(pod: &mut Value, additions: &Additions) -> Option<()> {
    let spec = pod.get_mut("spec")?.as_object_mut()?;
    let mut prepend = |key: &str, ours: Value| {
        let old = spec.remove(key).unwrap_or_default();
        let all = [ours, old].into_iter().flat_map(|list| list.as_array().cloned().unwrap_or_default());
        spec.insert(key.to_owned(), all.collect());
    };
    prepend("initContainers", serde_json::to_value(&additions.init_containers).ok()?);
    if !additions.volumes.is_empty() {
        prepend("volumes", serde_json::to_value(&additions.volumes).ok()?);
    }
    let metadata = mapping(pod, "metadata")?;
    let annotations = mapping(metadata, "annotations")?.as_object_mut()?;
    annotations
        .extend(additions.annotations.iter().map(|(key, text)| ((*key).to_owned(), text.as_str().into())));
    Some(())
}

/// The mapping `key` of another one, made if there is nothing.
fn mapping<'v>(of: &'v mut Value, key: &str) -> Option<&'v mut Value> {
    let mapping = of.as_object_mut()?.entry(key).or_insert(Value::Null);
    if mapping.is_null() {
        *mapping = Value::Object(Map::new());
    }
    Some(mapping)
}

fn is_injected(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][INJECTED].is_null()
}

/// The text without what [`add`] added to the Pod at `pod`.
fn remove(text: &str, pod: &Node) -> Result<String, Impossible> {
    let mut edits = Edits::of(text);
    let spec = &pod.entry("spec").ok_or(Impossible)?.value;
    for (list, ours) in OURS {
        let Some(whole) = spec.entry(list) else { continue };
        let Shape::Sequence(_, items) = &whole.value.shape else { return Err(Impossible) };
        let name =
            |item: &Node| item.entry("name").map(|entry| text[entry.value.start..entry.value.end].to_owned());
        let is_ours =
            |item: &Node| name(item).is_some_and(|name| ours.contains(&name.trim_matches(['"', '\''])));
        edits.remove_items(spec, whole, |index| is_ours(&items[index]));
    }
    let metadata = pod.entry("metadata").ok_or(Impossible)?;
    let annotations = metadata.value.entry("annotations").ok_or(Impossible)?;
    // What is left empty goes, up to the Pod itself.
    let is_last = |node: &Node| matches!(&node.shape, Shape::Mapping(_, entries) if entries.len() == 1);
    if is_last(&metadata.value) && is_last(&annotations.value) {
        edits.remove_entry(pod, metadata);
    } else {
        edits.remove_entries(&metadata.value, annotations, |entry| entry.key == INJECTED);
    }
    Ok(edits.made())
}

/// What [`remove`] means.
fn removed(pod: &mut Value) -> Option<()> {
    let spec = pod.get_mut("spec")?;
    for (list, ours) in OURS {
        if let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) {
            items.retain(|item| !item["name"].as_str().is_some_and(|name| ours.contains(&name)));
        }
        drop_empty(spec, list);
    }
    let metadata = pod.get_mut("metadata")?;
    metadata.get_mut("annotations")?.as_object_mut()?.remove(INJECTED);
    drop_empty(metadata, "annotations");
    drop_empty(pod, "metadata");
    Some(())
}

fn drop_empty(of: &mut Value, key: &str) {
    let is_empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    };
    if let Some(of) = of.as_object_mut()
        && of.get(key).is_some_and(is_empty)
    {
        of.remove(key);
    }
}

/// Every document as JSON, one after the other.
fn as_json(text: &str) -> String {
    let mut json = String::new();
    for value in documents(text).filter_map(value).filter(|value| !value.is_null()) {
        let _ = writeln!(json, "{value:#}");
    }
    json
}

#[cfg(test)]
mod tests;
