//! What the server calls: checks, translates ids, asks the mode.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::attr::{Attr, Caller, Identity, SetAttr, StatFs};
use crate::iovec::IoVec;
use crate::name::Name;
use crate::options::ShareOptions;

/// An object as the server holds it.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// An `O_PATH | O_NOFOLLOW` descriptor of it.
    pub path: BorrowedFd<'a>,
    /// A descriptor the guest opened, when the fid is open; works on unlinked files too.
    pub file: Option<BorrowedFd<'a>>,
    /// `S_IFMT` bits of the host object.
    pub host_type: u32,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Name, without NUL. `.` and `..` are listed too.
    pub name: &'a [u8],
    /// As [`Identity::unique`], made from `d_ino` and the directory's device.
    pub unique: u64,
    /// Where the next read of this directory goes on; > 0, positive as `i64`.
    pub cookie: u64,
    /// `DT_*` as the guest shall see it.
    pub d_type: u8,
}

/// The shared directory: one per process, used by all threads.
pub struct Share {}

impl Share {
    /// Opens the directory and checks that the mode can work there. Sets the umask to 0.
    pub fn open(_options: &ShareOptions) -> Result<Share, String> {
        unimplemented!()
    }
    /// A new `O_PATH` descriptor of the root.
    pub fn root(&self, _caller: Caller) -> io::Result<(OwnedFd, Identity)> {
        unimplemented!()
    }
    /// One component down; never through symlinks. ENOENT, ENOTDIR, EACCES...
    pub fn lookup(
        &self,
        _caller: Caller,
        _dir: &Object<'_>,
        _name: &Name,
    ) -> io::Result<(OwnedFd, Identity)> {
        unimplemented!()
    }
    /// The parent of directory `dir` (`..` of a walk), the root for the root itself: never above the root.
    pub fn parent(&self, _caller: Caller, _dir: &Object<'_>) -> io::Result<(OwnedFd, Identity)> {
        unimplemented!()
    }
    /// Which object, which version: one statx where the mode maps no types.
    pub fn identify(&self, _object: &Object<'_>) -> io::Result<Identity> {
        unimplemented!()
    }
    /// All attributes.
    pub fn stat(&self, _caller: Caller, _object: &Object<'_>) -> io::Result<Attr> {
        unimplemented!()
    }
    /// Applies `set`: size first, mode, owner, times. Works on open unlinked files.
    pub fn setattr(&self, _caller: Caller, _object: &Object<'_>, _set: &SetAttr) -> io::Result<()> {
        unimplemented!()
    }
    /// Opens a regular file or directory for I/O; `flags` are Linux `O_*` (the server has removed O_CREAT and
    /// O_APPEND: append is the fid's). Special files and symlinks: ENXIO / ELOOP, never opened. EROFS.
    pub fn open_object(&self, _caller: Caller, _object: &Object<'_>, _flags: i32) -> io::Result<OwnedFd> {
        unimplemented!()
    }
    /// Creates and opens; an existing object is opened unaltered unless `flags` has O_EXCL (EEXIST).
    /// Gives (O_PATH descriptor, open descriptor, identity).
    pub fn create(
        &self,
        _caller: Caller,
        _dir: &Object<'_>,
        _name: &Name,
        _flags: i32,
        _mode: u32,
    ) -> io::Result<(OwnedFd, OwnedFd, Identity)> {
        unimplemented!()
    }
    /// Makes a directory.
    pub fn mkdir(
        &self,
        _caller: Caller,
        _dir: &Object<'_>,
        _name: &Name,
        _mode: u32,
    ) -> io::Result<Identity> {
        unimplemented!()
    }
    /// Makes a special file; `rdev` is a glibc `dev_t`.
    pub fn mknod(
        &self,
        _caller: Caller,
        _dir: &Object<'_>,
        _name: &Name,
        _mode: u32,
        _rdev: u64,
    ) -> io::Result<Identity> {
        unimplemented!()
    }
    /// Makes a symlink; the target is any bytes without NUL, at most PATH_MAX - 1.
    pub fn symlink(
        &self,
        _caller: Caller,
        _dir: &Object<'_>,
        _name: &Name,
        _target: &[u8],
    ) -> io::Result<Identity> {
        unimplemented!()
    }
    /// A symlink's target; EINVAL when it is none.
    pub fn readlink(&self, _caller: Caller, _object: &Object<'_>, _buf: &mut [u8]) -> io::Result<usize> {
        unimplemented!()
    }
    /// A hard link.
    pub fn link(
        &self,
        _caller: Caller,
        _object: &Object<'_>,
        _dir: &Object<'_>,
        _name: &Name,
    ) -> io::Result<()> {
        unimplemented!()
    }
    /// renameat(2).
    pub fn rename(
        &self,
        _caller: Caller,
        _from: &Object<'_>,
        _old: &Name,
        _to: &Object<'_>,
        _new: &Name,
    ) -> io::Result<()> {
        unimplemented!()
    }
    /// unlinkat(2); `directory` is AT_REMOVEDIR.
    pub fn unlink(
        &self,
        _caller: Caller,
        _dir: &Object<'_>,
        _name: &Name,
        _directory: bool,
    ) -> io::Result<()> {
        unimplemented!()
    }
    /// An xattr's value; an empty `buf` asks for the size; ERANGE when `buf` is too small.
    pub fn get_xattr(&self, _c: Caller, _o: &Object<'_>, _name: &CStr, _buf: &mut [u8]) -> io::Result<usize> {
        unimplemented!()
    }
    /// Sets an xattr.
    pub fn set_xattr(
        &self,
        _c: Caller,
        _o: &Object<'_>,
        _name: &CStr,
        _v: &[u8],
        _flags: i32,
    ) -> io::Result<()> {
        unimplemented!()
    }
    /// Removes an xattr.
    pub fn remove_xattr(&self, _c: Caller, _o: &Object<'_>, _name: &CStr) -> io::Result<()> {
        unimplemented!()
    }
    /// The visible names.
    pub fn list_xattr(&self, _c: Caller, _o: &Object<'_>, _out: &mut Vec<u8>) -> io::Result<()> {
        unimplemented!()
    }
    /// statfs, without opening the object.
    pub fn statfs(&self, _caller: Caller, _object: &Object<'_>) -> io::Result<StatFs> {
        unimplemented!()
    }
    /// preadv2 at `offset`. With `nowait`: EAGAIN when the data is not in the page cache (a short count when part
    /// of it is); file systems that cannot tell are read plainly when they never wait (tmpfs), else EAGAIN.
    pub fn read(
        &self,
        _file: BorrowedFd<'_>,
        _to: &[IoVec],
        _offset: u64,
        _nowait: bool,
    ) -> io::Result<usize> {
        unimplemented!()
    }
    /// pwritev2 at `offset`, or at the end when `append` (RWF_APPEND). EROFS.
    pub fn write(
        &self,
        _caller: Caller,
        _file: BorrowedFd<'_>,
        _from: &[IoVec],
        _offset: u64,
        _append: bool,
    ) -> io::Result<usize> {
        unimplemented!()
    }
    /// fsync or fdatasync.
    pub fn fsync(&self, _file: BorrowedFd<'_>, _datasync: bool) -> io::Result<()> {
        unimplemented!()
    }
    /// Lists `file` (an open directory) from `cookie` (0: start) until `visit` says false or the end. `buf` is the
    /// caller's getdents64 buffer. Entries that vanish meanwhile are skipped; reserved names are hidden.
    pub fn read_dir(
        &self,
        _caller: Caller,
        _dir: &Object<'_>,
        _cookie: u64,
        _buf: &mut [u8],
        _visit: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> io::Result<()> {
        unimplemented!()
    }
    /// A file handle that [`Share::open_handle`] can turn into the object again, when the file system has such and
    /// the process may use them. `buf` takes at most 128 bytes; gives (mount tag, handle type, length).
    pub fn handle(&self, _object: &Object<'_>, _buf: &mut [u8; 128]) -> Option<(u32, i32, usize)> {
        unimplemented!()
    }
    /// The object behind a handle as an `O_PATH` descriptor; ESTALE when it is gone.
    pub fn open_handle(&self, _mount: u32, _kind: i32, _handle: &[u8]) -> io::Result<OwnedFd> {
        unimplemented!()
    }
}
