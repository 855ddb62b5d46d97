//! Netlink messages and their attributes, as bytes. In: values. Out: bytes, and back. Never sends anything.
//!
//! ```text
//! message:   length u32 │ type u16 │ flags u16 │ sequence u32 │ port u32 │ header of the family │ attributes
//! attribute: length u16 │ type u16, 0x8000 if nested │ value │ zeros up to a multiple of 4
//! ```
//! Our own rather than a crate's: the crate for nftables knows neither `dynset` nor `tproxy` nor `reject` nor keys of
//! several parts, and the one for routes brings an asynchronous stack for a handful of messages.

/// The length of a message's own header.
const HEADER: usize = 16;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its number.
const TYPE: u16 = 0x3fff;

/// This is a request.
pub(crate) const REQUEST: u16 = 0x1;
/// Tell if it was done.
pub(crate) const ACK: u16 = 0x4;
/// Put it in the place of what is there.
pub(crate) const REPLACE: u16 = 0x100;
/// Fail if it is there already.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// Make it if it is not there.
pub(crate) const CREATE: u16 = 0x400;
/// Put it behind the others.
pub(crate) const APPEND: u16 = 0x800;
/// Everything of this kind.
pub(crate) const DUMP: u16 = 0x300;

/// The answer that tells how a request fared.
const ERROR: u16 = 2;
/// The end of a dump.
const DONE: u16 = 3;

/// A message under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// A request with the header of its family.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut body = header.to_vec();
        pad(&mut body);
        Self { kind, flags: flags | REQUEST, body }
    }

    /// Adds attributes.
    pub(crate) fn with(mut self, attributes: Attributes) -> Self {
        self.body.extend(attributes.0);
        self
    }

    /// Asks to be told when it is done.
    pub(crate) fn acknowledged(mut self) -> Self {
        self.flags |= ACK;
        self
    }

    /// As it is sent.
    pub(crate) fn encode(&self, sequence: u32, into: &mut Vec<u8>) {
        let length = (HEADER + self.body.len()) as u32;
        into.extend(length.to_ne_bytes());
        into.extend(self.kind.to_ne_bytes());
        into.extend(self.flags.to_ne_bytes());
        into.extend(sequence.to_ne_bytes());
        into.extend([0; 4]);
        into.extend(&self.body);
    }
}

/// Attributes under construction, in the order in which they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds bytes.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        pad(&mut self.0);
        self
    }

    /// Adds a text, ended by a zero.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds a number in the order of the network, as nftables wants them.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a number in the order of the machine, as routes want them.
    pub(crate) fn native(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds attributes within one.
    pub(crate) fn nested(self, kind: u16, within: Attributes) -> Self {
        self.bytes(kind | NESTED, &within.0)
    }

    /// What was added.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A time, as nftables wants it.
pub(crate) fn milliseconds(duration: std::time::Duration) -> [u8; 8] {
    (duration.as_millis() as u64).to_be_bytes()
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message that the kernel sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// The request of this sequence number was done (0) or failed (an error number).
    Result {
        /// Of the request.
        sequence: u32,
        /// 0, or the error's number.
        errno: i32,
    },
    /// A dump has ended, well (0) or not.
    Done(i32),
    /// Something of a dump: its type and what follows the message's own header.
    Item(u16, &'a [u8]),
}

/// The messages in what was received; what is cut off is left out.
pub(crate) fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = number(bytes, 0)? as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let body = &message[HEADER..];
        let errno = || number(body, 0).map_or(0, |negative| (negative as i32).wrapping_neg());
        Some(match kind {
            ERROR => Answer::Result { sequence: number(message, 8)?, errno: errno() },
            DONE => Answer::Done(errno()),
            kind => Answer::Item(kind, body),
        })
    })
}

/// The attributes in `bytes`, by number; what is cut off is left out.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a number.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The first attribute of a number, as text.
pub(crate) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let value = attribute(bytes, kind)?;
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    Some(String::from_utf8_lossy(&value[..end]).into_owned())
}

/// Four bytes in the order of the machine.
pub(crate) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let written = Attributes::default()
            .text(1, "remora")
            .number(2, 0x0102_0304)
            .nested(3, Attributes::default().bytes(1, &[7]));
        let read: Vec<_> = attributes(written.as_bytes()).collect();
        assert_eq!(read[0], (1, &b"remora\0"[..]));
        assert_eq!(read[1], (2, &[1, 2, 3, 4][..]));
        assert_eq!(attributes(read[2].1).collect::<Vec<_>>(), [(1, &[7][..])]);
        assert_eq!(written.as_bytes().len() % 4, 0);
        assert_eq!(text(written.as_bytes(), 1).as_deref(), Some("remora"));
    }

    #[test]
    fn bytes_that_are_cut_off_end_the_reading() {
        let whole = Attributes::default().text(1, "remora").text(2, "remora");
        for end in 0..whole.as_bytes().len() {
            assert!(attributes(&whole.as_bytes()[..end]).count() <= 2);
        }
        let mut message = Vec::new();
        Message::new(1, 0, &[0; 4]).with(whole).encode(9, &mut message);
        for end in 0..message.len() {
            assert_eq!(answers(&message[..end]).count(), 0);
        }
        assert_eq!(answers(&message).count(), 1);
        // A length that never advances must not be followed for ever.
        assert_eq!(answers(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }

    #[test]
    fn a_failure_is_told_with_the_request_that_failed() {
        let mut bytes = Vec::new();
        Message::new(ERROR, 0, &(-2_i32).to_ne_bytes()).encode(5, &mut bytes);
        assert_eq!(answers(&bytes).collect::<Vec<_>>(), [Answer::Result { sequence: 5, errno: 2 }]);
    }
}
