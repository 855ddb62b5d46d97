//! What is counted, under the sidecar's names. In: events. Out: what has been added since it was asked last, so that
//! Envoy is called once in a while and not for each connection. Never an Envoy's id of a metric.

/// One number that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Connections taken from clients.
    ConnectionsOpened,
    /// Those of them that ended.
    ConnectionsClosed,
    /// Those of them that no endpoint could serve.
    ConnectionsUnserved,
    /// Those of them that went to the fallback.
    ConnectionsPassed,
    /// Requests taken from clients.
    RequestsOpened,
    /// Those of them that ended.
    RequestsClosed,
    /// Those of them that no endpoint could serve.
    RequestsUnserved,
    /// Those of them that went to the fallback.
    RequestsPassed,
    /// Connects to endpoints that failed.
    ConnectFailures,
    /// Connects to another endpoint after one failed.
    Retries,
    /// Streams of the feed that broke.
    FeedErrors,
}

impl Count {
    /// Each, with the name of its metric.
    pub const ALL: [(Self, &str); 11] = [
        (Self::ConnectionsOpened, "remora_connections_opened_total"),
        (Self::ConnectionsClosed, "remora_connections_closed_total"),
        (Self::ConnectionsUnserved, "remora_connections_unserved_total"),
        (Self::ConnectionsPassed, "remora_connections_passed_total"),
        (Self::RequestsOpened, "remora_requests_opened_total"),
        (Self::RequestsClosed, "remora_requests_closed_total"),
        (Self::RequestsUnserved, "remora_requests_unserved_total"),
        (Self::RequestsPassed, "remora_requests_passed_total"),
        (Self::ConnectFailures, "remora_connect_failures_total"),
        (Self::Retries, "remora_retries_total"),
        (Self::FeedErrors, "remora_source_errors_total"),
    ];
}

/// What one VM has counted since it was asked last.
#[derive(Debug, Default)]
pub struct Counts([u64; Count::ALL.len()]);

impl Counts {
    /// One more.
    pub fn add(&mut self, count: Count) {
        self.0[count as usize] += 1;
    }

    /// What has been added since the last call, by place in [`Count::ALL`].
    pub fn take(&mut self) -> impl Iterator<Item = (usize, u64)> + use<> {
        std::mem::take(&mut self.0).into_iter().enumerate().filter(|(_, added)| *added > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_has_its_place() {
        for (at, (count, _)) in Count::ALL.iter().enumerate() {
            assert_eq!(*count as usize, at);
        }
    }

    #[test]
    fn what_was_taken_is_not_counted_again() {
        let mut counts = Counts::default();
        counts.add(Count::Retries);
        counts.add(Count::Retries);
        let retries = Count::Retries as usize;
        assert_eq!(counts.take().collect::<Vec<_>>(), [(retries, 2)]);
        assert_eq!(counts.take().count(), 0);
    }
}
