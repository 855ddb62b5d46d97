//! Where in a text a field stands. In: a document and a path like `spec.ports[0].port`. Out: line and column. Asked
//! only about fields that are wrong, so that the ordinary way carries no positions.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

/// How YAML is read everywhere here: within bounds that a large cluster does not reach, but aliases that multiply
/// and nesting that overflows a stack do.
pub(super) fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: super::document::MAX_BYTES,
            max_depth: 64,
        },
    }
}

/// Line and column, from 1, of the field at `path`, or of the nearest thing around it that is there.
pub(super) fn line(document: &str, path: &str) -> Option<(u64, u64)> {
    let path = steps(path);
    (1..=path.len()).rev().find_map(|length| {
        let found =
            serde_saphyr::with_deserializer_from_str_with_options(document, options(), |deserializer| {
                Walk(&path[..length]).deserialize(deserializer)
            });
        found.ok().flatten()
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
}

/// The steps of a path as `object::Warning` writes it.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (name, after) = quoted.split_once("\"]").unwrap_or((quoted, ""));
            steps.push(Step::Name(name.to_owned()));
            rest = after;
        } else if let Some(index) = rest.strip_prefix('[') {
            let (index, after) = index.split_once(']').unwrap_or((index, ""));
            steps.extend(index.parse().map(Step::Index));
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(Step::Name(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    steps
}

/// Goes along the path and tells where the last step's value stands; not where the first one does, for which a
/// parent is needed.
struct Walk<'p>(&'p [Step]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Option<(u64, u64)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Option<(u64, u64)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            match self.0 {
                [Step::Name(wanted)] if *wanted == name => found = Some(place(&map.next_value()?)),
                [Step::Name(wanted), rest @ ..] if *wanted == name => {
                    found = map.next_value_seed(Walk(rest))?
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        for i in 0.. {
            match self.0 {
                [Step::Index(wanted)] if *wanted == i => match list.next_element()? {
                    Some(value) => found = Some(place(&value)),
                    None => break,
                },
                [Step::Index(wanted), rest @ ..] if *wanted == i => {
                    match list.next_element_seed(Walk(rest))? {
                        Some(value) => found = value,
                        None => break,
                    }
                }
                _ => {
                    if list.next_element::<IgnoredAny>()?.is_none() {
                        break;
                    }
                }
            }
        }
        Ok(found)
    }
}

fn place(value: &Spanned<IgnoredAny>) -> (u64, u64) {
    (value.referenced.line(), value.referenced.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "kind: Service
metadata:
  annotations:
    remora.dev/balance: nonsense
spec:
  ports:
  - port: 80
  - name: b
    port: 0
";

    #[test]
    fn a_field_is_found_at_its_line() {
        assert_eq!(line(TEXT, "spec.ports[1].port"), Some((9, 11)));
        assert_eq!(line(TEXT, "metadata.annotations[\"remora.dev/balance\"]"), Some((4, 25)));
        assert_eq!(line("[{\"a\":\n 1}]", "[0].a"), Some((2, 2)));
    }

    #[test]
    fn a_missing_field_is_found_at_what_should_have_it() {
        assert_eq!(line(TEXT, "spec.ports[0].protocol.x"), Some((7, 5)));
        assert_eq!(line(TEXT, "nowhere"), None);
    }
}
