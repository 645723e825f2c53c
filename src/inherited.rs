//! Descriptors that whoever started the program left open for it.
//!
//! They are told from this program's own by a flag: what it opens itself is close-on-exec from the beginning, and what
//! was inherited is not, or exec would have closed it.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::unistd::{dup2_stdin, dup2_stdout};

/// Makes the inherited descriptor `fd` this program's own. `None` for one that is not open, a standard stream, one that this
/// program has opened, and one that was taken over before.
pub fn own(fd: RawFd) -> Option<OwnedFd> {
    if fd <= 2 {
        return None;
    }
    // SAFETY: no memory is passed, and asking changes nothing, whoever owns the descriptor.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return None;
    }
    // SAFETY: no memory is passed; nobody else owns the descriptor (see the module's text).
    let set = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if set < 0 {
        return None;
    }
    // SAFETY: it is open and inherited, so nothing in this program owns it; the flag that was just set keeps it from being
    // owned a second time.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes all inherited descriptors that have not been taken over: a worker that is taken over must not find a directory of
/// the host among them.
pub fn close_others() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in numbers {
        drop(own(fd));
    }
}

/// Puts the ends of pipes that lead nowhere in the place of stdin and stdout, of which the worker has no use: they are what the
/// program was started with, a terminal that somebody types at or a directory of the host.
pub fn leave_stdin_and_stdout() -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    dup2_stdin(reader)?;
    Ok(dup2_stdout(writer)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn what_the_program_has_opened_itself_is_not_taken_over() {
        let file = fs::File::open("/dev/null").unwrap();
        for fd in [-1, 0, 2, file.as_raw_fd(), 1 << 20] {
            assert!(own(fd).is_none(), "{fd}");
        }
        // As it would be inherited.
        let fd = fs::File::open("/dev/null").unwrap().into_raw_fd();
        // SAFETY: no memory is passed, and the descriptor is nobody's now.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, 0);
        let owned = own(fd).unwrap();
        assert!(own(fd).is_none());
        drop(owned);
    }
}
