//! Front-ends that hand over what no honest one would: rings whose areas overlap, event descriptors that are full, block or
//! stay set, memory that is not there. Each may spoil its own service and nothing else.

mod common;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{Rig, assert_alive, frame};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use testkit::vhost_user::{Body, Code, PATIENCE};
use testkit::{Frontend, GuestMemory, Machine, MachineOptions, Ring, RingOptions, Vmm};

/// What an eventfd holds when there is no room for more.
const FULL: u64 = u64::MAX - 1;

/// The next front-end is served.
fn assert_serves(rig: &Rig) {
    let mut machine = rig.boot(Vmm::Qemu);
    assert_alive(&mut machine, &rig.share());
}

/// Each control message is answered.
fn assert_answers(machine: &mut Machine) {
    machine.frontend.fence().expect("GET_FEATURES");
    machine.frontend.pause().expect("SET_VRING_ENABLE");
    machine.frontend.resume().expect("SET_VRING_ENABLE");
    machine.frontend.stop().expect("GET_VRING_BASE");
}

/// SET_VRING_ADDR with these front-end addresses.
fn set_addresses(frontend: &Frontend, descriptors: u64, avail: u64, used: u64) {
    let body = Body::new()
        .u32(0)
        .u32(0)
        .u64(descriptors)
        .u64(used)
        .u64(avail)
        .u64(0);
    let told = frontend.socket().tell(Code::SetVringAddr, body, &[], true);
    told.expect("SET_VRING_ADDR");
    frontend.fence().expect("it is taken");
}

/// A Tgetattr of fid 0 in a ring of one entry at `memory`'s beginning: descriptor table at 0, and whatever the areas are,
/// both parts of the chain in one indirect table.
fn lay_out_a_request(memory: &GuestMemory) {
    let area = memory.area(0, 0x8000).expect("memory");
    area.fill(0);
    let message = frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
    area.write(0x4000, &message);
    let descriptor = |addr: u64, len: u32, flags: u16, next: u16| {
        testkit::Descriptor {
            addr,
            len,
            flags,
            next,
        }
        .to_bytes()
    };
    area.write(
        0x3000,
        &descriptor(0x4000, message.len() as u32, testkit::ring::NEXT, 1),
    );
    area.write(0x3010, &descriptor(0x5000, 4096, testkit::ring::WRITE, 0));
    area.write(0, &descriptor(0x3000, 32, testkit::ring::INDIRECT, 0));
}

fn ring_of_one(memory: &GuestMemory) -> Ring {
    Ring::new(
        memory,
        RingOptions {
            size: 1,
            indirect: 2,
            event_idx: false,
        },
    )
}

#[test]
fn a_ring_that_feeds_itself_is_not_worked_on() {
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    let mut ring = ring_of_one(&memory);
    let mut frontend = Frontend::connect(&rig.socket(), Vmm::CloudHypervisor, &memory).expect("connect");
    frontend.start(&mut ring).expect("start");
    lay_out_a_request(&memory);
    let user = memory.area(0, 1).expect("memory").user_addr();
    let area = memory.area(0x1000, 0x1000).expect("memory");
    // The driver's index and the device's are one: each completion would make the next chain available.
    for (avail, used) in [(0x1000, 0x1000), (0x1004, 0x1000), (0x1000, 0x1004)] {
        frontend.pause().expect("pause");
        area.fill(0);
        // Both are at 1 already, from which on the device counts what it has used.
        area.write(2, &1u16.to_le_bytes());
        area.write(6, &1u16.to_le_bytes());
        set_addresses(&frontend, user, user + avail, user + used);
        frontend
            .socket()
            .vring_state(Code::SetVringBase, 0, true)
            .expect("base");
        let before = area.get(0, 0x1000);
        frontend.resume().expect("resume");
        frontend.kick();
        frontend.fence().expect("it is looked at");
        std::thread::sleep(Duration::from_millis(50));
        assert!(
            area.get(0, 0x1000) == before,
            "the device has written to the ring"
        );
        frontend.fence().expect("it answers");
    }
    frontend.stop().expect("stop");
    drop(frontend);
    assert_serves(&rig);
}

#[test]
fn a_ring_that_feeds_itself_through_two_views_of_the_same_memory_is_not_worked_on() {
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    let mut ring = ring_of_one(&memory);
    let mut frontend = Frontend::connect(&rig.socket(), Vmm::CloudHypervisor, &memory).expect("connect");
    frontend.start(&mut ring).expect("start");
    lay_out_a_request(&memory);
    frontend.pause().expect("pause");
    // The same file once more, at another guest address and another one of the front-end's.
    let region = memory.regions()[0].clone();
    let (gpa, user) = (1 << 30, 0x7f00_0000_0000u64);
    let body = Body::new()
        .u64(0)
        .u64(gpa)
        .u64(1 << 20)
        .u64(user)
        .u64(region.offset());
    let told = frontend
        .socket()
        .tell(Code::AddMemReg, body, &[region.file().as_fd()], true);
    told.expect("ADD_MEM_REG");
    let area = memory.area(0x1000, 0x1000).expect("memory");
    let here = memory.area(0, 1).expect("memory").user_addr();
    area.write(2, &1u16.to_le_bytes());
    let before = area.get(0, 0x1000);
    set_addresses(&frontend, here, here + 0x1000, user + 0x1000);
    frontend
        .socket()
        .vring_state(Code::SetVringBase, 0, true)
        .expect("base");
    frontend.resume().expect("resume");
    frontend.kick();
    std::thread::sleep(Duration::from_millis(50));
    assert!(
        area.get(0, 0x1000) == before,
        "the device has written to the ring"
    );
    frontend.stop().expect("stop");
    drop(frontend);
    assert_serves(&rig);
}

/// Keeps the ring full from another thread, until it is told to stop.
fn with_a_ring_that_never_runs_dry(machine: &mut Machine, act: impl FnOnce(&Frontend)) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let message = frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
    let over = AtomicBool::new(false);
    let (frontend, client) = (&machine.frontend, &mut machine.client);
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            let transport = client.transport();
            while !over.load(Ordering::Relaxed) {
                while transport.ring.free_slots() > 0 {
                    transport.stage(&message, &[], 4096);
                }
                transport.ring.notify();
                while transport.in_flight() > 64 && transport.next_reply().1.len() > 7 {}
            }
            while transport.in_flight() > 0 {
                transport.next_reply();
            }
        });
        act(frontend);
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_guest_that_goes_on_after_its_front_end_has_left_is_left_alone() {
    let rig = Rig::new();
    for _ in 0..30 {
        // Everything is in the ring before the queue is enabled, and the front-end leaves at that moment.
        let options = MachineOptions {
            memory: vec![(0, 64 << 20)],
            payload: 0,
            ..MachineOptions::new(Vmm::Crosvm)
        };
        let (frontend, mut transport) = Machine::power_on(&rig.socket(), &options).expect("power on");
        frontend
            .socket()
            .vring_state(Code::SetVringEnable, 0, false)
            .expect("disable");
        frontend.fence().expect("it answers");
        let message = frame(
            wire::Tversion {
                msize: 4096,
                version: b"9P2000.L",
            },
            wire::NOTAG,
        );
        let feed = |transport: &mut testkit::RingTransport| {
            while transport.ring.free_slots() > 0 {
                transport.stage(&message, &[], 64);
            }
            transport.ring.notify();
            transport.collect();
        };
        feed(&mut transport);
        frontend
            .socket()
            .vring_state(Code::SetVringEnable, 1, false)
            .expect("enable");
        drop(frontend);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    feed(&mut transport);
                }
            });
            let next = Machine::boot(&rig.socket(), &MachineOptions::new(Vmm::Qemu));
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            next.expect("the next front-end is served");
        });
    }
}

#[test]
fn a_ring_that_never_runs_dry_does_not_keep_the_front_end_waiting() {
    let rig = Rig::new();
    let mut machine = rig.boot(Vmm::CloudHypervisor);
    with_a_ring_that_never_runs_dry(&mut machine, |frontend| {
        let begun = Instant::now();
        let mut rounds = 0;
        while begun.elapsed() < Duration::from_millis(300) {
            let socket = frontend.socket();
            socket
                .vring_state(Code::SetVringEnable, 0, true)
                .expect("disable");
            socket.vring_state(Code::SetVringEnable, 1, true).expect("enable");
            frontend.send_table().expect("table");
            let other = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd");
            frontend.give_call(other.as_fd()).expect("call");
            rounds += 1;
        }
        assert!(rounds > 3, "{rounds} rounds in 300 ms");
    });
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_full_call_descriptor_holds_up_nothing() {
    for flags in [EfdFlags::EFD_NONBLOCK, EfdFlags::empty()] {
        for vmm in Vmm::ALL {
            let rig = Rig::new();
            let mut machine = rig.boot(vmm);
            let call = EventFd::from_flags(flags).expect("eventfd");
            call.write(FULL).expect("room");
            machine.frontend.give_call(call.as_fd()).expect("call");
            for _ in 0..10 {
                machine.ring().set_interrupts(true);
                assert_alive(&mut machine, &rig.share());
            }
            assert_answers(&mut machine);
            assert_eq!(call.read(), Ok(FULL), "as set as it can be");
            drop(machine);
            assert_serves(&rig);
        }
    }
}

/// A queue thread that is stuck in the writing of an interrupt: the call descriptor did not block when it was handed
/// over, and does when it is written.
fn stuck(rig: &Rig) -> Machine {
    let mut machine = rig.boot(Vmm::Qemu);
    while machine.frontend.wait_call(Duration::from_millis(20)) {}
    fcntl(machine.frontend.call(), FcntlArg::F_SETFL(OFlag::empty())).expect("F_SETFL");
    machine.frontend.call().write(FULL).expect("room");
    machine.ring().set_interrupts(true);
    let message = frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
    let token = machine.client.transport().send(&message, &[], 4096);
    assert_eq!(machine.client.transport().wait(token)[4], wire::RGETATTR);
    machine
}

#[test]
fn an_interrupt_that_is_owed_is_sent_before_the_queue_is_stopped() {
    let rig = Rig::new();
    let mut machine = stuck(&rig);
    let call = File::from(machine.frontend.call().as_fd().try_clone_to_owned().expect("dup"));
    machine.frontend.stop().expect("it is answered");
    let mut count = [0; 8];
    std::io::Read::read_exact(&mut &call, &mut count).expect("the counter");
    assert_eq!(
        u64::from_ne_bytes(count),
        1,
        "the interrupt, and before the answer"
    );
    drop(machine);
    assert_serves(&rig);
}

#[test]
fn an_interrupt_that_is_owed_is_sent_before_its_descriptor_is_replaced() {
    let rig = Rig::new();
    let mut machine = stuck(&rig);
    let old = File::from(machine.frontend.call().as_fd().try_clone_to_owned().expect("dup"));
    machine.frontend.replace_call().expect("it is answered");
    let mut count = [0; 8];
    std::io::Read::read_exact(&mut &old, &mut count).expect("the counter");
    assert_eq!(
        u64::from_ne_bytes(count),
        1,
        "the interrupt, and before the answer"
    );
    assert!(
        machine.frontend.wait_call(PATIENCE),
        "the new one is written once"
    );
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_thread_that_is_stuck_in_an_interrupt_ends_with_its_front_end() {
    let rig = Rig::new();
    for _ in 0..3 {
        let machine = stuck(&rig);
        // The counter stays ours, and full.
        let _call = machine.frontend.call().as_fd().try_clone_to_owned().expect("dup");
        drop(machine);
        assert_serves(&rig);
    }
}

#[test]
fn pipes_and_sockets_may_be_event_descriptors_and_nobody_has_to_read_them() {
    for socket in [false, true] {
        let rig = Rig::new();
        let mut machine = rig.boot(Vmm::Qemu);
        let (_theirs, ours): (OwnedFd, OwnedFd) = if socket {
            let (a, b) = std::os::unix::net::UnixStream::pair().expect("socketpair");
            (a.into(), b.into())
        } else {
            let (a, b) = std::io::pipe().expect("pipe");
            (a.into(), b.into())
        };
        machine.frontend.give_call(ours.as_fd()).expect("call");
        let message = frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
        // More than there is room for.
        for _ in 0..10_000 {
            machine.ring().set_interrupts(true);
            let token = machine.client.transport().send(&message, &[], 4096);
            machine.client.transport().wait(token);
        }
        assert_answers(&mut machine);
    }
}

#[test]
fn other_files_as_event_descriptors_end_the_connection() {
    let rig = Rig::new();
    for path in ["/dev/null", "/dev/zero", "/etc/passwd", "/proc/self/mem", "/"] {
        for code in [Code::SetVringCall, Code::SetVringKick] {
            let machine = rig.boot(Vmm::Qemu);
            let file = File::open(path).expect(path);
            let told = machine.frontend.socket().vring_fd(code, Some(file.as_fd()), true);
            assert!(told.is_err(), "{path} as {code:?}");
            assert!(machine.frontend.socket().closed_by_peer());
        }
    }
    assert_serves(&rig);
}

#[test]
fn a_kick_may_be_replaced_while_the_queue_runs() {
    for vmm in Vmm::ALL {
        let rig = Rig::new();
        let mut machine = rig.boot(vmm);
        for flags in [EfdFlags::empty(), EfdFlags::EFD_NONBLOCK, EfdFlags::EFD_SEMAPHORE] {
            let kick = EventFd::from_flags(flags).expect("eventfd");
            // The old one is set at that moment, and stays so.
            machine.frontend.kick();
            machine.frontend.give_kick(kick.as_fd()).expect("kick");
            machine.frontend.kick();
            let kick = std::sync::Arc::new(kick);
            let theirs = std::sync::Arc::clone(&kick);
            machine.ring().set_kick(Box::new(move || {
                theirs.write(1).expect("room");
            }));
            assert_alive(&mut machine, &rig.share());
        }
        assert_answers(&mut machine);
        drop(machine);
        assert_serves(&rig);
    }
}

#[test]
fn a_queue_that_is_started_is_looked_at_and_its_driver_told_unasked() {
    for vmm in Vmm::STOPPING {
        let rig = Rig::new();
        let mut machine = rig.boot(vmm);
        let base = machine.stop().expect("stop");
        while machine.frontend.wait_call(Duration::from_millis(20)) {}
        // The kick comes while nobody listens.
        let message = frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
        let token = machine.client.transport().send(&message, &[], 4096);
        machine.cont(base).expect("cont");
        assert_eq!(machine.client.transport().wait(token)[4], wire::RGETATTR);
        // The driver did not ask to be told.
        assert!(machine.frontend.wait_call(PATIENCE), "{vmm:?}: it was not told");
        while machine.frontend.wait_call(Duration::from_millis(20)) {}
        machine.frontend.pause().expect("pause");
        let token = machine.client.transport().send(&message, &[], 4096);
        machine.frontend.resume().expect("resume");
        assert_eq!(machine.client.transport().wait(token)[4], wire::RGETATTR);
        assert!(machine.frontend.wait_call(PATIENCE), "{vmm:?}: it was not told");
    }
}

#[test]
fn a_new_session_on_an_old_connection_is_a_reset() {
    for vmm in Vmm::ALL {
        let rig = Rig::new();
        rig.put("file", b"content");
        let mut machine = rig.boot(vmm);
        for _ in 0..3 {
            machine.client.walk_all(0, 1, &["file"]).expect("walk");
            machine.client.lopen(1, wire::P9_DOTL_RDONLY).expect("open");
            machine.replug().expect("the device is plugged in again");
            assert!(machine.client.stat(0).is_err(), "a fid of the last session");
            machine.client.version(8192).expect("version");
            machine.client.attach(0, wire::NONUNAME).expect("attach");
            assert_alive(&mut machine, &rig.share());
        }
    }
}

#[test]
fn guest_memory_that_is_not_there_is_refused() {
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    for (len, offset) in [
        (1u64 << 20, 1u64 << 20),
        (1 << 40, 0),
        (4096, u64::MAX - 8192),
        (1 << 20, 1),
    ] {
        let frontend = Frontend::connect(&rig.socket(), Vmm::CloudHypervisor, &memory).expect("connect");
        let body = Body::new().u64(0).u64(1 << 32).u64(len).u64(1 << 33).u64(offset);
        let file = memory.regions()[0].clone();
        let told = frontend
            .socket()
            .tell(Code::AddMemReg, body, &[file.file().as_fd()], true);
        assert!(told.is_err(), "{len:#x} bytes at {offset:#x}");
    }
    assert_serves(&rig);
}

#[test]
fn a_request_whose_memory_is_gone_is_an_error() {
    let rig = Rig::new();
    rig.put("file", &[7; 100_000]);
    let mut machine = rig.boot_with(&MachineOptions::new(Vmm::CloudHypervisor));
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, wire::P9_DOTL_RDONLY).expect("open");
    let gpa = 1 << 36;
    let region = machine.frontend.add_region(gpa, 1 << 20).expect("add");
    region.file().set_len(0).expect("truncate");
    let memory = machine.frontend.memory().clone();
    let message = memory.alloc(64, 64);
    message.write(0, &common::read_of(65_536, 2));
    let header = memory.alloc(64, 64);
    let piece = |gpa, len| testkit::Piece { gpa, len };
    // The answer's header is in good memory, and its data is to go where there is none.
    let ring = machine.ring();
    ring.submit(
        &[piece(message.gpa(), 23)],
        &[piece(header.gpa(), 11), piece(gpa, 65_536)],
    )
    .expect("room");
    let (_, len) = ring.wait_used(PATIENCE).expect("an answer");
    assert_eq!(common::errno(&header.get(0, len as usize), 2), libc::EFAULT);
    assert_alive(&mut machine, &rig.share());
}
