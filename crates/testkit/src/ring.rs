//! The driver's side of a split virtqueue, in raw guest memory.
//!
//! After [`Ring::new`] nothing here allocates, so the benchmark can drive it at full speed; and nothing stops
//! a test from writing whatever it likes into the tables ([`Ring::write_descriptor`], [`Ring::push_available`]).

use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use crate::memory::{Area, GuestMemory, PAGE};

/// `VIRTQ_DESC_F_NEXT`
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
pub const INDIRECT: u16 = 4;

/// A range of guest memory that becomes one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

impl From<&Area> for Piece {
    fn from(area: &Area) -> Piece {
        Piece {
            gpa: area.gpa(),
            len: u32::try_from(area.len()).expect("areas of tests are below 4 GiB"),
        }
    }
}

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one when `flags` has [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// The 16 bytes of `struct virtq_desc`.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// What the driver negotiated.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Entries, a power of two.
    pub size: u16,
    /// `VIRTIO_F_INDIRECT_DESC`: entries of each request's table, 0 for chains in the ring itself. Linux's 9p
    /// uses up to 128 whatever the ring's size.
    pub indirect: u16,
    /// `VIRTIO_F_EVENT_IDX`
    pub event_idx: bool,
}

impl Default for RingOptions {
    fn default() -> RingOptions {
        RingOptions {
            size: 128,
            indirect: 128,
            event_idx: true,
        }
    }
}

/// The driver's side of one virtqueue.
pub struct Ring {
    options: RingOptions,
    descriptors: Area,
    available: Area,
    used: Area,
    tables: Option<Area>,
    /// Free descriptors, a stack.
    free: Vec<u16>,
    /// The descriptor after this one in a chain that is in flight.
    next: Vec<u16>,
    /// Descriptors of the chain in flight with this head; 0 when there is none.
    held: Vec<u16>,
    /// What the driver will publish next as `avail.idx`.
    staged: u16,
    published: u16,
    seen: u16,
    kick: Box<dyn Fn() + Send>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("options", &self.options)
            .field("published", &self.published)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring whose tables are allocated (and zeroed) in `memory`; kicks do nothing until
    /// [`Ring::set_kick`].
    ///
    /// # Panics
    /// When the size is not a power of two or `memory` has no room.
    pub fn new(memory: &GuestMemory, options: RingOptions) -> Ring {
        assert!(options.size.is_power_of_two());
        let size = usize::from(options.size);
        let descriptors = memory.alloc(16 * size, PAGE);
        let available = memory.alloc(6 + 2 * size, 2);
        let used = memory.alloc(6 + 8 * size, PAGE);
        let table = usize::from(options.indirect) * 16;
        let tables = (table > 0).then(|| memory.alloc(table * size, 16));
        for area in [&descriptors, &available, &used] {
            area.fill(0);
        }
        let mut ring = Ring {
            options,
            descriptors,
            available,
            used,
            tables,
            free: (0..options.size).rev().collect(),
            next: vec![0; size],
            held: vec![0; size],
            staged: 0,
            published: 0,
            seen: 0,
            kick: Box::new(|| ()),
        };
        ring.set_interrupts(false);
        ring
    }

    /// What was negotiated.
    pub fn options(&self) -> RingOptions {
        self.options
    }

    /// The descriptor table, the available ring and the used ring.
    pub fn parts(&self) -> [&Area; 3] {
        [&self.descriptors, &self.available, &self.used]
    }

    /// How to tell the device that there is work (an eventfd, a doorbell register).
    pub fn set_kick(&mut self, kick: Box<dyn Fn() + Send>) {
        self.kick = kick;
    }

    /// Tells the device, whether it wants to know or not.
    pub fn kick(&self) {
        (self.kick)();
    }

    /// A new device, or one that was reset: everything in flight is forgotten, the tables are zeroed.
    pub fn restart(&mut self) {
        for area in [&self.descriptors, &self.available, &self.used] {
            area.fill(0);
        }
        self.free.clear();
        self.free.extend((0..self.options.size).rev());
        self.held.fill(0);
        (self.staged, self.published, self.seen) = (0, 0, 0);
        self.set_interrupts(false);
    }

    /// Whether the device shall signal each completion, or none (the driver polls).
    pub fn set_interrupts(&mut self, wanted: bool) {
        if self.options.event_idx {
            // An event index just behind is passed again only after 65,535 completions.
            let event = if wanted {
                self.seen
            } else {
                self.seen.wrapping_sub(1)
            };
            let at = 4 + 2 * usize::from(self.options.size);
            self.available.write(at, &event.to_le_bytes());
        } else {
            let flags = u16::from(!wanted);
            self.available.write(0, &flags.to_le_bytes());
        }
        fence(Ordering::SeqCst);
    }

    /// Requests that can still be submitted when each takes one slot (indirect tables).
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    fn atomic(area: &Area, at: usize) -> &AtomicU16 {
        assert!(at + 2 <= area.len() && (area.as_ptr() as usize + at).is_multiple_of(2));
        // SAFETY: in bounds and aligned by the check above, mapped as long as the area lives; the device
        // accesses it atomically too.
        unsafe { AtomicU16::from_ptr(area.as_ptr().add(at).cast()) }
    }

    /// Puts a chain into the ring without showing it to the device yet; gives its token (the head's index),
    /// or `None` when the ring has no room for it.
    pub fn stage(&mut self, readable: &[Piece], writable: &[Piece]) -> Option<u16> {
        let count = readable.len() + writable.len();
        if count == 0 {
            return None;
        }
        let indirect = usize::from(self.options.indirect);
        let head = if count > 1 && count <= indirect {
            self.stage_indirect(readable, writable)?
        } else {
            self.stage_direct(readable, writable)?
        };
        self.push_available(head);
        Some(head)
    }

    fn stage_direct(&mut self, readable: &[Piece], writable: &[Piece]) -> Option<u16> {
        let count = readable.len() + writable.len();
        let start = self.free.len().checked_sub(count)?;
        let head = *self.free.last()?;
        for (at, piece) in readable.iter().chain(writable).enumerate() {
            let index = self.free[self.free.len() - 1 - at];
            let write = if at < readable.len() { 0 } else { WRITE };
            let last = at + 1 == count;
            let next = if last {
                0
            } else {
                self.free[self.free.len() - 2 - at]
            };
            self.next[usize::from(index)] = next;
            let flags = write | if last { 0 } else { NEXT };
            self.write_descriptor(index, descriptor(piece, flags, next));
        }
        self.free.truncate(start);
        self.held[usize::from(head)] = u16::try_from(count).ok()?;
        Some(head)
    }

    fn stage_indirect(&mut self, readable: &[Piece], writable: &[Piece]) -> Option<u16> {
        let tables = self.tables.as_ref()?;
        let head = self.free.pop()?;
        let base = usize::from(head) * usize::from(self.options.indirect) * 16;
        let count = readable.len() + writable.len();
        for (at, piece) in readable.iter().chain(writable).enumerate() {
            let write = if at < readable.len() { 0 } else { WRITE };
            let last = at + 1 == count;
            let flags = write | if last { 0 } else { NEXT };
            let next = if last { 0 } else { at as u16 + 1 };
            tables.write(base + 16 * at, &descriptor(piece, flags, next).to_bytes());
        }
        let table = Piece {
            gpa: tables.gpa() + base as u64,
            len: count as u32 * 16,
        };
        self.write_descriptor(head, descriptor(&table, INDIRECT, 0));
        self.held[usize::from(head)] = 1;
        Some(head)
    }

    /// Shows the device what was staged; whether it wants a kick for it.
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        if old == self.staged {
            return false;
        }
        Ring::atomic(&self.available, 2).store(self.staged.to_le(), Ordering::Release);
        self.published = self.staged;
        // The device first publishes that it wants a kick and then looks at the index once more; we the other
        // way round. Without a full barrier on both sides each could miss the other.
        fence(Ordering::SeqCst);
        if self.options.event_idx {
            let event = self.kick_event();
            let new = self.published;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u16::from_le(Ring::atomic(&self.used, 0).load(Ordering::Relaxed)) & 1 == 0
        }
    }

    /// `used.avail_event`: the index after which the device wants a kick.
    pub fn kick_event(&self) -> u16 {
        let at = 4 + 8 * usize::from(self.options.size);
        u16::from_le(Ring::atomic(&self.used, at).load(Ordering::Relaxed))
    }

    /// [`Ring::publish`], and a kick if the device wants one. Whether it was kicked.
    pub fn notify(&mut self) -> bool {
        let wanted = self.publish();
        if wanted {
            self.kick();
        }
        wanted
    }

    /// Stages, publishes and kicks as needed; gives the token, `None` when the ring is full.
    pub fn submit(&mut self, readable: &[Piece], writable: &[Piece]) -> Option<u16> {
        let token = self.stage(readable, writable)?;
        self.notify();
        Some(token)
    }

    /// The next completion: token and used length.
    ///
    /// # Panics
    /// When the device completes what is not in flight: no test may overlook that.
    #[inline]
    pub fn poll_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let at = 4 + 8 * usize::from(self.seen & (self.options.size - 1));
        let mut entry = [0; 8];
        self.used.read(at, &mut entry);
        let id = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let len = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        self.seen = self.seen.wrapping_add(1);
        let held = usize::try_from(id).ok().and_then(|id| self.held.get_mut(id));
        let count = held.map(std::mem::take).unwrap_or(0);
        assert!(count > 0, "the device completed {id}, which is not in flight");
        let mut index = id as u16;
        for _ in 0..count {
            self.free.push(index);
            index = self.next[usize::from(index)];
        }
        Some((id as u16, len))
    }

    /// Waits for the next completion, spinning first and then yielding; `None` after `limit`.
    pub fn wait_used(&mut self, limit: Duration) -> Option<(u16, u32)> {
        for _ in 0..2_000 {
            if let Some(entry) = self.poll_used() {
                return Some(entry);
            }
            std::hint::spin_loop();
        }
        let end = Instant::now() + limit;
        loop {
            if let Some(entry) = self.poll_used() {
                return Some(entry);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// `used.idx` as the device left it.
    pub fn used_index(&self) -> u16 {
        u16::from_le(Ring::atomic(&self.used, 2).load(Ordering::Acquire))
    }

    /// `avail.idx` as last published.
    pub fn available_index(&self) -> u16 {
        self.published
    }

    /// Completions taken so far, modulo 2^16.
    pub fn seen_index(&self) -> u16 {
        self.seen
    }

    /// Chains in flight.
    pub fn in_flight(&self) -> usize {
        usize::from(self.staged.wrapping_sub(self.seen))
    }

    /// Writes one entry of the descriptor table, as it is.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = 16 * usize::from(index);
        self.descriptors.write(at, &descriptor.to_bytes());
    }

    /// Takes a free descriptor for a chain of the caller's own making, which will be `count` descriptors as far
    /// as [`Ring::poll_used`] is concerned (this one only: the caller owns the others).
    pub fn take_head(&mut self) -> Option<u16> {
        let head = self.free.pop()?;
        self.held[usize::from(head)] = 1;
        Some(head)
    }

    /// Takes a free descriptor that is not a head; [`Ring::give_back`] returns it.
    pub fn take_descriptor(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Returns what [`Ring::take_descriptor`] gave.
    pub fn give_back(&mut self, index: u16) {
        self.free.push(index);
    }

    /// Puts any number into the available ring's next slot, to be shown by the next publish.
    pub fn push_available(&mut self, head: u16) {
        let at = 4 + 2 * usize::from(self.staged & (self.options.size - 1));
        self.available.write(at, &head.to_le_bytes());
        self.staged = self.staged.wrapping_add(1);
    }

    /// Writes any number as `avail.idx`, and forgets it: the next publish writes the honest one.
    pub fn write_available_index(&self, index: u16) {
        Ring::atomic(&self.available, 2).store(index.to_le(), Ordering::SeqCst);
    }
}

fn descriptor(piece: &Piece, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr: piece.gpa,
        len: piece.len,
        flags,
        next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(options: RingOptions) -> (GuestMemory, Ring) {
        let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memfd");
        let ring = Ring::new(&memory, options);
        (memory, ring)
    }

    /// The device's part: completes the next available chain with `len`.
    fn complete(ring: &Ring, index: u16, head: u16, len: u32) {
        let [_, _, used] = ring.parts();
        let at = 4 + 8 * usize::from(index & (ring.options.size - 1));
        used.write(at, &u32::from(head).to_le_bytes());
        used.write(at + 4, &len.to_le_bytes());
        Ring::atomic(used, 2).store((index + 1).to_le(), Ordering::Release);
    }

    fn piece(gpa: u64) -> Piece {
        Piece { gpa, len: 8 }
    }

    #[test]
    fn a_direct_chain_uses_the_ring_and_returns_it() {
        let options = RingOptions {
            size: 4,
            indirect: 0,
            event_idx: false,
        };
        let (_memory, mut ring) = ring(options);
        for round in 0..5 {
            let head = ring.stage(&[piece(0), piece(16)], &[piece(32)]).expect("room");
            assert_eq!(ring.free_slots(), 1);
            assert!(ring.stage(&[piece(0)], &[piece(0)]).is_none());
            assert!(ring.publish());
            complete(&ring, round, head, 7);
            assert_eq!(ring.poll_used(), Some((head, 7)));
            assert_eq!(ring.free_slots(), 4);
        }
        assert_eq!(ring.poll_used(), None);
    }

    #[test]
    fn an_indirect_chain_takes_one_slot_and_may_be_longer_than_the_ring() {
        let options = RingOptions {
            size: 2,
            indirect: 16,
            event_idx: true,
        };
        let (memory, mut ring) = ring(options);
        let many: Vec<Piece> = (0..15).map(|at| piece(at * 8)).collect();
        let head = ring.submit(&many, &[piece(256)]).expect("room");
        assert_eq!(ring.free_slots(), 1);
        let [descriptors, ..] = ring.parts();
        let entry = descriptors.get(16 * usize::from(head), 16);
        let table = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
        assert_eq!(entry[8..14], [0, 1, 0, 0, 4, 0]);
        let last = memory.area(table + 15 * 16, 16).expect("table").get(0, 16);
        assert_eq!(last, descriptor(&piece(256), WRITE, 0).to_bytes());
    }

    #[test]
    fn kicks_are_wanted_only_past_the_event() {
        let (_memory, mut ring) = ring(RingOptions::default());
        assert!(ring.submit(&[piece(0)], &[piece(8)]).is_some());
        ring.stage(&[piece(0)], &[piece(8)]).expect("room");
        assert!(!ring.publish(), "the event is index 0, passed already");
        let [_, _, used] = ring.parts();
        used.write(4 + 8 * 128, &2u16.to_le_bytes());
        ring.stage(&[piece(0)], &[piece(8)]).expect("room");
        assert!(ring.publish());
    }
}
