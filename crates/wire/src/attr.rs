//! Tgetattr and Tsetattr.

use crate::Qid;
use crate::codec::{empty_messages, messages};

messages! { 'a:
    /// Asks for a file's attributes.
    Tgetattr = TGETATTR {
        /// The file's fid.
        fid: u32,
        /// `P9_GETATTR_*`: what is wanted.
        mask: u64,
    }

    /// A file's attributes. Times are seconds since 1970 (two's complement before it) and nanoseconds.
    #[derive(Default)]
    Rgetattr = RGETATTR {
        /// `P9_GETATTR_*`: what is true of the following.
        valid: u64,
        /// The file.
        qid: Qid,
        /// Type and mode.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Hard links.
        nlink: u64,
        /// A device's number, major and minor in Linux's encoding for user space (`new_encode_dev`).
        rdev: u64,
        /// Bytes.
        size: u64,
        /// Bytes that one read or write should have.
        blksize: u64,
        /// Units of 512 bytes that are allocated.
        blocks: u64,
        /// Last access.
        atime_sec: u64,
        /// Its nanoseconds.
        atime_nsec: u64,
        /// Last modification of the data.
        mtime_sec: u64,
        /// Its nanoseconds.
        mtime_nsec: u64,
        /// Last modification of the attributes.
        ctime_sec: u64,
        /// Its nanoseconds.
        ctime_nsec: u64,
        /// Creation. No Linux client asks for it.
        btime_sec: u64,
        /// Its nanoseconds.
        btime_nsec: u64,
        /// Inode generation (field `gen` of the protocol).
        generation: u64,
        /// No Linux client asks for it.
        data_version: u64,
    }

    /// Changes a file's attributes.
    #[derive(Default)]
    Tsetattr = TSETATTR {
        /// The file's fid.
        fid: u32,
        /// `P9_SETATTR_*`: what of the following is to be set.
        valid: u32,
        /// Mode; Linux leaves the type's bits in it.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Bytes.
        size: u64,
        /// Access time, as in [`Rgetattr`].
        atime_sec: u64,
        /// Its nanoseconds.
        atime_nsec: u64,
        /// Modification time, as in [`Rgetattr`].
        mtime_sec: u64,
        /// Its nanoseconds.
        mtime_nsec: u64,
    }
}

empty_messages! {
    /// All of it is set.
    Rsetattr = RSETATTR;
}
