//! Writes frames. In: what there is, or what changed. Out: frames of one transaction, each at most [`FRAME`] bytes
//! unless one operation is larger. Never writes results: what it is given are facts.

use std::time::Duration;

use selection::{Fact, Here, Service, ServiceName, Slice};

use super::seal::sealed;
use super::strings::Strings;
use super::wire::{put_eight, put_message, put_number};
use super::{FRAME, LARGEST, object};
use crate::store::{Piece, split};

/// Endpoints in one operation; a slice that has more is told in several.
const CHUNK: usize = 256;

/// Writes one transaction.
#[derive(Debug)]
pub struct Encoder<'a> {
    /// Frames that are full, but for their last field.
    done: Vec<Vec<u8>>,
    /// What goes before the strings of the frame that is being filled.
    head: Vec<u8>,
    strings: Strings<'a>,
    operations: Vec<u8>,
}

impl<'a> Encoder<'a> {
    /// Begins a snapshot of the server that is known by `epoch`.
    pub fn snapshot(epoch: u64) -> Self {
        let mut head = Vec::new();
        put_eight(&mut head, 1, epoch);
        Self::new(head)
    }

    /// Begins changes of what was complete as `version`.
    pub fn changes(version: u64) -> Self {
        Self::new(changes_head(version))
    }

    /// Begins changes of what readers know as versions of their own.
    #[cfg(feature = "feed")]
    pub(super) fn shared_changes() -> Self {
        Self::new(Vec::new())
    }

    fn new(head: Vec<u8>) -> Self {
        Self { done: Vec::new(), head, strings: Strings::default(), operations: Vec::new() }
    }

    /// The Service is there and looks like this.
    pub fn service(&mut self, service: &'a Service) {
        let fits =
            self.add(|out, strings| put_message(out, 8, |out| object::put_service(out, strings, service)));
        if !fits {
            // No reader would take it. It is as if it were not ours, and takes no other one down.
            self.service_gone(&service.name);
        }
    }

    /// The Service is gone. Its slices are told for themselves.
    pub fn service_gone(&mut self, name: &'a ServiceName) {
        self.add(|out, strings| put_message(out, 9, |out| object::put_name(out, strings, name)));
    }

    /// The slice of this number is there, belongs to `service` and looks like this.
    pub fn slice(&mut self, number: u64, service: &'a ServiceName, slice: &'a Slice) {
        let mut chunks = slice.endpoints.chunks(CHUNK);
        let first = chunks.next().unwrap_or_default();
        self.add(|out, strings| {
            put_message(out, 10, |out| object::put_slice(out, strings, number, service, slice, first));
        });
        let mut count = first.len();
        for chunk in chunks {
            let kept = [Piece::Kept { skip: 0, count }];
            let pieces: Vec<_> = kept.into_iter().chain(chunk.iter().map(Piece::New)).collect();
            self.patch(number, &pieces, slice.triggered);
            count += chunk.len();
        }
    }

    /// The slice of this number, which was told as `before`, looks like this.
    pub fn slice_changed(&mut self, number: u64, service: &'a ServiceName, before: &Slice, slice: &'a Slice) {
        let same_but_endpoints =
            (before.family, before.headless, &before.ports) == (slice.family, slice.headless, &slice.ports);
        let pieces = split(&before.endpoints, &slice.endpoints);
        let new = pieces.iter().filter(|piece| matches!(piece, Piece::New(_))).count();
        if same_but_endpoints && new <= CHUNK {
            self.patch(number, &pieces, slice.triggered);
        } else {
            self.slice(number, service, slice);
        }
    }

    /// The slice of this number is gone.
    pub fn slice_gone(&mut self, number: u64) {
        self.add(|out, _| put_number(out, 12, number));
    }

    /// The frames, after which everything is as in `version`. The writer's own table was in step with its source `age`
    /// ago.
    pub fn complete(self, version: u64, age: Option<Duration>) -> Vec<Vec<u8>> {
        self.finish(version, age).into_iter().map(sealed).collect()
    }

    /// The same without the last field of each.
    pub(super) fn finish(mut self, version: u64, age: Option<Duration>) -> Vec<Vec<u8>> {
        put_number(&mut self.operations, 3, version);
        put_age(&mut self.operations, age);
        self.cut();
        self.done
    }

    fn patch(&mut self, number: u64, pieces: &[Piece<&'a Fact>], triggered: Option<u64>) {
        self.add(|out, strings| {
            put_message(out, 11, |out| object::put_patch(out, strings, number, pieces, triggered));
        });
    }

    /// Adds what `operation` writes, in the next frame if it does not fit in this one. False if it fits in none.
    fn add(&mut self, operation: impl Fn(&mut Vec<u8>, &mut Strings<'a>)) -> bool {
        let (operations, strings) = (self.operations.len(), self.strings.mark());
        operation(&mut self.operations, &mut self.strings);
        if self.size() <= FRAME {
            return true;
        }
        if operations > 0 {
            self.operations.truncate(operations);
            self.strings.back_to(strings);
            self.cut();
            operation(&mut self.operations, &mut self.strings);
        }
        let fits = self.size() <= LARGEST - FRAME;
        if !fits {
            self.operations.clear();
            self.strings.clear();
        }
        fits
    }

    fn size(&self) -> usize {
        self.head.len() + self.strings.bytes().len() + self.operations.len()
    }

    /// Closes the frame that is being filled.
    fn cut(&mut self) {
        self.done.push([&self.head, self.strings.bytes(), &self.operations].concat());
        self.head.clear();
        self.strings.clear();
        self.operations.clear();
    }
}

/// How the first frame of changes begins.
pub(super) fn changes_head(from: u64) -> Vec<u8> {
    let mut head = Vec::new();
    put_number(&mut head, 2, from);
    head
}

/// A frame that says which request is answered by what begins next.
#[cfg(feature = "feed")]
pub(super) fn answer(number: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    put_number(&mut frame, 6, number);
    sealed(frame)
}

/// A frame that says where the reader is. It goes before the snapshot, whose table is built for there.
pub fn here(here: &Here) -> Vec<u8> {
    let (mut strings, mut place) = (Strings::default(), Vec::new());
    put_message(&mut place, 7, |out| object::put_here(out, &mut strings, here));
    sealed([strings.bytes(), &place].concat())
}

/// A frame that says nothing but that the writer lives.
pub fn heartbeat(age: Option<Duration>) -> Vec<u8> {
    let mut frame = Vec::new();
    put_age(&mut frame, age);
    sealed(frame)
}

fn put_age(out: &mut Vec<u8>, age: Option<Duration>) {
    if let Some(age) = age {
        put_number(out, 4, u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    }
}
