//! The two streams of a request in guest memory: the only place that copies from or to them.
//!
//! A reply is encoded in private memory and copied out in one go, so the guest never sees half of one, and what
//! the guest scribbles into its buffer meanwhile is never read back.

use host::IoVec;
use wire::{Message, Rlerror};

use crate::failure::Failure;
use crate::request::Outcome;

/// Bytes of an Rlerror.
const RLERROR: usize = 11;

/// Bytes of the largest reply that is not made in a [`crate::Scratch`]: an Rwalk of 16 qids.
const LARGEST_FIXED: usize = 9 + 16 * 13;

/// Where one request's reply goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply<'a> {
    /// The writable stream.
    pub(crate) to: &'a [IoVec],
    /// The tag that the reply carries.
    pub(crate) tag: u16,
}

impl Reply<'_> {
    /// Bytes of room, counted up to `most`.
    pub(crate) fn room(&self, most: usize) -> usize {
        let mut room = 0usize;
        for piece in self.to {
            if room >= most {
                break;
            }
            room = room.saturating_add(piece.len());
        }
        room.min(most)
    }

    /// Writes `bytes`, a whole message.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) -> Outcome {
        if self.room(bytes.len()) < bytes.len() {
            return self.error(Failure::new(libc::EMSGSIZE));
        }
        self.put(bytes);
        Outcome::Done(u32::try_from(bytes.len()).unwrap_or(0))
    }

    /// Encodes and writes a message of at most [`LARGEST_FIXED`] bytes.
    pub(crate) fn send<'m>(&self, message: &impl Message<'m>) -> Outcome {
        let mut buf = [0; LARGEST_FIXED];
        match message.encode(self.tag, &mut buf) {
            Some(len) => self.send_bytes(&buf[..len]),
            None => self.error(Failure::new(libc::EMSGSIZE)),
        }
    }

    /// Answers with an Rlerror; with nothing at all when not even that fits.
    pub(crate) fn error(&self, failure: Failure) -> Outcome {
        let mut buf = [0; RLERROR];
        let message = Rlerror {
            ecode: failure.errno(),
        };
        match message.encode(self.tag, &mut buf) {
            Some(len) if self.room(len) >= len => {
                self.put(&buf[..len]);
                Outcome::Done(RLERROR as u32)
            }
            _ => Outcome::Done(0),
        }
    }

    /// Copies `bytes` to the front of the stream, as far as they fit.
    pub(crate) fn put(&self, bytes: &[u8]) {
        // SAFETY: the device keeps the reply's memory mapped until the request is completed (see `Request`).
        unsafe { IoVec::write(self.to, 0, bytes) };
    }

    /// Copies `bytes` into the stream from byte `offset` on, as far as they fit; gives how many did.
    pub(crate) fn put_at(&self, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: as in `put`.
        unsafe { IoVec::write(self.to, offset, bytes) }
    }
}

/// Copies the front of a request's payload into `into`; gives how much there was.
pub(crate) fn take_payload(payload: &[IoVec], into: &mut [u8]) -> usize {
    // SAFETY: the device keeps the payload's memory mapped until the request is completed (see `Request`).
    unsafe { IoVec::read(payload, 0, into) }
}
