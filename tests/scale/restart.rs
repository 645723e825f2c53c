//! The queue is stopped and started again in the middle of everything.

use std::collections::HashMap;
use std::fs;

use testkit::RingTransport;
use testkit::scenario::{Random, pattern};
use wire::*;

use crate::program::{Program, answer, frame, host_lock};

const BYTES: usize = 1 << 20;
const READ: u32 = 60_000;

enum Asked {
    Getattr,
    Read(u64),
    Write,
    Fsync,
    Mkdir,
    Lock,
}

struct Load {
    open: HashMap<u16, (u16, Asked)>,
    random: Random,
    next: u16,
    directories: usize,
    answers: [usize; 6],
}

impl Load {
    fn send(&mut self, transport: &mut RingTransport) {
        let tag = self.next;
        self.next = (self.next + 1) % 60_000;
        let kind = self.random.below(20);
        let (token, asked) = match kind {
            0..8 => {
                let message = frame(
                    Tgetattr {
                        fid: 1,
                        mask: P9_GETATTR_BASIC,
                    },
                    tag,
                );
                (transport.stage(&message, &[], 4096), Asked::Getattr)
            }
            8..13 => {
                let offset = self.random.below(BYTES - READ as usize) as u64;
                let message = frame(
                    Tread {
                        fid: 1,
                        offset,
                        count: READ,
                    },
                    tag,
                );
                (
                    transport.stage(&message, &[], READ as usize + 11),
                    Asked::Read(offset),
                )
            }
            13..16 => {
                let message = Twrite {
                    fid: 2,
                    offset: u64::from(tag) * 4,
                    count: 4,
                    data: &[],
                };
                let payload = u32::from(tag).to_le_bytes();
                (
                    transport.stage(&frame(message, tag), &payload, 4096),
                    Asked::Write,
                )
            }
            16..17 => {
                let message = frame(Tfsync { fid: 2, datasync: 1 }, tag);
                (transport.stage(&message, &[], 4096), Asked::Fsync)
            }
            17..19 => {
                // Done twice, it would fail with EEXIST.
                let name = format!("d{}", self.directories);
                self.directories += 1;
                let message = Tmkdir {
                    dfid: 0,
                    name: name.as_bytes(),
                    mode: 0o700,
                    gid: 0,
                };
                (transport.stage(&frame(message, tag), &[], 4096), Asked::Mkdir)
            }
            _ => {
                let message = Tlock {
                    fid: 3,
                    kind: P9_LOCK_TYPE_WRLCK,
                    flags: P9_LOCK_FLAGS_BLOCK,
                    start: 0,
                    length: 0,
                    proc_id: 1,
                    client_id: b"guest",
                };
                (transport.stage(&frame(message, tag), &[], 4096), Asked::Lock)
            }
        };
        assert!(self.open.insert(token, (tag, asked)).is_none());
    }

    fn check(&mut self, token: u16, reply: &[u8], content: &[u8]) {
        let (tag, asked) = self.open.remove(&token).expect("answered twice");
        let at = match (&asked, answer(reply, tag)) {
            (Asked::Getattr, Rmessage::Getattr(attributes)) => {
                assert_eq!(attributes.size, BYTES as u64);
                0
            }
            (Asked::Read(offset), Rmessage::Read(read)) => {
                let offset = *offset as usize;
                assert!(
                    read.data == &content[offset..offset + READ as usize],
                    "wrong bytes"
                );
                1
            }
            (Asked::Write, Rmessage::Write(write)) => {
                assert_eq!(write.count, 4);
                2
            }
            (Asked::Fsync, Rmessage::Fsync(_)) => 3,
            (Asked::Mkdir, Rmessage::Mkdir(_)) => 4,
            // The host holds it: it is answered by a stop only, and then with an invitation to ask again.
            (Asked::Lock, Rmessage::Lock(lock)) => {
                assert_eq!(lock.status, P9_LOCK_BLOCKED);
                5
            }
            (_, other) => panic!("{other:?}"),
        };
        self.answers[at] += 1;
    }
}

#[test]
fn two_hundred_stops_lose_no_request_and_repeat_none() {
    let program = Program::start(&[]);
    let content = pattern(BYTES, 3);
    fs::write(program.share().join("read"), &content).expect("write");
    for name in ["written", "locked"] {
        fs::write(program.share().join(name), "").expect("write");
    }
    let file = fs::File::options()
        .write(true)
        .open(program.share().join("locked"))
        .expect("open");
    assert!(host_lock(&file, libc::F_WRLCK, 0, 0));
    let mut machine = program.boot(READ as usize);
    for (fid, name) in [(1, "read"), (2, "written"), (3, "locked")] {
        machine.client.walk_all(0, fid, &[name]).expect("walk");
        machine.client.lopen(fid, P9_DOTL_RDWR).expect("open");
    }
    let mut load = Load {
        open: HashMap::new(),
        random: Random::new(77),
        next: 0,
        directories: 0,
        answers: [0; 6],
    };
    let (mut sent, mut left) = (0, 0);
    for round in 0..200 {
        let transport = machine.client.transport();
        let free = transport.ring.free_slots();
        for at in 0..free {
            load.send(transport);
            sent += 1;
            if at % 16 == 15 {
                transport.ring.notify();
            }
        }
        transport.ring.notify();
        // Some rounds stop at once, some when part of it is answered.
        for _ in 0..load.random.below(80) {
            while let Some((token, reply)) = next(transport, &load) {
                load.check(token, &reply, &content);
            }
        }
        let base = machine.stop().expect("stop");
        let used = machine.ring().used_index();
        assert_eq!(used, base, "round {round}: taken and not answered");
        let transport = machine.client.transport();
        while let Some((token, reply)) = next(transport, &load) {
            load.check(token, &reply, &content);
        }
        left += load.open.len();
        assert_eq!(
            machine.ring().used_index(),
            base,
            "round {round}: it moved after the stop"
        );
        machine.cont(base).expect("cont");
    }
    let base = loop {
        // What is left but the locks is answered by a running queue.
        let transport = machine.client.transport();
        let waits = load
            .open
            .iter()
            .find(|(_, (_, asked))| !matches!(asked, Asked::Lock));
        let Some((&token, _)) = waits else {
            break machine.stop().expect("stop");
        };
        let reply = transport.wait(token);
        load.check(token, &reply, &content);
    };
    let transport = machine.client.transport();
    while let Some((token, reply)) = next(transport, &load) {
        load.check(token, &reply, &content);
    }
    assert!(load.open.is_empty(), "{} requests are lost", load.open.len());
    assert_eq!(load.answers.iter().sum::<usize>(), sent);
    println!(
        "200 stops: {sent} requests, {left} left in the ring by stops, answers {:?}",
        load.answers
    );
    machine.cont(base).expect("cont");
    let made = fs::read_dir(program.share()).expect("readdir").count() - 3;
    assert_eq!(made, load.directories, "each directory once");
}

/// Any completion that is there.
fn next(transport: &mut RingTransport, load: &Load) -> Option<(u16, Vec<u8>)> {
    transport.collect();
    load.open
        .keys()
        .find_map(|&token| Some((token, transport.try_reply(token)?)))
}
