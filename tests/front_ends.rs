//! The built program as its users see it: a process behind a socket, under each front-end's order of messages.

#![allow(missing_docs)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::{Errno, GuestMemory, Machine, MachineOptions, Pages, Program, RingOptions, Vmm, scenario};
use wire::*;

fn start() -> Program {
    let base = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(base.path().join("share")).expect("mkdir");
    let command = Command::new(env!("CARGO_BIN_EXE_vhost-user-9p"));
    Program::start(command, base, &["--tag", "front-ends"])
}

fn boot(program: &Program, vmm: Vmm) -> Machine {
    program.boot(&MachineOptions::new(vmm))
}

#[test]
fn a_share_works_from_end_to_end_under_each_front_end() {
    let program = start();
    for vmm in Vmm::ALL {
        for pages in [Pages::Scattered, Pages::Adjacent] {
            let mut machine = program.boot(&MachineOptions {
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
    let program = start();
    fs::write(program.share().join("file"), "content").expect("write");
    for vmm in Vmm::STOPPING {
        let mut machine = boot(&program, vmm);
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
    let program = start();
    let mut machine = boot(&program, Vmm::Qemu);
    machine.client.clone_fid(0, 5).expect("clone");
    drop(machine);
    let mut before = 0;
    for round in 0..30 {
        let mut machine = boot(&program, Vmm::ALL[round % Vmm::ALL.len()]);
        assert!(machine.client.stat(5).is_err(), "a fid of the last one");
        machine.client.clone_fid(0, 5).expect("clone");
        machine.client.lopen(5, P9_DOTL_RDONLY).expect("open");
        // Of one that is gone nothing may be left once the next one is served.
        let now = program.descriptors();
        if round < Vmm::ALL.len() {
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
    let program = start();
    let first = boot(&program, Vmm::Qemu);
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
        let mut idle = start();
        assert_eq!(idle.end(signal).code(), Some(0), "{signal} while idle");
        assert!(!idle.socket().exists());

        let mut attached = start();
        let machine = boot(&attached, Vmm::CloudHypervisor);
        assert_eq!(attached.end(signal).code(), Some(0), "{signal} while attached");
        assert!(!attached.socket().exists());
        drop(machine);
    }
}

#[test]
fn a_signal_ends_it_in_the_middle_of_work() {
    for round in 0..5 {
        let mut program = start();
        fs::write(program.share().join("file"), scenario::pattern(8 << 20, 1)).expect("write");
        let mut machine = program.boot(&MachineOptions {
            ring: RingOptions {
                size: 256,
                ..RingOptions::default()
            },
            ..MachineOptions::new(Vmm::ALL[round % Vmm::ALL.len()])
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
        assert_eq!(program.end(Signal::SIGTERM).code(), Some(0));
        assert!(!program.socket().exists());
    }
}

#[test]
fn guest_memory_that_is_shortened_ends_it_with_a_word_and_without_a_socket() {
    let mut program = start();
    let mut machine = boot(&program, Vmm::CloudHypervisor);
    let gpa = 1 << 36;
    let region = machine.frontend.add_region(gpa, 1 << 20).expect("add");
    region.file().set_len(0).expect("truncate");
    // The message itself is where there is none any more.
    let piece = |gpa, len| testkit::Piece { gpa, len };
    let ring = machine.ring();
    ring.submit(&[piece(gpa, 19)], &[piece(0x1000, 160)])
        .expect("room");
    assert_eq!(program.ended().code(), Some(3));
    assert!(!program.socket().exists());
    let log = program.log();
    assert!(log.contains("Guest memory is gone (SIGBUS)"), "{log}");
}

#[test]
fn a_front_end_that_waits_for_another_is_told_of() {
    let program = start();
    let first = boot(&program, Vmm::CloudHypervisor);
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| testkit::Frontend::connect(&program.socket(), Vmm::Qemu, &memory));
        let end = std::time::Instant::now() + testkit::vhost_user::PATIENCE;
        while !program.log().contains("Another front-end waits on the socket") {
            assert!(std::time::Instant::now() < end, "{}", program.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(first);
        assert!(second.join().expect("no panic").is_ok());
    });
}

#[test]
fn a_front_end_that_cannot_work_is_told_what_it_lacks() {
    use testkit::vhost_user::{Body, Code, Socket};
    let program = start();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    let power_on = || {
        let options = MachineOptions::new(Vmm::CloudHypervisor);
        Machine::power_on(&program.socket(), &options).expect("power on")
    };
    let said = |what: &str| {
        let end = std::time::Instant::now() + testkit::vhost_user::PATIENCE;
        while !program.log().contains(what) {
            assert!(std::time::Instant::now() < end, "{what}: {}", program.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    // A machine whose memory is not shared has no region to send.
    let frontend = testkit::Frontend::connect(&program.socket(), Vmm::Qemu, &memory).expect("connect");
    let body = Body::new()
        .u32(0)
        .u32(0)
        .u64(0x1000)
        .u64(0x3000)
        .u64(0x2000)
        .u64(0);
    let told = frontend.socket().tell(Code::SetVringAddr, body, &[], true);
    assert!(told.is_err());
    said("share=on");
    drop(frontend);
    // QEMU without config_size takes no CONFIG, and must not be offered a tag that nobody can read.
    let socket = Socket::connect(&program.socket()).expect("connect");
    let offered = socket
        .ask_u64(Code::GetProtocolFeatures, false)
        .expect("protocol features");
    let without = offered & !testkit::vhost_user::protocol::CONFIG;
    assert_ne!(without, offered);
    let body = Body::new().u64(without);
    socket
        .tell(Code::SetProtocolFeatures, body, &[], false)
        .expect("sent");
    socket
        .tell(Code::SetOwner, Body::new(), &[], false)
        .expect("sent");
    let features = socket.ask_u64(Code::GetFeatures, false).expect("features");
    assert_eq!(features & testkit::frontend::MOUNT_TAG, 0);
    said("config_size=256");
    drop(socket);
    // Guests that lack something; the one before lacked nothing but the tag.
    let frontend = testkit::Frontend::connect(&program.socket(), Vmm::Qemu, &memory).expect("connect");
    assert!(!program.log().contains("9pnet_virtio"), "{}", program.log());
    drop(frontend);
    said("never started the device; it needs the driver 9pnet_virtio");
    drop(power_on());
    said("never mounted the share: mount -t 9p -o trans=virtio,version=9p2000.L front-ends");
    let (_frontend, mut transport) = power_on();
    let mut message = [0; 64];
    let version = Tversion {
        msize: 8192,
        version: b"9P2000.u",
    };
    let len = Tmessage::from(version)
        .encode(NOTAG, &mut message)
        .expect("it fits");
    let token = transport.send(&message[..len], &[], 64);
    assert_eq!(transport.wait(token)[4], RVERSION);
    said("The guest speaks \"9P2000.u\"");
}

#[test]
fn nonsense_on_the_socket_does_not_end_it() {
    let program = start();
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
    let mut machine = boot(&program, Vmm::Qemu);
    scenario::end_to_end(&mut machine.client, &program.share());
}

#[test]
fn a_write_beyond_the_file_size_limit_is_an_error_and_not_the_end() {
    let program = start();
    let limit = format!("--fsize={}", 1 << 20);
    let pid = program.worker().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(status.expect("prlimit runs").success());
    let mut machine = boot(&program, Vmm::Qemu);
    let client = &mut machine.client;
    client.clone_fid(0, 1).expect("walk");
    client.lcreate(1, "file", P9_DOTL_RDWR, 0o644, 0).expect("create");
    assert_eq!(client.write(1, 2 << 20, b"beyond"), Err(Errno::EFBIG));
    assert_eq!(client.truncate(1, 2 << 20), Err(Errno::EFBIG));
    assert_eq!(client.write(1, 0, b"within"), Ok(6));
}
