//! Tversion: the dialect and the largest message of a session. Rlerror: the answer of any request that failed.

use crate::codec::{Message, messages};

messages! { 'a:
    /// Begins a session and ends the one before it: all fids are gone.
    Tversion<'a> = TVERSION {
        /// Bytes of the largest message that the client takes or sends.
        msize: u32,
        /// The dialect that the client speaks, e.g. [`VERSION_9P2000_L`](crate::VERSION_9P2000_L).
        version: &'a [u8],
    }

    /// The session's terms.
    Rversion<'a> = RVERSION {
        /// Bytes of the largest message in this session, at most what the client offered.
        msize: u32,
        /// The dialect of this session, or [`VERSION_UNKNOWN`](crate::VERSION_UNKNOWN).
        version: &'a [u8],
    }

    /// Answers any request that failed.
    Rlerror = RLERROR {
        /// Linux's errno, x86 numbering. Linux's client takes one outside 1..=4095 for a broken server.
        ecode: u32,
    }
}

/// Writes an Rlerror to the front of `buf` and says how many bytes it took (11); `None` when `buf` is shorter.
#[inline]
pub fn encode_lerror(buf: &mut [u8], tag: u16, errno: u32) -> Option<usize> {
    Rlerror { ecode: errno }.encode(tag, buf)
}
