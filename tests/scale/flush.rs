//! Tflush against requests in every state. The buffers are the test's own: of whatever is done, by an answer or by its
//! Rflush, the reply buffer gets a pattern at once, and nobody may write there any more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;

use testkit::scenario::{Random, pattern};
use testkit::{Area, GuestMemory, Machine, Piece, Ring};
use wire::*;

use crate::program::{Program, answer, frame, host_lock};

const FLUSHES: usize = 10_000;
/// Bytes of a large read: several slices.
const LARGE: usize = 400_000;
const GUARD: u8 = 0xa5;

/// Memory of one request.
struct Slot {
    message: Area,
    reply: Area,
    /// Bytes of the last request's reply buffer.
    capacity: usize,
    /// It is done: the guard is in it and must stay.
    guarded: bool,
}

impl Slot {
    fn new(memory: &GuestMemory) -> Slot {
        Slot {
            message: memory.alloc(4096, 4096),
            reply: memory.alloc(LARGE + 4096, 4096),
            capacity: 0,
            guarded: false,
        }
    }

    fn guard(&mut self) {
        self.reply.part(0, self.capacity).fill(GUARD);
        self.guarded = true;
    }

    fn check(&mut self) {
        if std::mem::take(&mut self.guarded) {
            let bytes = self.reply.get(0, self.capacity);
            let same = bytes == vec![GUARD; self.capacity];
            assert!(same, "a reply buffer was written after its request's end");
        }
    }
}

/// A request in flight.
struct Open {
    tag: u16,
    slot: usize,
    /// Of a Tflush: the tag it names.
    flushes: Option<u16>,
    kind: u8,
}

struct Station {
    slots: Vec<Slot>,
    /// In the order of their release, so that a guard lies for a while.
    free: VecDeque<usize>,
    open: HashMap<u16, Open>,
    /// Tags in flight.
    tags: HashSet<u16>,
    answered: HashMap<u8, usize>,
    dropped: usize,
    flushed: usize,
}

impl Station {
    fn stage(&mut self, ring: &mut Ring, bytes: &[u8], tag: u16, capacity: usize, flushes: Option<u16>) {
        let at = self.free.pop_front().expect("a slot");
        let slot = &mut self.slots[at];
        slot.check();
        slot.capacity = capacity;
        slot.message.write(0, bytes);
        let readable = Piece::from(&slot.message.part(0, bytes.len()));
        let writable = Piece::from(&slot.reply.part(0, capacity));
        let token = ring.stage(&[readable], &[writable]).expect("room");
        let open = Open {
            tag,
            slot: at,
            flushes,
            kind: bytes[4],
        };
        assert!(self.open.insert(token, open).is_none());
        assert!(self.tags.insert(tag), "tag {tag} is in use");
    }

    fn take(&mut self, (token, len): (u16, u32), content: &[u8]) {
        let open = self.open.remove(&token).expect("answered twice");
        assert!(self.tags.remove(&open.tag));
        let slot = &mut self.slots[open.slot];
        let reply = slot.reply.get(0, len as usize);
        if len == 0 {
            assert!(open.flushes.is_none(), "a Tflush without an answer");
            self.dropped += 1;
        } else {
            match answer(&reply, open.tag) {
                Rmessage::Read(read) => assert!(read.data == &content[..read.data.len()], "wrong bytes"),
                Rmessage::Getattr(attributes) => assert_eq!(attributes.size, content.len() as u64),
                Rmessage::Lock(lock) => assert_eq!(lock.status, P9_LOCK_BLOCKED, "the host holds it"),
                Rmessage::Fsync(_) => {}
                Rmessage::Flush(_) => self.flushed += 1,
                other => panic!("{other:?}"),
            }
            *self.answered.entry(open.kind).or_default() += 1;
        }
        if let Some(old) = open.flushes {
            assert!(
                !self.tags.contains(&old),
                "request {old} is open after its Rflush"
            );
        }
        // Linux hands a request's memory to somebody else when both it and its flush are done.
        slot.guard();
        self.free.push_back(open.slot);
    }
}

fn opened(program: &Program, content: &[u8]) -> Machine {
    for name in ["read", "locked"] {
        fs::write(program.share().join(name), content).expect("write");
    }
    let mut machine = program.boot(4096);
    for (fid, name) in [(1, "read"), (2, "locked")] {
        machine.client.walk_all(0, fid, &[name]).expect("walk");
        machine.client.lopen(fid, P9_DOTL_RDWR).expect("open");
    }
    machine
}

fn victim(kind: usize, tag: u16) -> (Vec<u8>, usize) {
    match kind {
        0..4 => (
            frame(
                Tgetattr {
                    fid: 1,
                    mask: P9_GETATTR_BASIC,
                },
                tag,
            ),
            4096,
        ),
        4..8 => {
            let count = LARGE as u32;
            (
                frame(
                    Tread {
                        fid: 1,
                        offset: 0,
                        count,
                    },
                    tag,
                ),
                LARGE + 11,
            )
        }
        8..11 => (frame(Tfsync { fid: 1, datasync: 1 }, tag), 4096),
        _ => {
            let message = Tlock {
                fid: 2,
                kind: P9_LOCK_TYPE_WRLCK,
                flags: P9_LOCK_FLAGS_BLOCK,
                start: u64::from(tag),
                length: 1,
                proc_id: 1,
                client_id: b"guest",
            };
            (frame(message, tag), 4096)
        }
    }
}

#[test]
fn ten_thousand_flushes_in_every_state() {
    let program = Program::start(&[]);
    let content = pattern(1 << 20, 9);
    let mut machine = opened(&program, &content);
    let file = fs::File::options()
        .write(true)
        .open(program.share().join("locked"))
        .expect("open");
    assert!(host_lock(&file, libc::F_WRLCK, 0, 0));
    let memory = machine.frontend.memory().clone();
    let slots: Vec<Slot> = (0..200).map(|_| Slot::new(&memory)).collect();
    let mut station = Station {
        free: (0..slots.len()).collect(),
        slots,
        open: HashMap::new(),
        tags: HashSet::new(),
        answered: HashMap::new(),
        dropped: 0,
        flushed: 0,
    };
    let ring = &mut machine.client.transport().ring;
    let mut random = Random::new(31);
    let mut next = 0u16;
    let mut tag = || {
        next = (next + 1) % 50_000;
        next
    };
    let mut sent = 0;
    while sent < FLUSHES {
        // Up to 20 requests, and a flush for each at some time: in the same batch, in another, after a while, twice.
        let mut victims = Vec::new();
        for _ in 0..1 + random.below(20) {
            let of = tag();
            let (message, capacity) = victim(random.below(14), of);
            station.stage(ring, &message, of, capacity, None);
            victims.push(of);
        }
        if random.below(2) == 0 {
            ring.notify();
        }
        for _ in 0..random.below(3) * random.below(400) {
            std::hint::spin_loop();
        }
        for of in victims {
            let flush = tag();
            // Every now and then a tag that nobody has, or its own.
            let old = match random.below(12) {
                0 => 60_000,
                1 => flush,
                _ => of,
            };
            let count = if old == of {
                1 + usize::from(random.below(10) == 0)
            } else {
                2
            };
            for more in 0..count {
                let (flush, old) = match (more, old == of) {
                    (0, _) => (flush, old),
                    // A flush in vain is followed by one that means it.
                    _ => (tag(), of),
                };
                let named = if old == flush { None } else { Some(old) };
                let bytes = frame(Tflush { oldtag: old }, flush);
                // One that names itself is a flush like any other to the station.
                station.stage(ring, &bytes, flush, 4096, Some(named.unwrap_or(60_000)));
                sent += 1;
            }
            if random.below(3) == 0 {
                ring.notify();
            }
        }
        ring.notify();
        while !station.open.is_empty() {
            let done = ring.wait_used(testkit::vhost_user::PATIENCE);
            let done = done.unwrap_or_else(|| panic!("{} requests are lost", station.open.len()));
            station.take(done, &content);
        }
    }
    for slot in &mut station.slots {
        slot.check();
    }
    assert_eq!(station.flushed, sent, "each Tflush is answered once");
    println!(
        "{sent} flushes: {} requests dropped unanswered; answers by type of request {:?}",
        station.dropped, station.answered
    );
    assert!(station.dropped > 0, "no flush came in time");
    machine.client.stat(1).expect("getattr");
}
