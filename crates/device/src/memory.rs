//! Guest memory as a sorted list of mapped ranges: what a guest-physical address is on this side.

use std::fmt;
use std::sync::Arc;

use host::IoVec;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

struct Region {
    start: u64,
    len: u64,
    host: *mut u8,
}

/// One snapshot of the guest's memory regions. Whoever holds it keeps the mappings alive, so a request that began
/// before a region was removed ends on memory that is still there.
pub struct Memory {
    regions: Vec<Region>,
    _mapped: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers are addresses of shared mappings that `_mapped` keeps alive and that nothing here ever
// turns into references; which thread uses them does not matter.
unsafe impl Send for Memory {}
// SAFETY: as above; the list itself never changes.
unsafe impl Sync for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.regions
                    .iter()
                    .map(|r| format!("{:#x}+{:#x}", r.start, r.len)),
            )
            .finish()
    }
}

impl Memory {
    /// The regions of `mapped`.
    pub fn new(mapped: Arc<GuestMemoryMmap>) -> Memory {
        let mut regions: Vec<Region> = mapped
            .iter()
            .map(|region| Region {
                start: region.start_addr().raw_value(),
                len: region.len(),
                host: region.as_ptr(),
            })
            .collect();
        regions.sort_by_key(|region| region.start);
        Memory {
            regions,
            _mapped: mapped,
        }
    }

    /// Where `address` is mapped, and how many bytes follow it in its region.
    #[inline]
    fn find(&self, address: u64) -> Option<(*mut u8, u64)> {
        let index = self.regions.partition_point(|region| region.start <= address);
        let region = self.regions.get(index.checked_sub(1)?)?;
        let offset = address - region.start;
        if offset >= region.len {
            return None;
        }
        // `offset` is below the mapping's length, which is a usize.
        Some((region.host.wrapping_add(offset as usize), region.len - offset))
    }

    /// Where the `len` bytes at `address` are, when they are in one region.
    #[inline]
    pub fn contiguous(&self, address: u64, len: u64) -> Option<*mut u8> {
        let (host, left) = self.find(address)?;
        (len <= left).then_some(host)
    }

    /// Appends the `len` bytes at `address` to `list`: as part of its last piece when they follow it on this side
    /// (Linux hands over page by page what is often contiguous), as several pieces when they cross regions.
    /// Gives false, with `list` in an unspecified state, when a byte is not guest memory or `list` would get more
    /// than `max` pieces.
    #[inline]
    pub fn append(&self, mut address: u64, mut len: u64, max: usize, list: &mut Vec<IoVec>) -> bool {
        while len > 0 {
            let Some((host, left)) = self.find(address) else {
                return false;
            };
            let part = len.min(left);
            let bytes = part as usize;
            match list.last_mut() {
                Some(last) if last.base().wrapping_add(last.len()) == host => {
                    let base = last.base();
                    let total = last.len() + bytes;
                    // SAFETY: both halves are mapped guest memory and the second begins where the first ends.
                    *last = unsafe { IoVec::new(base, total) };
                }
                _ => {
                    if list.len() == max {
                        return false;
                    }
                    // SAFETY: `find` vouches for `part` bytes at `host`; the holder of this snapshot keeps them mapped.
                    list.push(unsafe { IoVec::new(host, bytes) });
                }
            }
            len -= part;
            match address.checked_add(part) {
                Some(next) => address = next,
                None => return len == 0,
            }
        }
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    /// Memory made of anonymous mappings, and the mappings.
    pub(crate) fn fake(ranges: &[(u64, usize)]) -> (Arc<Memory>, Arc<GuestMemoryMmap>) {
        let ranges: Vec<_> = ranges.iter().map(|&(a, l)| (GuestAddress(a), l)).collect();
        let mapped = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        (Arc::new(Memory::new(mapped.clone())), mapped)
    }

    #[test]
    fn every_byte_of_a_range_is_checked() {
        let (memory, _) = fake(&[(0x1000, 0x1000), (0x10000, 0x2000)]);
        assert!(memory.contiguous(0x1000, 0x1000).is_some());
        assert!(memory.contiguous(0x1000, 0x1001).is_none());
        assert!(memory.contiguous(0xfff, 1).is_none());
        assert!(memory.contiguous(0x2000, 1).is_none());
        assert!(memory.contiguous(0x11fff, 1).is_some());
        assert!(memory.contiguous(u64::MAX, 2).is_none());
        let mut list = Vec::new();
        assert!(!memory.append(0x1ff0, 0x20, 8, &mut list));
    }

    #[test]
    fn pieces_merge_and_split_where_the_host_has_it_so() {
        let (memory, _) = fake(&[(0x1000, 0x1000), (0x2000, 0x1000)]);
        let mut list = Vec::new();
        assert!(memory.append(0x1000, 0x100, 8, &mut list));
        assert!(memory.append(0x1100, 0x100, 8, &mut list));
        assert_eq!(list.iter().map(IoVec::len).collect::<Vec<_>>(), [0x200]);
        list.clear();
        assert!(memory.append(0x1f00, 0x200, 8, &mut list));
        // Two mappings: one or two pieces, depending on where the kernel put them, but all bytes.
        assert_eq!(IoVec::total(&list), 0x200);
        list.clear();
        assert!(memory.append(0x1000, 1, 1, &mut list));
        assert!(!memory.append(0x1800, 1, 1, &mut list));
    }
}
