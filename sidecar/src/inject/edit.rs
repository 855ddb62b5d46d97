//! Changes a few places of a YAML document and no other byte: comments, order and style stay, and what was added can be
//! taken away again. In: a document, its tree, what to add or remove. Out: the new text.
//!
//! What is added stands first in its mapping or sequence, in the style of that: lines in front of the first key or
//! dash, or JSON in its brackets.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use super::tree::{Entry, Node, Shape, Style};

/// The document cannot be changed at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Impossible;

/// Changes to be made, none overlapping another.
#[derive(Debug)]
pub(super) struct Edits<'t> {
    text: &'t str,
    changes: Vec<(Range<usize>, String)>,
}

impl<'t> Edits<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        Self { text, changes: Vec::new() }
    }

    /// Adds an entry to a mapping that has no such key.
    pub(super) fn add_entry(
        &mut self,
        mapping: &Node,
        key: &str,
        value: &impl Serialize,
    ) -> Result<(), Impossible> {
        let entry = BTreeMap::from([(key, value)]);
        match &mapping.shape {
            Shape::Mapping(Style::Flow, entries) => {
                let json = json(&entry)?;
                // Without the braces, which are there.
                let first = entries.first().map(|entry| entry.key_start);
                self.insert_in_brackets(mapping, first, &json[1..json.len() - 1]);
                Ok(())
            }
            Shape::Mapping(Style::Block, entries) => {
                let first = entries.first().ok_or(Impossible)?;
                self.insert_lines(first.key_start, &entry)
            }
            Shape::Scalar { is_null: true } => {
                let json = json(&entry)?;
                let lead = if mapping.start == mapping.end { " " } else { "" };
                self.changes.push((mapping.start..mapping.end, format!("{lead}{json}")));
                Ok(())
            }
            _ => Err(Impossible),
        }
    }

    /// Adds items to a sequence, in front of all others.
    pub(super) fn add_items<T: Serialize>(&mut self, sequence: &Node, items: &[T]) -> Result<(), Impossible> {
        match &sequence.shape {
            Shape::Sequence(Style::Flow, old) => {
                let json = json(&items)?;
                let first = old.first().map(|item| item.start);
                self.insert_in_brackets(sequence, first, &json[1..json.len() - 1]);
                Ok(())
            }
            Shape::Sequence(Style::Block, _) => self.insert_lines(sequence.start, &items),
            Shape::Scalar { is_null: true } => {
                let lead = if sequence.start == sequence.end { " " } else { "" };
                self.changes.push((sequence.start..sequence.end, format!("{lead}{}", json(&items)?)));
                Ok(())
            }
            _ => Err(Impossible),
        }
    }

    /// Removes the entries of `mapping`, which is the value of `whole` in `around`, that `is_it` says; the whole if
    /// nothing is left of it.
    pub(super) fn remove_entries(&mut self, around: &Node, whole: &Entry, is_it: impl Fn(&Entry) -> bool) {
        let Shape::Mapping(_, entries) = &whole.value.shape else { return };
        let places: Vec<_> = entries.iter().map(|entry| entry.key_start..entry.value.end).collect();
        let is_it: Vec<bool> = entries.iter().map(is_it).collect();
        self.remove(around, whole, &places, &is_it);
    }

    /// Removes items of the sequence that is the value of `whole` in `around`; the whole if nothing is left of it.
    pub(super) fn remove_items(&mut self, around: &Node, whole: &Entry, is_it: impl Fn(usize) -> bool) {
        let Shape::Sequence(style, items) = &whole.value.shape else { return };
        let first = whole.value.start;
        let start = |item: &Node| match style {
            Style::Flow => item.start,
            Style::Block => self.dash(first, item.start),
        };
        let places: Vec<_> = items.iter().map(|item| start(item)..item.end).collect();
        let is_it: Vec<bool> = (0..items.len()).map(is_it).collect();
        self.remove(around, whole, &places, &is_it);
    }

    /// Removes the entry `whole` of `around`.
    pub(super) fn remove_entry(&mut self, around: &Node, whole: &Entry) {
        let Shape::Mapping(_, entries) = &around.shape else { return };
        let places: Vec<_> = entries.iter().map(|entry| entry.key_start..entry.value.end).collect();
        let at = entries.iter().position(|entry| entry.key_start == whole.key_start);
        self.changes.extend(at.map(|at| (without(&places, at..at + 1), String::new())));
    }

    fn remove(&mut self, around: &Node, whole: &Entry, places: &[Range<usize>], is_it: &[bool]) {
        if !is_it.contains(&true) {
            return;
        }
        if is_it.iter().all(|is_it| *is_it) {
            return self.remove_entry(around, whole);
        }
        let mut at = 0;
        for run in is_it.chunk_by(|a, b| a == b) {
            if run[0] {
                self.changes.push((without(places, at..at + run.len()), String::new()));
            }
            at += run.len();
        }
    }

    /// The document with all changes.
    pub(super) fn made(mut self) -> String {
        self.changes.sort_by_key(|(place, _)| place.start);
        let (mut made, mut at) = (String::with_capacity(self.text.len() + 4096), 0);
        for (place, new) in self.changes {
            // Of two neighbours that go, one may reach into the other.
            made += &self.text[at..place.start.max(at)];
            made += &new;
            at = place.end.max(at);
        }
        made + &self.text[at..]
    }

    /// Lines in front of `at`, as far to the right as that is.
    fn insert_lines(&mut self, at: usize, value: &impl Serialize) -> Result<(), Impossible> {
        let column = self.column(at);
        let yaml = serde_saphyr::to_string(value).map_err(|_| Impossible)?;
        let next = format!("\n{}", " ".repeat(column));
        let lines: Vec<&str> = yaml.trim_end().lines().collect();
        self.changes.push((at..at, lines.join(&next) + &next));
        Ok(())
    }

    /// In front of the first part, so that the lines of both are what they were.
    fn insert_in_brackets(&mut self, node: &Node, first: Option<usize>, inner: &str) {
        let (at, comma) = first.map_or((node.start + 1, ""), |first| (first, ", "));
        self.changes.push((at..at, format!("{inner}{comma}")));
    }

    /// How many characters precede `at` in its line.
    fn column(&self, at: usize) -> usize {
        let line = self.text[..at].rfind('\n').map_or(0, |end| end + 1);
        self.text[line..at].chars().count()
    }

    /// The dash of an item that begins at `item`; all dashes of a sequence stand below the first.
    fn dash(&self, first: usize, item: usize) -> usize {
        let column = self.column(first);
        let mut end = item;
        while end > first {
            let line = self.text[..end].rfind('\n').map_or(0, |end| end + 1);
            let dash = line + column;
            if self.text.as_bytes().get(dash) == Some(&b'-') && self.text[line..dash].trim().is_empty() {
                return dash;
            }
            end = line.saturating_sub(1);
        }
        first
    }
}

/// What goes so that the parts `run` go, and no others.
fn without(places: &[Range<usize>], run: Range<usize>) -> Range<usize> {
    match (places.get(run.end), run.start.checked_sub(1).map(|before| &places[before])) {
        (Some(next), _) => places[run.start].start..next.start,
        (None, Some(before)) => before.end..places[run.end - 1].end,
        (None, None) => places[run.start].start..places[run.end - 1].end,
    }
}

/// JSON is YAML in flow style.
fn json(value: &impl Serialize) -> Result<String, Impossible> {
    serde_json::to_string(value).map_err(|_| Impossible)
}
