//! The device against a session that does what the test says: what blocks, waits, comes in slices, and is flushed.

mod common;
#[path = "common/script.rs"]
mod script;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use common::{Rig, frame, until};
use device::DeviceOptions;
use script::Script;
use testkit::{Frontend, Machine, MachineOptions, RingTransport, Vmm};
use wire::*;

/// Threads of this process with names that begin so: this test's, and those of tests beside it, which end.
fn threads_named(name: &str) -> usize {
    let threads = std::fs::read_dir("/proc/self/task").expect("procfs");
    threads
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .filter(|comm| comm.starts_with(name))
        .count()
}

struct Scene {
    script: Arc<Script>,
    frontend: Frontend,
    transport: RingTransport,
    _rig: Rig,
}

fn scene(vmm: Vmm, io_threads: usize) -> Scene {
    let limits = DeviceOptions {
        io_threads,
        max_io_threads: io_threads,
        ..DeviceOptions::default()
    };
    scene_within(vmm, limits)
}

fn scene_within(vmm: Vmm, limits: DeviceOptions) -> Scene {
    let script = Arc::new(Script::default());
    let theirs = Arc::clone(&script);
    let rig = Rig::with_limits(move || theirs.session(), limits);
    let (frontend, transport) =
        Machine::power_on(&rig.socket(), &MachineOptions::new(vmm)).expect("power on");
    Scene {
        script,
        frontend,
        transport,
        _rig: rig,
    }
}

impl Scene {
    /// Answered at once.
    fn quick(&mut self, tag: u16) -> u16 {
        self.transport.send(&frame(Tclunk { fid: 0 }, tag), &[], 4096)
    }

    /// Blocks a thread until the script's gate opens.
    fn slow(&mut self, tag: u16) -> u16 {
        self.transport
            .send(&frame(Tfsync { fid: 0, datasync: 0 }, tag), &[], 4096)
    }

    /// Waits until the script grants it.
    fn lock(&mut self, tag: u16) -> u16 {
        self.transport.send(&frame(Tremove { fid: 0 }, tag), &[], 4096)
    }

    fn flush(&mut self, oldtag: u16, tag: u16) -> u16 {
        self.transport.send(&frame(Tflush { oldtag }, tag), &[], 4096)
    }

    /// That many requests have begun to block or wait.
    fn until_begun(&self, count: usize) {
        until("the requests begin", || self.script.begun.load(SeqCst) >= count);
    }

    /// The device has looked at all that was sent.
    fn settle(&mut self) {
        for tag in 60_000..60_003 {
            let token = self.quick(tag);
            self.transport.wait(token);
        }
        std::thread::sleep(Duration::from_millis(20));
    }

    /// The next `count` completions in their order: tag and used length.
    fn order(&mut self, count: usize, sent: &[(u16, u16)]) -> Vec<(u16, usize)> {
        let mut next = || {
            let (token, reply) = self.transport.next_reply();
            let &(tag, _) = sent.iter().find(|sent| sent.1 == token).expect("sent");
            (tag, reply.len())
        };
        (0..count).map(|_| next()).collect()
    }
}

#[test]
fn what_blocks_does_not_hold_up_what_does_not() {
    for vmm in Vmm::ALL {
        let mut scene = scene(vmm, 2);
        let slow: Vec<u16> = (0..40).map(|tag| scene.slow(tag)).collect();
        scene.until_begun(2);
        for tag in 100..200 {
            let token = scene.quick(tag);
            assert_eq!(scene.transport.wait(token)[5..7], tag.to_le_bytes());
        }
        assert_eq!(scene.script.begun.load(SeqCst), 2, "as many as there are threads");
        scene.script.open_gate();
        for (tag, token) in (0u16..).zip(slow) {
            assert_eq!(scene.transport.wait(token)[5..7], tag.to_le_bytes());
        }
    }
}

#[test]
fn what_hangs_does_not_keep_the_threads() {
    let limits = DeviceOptions {
        io_threads: 2,
        max_io_threads: 20,
        ..DeviceOptions::default()
    };
    let mut scene = scene_within(Vmm::Qemu, limits);
    // None of them ends, so each of them must be given a thread.
    let slow: Vec<u16> = (0..30).map(|tag| scene.slow(tag)).collect();
    scene.until_begun(20);
    scene.settle();
    assert_eq!(
        scene.script.begun.load(SeqCst),
        20,
        "as many as there may be threads"
    );
    scene.script.open_gate();
    for token in slow {
        assert_eq!(scene.transport.wait(token).len(), 7);
    }
    // What is too many goes again: the two, and one that looks at the clock.
    until("threads end", || threads_named("io-") <= 3);
    let token = scene.slow(40);
    assert_eq!(scene.transport.wait(token).len(), 7);
}

#[test]
fn a_full_ring_of_what_waits_leaves_room_for_what_lets_go() {
    for limit in [3, 1000] {
        let limits = DeviceOptions {
            max_lock_waiters: limit,
            ..DeviceOptions::default()
        };
        let mut scene = scene_within(Vmm::Qemu, limits);
        let ring = 128;
        let waiters = limit.min(ring / 2);
        let mut asked: Vec<u16> = (0..ring as u16).map(|tag| scene.lock(tag)).collect();
        // The others are told that they have not got it.
        for _ in waiters..ring {
            let (token, reply) = scene.transport.next_reply();
            assert_eq!(reply.len(), 7);
            asked.retain(|&old| old != token);
        }
        scene.settle();
        assert_eq!(scene.transport.in_flight(), waiters);
        assert_eq!(scene.script.last.load(SeqCst), ring - waiters);
        // Those that wait go on waiting, however often they are tried.
        scene.script.wake();
        scene.settle();
        assert_eq!(scene.transport.in_flight(), waiters);
        scene.script.grant();
        scene.settle();
        for token in asked {
            assert_eq!(scene.transport.wait(token).len(), 7);
        }
    }
}

#[test]
fn beyond_the_limit_requests_stay_in_the_ring_and_come_in_their_turn() {
    let limits = DeviceOptions {
        io_threads: 1,
        max_io_threads: 1,
        max_requests: 4,
        ..DeviceOptions::default()
    };
    let mut scene = scene_within(Vmm::Qemu, limits);
    let slow: Vec<u16> = (0..4).map(|tag| scene.slow(tag)).collect();
    scene.until_begun(1);
    let quick: Vec<u16> = (4..60).map(|tag| scene.quick(tag)).collect();
    std::thread::sleep(Duration::from_millis(50));
    assert!(scene.transport.try_reply(quick[0]).is_none(), "it was taken");
    scene.script.open_gate();
    for token in slow.into_iter().chain(quick) {
        assert_eq!(scene.transport.wait(token).len(), 7);
    }
    // Sleeping and being woken works as before.
    std::thread::sleep(Duration::from_millis(10));
    scene.settle();
    assert_eq!(scene.transport.in_flight(), 0);
}

#[test]
fn a_queue_that_is_full_can_be_stopped_and_left() {
    let limits = DeviceOptions {
        max_requests: 2,
        ..DeviceOptions::default()
    };
    let mut scene = scene_within(Vmm::CloudHypervisor, limits);
    let slow: Vec<u16> = (0..2).map(|tag| scene.slow(tag)).collect();
    scene.until_begun(2);
    let late = scene.quick(2);
    let script = Arc::clone(&scene.script);
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        script.open_gate();
    });
    let base = scene.frontend.stop().expect("stop");
    opener.join().expect("no panic");
    for token in slow {
        assert_eq!(scene.transport.wait(token).len(), 7);
    }
    assert_eq!(base, scene.transport.ring.used_index());
    scene
        .frontend
        .start_at(&mut scene.transport.ring, base)
        .expect("start");
    assert_eq!(scene.transport.wait(late).len(), 7);
}

#[test]
fn a_flush_of_what_is_queued_cancels_it() {
    let mut scene = scene(Vmm::Qemu, 1);
    let first = scene.slow(1);
    scene.until_begun(1);
    let second = scene.slow(2);
    let flush = scene.flush(2, 3);
    let order = scene.order(2, &[(1, first), (2, second), (3, flush)]);
    assert_eq!(order, [(2, 0), (3, 7)]);
    scene.script.open_gate();
    assert_eq!(scene.order(1, &[(1, first)]), [(1, 7)]);
    assert_eq!(
        scene.script.begun.load(SeqCst),
        1,
        "the cancelled one never began"
    );
}

#[test]
fn a_flush_of_what_runs_comes_after_it() {
    let mut scene = scene(Vmm::CloudHypervisor, 2);
    let old = scene.slow(1);
    scene.until_begun(1);
    let flush = scene.flush(1, 2);
    let again = scene.flush(1, 3);
    let flushed = scene.flush(3, 4);
    scene.settle();
    assert_eq!(
        scene.transport.in_flight(),
        4,
        "nothing before the request itself"
    );
    scene.script.open_gate();
    let order = scene.order(4, &[(1, old), (2, flush), (3, again), (4, flushed)]);
    assert_eq!(order, [(1, 7), (2, 7), (3, 7), (4, 7)]);
}

#[test]
fn a_flush_of_what_waits_cancels_it() {
    for vmm in Vmm::ALL {
        let mut scene = scene(vmm, 2);
        let old = scene.lock(1);
        scene.until_begun(1);
        scene.settle();
        let flush = scene.flush(1, 2);
        assert_eq!(scene.order(2, &[(1, old), (2, flush)]), [(1, 0), (2, 7)]);
        scene.script.grant();
        scene.settle();
        assert_eq!(scene.transport.in_flight(), 0);
    }
}

#[test]
fn a_flush_in_the_same_batch_finds_its_request() {
    for (kind, len) in [(TFSYNC, 0), (TREMOVE, 0), (TCLUNK, 7), (TREAD, 100_011)] {
        let mut scene = scene(Vmm::Qemu, 1);
        // The one thread is busy.
        let busy = scene.slow(9);
        scene.until_begun(1);
        let message = match kind {
            TFSYNC => frame(Tfsync { fid: 0, datasync: 0 }, 1),
            TREMOVE => frame(Tremove { fid: 0 }, 1),
            TCLUNK => frame(Tclunk { fid: 0 }, 1),
            _ => frame(
                Tread {
                    fid: 0,
                    offset: 0,
                    count: 100_000,
                },
                1,
            ),
        };
        let capacity = if kind == TREAD { 100_011 } else { 4096 };
        let old = scene.transport.stage(&message, &[], capacity);
        let flush = scene.transport.stage(&frame(Tflush { oldtag: 1 }, 2), &[], 4096);
        scene.transport.ring.notify();
        let order = scene.order(2, &[(1, old), (2, flush), (9, busy)]);
        assert_eq!(order[1], (2, 7), "type {kind}");
        assert!(
            order[0] == (1, len) || order[0] == (1, 0),
            "type {kind}: {order:?}"
        );
        scene.script.open_gate();
        scene.order(1, &[(9, busy)]);
    }
}

#[test]
fn what_waits_is_tried_again_when_something_was_released() {
    let mut scene = scene(Vmm::Crosvm, 2);
    let waiting: Vec<u16> = (1..6).map(|tag| scene.lock(tag)).collect();
    scene.until_begun(5);
    scene.settle();
    assert!(
        waiting
            .iter()
            .all(|&token| scene.transport.try_reply(token).is_none())
    );
    scene.script.grant();
    // Noticed with the next request at the latest, long before the minute it asked to be left alone.
    scene.settle();
    for token in waiting {
        assert_eq!(scene.transport.wait(token).len(), 7);
    }
}

#[test]
fn small_requests_overtake_large_ones() {
    let mut scene = scene(Vmm::Qemu, 2);
    let read = Tread {
        fid: 0,
        offset: 0,
        count: 500_000,
    };
    let mut sent = Vec::new();
    for tag in 0..4 {
        sent.push((tag, scene.transport.stage(&frame(read, tag), &[], 500_011)));
    }
    sent.push((4, scene.transport.stage(&frame(Tclunk { fid: 0 }, 4), &[], 4096)));
    scene.transport.ring.notify();
    let order = scene.order(5, &sent);
    assert_eq!(order[0], (4, 7));
    let mut rest = order[1..].to_vec();
    rest.sort_unstable();
    assert_eq!(rest, (0..4).map(|tag| (tag, 500_011)).collect::<Vec<_>>());
}

#[test]
fn a_sliced_reply_is_whole() {
    let mut scene = scene(Vmm::Qemu, 2);
    let read = Tread {
        fid: 0,
        offset: 0,
        count: 400_001,
    };
    let token = scene.transport.send(&frame(read, 5), &[], 400_012);
    let reply = scene.transport.wait(token);
    assert_eq!(reply.len(), 400_012);
    assert!(
        reply[11..]
            .iter()
            .enumerate()
            .all(|(at, &byte)| byte == (at / 4096) as u8)
    );
}

#[test]
fn a_payload_is_seen_whole_and_at_its_place() {
    let mut scene = scene(Vmm::Qemu, 2);
    for len in [0usize, 1, 5, 1000, 1025, 4096, 5000, 300_000] {
        let payload = testkit::scenario::pattern(len, 4);
        let write = Twrite {
            fid: 0,
            offset: 0,
            count: len as u32,
            data: &[],
        };
        let token = scene.transport.send(&frame(write, 5), &payload, 4096);
        let reply = scene.transport.wait(token);
        assert_eq!(reply[5..7], [5, 0]);
        assert!(
            *scene.script.payload.lock().expect("no panic") == payload,
            "{len} bytes"
        );
    }
}

#[test]
fn slices_are_longer_while_nothing_small_comes() {
    let mut scene = scene(Vmm::Qemu, 2);
    let payload = testkit::scenario::pattern(300_000, 4);
    let slice = |scene: &mut Scene| {
        let write = Twrite {
            fid: 0,
            offset: 0,
            count: payload.len() as u32,
            data: &[],
        };
        let token = scene.transport.send(&frame(write, 5), &payload, 4096);
        scene.transport.wait(token);
        scene.script.slice.load(SeqCst)
    };
    for _ in 0..2 {
        let slices: Vec<usize> = (0..100).map(|_| slice(&mut scene)).collect();
        assert_eq!((slices[0], slices[62]), (128 << 10, 128 << 10));
        assert_eq!((slices[63], slices[99]), (512 << 10, 512 << 10));
        let small = scene.quick(7);
        scene.transport.wait(small);
    }
}

#[test]
fn stopping_waits_for_what_runs_and_answers_what_waits() {
    for vmm in Vmm::STOPPING {
        let mut scene = scene(vmm, 2);
        let mut sent = vec![(1, scene.slow(1)), (2, scene.slow(2))];
        scene.until_begun(2);
        for tag in 3..9 {
            sent.push((tag, scene.slow(tag)));
        }
        sent.push((9, scene.lock(9)));
        scene.settle();
        let script = Arc::clone(&scene.script);
        let opener = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            script.open_gate();
        });
        let base = scene.frontend.stop().expect("stop");
        assert!(scene.script.gate_is_open(), "{vmm:?}: it did not wait");
        opener.join().expect("no panic");
        assert_eq!(base, scene.transport.ring.available_index());
        assert_eq!(base, scene.transport.ring.used_index(), "{vmm:?}");
        for (tag, token) in sent {
            let reply = scene.transport.try_reply(token);
            assert_eq!(reply.map(|reply| reply.len()), Some(7), "{vmm:?}: request {tag}");
        }
        assert!(
            scene.script.last.load(SeqCst) > 0,
            "{vmm:?}: a lock that waits is asked once more"
        );
        let ring = &mut scene.transport.ring;
        scene.frontend.start_at(ring, base).expect("start");
        scene.settle();
    }
}

#[test]
fn a_pause_takes_nothing_new_and_loses_nothing() {
    for vmm in Vmm::ALL {
        let mut scene = scene(vmm, 2);
        let lock = scene.lock(1);
        scene.until_begun(1);
        scene.settle();
        scene.frontend.pause().expect("pause");
        scene.frontend.fence().expect("fence");
        let used = scene.transport.ring.used_index();
        let quick = scene.quick(2);
        scene.frontend.kick();
        scene.script.grant();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(scene.transport.ring.used_index(), used, "{vmm:?}");
        scene.frontend.resume().expect("resume");
        assert_eq!(scene.transport.wait(quick).len(), 7);
        scene.settle();
        assert_eq!(scene.transport.wait(lock).len(), 7);
    }
}

#[test]
fn a_front_end_that_leaves_takes_its_requests_with_it() {
    let script = Arc::new(Script::default());
    let theirs = Arc::clone(&script);
    let rig = Rig::with(move || theirs.session(), 2);
    let mut left = Vec::new();
    for _ in 0..3 {
        let options = MachineOptions::new(Vmm::Qemu);
        let (frontend, mut transport) = Machine::power_on(&rig.socket(), &options).expect("power on");
        let before = script.begun.load(SeqCst);
        for tag in 0..10 {
            transport.send(&frame(Tfsync { fid: 0, datasync: 0 }, tag), &[], 4096);
            transport.send(&frame(Tremove { fid: 0 }, 100 + tag), &[], 4096);
        }
        until("it blocks", || script.begun.load(SeqCst) >= before + 2);
        drop(frontend);
        left.push(transport);
    }
    // A new one is served while threads of the old ones still hang.
    let options = MachineOptions::new(Vmm::Qemu);
    let (_frontend, mut transport) = Machine::power_on(&rig.socket(), &options).expect("power on");
    let token = transport.send(&frame(Tclunk { fid: 0 }, 1), &[], 4096);
    assert_eq!(transport.wait(token).len(), 7);
    let used: Vec<u16> = left.iter().map(|transport| transport.ring.used_index()).collect();
    script.open_gate();
    script.grant();
    std::thread::sleep(Duration::from_millis(50));
    let after: Vec<u16> = left.iter().map(|transport| transport.ring.used_index()).collect();
    assert_eq!(used, after, "a ring was written after its front-end had left");
    assert_eq!(
        script.sessions.load(SeqCst),
        4,
        "each front-end has a session of its own"
    );
}

#[test]
fn a_reset_tells_the_session_and_drops_what_waits() {
    let mut scene = scene(Vmm::Qemu, 2);
    if !scene.frontend.has(testkit::vhost_user::protocol::RESET_DEVICE) {
        return;
    }
    scene.lock(1);
    scene.until_begun(1);
    scene.settle();
    scene.frontend.reset_device().expect("reset");
    assert_eq!(scene.script.resets.load(SeqCst), 1);
    scene.transport.restart();
    scene.frontend.start(&mut scene.transport.ring).expect("start");
    scene.script.grant();
    scene.settle();
    assert_eq!(scene.transport.in_flight(), 0);
}
