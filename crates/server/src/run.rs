//! Treads or Twrites of one fid that are in flight at once, each beginning where the one before ends: a run, moved by
//! one system call. A client that keeps many small transfers of one file in flight sends nothing else. (Tgetattrs are a
//! run, too: see `getattrs`.)
//!
//! Only the plain case is done here. What a transfer does not cover whole — the end of the file, a limit, an error,
//! what is not in the page cache — and everything unusual is left to `io`, request by request, so that each gets
//! the answer it would have got alone; moving the same bytes again changes nothing. All of a run was in flight at
//! once, so a client cannot tell in which order its parts were done.

use std::time::Instant;

use host::IoVec;
use wire::{Header, Message, Rread, Rwrite, TGETATTR, TREAD, TWRITE, Tmessage, Tread, Twrite};

use crate::getattrs;
use crate::io::{PIECES, SLOW, TIMED, send_read};
use crate::pin::{NOGID, Pin};
use crate::reply::Reply;
use crate::request::{Outcome, Scratch, TWRITE_HEADER};
use crate::session::Session;
use crate::table::State;

/// Most bytes of a run: what a device moves at a time of one request, while small ones come beside it.
pub const RUN_BYTES: usize = 128 * 1024;

/// Bytes of an Rwrite.
const RWRITE: usize = 11;

/// One request of a run: what a [`Request`](crate::Request) has, under the same conditions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Neighbour<'a> {
    /// Private copy of the T-message, without a Twrite's payload.
    pub message: &'a [u8],
    /// A Twrite's payload.
    pub payload: &'a [IoVec],
    /// The writable stream, all of it.
    pub reply: &'a [IoVec],
    /// Used length, once it is answered.
    pub used: u32,
}

/// Whether `next` is a Tread or Twrite that begins where `before`, another of the same kind and fid, ends; or both are
/// Tgetattrs.
#[inline]
pub fn adjoin(before: &[u8], next: &[u8]) -> bool {
    if matches!((before.get(4), next.get(4)), (Some(&TGETATTR), Some(&TGETATTR))) {
        return true;
    }
    match (Span::of(before), Span::of(next)) {
        (Some(before), Some(next)) => before.end() == Some(next.offset) && before.alike(&next),
        _ => false,
    }
}

/// What a Tread or Twrite is about.
#[derive(Clone, Copy, Debug)]
struct Span {
    kind: u8,
    tag: u16,
    fid: u32,
    offset: u64,
    count: u32,
}

impl Span {
    /// Of a message as it should be: of its exact length, and moving something.
    #[inline]
    fn of(message: &[u8]) -> Option<Span> {
        // Tread and Twrite have the same fields in front of the payload, so the same length.
        let body = message
            .get(Header::LEN..)
            .filter(|_| message.len() == TWRITE_HEADER)?;
        let Header { size, kind, tag } = Header::decode(message)?;
        let size = usize::try_from(size).ok()?;
        let (fid, offset, count) = match kind {
            TREAD if size == TWRITE_HEADER => {
                let m = Tread::decode_body(body).ok()?;
                (m.fid, m.offset, m.count)
            }
            // Clients do not agree on whether the size counts the payload.
            TWRITE if size >= TWRITE_HEADER => {
                let m = Twrite::decode_body(body).ok()?;
                (m.fid, m.offset, m.count)
            }
            _ => return None,
        };
        (count > 0).then_some(Span {
            kind,
            tag,
            fid,
            offset,
            count,
        })
    }

    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.count.into())
    }

    /// For the log. (A second caller of [`Tmessage::decode`] would keep the compiler from inlining it into the first,
    /// and then every request pays for it.)
    fn message(&self) -> Tmessage<'static> {
        let &Span {
            fid, offset, count, ..
        } = self;
        match self.kind {
            TREAD => Tread { fid, offset, count }.into(),
            _ => Twrite {
                fid,
                offset,
                count,
                data: b"",
            }
            .into(),
        }
    }

    fn alike(&self, other: &Span) -> bool {
        (self.kind, self.fid) == (other.kind, other.fid)
    }
}

impl Session {
    /// Answers requests at the front of `run` with one system call, as the queue thread: gives how many, and notes
    /// their used lengths. The others have not been answered, and are for [`Session::handle`], in their order. None
    /// are when the run is not a plain one.
    pub fn handle_run(&self, run: &mut [Neighbour<'_>], scratch: &mut Scratch) -> usize {
        if self.share.may_hang() {
            return 0;
        }
        let front = run.first().map(|request| request.message);
        if front.and_then(getattrs::decode).is_some() {
            return self.getattrs(run, scratch);
        }
        let Some(first) = front.and_then(Span::of) else {
            return 0;
        };
        // Before Tversion there is no fid.
        let Ok(pin) = self.pin(first.fid, libc::EINVAL) else {
            return 0;
        };
        // Where an append goes is to be found out for each.
        if pin.state() != State::File || (first.kind == TWRITE && pin.how().append) {
            return 0;
        }
        let (taken, total) = self.gather(run, &first, scratch);
        if taken < 2 {
            return 0;
        }
        let moved = match first.kind {
            TREAD => self.read_run(&pin, &first, scratch),
            _ => self.write_run(&pin, &first, total, scratch),
        };
        let answered = moved.map_or(0, |moved| answer(&mut run[..taken], moved));
        if log::log_enabled!(log::Level::Trace) {
            trace(&run[..answered]);
        }
        answered
    }

    /// Collects the memory of the plain requests at the front of `run`, as far as one system call takes it; gives how
    /// many they are, and their bytes.
    fn gather(&self, run: &[Neighbour<'_>], first: &Span, scratch: &mut Scratch) -> (usize, usize) {
        let iov = &mut scratch.iov;
        iov.clear();
        let (mut taken, mut total, mut at) = (0, 0usize, Some(first.offset));
        for request in run {
            let Some(span) = Span::of(request.message) else {
                break;
            };
            let Ok(count) = usize::try_from(span.count) else {
                break;
            };
            let bytes = total.saturating_add(count);
            if !span.alike(first) || at != Some(span.offset) || bytes > RUN_BYTES {
                break;
            }
            let reply = Reply {
                to: request.reply,
                tag: span.tag,
            };
            let pieces = iov.len();
            if span.kind == TREAD {
                if self.reply_room(&reply).saturating_sub(Rread::HEADER_LEN) < count {
                    break;
                }
                IoVec::slice_into(request.reply, Rread::HEADER_LEN, count, iov);
            } else {
                if reply.room(RWRITE) < RWRITE || IoVec::total(request.payload) < count {
                    break;
                }
                IoVec::slice_into(request.payload, 0, count, iov);
            }
            if iov.len() > PIECES {
                iov.truncate(pieces);
                break;
            }
            (taken, total, at) = (taken + 1, bytes, span.end());
        }
        (taken, total)
    }

    fn read_run(&self, pin: &Pin<'_>, first: &Span, scratch: &Scratch) -> Option<usize> {
        let file = pin.file().ok()?;
        self.share
            .read(pin.caller(NOGID), file, &scratch.iov, first.offset, true)
            .ok()
    }

    fn write_run(&self, pin: &Pin<'_>, first: &Span, total: usize, scratch: &Scratch) -> Option<usize> {
        let timed = total >= TIMED;
        if timed && self.writes_are_slow() {
            return None;
        }
        let file = pin.file().ok()?;
        let begun = timed.then(Instant::now);
        let written = self
            .share
            .write(pin.caller(NOGID), file, &scratch.iov, first.offset, false)
            .ok()?;
        if let Some(begun) = begun {
            self.note_write(begun.elapsed() >= SLOW);
        }
        Some(written)
    }
}

/// Answers those at the front of `run` that `moved` bytes cover; gives how many.
fn answer(run: &mut [Neighbour<'_>], mut moved: usize) -> usize {
    let mut answered = 0;
    for request in run {
        let Some(span) = Span::of(request.message) else {
            break;
        };
        let Ok(count) = usize::try_from(span.count) else {
            break;
        };
        let Some(rest) = moved.checked_sub(count) else {
            break;
        };
        let reply = Reply {
            to: request.reply,
            tag: span.tag,
        };
        let outcome = match span.kind {
            TREAD => send_read(&reply, count),
            _ => Ok(reply.send(&Rwrite { count: span.count })),
        };
        let Ok(Outcome::Done(used)) = outcome else { break };
        request.used = used;
        moved = rest;
        answered += 1;
    }
    answered
}

fn trace(answered: &[Neighbour<'_>]) {
    for request in answered {
        if let Some(span) = Span::of(request.message) {
            let (tag, message) = (span.tag, span.message());
            log::trace!("{tag} {message:?}: {:?}, a run", Outcome::Done(request.used));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_shows_a_message_as_it_was_sent() {
        let read = Tread {
            fid: 1,
            offset: 2,
            count: 3,
        };
        let write = Twrite {
            fid: 1,
            offset: 2,
            count: 0,
            data: b"",
        };
        let mut frames = [[0; TWRITE_HEADER]; 2];
        read.encode(7, &mut frames[0]).unwrap();
        write.encode(7, &mut frames[1]).unwrap();
        frames[1][19] = 3;
        for frame in frames {
            let span = Span::of(&frame).unwrap();
            assert_eq!(Tmessage::decode(&frame), Ok((span.tag, span.message())));
        }
    }
}
