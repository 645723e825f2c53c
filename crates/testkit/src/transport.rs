//! How a client's messages reach a server: over a ring, or by a function call.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use crate::layout::{Pages, Slot};
use crate::memory::GuestMemory;
use crate::ring::Ring;
use crate::vhost_user::PATIENCE;

/// Carries one request and its reply.
pub trait Transport {
    /// Sends `message`, followed by `payload` (of a Twrite), and gives the reply, of which at most `reply_cap` bytes
    /// were asked for; empty when there was none (the request was completed with length 0).
    fn rpc(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> Vec<u8>;
}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn rpc(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> Vec<u8> {
        (**self).rpc(message, payload, reply_cap)
    }
}

/// An in-process server: a function of message, payload and reply capacity.
#[derive(Debug)]
pub struct Direct<F>(pub F);

impl<F: FnMut(&[u8], &[u8], usize) -> Vec<u8>> Transport for Direct<F> {
    fn rpc(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> Vec<u8> {
        (self.0)(message, payload, reply_cap)
    }
}

/// Replies above this size go to pages of their own, and so do payloads, as in Linux's client.
const ZERO_COPY: usize = 1024;
const MESSAGE: usize = 64 << 10;

const TREAD: u8 = 116;
const TREADDIR: u8 = 40;

/// A client's side of a ring, with as many requests in flight as wanted.
pub struct RingTransport {
    /// The ring itself.
    pub ring: Ring,
    memory: GuestMemory,
    pages: Pages,
    payload: usize,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slot and reply capacity of each token in flight.
    busy: HashMap<u16, (usize, usize)>,
    done: HashMap<u16, Vec<u8>>,
    patience: Duration,
}

impl fmt::Debug for RingTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingTransport")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl RingTransport {
    /// Requests with payloads of up to `payload` bytes, their buffers taken from `memory` as they are needed.
    pub fn new(memory: &GuestMemory, ring: Ring, payload: usize, pages: Pages) -> RingTransport {
        RingTransport {
            ring,
            memory: memory.clone(),
            pages,
            payload,
            slots: Vec::new(),
            free: Vec::new(),
            busy: HashMap::new(),
            done: HashMap::new(),
            patience: PATIENCE,
        }
    }

    /// How long [`RingTransport::wait`] waits before it panics.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Starts a request; gives its token.
    ///
    /// # Panics
    /// When the ring is full.
    pub fn send(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> u16 {
        let token = self.stage(message, payload, reply_cap);
        self.ring.notify();
        token
    }

    /// As [`RingTransport::send`], but the device does not see it before [`Ring::notify`].
    pub fn stage(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> u16 {
        let at = self.free.pop().unwrap_or_else(|| {
            let slot = Slot::new(&self.memory, MESSAGE, MESSAGE, self.payload, self.pages);
            self.slots.push(slot);
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        let kind = message.get(4).copied().unwrap_or(0);
        let wanted = reply_cap.saturating_sub(crate::layout::READ_HEADER);
        if payload.len() > ZERO_COPY {
            slot.put_payload(payload);
            slot.zero_copy_write(message, payload.len());
        } else if matches!(kind, TREAD | TREADDIR) && wanted > ZERO_COPY {
            slot.zero_copy_read(message, wanted);
        } else {
            let whole = [message, payload].concat();
            slot.ordinary(&whole, reply_cap);
        }
        let token = self
            .ring
            .stage(&slot.readable, &slot.writable)
            .expect("the ring has room");
        self.busy.insert(token, (at, reply_cap));
        token
    }

    /// Takes completions until there is none; whether there was one.
    ///
    /// # Panics
    /// When a used length is neither 0 nor the reply's own size, or larger than the reply buffer.
    pub fn collect(&mut self) -> bool {
        let mut any = false;
        while let Some((token, len)) = self.ring.poll_used() {
            self.take(token, len);
            any = true;
        }
        any
    }

    fn take(&mut self, token: u16, len: u32) {
        let Some((at, capacity)) = self.busy.remove(&token) else {
            // A chain of the test's own making, which nobody waits for here.
            return;
        };
        let len = len as usize;
        assert!(len <= capacity, "{len} bytes used of {capacity}");
        let mut reply = vec![0; len];
        self.slots[at].reply(&mut reply);
        if len > 0 {
            let size = reply.first_chunk().map(|size| u32::from_le_bytes(*size));
            assert_eq!(
                size,
                Some(len as u32),
                "the used length is not the message's size"
            );
        }
        self.free.push(at);
        self.done.insert(token, reply);
    }

    /// The reply to `token` if it is there.
    pub fn try_reply(&mut self, token: u16) -> Option<Vec<u8>> {
        self.collect();
        self.done.remove(&token)
    }

    /// Waits for the reply to `token`; empty when the request was completed with length 0.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait(&mut self, token: u16) -> Vec<u8> {
        loop {
            if let Some(reply) = self.done.remove(&token) {
                return reply;
            }
            match self.ring.wait_used(self.patience) {
                Some((token, len)) => self.take(token, len),
                None => panic!("no answer to request {token} after {:?}", self.patience),
            }
        }
    }

    /// Waits for the next completion, whichever it is: its token and reply.
    ///
    /// # Panics
    /// When none comes, or it is none of this transport's own.
    pub fn next_reply(&mut self) -> (u16, Vec<u8>) {
        let Some((token, len)) = self.ring.wait_used(self.patience) else {
            panic!("no answer after {:?}", self.patience);
        };
        self.take(token, len);
        let reply = self.done.remove(&token).expect("a request of this transport");
        (token, reply)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.busy.len()
    }

    /// Forgets what was in flight (the device is gone) and starts the ring anew.
    pub fn restart(&mut self) {
        self.free.extend(self.busy.drain().map(|(_, (at, _))| at));
        self.done.clear();
        self.ring.restart();
    }
}

impl Transport for RingTransport {
    fn rpc(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> Vec<u8> {
        let token = self.send(message, payload, reply_cap);
        self.wait(token)
    }
}
