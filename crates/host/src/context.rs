//! What every share mode works with: the root, `/proc/self/fd`, the options, and the calls that are the same in
//! all modes. A mode is made with an `Arc<Context>` and keeps it.
//!
//! A mode gets at the system calls through [`crate::sys`]; where an object has to be opened, linked or asked for an
//! xattr, it uses [`Context::reopen`], [`Context::proc`] and [`Context::xattrs`]. An object's attributes need no
//! more than [`Object::path`], whether the object still has a name or not.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use crate::attr::{Attr, Caller, FileType, Identity};
use crate::creds;
use crate::identity::Devices;
use crate::name::Name;
use crate::options::{MayHang, ShareOptions};
use crate::part::can_be_left;
use crate::remote::mounted_below;
use crate::share::Object;
use crate::surroundings::Surroundings;
use crate::sys::attr::{Record, Stat, Statx};
use crate::sys::cred::{CAP_FSETID, Caps};
use crate::sys::xattr::Target;
use crate::sys::{self, ProcFd};
use crate::version::version;

/// See the module's text.
pub struct Context {
    root: OwnedFd,
    proc: ProcFd,
    options: ShareOptions,
    devices: Devices,
    root_key: (u64, u64),
    /// The root's mount, where the kernel tells.
    root_mount: Option<u64>,
    confined: bool,
    can_be_left: bool,
    caps: Caps,
    fsetid: bool,
    /// This process's user and group.
    own: (u32, u32),
    /// The shared directory as this process sees it.
    root_path: Vec<u8>,
    hides_owners: bool,
}

impl Context {
    /// `root` is an `O_PATH` descriptor of the shared directory. Takes CAP_FSETID out of this thread's effective
    /// capabilities (threads made later inherit that), so that the kernel clears set-id bits when anybody writes
    /// to a file, as it does for a user who is not root: the writer may be any user of the guest.
    pub fn new(root: OwnedFd, surroundings: Surroundings, options: ShareOptions) -> io::Result<Context> {
        let Surroundings {
            proc,
            mounts,
            hides_owners,
            ..
        } = surroundings;
        let stat = sys::attr::stat(root.as_fd())?;
        let before = Caps::current()?;
        let fsetid = before.may(CAP_FSETID);
        let caps = before.with(CAP_FSETID, false);
        if caps != before {
            caps.apply()?;
        }
        let root_key = (stat.dev(), stat.stx_ino);
        let devices = Devices::new(root_key.0, options.multidevs);
        devices.note_root(sys::attr::statfs(root.as_fd())?.f_type);
        let path = proc.path_of(root.as_fd()).unwrap_or_default();
        if options.may_hang == MayHang::Auto && mounted_below(&path, &mounts) {
            devices.note_remote();
        }
        let (confined, root_mount) = (is_mount_root(&stat), mount(&stat));
        let can_be_left = confined && can_be_left(root_mount, &path, &mounts);
        Ok(Context {
            devices,
            root,
            proc,
            options,
            root_key,
            root_mount,
            confined,
            can_be_left,
            caps,
            fsetid,
            own: sys::cred::fs_ids(),
            root_path: path,
            hides_owners,
        })
    }

    /// An `O_PATH` descriptor of the shared directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether what this thread makes belongs to `owner` anyway: it is this process's user, and the thread has not
    /// taken another's place. An id of `u32::MAX` is anybody's.
    pub fn is_self(&self, owner: Caller) -> bool {
        let (uid, gid) = self.own;
        [uid, u32::MAX].contains(&owner.uid) && [gid, u32::MAX].contains(&owner.gid) && !creds::switched()
    }

    /// Where the object is, for whoever reads the log: below the directory that was asked for, whatever this process sees as
    /// its root directory.
    pub fn shown_path(&self, object: BorrowedFd<'_>) -> Vec<u8> {
        let path = match self.proc.path_of(object) {
            // No path that long is shown, and no log line would be: who reads it is told the name.
            Err(e) if sys::errno(&e) == libc::ENAMETOOLONG => {
                let mut path = self
                    .root_path
                    .strip_suffix(b"/")
                    .unwrap_or(&self.root_path)
                    .to_vec();
                path.extend_from_slice("/…".as_bytes());
                path
            }
            path => path.unwrap_or_default(),
        };
        match path.strip_prefix(&self.root_path[..]) {
            Some(below) => {
                let mut shown = self.options.directory.as_os_str().as_bytes().to_vec();
                // The root directory's own path ends with a slash.
                if !below.is_empty() && !below.starts_with(b"/") && !shown.ends_with(b"/") {
                    shown.push(b'/');
                }
                shown.extend_from_slice(below);
                shown
            }
            None => path,
        }
    }

    /// Whether owners other than this process's user show as nobody.
    pub fn hides_owners(&self) -> bool {
        self.hides_owners
    }

    /// `/proc/self/fd`.
    pub fn proc(&self) -> &ProcFd {
        &self.proc
    }

    /// What the administrator chose.
    pub fn options(&self) -> &ShareOptions {
        &self.options
    }

    /// The file systems seen so far.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Whether system calls on the share may hang, as far as is known by now.
    pub fn may_hang(&self) -> bool {
        match self.options.may_hang {
            MayHang::Auto => self.devices.remote(),
            MayHang::Always => true,
            MayHang::Never => false,
        }
    }

    /// The capabilities a thread has between two operations.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Whether the object of this record is the shared directory itself.
    pub fn is_root(&self, stat: &Statx) -> bool {
        (stat.dev(), stat.stx_ino) == self.root_key
    }

    /// Whether the object of this record is on the shared directory's own mount and file system, as far as the
    /// kernel tells.
    pub fn is_at_home(&self, stat: &Statx) -> bool {
        self.root_mount.is_some() && mount(stat) == self.root_mount && stat.dev() == self.root_key.0
    }

    /// Whether the kernel keeps `..` inside the share for what [`is_at_home`](Context::is_at_home): the shared directory
    /// is the root of its mount. From a directory that has been moved out of what a mount shows, `..` is ENOENT
    /// (`path_connected` in fs/namei.c); the one way out is `..` of the mount's root itself, which is
    /// [`is_root`](Context::is_root).
    pub fn confined(&self) -> bool {
        self.confined
    }

    /// Whether the host can move a directory out of what its mount shows, and the kernel would tell.
    pub fn can_be_left(&self) -> bool {
        self.can_be_left
    }

    /// ESTALE for a directory that the host has moved out of what its mount shows. Nothing is asked where that cannot be,
    /// or could not be told: one that is moved out of a shared directory that is no mount's root stays within the mount.
    ///
    /// The kernel resolves any name in such a directory but `..` (`path_connected` in fs/namei.c): ENOENT then. What is there
    /// is no symlink: EINVAL.
    pub fn still_inside(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        if !self.can_be_left {
            return Ok(());
        }
        match sys::path::read_link(dir, c"..", &mut [0]) {
            Err(e) if sys::errno(&e) == libc::ENOENT => Err(sys::error(libc::ESTALE)),
            _ => Ok(()),
        }
    }

    /// What becomes attributes: as [`Context::stat`], but the time of birth may be missing.
    #[inline]
    pub fn stat_without_birth(&self, object: &Object<'_>) -> io::Result<Stat> {
        sys::attr::stat_without_birth(object.path)
    }

    /// statx of the object: one system call.
    pub fn stat(&self, object: &Object<'_>) -> io::Result<Statx> {
        sys::attr::stat(object.path)
    }

    /// The identity of the object of this record as the host has it; `any` is a descriptor of it. No system call,
    /// but one when a file system is seen for the first time. A mode that maps types changes `file_type`.
    pub fn identity(&self, stat: &Statx, any: BorrowedFd<'_>) -> io::Result<Identity> {
        let dev = stat.dev();
        let host_type = u32::from(stat.stx_mode) & libc::S_IFMT;
        let (unique, version) = self.unique(stat, any)?;
        Ok(Identity {
            dev,
            ino: stat.stx_ino,
            birth: sys::attr::time(&stat.stx_btime),
            at_home: self.is_at_home(stat),
            unique,
            version,
            host_type,
            file_type: FileType::from_mode(host_type),
        })
    }

    /// [`Identity::unique`] and [`Identity::version`].
    #[inline]
    pub fn unique(&self, stat: &impl Record, any: BorrowedFd<'_>) -> io::Result<(u64, u32)> {
        let dev = stat.dev();
        let unique = self.devices.unique(dev, stat.ino(), any)?;
        Ok((unique, version(stat, self.devices.apart(dev))))
    }

    /// Puts into `attr` the attributes of the object of this record as the host has them; `any` is a descriptor of it. A
    /// mode that maps changes `mode`, `uid`, `gid`, `rdev` and `file_type`.
    #[inline]
    pub fn attr(&self, stat: &impl Record, any: BorrowedFd<'_>, attr: &mut Attr) -> io::Result<()> {
        (attr.unique, attr.version) = self.unique(stat, any)?;
        attr.file_type = FileType::from_mode(stat.mode());
        attr.mode = stat.mode();
        attr.uid = stat.uid();
        attr.gid = stat.gid();
        attr.nlink = stat.nlink();
        attr.rdev = stat.rdev();
        attr.size = stat.size();
        attr.blksize = stat.blksize();
        attr.blocks = stat.blocks();
        attr.atime = stat.atime();
        attr.mtime = stat.mtime();
        attr.ctime = stat.ctime();
        Ok(())
    }

    /// An `O_PATH` descriptor of `name` in `dir`, of a symlink itself.
    pub fn lookup(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
        sys::path::open_beneath(dir, name, libc::O_PATH, 0)
    }

    /// Opens the very object that `fd` (`O_PATH` or not) names, if it is a regular file or a directory: ELOOP for a symlink,
    /// ENXIO for a special file.
    pub fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
        self.reopen_and_tell(fd, flags).map(|(file, _)| file)
    }

    /// As [`Context::reopen`], and what fstat(2) said just before.
    pub fn reopen_and_tell(&self, fd: BorrowedFd<'_>, flags: i32) -> io::Result<(OwnedFd, Stat)> {
        match self.proc.reopen_and_tell(fd, flags) {
            // O_NOATIME is a wish that only the owner may have.
            Err(e) if sys::errno(&e) == libc::EPERM && flags & libc::O_NOATIME != 0 => {
                self.proc.reopen_and_tell(fd, flags & !libc::O_NOATIME)
            }
            other => other,
        }
    }

    /// How to reach the object's xattrs: through the open file when there is one, which is one system call on
    /// every kernel.
    pub fn xattrs<'a>(&'a self, object: &Object<'a>) -> Target<'a> {
        match object.file {
            Some(file) => Target::Open(file),
            None => Target::Path(&self.proc, object.path),
        }
    }

    /// chmod of the host object, set-id bits included, with or without a name. EOPNOTSUPP for a symlink.
    pub fn chmod(&self, fd: BorrowedFd<'_>, host_type: u32, mode: u32) -> io::Result<()> {
        if host_type == libc::S_IFLNK {
            return Err(sys::error(libc::EOPNOTSUPP));
        }
        let _raised = match mode & libc::S_ISGID {
            0 => None,
            _ => self.keep_set_id()?,
        };
        sys::attr::chmod(&self.proc, fd, mode)
    }

    /// Until dropped, a change of mode, owner or ACL leaves the set-group-id bit as it is. Without CAP_FSETID the
    /// kernel silently drops it unless the process is in the file's group; but whether the guest's user may keep
    /// it, the guest's kernel has decided. Not for an operation that runs as the guest's user: that user has no
    /// such right.
    pub fn keep_set_id(&self) -> io::Result<Option<creds::Raised<'_>>> {
        if !self.fsetid || creds::switched() {
            return Ok(None);
        }
        creds::Raised::new(&self.caps, CAP_FSETID).map(Some)
    }

    /// Truncates or extends the host file: through the open file when it is open for writing, so that an unlinked
    /// or read-only file that the guest has open works, else through a descriptor opened for it.
    pub fn truncate(&self, object: &Object<'_>, size: u64) -> io::Result<()> {
        match object.host_type {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(sys::error(libc::EISDIR)),
            _ => return Err(sys::error(libc::EINVAL)),
        }
        if let Some(file) = object.file {
            match sys::attr::truncate(file, size) {
                // Not open for writing (or not a size: then it fails again).
                Err(e) if sys::errno(&e) == libc::EINVAL => {}
                other => return other,
            }
        }
        let file = self.reopen(object.path, libc::O_WRONLY)?;
        sys::attr::truncate(file.as_fd(), size)
    }

    /// Removes `name` again after a creation that failed half-way, if it still is what was created: somebody else
    /// may have put another object in its place.
    pub fn undo(&self, dir: BorrowedFd<'_>, name: &Name, created: BorrowedFd<'_>, directory: bool) {
        let same = || -> io::Result<bool> {
            let made = sys::attr::stat(created)?;
            let there = sys::attr::stat_at(dir, name.as_c_str())?;
            Ok(made.stx_ino == there.stx_ino && made.dev() == there.dev())
        };
        if matches!(same(), Ok(true)) {
            // Nothing better can be done about a failure: the caller reports the first error.
            let _ = sys::path::unlink(dir, name.as_c_str(), directory);
        }
    }
}

/// The mount that the object was reached by; `None` where the record does not say.
fn mount(stat: &Statx) -> Option<u64> {
    (stat.stx_mask & libc::STATX_MNT_ID != 0).then_some(stat.stx_mnt_id)
}

/// Whether the object is the root of its mount, as far as the kernel tells (since Linux 5.8).
fn is_mount_root(stat: &Statx) -> bool {
    let bit = u64::from(libc::STATX_ATTR_MOUNT_ROOT.cast_unsigned());
    stat.stx_attributes_mask & stat.stx_attributes & bit != 0
}
