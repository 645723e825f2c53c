//! The built program as its users see it: a process behind a socket, under each front-end's order of messages.

#![allow(missing_docs)]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::vhost_user::PATIENCE;
use testkit::{Errno, GuestMemory, Machine, MachineOptions, Pages, RingOptions, Vmm, scenario};
use wire::*;

/// The program, ended with the value.
struct Program {
    base: TempDir,
    child: Child,
}

impl Program {
    fn start(more: &[&str]) -> Program {
        let base = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(base.path().join("share")).expect("mkdir");
        let log = fs::File::create(base.path().join("log")).expect("create");
        let child = Command::new(env!("CARGO_BIN_EXE_vhost-user-9p"))
            .arg("--socket-path")
            .arg(base.path().join("socket"))
            .arg("--shared-dir")
            .arg(base.path().join("share"))
            .args(["--security-model", "squash", "--tag", "front-ends"])
            .args(more)
            .stdin(Stdio::null())
            .stderr(log)
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

    fn share(&self) -> PathBuf {
        self.base.path().join("share")
    }

    fn socket(&self) -> PathBuf {
        self.base.path().join("socket")
    }

    fn boot(&self, vmm: Vmm) -> Machine {
        self.boot_with(&MachineOptions::new(vmm))
    }

    fn boot_with(&self, options: &MachineOptions) -> Machine {
        Machine::boot(&self.socket(), options).expect("the machine boots")
    }

    fn signal(&mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, signal).expect("kill");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < end, "{signal} did not end it");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(path).expect("procfs").count()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.base.path().join("log")).unwrap_or_default();
            eprintln!("--- the program's log\n{log}---");
        }
    }
}

#[test]
fn a_share_works_from_end_to_end_under_each_front_end() {
    let program = Program::start(&[]);
    for vmm in Vmm::ALL {
        for pages in [Pages::Scattered, Pages::Adjacent] {
            let mut machine = program.boot_with(&MachineOptions {
                pages,
                ..MachineOptions::new(vmm)
            });
            assert_eq!(machine.frontend.tag().expect("tag"), b"front-ends");
            scenario::end_to_end(&mut machine.client, &program.share());
        }
    }
}

#[test]
fn fids_survive_stop_and_cont() {
    let program = Program::start(&[]);
    fs::write(program.share().join("file"), "content").expect("write");
    for vmm in Vmm::ALL {
        let mut machine = program.boot(vmm);
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, P9_DOTL_RDONLY).expect("open");
        for _ in 0..3 {
            let base = machine.stop().expect("stop");
            machine.cont(base).expect("cont");
            assert_eq!(machine.client.read(1, 0, 100).expect("read"), b"content");
        }
    }
}

#[test]
fn one_front_end_after_the_other_gets_a_session_of_its_own() {
    let program = Program::start(&[]);
    let mut machine = program.boot(Vmm::Qemu);
    machine.client.clone_fid(0, 5).expect("clone");
    drop(machine);
    let mut before = 0;
    for round in 0..30 {
        let mut machine = program.boot(Vmm::ALL[round % 3]);
        assert!(machine.client.stat(5).is_err(), "a fid of the last one");
        machine.client.clone_fid(0, 5).expect("clone");
        machine.client.lopen(5, P9_DOTL_RDONLY).expect("open");
        // Of one that is gone nothing may be left once the next one is served.
        let now = program.descriptors();
        if round < 3 {
            before = before.max(now);
        } else {
            assert!(
                now <= before + 2,
                "round {round}: {before} descriptors, now {now}"
            );
        }
    }
}

#[test]
fn a_second_front_end_waits_for_its_turn() {
    let program = Program::start(&[]);
    let first = program.boot(Vmm::Qemu);
    let socket = program.socket();
    let second = std::thread::spawn(move || {
        let mut machine = Machine::boot(&socket, &MachineOptions::new(Vmm::Crosvm)).expect("boot");
        machine.client.stat(0).expect("getattr");
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!second.is_finished());
    drop(first);
    second.join().expect("no panic");
}

#[test]
fn a_signal_ends_it_and_removes_its_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut idle = Program::start(&[]);
        assert_eq!(idle.signal(signal).code(), Some(0), "{signal} while idle");
        assert!(!idle.socket().exists());

        let mut attached = Program::start(&[]);
        let machine = attached.boot(Vmm::CloudHypervisor);
        assert_eq!(attached.signal(signal).code(), Some(0), "{signal} while attached");
        assert!(!attached.socket().exists());
        drop(machine);
    }
}

#[test]
fn a_signal_ends_it_in_the_middle_of_work() {
    for round in 0..5 {
        let mut program = Program::start(&[]);
        fs::write(program.share().join("file"), scenario::pattern(8 << 20, 1)).expect("write");
        let mut machine = program.boot_with(&MachineOptions {
            ring: RingOptions {
                size: 256,
                ..RingOptions::default()
            },
            ..MachineOptions::new(Vmm::ALL[round % 3])
        });
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, P9_DOTL_RDWR).expect("open");
        for tag in 0..200u16 {
            let message: Tmessage<'_> = match tag % 3 {
                0 => Tfsync { fid: 1, datasync: 0 }.into(),
                _ => Tread {
                    fid: 1,
                    offset: u64::from(tag) << 14,
                    count: 500_000,
                }
                .into(),
            };
            let mut bytes = [0; 64];
            let len = message.encode(tag, &mut bytes).expect("it fits");
            machine
                .client
                .transport()
                .stage(&bytes[..len], &[], if tag % 3 == 0 { 4096 } else { 500_011 });
        }
        machine.ring().notify();
        assert_eq!(program.signal(Signal::SIGTERM).code(), Some(0));
        assert!(!program.socket().exists());
    }
}

#[test]
fn nonsense_on_the_socket_does_not_end_it() {
    let program = Program::start(&[]);
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    let mut random = scenario::Random::new(17);
    for round in 0..40 {
        let socket = testkit::vhost_user::Socket::connect(&program.socket()).expect("connect");
        for _ in 0..random.below(6) {
            let code = random.below(48) as u32;
            let body: Vec<u8> = (0..random.below(80)).map(|_| random.next() as u8).collect();
            let memfd = memory.regions();
            let file = memfd[0].file();
            use std::os::fd::AsFd;
            let fds = [file.as_fd()];
            let fds = &fds[..random.below(2)];
            if socket
                .send_raw(code, if round % 2 == 0 { 8 } else { 0 }, &body, fds)
                .is_err()
            {
                break;
            }
        }
    }
    let mut machine = program.boot(Vmm::Qemu);
    scenario::end_to_end(&mut machine.client, &program.share());
}

#[test]
fn a_write_beyond_the_file_size_limit_is_an_error_and_not_the_end() {
    let program = Program::start(&[]);
    let limit = format!("--fsize={}", 1 << 20);
    let pid = program.child.id().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(status.expect("prlimit runs").success());
    let mut machine = program.boot(Vmm::Qemu);
    let client = &mut machine.client;
    client.clone_fid(0, 1).expect("walk");
    client.lcreate(1, "file", P9_DOTL_RDWR, 0o644, 0).expect("create");
    assert_eq!(client.write(1, 2 << 20, b"beyond"), Err(Errno::EFBIG));
    assert_eq!(client.truncate(1, 2 << 20), Err(Errno::EFBIG));
    assert_eq!(client.write(1, 0, b"within"), Ok(6));
}
