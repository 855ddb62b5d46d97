//! Maglev's lookup table: which member serves which client, alike on every host, with little disruption when a
//! member goes. After "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;

/// Entries of a table, a prime. One size for all: a size that grew with the members would move every client
/// when a member more crosses the step. At least 1,000 entries a member for 65 members.
pub const ENTRIES: usize = 65_537;
/// More members than this have no entry of their own.
const MOST: usize = u16::MAX as usize;

/// A filled table; an entry is a position in the pool that it was made for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Maglev(Box<[u16]>);

impl Maglev {
    /// The table for members at `addresses`, in this order. `None` without members.
    pub(crate) fn new(addresses: impl Iterator<Item = SocketAddr>) -> Option<Self> {
        let entries = ENTRIES as u32;
        let mut walks: Vec<(u32, u32)> = addresses.take(MOST).map(|address| walk(&address)).collect();
        if walks.is_empty() {
            return None;
        }
        let mut table = vec![0; ENTRIES];
        // Which entries are taken, in a map that fits the nearest cache: most looks find them so.
        let mut taken = [0u64; ENTRIES.div_ceil(64)];
        let mut filled = 0;
        while filled < ENTRIES {
            for (member, (next, skip)) in walks.iter_mut().enumerate() {
                while taken[*next as usize / 64] >> (*next % 64) & 1 == 1 {
                    *next += *skip;
                    *next -= if *next >= entries { entries } else { 0 };
                }
                taken[*next as usize / 64] |= 1 << (*next % 64);
                table[*next as usize] = member as u16;
                filled += 1;
                if filled == ENTRIES {
                    break;
                }
            }
        }
        Some(Self(table.into()))
    }

    /// The position of the member that serves `hash`.
    pub(crate) fn member(&self, hash: u64) -> usize {
        usize::from(self.0[(hash % ENTRIES as u64) as usize])
    }
}

/// A member's own order of the entries: where it begins and how far it steps.
fn walk(address: &SocketAddr) -> (u32, u32) {
    let hash = |key: u64| {
        let mut hasher = SipHasher13::new_with_keys(key, 0);
        match address.ip() {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        hasher.write(&address.port().to_le_bytes());
        hasher.finish()
    };
    ((hash(1) % ENTRIES as u64) as u32, (hash(2) % (ENTRIES as u64 - 1)) as u32 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_gets_as_many_entries_as_any_other_give_or_take_one() {
        for n in (1..=50).chain([65, 300, 5_000, ENTRIES - 2, ENTRIES, 70_000]) {
            let addresses =
                (0..n as u32).map(|i| SocketAddr::new(IpAddr::from((0x0a00_0000 + i).to_be_bytes()), 80));
            let table = Maglev::new(addresses).expect("members");
            let mut entries = vec![0u32; n];
            table.0.iter().for_each(|member| entries[usize::from(*member)] += 1);
            entries.truncate(MOST);
            let (least, most) = (entries.iter().min(), entries.iter().max());
            assert!(
                most.zip(least).is_some_and(|(most, least)| most - least <= 1),
                "{n}: {least:?} to {most:?}"
            );
        }
        assert_eq!(Maglev::new(std::iter::empty()), None);
    }
}
