//! The listening socket: taken over, or made at a path that nobody else uses.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use device::Listener;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use nix::sys::stat::{Mode, umask};

use crate::config::reason;
use crate::inherited::own;

/// A socket that is removed when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket, unless another program has put its own there meanwhile.
    pub fn remove(&self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::symlink_metadata(path)?.ino())
}

/// Whether `path` can be listened on: free, or left behind by a program that is gone. Changes nothing.
pub fn check(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            return match parent.map(fs::metadata) {
                Some(Err(error)) => Err(format!("There can be no socket at {shown}: {}.", reason(&error))),
                _ => Ok(()),
            };
        }
        Err(error) => return Err(format!("There can be no socket at {shown}: {}.", reason(&error))),
    };
    if !found.file_type().is_socket() {
        return Err(format!("{shown} exists and is not a socket; it is left alone."));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(format!("{shown} is in use: another program listens there.")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // A full backlog is a sign of life too.
        Err(error) => Err(format!("{shown} is in use, or not ours: {}.", reason(&error))),
    }
}

/// Listens at `path`, for this user only; a socket left behind is replaced.
pub fn listen(path: &Path) -> Result<(Listener, SocketFile), String> {
    check(path)?;
    if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path).map_err(|error| {
            format!(
                "The old socket {} cannot be removed: {}.",
                path.display(),
                reason(&error)
            )
        })?;
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(|error| {
        format!(
            "There can be no socket at {}: {}.",
            path.display(),
            reason(&error)
        )
    })?;
    let inode = inode(path).map_err(|error| format!("The socket is not there: {}.", reason(&error)))?;
    // Absolute, so that it is found again whatever the working directory is.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    Ok((Listener::from(listener), SocketFile { path, inode }))
}

/// Takes over descriptor `fd`, which must be a listening Unix stream socket.
pub fn inherit(fd: RawFd) -> Result<Listener, String> {
    if fd <= 2 {
        return Err(format!("--fd {fd} is a standard stream, not a listening socket."));
    }
    let open = fs::read_link(format!("/proc/self/fd/{fd}"))
        .map_err(|_| format!("--fd {fd}: no such descriptor is open; is it inherited?"))?;
    let fd = own(fd);
    let listening = getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false)
        && getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
        && local_family(&fd) == Some(AddressFamily::Unix);
    if !listening {
        return Err(format!(
            "The descriptor given with --fd ({}) is not a listening Unix stream socket.",
            open.display()
        ));
    }
    let close_on_exec = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    close_on_exec.map_err(|error| format!("The descriptor given with --fd cannot be used: {error}."))?;
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(false).map_err(|error| {
        format!(
            "The descriptor given with --fd cannot be used: {}.",
            reason(&error)
        )
    })?;
    Ok(Listener::from(listener))
}

fn local_family(fd: &OwnedFd) -> Option<AddressFamily> {
    use std::os::fd::AsRawFd;
    getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok()?.family()
}
