//! The program under test, on a directory and a socket of its own.
//!
//! With `VHOST_USER_9P_PEER=qemu` in the environment it is QEMU's own virtio-9p that the tests run
//! on: a failure that shows there too is the client's or the test's. (QEMU does fail some.)

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::vm::wait_until;

/// A running backend. Dropping it kills it; [`Backend::stop`] ends it properly.
pub struct Backend {
    /// None when QEMU serves the share itself.
    child: Option<Child>,
    model: String,
    tag: String,
    dir: TempDir,
    share: PathBuf,
}

/// How to start a backend that is not the usual one.
pub struct Setup<'a> {
    pub model: &'a str,
    /// The share's name in the guest; with several shares each needs its own.
    pub tag: &'a str,
    /// Run as this user and group without any capability, in place of root.
    pub process: Option<u32>,
    /// The shared directory belongs to this user and group.
    pub owner: u32,
    /// Further options of the program.
    pub options: &'a [&'a str],
    /// A command that is to start the program, its own command line being what follows. The shared
    /// directory's path is in its environment as SHARE.
    pub through: &'a [&'a str],
}

impl Setup<'_> {
    /// What nothing is said about: root shares a directory of root.
    pub const ROOT: Setup<'static> = Setup {
        model: "passthrough",
        tag: "share",
        process: None,
        owner: 0,
        options: &[],
        through: &[],
    };

    /// Starts it on a fresh directory and waits until it listens.
    pub fn start(&self) -> Backend {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir(&share).unwrap();
        chown(&share, Some(self.owner), Some(self.owner)).unwrap();
        // Users of the guest that are not root must get in.
        fs::set_permissions(&share, Permissions::from_mode(0o755)).unwrap();
        self.start_in(dir, share)
    }

    /// Starts it on a directory that is there already and lives longer.
    pub fn start_on(&self, share: &Path) -> Backend {
        self.start_in(tempfile::tempdir().unwrap(), share.to_owned())
    }

    fn start_in(&self, dir: TempDir, share: PathBuf) -> Backend {
        let mut backend = Backend {
            child: None,
            model: self.model.to_owned(),
            tag: self.tag.to_owned(),
            dir,
            share,
        };
        if peer_is_qemu() && self.process.is_none() {
            return backend;
        }
        let dir = backend.dir.path();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_vhost-user-9p"));
        if let Some(user) = self.process {
            // It makes its socket here, and nothing else of root's is open to it: neither, perhaps,
            // the way to where the program was built.
            chown(dir, Some(user), Some(user)).unwrap();
            fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
            let built = program;
            program = dir.join("vhost-user-9p");
            testkit::program::copy(&built, &program);
        }
        let log = File::create(dir.join("log")).unwrap();
        let mut command = match self.through {
            [] => Command::new(program),
            [first, others @ ..] => {
                let mut command = Command::new(first);
                command.args(others).arg(program).env("SHARE", &backend.share);
                command
            }
        };
        if let Some(user) = self.process {
            // From root, this gives up the other groups and every capability too.
            command.uid(user).gid(user);
        }
        let mut child = command
            .arg("--socket-path")
            .arg(dir.join("socket"))
            .arg("--shared-dir")
            .arg(&backend.share)
            .args(["--security-model", self.model, "--tag", self.tag])
            .args(self.options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let socket = dir.join("socket");
        let up = wait_until(Duration::from_secs(20), || {
            socket.exists() || child.try_wait().unwrap().is_some()
        });
        if let Some(user) = self.process {
            assert_unprivileged(child.id(), user);
            let worker = testkit::program::worker(child.id());
            assert_unprivileged(worker.expect("there is a worker"), user);
        }
        backend.child = Some(child);
        assert!(
            up && socket.exists(),
            "the program does not listen:\n{}",
            backend.log()
        );
        backend
    }
}

/// A test that passes because its process has more rights than it says would show nothing.
fn assert_unprivileged(pid: u32, user: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for ids in ["Uid:", "Gid:"] {
        assert_eq!(field(ids), vec![user.to_string(); 4], "{ids}");
    }
    assert_eq!(field("Groups:"), Vec::<String>::new());
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
}

pub fn peer_is_qemu() -> bool {
    std::env::var_os("VHOST_USER_9P_PEER").is_some_and(|peer| peer == "qemu")
}

impl Backend {
    /// Root shares a fresh directory in this mode.
    pub fn start(model: &str) -> Self {
        Setup { model, ..Setup::ROOT }.start()
    }

    /// The option of `scripts/vm` that attaches this backend.
    pub fn vm_option(&self) -> [OsString; 2] {
        if self.child.is_some() {
            let mut value = self.socket().into_os_string();
            value.push(format!(",{}", self.tag));
            return ["--socket".into(), value];
        }
        // QEMU knows no other name for these two.
        let model = if self.model == "squash" {
            "none"
        } else {
            &self.model
        };
        let mut value = self.share.clone().into_os_string();
        value.push(format!(",{model}"));
        ["--in-qemu".into(), value]
    }

    /// The process that serves; None when QEMU does it itself.
    pub fn worker(&self) -> Option<u32> {
        testkit::program::worker(self.child.as_ref()?.id())
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn share(&self) -> &Path {
        &self.share
    }

    /// What is open of the share's files, directories left out, by the process that serves.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let Some(worker) = self.worker() else {
            return Vec::new();
        };
        // By device and inode: the process may see the share elsewhere.
        let share = fs::metadata(&self.share).unwrap().dev();
        let log = fs::metadata(self.dir.path().join("log")).unwrap().ino();
        fs::read_dir(format!("/proc/{worker}/fd"))
            .unwrap()
            .map(|fd| fd.unwrap().path())
            .filter(|fd| {
                fs::metadata(fd).is_ok_and(|meta| meta.is_file() && meta.dev() == share && meta.ino() != log)
            })
            .map(|fd| fs::read_link(fd).unwrap())
            .collect()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends the program with SIGTERM: it must still be alive, end by itself with status 0, and
    /// take its socket away.
    pub fn stop(mut self) {
        let Some(pid) = self.child.as_ref().map(Child::id) else {
            return;
        };
        assert_eq!(
            self.ended(),
            None,
            "the program ended on its own:\n{}",
            self.log()
        );
        let pid = Pid::from_raw(libc::pid_t::try_from(pid).unwrap());
        signal::kill(pid, Signal::SIGTERM).unwrap();
        let ended = wait_until(Duration::from_secs(20), || self.ended().is_some());
        assert!(ended, "SIGTERM does not end the program:\n{}", self.log());
        let status = self.ended().unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
        assert!(!self.socket().exists(), "the socket is still there");
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().unwrap()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("--- the program's log\n{}---", self.log());
        }
    }
}
