//! Guest memory in which nothing lies next to a region by chance: around each is memory that cannot be touched, or the
//! next region when a script wants it so.

use std::ptr::NonNull;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

/// Bytes set aside: regions, the gaps between them, and those of earlier layouts of one script.
const ARENA: usize = 2 << 20;
/// Most bytes of a region.
pub const REGION: u32 = 256 << 10;
const PAGE: usize = 4096;
/// What fills a region's last page behind its end.
const BEHIND: u8 = 0xb5;

/// A region of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Its first guest address.
    pub gpa: u64,
    /// Its bytes.
    pub len: u32,
    at: NonNull<u8>,
}

// SAFETY: an address; what is mapped there is only touched by raw copies, as the guest memory that it stands for.
unsafe impl Send for Region {}

/// The address range, the same for all scripts: a write that comes late, from a thread that should have ended, hits
/// memory that cannot be touched.
static RANGE: LazyLock<usize> = LazyLock::new(|| map(std::ptr::null_mut(), 0));
static IN_USE: AtomicBool = AtomicBool::new(false);

fn map(at: *mut libc::c_void, flags: i32) -> usize {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, or in place of the range, which is nobody else's.
    let at = unsafe { libc::mmap(at, ARENA, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.expose_provenance()
}

/// The memory of one script.
pub struct Arena {
    used: usize,
    /// The regions that the guest has now.
    pub regions: Vec<Region>,
    /// All there were.
    mapped: Vec<Region>,
}

impl Arena {
    /// One without regions.
    pub fn new() -> Arena {
        assert!(!IN_USE.swap(true, Ordering::Acquire), "one script at a time");
        Arena {
            used: PAGE,
            regions: Vec::new(),
            mapped: Vec::new(),
        }
    }

    /// Regions of guest address, bytes, and whether the next one follows in this process, too. `None`, and no change,
    /// when that is no possible layout.
    pub fn layout(&mut self, wanted: &[(u64, u32, bool)]) -> Option<Vec<GuestRegionMmap>> {
        let mut regions = Vec::new();
        let mut used = self.used;
        for &(gpa, len, adjacent) in wanted {
            let end = used + (len as usize).next_multiple_of(PAGE);
            if len == 0 || len > REGION || end + PAGE > ARENA || gpa.checked_add(len.into()).is_none() {
                return None;
            }
            let at = NonNull::new(std::ptr::with_exposed_provenance_mut(*RANGE + used))?;
            regions.push(Region { gpa, len, at });
            used = end + if adjacent { 0 } else { PAGE };
        }
        let mut theirs = Vec::new();
        for region in &regions {
            let whole = (region.len as usize).next_multiple_of(PAGE);
            // SAFETY: the pages are of this arena and were not used by this script yet.
            let done = unsafe {
                libc::mprotect(
                    region.at.as_ptr().cast(),
                    whole,
                    libc::PROT_READ | libc::PROT_WRITE,
                )
            };
            assert_eq!(done, 0, "mprotect");
            let tail = whole - region.len as usize;
            // SAFETY: the rest of the last page, writable since a moment ago.
            unsafe { std::ptr::write_bytes(region.at.as_ptr().add(region.len as usize), BEHIND, tail) };
            // SAFETY: the pages stay mapped for as long as the process lives.
            let builder = unsafe {
                MmapRegionBuilder::new(region.len as usize)
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_raw_mmap_pointer(region.at.as_ptr())
            };
            theirs.push(GuestRegionMmap::new(
                builder.build().ok()?,
                GuestAddress(region.gpa),
            )?);
        }
        self.mapped.extend(&regions);
        self.used = used + PAGE;
        regions.sort_by_key(|region| region.gpa);
        let overlap = |pair: &[Region]| pair[0].gpa + u64::from(pair[0].len) > pair[1].gpa;
        if regions.windows(2).any(overlap) {
            return None;
        }
        self.regions = regions;
        Some(theirs)
    }

    /// The region that the guest address is in, and where in it.
    fn find(&self, gpa: u64) -> Option<(&Region, usize)> {
        let of = |region: &&Region| gpa >= region.gpa && gpa - region.gpa < u64::from(region.len);
        let region = self.regions.iter().find(of)?;
        Some((region, (gpa - region.gpa) as usize))
    }

    /// Whether the bytes are in one region.
    pub fn contiguous(&self, gpa: u64, len: u64) -> bool {
        self.find(gpa)
            .is_some_and(|(region, skip)| len <= u64::from(region.len) - skip as u64)
    }

    /// Whether the address is a multiple of `align` in this process.
    pub fn aligned(&self, gpa: u64, align: usize) -> bool {
        self.find(gpa).is_some_and(|(_, skip)| skip.is_multiple_of(align))
    }

    /// Goes through the parts of the bytes that are in one region each; whether all of them are guest memory.
    fn parts(&self, mut gpa: u64, mut len: usize, mut each: impl FnMut(NonNull<u8>, usize)) -> bool {
        while len > 0 {
            let Some((region, skip)) = self.find(gpa) else {
                return false;
            };
            let part = len.min(region.len as usize - skip);
            // SAFETY: within the region.
            each(unsafe { region.at.add(skip) }, part);
            len -= part;
            match gpa.checked_add(part as u64) {
                Some(next) => gpa = next,
                None => return len == 0,
            }
        }
        true
    }

    /// Whether all of the bytes are guest memory.
    pub fn has(&self, gpa: u64, len: usize) -> bool {
        self.parts(gpa, len, |_, _| ())
    }

    /// Copies `bytes` there, as far as that is guest memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let mut rest = bytes;
        self.parts(gpa, bytes.len(), |at, len| {
            let (now, later) = rest.split_at(len);
            // SAFETY: mapped, and not in `bytes`.
            unsafe { at.copy_from_nonoverlapping(NonNull::from(now).cast(), len) };
            rest = later;
        });
    }

    /// A copy of what is there; zeroes where that is not guest memory.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        self.parts(gpa, len, |at, len| {
            // SAFETY: mapped; a copy of bytes that nobody changes while it is made.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) });
        });
        bytes.resize(len, 0);
        bytes
    }

    /// The number there.
    pub fn u16(&self, gpa: u64) -> u16 {
        let bytes = self.read(gpa, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The bytes of all regions, one after the other; for as long as nobody else changes them.
    pub fn bytes(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.regions.iter().map(|region| {
            // SAFETY: the region's bytes; the device is at rest, or it is at fault.
            let bytes = unsafe { std::slice::from_raw_parts(region.at.as_ptr(), region.len as usize) };
            (region.gpa, bytes)
        })
    }

    /// No byte behind the end of a region has changed.
    ///
    /// # Panics
    /// When one has.
    pub fn check(&self) {
        for region in &self.mapped {
            let len = region.len as usize;
            let tail = len.next_multiple_of(PAGE) - len;
            // SAFETY: the rest of the region's last page.
            let behind = unsafe { std::slice::from_raw_parts(region.at.as_ptr().add(len), tail) };
            assert!(
                behind.iter().all(|byte| *byte == BEHIND),
                "written behind a region"
            );
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        map(std::ptr::with_exposed_provenance_mut(*RANGE), libc::MAP_FIXED);
        IN_USE.store(false, Ordering::Release);
    }
}
