//! What both mapped modes do alike: every object of the guest but a directory is a regular file of the process's
//! own user on the host, a symlink's target is that file's content, and owner, group, mode and device number are
//! [`Kept`] elsewhere. Nothing here needs a privilege.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::attr::{Attr, Caller, FileType, Identity};
use crate::context::Context;
use crate::name::Name;
use crate::share::Object;
use crate::sys::attr::{Record, Statx};
use crate::sys::{self, error};
use crate::virtfs::{Kept, some_id};

/// What is kept of a new object of this owner. An owner that names nobody is not kept, as in QEMU: the host's shows.
pub fn of_owner(owner: Caller, mode: u32, rdev: Option<u64>) -> Kept {
    Kept {
        uid: some_id(owner.uid),
        gid: some_id(owner.gid),
        mode: Some(mode),
        rdev,
    }
}

/// What is kept of a new regular file.
pub fn of_file(owner: Caller, mode: u32) -> Kept {
    of_owner(owner, libc::S_IFREG | (mode & 0o7777), None)
}

/// What is kept of a new directory.
pub fn of_directory(owner: Caller, mode: u32) -> Kept {
    of_owner(owner, libc::S_IFDIR | (mode & 0o7777), None)
}

/// What is kept of a new symlink.
pub fn of_symlink(owner: Caller) -> Kept {
    of_owner(owner, libc::S_IFLNK | 0o777, None)
}

/// What mknod keeps; the device number always and as it was sent, as in QEMU. EPERM and EINVAL as mknod(2):
/// directories and symlinks are made otherwise. No type means a regular file.
pub fn of_node(owner: Caller, mode: u32, rdev: u64) -> io::Result<Kept> {
    let kind = match mode & libc::S_IFMT {
        0 => libc::S_IFREG,
        kind @ (libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK) => kind,
        libc::S_IFDIR => return Err(error(libc::EPERM)),
        _ => return Err(error(libc::EINVAL)),
    };
    Ok(of_owner(owner, kind | (mode & 0o7777), Some(rdev)))
}

/// Puts the guest's attributes of the object of this record into `attr`.
pub fn attr(
    context: &Context,
    stat: &impl Record,
    any: BorrowedFd<'_>,
    kept: &Kept,
    attr: &mut Attr,
) -> io::Result<()> {
    context.attr(stat, any, attr)?;
    attr.mode = kept.guest_mode(attr.mode);
    attr.uid = kept.uid.unwrap_or(attr.uid);
    attr.gid = kept.gid.unwrap_or(attr.gid);
    attr.rdev = kept.rdev.unwrap_or(attr.rdev);
    attr.file_type = FileType::from_mode(attr.mode);
    Ok(())
}

/// The guest's identity of the object of this record.
pub fn identity(context: &Context, stat: &Statx, any: BorrowedFd<'_>, kept: &Kept) -> io::Result<Identity> {
    let mut id = context.identity(stat, any)?;
    id.file_type = FileType::from_mode(kept.guest_mode(stat.stx_mode.into()));
    Ok(id)
}

/// The mode to keep after a chmod: the new permission bits, the type that the object has for the guest now. What
/// the client sends as type is ignored: some clients send none, and chmod cannot change it.
pub fn changed_mode(kept: &Kept, host_mode: u32, mode: u32) -> u32 {
    (kept.guest_mode(host_mode) & libc::S_IFMT) | (mode & 0o7777)
}

/// `DT_*` for a mode.
pub fn d_type(mode: u32) -> u8 {
    // The kernel's own relation between the two.
    ((mode & libc::S_IFMT) >> 12) as u8
}

/// Makes an empty host file; EEXIST when the name is taken, whatever by.
pub fn make_file(context: &Context, dir: &Object<'_>, name: &Name, flags: i32) -> io::Result<OwnedFd> {
    let flags = (flags & !libc::O_TRUNC) | libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY;
    sys::path::open_beneath(dir.path, name.as_c_str(), flags, context.options().fmode)
}

/// Makes a host file whose content is a symlink's target: the bytes, no terminator.
pub fn make_symlink(context: &Context, dir: &Object<'_>, name: &Name, target: &[u8]) -> io::Result<OwnedFd> {
    if target.is_empty() {
        // symlink(2)'s answer.
        return Err(error(libc::ENOENT));
    }
    let file = make_file(context, dir, name, libc::O_RDWR)?;
    if let Err(e) = write_all(file.as_fd(), target, 0) {
        context.undo(dir.path, name, file.as_fd(), false);
        return Err(e);
    }
    Ok(file)
}

/// Makes a host directory; gives an `O_PATH` descriptor of it.
pub fn make_directory(context: &Context, dir: &Object<'_>, name: &Name) -> io::Result<OwnedFd> {
    sys::path::mkdir(dir.path, name.as_c_str(), context.options().dmode)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    match sys::path::open_beneath(dir.path, name.as_c_str(), flags, 0) {
        Ok(made) => Ok(made),
        Err(e) => {
            // Only a directory that is still empty goes.
            let _ = sys::path::unlink(dir.path, name.as_c_str(), true);
            Err(e)
        }
    }
}

/// Writes all of `bytes` at `at`.
pub fn write_all(file: BorrowedFd<'_>, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match sys::io::write_bytes(file, rest, at + done as u64)? {
            0 => return Err(error(libc::EIO)),
            count => done += count,
        }
    }
    Ok(())
}

/// Reads from the start of `file` until `buf` is full or the file ends.
pub fn read_start(file: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match sys::io::read_bytes(file, rest, done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// The target of the symlink that `object` is for the guest: a host-made one is read as such, ours is a file.
/// EINVAL when it is no symlink for the guest.
pub fn readlink(context: &Context, object: &Object<'_>, kept: &Kept, buf: &mut [u8]) -> io::Result<usize> {
    match object.host_type {
        libc::S_IFLNK => sys::path::read_link(object.path, c"", buf),
        host if kept.guest_mode(host) & libc::S_IFMT == libc::S_IFLNK => {
            let file = context.reopen(object.path, libc::O_RDONLY)?;
            read_start(file.as_fd(), buf)
        }
        _ => Err(error(libc::EINVAL)),
    }
}

/// Moves ctime and nothing else; anybody who may write to the file system may.
pub fn touch(object: &Object<'_>) -> io::Result<()> {
    sys::attr::chown(object.path, u32::MAX, u32::MAX)
}
