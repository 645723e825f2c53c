//! What a ring means, told from virtio 1.2 and a copy of the guest's memory, one descriptor at a time: the device has to
//! come to the same.

use crate::arena::Arena;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Most descriptors in one chain, tables included.
const MOST: usize = 1024;
/// Least readable bytes of a request.
const LEAST: usize = 7;

/// Where a ring is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Entries.
    pub size: u16,
}

/// A range of guest memory.
pub type Range = (u64, u64);

impl Ring {
    /// The three areas, the used ring last.
    pub fn areas(&self) -> [Range; 3] {
        let size = u64::from(self.size);
        [
            (self.descriptors, 16 * size),
            (self.avail, 6 + 2 * size),
            (self.used, 6 + 8 * size),
        ]
    }

    /// Whether two of the areas share a byte.
    fn overlaps(&self) -> bool {
        let [a, b, c] = self.areas();
        overlap(a, b) || overlap(a, c) || overlap(b, c)
    }

    /// Whether it can be used.
    pub fn valid(&self, memory: &Arena) -> bool {
        self.size.is_power_of_two()
            && memory.aligned(self.avail, 2)
            && memory.aligned(self.used, 4)
            && self.areas().iter().all(|&(gpa, len)| memory.contiguous(gpa, len))
            && !self.overlaps()
    }
}

/// A chain's parts.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Whether it carries a request.
    pub valid: bool,
    /// What the device may read.
    pub readable: Vec<Range>,
    /// What it may write.
    pub writable: Vec<Range>,
    /// Indirect tables.
    pub tables: Vec<Range>,
    /// Descriptors.
    pub descriptors: usize,
}

impl Chain {
    /// The chain at `head`.
    pub fn of(memory: &Arena, ring: &Ring, head: u16) -> Chain {
        let mut chain = Chain::default();
        chain.valid = chain.walk(memory, ring, head).is_some() && total(&chain.readable) >= LEAST;
        chain
    }

    /// `None` when something is wrong with it.
    fn walk(&mut self, memory: &Arena, ring: &Ring, head: u16) -> Option<()> {
        let (mut table, mut entries, mut index) = (ring.descriptors, u32::from(ring.size), head);
        let mut indirect = false;
        for _ in 0..MOST {
            self.descriptors += 1;
            if u32::from(index) >= entries {
                return None;
            }
            let at = table.checked_add(16 * u64::from(index))?;
            if !memory.contiguous(at, 16) {
                return None;
            }
            let bytes = memory.read(at, 16);
            let gpa = u64::from_le_bytes(bytes[..8].try_into().ok()?);
            let len = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
            let (flags, next) = (memory.u16(at + 12), memory.u16(at + 14));
            if flags & INDIRECT != 0 {
                if indirect || flags & NEXT != 0 || len == 0 || len % 16 != 0 {
                    return None;
                }
                indirect = true;
                (table, entries, index) = (gpa, (len / 16).min(u32::from(u16::MAX)), 0);
                self.tables.push((gpa, u64::from(len)));
                continue;
            }
            self.add(memory, flags, gpa, len)?;
            if flags & NEXT == 0 {
                return Some(());
            }
            index = next;
        }
        None
    }

    fn add(&mut self, memory: &Arena, flags: u16, gpa: u64, len: u32) -> Option<()> {
        if len == 0 {
            return Some(());
        }
        let list = match flags & WRITE != 0 {
            true => &mut self.writable,
            false if self.writable.is_empty() => &mut self.readable,
            false => return None,
        };
        if !memory.has(gpa, len as usize) {
            return None;
        }
        list.push((gpa, u64::from(len)));
        Some(())
    }
}

/// Bytes of all ranges.
pub fn total(ranges: &[Range]) -> usize {
    ranges.iter().map(|range| range.1 as usize).sum()
}

/// The bytes of all ranges.
pub fn bytes(memory: &Arena, ranges: &[Range]) -> Vec<u8> {
    let read = |range: &Range| memory.read(range.0, range.1 as usize);
    ranges.iter().flat_map(read).collect()
}

/// Whether two ranges have a byte in common.
pub fn overlap(one: Range, other: Range) -> bool {
    let end = |range: Range| range.0.saturating_add(range.1);
    one.1 > 0 && other.1 > 0 && one.0 < end(other) && other.0 < end(one)
}
