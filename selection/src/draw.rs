//! Chance as a value: the numbers that a pick decides by, made from a secret seed and the flow. Hashes here are
//! fixed by definition (SipHash-1-3), so that every build on every machine draws alike.

use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;

/// The secret of one instance: with it unknown, no client can aim at an endpoint. Fixed in tests of sameness.
#[derive(Clone, Copy)]
pub struct Seed(pub u64, pub u64);

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The client is a Pod or a node of the cluster: on outside addresses it gets the Cluster policy.
    pub inside: bool,
}

/// What chance says for one pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Uniform over 64 bits.
    pub hash: u64,
    /// How many picks of the port came before; round-robin goes by it.
    pub turn: u64,
}

impl Draw {
    /// The draw for `flow` at `turn` ([`crate::ServicePort::next_turn`]).
    pub fn new(seed: &Seed, flow: &Flow, turn: u64) -> Self {
        let hasher = SipHasher13::new_with_keys(seed.0, seed.1);
        // In words, made in registers: what is stored byte by byte stalls the hash that loads it as words.
        let (port, turn_bits) = (u128::from(flow.client.port()), u128::from(turn) << 64);
        let hash = match flow.client.ip().to_canonical() {
            IpAddr::V4(ip) => hasher.hash(&(turn_bits | u128::from(ip.to_bits()) << 16 | port).to_le_bytes()),
            IpAddr::V6(ip) => {
                let mut bytes = [0; 32];
                bytes[..16].copy_from_slice(&ip.octets());
                bytes[16..].copy_from_slice(&(turn_bits | port).to_le_bytes());
                hasher.hash(&bytes)
            }
        };
        Self { hash, turn }
    }
}

/// The hash of the client that Maglev looks up: its address without the port, with nothing secret in it, so that
/// different hosts agree. A client that knows its own address can aim, whatever the hash; so it is the quickest one.
pub fn client_hash(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => mix(u64::from(ip.to_bits())),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            mix(mix((bits >> 64) as u64) ^ bits as u64)
        }
    }
}

/// SipHash-1-3 of `bytes` under the fixed key (0, 0).
#[inline]
pub fn fixed_hash(bytes: &[u8]) -> u64 {
    SipHasher13::new_with_keys(0, 0).hash(bytes)
}

/// The next of a series of numbers that begins with `hash`: splitmix64.
pub(crate) fn mix(hash: u64) -> u64 {
    let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `n` (which is not 0) from the 32 bits of `bits`: multiply and shift, no division.
pub(crate) fn below(bits: u32, n: u32) -> u32 {
    ((u64::from(bits) * u64::from(n)) >> 32) as u32
}
