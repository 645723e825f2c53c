//! The outer process and its worker: what each of them sees and may do, and what becomes of one when the other ends.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::{Errno, Machine, MachineOptions, Program, Vmm, scenario};
use wire::P9_DOTL_RDWR;

/// A user that owns nothing here.
const USER: u32 = 12345;
const NAMESPACES: [&str; 5] = ["mnt", "net", "ipc", "uts", "pid"];

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn place() -> TempDir {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::create_dir(base.path().join("share")).unwrap();
    base
}

fn start(options: &[&str]) -> Program {
    Program::start(
        Command::new(env!("CARGO_BIN_EXE_vhost-user-9p")),
        place(),
        options,
    )
}

/// Started by root through setpriv(1), with `options` of it.
fn start_as(setpriv: &[&str], options: &[&str]) -> Program {
    let base = place();
    let copy = base.path().join("program");
    testkit::program::copy(env!("CARGO_BIN_EXE_vhost-user-9p").as_ref(), &copy);
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for path in [base.path(), &base.path().join("share")] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(setpriv).arg("--").arg(copy);
    Program::start(command, base, options)
}

fn boot(program: &Program) -> Machine {
    program.boot(&MachineOptions::new(Vmm::Qemu))
}

/// A field of /proc/PID/status.
fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_string()
}

/// Capability sets as bits.
fn capabilities(pid: u32, set: &str) -> u64 {
    u64::from_str_radix(&status(pid, set), 16).unwrap()
}

fn mask(capabilities: &[u32]) -> u64 {
    capabilities.iter().map(|cap| 1 << cap).sum()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists() && !status(pid, "State").starts_with('Z')
}

#[test]
fn the_worker_has_namespaces_of_its_own_and_sees_the_share_alone() {
    let program = start(&[]);
    fs::write(program.share().join("file"), "").unwrap();
    let worker = program.worker();
    for name in NAMESPACES {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&worker.to_string()), of("self"), "{name}");
        assert_eq!(of(&program.pid().to_string()), of("self"), "{name}");
    }
    let root: Vec<_> = fs::read_dir(format!("/proc/{worker}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(root, ["file"]);
    let mounts = fs::read_to_string(format!("/proc/{worker}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for flag in ["nodev", "nosuid", "noexec"] {
        assert!(mounts.contains(flag), "{mounts}");
    }
    let mut machine = boot(&program);
    scenario::end_to_end(&mut machine.client, &program.share());
}

#[test]
fn a_read_only_share_is_so_for_the_kernel_too() {
    let program = start(&["--readonly"]);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", program.worker())).unwrap();
    assert!(
        mounts
            .split(' ')
            .nth(5)
            .unwrap()
            .split(',')
            .any(|flag| flag == "ro"),
        "{mounts}"
    );
}

#[test]
fn the_whole_host_can_be_shared() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("share")).unwrap();
    let program = Program::start(
        Command::new(env!("CARGO_BIN_EXE_vhost-user-9p")),
        base,
        &["--shared-dir", "/", "--readonly"],
    );
    let mut machine = boot(&program);
    machine.client.walk_all(0, 1, &["proc", "self"]).unwrap();
    machine.client.walk_all(0, 2, &["etc", "passwd"]).unwrap();
}

#[test]
fn it_keeps_the_capabilities_of_its_mode_and_no_others() {
    if !is_root() {
        return;
    }
    let own = [0, 1, 3, 4]; // CHOWN, DAC_OVERRIDE, FOWNER, FSETID
    for (options, kept) in [
        (&["--security-model", "passthrough"][..], mask(&own)),
        (&["--security-model", "squash"], mask(&own)),
        (
            &["--security-model", "passthrough", "--allow-devices"],
            mask(&own) | mask(&[27]),
        ),
        (&["--security-model", "mapped-xattr"], 0),
        (&["--security-model", "mapped-file"], 0),
        (&["--check-access", "host"], mask(&own) | mask(&[6, 7])),
        (&["--file-handles", "open"], mask(&own) | mask(&[2])),
        (&["--sandbox", "none"], mask(&own)),
        (&["--sandbox", "chroot"], mask(&own)),
    ] {
        let program = start(options);
        let worker = program.worker();
        assert_eq!(capabilities(worker, "CapPrm"), kept, "{options:?}");
        assert_eq!(capabilities(worker, "CapEff") & !kept, 0, "{options:?}");
        assert_eq!(capabilities(worker, "CapBnd"), kept, "{options:?}");
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(capabilities(worker, set), 0, "{options:?}");
        }
    }
}

#[test]
fn it_gains_no_rights_and_leaves_no_core() {
    for options in [&[][..], &["--sandbox", "none"], &["--seccomp", "none"]] {
        let program = start(options);
        let worker = program.worker();
        assert_eq!(status(worker, "NoNewPrivs"), "1");
        let filtered = if options.contains(&"--seccomp") { "0" } else { "2" };
        assert_eq!(status(worker, "Seccomp"), filtered, "{options:?}");
        let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"));
        // A process that may not be dumped belongs to root in /proc, whoever runs it.
        assert_eq!(fs::metadata(format!("/proc/{worker}/environ")).unwrap().uid(), 0);
    }
}

#[test]
fn an_ordinary_user_gets_namespaces_too() {
    if !is_root() {
        return;
    }
    let id = USER.to_string();
    let ordinary = [
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "--bounding-set=-all",
    ];
    for model in ["squash", "mapped-xattr", "mapped-file"] {
        let program = start_as(&ordinary, &["--security-model", model]);
        let worker = program.worker();
        let user = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert_ne!(user(&worker.to_string()), user("self"), "{}", program.log());
        assert_eq!(capabilities(worker, "CapPrm"), 0);
        let client = &mut boot(&program).client;
        client.clone_fid(0, 1).unwrap();
        client.lcreate(1, "made", P9_DOTL_RDWR, 0o600, USER).unwrap();
        client.write(1, 0, b"content").unwrap();
        client.mkdir(0, "dir", 0o700, USER).unwrap();
        client.renameat(0, "made", 0, "renamed").unwrap();
        let made = fs::metadata(program.share().join("renamed")).unwrap();
        assert_eq!((made.uid(), made.gid(), made.len()), (USER, USER, 7));
        // The user namespace knows this user alone.
        fs::write(program.share().join("another's"), "").unwrap();
        client.walk_all(0, 2, &["another's"]).unwrap();
        let shown = client.stat(2).unwrap();
        assert_eq!((shown.uid, shown.gid), (65534, 65534));
        let refused = client.lopen(2, P9_DOTL_RDWR);
        assert_eq!(refused.map(drop), Err(Errno::EACCES));
        let path = program.share().join("another's");
        let said = format!("open \"{}\" was refused", path.display());
        until("it is not said", || {
            let log = program.log();
            log.contains(&said) && log.contains("belongs to another user")
        });
        client.walk_all(0, 3, &["dir"]).unwrap();
        let shown = client.stat(3).unwrap();
        assert_eq!(shown.gid, USER);
    }
}

#[test]
fn in_the_mapped_modes_root_is_told_to_be_the_owner() {
    if !is_root() {
        return;
    }
    for model in ["mapped-xattr", "mapped-file"] {
        let program = start_as(&["--clear-groups"], &["--security-model", model]);
        let log = program.log();
        assert!(
            log.contains(&format!("belongs to {USER}:{USER} with mode 0755")),
            "{log}"
        );
        assert!(log.contains(&format!("run it as user {USER}")), "{log}");
        assert!(
            !start(&["--security-model", model])
                .log()
                .contains("run it as user")
        );
    }
}

#[test]
fn without_the_rights_for_namespaces_the_next_level_is_taken_and_said() {
    if !is_root() {
        return;
    }
    for (lacking, level) in [
        ("-sys_admin", "Sandbox: chroot;"),
        ("-sys_admin,-sys_chroot", "Sandbox: Landlock;"),
    ] {
        let without = format!("--bounding-set={lacking}");
        let setpriv = ["--inh-caps=-all", &without];
        let program = start_as(&setpriv, &[]);
        let log = program.log();
        assert_eq!(
            log.matches("is not possible here").count(),
            lacking.split(',').count(),
            "{log}"
        );
        let mut machine = boot(&program);
        scenario::end_to_end(&mut machine.client, &program.share());
        assert!(program.log().contains(level), "{}", program.log());
    }
}

#[test]
fn a_level_that_was_asked_for_is_not_replaced() {
    if !is_root() {
        return;
    }
    let base = place();
    let mut command = Command::new("setpriv");
    command
        .args(["--inh-caps=-all", "--bounding-set=-sys_admin", "--"])
        .arg(env!("CARGO_BIN_EXE_vhost-user-9p"))
        .args(["--sandbox", "namespace", "--socket-path"])
        .arg(base.path().join("socket"))
        .arg("--shared-dir")
        .arg(base.path().join("share"));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("--sandbox namespace is not possible here"),
        "{said}"
    );
    assert!(!base.path().join("socket").exists());
}

#[test]
fn the_end_of_the_outer_process_is_the_end_of_the_worker() {
    for options in [&[][..], &["--sandbox", "none"]] {
        let program = start(options);
        let worker = program.worker();
        kill(Pid::from_raw(program.pid().cast_signed()), Signal::SIGKILL).unwrap();
        until("the worker lives on", || !runs(worker));
    }
}

#[test]
fn a_worker_that_is_killed_is_told_of_and_its_socket_removed() {
    let mut program = start(&[]);
    let worker = program.worker();
    kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL).unwrap();
    let ended = program.ended();
    assert_eq!(ended.code(), Some(1));
    let log = program.log();
    assert!(log.contains("The worker was ended by SIGKILL"), "{log}");
    assert!(!program.socket().exists());
}

#[test]
fn a_worker_that_does_not_end_is_made_to() {
    let mut program = start(&[]);
    kill(Pid::from_raw(program.worker().cast_signed()), Signal::SIGSTOP).unwrap();
    assert!(program.end(Signal::SIGTERM).success());
    assert!(!program.socket().exists());
}

/// Descriptors by what they are.
fn descriptors(pid: u32) -> HashSet<String> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // What it was started with.
        .filter(|path| {
            !["0", "1", "2"]
                .map(Some)
                .contains(&path.file_name().and_then(|name| name.to_str()))
        })
        .filter_map(|path| fs::read_link(path).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn the_outer_process_holds_nothing_of_the_share_and_the_worker_nothing_of_the_host() {
    // A careless parent leaves a directory of the host open.
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec 7</etc; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_vhost-user-9p"));
    let program = Program::start(command, place(), &[]);
    let share = program.share().to_string_lossy().into_owned();
    for target in descriptors(program.pid()) {
        assert!(!target.starts_with(&share), "{target}");
    }
    let mut machine = boot(&program);
    scenario::end_to_end(&mut machine.client, &program.share());
    let log = program.share().with_file_name("log");
    for target in descriptors(program.worker()) {
        let own = target.starts_with("anon_inode:")
            || target.starts_with("socket:")
            || target.starts_with("/memfd:")
            || target.starts_with("/dev/null")
            // Open files of the front-end that has gone are not closed at once.
            || target.starts_with("/e2e-")
            || Path::new(&target) == log
            // Its root directory, and /proc/self/fd, seen from outside.
            || target == "/"
            || target.starts_with("/proc/") && target.ends_with("/fd")
            || target.ends_with("/fd");
        assert!(own, "{target}");
    }
}

#[cfg(debug_assertions)]
#[test]
fn before_linux_6_13_extended_attributes_are_found_in_each_sandbox() {
    let levels: &[&str] = if is_root() {
        &["namespace", "chroot", "none"]
    } else {
        &["namespace", "none"]
    };
    for level in levels {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-9p"));
        command.env("VHOST_USER_9P_OLD_KERNEL", "1");
        let options = ["--security-model", "mapped-xattr", "--sandbox", level];
        let program = Program::start(command, place(), &options);
        let client = &mut boot(&program).client;
        client.mkdir(0, "dir", 0o750, 4321).unwrap();
        client.walk_all(0, 1, &["dir"]).unwrap();
        let shown = client.stat(1).unwrap();
        assert_eq!((shown.mode & 0o777, shown.gid), (0o750, 4321), "{level}");
    }
}
