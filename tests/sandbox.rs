//! The sandbox from inside: what a program that a guest has taken over would try, made by the program itself on the thread
//! that the guest would have (`src/sandbox/probe.rs`, debug builds only), under each setting that claims to refuse it.

#![cfg(debug_assertions)]

use std::fs::{self, File, Permissions};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;
use testkit::{Machine, MachineOptions, Vmm};
use wire::*;

/// A user that owns nothing here.
const USER: u32 = 12345;
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that is tried; `PID` is this test's process, which is of the same user as the program when that is root.
const ATTEMPTS: &[&str] = &[
    "open-etc",
    "open-above",
    "proc",
    "handle",
    "device",
    "open-device",
    "kill=PID",
    "tgkill=PID",
    "own=PID",
    "limit=PID",
    "socket",
    "connect=PID",
    "exec",
    "fork",
    "namespace",
    "ptrace=PID",
    "mount",
    "code",
    "io-uring",
    "setuid=4321",
];

/// What the namespaces and the lack of capabilities refuse, without a filter.
const BY_NAMESPACE: &[&str] = &[
    "open-etc",
    "open-above",
    "proc",
    "handle",
    "device",
    "open-device",
    "kill=PID",
    "tgkill=PID",
    "own=PID",
    "limit=PID",
    "connect=PID",
    "exec",
    "ptrace=PID",
    "mount",
    "setuid=4321",
];

/// What a new root directory, Landlock and the lack of capabilities refuse.
const BY_CHROOT: &[&str] = &[
    "open-etc",
    "open-above",
    "proc",
    "handle",
    "device",
    "exec",
    "mount",
    "setuid=4321",
];

/// What Landlock and the lack of capabilities refuse.
const BY_LANDLOCK: &[&str] = &[
    "open-etc",
    "open-above",
    "handle",
    "device",
    "mount",
    "setuid=4321",
];

/// What the filter refuses on the threads that do requests.
const BY_FILTER: &[&str] = &[
    "handle",
    "kill=PID",
    "tgkill=PID",
    "own=PID",
    "limit=PID",
    "socket",
    "connect=PID",
    "exec",
    "fork",
    "namespace",
    "ptrace=PID",
    "mount",
    "code",
    "io-uring",
    "setuid=4321",
];

/// What succeeds where nothing refuses it, and does no harm: the attempts are real ones.
const POSSIBLE: &[&str] = &[
    "open-etc",
    "open-above",
    "proc",
    "kill=PID",
    "tgkill=PID",
    "own=PID",
    "limit=PID",
    "socket",
    "connect=PID",
    "code",
    "setuid=4321",
];

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// An abstract socket of the host, which needs no directory to be found in.
fn listen() {
    static LISTENER: OnceLock<UnixListener> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let name = SocketAddr::from_abstract_name(format!("{:013}", std::process::id())).unwrap();
        UnixListener::bind_addr(&name).unwrap()
    });
}

/// A directory with a share that has a device in it, where this process may make one.
fn place() -> TempDir {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    let share = base.path().join("share");
    fs::create_dir(&share).unwrap();
    if is_root() {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&share.join("device"), SFlag::S_IFCHR, mode, makedev(1, 5)).unwrap();
        fs::set_permissions(base.path(), Permissions::from_mode(0o755)).unwrap();
        for path in [base.path(), &share] {
            chown(path, Some(USER), Some(USER)).unwrap();
        }
        fs::set_permissions(&share, Permissions::from_mode(0o777)).unwrap();
    }
    base
}

/// The program with the attempt `order` to make, as root or as an ordinary user.
fn command(base: &TempDir, ordinary: bool, order: &str) -> Command {
    let program = env!("CARGO_BIN_EXE_vhost-user-9p");
    let mut command = if ordinary && is_root() {
        let copy = base.path().join("program");
        testkit::program::copy(program.as_ref(), &copy);
        let id = USER.to_string();
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid",
                &id,
                "--regid",
                &id,
                "--clear-groups",
                "--inh-caps=-all",
                "--bounding-set=-all",
                "--",
            ])
            .arg(copy);
        command
    } else {
        Command::new(program)
    };
    command.env("VHOST_USER_9P_PROBE", order).env_remove("RUST_LOG");
    command
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Refused,
    Killed,
}

/// A program that ends with the value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives each kind of thread something to do, until `ended`: whoever has been killed answers nothing.
fn drive(socket: &Path, ended: &AtomicBool) {
    let pause = || {
        std::thread::sleep(Duration::from_millis(1));
        ended.load(Ordering::Relaxed)
    };
    while !socket.exists() {
        if pause() {
            return;
        }
    }
    let options = MachineOptions::new(Vmm::Qemu);
    let Ok((_frontend, mut transport)) = Machine::power_on(socket, &options) else {
        return;
    };
    let (none, name): (&[&[u8]], &[u8]) = (&[], b"file");
    let requests: [Tmessage<'_>; 5] = [
        Tversion {
            msize: 8192,
            version: b"9P2000.L",
        }
        .into(),
        Tattach {
            fid: 0,
            afid: NOFID,
            uname: b"",
            aname: b"",
            n_uname: 0,
        }
        .into(),
        Twalk {
            fid: 0,
            newfid: 1,
            names: Names::new(none),
        }
        .into(),
        Tlcreate {
            fid: 1,
            name,
            flags: P9_DOTL_RDWR,
            mode: 0o600,
            gid: 0,
        }
        .into(),
        // For threads that may block.
        Tfsync { fid: 1, datasync: 0 }.into(),
    ];
    let mut bytes = [0; 512];
    for request in requests {
        let len = request.encode(0, &mut bytes).unwrap();
        let token = transport.send(&bytes[..len], &[], 4096);
        while transport.try_reply(token).is_none() {
            if pause() {
                return;
            }
        }
    }
    while !pause() {}
}

/// Lets a thread of `role` make the attempt.
fn probe(role: &str, attempt: &str, ordinary: bool, options: &[&str]) -> End {
    listen();
    let attempt = attempt.replace("PID", &std::process::id().to_string());
    let base = place();
    let socket = base.path().join("socket");
    let log = base.path().join("log");
    let program = command(&base, ordinary, &format!("{role}:{attempt}"))
        .arg("--socket-path")
        .arg(&socket)
        .arg("--shared-dir")
        .arg(base.path().join("share"))
        .args(options)
        .stdin(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn();
    let _program = Ended(program.unwrap());
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| drive(&socket, &ended));
        let end = end_of(&log, &format!("{role} {attempt} {options:?}"));
        ended.store(true, Ordering::Relaxed);
        end
    })
}

/// What the log says of the attempt in the end.
fn end_of(log: &Path, what: &str) -> End {
    let until = Instant::now() + PATIENCE;
    loop {
        let log = fs::read_to_string(log).unwrap();
        let ends = [
            ("probe: done", End::Done),
            ("probe: refused", End::Refused),
            ("The worker was killed for a system call", End::Killed),
        ];
        if let Some((_, end)) = ends.iter().find(|(text, _)| log.contains(text)) {
            return *end;
        }
        assert!(Instant::now() < until, "{what}: {log}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn refused(role: &str, attempts: &[&str], options: &[&str], ordinary: bool) {
    for attempt in attempts {
        let end = probe(role, attempt, ordinary, options);
        let who = if ordinary { "an ordinary user" } else { "this user" };
        assert_ne!(end, End::Done, "{role} {attempt} {options:?} as {who}");
    }
}

/// Else the tests below would show nothing.
#[test]
fn without_a_sandbox_the_attempts_succeed() {
    if !is_root() {
        return;
    }
    for attempt in POSSIBLE {
        // Users cannot be changed without the capability, which only --check-access host keeps.
        let mut options = vec!["--sandbox", "none", "--seccomp", "none"];
        if attempt.starts_with("setuid") {
            options.extend(["--check-access", "host"]);
        }
        assert_eq!(probe("queue", attempt, false, &options), End::Done, "{attempt}");
    }
}

#[test]
fn in_the_default_sandbox_all_is_refused_in_each_mode() {
    for model in ["passthrough", "squash", "mapped-xattr", "mapped-file"] {
        refused("queue", ATTEMPTS, &["--security-model", model], false);
    }
    refused("queue", ATTEMPTS, &["--check-access", "host"], false);
}

#[test]
fn as_an_ordinary_user_all_is_refused_in_each_mode() {
    for model in ["passthrough", "squash", "mapped-xattr", "mapped-file"] {
        refused("queue", ATTEMPTS, &["--security-model", model], true);
    }
}

#[test]
fn on_every_thread_all_is_refused() {
    for role in ["pool", "control", "signals", "log"] {
        refused(role, ATTEMPTS, &[], false);
    }
}

#[test]
fn namespaces_refuse_without_a_filter() {
    let options = ["--sandbox", "namespace", "--seccomp", "none"];
    if is_root() {
        refused("queue", BY_NAMESPACE, &options, false);
    }
    refused("queue", BY_NAMESPACE, &options, true);
}

#[test]
fn a_new_root_refuses_without_a_filter() {
    if is_root() {
        refused(
            "queue",
            BY_CHROOT,
            &["--sandbox", "chroot", "--seccomp", "none"],
            false,
        );
    }
}

#[test]
fn landlock_refuses_without_a_filter() {
    let options = ["--sandbox", "landlock", "--seccomp", "none"];
    refused("queue", BY_LANDLOCK, &options, true);
}

#[test]
fn the_filter_refuses_without_a_sandbox() {
    let options = ["--sandbox", "none"];
    for role in ["queue", "pool", "control"] {
        refused(role, BY_FILTER, &options, false);
    }
    refused("queue", BY_FILTER, &options, true);
    assert_eq!(probe("queue", "exec", false, &options), End::Killed);
}

/// What the log says when the program is run as `command` and a thread that serves makes the attempt.
fn told(mut command: Command, base: &TempDir, said: &str) -> String {
    let (socket, log) = (base.path().join("socket"), base.path().join("log"));
    command
        .arg("--socket-path")
        .arg(&socket)
        .arg("--shared-dir")
        .arg(base.path().join("share"))
        .stderr(File::create(&log).unwrap());
    let _program = Ended(command.spawn().unwrap());
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| drive(&socket, &ended));
        let until = Instant::now() + PATIENCE;
        let text = loop {
            let text = fs::read_to_string(&log).unwrap();
            if text.contains(said) || Instant::now() > until {
                break text;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        ended.store(true, Ordering::Relaxed);
        text
    })
}

#[test]
fn stdin_is_not_the_workers() {
    let base = place();
    let mut command = command(&base, false, "queue:stdin");
    // A careless parent leaves a directory of the host there.
    command.stdin(File::open("/etc").unwrap());
    command.args(["--seccomp", "none"]);
    let log = told(command, &base, "probe:");
    assert!(log.contains("probe: refused"), "{log}");
}

#[test]
fn the_backtrace_of_a_panic_can_be_made() {
    // Only where the program's file can be seen there are names in it.
    for (sandbox, said) in [("none", "probe::named"), ("namespace", "   5: ")] {
        let base = place();
        let mut command = command(&base, false, "queue:panic");
        command.env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command.args(["--sandbox", sandbox]);
        let log = told(command, &base, said);
        assert!(log.contains(said), "{log}");
        assert!(log.contains("This is a mistake in the program"), "{log}");
        assert!(!log.contains("was killed"), "{log}");
    }
}
