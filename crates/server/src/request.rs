//! What passes between a device and the session.

use std::os::fd::OwnedFd;

use host::{Attr, Identity, IoVec};

/// Longest T-message (without a Twrite's payload) that is copied and decoded; a longer one gets EMSGSIZE.
/// The largest honest one is a Twalk of 16 names of 255 bytes: 4,129 bytes; Tsymlink 4,383 (name and PATH_MAX).
pub const MESSAGE_MAX: usize = 16 * 1024;

/// Bytes of a Twrite before its payload: size, type, tag, fid, offset, count.
pub const TWRITE_HEADER: usize = 23;

/// How many bytes of a T-message the device must copy into private memory, told from its first 7 bytes
/// (`size[4] type[1] tag[2]`) and the length of the readable stream: all of it, but only 23 bytes of a Twrite,
/// and never more than [`MESSAGE_MAX`].
pub fn copy_len(header: &[u8; 7], readable: usize) -> usize {
    let size = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let size = usize::try_from(size)
        .unwrap_or(usize::MAX)
        .clamp(7, readable.max(7));
    let limit = if header[4] == 118 {
        TWRITE_HEADER
    } else {
        MESSAGE_MAX
    };
    size.min(limit)
}

/// Most bytes that the T-message `message` moves beside itself: the count of a Tread, a Twrite or a Treaddir, 0 for
/// all others. A device may let what moves much wait for what does not; the buffers alone do not tell, because
/// Linux before 6.1 gives every request a reply buffer of msize bytes (`p9_tag_alloc`).
pub fn moves(message: &[u8]) -> usize {
    match (message.get(4), message.get(19..23)) {
        // size[4] type[1] tag[2] fid[4] offset[8] count[4], all three.
        (Some(116 | 118 | 40), Some(&[a, b, c, d])) => {
            usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX)
        }
        _ => 0,
    }
}

/// One request as the device holds it. The memory behind `payload` and `reply` stays mapped until the request is
/// completed.
#[derive(Debug)]
pub struct Request<'a> {
    /// Private copy of the T-message's first [`copy_len`] bytes.
    pub message: &'a [u8],
    /// The readable stream after `message` (a Twrite's payload; the device cuts it to start there).
    pub payload: &'a [IoVec],
    /// The writable stream, all of it.
    pub reply: &'a [IoVec],
    /// The session's own note between two calls for one request; 0 at first (bytes moved so far).
    pub progress: &'a mut u64,
    /// Bytes of the payload to move at a time: with [`How::Inline`] a call comes back after so many
    /// ([`Outcome::More`]), so that what is small and ready need not wait long.
    pub slice: usize,
}

/// Reusable buffers of one thread, so that requests allocate nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Sub-ranges of guest memory for one system call.
    pub iov: Vec<IoVec>,
    /// Directory listings, xattr lists, long replies.
    pub bytes: Vec<u8>,
    /// A second one (getdents64).
    pub entries: Vec<u8>,
    /// Attributes of the objects of several requests.
    pub(crate) attrs: Vec<Attr>,
    /// Directories that a walk is going through.
    pub(crate) passed: Vec<(OwnedFd, Identity)>,
}

/// At least `len` bytes of a buffer that is kept from request to request, as those of [`Scratch`] are.
pub(crate) fn room(buf: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buf.len() < len {
        buf.resize(len, 0);
    }
    &mut buf[..len]
}

/// What the calling thread may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The queue thread: answer what cannot block, else [`Outcome::Defer`] without any effect so far.
    Inline,
    /// A pool thread: block as long as it takes.
    Blocking,
    /// The queue is being stopped: as `Blocking`, but never [`Outcome::Wait`]; a lock that is not granted is
    /// answered as blocked, so that the client asks again later.
    Last,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The reply is in the writable stream: push it with this used length (= message size; 0 when not even an
    /// Rlerror fits).
    Done(u32),
    /// A large payload: one slice is moved, call again for the next after serving what is small and ready.
    More,
    /// Call again with [`How::Blocking`] on a thread that may block. Only from [`How::Inline`].
    Defer,
    /// Cannot be answered yet (a blocking Tlock that is not granted): call again after [`crate::Session::wake_count`]
    /// has changed, or after `retry_ms`. Any thread, no effect so far.
    Wait {
        /// Milliseconds until the next try at the latest.
        retry_ms: u32,
    },
    /// A Tflush: its reply of `len` bytes is already in the writable stream, but must be pushed only when no
    /// request with tag `oldtag` is in flight any more: cancel it (used length 0) when it waits or has not begun,
    /// else let it end first.
    Flush {
        /// The tag to flush.
        oldtag: u16,
        /// Used length of the Rflush.
        len: u32,
    },
}
