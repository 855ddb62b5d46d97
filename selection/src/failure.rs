//! Why a connect to an endpoint failed, and whose fault that is. Hosts find the reason (an errno, the words of an
//! Envoy); what follows from it is the same everywhere.

/// Why a connect to an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `ECONNREFUSED`: nobody listens there.
    Refused,
    /// No answer within the connect timeout.
    Timeout,
    /// No way there: `EHOSTUNREACH`, `ENETUNREACH` and the like.
    Unreachable,
    /// Reset before one byte was relayed: another endpoint is tried, but the connection stood, so that nothing is
    /// held against this one.
    Reset,
    /// This process or machine is out of descriptors or memory; nothing is held against the endpoint.
    Descriptors,
    /// This machine is out of ports towards the endpoint (`EADDRNOTAVAIL`); nothing is held against it.
    Ports,
    /// Anything else, such as a firewall of this machine; nothing is held against the endpoint.
    Other,
}

impl Failure {
    /// Every reason, each at the place that its number says.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Timeout,
        Self::Unreachable,
        Self::Reset,
        Self::Descriptors,
        Self::Ports,
        Self::Other,
    ];

    /// The reason in one word, for logs and as a metric's label. Stable.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Descriptors => "descriptors",
            Self::Ports => "ports",
            Self::Other => "other",
        }
    }

    /// The endpoint is the one to blame, not this machine: it is put aside ([`crate::Tally::failed`]).
    pub fn blames_endpoint(self) -> bool {
        matches!(self, Self::Refused | Self::Timeout | Self::Unreachable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_own_label_and_place() {
        for (at, failure) in Failure::ALL.iter().enumerate() {
            assert_eq!(*failure as usize, at);
            assert!(Failure::ALL.iter().filter(|other| other.label() == failure.label()).count() == 1);
        }
    }
}
