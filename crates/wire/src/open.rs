//! Tlopen and Tlcreate: a fid becomes an open file.

use crate::Qid;
use crate::codec::messages;

messages! { 'a:
    /// Opens a fid.
    Tlopen = TLOPEN {
        /// The fid; not open yet.
        fid: u32,
        /// `P9_DOTL_*`, open(2)'s flags in x86 numbering.
        flags: u32,
    }

    /// The fid is open.
    Rlopen = RLOPEN {
        /// The file.
        qid: Qid,
        /// Bytes that one read or write should have at most; 0: as many as msize allows.
        iounit: u32,
    }

    /// Creates a regular file in a directory and opens it. The fid of the directory becomes that of the file.
    Tlcreate<'a> = TLCREATE {
        /// The directory's fid, then the file's.
        fid: u32,
        /// The file's name.
        name: &'a [u8],
        /// `P9_DOTL_*`, open(2)'s flags in x86 numbering.
        flags: u32,
        /// The file's mode, the client's umask already applied.
        mode: u32,
        /// The file's group.
        gid: u32,
    }

    /// The file exists and the fid is open.
    Rlcreate = RLCREATE {
        /// The file.
        qid: Qid,
        /// As in [`Rlopen`].
        iounit: u32,
    }
}
