//! Tread and Twrite: between the file and the guest's own pages, without a copy.
//!
//! # Append
//!
//! O_APPEND is the fid's, not the descriptor's: Linux's pwrite(2) on a descriptor with O_APPEND appends whatever the
//! offset (`generic_write_checks`), which is wrong for pages that a client's write-back cache sends. What a Twrite on
//! an appending fid means depends on the client's cache, and nothing in the message says which it has:
//!
//! - A client without a write-back cache (cache=none, readahead) sends every write at what it takes for the end of
//!   the file. That may be out of date, since another guest or the host may have appended; so each of its writes
//!   goes to the real end, whatever its offset.
//! - A client with one (cache=mmap, loose, fscache) sends pages, in any order. What lies below the end is
//!   positioned; what starts exactly at the end is appended (it makes no difference but when somebody else appends
//!   at the same moment); beyond the end it is a page that overtook another, and is positioned.
//!
//! They are told apart by how they open: with a write-back cache, Linux turns O_WRONLY into O_RDWR without O_APPEND
//! (it may have to fill a page), and asks for what the program wanted only after that was refused, from then on
//! without caching that file (`v9fs_file_open`). So a fid that is open for writing only always appends, and a client
//! that has opened one without being refused before appends always. A client that has never opened a file for
//! writing only counts as one with a write-back cache.
//!
//! Where every write of a fid appends, its descriptor has O_APPEND after all: on a FUSE file system the end is known
//! to its server alone, and only that flag tells the server to append there (`fuse_write_flags`). Everywhere else
//! RWF_APPEND (Linux 4.16) does it for a single write. RWF_NOAPPEND (Linux 6.9), which positions one on a descriptor
//! with O_APPEND, has no use here: the only other such descriptors are those of files with the append-only
//! attribute, and on these it is refused.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use host::{Attr, IoVec};
use wire::{Rread, Rwrite, Tread, Twrite, encode_rread_header};

use crate::failure::Failure;
use crate::pin::{NOGID, Pin};
use crate::reply::{Reply, take_payload};
use crate::request::{How, Outcome, Request, Scratch};
use crate::session::Session;
use crate::table::State;

/// Writes of so many bytes are timed on the queue thread; for fewer the clock would cost too much.
pub(crate) const TIMED: usize = 32 * 1024;

/// A write that takes so long was throttled, because too many pages are dirty (`balance_dirty_pages`), or waited for
/// the disk. After two in a row (one may be chance: this thread did not get a processor) the next ones will be, too.
pub(crate) const SLOW: Duration = Duration::from_millis(10);

/// So many of the next ones are left to threads that may block, before the queue thread tries one again.
const SLOW_RUN: u32 = 64;

/// A read that misses the page cache stops at a page's end; pages are of this size or a multiple.
const PAGE: u64 = 4096;

/// Pieces of memory that one system call takes (`IOV_MAX`).
pub(crate) const PIECES: usize = 1024;

const EINVAL: Failure = Failure::new(libc::EINVAL);

impl Session {
    /// Reads an open file, or an xattr's value. Short only at the end of the file or before an error, which the
    /// client's next read meets: Linux asks again until it gets nothing (`p9_client_read`). EOPNOTSUPP for a
    /// directory (that is Treaddir's), EINVAL for a fid that is not open.
    pub(crate) fn read(
        &self,
        m: &Tread,
        request: &mut Request<'_>,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
        how: How,
    ) -> Result<Outcome, Failure> {
        let pin = self.pin(m.fid, libc::EINVAL)?;
        let wanted = usize::try_from(m.count).unwrap_or(usize::MAX);
        let count = wanted.min(self.reply_room(reply).saturating_sub(Rread::HEADER_LEN));
        match pin.state() {
            State::File => {}
            State::XattrRead => return self.read_xattr(&pin, m, count, reply, scratch),
            State::Dir => return Err(Failure::new(libc::EOPNOTSUPP)),
            State::Walked | State::XattrWrite => return Err(EINVAL),
        }
        let file = pin.file()?;
        let mut done = progress(request, count);
        let (inline, slice) = (how == How::Inline, request.slice.max(1));
        let mut slices = 0;
        // No bytes are asked for too: EBADF when the file is not open for reading.
        while done < count || count == 0 {
            if inline && slices == 1 {
                *request.progress = done as u64;
                return Ok(Outcome::More);
            }
            let ask = (count - done).min(slice);
            scratch.iov.clear();
            IoVec::slice_into(request.reply, Rread::HEADER_LEN + done, ask, &mut scratch.iov);
            let at = m.offset.checked_add(done as u64).ok_or(EINVAL)?;
            match self.share.read(pin.caller(NOGID), file, &scratch.iov, at, inline) {
                Ok(0) => break,
                Ok(read) => {
                    done += read.min(ask);
                    slices += 1;
                    // Whoever reads a regular file gets what there is, so less is the end. Only a read that must
                    // not wait may stop before, and then between two pages.
                    let end = at.wrapping_add(read as u64);
                    if read < ask && pieces_sent(&scratch.iov) && (!inline || end % PAGE != 0) {
                        break;
                    }
                    if read < ask {
                        slices = 0;
                    }
                }
                Err(error) if inline && error.raw_os_error() == Some(libc::EAGAIN) => {
                    *request.progress = done as u64;
                    return Ok(Outcome::Defer);
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        send_read(reply, done)
    }

    fn read_xattr(
        &self,
        pin: &Pin<'_>,
        m: &Tread,
        count: usize,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
    ) -> Result<Outcome, Failure> {
        let bytes = &mut scratch.bytes;
        bytes.clear();
        // Copied twice, so that guest memory is not touched under the lock; 64 KiB at most.
        self.with(|tables| {
            let value = tables.xattr(pin.view()).map_or(&[][..], |xattr| &xattr.value);
            let from = usize::try_from(m.offset).map_or(value.len(), |at| at.min(value.len()));
            let rest = &value[from..];
            bytes.extend_from_slice(&rest[..rest.len().min(count)]);
        });
        let done = reply.put_at(Rread::HEADER_LEN, bytes);
        send_read(reply, done)
    }

    /// Writes an open file, or an xattr's value: all of it, or an error, as QEMU does, even if a part has reached the
    /// file. A short count would be more exact and is a trap: Linux's `p9_client_write` asks for the rest, meets the
    /// error, reports the part, and netfs tries what is left again, but sends it to where the whole began
    /// (`v9fs_issue_write` takes `subreq->start`; seen with 6.12 and 7.3). The host's writing nothing counts as EIO.
    pub(crate) fn write(
        &self,
        m: &Twrite<'_>,
        request: &mut Request<'_>,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
        how: How,
    ) -> Result<Outcome, Failure> {
        let pin = self.pin(m.fid, libc::EINVAL)?;
        let count = usize::try_from(m.count).map_err(|_| EINVAL)?;
        // The device hands over the payload apart from the message.
        if !m.data.is_empty() || IoVec::total(request.payload) < count {
            return Err(EINVAL);
        }
        match pin.state() {
            State::File => {}
            State::XattrWrite => {
                self.write_xattr(&pin, m, count, request.payload, scratch)?;
                return Ok(reply.send(&Rwrite { count: m.count }));
            }
            State::Walked | State::Dir | State::XattrRead => return Err(EINVAL),
        }
        let append = pin.how().append && self.appends(&pin, m.offset)?;
        // One append is one system call as far as the kernel allows, so that no other comes between.
        let (inline, slice) = (how == How::Inline, request.slice.max(1));
        if inline && append && count > slice {
            return Ok(Outcome::Defer);
        }
        let file = pin.file()?;
        let mut done = progress(request, count);
        let mut slices = 0;
        // No bytes are written too: EBADF when the file is not open for writing.
        while done < count || count == 0 {
            if inline && slices == 1 {
                *request.progress = done as u64;
                return Ok(Outcome::More);
            }
            let ask = (count - done).min(slice);
            let timed = inline && ask >= TIMED;
            if timed && self.writes_are_slow() {
                *request.progress = done as u64;
                return Ok(Outcome::Defer);
            }
            let begun = timed.then(Instant::now);
            scratch.iov.clear();
            IoVec::slice_into(request.payload, done, ask, &mut scratch.iov);
            let at = m.offset.checked_add(done as u64).ok_or(EINVAL)?;
            match self
                .share
                .write(pin.caller(NOGID), file, &scratch.iov, at, append)
            {
                Ok(0) if count > 0 => return Err(Failure::new(libc::EIO)),
                Ok(0) => break,
                Ok(written) => {
                    done += written.min(ask);
                    slices += 1;
                }
                Err(error) => return Err(error.into()),
            }
            if let Some(begun) = begun {
                self.note_write(begun.elapsed() >= SLOW);
            }
        }
        Ok(reply.send(&Rwrite {
            count: u32::try_from(done).unwrap_or(m.count),
        }))
    }

    /// Whether this write is one of those that are left to threads that may block. Counted in writes and not in time,
    /// so that a machine that stands still for a while changes nothing.
    pub(crate) fn writes_are_slow(&self) -> bool {
        let left = self.slow_writes.load(Ordering::Relaxed);
        if left > 1 {
            // Two threads may count one; it does not matter.
            self.slow_writes.store(left - 1, Ordering::Relaxed);
        }
        left > 1
    }

    /// Notes how long a write took. 1: the last one was slow; more: so many (less one) are left to others.
    pub(crate) fn note_write(&self, slow: bool) {
        let before = self.slow_writes.load(Ordering::Relaxed);
        let after = match (slow, before) {
            (true, 0) => 1,
            (true, _) => SLOW_RUN + 1,
            (false, 1) => 0,
            (false, other) => other,
        };
        if after != before {
            self.slow_writes.store(after, Ordering::Relaxed);
        }
    }

    /// Whether a write at `offset` on an appending fid goes to the end: see the top of this file.
    fn appends(&self, pin: &Pin<'_>, offset: u64) -> Result<bool, Failure> {
        if pin.how().always || self.with(|tables| tables.uncached) {
            return Ok(true);
        }
        let mut attr = Attr::default();
        let caller = pin.caller(NOGID);
        self.named(pin, |object| self.share.stat(caller, object, &mut attr))?;
        Ok(attr.size == offset)
    }

    fn write_xattr(
        &self,
        pin: &Pin<'_>,
        m: &Twrite<'_>,
        count: usize,
        payload: &[IoVec],
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        let offset = usize::try_from(m.offset).map_err(|_| Failure::new(libc::ENOSPC))?;
        let end = offset.checked_add(count).ok_or(Failure::new(libc::ENOSPC))?;
        let size = self
            .with(|tables| tables.xattr(pin.view()).map(|xattr| xattr.size))
            .ok_or(EINVAL)?;
        if end > size {
            return Err(Failure::new(libc::ENOSPC));
        }
        scratch.bytes.clear();
        scratch.bytes.resize(count, 0);
        take_payload(payload, &mut scratch.bytes);
        self.with(|tables| {
            let xattr = tables.xattr(pin.view()).ok_or(EINVAL)?;
            // No holes: nothing is set that the client has not written.
            if offset > xattr.value.len() {
                return Err(EINVAL);
            }
            if end > xattr.value.len() {
                xattr.value.resize(end, 0);
            }
            if let Some(place) = xattr.value.get_mut(offset..end) {
                place.copy_from_slice(&scratch.bytes);
            }
            Ok(())
        })
    }
}

/// What earlier calls for this request have moved.
fn progress(request: &Request<'_>, count: usize) -> usize {
    usize::try_from(*request.progress).map_or(count, |done| done.min(count))
}

/// Whether one system call takes all of the pieces.
fn pieces_sent(iov: &[IoVec]) -> bool {
    iov.len() <= PIECES
}

/// Puts the header in front of `done` bytes that are in the reply already.
pub(crate) fn send_read(reply: &Reply<'_>, done: usize) -> Result<Outcome, Failure> {
    let mut header = [0; Rread::HEADER_LEN];
    let count = u32::try_from(done).map_err(|_| Failure::new(libc::EMSGSIZE))?;
    encode_rread_header(&mut header, reply.tag, count).ok_or(Failure::new(libc::EMSGSIZE))?;
    reply.put(&header);
    Ok(Outcome::Done(count.saturating_add(Rread::HEADER_LEN as u32)))
}
