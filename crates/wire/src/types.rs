//! What messages share: the qid, and the protocol's numbers.
//!
//! The numbers are those of the 9P2000.L specification (diod's `protocol.md`) and of Linux's `include/net/9p/9p.h`.

use core::fmt;

use crate::codec::{DecodeErrorKind, Field, Reader, Writer};

/// The server's name for a file: `type[1] version[4] path[8]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Qid {
    /// [`QTDIR`], [`QTSYMLINK`] or [`QTFILE`] (field `type` of the protocol).
    pub kind: u8,
    /// Changes whenever the file does.
    pub version: u32,
    /// Unique among all files of the server, for as long as the file exists.
    pub path: u64,
}

impl Qid {
    /// Bytes of a qid on the wire.
    pub const LEN: usize = 13;
}

impl Field<'_> for Qid {
    const LEAST: usize = Qid::LEN;
    const FIXED: bool = true;

    #[inline(always)]
    fn len(&self) -> Option<usize> {
        Some(Qid::LEN)
    }

    #[inline(always)]
    fn get(from: &mut Reader<'_>) -> Result<Self, DecodeErrorKind> {
        let bytes = from.take::<{ Qid::LEN }>()?;
        let mut from = Reader::new(&bytes);
        Ok(Qid {
            kind: Field::get(&mut from)?,
            version: Field::get(&mut from)?,
            path: Field::get(&mut from)?,
        })
    }

    #[inline(always)]
    fn put(&self, to: &mut Writer<'_>) -> Option<()> {
        let mut to = to.part(Qid::LEN)?;
        self.kind.put(&mut to)?;
        self.version.put(&mut to)?;
        self.path.put(&mut to)
    }

    fn show(&self) -> impl fmt::Debug {
        *self
    }
}

macro_rules! numbers {
    ($type:ty: $($(#[$meta:meta])* $name:ident = $value:expr,)*) => {
        $($(#[$meta])* pub const $name: $type = $value;)*
    };
}

// Message types. A T-message's is even, its answer's is one more.
numbers! { u8:
    /// Error answer of 9P2000.L.
    RLERROR = 7,
    /// Asks for file system figures.
    TSTATFS = 8,
    /// Answers [`TSTATFS`].
    RSTATFS = 9,
    /// Opens a fid.
    TLOPEN = 12,
    /// Answers [`TLOPEN`].
    RLOPEN = 13,
    /// Creates a regular file and opens it.
    TLCREATE = 14,
    /// Answers [`TLCREATE`].
    RLCREATE = 15,
    /// Creates a symbolic link.
    TSYMLINK = 16,
    /// Answers [`TSYMLINK`].
    RSYMLINK = 17,
    /// Creates a special file.
    TMKNOD = 18,
    /// Answers [`TMKNOD`].
    RMKNOD = 19,
    /// Renames a fid's file.
    TRENAME = 20,
    /// Answers [`TRENAME`].
    RRENAME = 21,
    /// Reads a symbolic link.
    TREADLINK = 22,
    /// Answers [`TREADLINK`].
    RREADLINK = 23,
    /// Asks for a file's attributes.
    TGETATTR = 24,
    /// Answers [`TGETATTR`].
    RGETATTR = 25,
    /// Changes a file's attributes.
    TSETATTR = 26,
    /// Answers [`TSETATTR`].
    RSETATTR = 27,
    /// Makes a fid from which an extended attribute is read.
    TXATTRWALK = 30,
    /// Answers [`TXATTRWALK`].
    RXATTRWALK = 31,
    /// Makes of a fid one through which an extended attribute is written.
    TXATTRCREATE = 32,
    /// Answers [`TXATTRCREATE`].
    RXATTRCREATE = 33,
    /// Reads directory entries.
    TREADDIR = 40,
    /// Answers [`TREADDIR`].
    RREADDIR = 41,
    /// Flushes a file to storage.
    TFSYNC = 50,
    /// Answers [`TFSYNC`].
    RFSYNC = 51,
    /// Takes or drops a record lock.
    TLOCK = 52,
    /// Answers [`TLOCK`].
    RLOCK = 53,
    /// Asks for a conflicting record lock.
    TGETLOCK = 54,
    /// Answers [`TGETLOCK`].
    RGETLOCK = 55,
    /// Creates a hard link.
    TLINK = 70,
    /// Answers [`TLINK`].
    RLINK = 71,
    /// Creates a directory.
    TMKDIR = 72,
    /// Answers [`TMKDIR`].
    RMKDIR = 73,
    /// Renames a directory entry.
    TRENAMEAT = 74,
    /// Answers [`TRENAMEAT`].
    RRENAMEAT = 75,
    /// Removes a directory entry.
    TUNLINKAT = 76,
    /// Answers [`TUNLINKAT`].
    RUNLINKAT = 77,
    /// Begins a session.
    TVERSION = 100,
    /// Answers [`TVERSION`].
    RVERSION = 101,
    /// Begins an authentication; no 9P2000.L client in use sends it.
    TAUTH = 102,
    /// Answers [`TAUTH`].
    RAUTH = 103,
    /// Makes a fid of the root.
    TATTACH = 104,
    /// Answers [`TATTACH`].
    RATTACH = 105,
    /// Error answer of 9P2000 and 9P2000.u (a string); not of 9P2000.L.
    RERROR = 107,
    /// Cancels a request.
    TFLUSH = 108,
    /// Answers [`TFLUSH`].
    RFLUSH = 109,
    /// Makes a fid by going down a path.
    TWALK = 110,
    /// Answers [`TWALK`].
    RWALK = 111,
    /// Reads a file.
    TREAD = 116,
    /// Answers [`TREAD`].
    RREAD = 117,
    /// Writes a file.
    TWRITE = 118,
    /// Answers [`TWRITE`].
    RWRITE = 119,
    /// Gives a fid back.
    TCLUNK = 120,
    /// Answers [`TCLUNK`].
    RCLUNK = 121,
    /// Removes a fid's file and gives the fid back.
    TREMOVE = 122,
    /// Answers [`TREMOVE`].
    RREMOVE = 123,
}

/// The tag of Tversion, which has no other requests around it.
pub const NOTAG: u16 = u16::MAX;
/// "No fid": an `afid` without authentication.
pub const NOFID: u32 = u32::MAX;
/// "No numeric user": `n_uname` of a Tattach that goes by its `uname`.
pub const NONUNAME: u32 = u32::MAX;
/// Most names in one Twalk.
pub const MAXWELEM: usize = 16;
/// The dialect of this crate, as Tversion and Rversion spell it.
pub const VERSION_9P2000_L: &[u8] = b"9P2000.L";
/// Rversion's word for "none that you offered".
pub const VERSION_UNKNOWN: &[u8] = b"unknown";
/// What Linux reserves in msize for the header of a read or write (`P9_IOHDRSZ`): iounit is msize less this.
pub const IOHDRSZ: u32 = 24;
/// What Linux reserves in msize for the header of a Treaddir's answer (`P9_READDIRHDRSZ`).
pub const READDIRHDRSZ: u32 = 24;

// Qid.kind. Only these three occur in 9P2000.L.
numbers! { u8:
    /// A directory.
    QTDIR = 0x80,
    /// A symbolic link.
    QTSYMLINK = 0x02,
    /// Anything else.
    QTFILE = 0x00,
}

// Tgetattr.mask and Rgetattr.valid. Linux's own name for them is P9_STATS_*.
numbers! { u64:
    /// `mode`.
    P9_GETATTR_MODE = 0x0001,
    /// `nlink`.
    P9_GETATTR_NLINK = 0x0002,
    /// `uid`.
    P9_GETATTR_UID = 0x0004,
    /// `gid`.
    P9_GETATTR_GID = 0x0008,
    /// `rdev`.
    P9_GETATTR_RDEV = 0x0010,
    /// `atime_sec`, `atime_nsec`.
    P9_GETATTR_ATIME = 0x0020,
    /// `mtime_sec`, `mtime_nsec`.
    P9_GETATTR_MTIME = 0x0040,
    /// `ctime_sec`, `ctime_nsec`.
    P9_GETATTR_CTIME = 0x0080,
    /// `qid`.
    P9_GETATTR_INO = 0x0100,
    /// `size`.
    P9_GETATTR_SIZE = 0x0200,
    /// `blocks` and `blksize`.
    P9_GETATTR_BLOCKS = 0x0400,
    /// `btime_sec`, `btime_nsec`.
    P9_GETATTR_BTIME = 0x0800,
    /// `generation`.
    P9_GETATTR_GEN = 0x1000,
    /// `data_version`.
    P9_GETATTR_DATA_VERSION = 0x2000,
    /// What stat(2) shows: everything up to `P9_GETATTR_BLOCKS`.
    P9_GETATTR_BASIC = 0x07ff,
    /// All of them.
    P9_GETATTR_ALL = 0x3fff,
}

// Tsetattr.valid. Linux's own name for them is P9_ATTR_*.
numbers! { u32:
    /// Set `mode`.
    P9_SETATTR_MODE = 0x0001,
    /// Set `uid`.
    P9_SETATTR_UID = 0x0002,
    /// Set `gid`.
    P9_SETATTR_GID = 0x0004,
    /// Set `size`.
    P9_SETATTR_SIZE = 0x0008,
    /// Set the access time: to now without `P9_SETATTR_ATIME_SET`.
    P9_SETATTR_ATIME = 0x0010,
    /// Set the modification time: to now without `P9_SETATTR_MTIME_SET`.
    P9_SETATTR_MTIME = 0x0020,
    /// Set the change time to now.
    P9_SETATTR_CTIME = 0x0040,
    /// Set the access time to `atime_sec`, `atime_nsec`.
    P9_SETATTR_ATIME_SET = 0x0080,
    /// Set the modification time to `mtime_sec`, `mtime_nsec`.
    P9_SETATTR_MTIME_SET = 0x0100,
}

// Tlopen.flags and Tlcreate.flags: x86 Linux's open(2) flags, whatever the machines are.
numbers! { u32:
    /// The two bits of the access mode.
    P9_DOTL_ACCMODE = 0o3,
    /// Read.
    P9_DOTL_RDONLY = 0o0,
    /// Write.
    P9_DOTL_WRONLY = 0o1,
    /// Read and write.
    P9_DOTL_RDWR = 0o2,
    /// Neither: for ioctl(2) alone.
    P9_DOTL_NOACCESS = 0o3,
    /// `O_CREAT`.
    P9_DOTL_CREATE = 0o100,
    /// `O_EXCL`.
    P9_DOTL_EXCL = 0o200,
    /// `O_NOCTTY`.
    P9_DOTL_NOCTTY = 0o400,
    /// `O_TRUNC`.
    P9_DOTL_TRUNC = 0o1000,
    /// `O_APPEND`.
    P9_DOTL_APPEND = 0o2000,
    /// `O_NONBLOCK`.
    P9_DOTL_NONBLOCK = 0o4000,
    /// `O_DSYNC`.
    P9_DOTL_DSYNC = 0o10000,
    /// `FASYNC`.
    P9_DOTL_FASYNC = 0o20000,
    /// `O_DIRECT`.
    P9_DOTL_DIRECT = 0o40000,
    /// `O_LARGEFILE`.
    P9_DOTL_LARGEFILE = 0o100000,
    /// `O_DIRECTORY`.
    P9_DOTL_DIRECTORY = 0o200000,
    /// `O_NOFOLLOW`.
    P9_DOTL_NOFOLLOW = 0o400000,
    /// `O_NOATIME`.
    P9_DOTL_NOATIME = 0o1000000,
    /// `O_CLOEXEC`.
    P9_DOTL_CLOEXEC = 0o2000000,
    /// `__O_SYNC`: together with `P9_DOTL_DSYNC`, `O_SYNC`.
    P9_DOTL_SYNC = 0o4000000,
}

// Tunlinkat.flags.
numbers! { u32:
    /// Remove a directory, as rmdir(2) (`AT_REMOVEDIR`).
    P9_DOTL_AT_REMOVEDIR = 0x200,
}

// Tlock.kind, Tgetlock.kind, Rgetlock.kind.
numbers! { u8:
    /// Shared.
    P9_LOCK_TYPE_RDLCK = 0,
    /// Exclusive.
    P9_LOCK_TYPE_WRLCK = 1,
    /// None: drop it; in Rgetlock, nothing conflicts.
    P9_LOCK_TYPE_UNLCK = 2,
}

// Tlock.flags.
numbers! { u32:
    /// The client is ready to wait for the lock.
    P9_LOCK_FLAGS_BLOCK = 1,
    /// The client had the lock before the server restarted.
    P9_LOCK_FLAGS_RECLAIM = 2,
}

// Rlock.status.
numbers! { u8:
    /// The lock is taken or dropped.
    P9_LOCK_SUCCESS = 0,
    /// Somebody else has it.
    P9_LOCK_BLOCKED = 1,
    /// It failed.
    P9_LOCK_ERROR = 2,
    /// The server is in its grace period: only reclaims.
    P9_LOCK_GRACE = 3,
}

// Txattrcreate.flags, setxattr(2)'s own.
numbers! { u32:
    /// Fail when the attribute exists.
    P9_XATTR_CREATE = 1,
    /// Fail when the attribute does not exist.
    P9_XATTR_REPLACE = 2,
}
