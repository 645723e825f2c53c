//! A share on a fresh directory, and a way to run a test as somebody else.
#![allow(dead_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use host::{Attr, Caller, DirEntry, Identity, IoVec, Name, Object, SecurityModel, Share, ShareOptions};

/// Guest root.
pub const ROOT: Caller = Caller { uid: 0, gid: 0 };

pub struct Fixture {
    pub dir: PathBuf,
    pub share: Share,
    // Dropped last.
    _temp: tempfile::TempDir,
}

/// An object with its descriptors.
pub struct Node {
    pub path: OwnedFd,
    pub file: Option<OwnedFd>,
    pub id: Identity,
}

impl Node {
    pub fn object(&self) -> Object<'_> {
        Object {
            at: host::At::Unknown,
            path: self.path.as_fd(),
            file: self.file.as_ref().map(|f| f.as_fd()),
            host_type: self.id.host_type,
        }
    }
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_ref().unwrap().as_fd()
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

pub fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().expect("an OS error"),
    }
}

pub fn user(id: u32) -> Caller {
    Caller { uid: id, gid: id }
}

pub fn is_root() -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::geteuid() == 0 }
}

/// The user and group this process runs as.
pub fn me() -> Caller {
    // SAFETY: no memory is passed.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    Caller { uid, gid }
}

impl Fixture {
    pub fn new(model: SecurityModel) -> Fixture {
        Fixture::with(model, |_| {})
    }

    pub fn with(model: SecurityModel, change: impl FnOnce(&mut ShareOptions)) -> Fixture {
        Fixture::within(Path::new("/tmp"), model, change)
    }

    pub fn within(parent: &Path, model: SecurityModel, change: impl FnOnce(&mut ShareOptions)) -> Fixture {
        let temp = tempfile::tempdir_in(parent).unwrap();
        let dir = temp.path().join("share");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        // Others must get to it, too.
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut options = ShareOptions::new(&dir, model);
        change(&mut options);
        Fixture {
            share: Share::open(&options).unwrap(),
            dir,
            _temp: temp,
        }
    }

    /// A share over a directory that is there already.
    pub fn over(dir: &Path, model: SecurityModel, change: impl FnOnce(&mut ShareOptions)) -> Fixture {
        let mut options = ShareOptions::new(dir, model);
        change(&mut options);
        Fixture {
            share: Share::open(&options).unwrap(),
            dir: dir.to_owned(),
            _temp: tempfile::tempdir_in("/tmp").unwrap(),
        }
    }

    pub fn root(&self) -> Node {
        let (path, id) = self.share.root(ROOT).unwrap();
        Node { path, file: None, id }
    }

    pub fn try_walk(&self, caller: Caller, path: &str) -> io::Result<Node> {
        let mut node = self.root();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            let (fd, id) = self.share.lookup(caller, &node.object(), &name(part))?;
            node = Node {
                path: fd,
                file: None,
                id,
            };
        }
        Ok(node)
    }

    pub fn walk(&self, path: &str) -> Node {
        self.try_walk(ROOT, path).unwrap()
    }

    pub fn try_open(&self, path: &str, flags: i32) -> io::Result<Node> {
        let mut node = self.walk(path);
        node.file = Some(self.share.open_object(ROOT, &node.object(), flags)?);
        Ok(node)
    }

    pub fn open(&self, path: &str, flags: i32) -> Node {
        self.try_open(path, flags).unwrap()
    }

    pub fn try_create(&self, who: Caller, file: &str, flags: i32, mode: u32) -> io::Result<Node> {
        let (dir, file) = file.rsplit_once('/').unwrap_or(("", file));
        let dir = self.walk(dir);
        let (path, file, id) = self.share.create(who, &dir.object(), &name(file), flags, mode)?;
        Ok(Node {
            path,
            file: Some(file),
            id,
        })
    }

    pub fn create(&self, file: &str, flags: i32, mode: u32) -> Node {
        self.try_create(me(), file, flags, mode).unwrap()
    }

    pub fn attr(&self, node: &Node) -> Attr {
        let mut attr = Attr::default();
        self.share.stat(ROOT, &node.object(), &mut attr).unwrap();
        attr
    }

    pub fn write(&self, node: &Node, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut copy = bytes.to_vec();
        // SAFETY: `copy` lives over the call.
        let iov = unsafe { [IoVec::new(copy.as_mut_ptr(), copy.len())] };
        self.share.write(ROOT, node.file(), &iov, offset, false)
    }

    pub fn read(&self, node: &Node, offset: u64, len: usize, nowait: bool) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        // SAFETY: `bytes` lives over the call.
        let iov = unsafe { [IoVec::new(bytes.as_mut_ptr(), len)] };
        let got = self.share.read(ROOT, node.file(), &iov, offset, nowait)?;
        bytes.truncate(got);
        Ok(bytes)
    }

    pub fn list(&self, node: &Node) -> Vec<(String, u64, u64, u8)> {
        let mut out = Vec::new();
        let mut buf = [0; 4096];
        self.share
            .read_dir(ROOT, &node.object(), 0, &mut buf, &mut |e: &DirEntry<'_>| {
                let text = String::from_utf8(e.name.to_vec()).unwrap();
                out.push((text, e.unique, e.cookie, e.d_type));
                true
            })
            .unwrap();
        out
    }
}

const CHILD: &str = "HOST_TEST_CHILD";

/// Runs `test` in a process of its own as user and group `uid`, without any capability; `whole` is the calling
/// test's name. Does nothing but that when this process is not root (then it already is somebody else): `test` runs
/// right here.
pub fn unprivileged(whole: &str, uid: u32, test: impl FnOnce()) {
    if !is_root() || std::env::var_os(CHILD).is_some() {
        return test();
    }
    run_as(whole, uid, Path::new("/"));
}

/// As [`unprivileged`] over a directory that root has filled; nothing at all when this process is not root.
pub fn unprivileged_over(whole: &str, uid: u32, fill: impl FnOnce(&Path), test: impl FnOnce(&Path)) {
    if let Some(dir) = std::env::var_os(CHILD) {
        return test(Path::new(&dir));
    }
    if !is_root() {
        return;
    }
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fill(temp.path());
    run_as(whole, uid, temp.path());
}

fn run_as(whole: &str, uid: u32, dir: &Path) {
    use std::os::unix::process::CommandExt;
    // The build directory may be closed to others.
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let exe = temp.path().join("test");
    // Copied by another process: a child that another test forks at that moment would hold our descriptor for
    // writing open until its exec, and a file that is open for writing cannot be executed (ETXTBSY).
    let copied = std::process::Command::new("cp")
        .arg(std::env::current_exe().unwrap())
        .arg(&exe)
        .status();
    assert!(copied.unwrap().success());
    std::fs::set_permissions(&exe, PermissionsExt::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&exe)
        .args(["--exact", whole, "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .current_dir("/")
        .uid(uid)
        .gid(uid)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Gives this thread a mount namespace of its own; false when that is not allowed here.
pub fn own_mounts() -> bool {
    // SAFETY: constant NUL-terminated strings and null pointers, which the call takes.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
    }
}

/// Mounts a fresh tmpfs.
pub fn mount_tmpfs(at: &Path) {
    mount(c"tmpfs", at);
}

/// Mounts a fresh file system of a kind that needs no device.
pub fn mount(kind: &CStr, at: &Path) {
    mount_with(kind, at, "").stay();
}

/// A mount, taken away with the value, whoever uses it: a test that fails must not go on to empty a directory in
/// which something does not answer.
pub struct Mounted(Option<CString>);

impl Mounted {
    /// What somebody else has mounted there.
    pub fn at(at: &Path) -> Mounted {
        Mounted(Some(c(at.to_str().unwrap())))
    }

    /// It stays, until this thread's own mounts go.
    pub fn stay(mut self) {
        self.0 = None;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(at) = &self.0 {
            // SAFETY: a NUL-terminated string that lives over the call.
            unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// As [`mount`], with the file system's own options.
pub fn mount_with(kind: &CStr, at: &Path, options: &str) -> Mounted {
    let (at, options) = (c(at.to_str().unwrap()), c(options));
    // SAFETY: NUL-terminated strings that live over the call.
    let status = unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    };
    assert_eq!(status, 0);
    Mounted(Some(at))
}

/// Shows the directory `from` at `at` too.
pub fn bind(from: &Path, at: &Path) -> Mounted {
    let (from, at) = (c(from.to_str().unwrap()), c(at.to_str().unwrap()));
    // SAFETY: NUL-terminated strings that live over the call.
    let status = unsafe {
        libc::mount(
            from.as_ptr(),
            at.as_ptr(),
            c"".as_ptr(),
            libc::MS_BIND,
            std::ptr::null(),
        )
    };
    assert_eq!(status, 0);
    Mounted(Some(at))
}
