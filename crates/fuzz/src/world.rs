//! The shared directory of a fuzzed session: what is in it and beside it, what the host does to it, and what must hold.

use std::cell::Cell;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use server::Session;
use tempfile::TempDir;

use crate::script::Reader;
use crate::work;

/// What the host changes. The messages of `testkit::random` use the same names.
pub const PATHS: [&str; 10] = [
    "a", "b", "c", "dir", "file", "fifo", "out", "up", "dir/a", "dir/file",
];

/// What is in the file beside the share.
pub const SECRET: &[u8] = b"secret of the host";
/// Above any descriptor that a run has open.
const DESCRIPTORS: i32 = 80;

/// The shared directory, and what is beside it.
pub struct World {
    base: TempDir,
    secret: fs::Metadata,
    /// Whether the guest may make devices, and set security.*.
    allowed: Cell<(bool, bool)>,
}

impl World {
    pub fn new() -> World {
        let base = tempfile::tempdir().expect("a temporary directory");
        let outside = base.path().join("outside");
        let share = base.path().join("share");
        fs::create_dir(&outside).expect("mkdir");
        fs::write(outside.join("secret"), SECRET).expect("write");
        work::prepare(&share);
        symlink("../outside/secret", share.join("out")).expect("symlink");
        symlink("..", share.join("up")).expect("symlink");
        let secret = fs::metadata(outside.join("secret")).expect("stat");
        World {
            base,
            secret,
            allowed: Cell::default(),
        }
    }

    pub fn allow(&self, devices: bool, security: bool) {
        self.allowed.set((devices, security));
    }

    pub fn share(&self) -> PathBuf {
        self.base.path().join("share")
    }

    fn outside(&self) -> PathBuf {
        self.base.path().join("outside")
    }

    /// What another process of the host does in the share.
    pub fn interfere(&self, body: &[u8]) {
        let mut body = Reader(body);
        let what = body.u8();
        let mut path = || {
            let path = PATHS[usize::from(body.u8()) % PATHS.len()];
            self.share().join(path)
        };
        let (one, other) = (path(), path());
        // The host's own hand must not get out of the share through a symlink that it or the guest has put there.
        let inside = |path: &Path| {
            path.parent()
                .is_some_and(|dir| kind(dir).is_some_and(|kind| kind.is_dir()))
        };
        if !inside(&one) || !inside(&other) {
            return;
        }
        // Whatever is not possible just now is not done.
        let _ = match what % 10 {
            0 => fs::rename(&one, &other),
            1 => replace(&one, |at| symlink(self.outside().join("secret"), at)),
            2 => replace(&one, |at| symlink(self.outside(), at)),
            3 => remove(&one),
            4 if kind(&one).is_none_or(|kind| kind.is_symlink()) => return,
            4 => fs::set_permissions(
                &one,
                fs::Permissions::from_mode([0o777, 0, 0o4755, 0o444][usize::from(what / 10) % 4]),
            ),
            5 => replace(&one, |at| {
                Ok(nix::unistd::mkfifo(at, Mode::from_bits_truncate(0o666))?)
            }),
            6 => replace(&one, |at| fs::create_dir(at)),
            7 => replace(&one, |at| fs::write(at, "the host's")),
            8 => fs::hard_link(&one, &other),
            // /dev/null's number, which anybody may open and nobody notices.
            _ => replace(&one, |at| {
                let mode = Mode::from_bits_truncate(0o666);
                Ok(nix::sys::stat::mknod(at, SFlag::S_IFCHR, mode, makedev(1, 3))?)
            }),
        };
    }

    /// In the share is nothing that gives a host user the rights of another.
    fn check_share(&self) {
        let (devices, security) = self.allowed.get();
        let mut dirs = vec![self.share()];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for path in entries.map(|entry| entry.expect("an entry").path()) {
                let meta = fs::symlink_metadata(&path).expect("stat");
                let kind = meta.file_type();
                if kind.is_dir() {
                    dirs.push(path);
                } else if kind.is_block_device() || kind.is_char_device() {
                    assert!(devices || meta.rdev() == makedev(1, 3), "a device was made");
                } else if kind.is_file() && !security {
                    assert!(!has_capability(&path), "a file has got a capability");
                }
            }
        }
    }

    /// Nothing outside of the share has changed.
    pub fn check(&self) {
        self.check_share();
        let secret = self.outside().join("secret");
        let now = fs::metadata(&secret).expect("the secret is there");
        let attributes = |of: &fs::Metadata| {
            (
                of.mode(),
                of.uid(),
                of.gid(),
                of.nlink(),
                of.ctime(),
                of.ctime_nsec(),
            )
        };
        assert_eq!(
            attributes(&self.secret),
            attributes(&now),
            "the secret was changed"
        );
        assert_eq!(fs::read(&secret).expect("read"), SECRET);
        let names = |dir: &Path| fs::read_dir(dir).expect("readdir").count();
        assert_eq!((names(self.base.path()), names(&self.outside())), (2, 1));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // TempDir cannot remove what is not its user's to write; root need not care.
        let _ = fs::set_permissions(self.share(), fs::Permissions::from_mode(0o700));
    }
}

fn has_capability(path: &Path) -> bool {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
    // SAFETY: two strings that end with a NUL; a size of 0 asks for the value's.
    unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            c"security.capability".as_ptr(),
            std::ptr::null_mut(),
            0,
        ) >= 0
    }
}

fn kind(path: &Path) -> Option<fs::FileType> {
    Some(fs::symlink_metadata(path).ok()?.file_type())
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let _ = remove(path);
    make(path)
}

/// What the process has open besides the session's descriptors, so that those can be looked at.
pub struct Scene {
    secret: u64,
    outside: u64,
    device: u64,
    known: Vec<i32>,
}

impl Scene {
    /// `_session` has been made, and its root is open.
    pub fn of(world: &World, _session: &Session) -> Scene {
        let outside = fs::metadata(world.outside()).expect("stat");
        Scene {
            secret: world.secret.ino(),
            outside: outside.ino(),
            device: outside.dev(),
            known: (0..DESCRIPTORS).filter(|fd| flags(*fd).is_some()).collect(),
        }
    }

    /// No descriptor is of anything outside of the share, and none of a special file is more than a name.
    pub fn check(&self) {
        for fd in (0..DESCRIPTORS).filter(|fd| !self.known.contains(fd)) {
            let Some(flags) = flags(fd) else { continue };
            // SAFETY: it was open a moment ago, and this thread alone opens and closes descriptors here.
            let stat = fstat(unsafe { BorrowedFd::borrow_raw(fd) }).expect("fstat");
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            let plain = matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR);
            assert!(
                plain || flags.contains(OFlag::O_PATH),
                "a special file is open: {kind:?}"
            );
            let outside = stat.st_dev == self.device && [self.secret, self.outside].contains(&stat.st_ino);
            assert!(!outside, "something outside of the share is open");
        }
    }
}

fn flags(fd: i32) -> Option<OFlag> {
    // SAFETY: F_GETFL does nothing to a descriptor, and says so when it is none.
    let flags = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFL).ok()?;
    Some(OFlag::from_bits_retain(flags))
}

pub fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("procfs").count()
}
