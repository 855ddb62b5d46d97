//! Fields as Protocol Buffers writes them: writing and reading side by side. In and out: bytes. Reading never
//! allocates.
//!
//! | field | key (varint) | value |
//! |--|--|--|
//! | number | `field << 3` | varint: seven bits a byte, the lowest first, the highest bit of a byte says that more follow |
//! | eight bytes | `field << 3 \| 1` | the lowest byte first |
//! | bytes, message | `field << 3 \| 2` | their length as a varint, then they |
//! | four bytes | `field << 3 \| 5` | read, never written |

use super::Error;

/// Writes a number, also if it is 0.
pub(super) fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, value);
}

/// Writes a number unless it is 0.
pub(super) fn put_nonzero(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        put_number(out, field, value);
    }
}

/// Writes a number as eight bytes.
pub(super) fn put_eight(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Writes bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Writes the message that `body` writes.
pub(super) fn put_message(out: &mut Vec<u8>, field: u32, body: impl FnOnce(&mut Vec<u8>)) {
    put_varint(out, u64::from(field) << 3 | 2);
    let at = out.len();
    body(out);
    let mut length = Vec::with_capacity(4);
    put_varint(&mut length, (out.len() - at) as u64);
    // The length goes before what is written, which is moved up by a byte or three.
    out.splice(at..at, length);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub(super) fn number(self) -> Result<u64, Error> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(Error::Malformed),
        }
    }

    /// A number that is less than 2³².
    pub(super) fn small(self) -> Result<u32, Error> {
        u32::try_from(self.number()?).map_err(|_| Error::Malformed)
    }

    /// A port.
    pub(super) fn port(self) -> Result<u16, Error> {
        u16::try_from(self.number()?).map_err(|_| Error::Malformed)
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], Error> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(Error::Malformed),
        }
    }

    /// The fields of a message.
    pub(super) fn message(self) -> Result<Fields<'a>, Error> {
        self.bytes().map(Fields)
    }
}

/// The fields in these bytes, as they come; the last one is an error if the bytes are no fields.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Error::Malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Number(u32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((field, value))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        put_number(&mut out, 1, 0);
        put_number(&mut out, 100, u64::MAX);
        put_nonzero(&mut out, 3, 0);
        put_eight(&mut out, 4, 5);
        put_bytes(&mut out, 5, b"x");
        put_message(&mut out, 6, |out| put_bytes(out, 1, &[7; 300]));
        let read: Vec<_> = Fields(&out).map(Result::unwrap).collect();
        assert_eq!(
            read[..4],
            [
                (1, Value::Number(0)),
                (100, Value::Number(u64::MAX)),
                (4, Value::Number(5)),
                (5, Value::Bytes(b"x")),
            ]
        );
        let inner: Vec<_> = read[4].1.message().unwrap().collect();
        assert_eq!(inner, [Ok((1, Value::Bytes(&[7; 300])))]);
    }

    #[test]
    fn what_is_no_field_ends_with_an_error() {
        let wrong: [&[u8]; 6] = [
            &[0x80],
            &[0x08],
            &[0x0a, 5, 1],
            &[0x09, 1, 2],
            &[0x0b],
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
        ];
        for bytes in wrong {
            let read: Vec<_> = Fields(bytes).collect();
            assert_eq!(read, [Err(Error::Malformed)], "{bytes:?}");
        }
    }
}
