//! The built program: what it says, how it ends, what it leaves behind.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Generous: only a program that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-9p"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

/// A directory with a directory to share in it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        Place { dir }
    }

    fn share(&self) -> String {
        self.path("share").to_str().unwrap().to_string()
    }

    fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Options for this share and socket, and `more`.
    fn command(&self, more: &[&str]) -> Command {
        let mut command = program();
        command
            .args(["--security-model", "squash", "--shared-dir"])
            .arg(self.share())
            .arg("--socket-path")
            .arg(self.socket())
            .args(more);
        command
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Starts the program and waits until its socket is there.
    fn start(&self) -> Running {
        self.start_with(&[])
    }

    /// As [`Place::start`], with `more` options.
    fn start_with(&self, more: &[&str]) -> Running {
        let mut child = self.command(more).stderr(Stdio::piped()).spawn().unwrap();
        until(|| {
            assert!(child.try_wait().unwrap().is_none(), "it ended at once");
            UnixStream::connect(self.socket()).is_ok()
        });
        Running { child }
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "it does not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

struct Running {
    child: Child,
}

impl Running {
    /// Sends `signal`; gives exit status and stderr.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).unwrap();
        }
        (status.code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The one sentence on stderr.
fn sentence(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.starts_with("error: ") && said.trim_end().ends_with('.'),
        "{said}"
    );
    said
}

fn refused(command: &mut Command, status: i32, says: &str) {
    let output = command.output().unwrap();
    let said = sentence(&output);
    assert!(said.contains(says), "{said}");
    assert_eq!(output.status.code(), Some(status), "{said}");
}

/// VHOST_USER_GET_FEATURES over `stream`.
fn features(stream: &mut UnixStream) -> u64 {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let message: Vec<u8> = [1u32, 1, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    stream.write_all(&message).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    u64::from_le_bytes(reply[12..].try_into().unwrap())
}

const MOUNT_TAG: u64 = 1;

#[test]
fn help_explains_itself() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "--socket-path",
        "--socket-group",
        "--socket-mode",
        "--fd",
        "--shared-dir",
        "--tag",
        "--security-model",
        "--accessmode",
        "mapped-xattr",
        "--readonly",
        "--log-level",
        "--print-capabilities",
        "--poll-us",
        "--io-threads",
        "--rlimit-nofile",
        "--fmode",
        "--dmode",
        "--multidevs",
        "--check-access",
        "--uid-map",
        "--gid-map",
        "--squash-root",
        "--squash-all",
        "--forbid-ids",
        "--allow-devices",
        "--allow-xattrs",
        "share=on",
        "vhost-user-test-device-pci",
        "mount -t 9p",
    ] {
        assert!(help.contains(word), "{word} is not explained:\n{help}");
    }
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Usage"));
}

#[test]
fn version_and_capabilities_need_no_share() {
    let output = run(&["--version"]);
    let version = format!("vhost-user-9p {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), version);
    let output = run(&["--print-capabilities"]);
    assert_eq!(output.status.code(), Some(0));
    let json: String = String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(json, r#"{"type":"9p","features":[]}"#);
}

#[test]
fn a_wrong_command_line_is_one_sentence_and_status_2() {
    let place = Place::new();
    refused(&mut place.command(&["--frobnicate"]), 2, "--frobnicate");
    refused(&mut place.command(&["--accessmode", "open"]), 2, "open");
    refused(&mut place.command(&["--fmode", "999"]), 2, "octal");
    refused(&mut place.command(&["--poll-us", "-1"]), 2, "-1");
    refused(&mut place.command(&["--io-threads", "0"]), 2, "0");
    refused(&mut place.command(&["--fd", "7"]), 2, "--fd");
    refused(&mut place.command(&["--uid-map", "0:1"]), 2, "GUEST:HOST:COUNT");
    refused(
        &mut place.command(&["--gid-map", "0:1000:10", "--gid-map", "5:2000:10"]),
        2,
        "overlap",
    );
    refused(&mut place.command(&["--multidevs", "perhaps"]), 2, "perhaps");
    refused(&mut place.command(&["--allow-xattrs", "system"]), 2, "system");
    for id in ["4294967295:0", "0:4294967295", "+1:0", ":", "0"] {
        refused(&mut place.command(&["--squash-all", id]), 2, id);
        refused(&mut place.command(&["--squash-root", id]), 2, id);
    }
    for range in [
        "4294967295:0:1",
        "0:4294967295:1",
        "0:0:4294967295",
        "2:0:4294967294",
    ] {
        refused(&mut place.command(&["--uid-map", range]), 2, range);
    }
    refused(
        &mut place.command(&["--forbid-ids", "0-4294967295"]),
        2,
        "4294967294",
    );
    for restriction in [
        &["--security-model", "squash"][..],
        &["--security-model", "mapped"],
        &["--squash-root", "1:1"],
        &["--squash-all", "1:1"],
        &["--uid-map", "0:1:1"],
        &["--gid-map", "0:1:1"],
        &["--forbid-ids", "0"],
        &["--check-access", "host"],
    ] {
        let both = [restriction, &["--allow-devices"]].concat();
        refused(&mut place.command(&both), 2, "--allow-devices");
        if restriction[1] != "squash" {
            let both = [restriction, &["--allow-xattrs", "trusted,security"]].concat();
            refused(&mut place.command(&both), 2, "--allow-xattrs");
        }
    }
    refused(&mut place.command(&["--tag", ""]), 2, "tag");
    refused(&mut place.command(&["--tag", &"x".repeat(255)]), 2, "255 bytes");
    refused(
        program().args(["--shared-dir", &place.share()]),
        2,
        "--socket-path",
    );
    refused(program().args(["--socket-path", "/x"]), 2, "--shared-dir");
    let long = place.path(&"x".repeat(108));
    refused(
        program()
            .args(["--shared-dir", &place.share(), "--socket-path"])
            .arg(long),
        2,
        "107",
    );
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn a_host_that_is_not_as_it_should_be_is_one_sentence_and_status_1() {
    let place = Place::new();
    let missing = place.path("missing");
    let missing = missing.to_str().unwrap();
    refused(
        &mut place.command(&["--shared-dir", missing]),
        1,
        "No such file or directory",
    );
    fs::write(place.path("file"), "x").unwrap();
    let file = place.path("file");
    let file = file.to_str().unwrap();
    refused(&mut place.command(&["--shared-dir", file]), 1, "not a directory");
    refused(&mut place.command(&["--socket-path", file]), 1, "not a socket");
    let nowhere = format!("{missing}/socket");
    refused(
        &mut place.command(&["--socket-path", &nowhere]),
        1,
        "No such file or directory",
    );
    refused(
        &mut place.command(&["--rlimit-nofile", "99999999999"]),
        1,
        "--rlimit-nofile",
    );
    assert_eq!(fs::read(place.path("file")).unwrap(), b"x");
    assert_eq!(place.names(), ["file", "share"]);
}

#[test]
fn a_live_socket_is_respected_and_a_dead_one_replaced() {
    let place = Place::new();
    let live = UnixListener::bind(place.socket()).unwrap();
    refused(&mut place.command(&[]), 1, "in use");
    assert!(UnixStream::connect(place.socket()).is_ok());
    drop(live);
    // Not dead at once: a child that another test forks at that moment holds the listener until its exec.
    until(|| UnixStream::connect(place.socket()).is_err());
    let running = place.start();
    assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
}

#[test]
fn signals_end_it_and_remove_the_socket() {
    let place = Place::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let running = place.start();
        let found = fs::symlink_metadata(place.socket()).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        let (status, said) = running.end(signal);
        assert_eq!(status, Some(0), "{said}");
        assert!(said.contains("Sharing ") && said.contains("squash"), "{said}");
        assert_eq!(place.names(), ["share"]);
    }
}

#[test]
fn a_signal_ends_it_while_a_front_end_is_connected() {
    let place = Place::new();
    let running = place.start();
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    assert_ne!(features(&mut stream) & MOUNT_TAG, 0);
    assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
    assert_eq!(place.names(), ["share"]);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn another_programs_socket_is_not_removed() {
    let place = Place::new();
    let running = place.start();
    fs::remove_file(place.socket()).unwrap();
    let _other = UnixListener::bind(place.socket()).unwrap();
    assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
    assert_eq!(place.names(), ["share", "socket"]);
}

/// Open descriptors of process `pid`.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn front_ends_come_one_after_the_other_and_leave_nothing() {
    let place = Place::new();
    let running = place.start();
    let pid = testkit::program::worker(running.child.id()).expect("there is a worker");
    let mut before = None;
    for round in 0..8 {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        assert_ne!(features(&mut stream) & MOUNT_TAG, 0);
        if round == 2 {
            before = Some(descriptors(pid));
        }
        // A message that is none ends the connection, not the program.
        if round % 2 == 1 {
            stream.write_all(&[0xff; 64]).unwrap();
            assert_eq!(stream.read(&mut [0; 64]).unwrap_or(0), 0);
        }
    }
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    features(&mut stream);
    assert_eq!(before, Some(descriptors(pid)));
    assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
}

/// `command` with `listener` inherited as the descriptor that `--fd` names.
fn with_fd(place: &Place, listener: &impl AsFd) -> Command {
    // /bin/sh hands it on: what this process opens is closed on exec.
    let mut command = Command::new("/bin/sh");
    command
        .env_remove("RUST_LOG")
        .args([
            "-c",
            r#"exec "$0" --security-model squash --shared-dir "$1" --fd 9 9<&0 </dev/null"#,
            env!("CARGO_BIN_EXE_vhost-user-9p"),
        ])
        .arg(place.share());
    // Closed on exec in the children of other tests.
    command.stdin(listener.as_fd().try_clone_to_owned().unwrap());
    command
}

#[test]
fn an_inherited_socket_is_served() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let child = with_fd(&place, &listener).stderr(Stdio::piped()).spawn().unwrap();
    let running = Running { child };
    for _ in 0..2 {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        assert_ne!(features(&mut stream) & MOUNT_TAG, 0);
    }
    assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
    assert!(Path::exists(&place.socket()), "it was not ours to remove");
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let place = Place::new();
    let (stream, _other) = UnixStream::pair().unwrap();
    refused(&mut with_fd(&place, &stream), 1, "not a listening");
    let file = fs::File::open(place.dir.path()).unwrap();
    refused(&mut with_fd(&place, &file), 1, "not a listening");
    refused(
        program().args(["--shared-dir", &place.share(), "--fd", "99"]),
        1,
        "no such descriptor",
    );
    refused(
        program().args(["--shared-dir", &place.share(), "--fd", "1"]),
        1,
        "standard stream",
    );
}

/// A group that nobody is in, and a user that nobody is.
const GROUP: u32 = 54_321;
const USER: u32 = 1234;

/// `command` as [`USER`], a member of `groups`, without capabilities. The program is a copy that it may execute.
fn as_user(place: &Place, groups: &[u32]) -> Command {
    let copy = place.path("program");
    if !copy.exists() {
        testkit::program::copy(Path::new(env!("CARGO_BIN_EXE_vhost-user-9p")), &copy);
        for path in [place.dir.path(), &place.path("share"), &copy] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }
    let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
    let user = USER.to_string();
    let mut command = Command::new("setpriv");
    command
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .args(["--reuid", &user, "--regid", &user])
        .args(match groups.is_empty() {
            true => vec!["--clear-groups".to_string()],
            false => vec!["--groups".to_string(), groups.join(",")],
        })
        .arg(copy)
        .args(["--security-model", "squash", "--shared-dir"])
        .arg(place.share());
    command
}

/// Whether [`USER`] as a member of `groups` can connect: the program looks whether somebody listens.
fn connects(place: &Place, groups: &[u32]) -> bool {
    let output = as_user(place, groups)
        .arg("--socket-path")
        .arg(place.socket())
        .output()
        .unwrap();
    let said = sentence(&output);
    let connected = said.contains("another program listens there");
    assert!(connected || said.contains("Permission denied"), "{said}");
    connected
}

/// Group and permissions of the socket.
fn access(place: &Place) -> (u32, u32) {
    let found = fs::symlink_metadata(place.socket()).unwrap();
    (found.gid(), found.mode() & 0o7777)
}

#[test]
fn the_socket_has_the_group_and_mode_that_are_asked_for() {
    let place = Place::new();
    let own = fs::metadata(place.dir.path()).unwrap().gid();
    let group = GROUP.to_string();
    for (options, expected, member, other) in [
        (vec![], (own, 0o600), false, false),
        (vec!["--socket-mode", "0660"], (own, 0o660), false, false),
        (vec!["--socket-mode", "666"], (own, 0o666), true, true),
        (vec!["--socket-group", &group], (GROUP, 0o660), true, false),
        (
            vec!["--socket-group", &group, "--socket-mode", "0620"],
            (GROUP, 0o620),
            true,
            false,
        ),
        (vec!["--socket-group", "daemon"], (1, 0o660), false, false),
    ] {
        let running = place.start_with(&options);
        assert_eq!(access(&place), expected, "{options:?}");
        assert_eq!(connects(&place, &[GROUP]), member, "{options:?}");
        assert_eq!(connects(&place, &[]), other, "{options:?}");
        assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
        assert!(!place.socket().exists());
    }
}

#[test]
fn a_group_that_cannot_be_is_refused_before_there_is_a_socket() {
    let place = Place::new();
    for (options, says) in [
        (vec!["--socket-group", "no-such-group"], "no-such-group"),
        (vec!["--socket-group", ""], "no group"),
        (vec!["--socket-group", "4294967295"], "4294967295"),
        (vec!["--socket-group", "-1"], "-1"),
        (vec!["--socket-group", "4294967296"], "4294967296"),
        (
            vec!["--socket-group", "5", "--socket-mode", "0600"],
            "write permission",
        ),
        (vec!["--socket-mode", "0770"], "octal"),
        (vec!["--socket-mode", "0060"], "octal"),
        (vec!["--socket-mode", "4660"], "octal"),
    ] {
        refused(&mut place.command(&options), 2, says);
    }
    for option in [["--socket-group", "5"], ["--socket-mode", "0660"]] {
        refused(
            program()
                .args(["--shared-dir", &place.share(), "--fd", "9"])
                .args(option),
            2,
            "--fd",
        );
    }
    assert_eq!(place.names(), ["share"]);
}

#[test]
fn an_ordinary_user_can_give_the_socket_to_its_own_groups_only() {
    let place = Place::new();
    let open = place.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    let socket = open.join("socket");
    let start = |group: u32| {
        let mut command = as_user(&place, &[GROUP, GROUP + 1]);
        let group = group.to_string();
        command
            .args(["--socket-group", &group, "--socket-path"])
            .arg(&socket);
        command
    };
    refused(&mut start(GROUP + 2), 1, "not a member of group 54323");
    assert!(!socket.exists());
    let mut child = start(GROUP + 1).stderr(Stdio::piped()).spawn().unwrap();
    until(|| {
        assert!(child.try_wait().unwrap().is_none(), "it ended at once");
        UnixStream::connect(&socket).is_ok()
    });
    let running = Running { child };
    let found = fs::symlink_metadata(&socket).unwrap();
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o7777),
        (USER, GROUP + 1, 0o660)
    );
    assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
    assert!(!socket.exists());
}

/// An access control list: `version, (tag, permissions, id)...`, as the kernel has it.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn a_default_acl_of_the_directory_lets_nobody_else_in() {
    let place = Place::new();
    let nobody = u32::MAX;
    // Owner, user 1234, group, mask, others: all may do everything.
    let everything = [
        (1, 7, nobody),
        (2, 7, USER),
        (4, 7, nobody),
        (0x10, 7, nobody),
        (0x20, 7, nobody),
    ];
    let set = rustix::fs::setxattr(
        place.dir.path(),
        "system.posix_acl_default",
        &acl(&everything),
        rustix::fs::XattrFlags::empty(),
    );
    if set.is_err() {
        println!("left out: no access control lists here");
        return;
    }
    for (options, expected) in [(vec![], 0o600), (vec!["--socket-group", "54321"], 0o660)] {
        let running = place.start_with(&options);
        assert_eq!(access(&place).1, expected, "{options:?}");
        assert!(!connects(&place, &[]), "{options:?}");
        assert_eq!(running.end(Signal::SIGTERM).0, Some(0));
    }
}
