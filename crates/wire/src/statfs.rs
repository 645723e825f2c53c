//! Tstatfs.

use crate::codec::messages;

messages! { 'a:
    /// Asks for the figures of a file's file system.
    Tstatfs = TSTATFS {
        /// The file's fid.
        fid: u32,
    }

    /// A file system's figures, as in statfs(2).
    #[derive(Default)]
    Rstatfs = RSTATFS {
        /// Its magic number (field `type` of the protocol).
        kind: u32,
        /// Bytes of a block.
        bsize: u32,
        /// Blocks in all.
        blocks: u64,
        /// Blocks that are free.
        bfree: u64,
        /// Blocks that are free to users other than root.
        bavail: u64,
        /// Inodes in all.
        files: u64,
        /// Inodes that are free.
        ffree: u64,
        /// Its identity, both words in one.
        fsid: u64,
        /// Bytes of a name at most.
        namelen: u32,
    }
}
