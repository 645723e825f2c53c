//! The program under test, as a process of its own on a directory of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::machine::{Machine, MachineOptions};
use crate::vhost_user::PATIENCE;

/// Of the log's end that is shown when a test fails, bytes.
const LOG: usize = 4000;

/// Copies the program at `from` to `to`, ready to be started.
///
/// Another process copies it: a child that another test forks meanwhile would hold our descriptor for writing until
/// its exec, and a file that is open for writing cannot be executed (ETXTBSY).
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--").args([from, to]).status();
    assert!(copied.expect("cp").success(), "{} is not copied", from.display());
}

/// The process that serves of the program that was started as `pid`: the one child that it has.
pub fn worker(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// A running program; it ends with the value, and a failing test shows its log.
pub struct Program {
    base: TempDir,
    child: Child,
}

impl Program {
    /// Starts `command`, the program or what runs it, on the directory `share` in `base` (which is there already), in
    /// squash and with `options`, and waits until its socket is there.
    pub fn start(command: Command, base: TempDir, options: &[&str]) -> Program {
        let log = File::create(base.path().join("log")).expect("create");
        Program::start_telling(log, command, base, options)
    }

    /// As [`Program::start`], with `stderr` for its log.
    pub fn start_telling(
        stderr: impl Into<Stdio>,
        mut command: Command,
        base: TempDir,
        options: &[&str],
    ) -> Program {
        let child = command
            .arg("--socket-path")
            .arg(base.path().join("socket"))
            .arg("--shared-dir")
            .arg(base.path().join("share"))
            .args(["--security-model", "squash"])
            .args(options)
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the program starts");
        let mut program = Program { base, child };
        let end = Instant::now() + PATIENCE;
        while !program.socket().exists() {
            let ended = program.child.try_wait().expect("wait");
            assert!(ended.is_none(), "it ended with {ended:?}");
            assert!(Instant::now() < end, "no socket");
            std::thread::sleep(Duration::from_millis(2));
        }
        program
    }

    /// The directory it shares.
    pub fn share(&self) -> PathBuf {
        self.base.path().join("share")
    }

    /// The socket it listens on.
    pub fn socket(&self) -> PathBuf {
        self.base.path().join("socket")
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that serves.
    pub fn worker(&self) -> u32 {
        worker(self.pid()).expect("there is a worker")
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.base.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A machine at its socket.
    pub fn boot(&self, options: &MachineOptions) -> Machine {
        Machine::boot(&self.socket(), options).expect("the machine boots")
    }

    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.worker());
        fs::read_dir(path).expect("procfs").count()
    }

    /// Sends a signal that is to end it; gives what it ended with.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("kill");
        self.ended()
    }

    /// Waits for its end; gives what it ended with.
    pub fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let end = log.get(log.len().saturating_sub(LOG)..).unwrap_or(&log);
            eprintln!("--- the end of the program's log\n{end}---");
        }
    }
}
