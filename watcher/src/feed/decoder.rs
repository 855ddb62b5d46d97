//! Reads frames. In: the frames of one stream after the other. Out: the events that a store wants, transaction by
//! transaction. Never shows half of one: what it tells is held ([`Event::Hold`]) until the transaction is complete.
//!
//! ```text
//!            snapshot begins              complete
//! [nothing] ────────────────▶ [reading] ───────────▶ [in step] ──changes begin──▶ [reading]
//!     ▲                           │                      │
//!     └──────── any error ────────┴──────────────────────┘     a snapshot may begin at any time
//! ```

use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use selection::{ServiceName, Symbol};

use super::seal::unsealed;
use super::strings::{STRING, Texts};
use super::wire::{Fields, Value};
use super::{Error, LARGEST, object};
use crate::store::{Event, Item, Key, Kind, Piece, Stream};

/// Bytes of one transaction; no cluster has more.
const TRANSACTION: usize = 256 << 20;

/// What a frame did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// A transaction is complete: there may be a new table.
    pub complete: bool,
    /// How long ago the writer's own table was in step with its source, if the frame tells.
    pub age: Option<Duration>,
    /// What begins next is the answer to the request of this number.
    pub answers: Option<u64>,
}

/// Makes events of frames.
#[derive(Debug)]
pub struct Decoder {
    /// What the store follows; together they cover whatever comes.
    streams: Vec<Stream>,
    /// Without what only people want to know.
    is_lean: bool,
    state: State,
    epoch: Option<u64>,
    version: u64,
    /// The slices that were told of.
    slices: HashMap<u64, Known, RandomState>,
    /// Bytes of the transaction so far.
    bytes: usize,
    /// The Service of the last operation.
    last: Option<ServiceName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Nothing,
    Reading { is_snapshot: bool },
    InStep,
}

#[derive(Debug)]
struct Known {
    service: ServiceName,
    name: Symbol,
    endpoints: usize,
}

impl Decoder {
    /// A decoder for a store that follows `streams`.
    pub fn new(streams: Vec<Stream>) -> Self {
        Self {
            streams,
            is_lean: false,
            state: State::Nothing,
            epoch: None,
            version: 0,
            slices: HashMap::default(),
            bytes: 0,
            last: None,
        }
    }

    /// Leaves out what only people want to know: names of Pods, and when somebody triggered a change.
    #[must_use]
    pub fn lean(self) -> Self {
        Self { is_lean: true, ..self }
    }

    /// Reads one frame, giving its events to `tell`.
    ///
    /// # Errors
    /// If the frame is none, or does not follow what was read before. Nothing of the transaction counts then, and a
    /// snapshot is needed: the stream is to be opened again.
    pub fn frame(&mut self, frame: &[u8], tell: &mut impl FnMut(Event)) -> Result<Progress, Error> {
        let progress = self.read(frame, tell);
        if progress.is_err() {
            self.state = State::Nothing;
        }
        progress
    }

    /// The epoch of the server, from its last snapshot.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// The version that the last transaction ended with, 0 before the first.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The Service of the last operation in the transaction that is under way: more may come of it.
    pub(super) fn last(&self) -> Option<&ServiceName> {
        self.last.as_ref()
    }

    fn read(&mut self, frame: &[u8], tell: &mut impl FnMut(Event)) -> Result<Progress, Error> {
        if frame.len() > LARGEST {
            return Err(Error::TooLarge);
        }
        let frame = unsealed(frame)?;
        self.bytes += frame.len();
        if self.bytes > TRANSACTION && matches!(self.state, State::Reading { .. }) {
            return Err(Error::TooLarge);
        }
        let mut progress = Progress::default();
        let mut texts = Texts::default();
        for field in Fields(frame) {
            match field? {
                (1, value) => self.snapshot_begins(value.number()?, tell),
                (2, value) => self.changes_begin(value.number()?, tell)?,
                (3, value) => {
                    self.complete(value.number()?, tell)?;
                    progress.complete = true;
                }
                (4, value) => progress.age = Some(Duration::from_millis(value.number()?)),
                (6, value) => progress.answers = Some(value.number()?),
                (7, value) => tell(Event::Here(object::here(value.message()?, &mut texts)?)),
                (STRING, value) => texts.push(value.bytes()?),
                (field @ 8..=12, value) => {
                    if !matches!(self.state, State::Reading { .. }) {
                        return Err(Error::Gap);
                    }
                    self.operation(field, value, &mut texts, tell)?;
                }
                // Of a newer writer.
                _ => {}
            }
        }
        Ok(progress)
    }

    fn snapshot_begins(&mut self, epoch: u64, tell: &mut impl FnMut(Event)) {
        self.state = State::Reading { is_snapshot: true };
        self.epoch = Some(epoch);
        self.bytes = 0;
        self.slices.clear();
        tell(Event::Hold);
        self.streams.iter().cloned().map(Event::ListBegins).for_each(tell);
    }

    fn changes_begin(&mut self, version: u64, tell: &mut impl FnMut(Event)) -> Result<(), Error> {
        if self.state != State::InStep || version != self.version {
            return Err(Error::Gap);
        }
        self.state = State::Reading { is_snapshot: false };
        self.bytes = 0;
        tell(Event::Hold);
        Ok(())
    }

    fn complete(&mut self, version: u64, tell: &mut impl FnMut(Event)) -> Result<(), Error> {
        let State::Reading { is_snapshot } = self.state else { return Err(Error::Gap) };
        if is_snapshot {
            self.streams.iter().cloned().map(Event::ListEnds).for_each(&mut *tell);
        }
        tell(Event::Release);
        self.state = State::InStep;
        self.version = version;
        self.last = None;
        Ok(())
    }

    fn operation(
        &mut self,
        field: u32,
        value: Value<'_>,
        texts: &mut Texts<'_>,
        tell: &mut impl FnMut(Event),
    ) -> Result<(), Error> {
        match field {
            8 => {
                let service = object::service(value.message()?, texts)?;
                self.last = Some(service.name.clone());
                tell(Event::Applied(Item::Service(Box::new(service))));
            }
            9 => {
                let name = object::name(value.message()?, texts)?;
                self.gone(Kind::Services, &name, Key::Service(name.clone()), tell);
            }
            10 => self.slice(object::slice(value.message()?, texts, self.is_lean)?, tell),
            11 => self.patch(object::patch(value.message()?, texts, self.is_lean)?, tell)?,
            _ => {
                if let Some(Known { service, name, .. }) = self.slices.remove(&value.number()?) {
                    let key = Key::Slice { namespace: service.namespace.clone(), name };
                    self.gone(Kind::Slices, &service, key, tell);
                }
            }
        }
        Ok(())
    }

    fn slice(&mut self, numbered: object::Numbered, tell: &mut impl FnMut(Event)) {
        let object::Numbered { number, service, slice } = numbered;
        let known =
            Known { service: service.clone(), name: slice.name.clone(), endpoints: slice.endpoints.len() };
        self.slices.insert(number, known);
        self.last = Some(service.clone());
        let ServiceName { namespace, name } = service;
        tell(Event::Applied(Item::Slice {
            namespace,
            service: Some(name),
            slice: Box::new(slice),
            hosts: Vec::new(),
        }));
    }

    fn patch(&mut self, patch: object::Patch, tell: &mut impl FnMut(Event)) -> Result<(), Error> {
        // One that a newer writer told of in its own way is not known here.
        let Some(known) = self.slices.get_mut(&patch.number) else { return Ok(()) };
        let (mut passed, mut endpoints) = (0_usize, 0_usize);
        for piece in &patch.pieces {
            match piece {
                Piece::Kept { skip, count } => {
                    passed = passed.saturating_add(*skip).saturating_add(*count);
                    endpoints = endpoints.saturating_add(*count);
                }
                Piece::New(_) => endpoints += 1,
            }
        }
        if passed > known.endpoints {
            return Err(Error::Malformed);
        }
        known.endpoints = endpoints;
        let (namespace, name) = (known.service.namespace.clone(), known.name.clone());
        self.last = Some(known.service.clone());
        tell(Event::Patched { namespace, name, pieces: patch.pieces, triggered: patch.triggered });
        Ok(())
    }

    fn gone(&self, kind: Kind, service: &ServiceName, key: Key, tell: &mut impl FnMut(Event)) {
        let stream = self.streams.iter().find(|s| s.kind == kind && s.part.covers(service));
        stream.cloned().into_iter().for_each(|stream| tell(Event::Gone(stream, key.clone())));
    }
}
