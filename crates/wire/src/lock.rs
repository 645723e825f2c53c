//! Tlock and Tgetlock: POSIX record locks.

use crate::codec::messages;

messages! { 'a:
    /// Takes or drops a lock.
    Tlock<'a> = TLOCK {
        /// The open file's fid.
        fid: u32,
        /// `P9_LOCK_TYPE_*` (field `type` of the protocol).
        kind: u8,
        /// `P9_LOCK_FLAGS_*`.
        flags: u32,
        /// First byte.
        start: u64,
        /// Bytes; 0: to the end of the file, wherever it will be.
        length: u64,
        /// The process on the client.
        proc_id: u32,
        /// The client; Linux gives its node name.
        client_id: &'a [u8],
    }

    /// What became of it.
    Rlock = RLOCK {
        /// `P9_LOCK_SUCCESS` and so on.
        status: u8,
    }

    /// Asks for a lock that conflicts with this one.
    Tgetlock<'a> = TGETLOCK {
        /// The open file's fid.
        fid: u32,
        /// `P9_LOCK_TYPE_*` (field `type` of the protocol).
        kind: u8,
        /// First byte.
        start: u64,
        /// Bytes; 0: to the end of the file, wherever it will be.
        length: u64,
        /// The process on the client.
        proc_id: u32,
        /// The client.
        client_id: &'a [u8],
    }

    /// A lock that conflicts, or the request's own fields with `P9_LOCK_TYPE_UNLCK`.
    Rgetlock<'a> = RGETLOCK {
        /// `P9_LOCK_TYPE_*` (field `type` of the protocol).
        kind: u8,
        /// First byte.
        start: u64,
        /// Bytes; 0: to the end of the file, wherever it will be.
        length: u64,
        /// Its process.
        proc_id: u32,
        /// Its client.
        client_id: &'a [u8],
    }
}
