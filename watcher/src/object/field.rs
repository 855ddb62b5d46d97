//! A place in a JSON value that knows its path, so that whatever is wrong can be named. Absent and `null` are the
//! same everywhere, as they are to the API server.

use std::fmt::Write;
use std::str::FromStr;

use serde_json::Value;

use super::Warning;

/// A field of a value `'v`, present or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'v, 'p> {
    value: Option<&'v Value>,
    step: Step<'p>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'p> {
    Root,
    Name(&'p Field<'p, 'p>, &'p str),
    Index(&'p Field<'p, 'p>, usize),
}

impl<'v> Field<'v, 'static> {
    pub(super) fn root(value: &'v Value) -> Self {
        Self { value: Some(value).filter(|value| !value.is_null()), step: Step::Root }
    }
}

impl<'v> Field<'v, '_> {
    /// The field `name` of this object; absent if this is none.
    pub(super) fn get<'p>(&'p self, name: &'p str) -> Field<'v, 'p> {
        let value = self.value.and_then(|value| value.get(name)).filter(|value| !value.is_null());
        Field { value, step: Step::Name(self, name) }
    }

    /// The elements of this list; none if absent.
    pub(super) fn items<'p>(&'p self) -> Result<impl ExactSizeIterator<Item = Field<'v, 'p>>, Warning> {
        let items: &'v [Value] = match self.value {
            None => &[],
            Some(Value::Array(items)) => items,
            Some(_) => return Err(self.wrong("a list")),
        };
        let field = move |(i, value): (usize, &'v Value)| Field {
            value: Some(value).filter(|value| !value.is_null()),
            step: Step::Index(self, i),
        };
        Ok(items.iter().enumerate().map(field))
    }

    pub(super) fn text(&self) -> Result<Option<&'v str>, Warning> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong("a string")),
        }
    }

    /// A text that is there and not empty.
    pub(super) fn required_text(&self) -> Result<&'v str, Warning> {
        self.text()?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| self.warning("missing", "is missing".to_owned()))
    }

    pub(super) fn flag(&self) -> Result<Option<bool>, Warning> {
        match self.value {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong("true or false")),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn number(&self, least: u32, most: u32) -> Result<Option<u32>, Warning> {
        let Some(value) = self.value else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None if value.is_number() => {
                Err(self.warning("range", format!("{value} is not between {least} and {most}")))
            }
            None => Err(self.wrong("a number")),
        }
    }

    /// A port number from `least` to 65535.
    pub(super) fn port(&self, least: u16) -> Result<Option<u16>, Warning> {
        let number = self.number(u32::from(least), u32::from(u16::MAX))?;
        Ok(number.and_then(|number| u16::try_from(number).ok()))
    }

    /// What the text, stripped of white space, says; `what` names it in the message.
    pub(super) fn parsed<T: FromStr>(&self, what: &str) -> Result<Option<T>, Warning> {
        let Some(text) = self.text()? else { return Ok(None) };
        let invalid = |_| self.warning("value", format!("{text:?} is not {what}"));
        text.trim().parse().map(Some).map_err(invalid)
    }

    /// One of the words in `choices`.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<Option<T>, Warning> {
        let Some(text) = self.text()?.filter(|text| !text.is_empty()) else { return Ok(None) };
        let chosen = choices.iter().find(|(name, _)| *name == text);
        match chosen {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                Err(self.warning("value", format!("{text:?} is not one of {}", names.join(", "))))
            }
        }
    }

    /// It is there.
    pub(super) fn is_present(&self) -> bool {
        self.value.is_some()
    }

    /// It is an object with at least one field.
    pub(super) fn has_fields(&self) -> bool {
        self.value.and_then(Value::as_object).is_some_and(|fields| !fields.is_empty())
    }

    /// Something wrong with this field.
    pub(super) fn warning(&self, reason: &'static str, message: String) -> Warning {
        Warning { field: self.path(), reason, message }
    }

    fn wrong(&self, expected: &str) -> Warning {
        let is = match self.value {
            None | Some(Value::Null) => "nothing",
            Some(Value::Bool(_)) => "true or false",
            Some(Value::Number(_)) => "a number",
            Some(Value::String(_)) => "a string",
            Some(Value::Array(_)) => "a list",
            Some(Value::Object(_)) => "an object",
        };
        self.warning("type", format!("is {is}, not {expected}"))
    }

    fn path(&self) -> String {
        let mut path = match self.step {
            Step::Root => String::new(),
            Step::Name(parent, _) | Step::Index(parent, _) => parent.path(),
        };
        match self.step {
            Step::Root => {}
            Step::Name(_, name) if name.contains('.') => {
                let _ = write!(path, "[{name:?}]");
            }
            Step::Name(_, name) if path.is_empty() => path.push_str(name),
            Step::Name(_, name) => {
                let _ = write!(path, ".{name}");
            }
            Step::Index(_, i) => {
                let _ = write!(path, "[{i}]");
            }
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_knows_its_path() {
        let value = json!({"spec": {"ports": [{"port": 80}, {"port": "x"}]}, "labels": {"a.b/c": 1}});
        let root = Field::root(&value);
        let spec = root.get("spec");
        let ports = spec.get("ports");
        let port = ports.items().unwrap().nth(1).unwrap();
        let warning = port.get("port").port(1).unwrap_err();
        assert_eq!(warning.to_string(), "spec.ports[1].port: is a string, not a number");
        let warning = root.get("labels").get("a.b/c").text().unwrap_err();
        assert_eq!(warning.to_string(), "labels[\"a.b/c\"]: is a number, not a string");
    }

    #[test]
    fn null_is_absent() {
        let value = json!({"list": null, "text": null, "deep": null});
        let root = Field::root(&value);
        assert_eq!(root.get("list").items().unwrap().len(), 0);
        assert_eq!(root.get("text").text().unwrap(), None);
        assert_eq!(root.get("deep").get("er").flag().unwrap(), None);
    }
}
