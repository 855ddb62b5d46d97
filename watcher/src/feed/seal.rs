//! The last field of a frame, by which bytes that were cut or changed on their way are known: writing and checking side
//! by side. It is no protection against who wants to deceive; that is the transport's.

use super::Error;

/// The key of field 15 with four bytes.
const KEY: u8 = 15 << 3 | 5;
const SUM: usize = 4;

/// `frame` with its last field.
pub(super) fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let sum = sum(&frame);
    frame.push(KEY);
    frame.extend_from_slice(&sum);
    frame
}

/// The frame without its last field.
pub(super) fn unsealed(frame: &[u8]) -> Result<&[u8], Error> {
    let (rest, last) = frame.split_last_chunk::<SUM>().ok_or(Error::Malformed)?;
    match rest.split_last() {
        Some((&KEY, fields)) if sum(fields) == *last => Ok(fields),
        _ => Err(Error::Malformed),
    }
}

fn sum(bytes: &[u8]) -> [u8; SUM] {
    (selection::fixed_hash(bytes) as u32).to_le_bytes()
}
