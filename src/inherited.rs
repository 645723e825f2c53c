//! Descriptors that whoever started the program left open for it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Makes the inherited descriptor `fd` our own, to be closed on exec; None when there is none of that number: it is not
/// open, or this program has opened it itself, or it was taken before.
pub fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: asks about a number, whatever it means.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    // What has come through exec is not closed by it, and all that this program opens is (O_CLOEXEC).
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return None;
    }
    // SAFETY: changes a flag of a descriptor that is not in use here.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: open, and nobody's here: it is not one of our own, by its flag, which is set now, so that this happens once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn what_is_our_own_is_nobodys_to_take_and_what_is_inherited_is_taken_once() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(own(file.as_raw_fd()).is_none());
        assert!(own(-1).is_none());
        assert!(own(i32::MAX).is_none());
        let fd = file.into_raw_fd();
        // As one that was inherited.
        // SAFETY: the descriptor was given up a line ago, and is nobody else's.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, 0);
        let owned = own(fd).unwrap();
        assert!(own(fd).is_none());
        drop(owned);
        assert!(own(fd).is_none());
    }
}
