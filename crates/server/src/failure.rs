//! Why a request fails: the errno of its Rlerror.

use std::io;

/// An errno for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    errno: i32,
    /// The host said so, not a limit of ours.
    host: bool,
}

impl Failure {
    /// A verdict of the server's own.
    pub(crate) const fn new(errno: i32) -> Failure {
        Failure { errno, host: false }
    }

    /// What Rlerror carries: 1..=4095, which is all that Linux takes for an errno.
    pub(crate) fn errno(self) -> u32 {
        u32::try_from(self.errno)
            .ok()
            .filter(|errno| (1..4096).contains(errno))
            .unwrap_or(libc::EIO.unsigned_abs())
    }

    /// Whether the host is out of descriptors, so that giving some back may help.
    pub(crate) fn is_exhaustion(self) -> bool {
        self.host && matches!(self.errno, libc::EMFILE | libc::ENFILE)
    }

    /// As a verdict that stands: the request had an effect, so it is not begun again.
    pub(crate) fn settled(self) -> Failure {
        Failure { host: false, ..self }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            host: true,
        }
    }
}
