//! Opening, reading, writing, syncing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Object, Share};
use crate::attr::{Caller, FileType};
use crate::iovec::IoVec;
use crate::sys;
use crate::sys::attr::{Record, Stat};

/// What an open may ask of the host. Not O_CREAT and O_EXCL (creation's), O_DIRECT (the guest's buffers need not be
/// aligned as the host wants them), O_NOFOLLOW (there is no link to follow), and nothing that changes what a
/// descriptor is.
const FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_NOATIME
    | libc::O_DIRECTORY
    | libc::O_LARGEFILE;

/// `flags` without what no open gets. EINVAL for the access mode 3, which Linux keeps for ioctls on devices.
pub(super) fn open_flags(flags: i32) -> io::Result<i32> {
    if flags & libc::O_ACCMODE == libc::O_ACCMODE {
        return Err(sys::error(libc::EINVAL));
    }
    Ok(flags & FLAGS)
}

/// An object that [`Share::open_and_tell`] has opened.
#[derive(Debug)]
pub struct Opened {
    /// The open descriptor.
    pub file: OwnedFd,
    /// It has O_APPEND.
    pub appends: bool,
    /// What the guest sees.
    pub file_type: FileType,
    /// As [`Identity::unique`](crate::Identity::unique).
    pub unique: u64,
    /// As [`Identity::version`](crate::Identity::version).
    pub version: u32,
}

/// What reads that must not wait are known to do on the root's file system.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(AtomicU8);

const UNKNOWN: u8 = 0;
const KNOWS: u8 = 1;
const NEVER_WAITS: u8 = 2;
const CANNOT_TELL: u8 = 3;

impl Share {
    /// Opens a regular file or directory for I/O; `flags` are Linux `O_*`, of which some are dropped. With O_APPEND
    /// all that is written goes to the end, wherever it is meant to go. Special files and symlinks: ENXIO / ELOOP,
    /// never opened. EROFS.
    pub fn open_object(&self, caller: Caller, object: &Object<'_>, flags: i32) -> io::Result<OwnedFd> {
        self.run("open", caller, object, None, || self.open_now(object, flags))
            .map(|(file, _)| file)
    }

    /// As [`Share::open_object`], and what the guest is to be told of the object. With `try_append`, for somebody who
    /// appends, with O_APPEND if the file would not be opened otherwise: Linux refuses to open one with the append-only
    /// attribute (chattr +a) for writing in any other way (EPERM, `may_open`).
    pub fn open_and_tell(
        &self,
        caller: Caller,
        object: &Object<'_>,
        flags: i32,
        try_append: bool,
    ) -> io::Result<Opened> {
        let (file, stat, appends) = self.run("open", caller, object, None, || {
            match self.open_now(object, flags) {
                Err(e) if try_append && sys::errno(&e) == libc::EPERM => {
                    let (file, stat) = self.open_now(object, flags | libc::O_APPEND)?;
                    Ok((file, stat, true))
                }
                other => other.map(|(file, stat)| (file, stat, flags & libc::O_APPEND != 0)),
            }
        })?;
        // What was asked before the open says it all, unless the open has changed it.
        let (file_type, unique, version) = if self.plain && flags & libc::O_TRUNC == 0 {
            let (unique, version) = self.context.unique(&stat, object.path)?;
            (FileType::from_mode(stat.mode()), unique, version)
        } else {
            let file = Some(file.as_fd());
            let id = self.mode.identify(&Object { file, ..*object })?;
            (id.file_type, id.unique, id.version)
        };
        Ok(Opened {
            file,
            appends,
            file_type,
            unique,
            version,
        })
    }

    pub(super) fn open_now(&self, object: &Object<'_>, flags: i32) -> io::Result<(OwnedFd, Stat)> {
        let flags = open_flags(flags)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        if writes && self.context.options().readonly {
            return Err(sys::error(libc::EROFS));
        }
        // Which looks at the type of the very object, whatever `object.host_type` says.
        self.context.reopen_and_tell(object.path, flags)
    }

    /// preadv2 at `offset`. With `nowait`: EAGAIN when the data is not in the page cache (a short count when part
    /// of it is); file systems that cannot tell are read plainly when they never wait (tmpfs), else EAGAIN.
    pub fn read(
        &self,
        caller: Caller,
        file: BorrowedFd<'_>,
        to: &[IoVec],
        offset: u64,
        nowait: bool,
    ) -> io::Result<usize> {
        self.as_caller(caller, || self.read_now(file, to, offset, nowait))
    }

    fn read_now(&self, file: BorrowedFd<'_>, to: &[IoVec], offset: u64, nowait: bool) -> io::Result<usize> {
        if !nowait {
            return sys::io::read(file, to, offset, 0);
        }
        // What was learned holds for the root's file system; the file may be on another one if there is one.
        let known = self.read_ahead.0.load(Ordering::Relaxed);
        if known > KNOWS && self.context.devices().single() {
            return if known == NEVER_WAITS {
                sys::io::read(file, to, offset, 0)
            } else {
                Err(sys::error(libc::EAGAIN))
            };
        }
        match sys::io::read(file, to, offset, libc::RWF_NOWAIT) {
            Err(e) if sys::errno(&e) == libc::EOPNOTSUPP => {
                let kind = sys::attr::statfs(file)?.f_type;
                let memory = matches!(kind, libc::TMPFS_MAGIC | RAMFS_MAGIC | libc::HUGETLBFS_MAGIC);
                if known == UNKNOWN && self.context.devices().single() {
                    let learned = if memory { NEVER_WAITS } else { CANNOT_TELL };
                    self.read_ahead.0.store(learned, Ordering::Relaxed);
                }
                if memory {
                    sys::io::read(file, to, offset, 0)
                } else {
                    Err(sys::error(libc::EAGAIN))
                }
            }
            result => {
                if known == UNKNOWN && result.is_ok() {
                    self.read_ahead.0.store(KNOWS, Ordering::Relaxed);
                }
                result
            }
        }
    }

    /// pwritev2 at `offset`, or at the end when `append` (RWF_APPEND). EROFS. The count may be short. Whose write it is
    /// matters though the file is open: blocks that are kept for root, and quotas, are given to this process.
    pub fn write(
        &self,
        caller: Caller,
        file: BorrowedFd<'_>,
        from: &[IoVec],
        offset: u64,
        append: bool,
    ) -> io::Result<usize> {
        if self.context.options().readonly {
            return Err(sys::error(libc::EROFS));
        }
        let flags = if append { libc::RWF_APPEND } else { 0 };
        self.as_caller(caller, || sys::io::write(file, from, offset, flags))
    }

    /// fsync or fdatasync.
    pub fn fsync(&self, caller: Caller, file: BorrowedFd<'_>, datasync: bool) -> io::Result<()> {
        self.as_caller(caller, || sys::io::sync(file, datasync))
    }
}

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;
