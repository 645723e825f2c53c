//! The modes in which owner, mode and special files are the host's own: passthrough and squash. They differ in one
//! thing, what becomes of an owner change that the host refuses, and that is their [`OwnerRule`].

use std::ffi::{CStr, CString};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::acl;
use crate::attr::{Attr, Caller, Identity};
use crate::context::Context;
use crate::mode::ShareMode;
use crate::name::Name;
use crate::share::Object;
use crate::sys;

/// What a mode makes of an owner that the host refused to give an object.
pub trait OwnerRule: Send + Sync {
    /// The outcome that the guest sees. Also of the mode of a NEW object that did not get its owner: where files
    /// belong to somebody fixed (FAT, some network file systems), their creator may not even chmod them.
    fn refused(error: io::Error) -> io::Result<()>;
}

/// A mode that keeps everything in the host's own objects.
pub struct HostObjects<R: OwnerRule> {
    context: Arc<Context>,
    rule: PhantomData<R>,
}

/// The most bytes of xattr names the kernel gives (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65536;

/// For what makes a name and no object.
const NOBODY: Caller = Caller {
    uid: u32::MAX,
    gid: u32::MAX,
};

/// Permission bits of an object until its owner is right: at most the owner's, who is this process, so that nobody
/// else has a moment to open it.
const CLOSED: u32 = 0o700;

impl<R: OwnerRule> HostObjects<R> {
    /// The mode on the share of `context`.
    pub fn new(context: Arc<Context>) -> HostObjects<R> {
        HostObjects {
            context,
            rule: PhantomData,
        }
    }

    /// False when the host refused it and the guest shall not see that.
    fn chown(&self, fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<bool> {
        match sys::attr::chown(fd, uid, gid) {
            // EINVAL: an id that the process's user namespace does not have; EOVERFLOW: that the mount does not have. The
            // others: a file system without owners.
            Err(e)
                if matches!(
                    sys::errno(&e),
                    libc::EPERM | libc::EINVAL | libc::EOVERFLOW | libc::EOPNOTSUPP | libc::ENOSYS
                ) =>
            {
                R::refused(e).map(|()| false)
            }
            other => other.map(|()| true),
        }
    }

    /// A new object did not get its owner. Where ids are restricted, it must not stay with an owner that the guest
    /// could not give: EPERM.
    fn may_keep_owner(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let ids = &self.context.options().ids;
        if ids.is_identity() {
            return Ok(());
        }
        let stat = sys::attr::stat(fd)?;
        match ids.gives_uid(stat.stx_uid) && ids.gives_gid(stat.stx_gid) {
            true => Ok(()),
            false => Err(sys::error(libc::EPERM)),
        }
    }

    /// Gives a new object its owner, then its mode: chown clears set-id bits, and what the parent directory has
    /// passed on (set-group-id, an ACL) shall not change the mode that was asked for.
    fn finish(&self, fd: BorrowedFd<'_>, kind: u32, mode: u32, owner: Caller) -> io::Result<()> {
        if (owner.uid != u32::MAX || owner.gid != u32::MAX) && !self.chown(fd, owner.uid, owner.gid)? {
            self.may_keep_owner(fd)?;
        }
        if kind == libc::S_IFLNK {
            return Ok(());
        }
        match self.context.chmod(fd, kind, mode) {
            Err(e) if sys::errno(&e) == libc::EPERM => R::refused(e),
            other => other,
        }
    }

    /// Whether a new file in `dir` has its owner from the first moment, so that it may have its mode, too: it shall
    /// belong to this process's own user and group, and the directory does not give it another group. A chown and a
    /// chmod each cost a journal entry, the look at the directory a tenth of one.
    fn is_born_right(&self, dir: &Object<'_>, mode: u32, owner: Caller) -> io::Result<bool> {
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 || !self.context.is_self(owner) {
            return Ok(false);
        }
        Ok(u32::from(sys::attr::stat(dir.path)?.stx_mode) & libc::S_ISGID == 0)
    }

    /// As `finish`, for a new regular file; leaves out what is so already.
    fn settle(&self, file: BorrowedFd<'_>, mode: u32, owner: Caller, ready: bool) -> io::Result<()> {
        let stat = match ready {
            true => sys::attr::stat(file)?,
            false => return self.finish(file, libc::S_IFREG, mode, owner),
        };
        // The directory's default ACL may have taken bits away.
        let right = u32::from(stat.stx_mode) & 0o7777 == mode & 0o7777
            && (owner.uid == u32::MAX || stat.stx_uid == owner.uid)
            && (owner.gid == u32::MAX || stat.stx_gid == owner.gid);
        match right {
            true => Ok(()),
            false => self.finish(file, libc::S_IFREG, mode, owner),
        }
    }

    /// As `finish`, for an object of type `kind` that has no descriptor yet; removes it on failure.
    fn made(&self, dir: &Object<'_>, name: &Name, kind: u32, mode: u32, owner: Caller) -> io::Result<()> {
        let fd = self
            .context
            .lookup(dir.path, name.as_c_str())
            .inspect_err(|_| self.discard(dir, name, kind))?;
        let stat = sys::attr::stat(fd.as_fd())?;
        // Somebody may have put another object in its place; a special file with a second name is not new.
        let there = u32::from(stat.stx_mode) & libc::S_IFMT;
        if there != kind || (kind != libc::S_IFDIR && stat.stx_nlink != 1) {
            return Err(sys::error(libc::ESTALE));
        }
        self.finish(fd.as_fd(), kind, mode, owner).inspect_err(|_| {
            self.context
                .undo(dir.path, name, fd.as_fd(), kind == libc::S_IFDIR)
        })
    }

    /// Removes what was just made and cannot be opened (no descriptor is left): a directory that is empty, anything
    /// else that is of its type and has one name.
    fn discard(&self, dir: &Object<'_>, name: &Name, kind: u32) {
        let Ok(stat) = sys::attr::stat_at(dir.path, name.as_c_str()) else {
            return;
        };
        let directory = kind == libc::S_IFDIR;
        if u32::from(stat.stx_mode) & libc::S_IFMT == kind && (directory || stat.stx_nlink == 1) {
            // The caller reports the first error.
            let _ = sys::path::unlink(dir.path, name.as_c_str(), directory);
        }
    }
}

impl<R: OwnerRule> ShareMode for HostObjects<R> {
    fn stat(&self, object: &Object<'_>, attr: &mut Attr) -> io::Result<()> {
        let stat = self.context.stat_without_birth(object)?;
        self.context.attr(&stat, object.path, attr)
    }

    fn identify(&self, object: &Object<'_>) -> io::Result<Identity> {
        let stat = self.context.stat(object)?;
        self.context.identity(&stat, object.path)
    }

    fn create(
        &self,
        dir: &Object<'_>,
        name: &Name,
        flags: i32,
        mode: u32,
        owner: Caller,
    ) -> io::Result<OwnedFd> {
        // The creator's descriptor is granted whatever the mode denies.
        let flags = flags | libc::O_CREAT | libc::O_EXCL;
        let ready = self.is_born_right(dir, mode, owner)?;
        let first = if ready { mode } else { mode & CLOSED };
        let file = self.context.making(dir.path, owner, &[], || {
            sys::path::open_beneath(dir.path, name.as_c_str(), flags, first)
        })?;
        self.settle(file.as_fd(), mode, owner, ready)
            .inspect_err(|_| self.context.undo(dir.path, name, file.as_fd(), false))?;
        Ok(file)
    }

    fn mkdir(&self, dir: &Object<'_>, name: &Name, mode: u32, owner: Caller) -> io::Result<()> {
        self.context.making(dir.path, owner, &[], || {
            sys::path::mkdir(dir.path, name.as_c_str(), mode & CLOSED)
        })?;
        self.made(dir, name, libc::S_IFDIR, mode, owner)
    }

    fn mknod(&self, dir: &Object<'_>, name: &Name, mode: u32, rdev: u64, owner: Caller) -> io::Result<()> {
        // No type bits mean a regular file, as in mknod(2).
        if matches!(mode & libc::S_IFMT, libc::S_IFREG | 0) {
            return self.create(dir, name, libc::O_WRONLY, mode, owner).map(drop);
        }
        let kind = mode & libc::S_IFMT;
        self.context.making(dir.path, owner, &[], || {
            sys::path::mknod(dir.path, name.as_c_str(), kind | mode & CLOSED, rdev)
        })?;
        self.made(dir, name, kind, mode, owner)
    }

    fn symlink(&self, dir: &Object<'_>, name: &Name, target: &[u8], owner: Caller) -> io::Result<()> {
        let target = CString::new(target).map_err(|_| sys::error(libc::EINVAL))?;
        self.context.making(dir.path, owner, &[], || {
            sys::path::symlink(&target, dir.path, name.as_c_str())
        })?;
        self.made(dir, name, libc::S_IFLNK, 0, owner)
    }

    fn readlink(&self, object: &Object<'_>, buf: &mut [u8]) -> io::Result<usize> {
        // The kernel answers ENOENT for an empty name on anything else.
        if object.host_type != libc::S_IFLNK {
            return Err(sys::error(libc::EINVAL));
        }
        sys::path::read_link(object.path, c"", buf)
    }

    fn link(&self, object: &Object<'_>, dir: &Object<'_>, name: &Name) -> io::Result<()> {
        self.context.making(dir.path, NOBODY, &[object.path], || {
            sys::path::link(self.context.proc(), object.path, dir.path, name.as_c_str())
        })
    }

    fn rename(&self, from: &Object<'_>, old: &Name, to: &Object<'_>, new: &Name) -> io::Result<()> {
        let rename = || sys::path::rename(from.path, old.as_c_str(), to.path, new.as_c_str(), 0);
        match rename() {
            Err(e) if sys::errno(&e) == libc::EOVERFLOW => {
                let moved = self.context.lookup(from.path, old.as_c_str())?;
                self.context
                    .making(to.path, NOBODY, &[from.path, moved.as_fd()], rename)
            }
            other => other,
        }
    }

    fn unlink(&self, dir: &Object<'_>, name: &Name, directory: bool) -> io::Result<()> {
        sys::path::unlink(dir.path, name.as_c_str(), directory)
    }

    fn set_mode(&self, object: &Object<'_>, mode: u32) -> io::Result<()> {
        self.context.chmod(object.path, object.host_type, mode)
    }

    fn set_owner(&self, object: &Object<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let _raised = self.context.keep_set_id()?;
        self.chown(object.path, uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX))
            .map(drop)
    }

    fn get_xattr(&self, object: &Object<'_>, name: &CStr, buf: &mut [u8]) -> io::Result<usize> {
        sys::xattr::get(self.context.xattrs(object), name, buf)
    }

    fn set_xattr(&self, object: &Object<'_>, name: &CStr, value: &[u8], flags: i32) -> io::Result<()> {
        // An access ACL has the permission bits in it, so setting one is a chmod.
        let _raised = match acl::is_acl(name) {
            true => self.context.keep_set_id()?,
            false => None,
        };
        sys::xattr::set(self.context.xattrs(object), name, value, flags)
    }

    fn remove_xattr(&self, object: &Object<'_>, name: &CStr) -> io::Result<()> {
        sys::xattr::remove(self.context.xattrs(object), name)
    }

    fn list_xattr(&self, object: &Object<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        out.resize(XATTR_LIST_MAX, 0);
        let len = sys::xattr::list(self.context.xattrs(object), out);
        out.truncate(*len.as_ref().unwrap_or(&0));
        len.map(drop)
    }
}
