//! What a slice was and what it becomes, as the least that tells the difference. In: two lists of endpoints. Out:
//! pieces of the old one and new endpoints. Never longer than the new list, and never takes an old endpoint twice, so
//! that pieces from outside multiply nothing.

use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use selection::Fact;

/// A part of the list of a slice's endpoints; a new endpoint is owned, or borrowed, as `F`.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece<F = Box<Fact>> {
    /// Of the list as it was: pass over `skip`, then take `count`.
    Kept {
        /// Endpoints that are passed over, counted from the last that was taken.
        skip: usize,
        /// Endpoints that are taken.
        count: usize,
    },
    /// An endpoint that is new, or looks different.
    New(F),
}

/// The pieces that make `new` of `old`. Endpoints that changed their order are new ones; the controllers of Kubernetes
/// keep it.
pub(crate) fn split<'a>(old: &[Fact], new: &'a [Fact]) -> Vec<Piece<&'a Fact>> {
    let mut places: HashMap<IpAddr, usize, RandomState> = HashMap::default();
    for (at, fact) in old.iter().enumerate().rev() {
        places.insert(fact.ip, at);
    }
    let mut pieces: Vec<Piece<&'a Fact>> = Vec::new();
    // The next old endpoint that may be taken.
    let mut next = 0;
    for fact in new {
        let here = old.get(next).filter(|old| *old == fact).map(|_| next);
        let found =
            here.or_else(|| places.get(&fact.ip).copied().filter(|&at| at >= next && old[at] == *fact));
        match (found, pieces.last_mut()) {
            (Some(at), Some(Piece::Kept { count, .. })) if at == next => *count += 1,
            (Some(at), _) => pieces.push(Piece::Kept { skip: at - next, count: 1 }),
            (None, _) => pieces.push(Piece::New(fact)),
        }
        next = found.map_or(next, |at| at + 1);
    }
    pieces
}

/// The list that `pieces` make of `old`. Pieces of more than there is give what there is.
pub(crate) fn join(old: &[Fact], pieces: Vec<Piece>) -> Box<[Fact]> {
    let mut left = old;
    let mut joined = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Kept { skip, count } => {
                left = left.get(skip..).unwrap_or_default();
                let (kept, rest) = left.split_at(count.min(left.len()));
                joined.extend_from_slice(kept);
                left = rest;
            }
            Piece::New(fact) => joined.push(*fact),
        }
    }
    joined.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(numbers: &[u8]) -> Vec<Fact> {
        let fact = |number: &u8| Fact {
            ip: [10, 0, 0, number % 16].into(),
            ready: number / 16 == 0,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            hints: None,
            pod: None,
        };
        numbers.iter().map(fact).collect()
    }

    fn owned(pieces: Vec<Piece<&Fact>>) -> Vec<Piece> {
        let own = |piece: Piece<&Fact>| match piece {
            Piece::Kept { skip, count } => Piece::Kept { skip, count },
            Piece::New(fact) => Piece::New(Box::new(fact.clone())),
        };
        pieces.into_iter().map(own).collect()
    }

    #[test]
    fn one_endpoint_that_changes_comes_and_goes_is_told_alone() {
        let old = facts(&[1, 2, 3, 4]);
        let kept = |skip, count| Piece::Kept { skip, count };
        let changed = facts(&[1, 2 + 16, 3, 4]);
        assert_eq!(split(&old, &changed), [kept(0, 1), Piece::New(&changed[1]), kept(1, 2)]);
        assert_eq!(split(&old, &facts(&[1, 2, 4])), [kept(0, 2), kept(1, 1)]);
        let more = facts(&[1, 2, 3, 4, 5]);
        assert_eq!(split(&old, &more), [kept(0, 4), Piece::New(&more[4])]);
    }

    #[test]
    fn any_two_lists_are_made_of_each_other_also_with_an_address_twice() {
        let mut seed = 1_u32;
        let mut list = || {
            let mut next = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                u8::try_from(seed >> 24).unwrap()
            };
            let length = next() % 12;
            facts(&(0..length).map(|_| next() % 32).collect::<Vec<_>>())
        };
        for _ in 0..2_000 {
            let (old, new) = (list(), list());
            assert_eq!(*join(&old, owned(split(&old, &new))), new);
        }
    }
}
