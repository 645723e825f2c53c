//! From a descriptor chain to two byte streams.
//!
//! virtio 1.2, 2.7: a chain is descriptors of the ring's table linked by `next`, of which the last may refer to an
//! indirect table with a chain of its own. All of it is the guest's to write at any time, so each descriptor is read
//! once, and every index, address and length is checked.

use std::fmt;

use host::IoVec;

use crate::memory::Memory;
use crate::ring::RingView;

/// Most descriptors in one chain, tables included: what one preadv2 or pwritev2 takes (IOV_MAX). Linux's client
/// uses at most 128.
pub const MAX_DESCRIPTORS: usize = 1024;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const DESCRIPTOR_SIZE: u64 = 16;

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// An index beyond its table.
    Index(u16),
    /// More than [`MAX_DESCRIPTORS`], a loop included.
    TooLong,
    /// Bytes that are not guest memory: address and length.
    Address(u64, u32),
    /// A device-readable descriptor after a device-writable one (2.7.4.2 forbids it).
    Order,
    /// An indirect table in an indirect table, or one that does not end its chain.
    Nested,
    /// An indirect table whose length is not a multiple of 16, or 0.
    Table(u32),
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainError::Index(index) => write!(f, "descriptor {index} is beyond its table"),
            ChainError::TooLong => write!(f, "more than {MAX_DESCRIPTORS} descriptors"),
            ChainError::Address(address, len) => {
                write!(f, "{len} bytes at {address:#x} are not guest memory")
            }
            ChainError::Order => write!(f, "a readable descriptor follows a writable one"),
            ChainError::Nested => write!(f, "an indirect table where none may be"),
            ChainError::Table(len) => write!(f, "an indirect table of {len} bytes"),
        }
    }
}

/// One descriptor, read once.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// The two words at `at`, wherever that is. Apart: inlined, it has the compiler put the words of aligned descriptors
/// together from bytes too.
///
/// # Safety
/// 16 bytes at `at` must be mapped.
#[cold]
#[inline(never)]
unsafe fn read_unaligned(at: *const u8) -> (u64, u64) {
    let bytes = at.cast::<[u8; 8]>();
    // SAFETY: the caller vouches for the bytes; an array of bytes needs no alignment.
    let (low, high) = unsafe { (bytes.read_volatile(), bytes.add(1).read_volatile()) };
    (u64::from_ne_bytes(low), u64::from_ne_bytes(high))
}

/// Reads the descriptor at `at`.
///
/// # Safety
/// 16 bytes at `at` must be mapped.
#[inline]
unsafe fn read_descriptor(at: *const u8) -> Descriptor {
    // Volatile, so that what was checked is what is used even if the guest writes meanwhile. Two words where the
    // table is aligned (Linux's always are): a volatile array of bytes is sixteen loads.
    let (low, high) = if at.addr().is_multiple_of(8) {
        let words = at.cast::<u64>();
        // SAFETY: the caller vouches for the bytes, and they are aligned.
        unsafe { (words.read_volatile(), words.add(1).read_volatile()) }
    } else {
        // SAFETY: as above.
        unsafe { read_unaligned(at) }
    };
    let (low, high) = (u64::from_le(low), u64::from_le(high));
    Descriptor {
        address: low,
        len: high as u32,
        flags: (high >> 32) as u16,
        next: (high >> 48) as u16,
    }
}

/// A descriptor table: the ring's own, or an indirect one.
enum Table<'a> {
    /// All of it is mapped at this address.
    Mapped(*const u8),
    /// It crosses memory regions: each descriptor is looked up.
    Scattered(&'a Memory, u64),
}

impl Table<'_> {
    /// Where descriptor `index` is, which the caller has checked against the table's length.
    #[inline]
    fn at(&self, index: u16) -> Option<*const u8> {
        let offset = u64::from(index) * DESCRIPTOR_SIZE;
        match self {
            Table::Mapped(base) => Some(base.wrapping_add(offset as usize)),
            Table::Scattered(memory, address) => memory
                .contiguous(address.checked_add(offset)?, DESCRIPTOR_SIZE)
                .map(<*mut u8>::cast_const),
        }
    }

    /// Descriptor `index`, which the caller has checked against the table's length.
    #[inline]
    fn get(&self, index: u16) -> Option<Descriptor> {
        let at = self.at(index)?;
        // SAFETY: `index` lies in the table, whose descriptors were checked to be mapped.
        Some(unsafe { read_descriptor(at) })
    }
}

/// Collects the pieces of a chain.
struct Walk<'a> {
    memory: &'a Memory,
    readable: &'a mut Vec<IoVec>,
    writable: &'a mut Vec<IoVec>,
    count: usize,
}

impl Walk<'_> {
    #[inline]
    fn count(&mut self) -> Result<(), ChainError> {
        self.count += 1;
        if self.count > MAX_DESCRIPTORS {
            return Err(ChainError::TooLong);
        }
        Ok(())
    }

    #[inline]
    fn add(&mut self, descriptor: Descriptor) -> Result<(), ChainError> {
        // A length of 0 is legal and adds nothing, wherever it points to.
        if descriptor.len == 0 {
            return Ok(());
        }
        let list = if descriptor.flags & F_WRITE != 0 {
            &mut *self.writable
        } else if self.writable.is_empty() {
            &mut *self.readable
        } else {
            return Err(ChainError::Order);
        };
        let len = u64::from(descriptor.len);
        if !self.memory.append(descriptor.address, len, MAX_DESCRIPTORS, list) {
            return Err(ChainError::Address(descriptor.address, descriptor.len));
        }
        Ok(())
    }

    fn indirect(&mut self, table: Descriptor) -> Result<(), ChainError> {
        let entries = u64::from(table.len) / DESCRIPTOR_SIZE;
        if entries == 0 || u64::from(table.len) % DESCRIPTOR_SIZE != 0 {
            return Err(ChainError::Table(table.len));
        }
        // 2.7.5.3.2 lets a table be longer than the ring; `next` has 16 bits, so more cannot be reached.
        let entries = u16::try_from(entries).unwrap_or(u16::MAX);
        let descriptors = match self.memory.contiguous(table.address, u64::from(table.len)) {
            Some(base) => {
                prefetch_table(base, table.len);
                Table::Mapped(base)
            }
            None => Table::Scattered(self.memory, table.address),
        };
        let mut index = 0;
        loop {
            self.count()?;
            let descriptor = descriptors
                .get(index)
                .ok_or(ChainError::Address(table.address, table.len))?;
            if descriptor.flags & F_INDIRECT != 0 {
                return Err(ChainError::Nested);
            }
            self.add(descriptor)?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            if descriptor.next >= entries {
                return Err(ChainError::Index(descriptor.next));
            }
            index = descriptor.next;
        }
    }
}

/// The two byte streams of a chain: what the device may read and what it may write, pieces that follow each other in
/// this process merged.
#[derive(Debug, Default)]
pub struct Streams {
    readable: Vec<IoVec>,
    writable: Vec<IoVec>,
    /// Of which memory the pieces are, by [`Memory::id`].
    memory: u64,
}

impl Streams {
    /// What the device may read; once [`Streams::cut`], with the piece that it gave shortened.
    pub fn readable(&self) -> &[IoVec] {
        &self.readable
    }

    /// What it may write.
    pub fn writable(&self) -> &[IoVec] {
        &self.writable
    }

    /// Copies from the readable stream, from its byte `offset` on; nothing when `ring` is not in the memory that the
    /// chain was walked in.
    #[inline]
    pub fn copy(&self, ring: &RingView, offset: usize, into: &mut [u8]) {
        if ring.memory().id() == self.memory {
            // SAFETY: `walk` took the pieces from that memory, which the ring keeps mapped.
            unsafe { IoVec::read(&self.readable, offset, into) };
        }
    }

    /// Takes `skip` bytes off the readable stream; gives the index of the piece with which it begins from then on.
    pub fn cut(&mut self, mut skip: usize) -> usize {
        for (index, piece) in self.readable.iter_mut().enumerate() {
            if skip < piece.len() {
                *piece = piece.part(skip, piece.len());
                return index;
            }
            skip -= piece.len();
        }
        self.readable.len()
    }
}

/// Walks the chain that begins at descriptor `head` of `ring`, into `streams`.
pub fn walk(ring: &RingView, head: u16, streams: &mut Streams) -> Result<(), ChainError> {
    let Streams {
        readable,
        writable,
        memory,
    } = streams;
    readable.clear();
    writable.clear();
    *memory = ring.memory().id();
    let mut walk = Walk {
        memory: ring.memory(),
        readable,
        writable,
        count: 0,
    };
    let table = Table::Mapped(ring.descriptors());
    let mut index = head;
    loop {
        walk.count()?;
        if index >= ring.size() {
            return Err(ChainError::Index(index));
        }
        let descriptor = table.get(index).ok_or(ChainError::Index(index))?;
        if descriptor.flags & F_INDIRECT != 0 {
            if descriptor.flags & F_NEXT != 0 {
                return Err(ChainError::Nested);
            }
            return walk.indirect(descriptor);
        }
        walk.add(descriptor)?;
        if descriptor.flags & F_NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next;
    }
}

/// Most bytes of an indirect table that are asked for ahead: Linux's largest, of 128 descriptors and some.
const TABLE: usize = 2304;

/// Has a long indirect table brought to this processor: the walk's branches keep the waits for its lines apart.
/// A hint, as below.
#[inline]
fn prefetch_table(base: *const u8, len: u32) {
    // The first two lines are asked for with the head.
    for at in (2 * LINE..(len as usize).min(TABLE)).step_by(LINE) {
        prefetch_line(base.wrapping_add(at));
    }
}

/// Bytes of a cache line; where it is more, two prefetches ask for the same one.
const LINE: usize = 64;
/// Most bytes that [`prefetch_for_write`] asks for: an Rgetattr, wherever it begins in its line.
const FRONT: usize = 192;

/// Has the front of the stream `pieces` brought to this processor, to be written soon. The guest has just had these
/// lines in another processor's cache, and waiting for them one after the other is most of what a small reply costs.
/// A hint: it touches nothing and cannot fail.
#[inline]
pub fn prefetch_for_write(pieces: &[IoVec]) {
    let Some(first) = pieces.first() else { return };
    for at in (0..first.len().min(FRONT)).step_by(LINE) {
        prefetch_line_for_write(first.base().wrapping_add(at));
    }
}

/// Has the first line of the stream `pieces` brought to this processor, to be read soon: most messages are no longer.
/// A hint, as above.
#[inline]
pub fn prefetch_front(pieces: &[IoVec]) {
    if let Some(first) = pieces.first() {
        prefetch_line(first.base());
    }
}

/// Has the chains at `heads` brought to this processor, to be walked soon: their first descriptors, then the
/// indirect tables that these refer to (a table of Linux's is one or two lines for a small request). What the guest
/// writes there meanwhile is not looked at: [`walk`] reads and checks anew.
pub fn prefetch(ring: &RingView, heads: &[u16]) {
    let table = Table::Mapped(ring.descriptors());
    let inside = || heads.iter().copied().filter(|head| *head < ring.size());
    inside().filter_map(|head| table.at(head)).for_each(prefetch_line);
    for descriptor in inside().filter_map(|head| table.get(head)) {
        if descriptor.flags & F_INDIRECT != 0
            && let Some(table) = ring.memory().contiguous(descriptor.address, DESCRIPTOR_SIZE)
        {
            prefetch_line(table);
            prefetch_line(table.wrapping_add(LINE));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch_line_for_write(at: *const u8) {
    // The intrinsic only reads where the compiler is not told that the processor has PREFETCHW, and a line that is
    // shared must still be asked for when it is written.
    // SAFETY: it changes no register and no memory and faults on no address; x86-64 processors that lack it take it
    // for a NOP.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch_line(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

// Other architectures have no stable intrinsic for it.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn prefetch_line_for_write(_: *const u8) {}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn prefetch_line(_: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::RingAddresses;
    use proptest::prelude::*;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    const DESC: u64 = 0x1000;
    const SIZE: u16 = 8;

    fn ring() -> (RingView, Arc<GuestMemoryMmap>) {
        // The last two regions are adjacent for the guest.
        let (memory, mapped) =
            crate::memory::tests::fake(&[(0, 0x10000), (0x20000, 0x1000), (0x21000, 0x1000)]);
        let addresses = RingAddresses {
            descriptors: DESC,
            avail: 0x2000,
            used: 0x3000,
            size: SIZE,
        };
        (RingView::new(&memory, &addresses).unwrap(), mapped)
    }

    fn put(mapped: &GuestMemoryMmap, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        mapped
            .write_slice(&raw, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }

    fn lens(list: &[IoVec]) -> Vec<usize> {
        list.iter().map(IoVec::len).collect()
    }

    fn run(ring: &RingView, head: u16) -> Result<(Vec<usize>, Vec<usize>), ChainError> {
        let mut streams = Streams::default();
        walk(ring, head, &mut streams)?;
        Ok((lens(streams.readable()), lens(streams.writable())))
    }

    #[test]
    fn a_stream_is_copied_only_from_the_memory_that_it_was_walked_in() {
        let (ring, mapped) = ring();
        put(&mapped, DESC, 0, 0x5000, 4, F_NEXT, 1);
        put(&mapped, DESC, 1, 0x6000, 4, 0, 0);
        mapped.write_slice(b"from", GuestAddress(0x5000)).unwrap();
        mapped.write_slice(b"here", GuestAddress(0x6000)).unwrap();
        let mut streams = Streams::default();
        walk(&ring, 0, &mut streams).unwrap();
        let mut bytes = [0; 6];
        streams.copy(&ring, 2, &mut bytes);
        assert_eq!(&bytes, b"omhere");
        let (other, _mapped) = super::tests::ring();
        streams.copy(&other, 2, &mut bytes);
        assert_eq!(&bytes, b"omhere");
        assert_eq!(streams.cut(5), 1);
        assert_eq!(lens(&streams.readable()[1..]), [3]);
        assert_eq!(streams.cut(100), 2);
    }

    #[test]
    fn a_direct_chain_gives_both_streams() {
        let (ring, mapped) = ring();
        put(&mapped, DESC, 3, 0x5000, 23, F_NEXT, 5);
        put(&mapped, DESC, 5, 0x6000, 0, F_NEXT, 0);
        put(&mapped, DESC, 0, 0x7000, 11, F_NEXT | F_WRITE, 1);
        put(&mapped, DESC, 1, 0x8000, 4096, F_NEXT | F_WRITE, 2);
        put(&mapped, DESC, 2, 0x9000, 100, F_WRITE, 0);
        assert_eq!(run(&ring, 3), Ok((vec![23], vec![11, 4196])));
    }

    #[test]
    fn an_indirect_table_may_be_longer_than_the_ring() {
        let (ring, mapped) = ring();
        put(&mapped, DESC, 0, 0x4000, 16 * 128, F_INDIRECT | F_WRITE, 0);
        for i in 0..128 {
            let next = if i == 127 { 0 } else { F_NEXT };
            let write = if i == 0 { 0 } else { F_WRITE };
            put(
                &mapped,
                0x4000,
                i,
                0x6000 + 32 * u64::from(i),
                16,
                next | write,
                i + 1,
            );
        }
        let (r, w) = run(&ring, 0).unwrap();
        assert_eq!((r.len(), w.len()), (1, 127));
    }

    #[test]
    fn a_table_across_two_regions_works() {
        let (ring, mapped) = ring();
        put(&mapped, DESC, 0, 0x21000 - 16, 32, F_INDIRECT, 0);
        put(&mapped, 0x21000 - 16, 0, 0x5000, 7, F_NEXT, 1);
        put(&mapped, 0x21000 - 16, 1, 0x6000, 9, F_WRITE, 0);
        assert_eq!(run(&ring, 0), Ok((vec![7], vec![9])));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let (ring, mapped) = ring();
        assert_eq!(run(&ring, SIZE), Err(ChainError::Index(SIZE)));
        put(&mapped, DESC, 0, 0x5000, 1, F_NEXT, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::TooLong));
        put(&mapped, DESC, 0, 0x5000, 1, F_NEXT, 77);
        assert_eq!(run(&ring, 0), Err(ChainError::Index(77)));
        put(&mapped, DESC, 0, 0x5000, 1, F_NEXT | F_WRITE, 1);
        put(&mapped, DESC, 1, 0x6000, 1, 0, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::Order));
        put(&mapped, DESC, 0, 0x19000, 1, 0, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::Address(0x19000, 1)));
        put(&mapped, DESC, 0, u64::MAX, 2, 0, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::Address(u64::MAX, 2)));
        put(&mapped, DESC, 0, 0xfff0, u32::MAX, 0, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::Address(0xfff0, u32::MAX)));
    }

    #[test]
    fn malformed_indirect_tables_are_refused() {
        let (ring, mapped) = ring();
        for len in [0, 15, 17] {
            put(&mapped, DESC, 0, 0x4000, len, F_INDIRECT, 0);
            assert_eq!(run(&ring, 0), Err(ChainError::Table(len)));
        }
        put(&mapped, DESC, 0, 0x4000, 32, F_INDIRECT | F_NEXT, 1);
        assert_eq!(run(&ring, 0), Err(ChainError::Nested));
        put(&mapped, DESC, 0, 0x4000, 32, F_INDIRECT, 0);
        put(&mapped, 0x4000, 0, 0x4000, 32, F_INDIRECT, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::Nested));
        put(&mapped, 0x4000, 0, 0x5000, 1, F_NEXT, 2);
        assert_eq!(run(&ring, 0), Err(ChainError::Index(2)));
        put(&mapped, 0x4000, 0, 0x5000, 1, F_NEXT, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::TooLong));
        put(&mapped, DESC, 0, 0x19000, 32, F_INDIRECT, 0);
        assert_eq!(run(&ring, 0), Err(ChainError::Address(0x19000, 32)));
        put(&mapped, DESC, 0, u64::MAX - 15, 0xffff_fff0, F_INDIRECT, 0);
        assert!(run(&ring, 0).is_err());
    }

    /// A descriptor of whatever kind, more often than not a plausible one.
    fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
        let address = prop_oneof![
            0x4000..0x8000u64,
            0xff00..0x10100u64,
            0x20f00..0x22100u64,
            any::<u64>()
        ];
        let len = prop_oneof![0..300u32, Just(16), Just(48), any::<u32>()];
        let flags = prop_oneof![0..8u16, Just(F_NEXT), Just(F_NEXT | F_WRITE), any::<u16>()];
        let next = prop_oneof![0..10u16, any::<u16>()];
        (address, len, flags, next)
    }

    proptest! {
        #[test]
        fn whatever_the_tables_hold_pieces_are_guest_memory(
            direct in prop::collection::vec(any_descriptor(), 8),
            indirect in prop::collection::vec(any_descriptor(), 64),
            head in 0..10u16,
        ) {
            let (ring, mapped) = ring();
            for (table, descriptors) in [(DESC, direct), (0x4000, indirect)] {
                for (i, (address, len, flags, next)) in descriptors.into_iter().enumerate() {
                    put(&mapped, table, i as u16, address, len, flags, next);
                }
            }
            let mut streams = Streams::default();
            if walk(&ring, head, &mut streams).is_ok() {
                let (readable, writable) = (streams.readable(), streams.writable());
                prop_assert!(readable.len() <= MAX_DESCRIPTORS && writable.len() <= MAX_DESCRIPTORS);
                for piece in readable.iter().chain(writable) {
                    // A merged piece may span regions that happen to be neighbours here as well.
                    let last = piece.base().wrapping_add(piece.len() - 1);
                    for byte in [piece.base(), last] {
                        let inside = |region: &vm_memory::GuestRegionMmap| {
                            let start = region.as_ptr().addr();
                            (start..start + region.size()).contains(&byte.addr())
                        };
                        prop_assert!(mapped.iter().any(inside));
                    }
                }
            }
        }
    }
}
