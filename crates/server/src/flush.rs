//! Tflush.

use wire::{Message, Rflush, Tflush};

use crate::reply::Reply;
use crate::request::Outcome;
use crate::session::Session;

/// Bytes of an Rflush.
const RFLUSH: usize = 7;

impl Session {
    /// Writes the Rflush and leaves the rest to the device, which knows the requests under way: their memory belongs
    /// to the client again once the Rflush is pushed.
    pub(crate) fn flush(&self, m: &Tflush, reply: &Reply<'_>) -> Outcome {
        let mut buf = [0; RFLUSH];
        let len = match Rflush.encode(reply.tag, &mut buf) {
            Some(len) => reply.put_at(0, &buf[..len]),
            None => 0,
        };
        Outcome::Flush {
            oldtag: m.oldtag,
            len: u32::try_from(len).unwrap_or(0),
        }
    }
}
