//! The program behind its socket, requests of the tests' own tags, and host locks.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use testkit::{Machine, MachineOptions, RingOptions, Vmm};
use wire::{Rmessage, Tmessage};

/// A user that owns nothing here.
pub const STRANGER: u32 = 12345;

/// One test at a time: each of them keeps two processors busy, and several would measure each other.
static TURN: Mutex<()> = Mutex::new(());

/// A running program, ended with the value.
pub struct Program {
    running: testkit::Program,
    _turn: MutexGuard<'static, ()>,
}

/// The variable's number, or `default`.
pub fn number(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    }
}

fn executable() -> PathBuf {
    let given = std::env::var_os("SCALE_PROGRAM");
    given.map_or_else(|| env!("CARGO_BIN_EXE_vhost-user-9p").into(), PathBuf::from)
}

impl Program {
    /// With whatever this process may do.
    pub fn start(more: &[&str]) -> Program {
        Program::run(Command::new, more)
    }

    /// With a limit of the process, as an option of prlimit(1).
    pub fn start_limited(limit: &str, more: &[&str]) -> Program {
        let wrap = |program: PathBuf| {
            let mut command = Command::new("prlimit");
            command.args([limit, "--"]).arg(program);
            command
        };
        Program::run(wrap, more)
    }

    /// As a user without capabilities (this process may be none itself).
    pub fn start_unprivileged(more: &[&str]) -> Program {
        if !nix::unistd::geteuid().is_root() {
            return Program::start(more);
        }
        let wrap = |program: PathBuf| {
            let id = STRANGER.to_string();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
            command.args(["--inh-caps=-all", "--bounding-set=-all", "--"]);
            command.arg(program);
            command
        };
        Program::run(wrap, more)
    }

    /// On a directory that passes mounts made in it later on, as every directory does where systemd runs.
    pub fn start_with_mounts(more: &[&str]) -> Program {
        Program::run_on(Command::new, more, |share| {
            let none: Option<&str> = None;
            let made = mount(Some(share), share, none, MsFlags::MS_BIND, none)
                .and_then(|()| mount(none, share, none, MsFlags::MS_SHARED, none));
            if let Err(error) = made {
                println!("later mounts will not be seen: {error}");
            }
        })
    }

    fn run(command: impl FnOnce(PathBuf) -> Command, more: &[&str]) -> Program {
        Program::run_on(command, more, |_| {})
    }

    fn run_on(
        command: impl FnOnce(PathBuf) -> Command,
        more: &[&str],
        prepare: impl FnOnce(&Path),
    ) -> Program {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let base = tempfile::tempdir().expect("a temporary directory");
        let share = base.path().join("share");
        fs::create_dir(&share).expect("mkdir");
        // The program where a stranger reaches it.
        let program = base.path().join("program");
        if fs::hard_link(executable(), &program).is_err() {
            testkit::program::copy(&executable(), &program);
        }
        if nix::unistd::geteuid().is_root() {
            fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
            for path in [base.path(), &share] {
                chown(path, Some(STRANGER), Some(STRANGER)).expect("chown");
            }
        }
        prepare(&share);
        Program {
            running: testkit::Program::start(command(program), base, more),
            _turn: turn,
        }
    }

    /// Takes away what was mounted at the share, if anything was.
    fn unmount(&self) {
        let _ = umount2(&self.share(), MntFlags::MNT_DETACH);
    }

    pub fn share(&self) -> PathBuf {
        self.running.share()
    }

    pub fn log(&self) -> String {
        self.running.log()
    }

    /// A machine with a ring of 128 and payloads of up to `payload` bytes.
    pub fn boot(&self, payload: usize) -> Machine {
        let options = MachineOptions {
            ring: RingOptions {
                size: 128,
                ..RingOptions::default()
            },
            payload,
            ..MachineOptions::new(Vmm::Qemu)
        };
        self.running.boot(&options)
    }

    /// Descriptors of the program.
    pub fn descriptors(&self) -> usize {
        self.running.descriptors()
    }

    /// Resident anonymous memory of the program, bytes; the guest's memory is not in it.
    pub fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.running.worker())).expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .expect("RssAnon");
        kib.parse::<usize>().expect("a number") << 10
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// The message's bytes.
pub fn frame<'a>(message: impl Into<Tmessage<'a>>, tag: u16) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    let len = message.into().encode(tag, &mut bytes).expect("it fits");
    bytes.truncate(len);
    bytes
}

/// The reply to the request with `tag`.
pub fn answer(reply: &[u8], tag: u16) -> Rmessage<'_> {
    let (of, message) = Rmessage::decode(reply).unwrap_or_else(|error| panic!("{error:?} of {reply:?}"));
    assert_eq!(of, tag, "{message:?}");
    message
}

/// Takes or drops a lock on `len` bytes (0: all), as another program on the host does; whether it could.
pub fn host_lock(file: &File, kind: i32, start: u64, len: u64) -> bool {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: len as libc::off_t,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open and `lock` is a valid flock for the duration of the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) == 0 }
}
