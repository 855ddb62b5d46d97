//! When moving bytes through a pipe (`splice(2)`) pays: judged by how much each read of one direction finds.
//! In: sizes of reads. Out: copy or splice. Never looks at bytes.

/// A read of this many bytes saves more by not being copied than the further system call costs.
const LARGE: usize = 16 * 1024;
/// So many large reads in a row prove a direction bulky.
const PROOF: u8 = 4;
/// So many small ones more than large ones disprove it.
const PATIENCE: u8 = 8;

/// The judgement on one direction of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bulk {
    bulky: bool,
    score: u8,
}

impl Bulk {
    /// Judges by a read of `bytes`.
    pub(super) fn read(&mut self, bytes: usize) {
        let large = bytes >= LARGE;
        self.score = match (self.bulky, large) {
            (false, true) => self.score + 1,
            (false, false) => 0,
            (true, true) => PATIENCE,
            (true, false) => self.score.saturating_sub(1),
        };
        if !self.bulky && self.score >= PROOF {
            (self.bulky, self.score) = (true, PATIENCE);
        } else if self.bulky && self.score == 0 {
            self.bulky = false;
        }
    }

    /// Splice rather than copy.
    pub(super) fn is_bulky(self) -> bool {
        self.bulky
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reads: impl IntoIterator<Item = usize>) -> bool {
        let mut bulk = Bulk::default();
        reads.into_iter().for_each(|bytes| bulk.read(bytes));
        bulk.is_bulky()
    }

    #[test]
    fn large_reads_in_a_row_prove_a_direction_bulky_and_requests_never_do() {
        assert!(after([65_536; 4]));
        assert!(!after([65_536; 3]));
        assert!(!after([65_536, 65_536, 65_536, 100].repeat(100)));
        assert!(!after([1_024; 1_000]));
    }

    #[test]
    fn a_bulky_direction_stays_so_over_a_pause_and_not_when_it_turns_to_small_reads() {
        assert!(after([[65_536; 4].as_slice(), &[100; 7]].concat()));
        assert!(after([[65_536; 4].as_slice(), &[100; 7], &[65_536], &[100; 7]].concat()));
        assert!(!after([[65_536; 4].as_slice(), &[100; 8]].concat()));
        assert!(!after([[65_536; 4].as_slice(), &[100; 8], &[65_536; 3]].concat()));
    }
}
