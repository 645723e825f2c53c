//! Finding objects: the root, one component down, one up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Object, Share};
use crate::attr::{Attr, Caller, Identity};
use crate::name::Name;
use crate::sys;
use crate::sys::attr::Record;

/// How far up `..` looks for the root. Deeper trees exist only where somebody made one to see what happens.
const DEPTH: usize = 65536;

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

    /// The parent of directory `dir` (`..` of a walk), the root for the root itself: never above the root.
    ///
    /// `..` is the only component the kernel's RESOLVE_BENEATH cannot guard here, because it starts at `dir`. A
    /// directory that the host moves out of the share while the guest holds it must not become a way out with it,
    /// so whatever `..` gives is only handed out when its own chain of parents reaches the root. ENOENT if not.
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
            let parent = up(dir.path)?;
            self.check_beneath(parent.as_fd())?;
            let id = self
                .mode
                .identify(&Object::by_path(parent.as_fd(), libc::S_IFDIR))?;
            Ok((parent, id))
        })
    }

    /// Follows the parents of `dir` up to the root of the share; ENOENT at the root of the file system.
    fn check_beneath(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let mut stat = sys::attr::stat(dir)?;
        let mut held: Option<OwnedFd> = None;
        for _ in 0..DEPTH {
            if self.context.is_root(&stat) {
                return Ok(());
            }
            let next = up(held.as_ref().map_or(dir, |fd| fd.as_fd()))?;
            let above = sys::attr::stat(next.as_fd())?;
            let same = (above.stx_ino, above.stx_dev_major, above.stx_dev_minor)
                == (stat.stx_ino, stat.stx_dev_major, stat.stx_dev_minor);
            if same {
                return Err(sys::error(libc::ENOENT));
            }
            stat = above;
            held = Some(next);
        }
        Err(sys::error(libc::ELOOP))
    }

    /// Which object, which version: one statx where the mode maps no types.
    pub fn identify(&self, object: &Object<'_>) -> io::Result<Identity> {
        self.mode.identify(object)
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
    pub fn stored(&self, object: &Object<'_>) -> io::Result<(u64, u64)> {
        let stat = self.context.stat_without_birth(object)?;
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
        let path = self.context.lookup(dir.path, name.as_c_str())?;
        let id = self.mode.identify(&Object::by_path(path.as_fd(), UNKNOWN))?;
        Ok((path, id))
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
