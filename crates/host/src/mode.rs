//! What a share mode decides.

use std::io;
use std::os::fd::OwnedFd;

use crate::attr::{Attr, Caller, Identity};
use crate::name::Name;
use crate::share::Object;
use crate::types::Types;

/// One share mode. Ids are HOST ids here: `Share` has translated them. Errors are OS errors
/// (`io::Error::raw_os_error` is always present).
pub trait ShareMode: Send + Sync {
    /// Puts the attributes the guest shall see into `attr`.
    fn stat(&self, object: &Object<'_>, attr: &mut Attr) -> io::Result<()>;
    /// The object's identity only (a walk needs no more). `object.host_type` is 0 here when the object has just been
    /// found: the statx that this needs anyway tells the type.
    fn identify(&self, object: &Object<'_>) -> io::Result<Identity>;
    /// Makes a regular file that must not exist yet (EEXIST), opens it with `flags`, gives the open
    /// descriptor. On failure nothing is left behind.
    fn create(
        &self,
        dir: &Object<'_>,
        name: &Name,
        flags: i32,
        mode: u32,
        owner: Caller,
    ) -> io::Result<OwnedFd>;
    /// Makes a directory.
    fn mkdir(&self, dir: &Object<'_>, name: &Name, mode: u32, owner: Caller) -> io::Result<()>;
    /// Makes a special (or regular) file; `mode` has type bits, `rdev` is a glibc `dev_t`.
    fn mknod(&self, dir: &Object<'_>, name: &Name, mode: u32, rdev: u64, owner: Caller) -> io::Result<()>;
    /// Makes a symlink.
    fn symlink(&self, dir: &Object<'_>, name: &Name, target: &[u8], owner: Caller) -> io::Result<()>;
    /// The target of a symlink, cut at `buf`'s length.
    fn readlink(&self, object: &Object<'_>, buf: &mut [u8]) -> io::Result<usize>;
    /// A further name for `object`.
    fn link(&self, object: &Object<'_>, dir: &Object<'_>, name: &Name) -> io::Result<()>;
    /// As renameat(2) without flags.
    fn rename(&self, from: &Object<'_>, old: &Name, to: &Object<'_>, new: &Name) -> io::Result<()>;
    /// Removes a name: of a directory when `directory`, else of anything else.
    fn unlink(&self, dir: &Object<'_>, name: &Name, directory: bool) -> io::Result<()>;
    /// chmod; `mode` as the client sent it.
    fn set_mode(&self, object: &Object<'_>, mode: u32) -> io::Result<()>;
    /// chown; `None` leaves that id. Both `None`: only ctime moves.
    fn set_owner(&self, object: &Object<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    /// Reads an xattr the guest asks for; an empty `buf` asks for the size. ENODATA when there is none.
    fn get_xattr(&self, object: &Object<'_>, name: &std::ffi::CStr, buf: &mut [u8]) -> io::Result<usize>;
    /// Sets an xattr; `flags` are XATTR_CREATE / XATTR_REPLACE.
    fn set_xattr(
        &self,
        object: &Object<'_>,
        name: &std::ffi::CStr,
        value: &[u8],
        flags: i32,
    ) -> io::Result<()>;
    /// Removes an xattr.
    fn remove_xattr(&self, object: &Object<'_>, name: &std::ffi::CStr) -> io::Result<()>;
    /// The names the guest may see, NUL-terminated one after another, as listxattr(2).
    fn list_xattr(&self, object: &Object<'_>, out: &mut Vec<u8>) -> io::Result<()>;
    /// Whether there are names that the guest may never see: [`ShareMode::reserved`] says which.
    fn reserves_names(&self) -> bool {
        false
    }
    /// Whether the guest may never see or name this (mapped-file's metadata): the errno, if so.
    fn reserved(&self, _name: &[u8]) -> Option<i32> {
        None
    }
    /// The type a directory listing shows; `host` is the host's `d_type` (`DT_*`), the result too. `Err` where it may be
    /// another the next time though the directory has not changed.
    fn entry_type(&self, _dir: &Object<'_>, _name: &[u8], host: u8) -> Result<u8, u8> {
        Ok(host)
    }
    /// Where a type costs a system call: those that listings have shown.
    fn types(&self) -> Option<&Types> {
        None
    }
    /// Whether the mode keeps something beside an object's name, and finds that from its descriptor unless it is told. The
    /// kernel does not know the name of a file that is opened by handle (it does know a directory's), so files keep their
    /// descriptors in such a mode; and it shows no path longer than PATH_MAX: ENAMETOOLONG from `stat`, `identify`,
    /// `readlink`, `link`, `set_mode` and `set_owner` of an [`At::Unknown`](crate::At::Unknown).
    fn needs_names(&self) -> bool {
        false
    }
}
