//! The log of the built program: nobody waits for whoever reads it, and a guest or front-end causes few lines.

#![allow(missing_docs)]

use std::fs::{self, File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, tcflow};
use tempfile::TempDir;
use testkit::vhost_user::Code;
use testkit::{Errno, Machine, MachineOptions, Program, Vmm, scenario};
use wire::P9_GETATTR_BASIC;

/// Generous: the program is to end within a second.
const END: Duration = Duration::from_secs(10);

fn base() -> TempDir {
    let base = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(base.path().join("share")).expect("mkdir");
    base
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-9p"));
    command.env_remove("RUST_LOG").env_remove("JOURNAL_STREAM");
    command
}

fn boot(program: &Program) -> Machine {
    program.boot(&MachineOptions::new(Vmm::Qemu))
}

/// A pipe that is full, and its other end.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
    while (&writer).write(b"\n").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("fcntl");
    (reader, writer.into())
}

/// SIGTERM ends it in time and leaves no socket.
fn ends(program: &mut Program) {
    let begun = Instant::now();
    let status = program.end(Signal::SIGTERM);
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < END, "{:?}", begun.elapsed());
    assert!(!program.socket().exists());
}

/// Breaks the ring so often: the available index jumps, again each time that the front-end sets the base back.
fn break_ring(machine: &mut Machine, times: usize) {
    let ring = machine.ring();
    let base = ring.available_index();
    ring.write_available_index(base.wrapping_add(1000));
    let set_base = |machine: &Machine| {
        let socket = machine.frontend.socket();
        socket.vring_state(Code::SetVringBase, base.into(), true)
    };
    for _ in 0..times {
        set_base(machine).expect("SET_VRING_BASE");
        machine.frontend.kick();
    }
    machine.ring().write_available_index(base);
    machine.reset_queue().expect("a reset");
    machine.client.version(512_000).expect("a mount");
    machine.client.attach(0, 0).expect("a mount");
}

/// Reads all of `from` in the background.
fn reading(mut from: PipeReader) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
    });
    receiver
}

/// The sum of what the lines of `log` with `words` say that is not there.
fn left_out(log: &str, words: &str) -> usize {
    let numbers = log.lines().filter_map(|line| {
        let before = line.split_once(words)?.0;
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<usize>().ok()
    });
    numbers.sum()
}

/// A stopped terminal: its slave side, and the master that keeps it.
fn stopped_terminal() -> (OwnedFd, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("a terminal");
    unlockpt(&master).expect("a terminal");
    let name = ptsname(&master, Vec::new()).expect("a terminal");
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    let slave = options.open(name.to_str().expect("ASCII")).expect("open");
    tcflow(&slave, Action::OOff).expect("tcflow");
    (slave.into(), master)
}

/// With this for its stderr it serves and ends, whatever a guest does.
fn serves_telling(stderr: Stdio) {
    // All the detail there is, which is more than is kept.
    let mut program = Program::start_telling(stderr, command(), base(), &["--log-level", "trace"]);
    let mut machine = boot(&program);
    scenario::end_to_end(&mut machine.client, &program.share());
    break_ring(&mut machine, 1000);
    for _ in 0..5000 {
        machine.client.getattr(0, P9_GETATTR_BASIC).expect("getattr");
    }
    ends(&mut program);
}

#[test]
fn a_reader_that_stands_still_stops_nothing() {
    let (_reader, stderr) = full_pipe();
    serves_telling(stderr);
}

#[test]
fn a_stopped_terminal_stops_nothing() {
    let (slave, _master) = stopped_terminal();
    serves_telling(slave.into());
}

#[test]
fn a_socket_that_is_full_stops_nothing() {
    let (stderr, _reader) = UnixStream::pair().expect("a pair");
    stderr.set_nonblocking(true).expect("fcntl");
    while (&stderr).write(&[b'\n'; 4096]).is_ok() {}
    stderr.set_nonblocking(false).expect("fcntl");
    serves_telling(OwnedFd::from(stderr).into());
}

#[test]
fn a_file_that_takes_nothing_stops_nothing() {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("open");
    serves_telling(full.into());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    serves_telling(writer.into());
}

#[test]
fn a_description_that_somebody_made_nonblocking_loses_nothing_for_that() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
    let mut program = Program::start_telling(writer, command(), base(), &["--log-level", "trace"]);
    let mut machine = boot(&program);
    // More than a pipe takes at once, less than is kept.
    for _ in 0..1000 {
        machine.client.getattr(0, P9_GETATTR_BASIC).expect("getattr");
    }
    let log = reading(reader);
    drop(machine);
    ends(&mut program);
    let log = log.recv().expect("the log");
    let there = log.lines().filter(|line| line.contains("Tgetattr")).count();
    assert_eq!(there, 1000, "{log}");
    assert!(!log.contains("missing here"), "{log}");
}

#[test]
fn lines_that_nobody_took_are_counted() {
    let (reader, stderr) = full_pipe();
    let mut program = Program::start_telling(stderr, command(), base(), &["--log-level", "trace"]);
    let mut machine = boot(&program);
    for _ in 0..20_000 {
        machine.client.getattr(0, P9_GETATTR_BASIC).expect("getattr");
    }
    let log = reading(reader);
    // It is read now, so after a while what comes is written again.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        machine.client.getattr(0, P9_GETATTR_BASIC).expect("getattr");
        thread::sleep(Duration::from_millis(10));
    }
    drop(machine);
    ends(&mut program);
    let log = log.recv().expect("the log");
    let there = log.lines().filter(|line| line.contains("Tgetattr")).count();
    let lost = left_out(&log, " lines of this log are missing here");
    assert!(there > 0 && lost > 0, "{there} lines, {lost} lost");
    assert!(there + lost >= 20_000, "{there} lines, {lost} lost");
    assert!(log.contains("Ending on SIGTERM"), "the end is not there");
}

#[test]
fn a_broken_ring_fills_no_log() {
    let mut program = Program::start(command(), base(), &[]);
    let mut machine = boot(&program);
    break_ring(&mut machine, 20_000);
    machine.client.getattr(0, P9_GETATTR_BASIC).expect("getattr");
    drop(machine);
    ends(&mut program);
    let log = program.log();
    println!("{} lines of 20,000", log.lines().count());
    assert!(log.contains("broke the request queue"), "{log}");
    assert!(log.lines().count() < 100, "{log}");
    assert!(left_out(&log, " more l") >= 100, "{log}");
}

#[test]
fn a_front_end_that_comes_and_goes_fills_no_log() {
    let mut program = Program::start(command(), base(), &[]);
    for _ in 0..300 {
        let stream = UnixStream::connect(program.socket()).expect("connect");
        // What is no message: the connection is ended with a complaint.
        (&stream).write_all(&[0xff; 64]).expect("write");
        let _ = (&stream).read(&mut [0; 64]);
    }
    ends(&mut program);
    let log = program.log();
    assert!(log.lines().count() < 100, "{log}");
    assert!(left_out(&log, " more l") >= 500, "{log}");
}

#[test]
fn refusals_fill_no_log_and_names_stay_in_their_line() {
    let mut program = Program::start(command(), base(), &["--readonly", "--tag", "a\nb\u{1b}[31m"]);
    let mut machine = boot(&program);
    let name = "x\n<3>forged\r\u{1b}[31m\u{202e}\" was fine";
    for _ in 0..1000 {
        let made = machine.client.mkdir(0, name, 0o755, 0);
        assert_eq!(made.map(|_| ()), Err(Errno::EROFS));
    }
    drop(machine);
    ends(&mut program);
    let log = program.log();
    assert!(log.lines().count() < 100, "{log}");
    assert!(log.contains("leave out --readonly"), "{log}");
    assert!(left_out(&log, " more l") >= 900, "{log}");
    let harmless = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
    assert!(log.chars().all(harmless), "{log:?}");
    assert!(log.lines().all(|line| line.starts_with("[20")), "{log}");
}

#[test]
fn a_wrong_command_line_is_told_by_its_status_even_if_stderr_takes_nothing() {
    let device = OpenOptions::new().write(true).open("/dev/full").expect("open");
    let wrong = ["--frobnicate"];
    let status = command().args(wrong).stderr(device).status().expect("it runs");
    assert_eq!(status.code(), Some(2));
    let (_reader, pipe) = full_pipe();
    let status = command().args(wrong).stderr(pipe).status().expect("it runs");
    assert_eq!(status.code(), Some(2));
    let status = Command::new("/bin/sh")
        .args([
            "-c",
            "exec \"$0\" --frobnicate 2>&-",
            env!("CARGO_BIN_EXE_vhost-user-9p"),
        ])
        .status();
    assert_eq!(status.expect("it runs").code(), Some(2));
    // A filter that cannot be understood is no reason either.
    let base = base();
    let device = OpenOptions::new().write(true).open("/dev/full").expect("open");
    let mut rust_log = command();
    rust_log.env("RUST_LOG", "info=info=info");
    let mut program = Program::start_telling(device, rust_log, base, &[]);
    ends(&mut program);
}

#[test]
fn standard_streams_that_are_closed_are_no_holes() {
    let base = base();
    let mut shell = Command::new("/bin/sh");
    shell.args([
        "-c",
        r#"exec "$0" "$@" <&- >&- 2>&-"#,
        env!("CARGO_BIN_EXE_vhost-user-9p"),
    ]);
    let mut program = Program::start(shell, base, &[]);
    for fd in 0..=2 {
        let open = fs::read_link(format!("/proc/{}/fd/{fd}", program.pid())).expect("it is open");
        assert_eq!(open.to_str(), Some("/dev/null"));
    }
    let mut machine = boot(&program);
    scenario::end_to_end(&mut machine.client, &program.share());
    drop(machine);
    ends(&mut program);
}

#[test]
fn the_journal_is_told_levels_and_no_times() {
    let base = base();
    let log = File::create(base.path().join("log")).expect("create");
    let found = log.metadata().expect("fstat");
    let mut journal = command();
    journal.env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino()));
    let mut program = Program::start_telling(log, journal, base, &[]);
    ends(&mut program);
    let told = program.log();
    assert!(told.lines().all(|line| line.starts_with("<6>")), "{told}");
    assert!(told.contains("<6>Sharing "), "{told}");
    let log = OpenOptions::new()
        .append(true)
        .open(program.share().with_file_name("log"))
        .expect("open");
    let mut journal = command();
    journal.env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino()));
    let status = journal.arg("--frobnicate").stderr(log).status().expect("it runs");
    assert_eq!(status.code(), Some(2));
    assert!(program.log().contains("\n<3>error: "), "{}", program.log());
    // Said of another stream than this one: nothing.
    let mut other = command();
    other.env("JOURNAL_STREAM", "1:1");
    let mut program = Program::start(other, self::base(), &[]);
    ends(&mut program);
    assert!(program.log().starts_with("[20"), "{}", program.log());
}

#[test]
fn rust_log_has_precedence() {
    let mut quiet = command();
    quiet.env("RUST_LOG", "warn,device=debug");
    let mut program = Program::start(quiet, base(), &["--log-level", "trace"]);
    let machine = boot(&program);
    drop(machine);
    ends(&mut program);
    let log = program.log();
    assert!(log.contains("Guest memory") && log.contains("DEBUG"), "{log}");
    assert!(!log.contains("Sharing") && !log.contains("TRACE"), "{log}");
}
