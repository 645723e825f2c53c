//! Finding objects: the root, one component down, one up.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Object, Share};
use crate::attr::{Attr, Caller, Identity};
use crate::name::Name;
use crate::sys;
use crate::sys::attr::Record;

/// How often a name is looked up again that is another object's by the time that this one is looked at.
const RACES: usize = 8;

/// The type of an object that nobody has looked at yet; [`crate::ShareMode::identify`] finds out.
const UNKNOWN: u32 = 0;

impl Share {
    /// A new `O_PATH` descriptor of the root.
    pub fn root(&self, caller: Caller) -> io::Result<(OwnedFd, Identity)> {
        let root = self.context.root().try_clone_to_owned()?;
        let id = self.identify_as("attach", caller, &root, libc::S_IFDIR)?;
        Ok((root, id))
    }

    /// One component down; never through symlinks. ENOENT, ENOTDIR, EACCES...
    pub fn lookup(&self, caller: Caller, dir: &Object<'_>, name: &Name) -> io::Result<(OwnedFd, Identity)> {
        self.run("walk", caller, dir, Some(name), || self.find(dir, name))
    }

    /// As [`Share::lookup`], with the rights of this process and the type that the host has.
    pub fn revisit(&self, dir: BorrowedFd<'_>, name: &Name) -> io::Result<(OwnedFd, Identity)> {
        self.allowed(name)?;
        let path = self.context.lookup(dir, name.as_c_str())?;
        let id = self.identify_host(path.as_fd())?;
        Ok((path, id))
    }

    /// Which object `fd` names, with the type that the host has: one statx.
    pub fn identify_host(&self, fd: BorrowedFd<'_>) -> io::Result<Identity> {
        self.context.identity(&sys::attr::stat(fd)?, fd)
    }

    /// Which directory `name` in `dir` is, told by a look at it and without opening it: what [`Share::lookup`] would
    /// give, but `None` for what is no directory or not on the shared directory's own mount. The same errors.
    pub fn look(&self, caller: Caller, dir: &Object<'_>, name: &Name) -> io::Result<Option<Identity>> {
        self.run("walk", caller, dir, Some(name), || {
            self.allowed(name)?;
            let stat = sys::attr::stat_at(dir.path, name.as_c_str())?;
            let directory = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
            if !directory || !self.context.is_at_home(&stat) {
                return Ok(None);
            }
            self.context.identity(&stat, dir.path).map(Some)
        })
    }

    /// The parent of directory `dir` (`..` of a walk), the root for the root itself: never above the root. A few
    /// system calls, however deep the tree is.
    ///
    /// `..` is the only component the kernel's RESOLVE_BENEATH cannot guard here, because it starts at `dir`. A
    /// directory that the host moves out of the share while the guest holds it must not become a way out with it,
    /// so whatever `..` gives is only handed out when it is below the root. ENOENT if not. ELOOP from where the path is
    /// longer than PATH_MAX: to see whether a directory still is below its mount's root the kernel goes all the way up,
    /// and from a million levels deep that takes it a second.
    pub fn parent(&self, caller: Caller, dir: &Object<'_>) -> io::Result<(OwnedFd, Identity)> {
        self.run("walk to the parent", caller, dir, None, || {
            if dir.host_type != libc::S_IFDIR {
                return Err(sys::error(libc::ENOTDIR));
            }
            if self.context.is_root(&sys::attr::stat(dir.path)?) {
                let root = self.context.root().try_clone_to_owned()?;
                let id = self
                    .mode
                    .identify(&Object::by_path(root.as_fd(), libc::S_IFDIR))?;
                return Ok((root, id));
            }
            if self.is_deep(dir)? {
                return Err(sys::error(libc::ELOOP));
            }
            let parent = up(dir.path)?;
            let id = self
                .mode
                .identify(&Object::by_path(parent.as_fd(), libc::S_IFDIR))?;
            if !(id.at_home && self.context.confined()) {
                self.check_beneath(parent.as_fd())?;
            }
            Ok((parent, id))
        })
    }

    /// ENOENT for a directory that is not below the root. The kernel says at once by which path a directory is
    /// reached, and that path, followed from the root, must lead to it. To go up parent by parent would cost a guest
    /// nothing and this process seconds: trees can be a million levels deep.
    fn check_beneath(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let stat = sys::attr::stat(dir)?;
        if self.context.is_root(&stat) {
            return Ok(());
        }
        let proc = self.context.proc();
        let path = proc.path_of(dir)?;
        let root = proc.path_of(self.context.root())?;
        let root = root.strip_suffix(b"/").unwrap_or(&root);
        let below = path.strip_prefix(root).and_then(|path| path.strip_prefix(b"/"));
        let below = below.and_then(|below| CString::new(below).ok());
        let outside = || sys::error(libc::ENOENT);
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let found = sys::path::open_below(self.context.root(), &below.ok_or_else(outside)?, flags);
        let found = found.map_err(|error| match sys::errno(&error) {
            libc::ENOTDIR | libc::ELOOP | libc::EXDEV => outside(),
            _ => error,
        })?;
        let found = sys::attr::stat(found.as_fd())?;
        match (found.stx_ino, found.dev()) == (stat.stx_ino, stat.dev()) {
            true => Ok(()),
            false => Err(outside()),
        }
    }

    /// Whether [`Share::still_inside`] asks anything.
    #[inline]
    pub fn can_be_left(&self) -> bool {
        self.context.can_be_left()
    }

    /// ESTALE for a directory that the host has moved out of the shared directory, as for one that cannot be found again,
    /// where the shared directory is the root of a mount: elsewhere nobody can tell, and all is well. Not for the shared
    /// directory itself. At most one system call.
    #[inline]
    pub fn still_inside(&self, dir: &Object<'_>) -> io::Result<()> {
        self.context.still_inside(dir.path)
    }

    /// Whether the directory is so deep in the tree that no path leads to it: longer than PATH_MAX. The kernel looks at no
    /// more levels than that to tell.
    pub fn is_deep(&self, dir: &Object<'_>) -> io::Result<bool> {
        self.context.proc().is_too_long(dir.path)
    }

    /// Which object, which version: one statx where the mode maps no types.
    pub fn identify(&self, caller: Caller, object: &Object<'_>) -> io::Result<Identity> {
        self.as_caller(caller, || self.mode.identify(object))
    }

    /// Puts all attributes into `attr`, which is not handed about by value, because it is a large record. One fstat where
    /// the mode maps none.
    #[inline]
    pub fn stat(&self, caller: Caller, object: &Object<'_>, attr: &mut Attr) -> io::Result<()> {
        self.run("getattr", caller, object, None, || self.mode.stat(object, attr))?;
        self.ids().attr_to_guest(attr);
        Ok(())
    }

    /// Bytes that the object takes in storage, and its names; as the host has them, whatever the mode. One system call.
    pub fn stored(&self, caller: Caller, object: &Object<'_>) -> io::Result<(u64, u64)> {
        let stat = self.as_caller(caller, || self.context.stat_without_birth(object))?;
        // stat(2) counts in these whatever the block size.
        Ok((stat.blocks().saturating_mul(512), stat.nlink()))
    }

    /// Whether [`Share::stat`] is one system call whatever the object.
    #[inline]
    pub fn stats_in_one_call(&self) -> bool {
        self.plain && self.credentials.is_none()
    }

    /// `lookup` with the rights the thread has now.
    pub(super) fn find(&self, dir: &Object<'_>, name: &Name) -> io::Result<(OwnedFd, Identity)> {
        self.allowed(name)?;
        let mut races = RACES;
        loop {
            let path = self.context.lookup(dir.path, name.as_c_str())?;
            let object = Object::by_path(path.as_fd(), UNKNOWN);
            races -= 1;
            let id = match races {
                0 => self.mode.identify(&object.nowhere()),
                _ => self.mode.identify(&object.at(dir.path, name)),
            };
            match id {
                // Another object has the name by now, where no path tells what has become of this one.
                Err(e) if races > 0 && self.lacks_name(&e) => {}
                id => return id.map(|id| (path, id)),
            }
        }
    }

    /// Whether an operation on an object of the mode's failed for want of its name: see [`At::Unknown`](crate::At::Unknown).
    pub fn lacks_name(&self, error: &io::Error) -> bool {
        self.needs_names() && sys::errno(error) == libc::ENAMETOOLONG
    }

    fn identify_as(&self, op: &'static str, caller: Caller, fd: &OwnedFd, kind: u32) -> io::Result<Identity> {
        let object = Object::by_path(fd.as_fd(), kind);
        self.run(op, caller, &object, None, || self.mode.identify(&object))
    }
}

fn up(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    sys::path::open_at(Some(dir), c"..", flags, 0)
}
