//! Many requests at once: order, flushes, draining.

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::{Rig, assert_alive, frame};
use testkit::{Machine, MachineOptions, RingOptions, Vmm, scenario};
use wire::*;

fn wide(vmm: Vmm) -> MachineOptions {
    MachineOptions {
        ring: RingOptions {
            size: 512,
            ..RingOptions::default()
        },
        ..MachineOptions::new(vmm)
    }
}

fn opened(rig: &Rig, options: &MachineOptions, len: usize) -> (Machine, Vec<u8>) {
    let bytes = scenario::pattern(len, 11);
    rig.put("file", &bytes);
    let mut machine = rig.boot_with(options);
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, P9_DOTL_RDWR).expect("open");
    (machine, bytes)
}

#[test]
fn three_hundred_requests_in_flight_are_all_answered() {
    for vmm in Vmm::ALL {
        let rig = Rig::new();
        let (mut machine, bytes) = opened(&rig, &wide(vmm), 1 << 20);
        for _ in 0..10 {
            let transport = machine.client.transport();
            let mut sent = Vec::new();
            for tag in 0..300u16 {
                let offset = usize::from(tag) * 3000;
                let (message, capacity) = match tag % 3 {
                    0 => (frame(Tgetattr { fid: 0, mask: 1 }, tag), 4096),
                    1 => {
                        let (fid, offset, count) = (1, offset as u64, 20_000);
                        (frame(Tread { fid, offset, count }, tag), 20_011)
                    }
                    _ => {
                        let names: [&[u8]; 1] = [b"file"];
                        let walk = Twalk {
                            fid: 0,
                            newfid: 1000 + u32::from(tag),
                            names: Names::new(&names),
                        };
                        (frame(walk, tag), 22)
                    }
                };
                sent.push((tag, transport.stage(&message, &[], capacity)));
            }
            transport.ring.notify();
            for &(tag, token) in &sent {
                let reply = transport.wait(token);
                let (got, message) = Rmessage::decode(&reply).expect("a valid answer");
                assert_eq!(got, tag);
                match message {
                    Rmessage::Getattr(_) => assert_eq!(tag % 3, 0),
                    Rmessage::Read(read) => {
                        let offset = usize::from(tag) * 3000;
                        assert!(read.data == &bytes[offset..offset + 20_000]);
                    }
                    Rmessage::Walk(walk) => assert_eq!(walk.qids.len(), 1),
                    other => panic!("{other:?}"),
                }
            }
            for tag in (2..300).step_by(3) {
                machine.client.clunk(1000 + tag).expect("clunk");
            }
        }
    }
}

#[test]
fn writes_in_flight_all_arrive() {
    let rig = Rig::new();
    let (mut machine, _) = opened(&rig, &wide(Vmm::Crosvm), 1);
    let bytes = scenario::pattern(200 * 5000, 12);
    let transport = machine.client.transport();
    let mut tokens = Vec::new();
    for (at, chunk) in bytes.chunks(5000).enumerate() {
        let write = Twrite {
            fid: 1,
            offset: 5000 * at as u64,
            count: chunk.len() as u32,
            data: &[],
        };
        tokens.push(transport.send(&frame(write, at as u16), chunk, 4096));
    }
    for token in tokens {
        let reply = transport.wait(token);
        assert!(matches!(
            Rmessage::decode(&reply),
            Ok((_, Rmessage::Write(Rwrite { count: 5000 })))
        ));
    }
    assert!(std::fs::read(rig.share().join("file")).expect("read") == bytes);
}

#[test]
fn a_large_read_does_not_hold_up_small_requests_forever() {
    let rig = Rig::new();
    let (mut machine, bytes) = opened(&rig, &wide(Vmm::Qemu), 2 << 20);
    let read = Tread {
        fid: 1,
        offset: 0,
        count: 500_000,
    };
    let transport = machine.client.transport();
    let large: Vec<u16> = (0..20)
        .map(|tag| transport.stage(&frame(read, tag), &[], 500_011))
        .collect();
    let small = transport.stage(&frame(Tgetattr { fid: 0, mask: 1 }, 99), &[], 4096);
    transport.ring.notify();
    assert_eq!(transport.wait(small)[4], RGETATTR);
    for token in large {
        let reply = transport.wait(token);
        assert_eq!(reply.len(), 500_011);
        assert!(reply[11..] == bytes[..500_000]);
    }
}

#[test]
fn a_flushed_request_is_answered_before_its_flush_or_not_at_all() {
    let rig = Rig::new();
    let (mut machine, _) = opened(&rig, &wide(Vmm::Qemu), 1 << 20);
    for round in 0..50u16 {
        let transport = machine.client.transport();
        let mut pairs = Vec::new();
        for tag in 0..40 {
            let message = match (tag + round) % 3 {
                0 => frame(Tfsync { fid: 1, datasync: 0 }, tag),
                1 => frame(
                    Tread {
                        fid: 1,
                        offset: 0,
                        count: 300_000,
                    },
                    tag,
                ),
                _ => frame(Tgetattr { fid: 1, mask: 1 }, tag),
            };
            let capacity = if message[4] == TREAD { 300_011 } else { 4096 };
            let old = transport.stage(&message, &[], capacity);
            if round % 2 == 0 {
                transport.ring.notify();
            }
            let flush = transport.stage(&frame(Tflush { oldtag: tag }, 100 + tag), &[], 4096);
            pairs.push((tag, old, flush));
        }
        transport.ring.notify();
        for (tag, old, flush) in pairs {
            let answer = transport.wait(flush);
            assert_eq!(answer, [7, 0, 0, 0, RFLUSH, 100 + tag as u8, 0]);
            let reply = transport
                .try_reply(old)
                .unwrap_or_else(|| panic!("request {tag} is still open after its Rflush"));
            assert!(reply.is_empty() || reply[5..7] == tag.to_le_bytes());
        }
    }
    // Nothing in flight has that tag, or it is the flush's own.
    machine.client.flush(4242).expect("flush");
    let own = machine.client.next_tag();
    machine.client.flush(own).expect("flush");
    assert_alive(&mut machine, &rig.share());
}

/// Takes or drops a lock on the whole file, as another program on the host does.
fn host_lock(file: &File, kind: i32) -> bool {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open and `lock` is a valid flock for the duration of the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) == 0 }
}

fn blocking_lock() -> Tlock<'static> {
    Tlock {
        fid: 1,
        kind: P9_LOCK_TYPE_WRLCK,
        flags: P9_LOCK_FLAGS_BLOCK,
        start: 0,
        length: 0,
        proc_id: 1,
        client_id: b"guest",
    }
}

fn locked_by_host(rig: &Rig) -> (Machine, File) {
    let (machine, _) = opened(rig, &wide(Vmm::Qemu), 100);
    let file = File::options()
        .read(true)
        .write(true)
        .open(rig.share().join("file"))
        .expect("open");
    assert!(host_lock(&file, libc::F_WRLCK));
    (machine, file)
}

fn status(reply: &[u8]) -> u8 {
    match Rmessage::decode(reply) {
        Ok((_, Rmessage::Lock(lock))) => lock.status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lock_that_waits_can_be_flushed() {
    let rig = Rig::new();
    let (mut machine, _file) = locked_by_host(&rig);
    for round in 0..5 {
        let old = machine
            .client
            .transport()
            .send(&frame(blocking_lock(), 500), &[], 4096);
        // What comes after it is not held up.
        assert_alive(&mut machine, &rig.share());
        let early = machine.client.transport().try_reply(old);
        machine.client.flush(500).expect("flush");
        let reply = match early {
            // Blocked is an honest answer too: the client asks again.
            Some(reply) => {
                assert_eq!(status(&reply), P9_LOCK_BLOCKED);
                continue;
            }
            None => machine.client.transport().try_reply(old),
        };
        let reply = reply.unwrap_or_else(|| panic!("round {round}: still open after its Rflush"));
        assert!(reply.is_empty() || status(&reply) == P9_LOCK_BLOCKED);
    }
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_lock_that_waits_is_granted_when_the_host_lets_go() {
    let rig = Rig::new();
    let (mut machine, file) = locked_by_host(&rig);
    let token = machine
        .client
        .transport()
        .send(&frame(blocking_lock(), 500), &[], 4096);
    assert_alive(&mut machine, &rig.share());
    assert!(host_lock(&file, libc::F_UNLCK));
    let mut reply = machine.client.transport().wait(token);
    // As Linux's client does.
    while status(&reply) == P9_LOCK_BLOCKED {
        std::thread::sleep(Duration::from_millis(10));
        let token = machine
            .client
            .transport()
            .send(&frame(blocking_lock(), 500), &[], 4096);
        reply = machine.client.transport().wait(token);
    }
    assert_eq!(status(&reply), P9_LOCK_SUCCESS);
    assert!(!host_lock(&file, libc::F_WRLCK), "the host sees the guest's lock");
    machine.client.clunk(1).expect("clunk");
    assert!(host_lock(&file, libc::F_WRLCK), "the lock goes with its file");
}

#[test]
fn stopping_drains_what_was_taken() {
    for vmm in Vmm::STOPPING {
        let rig = Rig::new();
        let (mut machine, bytes) = opened(&rig, &wide(vmm), 1 << 20);
        for _ in 0..10 {
            let transport = machine.client.transport();
            let mut tokens = Vec::new();
            for tag in 0..64 {
                let message = match tag % 2 {
                    0 => frame(Tfsync { fid: 1, datasync: 1 }, tag),
                    _ => frame(
                        Tread {
                            fid: 1,
                            offset: 0,
                            count: 300_000,
                        },
                        tag,
                    ),
                };
                let capacity = if message[4] == TREAD { 300_011 } else { 4096 };
                tokens.push((tag, transport.stage(&message, &[], capacity)));
            }
            transport.ring.notify();
            let base = machine.stop().expect("stop");
            // All that the device took, it has given back; the rest it has not touched.
            assert_eq!(machine.ring().used_index(), base, "{vmm:?}");
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(
                machine.ring().used_index(),
                base,
                "{vmm:?}: something moved after the stop"
            );
            machine.cont(base).expect("cont");
            for (tag, token) in tokens {
                let reply = machine.client.transport().wait(token);
                assert_eq!(reply[5..7], tag.to_le_bytes());
                if tag % 2 == 1 {
                    assert!(reply[11..] == bytes[..300_000]);
                }
            }
        }
    }
}

#[test]
fn stopping_answers_a_lock_that_waits() {
    for vmm in Vmm::STOPPING {
        let rig = Rig::new();
        let (mut machine, _file) = locked_by_host(&rig);
        let token = machine
            .client
            .transport()
            .send(&frame(blocking_lock(), 500), &[], 4096);
        assert_alive(&mut machine, &rig.share());
        let base = machine.stop().expect("stop");
        assert_eq!(machine.ring().used_index(), base, "{vmm:?}");
        assert_eq!(base, machine.ring().available_index());
        let reply = machine.client.transport().try_reply(token).expect("completed");
        assert!(reply.is_empty() || status(&reply) == P9_LOCK_BLOCKED);
        machine.cont(base).expect("cont");
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn a_lock_that_waits_is_not_answered_on_the_ring_after_a_reset() {
    for vmm in Vmm::ALL {
        let rig = Rig::new();
        let (mut machine, file) = locked_by_host(&rig);
        drop(machine);
        machine = rig.boot(vmm);
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, P9_DOTL_RDWR).expect("open");
        let message = frame(blocking_lock(), 500);
        machine.client.transport().send(&message, &[], 4096);
        assert_alive(&mut machine, &rig.share());
        machine.reset_queue().expect("reset");
        drop(file);
        machine.client.version(8192).expect("version");
        machine.client.attach(0, wire::NONUNAME).expect("attach");
        assert_alive(&mut machine, &rig.share());
        std::thread::sleep(Duration::from_millis(50));
        let ring = machine.ring();
        assert_eq!(ring.used_index(), ring.available_index(), "{vmm:?}");
    }
}

#[test]
fn a_front_end_that_leaves_while_a_lock_waits_is_forgotten() {
    let rig = Rig::new();
    let (mut machine, file) = locked_by_host(&rig);
    machine
        .client
        .transport()
        .send(&frame(blocking_lock(), 500), &[], 4096);
    assert_alive(&mut machine, &rig.share());
    drop(machine);
    let mut machine = rig.boot(Vmm::Qemu);
    assert!(host_lock(&file, libc::F_UNLCK));
    std::thread::sleep(Duration::from_millis(50));
    assert!(host_lock(&file, libc::F_WRLCK), "nobody took the lock");
    assert_alive(&mut machine, &rig.share());
}
