//! Guest memory as a sorted list of mapped ranges: what a guest-physical address is on this side.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host::IoVec;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{Address, GuestAddress, GuestMemoryRegion, GuestRegionMmap};

use crate::sigbus;

/// What lies behind a byte of a region, whichever region shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Backing {
    device: u64,
    inode: u64,
    offset: u64,
}

/// One region of guest memory, mapped.
pub struct Region {
    start: u64,
    len: u64,
    /// Its address in the front-end, which is what SET_VRING_ADDR speaks of.
    user: u64,
    host: *mut u8,
    backing: Option<Backing>,
    _watched: sigbus::Watched,
    _mapped: Arc<GuestRegionMmap>,
}

// SAFETY: the pointer is the address of a shared mapping that `_mapped` keeps alive and that nothing here ever turns
// into a reference; which thread uses it does not matter.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `region` of `file`. An error when that cannot be, or when the file is shorter than it is said to be:
    /// touching what is not there would end this process.
    pub fn map(region: &VhostUserMemoryRegion, file: File) -> io::Result<Region> {
        let (start, len) = (region.guest_phys_addr, region.memory_size);
        let (offset, user) = (region.mmap_offset, region.user_addr);
        let metadata = file.metadata()?;
        let end = offset.saturating_add(len);
        if metadata.file_type().is_file() && metadata.len() < end {
            return Err(io::Error::other(format!(
                "the file of the guest memory at {start:#x} has {} bytes and should have {end}",
                metadata.len()
            )));
        }
        let device = match metadata.file_type().is_char_device() {
            // A DAX device: its number, as there may be several nodes for it.
            true => metadata.rdev(),
            false => metadata.dev(),
        };
        let inode = match metadata.file_type().is_char_device() {
            true => u64::MAX,
            false => metadata.ino(),
        };
        let mapping = region.mmap_region(file).map_err(io::Error::other)?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| io::Error::other("a region of guest memory that ends beyond all addresses"))?;
        let mut region = Region::new(Arc::new(mapped), user);
        region.backing = Some(Backing {
            device,
            inode,
            offset,
        });
        Ok(region)
    }

    /// A mapping that is there already.
    pub(crate) fn new(mapped: Arc<GuestRegionMmap>, user: u64) -> Region {
        let (host, len) = (mapped.as_ptr(), mapped.len());
        // A core dump is no place for the guest's secrets, and gigabytes.
        // SAFETY: the range is a mapping of our own, and the advice changes nothing about its contents.
        if unsafe { libc::madvise(host.cast(), len as usize, libc::MADV_DONTDUMP) } != 0 {
            log::warn!(
                "Guest memory cannot be kept out of core dumps: {}.",
                io::Error::last_os_error()
            );
        }
        Region {
            start: mapped.start_addr().raw_value(),
            len,
            user,
            host,
            backing: None,
            _watched: sigbus::Watched::new(host.addr(), len as usize),
            _mapped: mapped,
        }
    }

    /// Guest-physical address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The guest-physical address of what the front-end has at `user`, if that lies here.
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        let offset = user.checked_sub(self.user).filter(|offset| *offset < self.len)?;
        Some(self.start + offset)
    }
}

/// One snapshot of the guest's memory regions. Whoever holds it keeps the mappings alive, so a request that began
/// before a region was removed ends on memory that is still there.
pub struct Memory {
    /// Apart from the regions, so that looking up an address touches one list and nothing else.
    spans: Vec<Span>,
    /// The same, in the same order.
    regions: Vec<Arc<Region>>,
    id: u64,
}

struct Span {
    start: u64,
    len: u64,
    host: *mut u8,
}

// SAFETY: as with Region, which the list of them keeps alive.
unsafe impl Send for Memory {}
// SAFETY: as above; the lists themselves never change.
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

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Memory {
    /// Memory of these regions, in any order; an error when two overlap.
    pub fn new(mut regions: Vec<Arc<Region>>) -> io::Result<Memory> {
        regions.sort_by_key(|region| region.start);
        let overlap = |pair: &[Arc<Region>]| matches!(pair, [a, b] if a.start + a.len > b.start);
        if regions.windows(2).any(overlap) {
            return Err(io::Error::other("regions of guest memory overlap"));
        }
        let span = |region: &Arc<Region>| Span {
            start: region.start,
            len: region.len,
            host: region.host,
        };
        Ok(Memory {
            spans: regions.iter().map(span).collect(),
            regions,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Tells this snapshot from every other.
    pub fn id(&self) -> u64 {
        self.id
    }

    #[inline]
    fn index(&self, address: u64) -> Option<usize> {
        self.spans
            .partition_point(|span| span.start <= address)
            .checked_sub(1)
    }

    /// Whether the `len` bytes at `address` and the `other_len` at `other`, each in one region, share a byte: by their
    /// guest-physical addresses, or because two regions show the same part of one file.
    pub fn overlap(&self, (address, len): (u64, u64), (other, other_len): (u64, u64)) -> bool {
        let meet = |a: u64, b: u64| a < b.saturating_add(other_len) && b < a.saturating_add(len);
        if meet(address, other) {
            return true;
        }
        let backing = |address: u64| {
            let region = self.regions.get(self.index(address)?)?;
            let backing = region.backing?;
            let offset = backing.offset.saturating_add(address - region.start);
            Some((backing.device, backing.inode, offset))
        };
        match (backing(address), backing(other)) {
            (Some((d1, i1, a)), Some((d2, i2, b))) => (d1, i1) == (d2, i2) && meet(a, b),
            _ => false,
        }
    }

    /// Where `address` is mapped, and how many bytes follow it in its region.
    #[inline]
    fn find(&self, address: u64) -> Option<(*mut u8, u64)> {
        let span = self.spans.get(self.index(address)?)?;
        let offset = address - span.start;
        if offset >= span.len {
            return None;
        }
        // `offset` is below the mapping's length, which is a usize.
        Some((span.host.wrapping_add(offset as usize), span.len - offset))
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
    use vm_memory::GuestMemoryMmap;

    /// Memory made of anonymous mappings, and the mappings.
    pub(crate) fn fake(ranges: &[(u64, usize)]) -> (Arc<Memory>, Arc<GuestMemoryMmap>) {
        let region = |&(start, len)| GuestRegionMmap::from_range(GuestAddress(start), len, None);
        let mapped: Vec<_> = ranges
            .iter()
            .map(|range| Arc::new(region(range).unwrap()))
            .collect();
        let regions = mapped
            .iter()
            .map(|mapped| Arc::new(Region::new(Arc::clone(mapped), 0)));
        let memory = Arc::new(Memory::new(regions.collect()).unwrap());
        (
            memory,
            Arc::new(GuestMemoryMmap::from_arc_regions(mapped).unwrap()),
        )
    }

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn map(start: u64, len: u64, offset: u64, file: &File) -> io::Result<Region> {
        let region = VhostUserMemoryRegion::new(start, len, 0x7000_0000 + start, offset);
        Region::map(&region, file.try_clone().unwrap())
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let memfd = file(0x3000);
        assert!(map(0x1000, 0x3000, 0, &memfd).is_ok());
        assert!(map(0x1000, 0x2000, 0x1000, &memfd).is_ok());
        assert!(map(0x1000, 0x3000, 0x1000, &memfd).is_err());
        assert!(map(0x1000, u64::MAX - 0x1000, 0x1000, &memfd).is_err());
        assert!(map(0x1000, 0x1000, 1, &memfd).is_err(), "not a page");
        assert!(map(0x1000, 0x1000, 0, &File::open("/").unwrap()).is_err());
    }

    #[test]
    fn core_dumps_do_not_hold_guest_memory() {
        let region = map(0x1000, 0x3000, 0, &file(0x3000)).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps
            .lines()
            .skip_while(|line| !line.starts_with(&format!("{:x}-", region.host.addr())));
        assert!(lines.next().is_some(), "the mapping is there");
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }

    #[test]
    fn the_front_ends_addresses_are_found() {
        let region = map(0x1000, 0x3000, 0, &file(0x3000)).unwrap();
        assert_eq!(region.guest_address(0x7000_1000), Some(0x1000));
        assert_eq!(region.guest_address(0x7000_3fff), Some(0x3fff));
        assert_eq!(region.guest_address(0x7000_4000), None);
        assert_eq!(region.guest_address(0x7000_0fff), None);
        assert_eq!(region.guest_address(u64::MAX), None);
    }

    #[test]
    fn overlap_is_seen_through_regions_that_show_the_same_bytes() {
        let memfd = file(0x4000);
        let other = file(0x4000);
        let regions = [
            map(0x1000, 0x4000, 0, &memfd).unwrap(),
            // The third page of the first once more.
            map(0x10000, 0x1000, 0x2000, &memfd).unwrap(),
            map(0x20000, 0x4000, 0, &other).unwrap(),
        ];
        let memory = Memory::new(regions.map(Arc::new).into()).unwrap();
        assert!(memory.overlap((0x1000, 0x10), (0x100f, 1)));
        assert!(!memory.overlap((0x1000, 0x10), (0x1010, 0x10)));
        assert!(memory.overlap((0x10000, 0x10), (0x3000, 0x10)));
        assert!(memory.overlap((0x2ff0, 0x11), (0x10000, 1)));
        assert!(!memory.overlap((0x2ff0, 0x10), (0x10000, 1)));
        assert!(!memory.overlap((0x22000, 0x1000), (0x10000, 0x1000)));
        assert!(!memory.overlap((0x22000, 0x1000), (0x3000, 0x1000)));
    }

    #[test]
    fn regions_that_overlap_are_refused_and_their_order_does_not_matter() {
        let memfd = file(0x8000);
        let memory = |ranges: &[(u64, u64)]| {
            let region = |&(start, len)| Arc::new(map(start, len, 0, &memfd).unwrap());
            Memory::new(ranges.iter().map(region).collect())
        };
        assert!(memory(&[]).is_ok());
        let sorted = memory(&[(0x4000, 0x1000), (0x1000, 0x3000)]).unwrap();
        assert!(sorted.contiguous(0x3fff, 1).is_some());
        assert!(memory(&[(0x4000, 0x1000), (0x1000, 0x4000)]).is_err());
        assert!(memory(&[(0x1000, 0x1000), (0x1000, 0x1000)]).is_err());
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
