//! The queue as vhost-user-backend calls it: what the front-end's messages set and ask.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;

use super::{GuestMemory, Vring};
use crate::event;
use crate::ring::{RingAddresses, Used};

impl<'a> VringStateGuard<'a, GuestMemory> for Vring {
    type G = MutexGuard<'a, VringState<GuestMemory>>;
}

impl<'a> VringStateMutGuard<'a, GuestMemory> for Vring {
    type G = MutexGuard<'a, VringState<GuestMemory>>;
}

impl VringT<GuestMemory> for Vring {
    fn new(mem: GuestMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        let vring = Vring {
            registered: VringMutex::new(mem, max_queue_size)?,
            shared: Arc::default(),
        };
        vring.ring().addresses.size = max_queue_size;
        Ok(vring)
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<GuestMemory>> {
        self.registered.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<GuestMemory>> {
        self.registered.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.push(&mut vec![Used {
            head: desc_index,
            len,
        }]);
        Ok(())
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        let call = self.ring().call.clone();
        call.map_or(Ok(()), |call| call.notify())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        Ok(self.request_kick())
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.suppress_kicks();
        Ok(())
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        // `push` has decided already.
        Ok(false)
    }

    fn set_enabled(&self, enabled: bool) {
        self.change(|ring| ring.enabled = enabled);
        self.registered.set_enabled(enabled);
        if !enabled {
            // A paused VM's memory may be saved right after this message is answered, so what moves data now ends
            // first. Waiting locks stay where they are.
            let mut warned = false;
            while !self.wait_quiet(false, Duration::from_secs(5)) {
                if !warned {
                    log::warn!(
                        "The queue is being disabled, but {} requests are still at work on the host; waiting for them.",
                        self.accepted()
                    );
                    warned = true;
                }
            }
        }
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), QueueError> {
        self.registered
            .set_queue_info(desc_table, avail_ring, used_ring)?;
        self.change(|ring| {
            ring.addresses = RingAddresses {
                descriptors: desc_table,
                avail: avail_ring,
                used: used_ring,
                size: ring.addresses.size,
            };
            ring.broken = false;
            ring.remap();
        });
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.ring().next_avail
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.registered.set_queue_next_avail(base);
        self.change(|ring| {
            ring.next_avail = base;
            ring.broken = false;
        });
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.registered.set_queue_next_used(idx);
        self.ring().next_used = idx;
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.registered.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        if !num.is_power_of_two() {
            log::error!("The front-end asks for {num} queue entries, which is not a power of two.");
        }
        self.registered.set_queue_size(num);
        self.change(|ring| {
            ring.addresses.size = num;
            ring.remap();
        });
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.registered.set_queue_event_idx(enabled);
        self.ring().event_idx = enabled;
    }

    fn set_queue_ready(&self, ready: bool) {
        self.change(|ring| {
            ring.ready = ready;
            ring.broken = false;
        });
        self.registered.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.registered.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        let state = self.registered.get_ref();
        if let Some(kick) = state.get_kick() {
            event::drain(kick.as_raw_fd());
        }
        Ok(state.is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.ring().call = file.map(|file| Arc::new(event::notifier(file)));
    }

    fn set_err(&self, file: Option<File>) {
        self.registered.set_err(file);
    }
}
