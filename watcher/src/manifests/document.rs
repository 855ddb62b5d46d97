//! Manifest texts into objects. In: the bytes of a file. Out: its objects, and its problems with document, line and
//! field. Never panics, whatever the bytes; never lets one document spoil another.

use std::fmt;

use serde_json::Value;

use super::locate;
use crate::object::{self, Object};
use crate::store::{Key, Kind};

/// A file may be this long: 70,000 endpoints take a third of it.
pub const MAX_BYTES: usize = 128 << 20;
/// Problems of a file that are located by line; each costs a pass over its document.
const LOCATED: usize = 20;

/// The contents of one file.
#[derive(Debug, Default)]
pub struct Contents {
    /// The objects, in their order, each with what was left out of it.
    pub objects: Vec<Object>,
    /// Everything that was left out, in the order of the file.
    pub problems: Vec<Problem>,
}

/// One thing in a file that cannot be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The document in the file, from 1.
    pub document: usize,
    /// The line in the file, from 1.
    pub line: Option<u64>,
    /// The column, from 1.
    pub column: Option<u64>,
    /// The field.
    pub field: Option<String>,
    /// What is lost.
    pub lost: Lost,
    /// A stable word, also the metric label.
    pub reason: &'static str,
    /// What is wrong.
    pub message: String,
}

/// What a [`Problem`] costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The document is not YAML or JSON: whatever objects are in it.
    Document,
    /// An object; its kind and name if that much can be read.
    Object(Option<Kind>, Option<Key>),
    /// A part of an object, which is served without it.
    Part(Key),
}

impl Lost {
    /// The kind of the object, if known.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Document => None,
            Self::Object(kind, _) => *kind,
            Self::Part(key) => Some(key.kind()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ", column {column}")?;
        }
        if let Lost::Object(_, Some(key)) | Lost::Part(key) = &self.lost {
            write!(f, ", {key}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ", {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// YAML, of which JSON is a part; documents are separated by `---`.
    Yaml,
    /// JSON values, one after the other.
    Json,
}

/// The objects in `bytes`.
pub fn decode(bytes: &[u8], syntax: Syntax) -> Contents {
    let mut contents = Contents::default();
    let whole = |reason, message: String| Problem {
        document: 1,
        line: None,
        column: None,
        field: None,
        lost: Lost::Document,
        reason,
        message,
    };
    if bytes.len() > MAX_BYTES {
        let message =
            format!("{} bytes are too many: split it into files of at most {MAX_BYTES}", bytes.len());
        contents.problems.push(whole("size", message));
        return contents;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
            let problem = whole("syntax", "is not UTF-8".to_owned());
            contents.problems.push(Problem { line: Some(line), ..problem });
            return contents;
        }
    };
    match syntax {
        Syntax::Yaml => {
            let documents = parts(text).filter(|document| !is_blank(document.text));
            documents.enumerate().for_each(|(i, document)| yaml(i + 1, document, &mut contents))
        }
        Syntax::Json => json(text, &mut contents),
    }
    contents
}

/// A part of a file, and how many lines precede it.
#[derive(Clone, Copy, Debug)]
struct Document<'t> {
    text: &'t str,
    lines_before: u64,
}

/// The documents of a YAML text, some of which may be empty; all together are the text, byte for byte.
pub fn documents(text: &str) -> impl Iterator<Item = &str> {
    parts(text).map(|document| document.text)
}

/// What one document says; null for an empty one, `None` if it is neither YAML nor JSON, or unreasonable.
pub fn value(document: &str) -> Option<Value> {
    if is_blank(document) {
        return Some(Value::Null);
    }
    serde_saphyr::from_str_with_options(document, locate::options()).ok()
}

/// A line that begins with `---` begins a document, wherever it stands: not even a block of text may have such a line.
/// So each is parsed by itself.
fn parts(text: &str) -> impl Iterator<Item = Document<'_>> {
    let mut rest = Some(Document { text, lines_before: 0 });
    let next = move || {
        let Document { text, lines_before } = rest.take()?;
        let mut at = 0;
        for (i, line) in text.split_inclusive('\n').enumerate() {
            if i > 0 && is_marker(line) {
                rest = Some(Document { text: &text[at..], lines_before: lines_before + i as u64 });
                return Some(Document { text: &text[..at], lines_before });
            }
            at += line.len();
        }
        Some(Document { text, lines_before })
    };
    std::iter::from_fn(next)
}

/// Whether there is nothing but comments and marks.
fn is_blank(document: &str) -> bool {
    let mut lines = document.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.all(|line| matches!(line.trim_end(), "---" | "..."))
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn yaml(number: usize, document: Document<'_>, contents: &mut Contents) {
    match serde_saphyr::from_str_with_options::<Value>(document.text, locate::options()) {
        Ok(value) => objects(number, &value, document, contents),
        Err(error) => {
            let location = error.location();
            contents.problems.push(Problem {
                document: number,
                line: location.map(|location| document.lines_before + location.line()),
                column: location.map(|location| location.column()),
                field: None,
                lost: Lost::Document,
                reason: "syntax",
                message: one_line(&error.without_snippet().to_string()),
            });
        }
    }
}

fn json(text: &str, contents: &mut Contents) {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    for number in 1.. {
        let from = values.byte_offset();
        match values.next() {
            None => return,
            Some(Ok(value)) => {
                let lines_before = text[..from].bytes().filter(|byte| *byte == b'\n').count() as u64;
                let document = Document { text: &text[from..values.byte_offset()], lines_before };
                objects(number, &value, document, contents);
            }
            Some(Err(error)) => {
                contents.problems.push(Problem {
                    document: number,
                    line: Some(error.line() as u64),
                    column: Some(error.column() as u64),
                    field: None,
                    lost: Lost::Document,
                    reason: "syntax",
                    message: one_line(&error.to_string()),
                });
                return;
            }
        }
    }
}

fn objects(number: usize, value: &Value, document: Document<'_>, contents: &mut Contents) {
    // An empty document is no mistake.
    if value.is_null() {
        return;
    }
    for (path, read) in object::read(value) {
        let mut problem = |lost, warning: &object::Warning| {
            let field = format!("{path}{}", warning.field);
            let is_located = contents.problems.len() < LOCATED;
            let location = if is_located { locate::line(document.text, &field) } else { None };
            contents.problems.push(Problem {
                document: number,
                line: location.map(|(line, _)| document.lines_before + line),
                column: location.map(|(_, column)| column),
                field: Some(field),
                lost,
                reason: warning.reason,
                message: warning.message.clone(),
            });
        };
        match read {
            Ok(reading) => {
                if let Object::Item(item) = &reading.object {
                    let key = item.key();
                    reading.warnings.iter().for_each(|warning| problem(Lost::Part(key.clone()), warning));
                }
                if reading.object != Object::Other {
                    contents.objects.push(reading.object);
                }
            }
            Err(error) => problem(Lost::Object(error.kind, error.key), &error.cause),
        }
    }
}

/// Parsers put their messages on several lines; a log has one.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
