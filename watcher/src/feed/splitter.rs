//! Frames in a stream of bytes: each follows its length, and in a gRPC stream that follows a byte, which is 0 as nothing
//! is compressed. In: bytes as they come. Out: whole frames. Never keeps more than one frame and what came with it, and
//! nothing in between.

use super::{Error, LARGEST};

/// Bytes of the length before a frame.
pub const PREFIX: usize = 4;

/// The bytes that go before `frame` in a stream.
pub fn prefix(frame: &[u8]) -> [u8; PREFIX] {
    // A frame has at most LARGEST bytes; a longer one would be refused, whatever stood here.
    u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// `message` as it is in a gRPC stream.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &prefix(message)[..], message].concat()
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Splitter {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    at: usize,
    /// Bytes before each length.
    flags: usize,
}

impl Splitter {
    /// One for a gRPC stream.
    pub fn of_messages() -> Self {
        Self { flags: 1, ..Self::default() }
    }

    /// Takes the next bytes of the stream. Take the frames out ([`Self::frame`]) before giving more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if it is there as a whole.
    ///
    /// # Errors
    /// If a frame is announced that is larger than any, or compressed; the stream is of no use from there on.
    pub fn frame(&mut self) -> Result<Option<&[u8]>, Error> {
        if self.at == self.bytes.len() {
            // Snapshots are large, and changes are far apart.
            (self.bytes, self.at) = (Vec::new(), 0);
        }
        let left = self.bytes.get(self.at..).and_then(|left| left.split_at_checked(self.flags));
        let Some((flags, left)) = left else { return Ok(None) };
        if flags.iter().any(|flag| *flag != 0) {
            return Err(Error::Malformed);
        }
        let Some((prefix, rest)) = left.split_first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).map_err(|_| Error::TooLarge)?;
        if length > LARGEST {
            return Err(Error::TooLarge);
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        self.at += self.flags + PREFIX + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_their_bytes_are_cut() {
        let frames = [vec![1; 300], vec![], vec![2]];
        let plain: Vec<u8> = frames.iter().flat_map(|f| [&prefix(f)[..], f].concat()).collect();
        let messages: Vec<u8> = frames.iter().flat_map(|f| framed(f)).collect();
        for (stream, is_grpc) in [(plain, false), (messages, true)] {
            for size in 1..stream.len() {
                let mut splitter = if is_grpc { Splitter::of_messages() } else { Splitter::default() };
                let mut found = Vec::new();
                for bytes in stream.chunks(size) {
                    splitter.push(bytes);
                    while let Some(frame) = splitter.frame().unwrap() {
                        found.push(frame.to_vec());
                    }
                }
                assert_eq!(found, frames, "cut into {size}");
            }
        }
    }

    #[test]
    fn a_compressed_message_is_refused() {
        let mut splitter = Splitter::of_messages();
        splitter.push(&[1, 0, 0, 0, 0]);
        assert_eq!(splitter.frame(), Err(Error::Malformed));
    }

    #[test]
    fn a_frame_larger_than_any_is_refused_before_it_is_there() {
        let mut splitter = Splitter::default();
        splitter.push(&[0, 16, 0, 1]);
        assert_eq!(splitter.frame(), Err(Error::TooLarge));
    }
}
