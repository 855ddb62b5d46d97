//! Reads JSON (RFC 8259), as much as a plugin's configuration has. Own code because of its size in the module: serde_json,
//! serde and what they bring (printing of floating point numbers above all) are 72 KB of the 250 KB that the module may
//! have, this is 5.

use std::iter::Peekable;
use std::str::Chars;

/// Lists and objects within each other.
const DEEPEST: usize = 8;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as it is written.
    Number(String),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// An object, in its order; a name may occur twice.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// What it is, for messages.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Reads one value, and nothing after it.
///
/// # Errors
/// Where the text is no JSON, and what was expected there.
pub fn read(text: &str) -> Result<Value, String> {
    let mut reader = Reader { left: text.chars().peekable(), line: 1 };
    let value = reader.value(0)?;
    match reader.next_word() {
        None => Ok(value),
        Some(_) => Err(reader.expected("the end")),
    }
}

struct Reader<'a> {
    left: Peekable<Chars<'a>>,
    line: usize,
}

impl Reader<'_> {
    fn expected(&self, what: &str) -> String {
        format!("in line {} {what} is expected", self.line)
    }

    /// The next character that is no space, which stays.
    fn next_word(&mut self) -> Option<char> {
        while let Some(space) = self.left.next_if(|c| matches!(c, ' ' | '\t' | '\r' | '\n')) {
            self.line += usize::from(space == '\n');
        }
        self.left.peek().copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        self.next_word() == Some(wanted) && self.left.next().is_some()
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        match self.next_word() {
            Some('{' | '[') if depth == DEEPEST => Err(self.expected("a value that is not deeper")),
            Some('{') => self.object(depth),
            Some('[') => self.list(depth),
            Some('"') => Ok(Value::Text(self.text()?)),
            Some(c) if c == '-' || c.is_ascii_digit() => self.number(),
            Some(c) if c.is_ascii_lowercase() => self.word(),
            _ => Err(self.expected("a value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        self.left.next();
        let mut fields = Vec::new();
        if self.take('}') {
            return Ok(Value::Object(fields));
        }
        loop {
            if self.next_word() != Some('"') {
                return Err(self.expected("the name of a field"));
            }
            let name = self.text()?;
            if !self.take(':') {
                return Err(self.expected("a : after the name of a field"));
            }
            fields.push((name, self.value(depth + 1)?));
            match self.take(',') {
                true => {}
                false if self.take('}') => return Ok(Value::Object(fields)),
                false => return Err(self.expected("a , or the } of the object")),
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        self.left.next();
        let mut values = Vec::new();
        if self.take(']') {
            return Ok(Value::List(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            match self.take(',') {
                true => {}
                false if self.take(']') => return Ok(Value::List(values)),
                false => return Err(self.expected("a , or the ] of the list")),
            }
        }
    }

    fn word(&mut self) -> Result<Value, String> {
        let mut word = String::new();
        while let Some(c) = self.left.next_if(char::is_ascii_alphanumeric) {
            word.push(c);
        }
        match word.as_str() {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(self.expected("a value")),
        }
    }

    fn number(&mut self) -> Result<Value, String> {
        let mut number = String::new();
        while let Some(c) = self.left.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')) {
            number.push(c);
        }
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((&number, "1"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "1"));
        let whole = whole.strip_prefix('-').unwrap_or(whole);
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let is_number = are_digits(whole)
            && (whole.len() == 1 || !whole.starts_with('0'))
            && are_digits(fraction)
            && are_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
        if is_number { Ok(Value::Number(number)) } else { Err(self.expected("a number")) }
    }

    fn text(&mut self) -> Result<String, String> {
        self.left.next();
        let mut text = String::new();
        loop {
            match self.left.next() {
                Some('"') => return Ok(text),
                Some('\\') => {
                    text.push(self.escaped().ok_or_else(|| self.expected("a right escape after \\"))?)
                }
                Some(c) if c >= ' ' => text.push(c),
                _ => return Err(self.expected("the \" of the string")),
            }
        }
    }

    fn escaped(&mut self) -> Option<char> {
        Some(match self.left.next()? {
            c @ ('"' | '\\' | '/') => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => match self.unit()? {
                high @ 0xd800..0xdc00 => {
                    let is_pair = self.left.next() == Some('\\') && self.left.next() == Some('u');
                    let low = self.unit().filter(|low| is_pair && (0xdc00..0xe000).contains(low))?;
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?
                }
                unit => char::from_u32(unit)?,
            },
            _ => return None,
        })
    }

    fn unit(&mut self) -> Option<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit * 16 + self.left.next()?.to_digit(16)?;
        }
        Some(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As another reader has it, which is kept for the tests alone.
    fn known(value: &serde_json::Value) -> Value {
        match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(value) => Value::Number(value.to_string()),
            serde_json::Value::String(value) => Value::Text(value.clone()),
            serde_json::Value::Array(values) => Value::List(values.iter().map(known).collect()),
            serde_json::Value::Object(fields) => {
                Value::Object(fields.iter().map(|(name, value)| (name.clone(), known(value))).collect())
            }
        }
    }

    #[test]
    fn every_text_is_read_or_refused_as_serde_json_does() {
        for text in [
            r#"{}"#,
            r#" { "a" : [ 1 , -2 , 0.5 , 0 ] , "b" : { "c" : null } , "d" : true } "#,
            "[\n\t\"\\u00e9\\n\\\"\\\\\\/\\b\\f\\r\\t\\ud83d\\ude00 \u{e9}\", false]\r\n",
            r#""""#,
            "",
            "{",
            "[1,]",
            r#"{"a":1,}"#,
            r#"{"a" 1}"#,
            r#"{a: 1}"#,
            "[1 2]",
            "01",
            "-",
            "1.",
            ".5",
            "+1",
            "1e",
            "1x",
            "tru",
            "True",
            "nulll",
            "{} {}",
            "\"\n\"",
            r#""\x""#,
            r#""\ud800""#,
            r#""\ud800\u0041""#,
            r#""\u12""#,
            r#""open"#,
            "'a'",
            "[1] // comment",
        ] {
            let expected: Result<serde_json::Value, _> = serde_json::from_str(text);
            assert_eq!(read(text).ok(), expected.ok().as_ref().map(known), "{text}");
        }
    }

    #[test]
    fn numbers_stay_as_they_are_written() {
        for number in ["0", "-0", "12", "1.50", "1e5", "1E+5", "-1.5e-05"] {
            assert_eq!(read(number), Ok(Value::Number(number.to_owned())));
        }
    }

    #[test]
    fn an_error_says_where_and_what_is_expected() {
        assert_eq!(
            read("{\n\"a\": 1\n\"b\": 2}").unwrap_err(),
            "in line 3 a , or the } of the object is expected"
        );
        assert_eq!(read("").unwrap_err(), "in line 1 a value is expected");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(read(&nested(8)).is_ok() && read(&nested(9)).is_err() && read(&"[".repeat(1 << 20)).is_err());
    }
}
