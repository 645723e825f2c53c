//! Locks of files, as other guests' servers and the host's programs meet them.
//!
//! A guest's flock(2) arrives as a byte-range lock of the whole file (`v9fs_file_flock_dotl`), and so does many an
//! fcntl(2). Linux keeps the two apart, so a lock of a whole file is taken as both: a byte-range lock of an open file
//! description (`F_OFD_SETLK`), and flock(2) on the same description. A lock of a part can only be fcntl's.
//!
//! flock(2) takes any description, and Linux's client lets an exclusive one through on a descriptor that is only open for
//! reading. `F_OFD_SETLK` wants the right to write for an exclusive lock (EBADF), which this process need not have: the
//! share is read-only, the file is immutable, or somebody else's. Then flock(2) excludes others who lock the whole file,
//! and a shared byte-range lock excludes those who lock a part of it for writing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Object, Share};
use crate::attr::Caller;
use crate::remote;
use crate::sys;
use crate::sys::io::Lock;

/// What a description is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Takes shared byte-range locks.
    pub reads: bool,
    /// Takes exclusive ones.
    pub writes: bool,
}

impl Access {
    const ALL: Access = Access {
        reads: true,
        writes: true,
    };

    /// Whether it takes a byte-range lock of this kind (`F_*LCK`).
    pub fn takes(self, kind: i32) -> bool {
        match kind {
            libc::F_RDLCK => self.reads,
            libc::F_WRLCK => self.writes,
            _ => true,
        }
    }
}

/// An open file description that carries locks of a file. They go with it.
#[derive(Debug)]
pub struct LockFile {
    file: OwnedFd,
    access: Access,
    /// It may have locks.
    used: bool,
    /// flock(2) takes byte-range locks here, of the same owner as `F_OFD_SETLK`'s.
    alike: bool,
    /// What it has by flock(2), and whether exclusively.
    whole: Option<bool>,
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Not left to close(2): the description may be the guest's own file's as well, and a process that is being started
        // keeps a copy of every descriptor until it runs a program.
        if self.used {
            self.let_go(0, 0);
            self.lower(None);
        }
    }
}

impl LockFile {
    /// Without locks.
    pub fn new(file: OwnedFd, access: Access) -> LockFile {
        LockFile {
            file,
            access,
            used: false,
            alike: false,
            whole: None,
        }
    }

    /// What it is open for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Unlocks `length` bytes from `start` on; 0 to the end.
    pub fn let_go(&self, start: u64, length: u64) {
        let unlock = Lock {
            kind: libc::F_UNLCK,
            start,
            length,
        };
        if let Err(error) = sys::io::set_lock(self.file.as_fd(), unlock) {
            log::warn!("a byte range stays locked: {error}");
        }
    }

    /// Gives back what it has by flock(2) beyond `most`: nothing, shared, exclusive.
    pub fn lower(&mut self, most: Option<bool>) {
        if self.whole <= most {
            return;
        }
        // A conversion is not atomic (flock(2)): a waiter of the host's may come between.
        if let Err(error) = self.flock(most) {
            log::warn!("a file stays locked: {error}");
        }
    }

    fn flock(&mut self, kind: Option<bool>) -> io::Result<bool> {
        let before = self.whole;
        if before == kind {
            return Ok(true);
        }
        match sys::io::lock_whole(self.file.as_fd(), kind) {
            Ok(()) => self.whole = kind,
            Err(error) if sys::errno(&error) == libc::EWOULDBLOCK => {
                // The kernel has let go of the lock that was to be converted.
                self.whole = None;
                if before.is_some() && sys::io::lock_whole(self.file.as_fd(), before).is_ok() {
                    self.whole = before;
                }
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn set(&self, lock: Lock) -> io::Result<bool> {
        match sys::io::set_lock(self.file.as_fd(), lock) {
            Ok(()) => Ok(true),
            Err(error) if sys::errno(&error) == libc::EAGAIN => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, lock: Lock) -> io::Result<bool> {
        let taken = self.try_take(lock)?;
        self.used |= taken;
        Ok(taken)
    }

    fn try_take(&mut self, lock: Lock) -> io::Result<bool> {
        let exact = self.access.takes(lock.kind);
        let whole = lock.start == 0 && lock.length == 0;
        if !whole || (exact && self.alike) {
            return self.set(lock);
        }
        let kind = match lock.kind {
            _ if exact => Some(lock.kind),
            libc::F_WRLCK if !self.alike => Some(libc::F_RDLCK),
            _ => None,
        };
        let record = kind.map(|kind| Lock { kind, ..lock });
        // What is taken first must be given back when the second is refused, which others could notice; so look before.
        if let Some(record) = record
            && let Ok(Some(_)) = sys::io::get_lock(self.file.as_fd(), record)
        {
            return Ok(false);
        }
        let before = self.whole;
        match self.flock(Some(lock.kind == libc::F_WRLCK)) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // A file system without it.
            Err(_) if exact => {}
            Err(error) => return Err(error),
        }
        let taken = record.map_or(Ok(true), |record| self.set(record));
        if !matches!(taken, Ok(true)) && self.whole != before {
            // It is refused in any case.
            let _ = self.flock(before);
        }
        taken
    }

    /// Takes over the locks of `old`, which are shared ones of `ranges` (start and length). False when somebody else has
    /// come between. EBADF where `old` has exclusive ones.
    fn take_over(&mut self, old: &LockFile, ranges: impl Iterator<Item = (u64, u64)>) -> io::Result<bool> {
        if old.access.writes || !old.access.reads {
            return Err(sys::error(libc::EBADF));
        }
        if old.whole == Some(true) {
            return Ok(false);
        }
        self.used = true;
        for (start, length) in ranges {
            let kind = libc::F_RDLCK;
            if !self.set(Lock { kind, start, length })? {
                return Ok(false);
            }
        }
        self.flock(old.whole)
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Share {
    /// A description for locks of an open file, whose own is open for `own`: one that takes all kinds if possible, else
    /// one that takes what the file's own does. Nothing is explained, for the guest has asked for no right.
    pub fn open_lock(&self, caller: Caller, object: &Object<'_>, own: Access) -> io::Result<LockFile> {
        self.as_caller(caller, || {
            let open = |flags, access| {
                let (file, _) = self.open_now(
                    &Object {
                        file: None,
                        ..*object
                    },
                    flags,
                )?;
                Ok(LockFile::new(file, access))
            };
            let flags = match own {
                Access { reads: false, .. } => libc::O_WRONLY,
                Access { writes: false, .. } => libc::O_RDONLY,
                Access::ALL => libc::O_RDWR,
            };
            let mut lock_file = open(libc::O_RDWR, Access::ALL)
                .or_else(|error| match own == Access::ALL {
                    true => Err(error),
                    false => open(flags, own),
                })
                .or_else(|error: io::Error| {
                    let file = object.file.ok_or(error)?.try_clone_to_owned()?;
                    Ok::<_, io::Error>(LockFile::new(file, own))
                })?;
            let kind = sys::attr::statfs(lock_file.as_fd())?.f_type;
            lock_file.alike = remote::flock_takes_records(kind);
            Ok(lock_file)
        })
    }

    /// Takes a lock or turns one of another kind into it, without waiting; false when somebody else's is in the way.
    /// EBADF for a part of a file, where the description does not take its kind.
    pub fn lock(&self, caller: Caller, file: &mut LockFile, lock: Lock) -> io::Result<bool> {
        self.as_caller(caller, || file.take(lock))
    }

    /// Puts `better` in the place of `file`, with the locks of that, which are of `ranges` (start and length). False when
    /// that must wait for somebody; EBADF when it cannot be done.
    pub fn move_locks(
        &self,
        caller: Caller,
        file: &mut LockFile,
        mut better: LockFile,
        ranges: impl Iterator<Item = (u64, u64)>,
    ) -> io::Result<bool> {
        self.as_caller(caller, || {
            let moved = better.take_over(file, ranges)?;
            if moved {
                *file = better;
            }
            Ok(moved)
        })
    }

    /// The first byte-range lock in the way of `lock`, and the process that holds it.
    pub fn get_lock(
        &self,
        caller: Caller,
        file: BorrowedFd<'_>,
        lock: Lock,
    ) -> io::Result<Option<(Lock, i32)>> {
        self.as_caller(caller, || sys::io::get_lock(file, lock))
    }
}
