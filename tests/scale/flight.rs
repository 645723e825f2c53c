//! A full ring of which much waits: locks that a process on the host holds, and fsyncs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use testkit::{Machine, RingTransport};
use wire::*;

use crate::program::{Program, answer, frame, host_lock};

const LOCKS: u16 = 16;
const FSYNCS: u16 = 8;
const RING: u16 = 128;

/// The tags of each kind; getattrs have those from [`GETATTR`] on.
const LOCK: u16 = 0;
const FSYNC: u16 = 100;
const GETATTR: u16 = 1000;

fn ask_lock(at: u16) -> Vec<u8> {
    let message = Tlock {
        fid: 1,
        kind: P9_LOCK_TYPE_WRLCK,
        flags: P9_LOCK_FLAGS_BLOCK,
        start: at.into(),
        length: 1,
        proc_id: u32::from(at) + 1,
        client_id: b"guest",
    };
    frame(message, LOCK + at)
}

/// Keeps fsyncs and getattrs in flight beside the locks.
struct Load {
    started: HashMap<u16, (u16, Instant)>,
    fsyncs: usize,
    latencies: Vec<Duration>,
}

impl Load {
    fn fsync(&mut self, transport: &mut RingTransport, tag: u16) {
        let token = transport.stage(&frame(Tfsync { fid: 2, datasync: 0 }, tag), &[], 4096);
        self.started.insert(token, (tag, Instant::now()));
    }

    fn getattr(&mut self, transport: &mut RingTransport, tag: u16) {
        let token = transport.stage(
            &frame(
                Tgetattr {
                    fid: 2,
                    mask: P9_GETATTR_BASIC,
                },
                tag,
            ),
            &[],
            4096,
        );
        self.started.insert(token, (tag, Instant::now()));
    }

    /// Until so many getattrs and fsyncs are answered; a new request for each answer but of locks.
    fn run(&mut self, transport: &mut RingTransport, getattrs: usize, fsyncs: usize) {
        transport.ring.notify();
        while self.latencies.len() < getattrs || self.fsyncs < fsyncs {
            let (token, reply) = transport.next_reply();
            let now = Instant::now();
            let (tag, since) = self
                .started
                .remove(&token)
                .expect("neither getattr nor fsync: a lock was answered");
            match answer(&reply, tag) {
                Rmessage::Getattr(attributes) => {
                    assert_eq!(attributes.size, 4096);
                    self.latencies.push(now - since);
                    self.getattr(transport, tag);
                }
                Rmessage::Fsync(_) => {
                    self.fsyncs += 1;
                    self.fsync(transport, tag);
                }
                other => panic!("{other:?}"),
            }
            transport.ring.notify();
        }
    }

    fn report(&mut self, what: &str) {
        self.latencies.sort_unstable();
        let at = |part: usize| self.latencies[(self.latencies.len() - 1) * part / 1000].as_secs_f64() * 1e6;
        println!(
            "{what}: {} getattrs, median {:.1} us, p99 {:.1} us, p99.9 {:.1} us; {} fsyncs meanwhile",
            self.latencies.len(),
            at(500),
            at(990),
            at(999),
            self.fsyncs
        );
        self.latencies.clear();
        self.fsyncs = 0;
    }
}

fn opened(program: &Program) -> (Machine, File) {
    for name in ["locked", "synced"] {
        fs::write(program.share().join(name), [7; 4096]).expect("write");
    }
    let file = File::options()
        .read(true)
        .write(true)
        .open(program.share().join("locked"))
        .expect("open");
    let mut machine = program.boot(4096);
    for (fid, name) in [(1, "locked"), (2, "synced")] {
        machine.client.walk_all(0, fid, &[name]).expect("walk");
        machine.client.lopen(fid, P9_DOTL_RDWR).expect("open");
    }
    (machine, file)
}

#[test]
fn getattrs_go_on_while_locks_and_fsyncs_wait() {
    let program = Program::start(&[]);
    let (mut machine, file) = opened(&program);
    let transport = machine.client.transport();
    let mut load = Load {
        started: HashMap::new(),
        fsyncs: 0,
        latencies: Vec::new(),
    };
    load.getattr(transport, GETATTR);
    load.run(transport, 5000, 0);
    load.report("one getattr at a time, nothing else");

    for at in 0..LOCKS {
        assert!(host_lock(&file, libc::F_WRLCK, at.into(), 1));
    }
    let locks: Vec<u16> = (0..LOCKS)
        .map(|at| transport.stage(&ask_lock(at), &[], 4096))
        .collect();
    load.run(transport, 5000, 0);
    load.report("beside 16 locks that wait");
    for at in 0..FSYNCS {
        load.fsync(transport, FSYNC + at);
    }
    load.run(transport, 5000, 64);
    load.report("beside 16 locks that wait and 8 fsyncs");

    for at in 1..RING - LOCKS - FSYNCS {
        load.getattr(transport, GETATTR + at);
    }
    assert_eq!(transport.in_flight(), usize::from(RING));
    load.run(transport, 20_000, 64);
    load.report("128 in flight, 16 locks and 8 fsyncs among them");

    // The ring empties but for the locks.
    while let Some(token) = load.started.keys().next().copied() {
        transport.wait(token);
        load.started.remove(&token);
    }
    assert_eq!(transport.in_flight(), usize::from(LOCKS));
    // One after another, the last one first: whichever is let go is granted, and no other.
    for at in (0..LOCKS).rev() {
        let start = Instant::now();
        assert!(host_lock(&file, libc::F_UNLCK, at.into(), 1));
        let (token, reply) = transport.next_reply();
        assert_eq!(token, locks[usize::from(at)]);
        let Rmessage::Lock(lock) = answer(&reply, LOCK + at) else {
            panic!("lock {at}: {reply:?}");
        };
        assert_eq!(lock.status, P9_LOCK_SUCCESS, "lock {at}");
        if at == 0 {
            println!(
                "a lock is granted {:.1} ms after it was let go",
                start.elapsed().as_secs_f64() * 1e3
            );
        }
        assert!(
            !host_lock(&file, libc::F_WRLCK, at.into(), 1),
            "the host sees lock {at}"
        );
        assert_eq!(transport.in_flight(), usize::from(at));
    }
    machine.client.clunk(1).expect("clunk");
    assert!(
        host_lock(&file, libc::F_WRLCK, 0, 0),
        "the locks go with their file"
    );
}
