//! The device's queue: any guest memory, any ring in it, any chains, with messages to a real session or to one that only
//! copies. The script plays the front-end without a socket, and the guest that changes memory while it is read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::device::{Backend, DeviceOptions, Handler, Vring, Worker};
use testkit::{Client, GuestMemory, Pages, Random, RingOptions, RingTransport};
use vhost::vhost_user::VhostUserBackendReqHandlerMut;
use wire::TFLUSH;

use crate::changes::Changes;
use crate::expected::Expected;
use crate::handlers::{Echo, Guest, Real};
use crate::oracle::{self, Chain, Range, Ring};
use crate::script::{Reader, Script, parse};
use crate::watchdog;

/// Bytes into guest memory: address, bytes.
pub const WRITE: u8 = 0;
/// The available index is what it is, and the device is kicked.
pub const KICK: u8 = 1;
/// The queue: descriptor table, available ring, used ring, entries, base, EVENT_IDX.
pub const SETUP: u8 = 2;
/// The regions of guest memory: address, bytes, and whether the next follows in this process, of each.
pub const LAYOUT: u8 = 3;
/// A chain in the ring's own table, made available: head, and address, length, flags of each descriptor.
const CHAIN: u8 = 4;
/// A message at an address, made available as a chain with some room for its reply: head, address, room, how many
/// descriptors the message is, the message.
const MESSAGE: u8 = 5;
/// As [`WRITE`], but while the next request is being handled.
const LATE: u8 = 6;
/// GET_VRING_BASE, and the queue is started again.
const STOP: u8 = 7;
/// SET_VRING_ENABLE.
const ENABLE: u8 = 8;
/// RESET_DEVICE.
const RESET: u8 = 9;
const KINDS: u8 = 10;

/// The header's first byte: whether a real session answers.
pub const SESSION: u8 = 1;

/// Most descriptors for which the oracle vouches: beyond that, pieces may become too many.
const PLAIN: usize = 256;
const MAX_QUEUE_SIZE: u16 = 32768;

/// Guest memory before a kick. Kept: to allocate so much for each takes longer than the rest.
static BEFORE: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Guest memory unless a script says otherwise.
const MEMORY: (u64, u32, bool) = (0, 0x2_0000, false);
/// The same for a client of our own.
const RECORDED: u32 = 0x4_0000;

/// Where scripts have their ring unless they say otherwise.
const RING: Ring = Ring {
    descriptors: 0x1000,
    avail: 0x2000,
    used: 0x3000,
    size: 16,
};

/// Tries a script.
///
/// # Panics
/// When the device writes what is not its to write, completes what it did not take, completes it with another length
/// than the chain and the message make it, or loses a chain.
pub fn run(data: &[u8]) {
    let _watched = watchdog::watch();
    let (header, records) = parse(data);
    let mut machine = Machine::new(header[0] & SESSION != 0);
    machine.layout(&[MEMORY]);
    machine.setup(RING, 0, header[1] & 1 != 0);
    for (kind, body) in records.take(300) {
        machine.step(kind % KINDS, body);
    }
    machine.kick();
    machine.stop();
    machine.guest.memory().check();
}

/// The device, and what is known of it.
pub(crate) struct Machine {
    backend: Backend,
    worker: Worker,
    vring: Vring,
    real: bool,
    ring: Ring,
    event_idx: bool,
    enabled: bool,
    /// What the script's own chains have made the available index.
    available: u16,
    /// Where the device is.
    taken: u16,
    used: u16,
    /// A driver that broke the rules is not listened to until the queue is set up anew.
    broken: bool,
    /// The last to go.
    guest: Shared,
}

/// The guest, of which the device's threads must let go.
struct Shared(Arc<Guest>);

impl Drop for Shared {
    fn drop(&mut self) {
        while Arc::strong_count(&self.0) > 1 {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

impl std::ops::Deref for Shared {
    type Target = Arc<Guest>;
    fn deref(&self) -> &Arc<Guest> {
        &self.0
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.backend.close();
    }
}

impl Machine {
    /// Without memory or a queue.
    pub(crate) fn new(real: bool) -> Machine {
        let guest = Guest::new();
        let handler: Arc<dyn Handler> = match real {
            true => Arc::new(Real::new(Some(Arc::clone(&guest)))),
            false => Arc::new(Echo(Arc::clone(&guest))),
        };
        let options = DeviceOptions {
            io_threads: 1,
            max_io_threads: 2,
            poll_max: Duration::ZERO,
            ..DeviceOptions::default()
        };
        let (backend, worker) = Backend::new(handler, &options, || false).expect("a device");
        let vring = backend.vring().clone();
        Machine {
            guest: Shared(guest),
            backend,
            worker,
            vring,
            real,
            ring: Ring::default(),
            event_idx: false,
            enabled: false,
            available: 0,
            taken: 0,
            used: 0,
            broken: false,
        }
    }

    /// SET_MEM_TABLE.
    pub(crate) fn layout(&mut self, regions: &[(u64, u32, bool)]) {
        let Some(memory) = self.guest.memory().layout(regions) else {
            return;
        };
        self.backend.set_mappings(memory).expect("an update");
    }

    /// What the front-end's messages do to a queue that it starts.
    pub(crate) fn setup(&mut self, ring: Ring, base: u16, event_idx: bool) {
        // What is no size or address of a queue is refused by the messages that would set it.
        if ring.size == 0 || ring.size > MAX_QUEUE_SIZE {
            return;
        }
        self.stop();
        if !ring.descriptors.is_multiple_of(16)
            || !ring.avail.is_multiple_of(2)
            || !ring.used.is_multiple_of(4)
        {
            return self.start();
        }
        self.vring.set_addresses(ring.descriptors, ring.avail, ring.used);
        let used = self.vring.next_used();
        self.vring.set_size(ring.size);
        self.vring.set_next_avail(base);
        self.vring.set_event_idx(event_idx);
        (self.ring, self.event_idx) = (ring, event_idx);
        (self.taken, self.available, self.used) = (base, base, used);
        self.start();
    }

    fn start(&mut self) {
        self.vring.set_enabled(true);
        self.vring.set_ready(true);
        (self.enabled, self.broken) = (true, false);
    }

    /// GET_VRING_BASE: all that was taken is answered when it comes back.
    pub(crate) fn stop(&mut self) {
        self.backend.get_vring_base(0).expect("it stops");
        assert_eq!(self.vring.accepted(), 0, "a request is left without an answer");
    }

    fn step(&mut self, kind: u8, body: &[u8]) {
        let mut body = Reader(body);
        match kind {
            WRITE => {
                let gpa = body.u64();
                self.guest.memory().write(gpa, body.rest());
            }
            KICK => self.kick(),
            SETUP => {
                let ring = Ring {
                    descriptors: body.u64(),
                    avail: body.u64(),
                    used: body.u64(),
                    size: body.u16(),
                };
                let base = body.u16();
                self.setup(ring, base, body.u8() & 1 != 0);
            }
            LAYOUT => {
                let mut regions = Vec::new();
                while !body.rest().is_empty() && regions.len() < 8 {
                    regions.push((body.u64(), body.u32(), body.u8() & 1 != 0));
                }
                self.layout(&regions);
            }
            CHAIN => {
                let head = body.u16();
                let mut chain = Vec::new();
                while !body.rest().is_empty() && chain.len() < 32 {
                    chain.push((body.u64(), body.u32(), body.u16()));
                }
                self.chain(head, &chain);
            }
            MESSAGE => {
                let (head, gpa, room) = (body.u16(), body.u32(), body.u16());
                let parts = body.u8();
                self.message(head, gpa.into(), room, parts, body.rest());
            }
            LATE => {
                let gpa = body.u64();
                self.guest.late().push_back((gpa, body.rest().to_vec()));
            }
            STOP => {
                self.stop();
                assert_eq!(self.vring.next_avail(), self.taken, "where it stopped");
                self.start();
            }
            ENABLE => {
                self.enabled = body.u8() & 1 != 0;
                self.vring.set_enabled(self.enabled);
            }
            RESET => {
                self.backend.reset_device().expect("it is reset");
                self.vring.set_enabled(self.enabled);
            }
            _ => {}
        }
    }

    /// Writes a chain, linked one after the other from `head` on, and makes it available.
    fn chain(&mut self, head: u16, chain: &[(u64, u32, u16)]) {
        let memory = self.guest.memory();
        for (at, (gpa, len, flags)) in (0u16..).zip(chain) {
            let index = u64::from(head.wrapping_add(at));
            let next = head.wrapping_add(at).wrapping_add(1);
            let mut bytes = gpa.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            if index < u64::from(self.ring.size) {
                memory.write(self.ring.descriptors.wrapping_add(16 * index), &bytes);
            }
        }
        let slot = u64::from(self.available % self.ring.size.max(1));
        memory.write(self.ring.avail.wrapping_add(4 + 2 * slot), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        memory.write(self.ring.avail.wrapping_add(2), &self.available.to_le_bytes());
    }

    fn message(&mut self, head: u16, gpa: u64, room: u16, parts: u8, message: &[u8]) {
        use testkit::ring::{NEXT, WRITE};
        self.guest.memory().write(gpa, message);
        let len = message.len() as u32;
        // The reply comes a page behind.
        let reply = (gpa + 0x1000, u32::from(room), WRITE);
        let chain = match parts % 3 {
            0 => vec![(gpa, len, NEXT), reply],
            1 => {
                let cut = len.min(11);
                vec![(gpa, cut, NEXT), (gpa + u64::from(cut), len - cut, NEXT), reply]
            }
            _ => {
                let first = (reply.0, reply.1 / 2, WRITE | NEXT);
                let rest = (reply.0 + u64::from(first.1), reply.1 - first.1, WRITE);
                vec![(gpa, len, NEXT), first, rest]
            }
        };
        self.chain(head, &chain);
    }

    /// The queue's thread wakes up; then all that it took has been answered.
    pub(crate) fn kick(&mut self) {
        let expected = self.expect();
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        before.clear();
        if expected.is_some() {
            let memory = self.guest.memory();
            memory
                .bytes()
                .for_each(|(_, bytes)| before.extend_from_slice(bytes));
        }
        self.worker.serve();
        while self.vring.accepted() > 0 {
            std::thread::sleep(Duration::from_micros(20));
        }
        let taken = self.vring.next_avail();
        if let Some(expected) = expected {
            expected.check(&self.guest.memory(), &before, self.used, self.real);
            assert_eq!(
                taken,
                self.taken.wrapping_add(expected.heads.len() as u16),
                "what was taken"
            );
            self.broken |= expected.breaks;
            self.used = self.used.wrapping_add(expected.heads.len() as u16);
            self.taken = taken;
            return;
        }
        self.guest.late().clear();
        // What the ring said changed while it was read, so only this is known: one was pushed for each taken.
        let count = taken.wrapping_sub(self.taken);
        self.used = self.used.wrapping_add(count);
        self.taken = taken;
        // It may have been broken, or not; a queue that is set up anew is known again.
        self.stop();
        self.start();
    }

    /// What the device has to make of the ring as it is now; `None` when what it writes is what it reads.
    fn expect(&self) -> Option<Expected> {
        let memory = self.guest.memory();
        let mut expected = Expected {
            ring: self.ring,
            heads: Vec::new(),
            breaks: false,
            flush: false,
        };
        if !self.guest.late().is_empty() {
            return None;
        }
        if !self.enabled || self.broken {
            return Some(expected);
        }
        if !self.ring.valid(&memory) {
            expected.breaks = true;
            return Some(expected);
        }
        let ready = memory
            .u16(self.ring.avail.wrapping_add(2))
            .wrapping_sub(self.taken);
        if ready > self.ring.size {
            expected.breaks = true;
            return Some(expected);
        }
        let mut reads: Vec<Range> = self.ring.areas()[..2].to_vec();
        let mut writes: Vec<Range> = vec![self.ring.areas()[2]];
        for at in 0..ready {
            let slot = u64::from(self.taken.wrapping_add(at) & (self.ring.size - 1));
            let head = memory.u16(self.ring.avail + 4 + 2 * slot);
            let chain = Chain::of(&memory, &self.ring, head);
            if chain.descriptors > PLAIN {
                return None;
            }
            reads.extend(chain.tables.iter().chain(&chain.readable));
            if chain.valid {
                writes.extend(&chain.writable);
                let kind = oracle::bytes(&memory, &chain.readable).get(4).copied();
                expected.flush |= kind == Some(TFLUSH);
            }
            expected.heads.push((head, chain));
        }
        let used = writes[0];
        let itself = writes
            .iter()
            .any(|write| reads.iter().any(|read| oracle::overlap(*write, *read)))
            || writes[1..].iter().any(|write| oracle::overlap(*write, used));
        (!itself).then_some(expected)
    }
}

/// The script of `work` by our client on a ring of its own: what it writes into guest memory before each kick.
///
/// # Panics
/// When the work fails.
pub fn record(real: bool, options: RingOptions, work: impl FnOnce(&mut Client<RingTransport>)) -> Script {
    let memory = GuestMemory::new(&[(0, RECORDED as usize)]).expect("memory");
    let mut ring = testkit::Ring::new(&memory, options);
    let [descriptors, avail, used] = ring.parts().map(testkit::Area::gpa);
    let recording = Arc::new(Mutex::new(Script {
        header: [u8::from(real), 0, 0, 0],
        ..Script::default()
    }));
    let mut machine = Machine::new(real);
    let mut step = {
        let recording = Arc::clone(&recording);
        move |kind, body: Vec<u8>| {
            machine.step(kind, &body);
            recording.lock().expect("no panic").records.push((kind, body));
            machine.guest.memory().read(0, RECORDED as usize)
        }
    };
    let mut layout = 0u64.to_le_bytes().to_vec();
    layout.extend(RECORDED.to_le_bytes());
    layout.push(0);
    step(LAYOUT, layout);
    let mut setup = Vec::new();
    for area in [descriptors, avail, used] {
        setup.extend(area.to_le_bytes());
    }
    setup.extend(options.size.to_le_bytes());
    setup.extend([0, 0, u8::from(options.event_idx)]);
    let known = step(SETUP, setup);
    let state = Mutex::new((step, Changes::of(&memory, known)));
    let guest = memory.clone();
    ring.set_kick(Box::new(move || {
        let mut state = state.lock().expect("no panic");
        let (step, changes) = &mut *state;
        for (gpa, bytes) in changes.take(&guest) {
            step(WRITE, [&gpa.to_le_bytes()[..], &bytes].concat());
        }
        changes.put(&guest, step(KICK, Vec::new()));
    }));
    let transport = RingTransport::new(&memory, ring, 4096, Pages::Scattered);
    work(&mut Client::mount(transport, 8192).expect("mount"));
    recording.lock().expect("no panic").clone()
}

/// Changes `data` into another script.
pub fn mutate(data: &mut Vec<u8>, random: &mut Random) {
    let mut script = Script::decode(data);
    script.mutate(random, |random| vec![fresh(random)]);
    *data = script.encode();
}

/// An address that is likely to be of use: in the default ring, among messages, anywhere.
fn address(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.next(),
        1 => 0x1000 + random.below(0x2fff) as u64,
        2 => 0x1_fff0 + random.below(32) as u64,
        _ => 0x8000 + 0x2000 * random.below(12) as u64,
    }
}

fn fresh(random: &mut Random) -> (u8, Vec<u8>) {
    let kind = match random.below(16) {
        0..=4 => MESSAGE,
        5..=7 => CHAIN,
        8..=10 => KICK,
        _ => random.below(KINDS.into()) as u8,
    };
    let mut body = Vec::new();
    match kind {
        WRITE | LATE => {
            body.extend(address(random).to_le_bytes());
            body.extend((0..1 + random.below(16)).map(|_| random.next() as u8));
        }
        SETUP => {
            let page = |random: &mut Random| 0x1000 * random.below(0x1f) as u64 + 4 * random.below(8) as u64;
            let descriptors = 16 * (page(random) / 16);
            let avail = page(random);
            // One in four writes its used ring where the driver's part is.
            let used = match random.below(8) {
                0 => avail.wrapping_sub(4 * random.below(8) as u64),
                1 => descriptors + 16 * random.below(4) as u64,
                _ => page(random),
            };
            for gpa in [descriptors, avail, used] {
                body.extend(gpa.to_le_bytes());
            }
            body.extend((1u16 << random.below(9)).to_le_bytes());
            body.extend((random.below(4) as u16).wrapping_sub(2).to_le_bytes());
            body.push(random.below(2) as u8);
        }
        LAYOUT => {
            let mut gpa = 0x1000 * random.below(2) as u64;
            for _ in 0..1 + random.below(4) {
                let len = 0x1000 * (1 + random.below(0x20)) as u64 - [0, 0, 0, 1, 16][random.below(5)];
                body.extend(gpa.to_le_bytes());
                body.extend((len as u32).to_le_bytes());
                body.push(random.below(2) as u8);
                gpa += len + [0, 0, 0x1000][random.below(3)];
            }
        }
        CHAIN => {
            body.extend((random.below(16) as u16).to_le_bytes());
            for _ in 0..1 + random.below(6) {
                body.extend(address(random).to_le_bytes());
                body.extend((random.below(0x1800) as u32).to_le_bytes());
                body.extend((random.below(8) as u16).to_le_bytes());
            }
        }
        MESSAGE => {
            body.extend((random.below(16) as u16).to_le_bytes());
            body.extend((0x8000 + 0x2000 * random.below(12) as u32).to_le_bytes());
            body.extend([0u16, 7, 11, 64, 160, 4096][random.below(6)].to_le_bytes());
            body.push(random.below(3) as u8);
            body.extend(testkit::random::damaged_message(random));
        }
        ENABLE => body.push(random.below(2) as u8),
        _ => {}
    }
    (kind, body)
}
