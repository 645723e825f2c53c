//! What the front-end's messages set and ask. What stops or changes the queue is followed by
//! [`Vring::wait_quiet`] before it is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Vring;
use crate::event::EventFile;
use crate::memory::Memory;
use crate::ring::{RingAddresses, RingView};

impl Vring {
    /// Guest memory is this from now on.
    pub fn set_memory(&self, memory: Option<Arc<Memory>>) {
        self.change(|ring| {
            ring.memory = memory;
            ring.remap();
        });
    }

    /// Requests are taken from now on, if it is started, or no longer.
    pub fn set_enabled(&self, enabled: bool) {
        self.change(|ring| ring.enabled = enabled);
    }

    /// What SET_VRING_ENABLE said last.
    pub fn is_enabled(&self) -> bool {
        self.ring().enabled
    }

    /// Started, or stopped.
    pub fn set_ready(&self, ready: bool) {
        self.change(|ring| {
            ring.ready = ready;
            ring.broken = false;
        });
    }

    /// The three areas, by guest-physical addresses. The used index goes on from what is there.
    pub fn set_addresses(&self, descriptors: u64, avail: u64, used: u64) {
        self.change(|ring| {
            ring.addresses = RingAddresses {
                descriptors,
                avail,
                used,
                size: ring.addresses.size,
            };
            let index = ring
                .memory
                .as_ref()
                .and_then(|memory| RingView::used_index(memory, used));
            ring.next_used = index.unwrap_or(0);
            ring.broken = false;
            ring.remap();
        });
    }

    /// Position of the next chain to take.
    pub fn next_avail(&self) -> u16 {
        self.ring().next_avail
    }

    /// Position of the next completion.
    #[cfg(feature = "fuzzing")]
    pub fn next_used(&self) -> u16 {
        self.ring().next_used
    }

    /// Goes on taking chains from position `base`.
    pub fn set_next_avail(&self, base: u16) {
        self.change(|ring| {
            ring.next_avail = base;
            ring.broken = false;
        });
    }

    /// Entries.
    pub fn set_size(&self, size: u16) {
        self.change(|ring| {
            ring.addresses.size = size;
            ring.remap();
        });
    }

    /// Whether VIRTIO_F_EVENT_IDX is negotiated.
    pub fn set_event_idx(&self, event_idx: bool) {
        self.ring().event_idx = event_idx;
    }

    /// What the driver's notifications come by.
    pub fn set_kick(&self, kick: Option<EventFile>) {
        self.ring().kick = kick.map(Arc::new);
        self.rouse();
    }

    /// What the driver is told by from now on; gives what it was told by, for [`Vring::wait_told`]. So that nothing is lost
    /// between the two, the new one is written once.
    pub fn set_call(&self, call: Option<EventFile>) -> Option<Arc<EventFile>> {
        let mut ring = self.ring();
        let call = call.map(Arc::new);
        ring.calls.retain(|old| old.strong_count() > 0);
        ring.calls.extend(call.as_ref().map(Arc::downgrade));
        ring.call_due |= ring.open() && call.is_some();
        let old = std::mem::replace(&mut ring.call, call);
        drop(ring);
        self.rouse();
        old
    }

    /// Waits until no interrupt is owed to `old`, a replaced call descriptor; false when `given_up` says so before.
    pub fn wait_told(&self, old: &Arc<EventFile>, given_up: &dyn Fn() -> bool) -> bool {
        let begun = Instant::now();
        // Whoever writes to it holds it.
        while !self.wait_until(Duration::from_millis(20), |_| Arc::strong_count(old) == 1) {
            if given_up() {
                return false;
            }
            if begun.elapsed() > super::STUCK {
                old.make_room();
            }
        }
        true
    }

    /// As it was when it was made, but for the accepted requests, of which there should be none.
    pub fn reset(&self) {
        self.change(|ring| {
            let (most, accepted, parked) = (ring.most, ring.accepted, ring.parked);
            let (generation, closed, calls) = (ring.generation, ring.closed, std::mem::take(&mut ring.calls));
            *ring = super::Ring {
                most,
                accepted,
                parked,
                generation,
                closed,
                calls,
                ..super::Ring::default()
            };
            ring.remap();
        });
        self.rouse();
    }
}
