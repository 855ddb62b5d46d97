//! The strings of a frame: each is there once, and referred to by its place. In: texts. Out: places, and the texts
//! again. Never read as a whole: only what is referred to is allocated.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use selection::Symbol;

use super::Error;
use super::wire;

/// The field of a frame that has a string.
pub(super) const STRING: u32 = 5;

/// The strings of a frame that is being written.
#[derive(Debug, Default)]
pub(super) struct Strings<'a> {
    places: HashMap<&'a str, u64, RandomState>,
    /// In the order of their places.
    known: Vec<&'a str>,
    bytes: Vec<u8>,
}

/// How many strings there were at some moment, and their bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(usize, usize);

impl<'a> Strings<'a> {
    /// The place of `text`.
    pub(super) fn place(&mut self, text: &'a str) -> u64 {
        if text.is_empty() {
            return 0;
        }
        let next = self.known.len() as u64 + 1;
        let place = *self.places.entry(text).or_insert(next);
        if place == next {
            self.known.push(text);
            wire::put_bytes(&mut self.bytes, STRING, text.as_bytes());
        }
        place
    }

    /// Their fields.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn mark(&self) -> Mark {
        Mark(self.known.len(), self.bytes.len())
    }

    /// Forgets what came after `mark`.
    pub(super) fn back_to(&mut self, Mark(known, bytes): Mark) {
        for text in self.known.drain(known..) {
            self.places.remove(text);
        }
        self.bytes.truncate(bytes);
    }

    pub(super) fn clear(&mut self) {
        self.back_to(Mark(0, 0));
    }
}

/// The strings of a frame that is being read.
#[derive(Debug, Default)]
pub(super) struct Texts<'a>(Vec<Text<'a>>);

#[derive(Debug)]
enum Text<'a> {
    Raw(&'a [u8]),
    Made(Symbol),
}

impl<'a> Texts<'a> {
    pub(super) fn push(&mut self, bytes: &'a [u8]) {
        self.0.push(Text::Raw(bytes));
    }

    /// The string at `place`; the same one shares its memory within the frame.
    pub(super) fn symbol(&mut self, place: u64) -> Result<Symbol, Error> {
        let Some(at) = place.checked_sub(1) else { return Ok(Symbol::default()) };
        let text = usize::try_from(at).ok().and_then(|at| self.0.get_mut(at)).ok_or(Error::Malformed)?;
        match text {
            Text::Made(symbol) => Ok(Arc::clone(symbol)),
            Text::Raw(bytes) => {
                let symbol: Symbol = std::str::from_utf8(bytes).map_err(|_| Error::Malformed)?.into();
                *text = Text::Made(Arc::clone(&symbol));
                Ok(symbol)
            }
        }
    }
}
