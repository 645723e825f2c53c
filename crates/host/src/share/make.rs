//! Making, naming and removing objects.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{At, Object, Share};
use crate::attr::{Caller, FileType, Identity};
use crate::explain::DEVICE;
use crate::name::Name;
use crate::sys;

/// How often a creation tries again when the object that was in its way is gone when it is to be opened.
const RACES: usize = 8;

impl Share {
    /// Creates and opens; an existing object is opened unaltered unless `flags` has O_EXCL (EEXIST).
    /// Gives (O_PATH descriptor, open descriptor, identity).
    pub fn create(
        &self,
        caller: Caller,
        dir: &Object<'_>,
        name: &Name,
        flags: i32,
        mode: u32,
    ) -> io::Result<(OwnedFd, OwnedFd, Identity)> {
        let readonly = self.context.options().readonly;
        self.run("create", caller, dir, Some(name), || {
            self.allowed(name)?;
            let mut result = Err(sys::error(libc::EEXIST));
            for _ in 0..RACES {
                result = if readonly {
                    Err(sys::error(libc::EEXIST))
                } else {
                    self.create_new(caller, dir, name, flags, mode)
                };
                let exists = matches!(&result, Err(e) if sys::errno(e) == libc::EEXIST);
                if !exists || (flags & libc::O_EXCL != 0 && !readonly) {
                    break;
                }
                result = self.open_existing(dir, name, flags);
                match &result {
                    Err(e) if sys::errno(e) == libc::ENOENT && readonly => {
                        result = Err(sys::error(libc::EROFS));
                        break;
                    }
                    // Removed in between: it can be created now.
                    Err(e) if sys::errno(e) == libc::ENOENT => {}
                    _ => break,
                }
            }
            result
        })
    }

    fn create_new(
        &self,
        caller: Caller,
        dir: &Object<'_>,
        name: &Name,
        flags: i32,
        mode: u32,
    ) -> io::Result<(OwnedFd, OwnedFd, Identity)> {
        let owner = self.ids().owner_to_host(caller)?;
        // O_NOATIME is refused after the file has been made, when its owner turns out to be somebody else.
        let flags = super::data::open_flags(flags)? & !(libc::O_NOATIME | libc::O_DIRECTORY);
        let file = self.mode.create(dir, name, flags, mode, owner)?;
        let path = self.context.proc().path_of_open(file.as_fd())?;
        let object = Object {
            path: path.as_fd(),
            file: Some(file.as_fd()),
            host_type: libc::S_IFREG,
            at: At::In(dir.path, name),
        };
        let id = match self.mode.identify(&object) {
            // Somebody has taken the name from it already.
            Err(e) if self.lacks_name(&e) => self.mode.identify(&object.nowhere()),
            id => id,
        }?;
        Ok((path, file, id))
    }

    fn open_existing(
        &self,
        dir: &Object<'_>,
        name: &Name,
        flags: i32,
    ) -> io::Result<(OwnedFd, OwnedFd, Identity)> {
        let (path, id) = self.find(dir, name)?;
        if flags & libc::O_EXCL != 0 {
            return Err(sys::error(libc::EEXIST));
        }
        if id.host_type == libc::S_IFDIR {
            // As open(O_CREAT) of a directory, whatever the access mode.
            return Err(sys::error(libc::EISDIR));
        }
        match id.file_type {
            FileType::Regular | FileType::Directory => {}
            // Also where the mode keeps them in files that the host would open.
            FileType::Symlink => return Err(sys::error(libc::ELOOP)),
            FileType::Special => return Err(sys::error(libc::ENXIO)),
        }
        let (file, _) = self.open_now(&Object::by_path(path.as_fd(), id.host_type), flags)?;
        Ok((path, file, id))
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: Caller, dir: &Object<'_>, name: &Name, mode: u32) -> io::Result<Identity> {
        self.change("mkdir", caller, dir, Some(name), || {
            self.allowed(name)?;
            let owner = self.ids().owner_to_host(caller)?;
            self.mode.mkdir(dir, name, mode, owner)?;
            Ok(self.find(dir, name)?.1)
        })
    }

    /// Makes a special file; `mode` has type bits, `rdev` is a glibc `dev_t`. EINVAL for a type that mknod(2) does
    /// not make. EPERM for a device that would be one of the host's, unless the options allow it.
    pub fn mknod(
        &self,
        caller: Caller,
        dir: &Object<'_>,
        name: &Name,
        mode: u32,
        rdev: u64,
    ) -> io::Result<Identity> {
        let op = match self.may_make(mode, rdev) {
            true => "mknod",
            false => DEVICE,
        };
        self.change(op, caller, dir, Some(name), || {
            self.allowed(name)?;
            if op == DEVICE {
                // As mknod(2) of somebody without CAP_MKNOD, who learns first that the name is taken.
                return match sys::attr::stat_at(dir.path, name.as_c_str()) {
                    Ok(_) => Err(sys::error(libc::EEXIST)),
                    Err(e) if sys::errno(&e) == libc::ENOENT => Err(sys::error(libc::EPERM)),
                    Err(e) => Err(e),
                };
            }
            match mode & libc::S_IFMT {
                0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK => {}
                _ => return Err(sys::error(libc::EINVAL)),
            }
            let owner = self.ids().owner_to_host(caller)?;
            self.mode.mknod(dir, name, mode, rdev, owner)?;
            Ok(self.find(dir, name)?.1)
        })
    }

    /// Whether an object of this type may be made. A character device of number 0 is no device but an overlay's
    /// whiteout, which anybody may make (`vfs_mknod`).
    fn may_make(&self, mode: u32, rdev: u64) -> bool {
        let device = match mode & libc::S_IFMT {
            libc::S_IFBLK => true,
            libc::S_IFCHR => rdev != 0,
            _ => false,
        };
        !device || !self.plain || self.context.options().allow_devices
    }

    /// Makes a symlink; the target is any bytes without NUL, at most PATH_MAX - 1 (ENAMETOOLONG), at least one
    /// (ENOENT).
    pub fn symlink(
        &self,
        caller: Caller,
        dir: &Object<'_>,
        name: &Name,
        target: &[u8],
    ) -> io::Result<Identity> {
        self.change("symlink", caller, dir, Some(name), || {
            self.allowed(name)?;
            // The same for every mode, one that keeps targets in files included.
            match target.len() {
                0 => return Err(sys::error(libc::ENOENT)),
                1..=4095 => {}
                _ => return Err(sys::error(libc::ENAMETOOLONG)),
            }
            if target.contains(&0) {
                return Err(sys::error(libc::EINVAL));
            }
            let owner = self.ids().owner_to_host(caller)?;
            self.mode.symlink(dir, name, target, owner)?;
            Ok(self.find(dir, name)?.1)
        })
    }

    /// A symlink's target; EINVAL when it is none. Cut at `buf`'s length.
    pub fn readlink(&self, caller: Caller, object: &Object<'_>, buf: &mut [u8]) -> io::Result<usize> {
        self.run("readlink", caller, object, None, || {
            self.mode.readlink(object, buf)
        })
    }

    /// A hard link. ENOENT for an object without a name left.
    pub fn link(&self, caller: Caller, object: &Object<'_>, dir: &Object<'_>, name: &Name) -> io::Result<()> {
        self.change("link", caller, dir, Some(name), || {
            self.allowed(name)?;
            self.mode.link(object, dir, name)
        })
    }

    /// renameat(2).
    pub fn rename(
        &self,
        caller: Caller,
        from: &Object<'_>,
        old: &Name,
        to: &Object<'_>,
        new: &Name,
    ) -> io::Result<()> {
        self.change("rename", caller, from, Some(old), || {
            self.allowed(old)?;
            self.allowed(new)?;
            self.mode.rename(from, old, to, new)
        })
    }

    /// unlinkat(2); `directory` is AT_REMOVEDIR.
    pub fn unlink(&self, caller: Caller, dir: &Object<'_>, name: &Name, directory: bool) -> io::Result<()> {
        let op = if directory { "rmdir" } else { "unlink" };
        self.change(op, caller, dir, Some(name), || {
            self.allowed(name)?;
            self.mode.unlink(dir, name, directory)
        })
    }
}
