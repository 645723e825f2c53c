//! Guest memory: shared file mappings at guest-physical addresses, with a bump allocator.
//!
//! The device maps the same files, so everything here is memory that another process changes at any time:
//! only raw copies touch it, never a Rust reference.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

/// Bytes of a guest page.
pub const PAGE: usize = 4096;

/// A mapped range of guest-physical addresses, backed by a file that a device can map too.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    len: usize,
    base: NonNull<u8>,
    file: File,
    offset: u64,
    used: AtomicUsize,
}

// SAFETY: a Region is an address range that stays mapped until it is dropped; every access is a raw copy or
// an atomic, so sharing it between threads is no more than sharing memory with the device.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn map(file: File, offset: u64, gpa: u64, len: usize) -> io::Result<Region> {
        let at = libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                at,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Region {
            gpa,
            len,
            base,
            file,
            offset,
            used: AtomicUsize::new(0),
        })
    }

    /// First guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes (never).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is mapped in this process: the "user address" of vhost-user's memory table.
    pub fn user_addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The file behind it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where in the file the region starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where `len` bytes at guest address `gpa` are mapped; `None` when not all of them lie in the region.
    pub fn host(&self, gpa: u64, len: usize) -> Option<*mut u8> {
        let skip = usize::try_from(gpa.checked_sub(self.gpa)?).ok()?;
        if skip.checked_add(len)? > self.len {
            return None;
        }
        Some(self.base.as_ptr().wrapping_add(skip))
    }

    fn alloc(&self, len: usize, align: usize) -> Option<u64> {
        let mut gpa = 0;
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let at = used.checked_next_multiple_of(align)?;
                let end = at.checked_add(len)?;
                gpa = self.gpa + at as u64;
                (end <= self.len).then_some(end)
            })
            .ok()
            .map(|_| gpa)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and nobody else unmaps it; pointers into it do not outlive the
        // Arc<Region> their holders keep.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Allocated guest memory. Keeps its region mapped.
#[derive(Clone, Debug)]
pub struct Area {
    region: Arc<Region>,
    gpa: u64,
    len: usize,
    host: NonNull<u8>,
}

// SAFETY: as for Region, which it keeps mapped.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    fn new(region: Arc<Region>, gpa: u64, len: usize) -> Option<Area> {
        let host = NonNull::new(region.host(gpa, len)?)?;
        Some(Area {
            region,
            gpa,
            len,
            host,
        })
    }

    /// Guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is mapped in this process.
    pub fn as_ptr(&self) -> *mut u8 {
        self.host.as_ptr()
    }

    /// The address as the front-end's own ("user address").
    pub fn user_addr(&self) -> u64 {
        self.host.as_ptr() as u64
    }

    /// The part `skip .. skip + len`.
    ///
    /// # Panics
    /// When the part is not within the area.
    pub fn part(&self, skip: usize, len: usize) -> Area {
        assert!(skip.checked_add(len).is_some_and(|end| end <= self.len));
        Area::new(Arc::clone(&self.region), self.gpa + skip as u64, len).expect("part of a mapped area")
    }

    /// Copies `bytes` in at byte `at`.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        // SAFETY: within the area by the check above, mapped as long as `region` lives.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_ptr().add(at), bytes.len());
        }
    }

    /// Copies out from byte `at` on.
    ///
    /// # Panics
    /// When not all of `into` lies within the area.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        assert!(at.checked_add(into.len()).is_some_and(|end| end <= self.len));
        // SAFETY: as in `write`.
        unsafe {
            std::ptr::copy_nonoverlapping(self.as_ptr().add(at), into.as_mut_ptr(), into.len());
        }
    }

    /// A copy of `len` bytes from byte `at` on.
    pub fn get(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes);
        bytes
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the whole area is mapped.
        unsafe { std::ptr::write_bytes(self.as_ptr(), byte, self.len) };
    }
}

/// All of a guest's memory. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    regions: Arc<RwLock<Vec<Arc<Region>>>>,
}

impl GuestMemory {
    /// Anonymous shared memory (memfd) in regions of `(guest address, bytes)`.
    pub fn new(layout: &[(u64, usize)]) -> io::Result<GuestMemory> {
        let memory = GuestMemory {
            regions: Arc::default(),
        };
        for &(gpa, len) in layout {
            memory.add_region(gpa, len)?;
        }
        Ok(memory)
    }

    /// One region of `len` bytes at `gpa`, which is `file` from `offset` on (QEMU's memory-backend-file).
    pub fn from_file(file: File, offset: u64, gpa: u64, len: usize) -> io::Result<GuestMemory> {
        let region = Arc::new(Region::map(file, offset, gpa, len)?);
        Ok(GuestMemory {
            regions: Arc::new(RwLock::new(vec![region])),
        })
    }

    fn list(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Region>>> {
        self.regions.read().expect("no panic under this lock")
    }

    /// A further region of anonymous shared memory.
    pub fn add_region(&self, gpa: u64, len: usize) -> io::Result<Arc<Region>> {
        // SAFETY: the name is a NUL-terminated string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        let region = Arc::new(Region::map(file, 0, gpa, len)?);
        self.regions
            .write()
            .expect("no panic under this lock")
            .push(Arc::clone(&region));
        Ok(region)
    }

    /// Forgets the region that starts at `gpa`; it stays mapped while areas of it are held.
    pub fn remove_region(&self, gpa: u64) -> Option<Arc<Region>> {
        let mut regions = self.regions.write().expect("no panic under this lock");
        let at = regions.iter().position(|region| region.gpa == gpa)?;
        Some(regions.remove(at))
    }

    /// The regions as they are now.
    pub fn regions(&self) -> Vec<Arc<Region>> {
        self.list().clone()
    }

    /// `len` bytes aligned to `align`, from the first region that has room.
    ///
    /// # Panics
    /// When no region has room: the test or benchmark asked for too little memory.
    pub fn alloc(&self, len: usize, align: usize) -> Area {
        self.list()
            .iter()
            .find_map(|region| Area::new(Arc::clone(region), region.alloc(len, align)?, len))
            .unwrap_or_else(|| panic!("guest memory is full: {len} bytes wanted"))
    }

    /// `count` contiguous pages. Panics as [`GuestMemory::alloc`].
    pub fn pages(&self, count: usize) -> Area {
        self.alloc(count * PAGE, PAGE)
    }

    /// As [`GuestMemory::alloc`], from the region that starts at `gpa` only.
    pub fn alloc_in(&self, gpa: u64, len: usize, align: usize) -> Option<Area> {
        let region = self.list().iter().find(|region| region.gpa == gpa).cloned()?;
        let at = region.alloc(len, align)?;
        Area::new(region, at, len)
    }

    /// The memory at a given address, allocated or not; `None` when no single region holds all of it.
    pub fn area(&self, gpa: u64, len: usize) -> Option<Area> {
        self.list()
            .iter()
            .find_map(|region| Area::new(Arc::clone(region), gpa, len))
    }

    /// How much is allocated in each region, for [`GuestMemory::reset`].
    pub fn mark(&self) -> Vec<usize> {
        let used = |region: &Arc<Region>| region.used.load(Ordering::Relaxed);
        self.list().iter().map(used).collect()
    }

    /// Frees all that was allocated since `mark`; areas still held then alias new ones, which is the
    /// caller's business (it is only ever test data). Regions added since are emptied.
    pub fn reset(&self, mark: &[usize]) {
        for (at, region) in self.list().iter().enumerate() {
            let used = mark.get(at).copied().unwrap_or(0);
            region.used.store(used, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_do_not_overlap_and_reset_gives_them_back() {
        let memory = GuestMemory::new(&[(0x1000, 2 * PAGE), (1 << 32, 4 * PAGE)]).expect("memfd");
        let first = memory.alloc(10, 8);
        let mark = memory.mark();
        let second = memory.pages(1);
        assert_eq!((first.gpa(), second.gpa()), (0x1000, 0x2000));
        assert_eq!(memory.pages(2).gpa(), 1 << 32);
        memory.reset(&mark);
        assert_eq!(memory.pages(1).gpa(), 0x2000);
        second.write(3, b"abc");
        let other = memory.area(0x2003, 3).expect("within the first region");
        assert_eq!(other.get(0, 3), b"abc");
        assert!(memory.area(0x2fff, 2).is_none());
        assert!(memory.remove_region(1 << 32).is_some());
        assert!(memory.area(1 << 32, 1).is_none());
    }

    #[test]
    fn a_mapped_file_is_the_memory() {
        let file = tempfile::tempfile().expect("tempfile");
        file.set_len(4 * PAGE as u64).expect("truncate");
        let twin = file.try_clone().expect("dup");
        let memory = GuestMemory::from_file(file, PAGE as u64, 0, 2 * PAGE).expect("mmap");
        memory.area(5, 4).expect("mapped").write(0, b"9p!!");
        let mut back = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&twin, &mut back, PAGE as u64 + 5).expect("read");
        assert_eq!(&back, b"9p!!");
    }
}
