//! How a connection or request went, read from what Envoy says of it when it is over. In: properties of the access
//! log, as bytes and words. Out: which of the chosen endpoints failed and why. Never asks Envoy.

use std::net::SocketAddr;

use selection::Failure;

/// Bit of `response.flags`: no connection to the endpoint came about (UF).
pub const CONNECT_FAILED: u64 = 0x20;

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many of the endpoints were tried, in the order of the choice. All but the last failed.
    pub tried: usize,
    /// Why the last one failed, if it did.
    pub failure: Option<Failure>,
    /// The last one is known to have taken the connection.
    pub connected: bool,
    /// Where the last attempt went.
    pub reached: Reached,
}

/// Where the last attempt went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reached {
    /// To the endpoint whose turn it was: Envoy has no other choice.
    #[default]
    AsChosen,
    /// To this address, if to any: a mesh's cluster passes over endpoints that it does not have.
    At(Option<SocketAddr>),
}

/// A number as a property tells it: eight bytes, the lowest first.
pub fn number(property: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(property.try_into().ok()?))
}

/// Why a connect failed, from `upstream.transport_failure_reason`: Envoy tells the errno as the system words it.
pub fn failure(reason: &str) -> Failure {
    const WORDS: [(&str, Failure); 9] = [
        ("refused", Failure::Refused),
        ("timed out", Failure::Timeout),
        ("timeout", Failure::Timeout),
        ("unreachable", Failure::Unreachable),
        ("No route to host", Failure::Unreachable),
        ("Host is down", Failure::Unreachable),
        ("reset by peer", Failure::Reset),
        ("Cannot assign requested address", Failure::Ports),
        ("Too many open files", Failure::Descriptors),
    ];
    // Envoy tells a connect that its own timer ended by no words at all.
    if reason.is_empty() {
        return Failure::Timeout;
    }
    let says = |words: &str| reason.as_bytes().windows(words.len()).any(|window| window == words.as_bytes());
    WORDS.iter().find(|(words, _)| says(words)).map_or(Failure::Other, |(_, failure)| *failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_envoy_give_the_reason() {
        for (words, expected) in [
            ("delayed connect error: Connection refused", Failure::Refused),
            ("delayed_connect_error:_Connection_refused", Failure::Refused),
            ("delayed connect error: No route to host", Failure::Unreachable),
            (
                "immediate connect error: Network is unreachable|remote address:10.0.0.1:80",
                Failure::Unreachable,
            ),
            ("immediate connect error: Cannot assign requested address", Failure::Ports),
            ("delayed connect error: Connection timed out", Failure::Timeout),
            ("", Failure::Timeout),
            ("TLS_error", Failure::Other),
        ] {
            assert_eq!(failure(words), expected, "{words}");
        }
    }

    #[test]
    fn a_number_has_eight_bytes() {
        assert_eq!(number(&[0x20, 0x80, 0, 0, 0, 0, 0, 0]), Some(0x8020));
        assert_eq!(number(&[]), None);
        assert_eq!(number(&[1; 9]), None);
    }
}
