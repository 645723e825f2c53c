//! Names and file handles of nodes, in chunks of 28 bytes: most names take one, and none is an allocation.

use crate::slab::{NONE, Slab};

const CHUNK: usize = 28;

#[derive(Debug)]
struct Chunk {
    next: u32,
    data: [u8; CHUNK],
}

/// Byte strings by number.
#[derive(Debug, Default)]
pub(crate) struct ByteStore {
    chunks: Slab<Chunk>,
    /// It must not grow.
    pub(crate) full: bool,
}

impl ByteStore {
    /// Keeps `bytes` (at most 65,535); gives their number, [`NONE`] for none, and when that would take more memory than
    /// there is and the store must not grow.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> u32 {
        let Ok(len) = u16::try_from(bytes.len()) else {
            return NONE;
        };
        if len == 0 || (self.full && self.spare() < bytes.len()) {
            return NONE;
        }
        // Back to front, so that each chunk knows the next; the first begins with the length.
        let first = bytes.len().min(CHUNK - 2);
        let mut next = NONE;
        for piece in bytes[first..].chunks(CHUNK).rev() {
            let mut data = [0; CHUNK];
            data[..piece.len()].copy_from_slice(piece);
            next = self.chunks.insert(Chunk { next, data });
        }
        let mut data = [0; CHUNK];
        data[..2].copy_from_slice(&len.to_le_bytes());
        data[2..2 + first].copy_from_slice(&bytes[..first]);
        self.chunks.insert(Chunk { next, data })
    }

    /// How long a string can be that takes no more memory.
    pub(crate) fn spare(&self) -> usize {
        (self.chunks.spare() * CHUNK).saturating_sub(2)
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.bytes()
    }

    /// Chunks in use.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    fn pieces(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        let mut at = number;
        let mut left = None;
        std::iter::from_fn(move || {
            let chunk = self.chunks.get(at)?;
            at = chunk.next;
            let data = match left {
                None => {
                    left = Some(usize::from(u16::from_le_bytes([chunk.data[0], chunk.data[1]])));
                    &chunk.data[2..]
                }
                Some(_) => &chunk.data[..],
            };
            let piece = &data[..data.len().min(left?)];
            left = left.map(|left| left - piece.len());
            Some(piece)
        })
    }

    /// Appends the bytes `number` to `out`.
    pub(crate) fn get(&self, number: u32, out: &mut Vec<u8>) {
        self.pieces(number).for_each(|piece| out.extend_from_slice(piece));
    }

    /// Whether `number` is exactly `bytes`.
    pub(crate) fn is(&self, number: u32, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        for piece in self.pieces(number) {
            match rest.split_at_checked(piece.len()) {
                Some((front, back)) if front == piece => rest = back,
                _ => return false,
            }
        }
        rest.is_empty()
    }

    /// Forgets the bytes `number`.
    pub(crate) fn remove(&mut self, number: u32) {
        let mut at = number;
        while let Some(chunk) = self.chunks.remove(at) {
            at = chunk.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back(strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20)) {
            let mut store = ByteStore::default();
            let numbers: Vec<u32> = strings.iter().map(|s| store.put(s)).collect();
            for (number, string) in numbers.iter().zip(&strings) {
                let mut out = Vec::new();
                store.get(*number, &mut out);
                prop_assert_eq!(&out, string);
                prop_assert!(store.is(*number, string));
                out.push(0);
                prop_assert!(!store.is(*number, &out));
                prop_assert!(string.is_empty() || !store.is(*number, &string[1..]));
            }
            numbers.iter().for_each(|number| store.remove(*number));
            prop_assert_eq!(store.len(), 0);
        }
    }
}
