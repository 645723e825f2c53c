//! Descriptors that whoever started the program left open for it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Makes descriptor `fd`, which is open and which nothing else in this program knows of, our own.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: called once, at the start, for the number on the command line, before this program has opened anything
    // but its standard streams.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
