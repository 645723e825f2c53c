//! Tgetattrs next to each other in the queue: a run that takes one turn of the session's lock. `ls -l`, `find` and
//! builds of several processes send such.
//!
//! As in `run`, only the plain case is done here; from the first request that is none, each is left to `attr`.

use host::{Attr, Share};
use wire::{Header, Message, NOTAG, TGETATTR, Tgetattr};

use crate::attr::rgetattr;
use crate::reply::Reply;
use crate::request::{Scratch, room};
use crate::run::Neighbour;
use crate::session::Session;

/// Bytes of a Tgetattr: size[4] type[1] tag[2] fid[4] mask[8].
const TGETATTR_LEN: usize = 19;

/// Bytes of an Rgetattr.
pub(crate) const RGETATTR_LEN: usize = 160;

/// The tag and the message of a Tgetattr of its exact length.
#[inline]
pub(crate) fn decode(message: &[u8]) -> Option<(u16, Tgetattr)> {
    let body = message
        .get(Header::LEN..)
        .filter(|_| message.len() == TGETATTR_LEN)?;
    let Header { size, kind, tag } = Header::decode(message)?;
    if kind != TGETATTR || usize::try_from(size) != Ok(TGETATTR_LEN) {
        return None;
    }
    Some((tag, Tgetattr::decode_body(body).ok()?))
}

impl Session {
    /// Answers Tgetattrs at the front of `run`, as the queue thread; gives how many.
    pub(crate) fn getattrs(&self, run: &mut [Neighbour<'_>], scratch: &mut Scratch) -> usize {
        let share: &Share = &self.share;
        if !share.stats_in_one_call() {
            return 0;
        }
        let attrs = &mut scratch.attrs;
        if attrs.len() < run.len() {
            attrs.resize(run.len(), Attr::default());
        }
        let fids = run
            .iter()
            .map_while(|request| decode(request.message).map(|(_, m)| m.fid));
        let mut places = attrs.iter_mut();
        let asked = self.each_at_once(fids, |caller, object| match places.next() {
            Some(attr) => share.stat(caller, object, attr).is_ok(),
            None => false,
        });
        // The guest's memory is not touched under the lock. All answers are made before the first is copied there: a
        // copy reads in wide words what was just written in narrow ones, which waits until these are in the cache, and
        // they come there after the stores of the copy before, which are slow.
        let bytes = room(&mut scratch.bytes, asked * RGETATTR_LEN);
        let (answers, _) = bytes.as_chunks_mut::<RGETATTR_LEN>();
        let blksize = self.blksize();
        let made = run
            .iter()
            .zip(&*attrs)
            .zip(&mut *answers)
            .map(|((request, attr), answer)| {
                let (tag, _) = decode(request.message)?;
                rgetattr(attr, blksize).encode(tag, answer)
            })
            .take_while(|&made| made == Some(RGETATTR_LEN))
            .count();
        let mut answered = 0;
        for (request, answer) in run.iter_mut().zip(&*answers).take(made) {
            let reply = Reply {
                to: request.reply,
                // The answer has its own.
                tag: NOTAG,
            };
            if reply.room(RGETATTR_LEN) < RGETATTR_LEN {
                break;
            }
            reply.put(answer);
            request.used = RGETATTR_LEN as u32;
            answered += 1;
            if log::log_enabled!(log::Level::Trace) {
                log::trace!("{:?}: answered, in a run", decode(request.message));
            }
        }
        answered
    }
}
