//! Guest memory that comes, goes, and has seams.

mod common;

use common::{Rig, assert_alive, frame, read_of};
use testkit::{GuestMemory, MachineOptions, Piece, Vmm, scenario};
use wire::*;

const NEW: u64 = 1 << 36;
const LEN: usize = 16 << 20;

/// Sends a Tread of `count` bytes of fid 1 with its payload in `pieces`; gives the used length.
fn read_into(machine: &mut testkit::Machine, header: &[Piece], count: u32) -> u32 {
    let memory = machine.frontend.memory().clone();
    let mark = memory.mark();
    let message = memory.alloc(64, 64);
    message.write(0, &read_of(count, 2));
    let t = Piece {
        gpa: message.gpa(),
        len: 23,
    };
    let ring = machine.ring();
    let token = ring.submit(&[t], header).expect("room");
    let (used, len) = ring.wait_used(testkit::vhost_user::PATIENCE).expect("an answer");
    assert_eq!(used, token);
    memory.reset(&mark);
    len
}

#[test]
fn regions_come_and_go_while_the_device_runs() {
    for vmm in [Vmm::Qemu, Vmm::CloudHypervisor] {
        let rig = Rig::new();
        let bytes = scenario::pattern(1 << 20, 5);
        rig.put("file", &bytes);
        let mut machine = rig.boot(vmm);
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, P9_DOTL_RDONLY).expect("open");
        for round in 0..5 {
            let there = [Piece {
                gpa: NEW,
                len: 300_011,
            }];
            assert_eq!(
                read_into(&mut machine, &there, 300_000),
                0,
                "not there yet, round {round}"
            );
            machine.frontend.add_region(NEW, LEN).expect("add");
            assert_eq!(read_into(&mut machine, &there, 300_000), 300_011);
            let memory = machine.frontend.memory().clone();
            let area = memory.area(NEW, 300_011).expect("mapped");
            assert!(area.get(11, 300_000) == bytes[..300_000]);
            drop(area);
            machine.frontend.remove_region(NEW).expect("remove");
            assert_eq!(read_into(&mut machine, &there, 300_000), 0);
            assert_alive(&mut machine, &rig.share());
        }
    }
}

#[test]
fn regions_come_and_go_while_requests_are_in_flight() {
    let rig = Rig::new();
    rig.put("file", &scenario::pattern(1 << 20, 5));
    let mut machine = rig.boot(Vmm::CloudHypervisor);
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, P9_DOTL_RDONLY).expect("open");
    let message = read_of(200_000, 3);
    for _ in 0..20 {
        let transport = machine.client.transport();
        let tokens: Vec<u16> = (0..32).map(|_| transport.stage(&message, &[], 200_011)).collect();
        transport.ring.notify();
        machine.frontend.add_region(NEW, LEN).expect("add");
        machine.frontend.remove_region(NEW).expect("remove");
        for token in tokens {
            assert_eq!(machine.client.transport().wait(token).len(), 200_011);
        }
    }
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn the_whole_table_may_be_replaced_while_requests_are_in_flight() {
    for vmm in Vmm::ALL {
        let rig = Rig::new();
        let bytes = scenario::pattern(1 << 20, 5);
        rig.put("file", &bytes);
        let mut machine = rig.boot(vmm);
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, P9_DOTL_RDONLY).expect("open");
        let message = read_of(200_000, 3);
        for round in 0..20 {
            let transport = machine.client.transport();
            let tokens: Vec<u16> = (0..32).map(|_| transport.stage(&message, &[], 200_011)).collect();
            transport.ring.notify();
            if round % 2 == 0 {
                machine.frontend.memory().add_region(NEW, LEN).expect("memory");
            } else {
                machine.frontend.memory().remove_region(NEW);
            }
            machine.frontend.send_table().expect("table");
            for token in tokens {
                let reply = machine.client.transport().wait(token);
                assert!(reply[11..] == bytes[..200_000], "{vmm:?}");
            }
        }
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn a_request_that_writes_into_a_region_that_is_taken_away_is_completed() {
    let rig = Rig::new();
    rig.put("file", &scenario::pattern(4 << 20, 5));
    let mut machine = rig.boot(Vmm::CloudHypervisor);
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, P9_DOTL_RDONLY).expect("open");
    let memory = machine.frontend.memory().clone();
    let message = memory.alloc(64, 64);
    message.write(0, &read_of(4 << 20, 2));
    let t = Piece {
        gpa: message.gpa(),
        len: 23,
    };
    for _ in 0..20 {
        machine.frontend.add_region(NEW, LEN).expect("add");
        let r = Piece {
            gpa: NEW,
            len: (4 << 20) + 11,
        };
        machine.ring().submit(&[t], &[r]).expect("room");
        machine.frontend.remove_region(NEW).expect("remove");
        machine
            .ring()
            .wait_used(testkit::vhost_user::PATIENCE)
            .expect("completed");
    }
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn the_table_may_be_replaced_while_the_device_runs() {
    let rig = Rig::new();
    let mut machine = rig.boot(Vmm::Crosvm);
    for round in 0..10 {
        let base = machine.stop().expect("stop");
        machine
            .frontend
            .memory()
            .add_region(NEW + (round << 28), 1 << 20)
            .expect("memory");
        if round >= 3 {
            machine.frontend.memory().remove_region(NEW + ((round - 3) << 28));
        }
        machine.cont(base).expect("cont");
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn a_reply_may_cross_regions_that_are_neighbours_for_the_guest_only() {
    let rig = Rig::new();
    let bytes = scenario::pattern(200_000, 6);
    rig.put("file", &bytes);
    let (first, second) = (1 << 33, (1 << 33) + (1 << 20));
    let mut options = MachineOptions::new(Vmm::Qemu);
    // Added in this order, they are not neighbours in this process or in the device's.
    options.memory.push((second, 1 << 20));
    options.memory.push((1 << 34, 1 << 20));
    options.memory.push((first, 1 << 20));
    let mut machine = rig.boot_with(&options);
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, P9_DOTL_RDONLY).expect("open");
    // The seam in the size field, the header, and the payload.
    for before in [1u64, 3, 7, 10, 11, 12, 4096, 60_001] {
        let there = [Piece {
            gpa: second - before,
            len: 100_011,
        }];
        assert_eq!(
            read_into(&mut machine, &there, 100_000),
            100_011,
            "{before} bytes before"
        );
        let memory = machine.frontend.memory().clone();
        let mut reply = memory
            .area(second - before, before as usize)
            .expect("mapped")
            .get(0, before as usize);
        let rest = 100_011 - before as usize;
        reply.extend(memory.area(second, rest).expect("mapped").get(0, rest));
        match Rmessage::decode(&reply) {
            Ok((2, Rmessage::Read(read))) => assert!(read.data == &bytes[..100_000]),
            other => panic!("{other:?}"),
        }
    }
    // And a message.
    let memory: GuestMemory = machine.frontend.memory().clone();
    let message = frame(Tgetattr { fid: 0, mask: 1 }, 9);
    for before in 1..message.len() {
        memory
            .area(second - before as u64, before)
            .expect("mapped")
            .write(0, &message[..before]);
        memory
            .area(second, message.len() - before)
            .expect("mapped")
            .write(0, &message[before..]);
        let reply = memory.area(1 << 34, 4096).expect("mapped");
        let t = Piece {
            gpa: second - before as u64,
            len: message.len() as u32,
        };
        let ring = machine.ring();
        ring.submit(&[t], &[Piece::from(&reply)]).expect("room");
        let (_, len) = ring.wait_used(testkit::vhost_user::PATIENCE).expect("an answer");
        assert_eq!(reply.get(0, len as usize)[4], RGETATTR, "{before} bytes before");
    }
    assert_alive(&mut machine, &rig.share());
}
