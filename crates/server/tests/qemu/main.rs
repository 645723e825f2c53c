//! What went wrong in QEMU's 9P server and in virtiofsd, by what it is known as: a test for each class of fault that this
//! server must not have. (What takes a ring is in `crates/device/tests/qemu.rs`.) A test binary of its own, because these
//! count the process's descriptors.

#[allow(dead_code)]
#[path = "../session/common.rs"]
mod common;

mod cves;
mod defects;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host::{SecurityModel, Share, ShareOptions};
use server::{Limits, Usage};
use testkit::client::{Client, Errno};
use wire::Tsetattr;

use common::*;

static TURN: Mutex<()> = Mutex::new(());

/// A share with a secret beside it; one at a time.
struct Case {
    f: Fixture,
    before: usize,
    outside: Vec<(PathBuf, [i64; 6])>,
    _turn: MutexGuard<'static, ()>,
}

impl Case {
    fn new(model: SecurityModel) -> Case {
        Case::with(model, Limits::default(), |_| {})
    }

    fn with(model: SecurityModel, limits: Limits, change: impl FnOnce(&mut ShareOptions)) -> Case {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // What another test opens for a moment, before its turn, is not to be waited for in the end.
        let before = (0..5).map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            descriptors()
        });
        let before = before.min().unwrap_or_default();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        let outside = outside(dir.path());
        let mut options = ShareOptions::new(dir.path().join("share"), model);
        change(&mut options);
        let share = Arc::new(Share::open(&options).unwrap());
        Case {
            f: Fixture::on(dir, share, limits),
            before,
            outside,
            _turn: turn,
        }
    }

    /// A path in the share, on the host.
    fn share(&self, name: &str) -> PathBuf {
        self.f.path("share").join(name)
    }

    fn put(&self, name: &str, data: &str) {
        fs::write(self.share(name), data).unwrap();
    }

    fn client(&mut self) -> &mut Client<Backend> {
        &mut self.f.client
    }

    /// Names in the share, as the host sees them.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.share("")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Nothing outside of the share is other than it was.
    fn nothing_got_out(&self) {
        assert_eq!(outside(self.f.dir.path()), self.outside);
        assert_eq!(fs::read(self.f.path("outside/secret")).unwrap(), b"secret");
    }

    /// Neither fids nor descriptors are left once the client begins anew, nor anything once it has gone.
    fn nothing_is_left(mut self) {
        self.nothing_got_out();
        self.client().version(8192).unwrap();
        // What is much is freed in the background.
        until(|| self.f.session.usage() == Usage::default());
        let Case { f, before, .. } = self;
        drop(f);
        until(|| descriptors() <= before);
    }
}

/// Waits until `nothing` is left; not for ever.
fn until(mut nothing: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !nothing() {
        assert!(Instant::now() < end, "something is left");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What is beside the share, and the directory above it.
fn outside(base: &Path) -> Vec<(PathBuf, [i64; 6])> {
    let mut all = vec![base.to_owned()];
    for dir in [base.to_owned(), base.join("outside")] {
        let entries = fs::read_dir(dir).unwrap();
        all.extend(
            entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| !path.ends_with("share")),
        );
    }
    all.sort();
    let attributes = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        let attributes = [
            meta.mode().into(),
            meta.uid().into(),
            meta.gid().into(),
            meta.nlink() as i64,
            meta.ctime(),
            meta.ctime_nsec(),
        ];
        (path, attributes)
    };
    all.into_iter().map(attributes).collect()
}

/// As `nobody`, without any capability.
fn unprivileged(test: impl FnOnce() + Send + 'static) {
    // Credentials are a thread's own, as the kernel has it.
    let thread = std::thread::spawn(|| {
        // SAFETY: plain system calls that concern this thread alone, which ends with the test.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, 1234, 1234, 1234), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, 1234, 1234, 1234), 0);
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Tsetattr of the size with the times that Linux sends along with it.
fn truncate_with_times(client: &mut Client<Backend>, fid: u32, size: u64) -> Result<(), Errno> {
    client.setattr(&Tsetattr {
        fid,
        valid: wire::P9_SETATTR_SIZE | wire::P9_SETATTR_MTIME | wire::P9_SETATTR_CTIME,
        size,
        ..Tsetattr::default()
    })
}
