//! The place where tables are published and read. In: a new table. Out: the current one, borrowed through a
//! cached handle. Never blocks a reader.

use std::sync::Arc;

use arc_swap::ArcSwap;
use selection::Table;

/// Where the current table is found. Owning one does not keep its source followed: see `Watch`.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    current: Arc<ArcSwap<Table>>,
    #[cfg(feature = "tokio")]
    published: tokio::sync::watch::Sender<u64>,
}

impl Tables {
    /// A handle for one thread or task that reads often.
    pub fn reader(&self) -> Reader {
        Reader(arc_swap::Cache::new(Arc::clone(&self.current)))
    }

    /// The current table; the empty one, version 0, before the first was published.
    pub fn load(&self) -> Arc<Table> {
        self.current.load_full()
    }

    /// A first table was published.
    pub fn is_synced(&self) -> bool {
        self.current.load().version() > 0
    }

    /// Makes `table` the current one.
    pub fn publish(&self, table: Table) {
        #[cfg(feature = "tokio")]
        let version = table.version();
        self.current.store(Arc::new(table));
        #[cfg(feature = "tokio")]
        self.published.send_replace(version);
    }

    /// Returns once a first table has been published.
    #[cfg(feature = "tokio")]
    pub async fn synced(&self) {
        self.reaches(|table| table.version() > 0).await;
    }

    /// Returns the first current table of which `is_it` holds, looking at each that comes (of several that come
    /// at once, at the last).
    #[cfg(feature = "tokio")]
    pub async fn reaches(&self, mut is_it: impl FnMut(&Table) -> bool) -> Arc<Table> {
        let mut published = self.published.subscribe();
        loop {
            published.mark_unchanged();
            let table = self.load();
            // Fails if nobody can publish any more, which cannot be while `self` can.
            if is_it(&table) || published.changed().await.is_err() {
                return table;
            }
        }
    }
}

/// A cached handle on the current table: reading it costs one relaxed load while the table stays the same.
#[derive(Clone, Debug)]
pub struct Reader(arc_swap::Cache<Arc<ArcSwap<Table>>, Arc<Table>>);

impl Reader {
    /// The current table.
    pub fn table(&mut self) -> &Arc<Table> {
        self.0.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_the_table_that_was_published_last() {
        let tables = Tables::default();
        let mut reader = tables.reader();
        assert_eq!((reader.table().version(), tables.is_synced()), (0, false));
        tables.publish(tables.load().with(&[]));
        assert_eq!((reader.table().version(), tables.is_synced()), (1, true));
    }

    #[cfg(feature = "tokio")]
    #[tokio::test]
    async fn who_waits_for_the_first_table_gets_it() {
        let tables = Tables::default();
        let waiting = tokio::spawn({
            let tables = tables.clone();
            async move { tables.synced().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        tables.publish(Table::default().with(&[]));
        waiting.await.unwrap();
    }
}
