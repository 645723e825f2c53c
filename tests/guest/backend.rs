//! The program under test, on a directory and a socket of its own.
//!
//! With `VHOST_USER_9P_PEER=qemu` in the environment it is QEMU's own virtio-9p that the tests run
//! on: a failure that shows there too is the client's or the test's. (QEMU does fail some.)

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
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
    dir: TempDir,
    share: PathBuf,
}

impl Backend {
    /// Starts the program on a fresh directory and waits until it listens.
    pub fn start(model: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir(&share).unwrap();
        // Users of the guest that are not root must get in.
        fs::set_permissions(&share, Permissions::from_mode(0o755)).unwrap();
        let model = model.to_owned();
        if std::env::var_os("VHOST_USER_9P_PEER").is_some_and(|peer| peer == "qemu") {
            return Backend {
                child: None,
                model,
                dir,
                share,
            };
        }
        let log = File::create(dir.path().join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_vhost-user-9p"))
            .arg("--socket-path")
            .arg(dir.path().join("socket"))
            .arg("--shared-dir")
            .arg(&share)
            .args(["--security-model", &model])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let socket = dir.path().join("socket");
        let up = wait_until(Duration::from_secs(20), || {
            socket.exists() || child.try_wait().unwrap().is_some()
        });
        let backend = Backend {
            child: Some(child),
            model,
            dir,
            share,
        };
        assert!(
            up && backend.socket().exists(),
            "the program does not listen:\n{}",
            backend.log()
        );
        backend
    }

    /// The option of `scripts/vm` that attaches this backend.
    pub fn vm_option(&self) -> [OsString; 2] {
        if self.child.is_some() {
            return ["--socket".into(), self.socket().into()];
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

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn share(&self) -> &Path {
        &self.share
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
