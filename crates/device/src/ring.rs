//! The split ring's three areas as this process has them mapped, and every access to them.
//!
//! virtio 1.2, 2.7. The guest reads and writes the same memory, so all of it is atomics: `avail.idx` is acquired
//! before its entries are read, `used.idx` is released after its elements are written, and a full fence stands
//! between writing one index and reading the other side's wish for events (2.7.7, 2.7.10).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use crate::memory::Memory;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// Where a ring is: guest-physical addresses and entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring, the driver's.
    pub avail: u64,
    /// Used ring, ours.
    pub used: u64,
    /// Entries: a power of two up to 32768.
    pub size: u16,
}

/// A completed chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor, as it was made available.
    pub head: u16,
    /// Bytes written from the start of the writable stream.
    pub len: u32,
}

/// A mapped ring. A clone, used without any lock, may be stale but never dangles: it holds the memory.
#[derive(Clone, Debug)]
pub struct RingView {
    memory: Arc<Memory>,
    descriptors: *const u8,
    avail: *mut u8,
    used: *mut u8,
    size: u16,
}

// SAFETY: the pointers are into mappings that `memory` keeps alive, and are only used through atomics and volatile
// reads.
unsafe impl Send for RingView {}
// SAFETY: as above.
unsafe impl Sync for RingView {}

impl RingView {
    /// Maps `addresses`; an error, as the end of a sentence, when an area is not guest memory, not in one region, or not
    /// aligned, and when two of them share a byte: what we write into one would then be work in another, without end and
    /// without the guest.
    pub fn new(memory: &Arc<Memory>, addresses: &RingAddresses) -> Result<RingView, &'static str> {
        let size = addresses.size;
        if !size.is_power_of_two() {
            return Err("its size is no power of two");
        }
        let entries = u64::from(size);
        // flags, idx, entries, event (2.7.6, 2.7.8). The event word is part of the area even when not negotiated.
        let areas = [
            (addresses.descriptors, 16 * entries),
            (addresses.avail, 6 + 2 * entries),
            (addresses.used, 6 + 8 * entries),
        ];
        let [descriptors, avail, used] = areas.map(|(address, len)| memory.contiguous(address, len));
        let (Some(descriptors), Some(avail), Some(used)) = (descriptors, avail, used) else {
            return Err("its areas are not guest memory");
        };
        if !avail.addr().is_multiple_of(2) || !used.addr().is_multiple_of(4) {
            return Err("its areas are not aligned");
        }
        let [a, b, c] = areas;
        if memory.overlap(a, b) || memory.overlap(a, c) || memory.overlap(b, c) {
            return Err("its areas overlap");
        }
        Ok(RingView {
            memory: Arc::clone(memory),
            descriptors,
            avail,
            used,
            size,
        })
    }

    /// The used index that the ring at `used` has now, to go on from; None when that is not guest memory.
    pub fn used_index(memory: &Memory, used: u64) -> Option<u16> {
        let area = memory.contiguous(used, 4)?;
        if !area.addr().is_multiple_of(2) {
            return None;
        }
        // SAFETY: four bytes there are mapped and aligned, and `memory` outlives the access.
        let index = unsafe { AtomicU16::from_ptr(area.wrapping_add(2).cast()) };
        Some(u16::from_le(index.load(Ordering::Relaxed)))
    }

    /// The memory it is in.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The memory it is in, to be held by a request.
    pub fn memory_arc(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Start of the descriptor table: [`RingView::size`] descriptors of 16 bytes.
    pub fn descriptors(&self) -> *const u8 {
        self.descriptors
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn avail_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass even offsets below 6 + 2 * size, which `new` checked to be mapped and aligned;
        // `memory` outlives the borrow.
        unsafe { AtomicU16::from_ptr(self.avail.wrapping_add(offset).cast()) }
    }

    #[inline]
    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass even offsets below 6 + 8 * size, which `new` checked to be mapped and aligned.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(offset).cast()) }
    }

    #[inline]
    fn used_u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: callers pass multiples of 4 within the used elements, which `new` checked.
        unsafe { AtomicU32::from_ptr(self.used.wrapping_add(offset).cast()) }
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// How far the driver is; what it made available before is visible afterwards.
    #[inline]
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail_u16(2).load(Ordering::Acquire))
    }

    /// The head at position `index` of the available ring.
    #[inline]
    pub fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(self.avail_u16(4 + 2 * self.slot(index)).load(Ordering::Relaxed))
    }

    /// Writes `done` behind position `from`, publishes it, gives the new position and whether the driver wants to
    /// be told.
    pub fn push(&self, from: u16, done: &[Used], event_idx: bool) -> (u16, bool) {
        let mut index = from;
        for used in done {
            let at = 4 + 8 * self.slot(index);
            self.used_u32(at)
                .store(u32::from(used.head).to_le(), Ordering::Relaxed);
            self.used_u32(at + 4).store(used.len.to_le(), Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        self.used_u16(2).store(index.to_le(), Ordering::Release);
        // The driver writes its wish, then looks at used.idx once more; we the other way round.
        fence(Ordering::SeqCst);
        let wanted = if event_idx {
            let event = u16::from_le(
                self.avail_u16(4 + 2 * usize::from(self.size))
                    .load(Ordering::Relaxed),
            );
            index.wrapping_sub(event).wrapping_sub(1) < index.wrapping_sub(from)
        } else {
            u16::from_le(self.avail_u16(0).load(Ordering::Relaxed)) & AVAIL_F_NO_INTERRUPT == 0
        };
        (index, wanted && !done.is_empty())
    }

    /// Asks the driver not to kick (without EVENT_IDX; with it, silence is the normal state).
    pub fn suppress_kicks(&self, event_idx: bool) {
        if !event_idx {
            self.used_u16(0)
                .store(USED_F_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// Asks for a kick as soon as there is something behind position `next`; true when there already is.
    pub fn request_kick(&self, next: u16, event_idx: bool) -> bool {
        if event_idx {
            self.used_u16(4 + 8 * usize::from(self.size))
                .store(next.to_le(), Ordering::Relaxed);
        } else {
            self.used_u16(0).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.avail_idx() != next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    const A: RingAddresses = RingAddresses {
        descriptors: 0x1000,
        avail: 0x2000,
        used: 0x3000,
        size: 4,
    };

    #[test]
    fn areas_must_be_guest_memory_and_aligned() {
        let (memory, _) = crate::memory::tests::fake(&[(0, 0x4000)]);
        assert!(RingView::new(&memory, &A).is_ok());
        for wrong in [
            RingAddresses { size: 0, ..A },
            RingAddresses { size: 3, ..A },
            RingAddresses { avail: 0x2001, ..A },
            RingAddresses { used: 0x3002, ..A },
            RingAddresses { used: 0x3ffc, ..A },
            RingAddresses {
                descriptors: 0x3fd0,
                ..A
            },
            RingAddresses {
                avail: 0x10_0000,
                ..A
            },
        ] {
            assert!(RingView::new(&memory, &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn areas_must_not_overlap() {
        let (memory, _) = crate::memory::tests::fake(&[(0, 0x4000)]);
        // As close as they may be: 64 bytes of descriptors, 14 of available and 38 of used ring.
        let close = RingAddresses {
            descriptors: 0x1000,
            avail: 0x1040,
            used: 0x1050,
            size: 4,
        };
        assert!(RingView::new(&memory, &close).is_ok());
        for wrong in [
            RingAddresses {
                avail: 0x103e,
                ..close
            },
            RingAddresses {
                avail: 0x1000,
                ..close
            },
            RingAddresses {
                used: 0x104c,
                ..close
            },
            RingAddresses {
                used: 0x1040,
                ..close
            },
            RingAddresses {
                used: 0x103c,
                ..close
            },
            RingAddresses {
                used: 0x1000,
                ..close
            },
            RingAddresses {
                used: 0x0fdc,
                ..close
            },
        ] {
            assert_eq!(
                RingView::new(&memory, &wrong).err(),
                Some("its areas overlap"),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn the_driver_is_told_when_its_event_is_crossed() {
        let (memory, mapped) = crate::memory::tests::fake(&[(0, 0x4000)]);
        let ring = RingView::new(&memory, &A).unwrap();
        let event = GuestAddress(A.avail + 4 + 8);
        let done = [Used { head: 1, len: 7 }, Used { head: 2, len: 9 }];
        mapped.write_obj(1u16, event).unwrap();
        assert_eq!(ring.push(0, &done, true), (2, true));
        assert_eq!(ring.push(2, &done, true), (4, false));
        mapped.write_obj(u16::MAX, event).unwrap();
        assert_eq!(ring.push(u16::MAX - 1, &done, true), (0, true));
        assert_eq!(ring.push(0, &done, true), (2, false));
        assert_eq!(mapped.read_obj::<u16>(GuestAddress(A.used + 2)).unwrap(), 2);
        assert_eq!(
            mapped.read_obj::<[u32; 4]>(GuestAddress(A.used + 4)).unwrap(),
            [1, 7, 2, 9]
        );
    }

    #[test]
    fn without_event_idx_the_flags_decide() {
        let (memory, mapped) = crate::memory::tests::fake(&[(0, 0x4000)]);
        let ring = RingView::new(&memory, &A).unwrap();
        let done = [Used { head: 1, len: 7 }];
        assert_eq!(ring.push(0, &done, false), (1, true));
        mapped.write_obj(1u16, GuestAddress(A.avail)).unwrap();
        assert_eq!(ring.push(1, &done, false), (2, false));
        ring.suppress_kicks(false);
        assert_eq!(mapped.read_obj::<u16>(GuestAddress(A.used)).unwrap(), 1);
        assert!(!ring.request_kick(0, false));
        assert_eq!(mapped.read_obj::<u16>(GuestAddress(A.used)).unwrap(), 0);
        mapped.write_obj(1u16, GuestAddress(A.avail + 2)).unwrap();
        assert!(ring.request_kick(0, false));
        assert!(ring.request_kick(0, true));
        assert!(!ring.request_kick(1, true));
        assert_eq!(mapped.read_obj::<u16>(GuestAddress(A.used + 4 + 32)).unwrap(), 1);
    }
}
