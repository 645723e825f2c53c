//! The listening socket: taken over, or made at a path that nobody else uses.

use std::fs::{self, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use device::Listener;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, getsockname,
    getsockopt, listen as listen_on, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::fchownat;

use crate::config::{Access, reason};
use crate::inherited::own;

/// A socket that is removed when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode number.
    identity: (u64, u64),
}

impl SocketFile {
    /// Removes the socket, unless another program has put its own there meanwhile.
    pub fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(of: &Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
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

/// Listens at `path` for those of `access`; a socket left behind is replaced.
///
/// Nobody can connect before listen(2), so it comes last: until then the socket is this user's alone, and
/// afterwards it is as asked.
pub fn listen(path: &Path, access: Access) -> Result<(Listener, SocketFile), String> {
    check(path)?;
    let shown = path.display();
    if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path)
            .map_err(|error| format!("The old socket {shown} cannot be removed: {}.", reason(&error)))?;
    }
    let impossible = |error: Errno| format!("There can be no socket at {shown}: {}.", error.desc());
    let address = UnixAddr::new(path).map_err(impossible)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(impossible)?;
    let begun = SystemTime::now();
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(socket.as_raw_fd(), &address);
    umask(before);
    bound.map_err(impossible)?;
    // What is there is held from here on: whoever owns the directory can put something else in its place.
    let missing = |error: io::Error| format!("The socket {shown} is not there: {}.", reason(&error));
    let held = fs::File::options()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits())
        .open(path)
        .map_err(missing)?;
    let found = held.metadata().map_err(missing)?;
    let file = SocketFile {
        // Absolute, so that it is found again whatever the working directory is.
        path: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
        identity: identity(&found),
    };
    if access.group.is_some() || access.mode != 0o600 {
        if !is_new(&found, begun) {
            return Err(format!(
                "{shown} was replaced by somebody else while it was made."
            ));
        }
        open_to(&held, access).map_err(|why| format!("{shown} cannot be made accessible: {why}."))?;
    }
    listen_on(&socket, Backlog::MAXCONN).map_err(impossible)?;
    Ok((Listener::from(UnixListener::from(socket)), file))
}

/// Whether `found` can be the socket that was made after `begun`, and not another of this user's that was moved to its
/// place.
fn is_new(found: &Metadata, begun: SystemTime) -> bool {
    found.file_type().is_socket()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.nlink() == 1
        // The kernel's clock for files is up to a tick behind.
        && made(found).is_ok_and(|made| made + Duration::from_secs(1) >= begun)
}

/// When it was made; or moved, where the file system does not know that.
fn made(found: &Metadata) -> io::Result<SystemTime> {
    let changed = || u64::try_from(found.ctime()).map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s));
    found.created().or_else(|_| changed().map_err(io::Error::other))
}

/// Gives the socket that is `held` the group and permissions of `access`; the error is the reason.
fn open_to(held: &fs::File, access: Access) -> Result<(), String> {
    if let Some(group) = access.group {
        fchownat(held, "", None, Some(group), AtFlags::AT_EMPTY_PATH).map_err(|error| match error {
            Errno::EPERM => format!("this user is not a member of group {group}, nor root"),
            error => format!("group {group}: {}", error.desc()),
        })?;
    }
    // By way of procfs, because chmod(2) and its kin take no such descriptor (before Linux 6.6).
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    // A default ACL of the directory may name others, whom more permissions for the group would let in.
    match rustix::fs::removexattr(&path, "system.posix_acl_access") {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(format!("its access control list: {error}")),
    }
    fs::set_permissions(&path, Permissions::from_mode(access.mode)).map_err(|error| reason(&error))?;
    let found = held.metadata().map_err(|error| reason(&error))?;
    let grouped = access.group.is_none_or(|group| found.gid() == group.as_raw());
    if found.mode() & 0o7777 != access.mode || !grouped {
        return Err("the file system keeps no groups or permissions".to_string());
    }
    Ok(())
}

/// Takes over descriptor `fd`, which must be a listening Unix stream socket.
pub fn inherit(fd: RawFd) -> Result<Listener, String> {
    if fd <= 2 {
        return Err(format!("--fd {fd} is a standard stream, not a listening socket."));
    }
    let missing = || format!("--fd {fd}: no such descriptor is open; is it inherited?");
    let open = fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| missing())?;
    let fd = own(fd).ok_or_else(missing)?;
    let listening = getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false)
        && getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
        && local_family(&fd) == Some(AddressFamily::Unix);
    if !listening {
        return Err(format!(
            "The descriptor given with --fd ({}) is not a listening Unix stream socket.",
            open.display()
        ));
    }
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
    getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok()?.family()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_put_in_place_of_the_socket_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let begun = SystemTime::now();
        let (_listener, file) = listen(
            &path,
            Access {
                group: None,
                mode: 0o600,
            },
        )
        .unwrap();
        let look = || fs::symlink_metadata(&path).unwrap();
        assert!(is_new(&look(), begun));
        // Another of ours, made before.
        assert!(!is_new(&look(), SystemTime::now() + Duration::from_secs(2)));
        // One that has another name too.
        let other = dir.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        assert!(!is_new(&look(), begun));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(!is_new(&look(), begun));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(!is_new(&look(), begun));
        drop(file);
        assert!(path.is_symlink(), "it was not ours to remove");
    }
}
