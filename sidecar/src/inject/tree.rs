//! A YAML document and where each part of it stands. In: its text, JSON too. Out: a tree of places. Never changes
//! anything, and knows nothing of what the parts mean.

use granit_parser::{Event, Parser, Span, StructureStyle};

/// One value of the document.
#[derive(Debug)]
pub(super) struct Node {
    /// The byte where it begins: its first key or dash if it is in block style.
    pub(super) start: usize,
    /// The byte after it, without what follows in its last line.
    pub(super) end: usize,
    pub(super) shape: Shape,
}

#[derive(Debug)]
pub(super) enum Shape {
    /// A text, a number, or nothing.
    Scalar {
        is_null: bool,
    },
    /// A reference to an anchor: what it means stands elsewhere, for others too.
    Alias,
    Mapping(Style, Vec<Entry>),
    Sequence(Style, Vec<Node>),
}

/// How a collection is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A line for each part.
    Block,
    /// In brackets, as JSON is.
    Flow,
}

/// A key and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_start: usize,
    pub(super) value: Node,
}

/// A step down the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'s> {
    Key(&'s str),
    Index(usize),
}

/// The tree of a document that is known to be YAML within bounds; `None` if the two readers disagree on that.
pub(super) fn parse(text: &str) -> Option<Node> {
    let mut events = Parser::new_from_str(text).filter_map(|event| match event {
        Ok((Event::Comment(..) | Event::StreamStart | Event::DocumentStart(..), _)) => None,
        other => other.ok(),
    });
    let first = events.next()?;
    node(text, first, &mut events)
}

type Spanned<'t> = (Event<'t>, Span);

fn node<'t>(
    text: &str,
    (event, span): Spanned<'t>,
    events: &mut impl Iterator<Item = Spanned<'t>>,
) -> Option<Node> {
    let range = span.byte_range()?;
    let (mut start, mut end) = (range.start, range.end);
    let shape = match event {
        Event::Scalar(scalar, style, ..) => {
            let is_plain = style == granit_parser::ScalarStyle::Plain;
            Shape::Scalar { is_null: is_plain && matches!(&*scalar, "" | "~" | "null") }
        }
        Event::Alias(_) => Shape::Alias,
        Event::MappingStart(style, ..) => {
            let mut entries: Vec<Entry> = Vec::new();
            loop {
                let (key, place) = match events.next()? {
                    (Event::MappingEnd, last) => {
                        end = ended(style, &last, entries.last().map(|entry| &entry.value))?;
                        break;
                    }
                    (Event::Scalar(key, ..), place) => (key.into_owned(), place.byte_range()?),
                    // Kubernetes has no keys but texts.
                    _ => return None,
                };
                let next = events.next()?;
                let mut value = node(text, next, events)?;
                // A value that is not there stands wherever the reader noticed.
                if matches!(value.shape, Shape::Scalar { is_null: true }) && value.start == value.end {
                    (value.start, value.end) = (place.end + 1, place.end + 1);
                }
                entries.push(Entry { key, key_start: place.start, value });
            }
            Shape::Mapping(style.into(), entries)
        }
        Event::SequenceStart(style, ..) => {
            let mut items = Vec::new();
            loop {
                match events.next()? {
                    (Event::SequenceEnd, last) => {
                        end = ended(style, &last, items.last())?;
                        break;
                    }
                    next => items.push(node(text, next, events)?),
                }
            }
            if let (StructureStyle::Block, Some(first)) = (style, items.first()) {
                start = dash(text, start, first.start);
            }
            Shape::Sequence(style.into(), items)
        }
        _ => return None,
    };
    Some(Node { start, end, shape })
}

/// The dash of a sequence whose first item begins at `item`; the reader says `start`, and misses it behind a comment.
fn dash(text: &str, start: usize, item: usize) -> usize {
    if text[start..].starts_with('-') {
        return start;
    }
    let lines = text[..item].split_inclusive('\n').rev();
    let mut end = item;
    for line in lines {
        let begin = end - line.len();
        let indent = line.len() - line.trim_start().len();
        if line[indent..].starts_with('-') {
            return begin + indent;
        }
        end = begin;
    }
    start
}

/// Where a collection ends: behind its bracket, or with its last part.
fn ended(style: StructureStyle, span: &Span, last: Option<&Node>) -> Option<usize> {
    match (style, last) {
        (StructureStyle::Block, Some(last)) => Some(last.end),
        _ => span.byte_range().map(|range| range.end),
    }
}

impl From<StructureStyle> for Style {
    fn from(style: StructureStyle) -> Self {
        match style {
            StructureStyle::Block => Self::Block,
            StructureStyle::Flow => Self::Flow,
        }
    }
}

impl Node {
    /// What is at `path` from here.
    pub(super) fn at(&self, path: &[Step<'_>]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| match (step, &node.shape) {
            (Step::Key(key), Shape::Mapping(..)) => node.entry(key).map(|entry| &entry.value),
            (Step::Index(index), Shape::Sequence(_, items)) => items.get(*index),
            _ => None,
        })
    }

    /// The entry of a mapping.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.shape {
            Shape::Mapping(_, entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }
}
