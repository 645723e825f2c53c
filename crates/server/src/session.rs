//! The session: one client's fids on one share, and what becomes of each message.

use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host::{Name, NameError, Share};
use wire::{DecodeErrorKind, Header, Tmessage};

use crate::background::Background;
use crate::failure::Failure;
use crate::find::Moves;
use crate::getattrs::RGETATTR_LEN;
use crate::locks::LockTable;
use crate::reply::Reply;
use crate::request::{How, MESSAGE_MAX, Outcome, Request, Scratch};
use crate::table::Tables;

/// How long a request waits for descriptors that are being closed.
const CLOSING: Duration = Duration::from_secs(10);

/// How long the end of a session waits for them.
const LAST: Duration = Duration::from_millis(100);

/// What a client may make grow. No honest one meets these.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Fids at a time; more get ENFILE. Linux keeps one per cached directory entry and user with cache=loose.
    /// Default 4,194,304.
    pub max_fids: usize,
    /// Bytes of memory for fids, the objects they stand for, the names and file handles of these, and xattrs; more get
    /// ENFILE. Some 200 for a fid of an object of its own with a name of up to 26 bytes. Default 1 GiB.
    pub max_state_bytes: usize,
    /// Fids of Txattrwalk and Txattrcreate at a time; more get ENOSPC; 0: no limit. Default 1024, QEMU's.
    pub max_xattr_fids: usize,
    /// Bytes of values in these; more get ENOSPC. Default 64 MiB, so that the limit above is met first.
    pub max_xattr_bytes: usize,
    /// Byte ranges locked at a time; more get ENOLCK. Default 65,536.
    pub max_locks: usize,
    /// The largest msize granted, bytes; a client that asks for more gets this. Default 4 MiB.
    pub max_msize: u32,
    /// Descriptors that fids may hold; beyond this, those of fids that are not open are closed and opened again
    /// when needed, and a little later no more files can be opened (EMFILE) or locked (ENOLCK). An open file holds
    /// two, one with locks three. A few dozen less than RLIMIT_NOFILE, which the rest of the process has part in. Default 768.
    pub fd_budget: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_fids: 1 << 22,
            max_state_bytes: 1 << 30,
            max_xattr_fids: 1024,
            max_xattr_bytes: 64 << 20,
            max_locks: 1 << 16,
            max_msize: 4 << 20,
            fd_budget: 768,
        }
    }
}

/// One client's session. Used by any number of threads at a time.
#[derive(Debug)]
pub struct Session {
    pub(crate) share: Shared,
    pub(crate) limits: Limits,
    pub(crate) tables: Mutex<Tables>,
    pub(crate) locks: Arc<LockTable>,
    /// Closes and frees what was much; it holds descriptors meanwhile.
    pub(crate) closing: Background,
    /// Makes one number of a client's process, which no client can foresee.
    pub(crate) owners: RandomState,
    /// The msize agreed upon; 0 before Tversion.
    pub(crate) msize: AtomicU32,
    /// Directories were seen that are very deep in the tree: see `depth`.
    pub(crate) deep: AtomicBool,
    /// How many of the next large writes are not for the queue thread: see `io`.
    pub(crate) slow_writes: AtomicU32,
    pub(crate) moves: Moves,
}

/// The share, which has nothing to show in a log.
pub(crate) struct Shared(Arc<Share>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Share")
    }
}

impl std::ops::Deref for Shared {
    type Target = Share;
    fn deref(&self) -> &Share {
        &self.0
    }
}

impl Session {
    /// A session on `share` without fids, before its Tversion.
    pub fn new(share: Arc<Share>, limits: Limits) -> Session {
        Session {
            share: Shared(share),
            limits,
            tables: Mutex::new(Tables::new(limits)),
            locks: Arc::default(),
            closing: Background::default(),
            owners: RandomState::new(),
            msize: AtomicU32::new(0),
            deep: AtomicBool::new(false),
            slow_writes: AtomicU32::new(0),
            moves: Moves::default(),
        }
    }

    /// Answers one request: see [`Outcome`]. Any bytes get an answer, and the session lives on.
    pub fn handle(&self, request: &mut Request<'_>, scratch: &mut Scratch, how: How) -> Outcome {
        let (tag, message) = match decode(request.message) {
            Ok(decoded) => decoded,
            Err((tag, failure)) => {
                log::debug!("malformed message of {} bytes", request.message.len());
                let to = request.reply;
                return tag.map_or(Outcome::Done(0), |tag| Reply { to, tag }.error(failure));
            }
        };
        if how == How::Inline {
            let waits = match self.share.may_hang() {
                true => asks_host(&message),
                false => self.frees_much(&message) || self.is_in_depth(&message),
            };
            if waits {
                return Outcome::Defer;
            }
        }
        let reply = Reply {
            to: request.reply,
            tag,
        };
        let mut result = self.dispatch(&message, request, &reply, scratch, how);
        // Out of descriptors: nothing has happened yet, so give some back and begin again.
        if matches!(result, Err(failure) if failure.is_exhaustion()) {
            let closing = self.closing.held() > 0;
            if self.evict() > 0 || (closing && how != How::Inline && self.closing.wait(CLOSING)) {
                result = self.dispatch(&message, request, &reply, scratch, how);
            } else if closing && how == How::Inline {
                return Outcome::Defer;
            }
        }
        if log::log_enabled!(log::Level::Trace) {
            log::trace!("{tag} {message:?}: {result:?}");
        }
        result.unwrap_or_else(|failure| reply.error(failure))
    }

    /// The protocol: every T-message and who answers it.
    fn dispatch(
        &self,
        message: &Tmessage<'_>,
        request: &mut Request<'_>,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
        how: How,
    ) -> Result<Outcome, Failure> {
        self.may_answer(message, reply)?;
        let outcome = match message {
            Tmessage::Version(_) if how == How::Inline && self.is_behind() => return Ok(Outcome::Defer),
            Tmessage::Version(m) => reply.send(&self.version(m)?),
            Tmessage::Attach(m) => reply.send(&self.attach(m)?),
            Tmessage::Flush(m) => self.flush(m, reply),
            Tmessage::Walk(m) => self.walk(m, reply, scratch, how)?,
            Tmessage::Clunk(m) => return self.clunk(m, reply, how),
            Tmessage::Remove(m) => return self.remove(m, reply, how),
            Tmessage::Lopen(m) => reply.send(&self.lopen(m)?),
            Tmessage::Lcreate(m) => reply.send(&self.lcreate(m)?),
            Tmessage::Read(m) => return self.read(m, request, reply, scratch, how),
            Tmessage::Write(m) => return self.write(m, request, reply, scratch, how),
            Tmessage::Readdir(m) => self.readdir(m, reply, scratch)?,
            Tmessage::Mkdir(m) => reply.send(&self.mkdir(m)?),
            Tmessage::Mknod(m) => reply.send(&self.mknod(m)?),
            Tmessage::Rename(m) => reply.send(&self.rename(m)?),
            Tmessage::Renameat(m) => reply.send(&self.renameat(m)?),
            Tmessage::Unlinkat(m) => reply.send(&self.unlinkat(m)?),
            Tmessage::Getattr(m) => reply.send(&self.getattr(m, how)?),
            Tmessage::Setattr(m) => reply.send(&self.setattr(m)?),
            Tmessage::Xattrwalk(m) => reply.send(&self.xattrwalk(m, scratch)?),
            Tmessage::Xattrcreate(m) => reply.send(&self.xattrcreate(m)?),
            Tmessage::Lock(m) => return self.lock(m, request, reply, how),
            Tmessage::Getlock(m) => return self.getlock(m, reply, scratch, how),
            Tmessage::Link(m) => reply.send(&self.link(m)?),
            Tmessage::Symlink(m) => reply.send(&self.symlink(m)?),
            Tmessage::Readlink(m) => self.readlink(m, reply, scratch)?,
            Tmessage::Fsync(m) => return self.fsync(m, reply, how),
            Tmessage::Statfs(m) => reply.send(&self.statfs(m)?),
            Tmessage::Unknown { .. } => return Err(Failure::new(libc::EOPNOTSUPP)),
        };
        Ok(outcome)
    }

    /// Refuses, before it has any effect, a request out of session (EPROTO) or whose reply has no room (EMSGSIZE).
    fn may_answer(&self, message: &Tmessage<'_>, reply: &Reply<'_>) -> Result<(), Failure> {
        let known = !matches!(message, Tmessage::Version(_) | Tmessage::Unknown { .. });
        if known && self.msize.load(Ordering::Relaxed) == 0 {
            return Err(Failure::new(libc::EPROTO));
        }
        let needed = match message {
            Tmessage::Version(_) => 21,
            Tmessage::Walk(m) => 9 + 13 * m.names.len(),
            Tmessage::Attach(_) | Tmessage::Mkdir(_) | Tmessage::Mknod(_) | Tmessage::Symlink(_) => 20,
            Tmessage::Lopen(_) | Tmessage::Lcreate(_) => 24,
            Tmessage::Getattr(_) => RGETATTR_LEN,
            Tmessage::Statfs(_) => 67,
            Tmessage::Xattrwalk(_) => 15,
            _ => 11,
        };
        if reply.room(needed) < needed {
            return Err(Failure::new(libc::EMSGSIZE));
        }
        Ok(())
    }

    /// Drops all fids and locks, as if the client had just arrived. Requests under way end on their own.
    pub fn reset(&self) {
        self.locks.reset();
        // Nobody waits until a file server that is gone lets a file be closed.
        let apart = self.share.may_hang();
        let (old, dead) = self.with(|tables| {
            let old = tables.reset(apart);
            let dead = apart.then(|| std::mem::take(&mut tables.dead));
            (old, dead.unwrap_or_default())
        });
        let held = old.as_ref().map_or(0, Tables::descriptors) + dead.len();
        if held > 0 {
            self.closing.run(held, move || drop((old, dead)));
        }
        // Again, for what a request took between the two; it finds its fid gone from now on.
        self.locks.reset();
    }

    /// Whether what a former session has left is still being freed, and this one would leave as much again.
    pub(crate) fn is_behind(&self) -> bool {
        self.closing.held() > 0 && self.with(|tables| tables.is_much())
    }

    /// Changes when a lock was released.
    pub fn wake_count(&self) -> u64 {
        self.locks.wakes()
    }

    /// What the session holds at the moment.
    pub fn usage(&self) -> Usage {
        self.with(|tables| {
            let (fids, nodes, xattrs) = tables.counts();
            Usage {
                fids,
                nodes,
                xattrs,
                descriptors: tables.descriptors(),
                bytes: tables.bytes(),
            }
        })
    }

    /// Bytes of a whole reply at most, by msize and by the room there is.
    pub(crate) fn reply_room(&self, reply: &Reply<'_>) -> usize {
        reply.room(usize::try_from(self.msize.load(Ordering::Relaxed)).unwrap_or(usize::MAX))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reset();
        // What is done quickly is done when the session is gone.
        self.closing.wait(LAST);
    }
}

/// What a session holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Fids.
    pub fids: usize,
    /// Objects that fids stand for, and directories above them.
    pub nodes: usize,
    /// Xattr values being read or written.
    pub xattrs: usize,
    /// Host descriptors, those of locks not counted.
    pub descriptors: usize,
    /// Bytes of memory for all these.
    pub bytes: usize,
}

/// The message, or why it is none and which tag to say so to.
fn decode(message: &[u8]) -> Result<(u16, Tmessage<'_>), (Option<u16>, Failure)> {
    if let Some(header) = Header::decode(message) {
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size > MESSAGE_MAX && header.kind != wire::TWRITE {
            return Err((Some(header.tag), Failure::new(libc::EMSGSIZE)));
        }
    }
    Tmessage::decode(message).map_err(|error| {
        let errno = match error.kind {
            DecodeErrorKind::TooManyNames => libc::EINVAL,
            DecodeErrorKind::Short | DecodeErrorKind::BadSize => libc::EPROTO,
        };
        (error.tag, Failure::new(errno))
    })
}

/// Whether the message may need a system call on the share. A Tclunk only does for some fids, and sees to it itself.
fn asks_host(message: &Tmessage<'_>) -> bool {
    !matches!(
        message,
        Tmessage::Version(_) | Tmessage::Flush(_) | Tmessage::Clunk(_) | Tmessage::Unknown { .. }
    )
}

/// The name that a message gives to something new or old. `dots` is the errno for `.` and `..`.
pub(crate) fn name(bytes: &[u8], dots: i32) -> Result<Name, Failure> {
    Name::new(bytes).map_err(|error| {
        Failure::new(match error {
            NameError::Illegal => libc::ENOENT,
            NameError::TooLong => libc::ENAMETOOLONG,
            NameError::Dot | NameError::DotDot => dots,
        })
    })
}
