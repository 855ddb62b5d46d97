//! A table kept in step with a feed. In: frames. Out: the table for this place. Without I/O and without a clock; it
//! runs in Envoy, in a browser, anywhere. Never gives a table up: what was complete serves until the next one is.

use selection::{Here, Table};

use super::{Decoder, Error, Progress};
use crate::store::{Event, Kind, Store, Stream};

/// The mirror of another Remora. Owning one means to be the only one who gives it frames.
#[derive(Debug)]
pub struct Mirror {
    decoder: Decoder,
    store: Store,
}

impl Mirror {
    /// A mirror that builds for `here`, and keeps only what picking needs.
    pub fn new(here: Here) -> Self {
        let streams = || [Stream::all(Kind::Services), Stream::all(Kind::Slices)].into_iter();
        let mut store = Store::new(here);
        // As if an empty cluster had been listed: what comes can be prepared as it comes, because nothing is published
        // before a transaction is complete.
        store.apply(Event::Hold);
        streams().map(Event::ListBegins).for_each(|event| store.apply(event));
        streams().map(Event::ListEnds).for_each(|event| store.apply(event));
        Self { decoder: Decoder::new(streams().collect()).lean(), store }
    }

    /// Reads one frame. The work is that of what the frame has; a table that the frame completes is there when this
    /// returns.
    ///
    /// # Errors
    /// If the frame is none, or does not follow those before. The table stays; open the stream again, and go on giving
    /// its frames.
    pub fn frame(&mut self, frame: &[u8]) -> Result<Progress, Error> {
        let store = &mut self.store;
        let progress = self.decoder.frame(frame, &mut |event| store.apply(event))?;
        if progress.complete {
            self.store.publish();
        } else {
            self.store.prepare(self.decoder.last());
        }
        Ok(progress)
    }

    /// The table of the last complete transaction; the empty one, version 0, before the first.
    pub fn table(&self) -> &Table {
        self.store.table()
    }

    /// There is a table.
    pub fn is_synced(&self) -> bool {
        self.table().version() > 0
    }

    /// The server's version of the last complete transaction.
    pub fn version(&self) -> u64 {
        self.decoder.version()
    }

    /// The server's epoch, from its last snapshot: another number each time that it starts.
    pub fn epoch(&self) -> Option<u64> {
        self.decoder.epoch()
    }

    /// Where the table is built for.
    pub fn here(&self) -> &Here {
        self.store.here()
    }

    /// How many Services are known, those that are skipped included.
    pub fn services(&self) -> usize {
        self.store.services()
    }
}
