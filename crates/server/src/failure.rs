//! Why a request fails: the errno of its Rlerror.

use std::fmt;
use std::io;

/// Set when the host said so, and it is not a limit of ours.
const HOST: u32 = 1 << 31;

/// An errno for the guest.
///
/// One word, because a `Result` of an [`Outcome`](crate::Outcome) is on every request's way: with a narrower field in
/// it the compiler writes the result byte by byte and reads it as a word, and such a read waits until all stores
/// before it, those into the guest's memory too, are in the cache (some 50 ns).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure(u32);

impl Failure {
    /// A verdict of the server's own.
    pub(crate) const fn new(errno: i32) -> Failure {
        // All that Linux takes for an errno in an Rlerror.
        Failure(match errno {
            1..4096 => errno.unsigned_abs(),
            _ => libc::EIO.unsigned_abs(),
        })
    }

    /// What Rlerror carries: 1..=4095.
    pub(crate) fn errno(self) -> u32 {
        self.0 & !HOST
    }

    /// Whether the host is out of descriptors, so that giving some back may help.
    pub(crate) fn is_exhaustion(self) -> bool {
        const EMFILE: u32 = HOST | libc::EMFILE.unsigned_abs();
        const ENFILE: u32 = HOST | libc::ENFILE.unsigned_abs();
        matches!(self.0, EMFILE | ENFILE)
    }

    /// As a verdict that stands: the request had an effect, so it is not begun again.
    pub(crate) fn settled(self) -> Failure {
        Failure(self.errno())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.0 & HOST != 0 { "host" } else { "server" };
        write!(f, "errno {} of the {who}", self.errno())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure(Failure::new(error.raw_os_error().unwrap_or(libc::EIO)).0 | HOST)
    }
}
