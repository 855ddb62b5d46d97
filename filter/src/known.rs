//! Whom the authorities of requests stand for, so that each is read and looked up once in a table's life and not with each
//! request. In: the bytes that a client sent. Out: what they were found to be. Never keeps a table, and what it found in one
//! until the first question that comes with another one's version.

/// Authorities that are kept at most: each has one place, and the next that has the same takes it. A client that aims at
/// the place of another gains a look-up for it.
const PLACES: usize = 1_024;
/// A longer one is looked up each time: a port may be written with any number of zeros before it.
const LONGEST: usize = 300;

/// What authorities were found to be in one version of the table.
#[derive(Debug)]
pub struct Known<T> {
    version: u64,
    places: Vec<Option<(Box<[u8]>, T)>>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { version: 0, places: Vec::new() }
    }
}

impl<T: Clone> Known<T> {
    /// What `authority` is in the table of this `version`, from what `find` says if it is not known. Only what is found is
    /// kept.
    pub fn get(&mut self, version: u64, authority: &[u8], find: impl FnOnce() -> Option<T>) -> Option<T> {
        if version != self.version {
            self.places.clear();
            self.version = version;
        }
        self.places.resize_with(PLACES, || None);
        let place = &mut self.places[place(authority)];
        if let Some((known, found)) = place
            && **known == *authority
        {
            return Some(found.clone());
        }
        let found = find()?;
        if authority.len() > LONGEST {
            return Some(found);
        }
        *place = Some((authority.into(), found.clone()));
        Some(found)
    }
}

/// FNV-1a.
fn place(authority: &[u8]) -> usize {
    let hash = authority
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_looked_up_once_in_each_version_of_the_table() {
        let mut known = Known::default();
        let mut looked = 0;
        for (version, expected) in [(1, 1), (1, 1), (1, 1), (2, 2), (2, 2), (1, 3)] {
            let found = known.get(version, b"web.shop", || {
                looked += 1;
                Some(looked)
            });
            assert_eq!(found, Some(expected), "version {version}");
        }
        assert_eq!(known.get(1, b"web.shop:80", || Some(4)), Some(4), "another one");
    }

    #[test]
    fn what_is_not_found_is_looked_for_again() {
        let mut known = Known::default();
        assert_eq!(known.get(1, b"later.shop", || None), None);
        assert_eq!(known.get(1, b"later.shop", || Some(5)), Some(5));
    }

    #[test]
    fn one_that_is_longer_than_names_are_is_not_kept() {
        let (mut known, long) = (Known::default(), "0".repeat(LONGEST + 1));
        assert_eq!(known.get(1, long.as_bytes(), || Some(1)), Some(1));
        assert_eq!(known.get(1, long.as_bytes(), || Some(2)), Some(2));
    }

    #[test]
    fn clients_cannot_fill_the_memory_with_authorities_nor_get_what_another_one_is() {
        let mut known = Known::default();
        for number in 0..10 * PLACES {
            let authority = format!("web.shop:{number}");
            assert_eq!(known.get(1, authority.as_bytes(), || Some(number)), Some(number));
        }
        assert_eq!(known.places.len(), PLACES);
    }
}
