//! Tlock and Tgetlock: real byte-range locks, which other guests, other shares and the host's processes see.
//!
//! They are open-file-description locks: no process id of ours is in them, and closing one descriptor does not drop
//! those of another. A lock of the whole file, which may be a flock(2), is one of the host's flock(2) as well.
//!
//! Linux's client takes the lock in its own kernel first and then here (`v9fs_file_do_lock`), and looks there first as
//! well (`v9fs_file_getlock`); so what comes here is about locks of others than its own processes. Where the answer
//! to a F_SETLKW is "blocked" it sleeps for 30 s (`P9_LOCK_TIMEOUT`) and asks again, which is why such a request is not
//! answered before it is granted. Unlocking at close(2) is a Tlock too (`locks_remove_posix`).

use std::hash::BuildHasher;
use std::os::fd::AsFd;

use host::sys::io::Lock;
use host::{Access, LockFile};
use wire::{
    Message, P9_LOCK_BLOCKED, P9_LOCK_FLAGS_BLOCK, P9_LOCK_SUCCESS, P9_LOCK_TYPE_RDLCK, P9_LOCK_TYPE_UNLCK,
    P9_LOCK_TYPE_WRLCK, Rgetlock, Rlock, Tgetlock, Tlock,
};

use crate::failure::Failure;
use crate::locks::{Held, Inode, Range, TakenOut};
use crate::nodes::Same;
use crate::pin::{NOGID, Pin};
use crate::reply::Reply;
use crate::request::{How, Outcome, Request, Scratch};
use crate::session::Session;
use crate::table::State;

const EINVAL: Failure = Failure::new(libc::EINVAL);

/// Longest time between two tries for a lock that somebody outside this session holds: nobody tells when it is
/// let go.
const RETRY_MS: u32 = 64;

/// Bytes of an Rgetlock without its client's name.
const RGETLOCK: usize = 7 + 1 + 8 + 8 + 4 + 2;

fn host_lock(kind: i32, range: Range) -> Lock {
    Lock {
        kind,
        start: range.start,
        length: range.length(),
    }
}

/// Ranges that the queue thread may change for one request.
const MANY: usize = 1024;

/// How many ranges a request may unlock on the host before it is answered; the rest goes on in the background. Each is a
/// system call, of up to 0.3 ms where there are very many.
fn calls(how: How) -> usize {
    match how {
        How::Inline => 32,
        How::Blocking | How::Last => 256,
    }
}

fn host_kind(kind: u8) -> Result<i32, Failure> {
    match kind {
        P9_LOCK_TYPE_RDLCK => Ok(libc::F_RDLCK),
        P9_LOCK_TYPE_WRLCK => Ok(libc::F_WRLCK),
        P9_LOCK_TYPE_UNLCK => Ok(libc::F_UNLCK),
        _ => Err(EINVAL),
    }
}

impl Session {
    /// Takes the locks of an inode out. `None` when another request has them and this thread must not wait.
    pub(crate) fn take_out(&self, same: Same, how: How) -> Option<TakenOut> {
        self.locks.take_out(same, how != How::Inline)
    }

    /// Whether to drop the locks taken through a fid is too much for this thread.
    pub(crate) fn many_locks(out: &mut TakenOut, pin: &Pin<'_>, how: How) -> bool {
        how == How::Inline
            && out
                .inode()
                .is_some_and(|inode| inode.has_more(pin.view().fid, MANY))
    }

    /// Drops the locks taken through a fid that is gone.
    pub(crate) fn release_fid(&self, out: &mut TakenOut, pin: &Pin<'_>, how: How) {
        if let Some(inode) = out.inode() {
            inode.release_fid(pin.view().fid);
            out.let_go(calls(how));
        }
    }

    /// Which inode a fid is of.
    pub(crate) fn inode(&self, pin: &Pin<'_>) -> Option<Same> {
        self.with(|tables| tables.nodes.get(pin.view().node).map(|node| node.same))
    }

    /// Takes, changes or drops a lock. A conflict is answered with BLOCKED, or not before it is over when the
    /// client wants to wait. EBADF for a fid that is no open file, EINVAL for an unknown kind or flag or a range
    /// that no file can have, ENOLCK when there are too many.
    pub(crate) fn lock(
        &self,
        m: &Tlock<'_>,
        request: &mut Request<'_>,
        reply: &Reply<'_>,
        how: How,
    ) -> Result<Outcome, Failure> {
        let pin = self.pin(m.fid, libc::ENOENT)?;
        if m.flags & !P9_LOCK_FLAGS_BLOCK != 0 {
            return Err(EINVAL);
        }
        if pin.state() != State::File {
            return Err(Failure::new(libc::EBADF));
        }
        let range = Range::new(m.start, m.length).ok_or(EINVAL)?;
        let kind = host_kind(m.kind)?;
        let process = self.owners.hash_one((m.proc_id, m.client_id));
        let description = self.owners.hash_one((m.proc_id, m.client_id, m.fid));
        // What may be flock(2)'s is the open file's, and so is all of `F_OFD_SETLK`, of which Linux says no process.
        let owner = if range.is_whole() || m.proc_id == u32::MAX {
            description
        } else {
            process
        };
        let same = self.inode(&pin).ok_or(EINVAL)?;
        let Some(mut out) = self.take_out(same, how) else {
            return Ok(Outcome::Defer);
        };
        if let Some(inode) = out.inode().filter(|_| how == How::Inline)
            && [process, description]
                .iter()
                .any(|owner| inode.concerns_more(*owner, range, MANY))
        {
            return Ok(Outcome::Defer);
        }
        let success = Rlock {
            status: P9_LOCK_SUCCESS,
        };
        if kind == libc::F_UNLCK {
            let most = self.limits.max_locks;
            let full = out.count >= most;
            if let Some(inode) = out.inode() {
                let splits = |owner: &u64| inode.splits(*owner, range);
                if [process, description].iter().any(splits) && (full || inode.is_full(range)) {
                    return Err(Failure::new(libc::ENOLCK));
                }
                let asked = m.flags & P9_LOCK_FLAGS_BLOCK != 0;
                let one_way = pin.how().write_only || !pin.how().writes;
                if asked
                    && range.is_whole()
                    && ![process, description]
                        .iter()
                        .any(|owner| inode.holds(*owner, range))
                {
                    // `flock -u` on what another process has locked.
                    inode.release_whole(m.fid, MANY);
                }
                inode.release(process, range);
                // Linux says the same when a process closes one of several copies of a descriptor (`locks_remove_posix`),
                // without the flag that flock(LOCK_UN) has. A shell keeps what flock(1) has locked for it.
                if asked || !range.is_whole() || !one_way {
                    inode.release(description, range);
                }
                out.let_go(calls(how));
            }
            return Ok(reply.send(&success));
        }
        // A range in the middle of another leaves two more than there were.
        let full = out.inode().is_some_and(|inode| inode.is_full(range));
        if full || out.count.saturating_add(2) > self.limits.max_locks {
            return Err(Failure::new(libc::ENOLCK));
        }
        // From here on the fid's end drops its locks, whichever thread comes first.
        self.with(|tables| tables.will_lock(pin.view()))?;
        if self.try_take(&mut out, &pin, host_lock(kind, range))? {
            if let Some(inode) = out.inode() {
                inode.take(Held {
                    range,
                    owner,
                    fid: pin.view().fid,
                    write: kind == libc::F_WRLCK,
                });
            }
            return Ok(reply.send(&success));
        }
        // Linux lets nobody but flock(2) lock for writing what is open for reading, and flock(2) lets go of a lock that it
        // cannot turn into another kind at once: two that hold a shared one and want an exclusive one do not wait for
        // each other.
        if kind == libc::F_WRLCK
            && !pin.how().writes
            && let Some(inode) = out.inode().filter(|inode| inode.holds(owner, range))
        {
            inode.release(owner, range);
            out.let_go(calls(how));
        }
        if m.flags & P9_LOCK_FLAGS_BLOCK != 0 && how != How::Last {
            let tries = u32::try_from(*request.progress).unwrap_or(u32::MAX);
            *request.progress = u64::from(tries.saturating_add(1));
            let retry_ms = 1u32
                .checked_shl(tries)
                .map_or(RETRY_MS, |ms| ms.clamp(1, RETRY_MS));
            return Ok(Outcome::Wait { retry_ms });
        }
        Ok(reply.send(&Rlock {
            status: P9_LOCK_BLOCKED,
        }))
    }

    /// Tries for a lock on the inode's description; false when somebody else's is in the way.
    fn try_take(&self, out: &mut TakenOut, pin: &Pin<'_>, lock: Lock) -> Result<bool, Failure> {
        let caller = pin.caller(NOGID);
        // What the fid is open for is what its locks may be (`fcntl_setlk`), whatever the description was opened for.
        let own = Access {
            reads: !pin.how().write_only,
            writes: pin.how().writes,
        };
        let another = || -> Result<LockFile, Failure> {
            self.has_room(self.with(|tables| tables.descriptors()), libc::ENOLCK)?;
            Ok(self.share.open_lock(caller, &pin.object()?, own)?)
        };
        if let Some(inode) = out.inode() {
            if !inode.file.access().takes(lock.kind)
                && own.takes(lock.kind)
                && !inode.move_to(&self.share, caller, another()?)?
            {
                return Ok(false);
            }
            return Ok(self.share.lock(caller, &mut inode.file, lock)?);
        }
        let mut file = another()?;
        let taken = self.share.lock(caller, &mut file, lock)?;
        if taken {
            out.begin(Inode::new(file));
        }
        Ok(taken)
    }

    /// The first lock of somebody outside this session that is in the way; of the client's own processes its kernel
    /// knows. The holder's process id is the host's business and given as 0.
    ///
    /// Linux does not say what its program would like to lock: the type is always UNLCK (`v9fs_file_getlock`), which
    /// no lock can be in the way of. That is taken for a write lock, so that any lock is told. A program that asked
    /// about a read lock then hears of another's, which would not be in its way; to hear of none would be worse: SQLite
    /// asks so whether a journal belongs to somebody who is alive.
    pub(crate) fn getlock(
        &self,
        m: &Tgetlock<'_>,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
        how: How,
    ) -> Result<Outcome, Failure> {
        let pin = self.pin(m.fid, libc::ENOENT)?;
        if pin.state() != State::File {
            return Err(Failure::new(libc::EBADF));
        }
        let range = Range::new(m.start, m.length).ok_or(EINVAL)?;
        let kind = host_kind(m.kind)?;
        if self.reply_room(reply) < RGETLOCK + m.client_id.len() {
            return Err(Failure::new(libc::EMSGSIZE));
        }
        let kind = if kind == libc::F_UNLCK {
            libc::F_WRLCK
        } else {
            kind
        };
        let lock = host_lock(kind, range);
        let same = self.inode(&pin).ok_or(EINVAL)?;
        let Some(mut out) = self.take_out(same, how) else {
            return Ok(Outcome::Defer);
        };
        let caller = pin.caller(NOGID);
        // Asked through the description that holds the session's own, which is then not in the way.
        let found = match out.inode() {
            Some(inode) => self.share.get_lock(caller, inode.file.as_fd(), lock)?,
            None => self.share.get_lock(caller, pin.file()?, lock)?,
        };
        drop(out);
        let mut answer = Rgetlock {
            kind: P9_LOCK_TYPE_UNLCK,
            start: m.start,
            length: m.length,
            proc_id: m.proc_id,
            client_id: m.client_id,
        };
        if let Some((lock, _)) = found {
            answer.kind = match lock.kind {
                libc::F_RDLCK => P9_LOCK_TYPE_RDLCK,
                _ => P9_LOCK_TYPE_WRLCK,
            };
            (answer.start, answer.length, answer.proc_id) = (lock.start, lock.length, 0);
        }
        let out = &mut scratch.bytes;
        out.resize(out.len().max(RGETLOCK + m.client_id.len()), 0);
        let len = answer
            .encode(reply.tag, out)
            .ok_or(Failure::new(libc::EMSGSIZE))?;
        Ok(reply.send_bytes(&out[..len]))
    }
}
