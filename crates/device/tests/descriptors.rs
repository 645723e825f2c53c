//! Connections leave nothing behind, and an idle device does nothing. A program of its own, because it counts the process's
//! descriptors, threads and time.

mod common;
#[path = "common/script.rs"]
mod script;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{Rig, assert_alive, frame, until};
use nix::sys::eventfd::{EfdFlags, EventFd};
use script::Script;
use testkit::vhost_user::{Body, Code, Socket};
use testkit::{Frontend, GuestMemory, Machine, MachineOptions, Ring, RingOptions, Vmm};

/// One at a time, as they count what the process has.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}"))
        .expect("procfs")
        .count()
}

/// Mappings of this process that are files, guest memory among them.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    maps.lines().filter(|line| line.contains("memfd:")).count()
}

/// Descriptors, threads and mapped memory, once they no longer change: the device's side of a connection ends after ours.
fn settled() -> [usize; 3] {
    let mut last = [0; 3];
    until("descriptors and threads settle", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = [count("fd"), count("task"), mappings()];
        std::mem::replace(&mut last, now) == now
    });
    last
}

fn assert_nothing_left(before: [usize; 3], after: [usize; 3]) {
    assert!(
        after[0] <= before[0] + 2 && after[1] <= before[1] && after[2] <= before[2],
        "{before:?} descriptors, threads and mappings before, {after:?} after"
    );
}

#[test]
fn fifty_connections_leave_no_descriptor_and_no_thread_behind() {
    let _alone = alone();
    let rig = Rig::new();
    rig.put("file", b"content");
    let connect = |vmm| {
        let mut machine = rig.boot(vmm);
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, wire::P9_DOTL_RDWR).expect("open");
        machine.client.clone_fid(0, 2).expect("clone");
        machine.client.lopen(2, wire::P9_DOTL_RDONLY).expect("open");
        machine.client.readdir(2, 0, 4096).expect("readdir");
    };
    for vmm in Vmm::ALL {
        connect(vmm);
    }
    let before = settled();
    for round in 0..50 {
        connect(Vmm::ALL[round % Vmm::ALL.len()]);
    }
    assert_nothing_left(before, settled());
}

/// So many ways to leave; see [`leave_at`].
const STEPS: usize = 24;

/// Connects, goes `step` far, and leaves. Whether the back-end refuses something on the way does not matter here.
fn leave_at(rig: &Rig, step: usize, memory: &GuestMemory) {
    let socket = Socket::connect(&rig.socket()).expect("connect");
    let region = memory.regions()[0].clone();
    let (kick, call) = (
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd"),
        EventFd::new().expect("eventfd"),
    );
    let (kick, call) = (kick.as_fd(), call.as_fd());
    let table = Body::new().u32(1).u32(0).region(&region);
    let user = region.user_addr();
    let ring = Body::new()
        .u32(0)
        .u32(0)
        .u64(user)
        .u64(user + 0x2000)
        .u64(user + 0x1000)
        .u64(0);
    let features = (1 << 32) | (1 << 30) | 1;
    let raw = |code: Code, body: Body, fds: &[BorrowedFd<'_>]| {
        let _ = socket.send_raw(code as u32, 0, body.as_bytes(), fds);
    };
    let all: [&dyn Fn(); 12] = [
        &|| raw(Code::GetFeatures, Body::new(), &[]),
        &|| raw(Code::SetOwner, Body::new(), &[]),
        &|| raw(Code::SetFeatures, Body::new().u64(features), &[]),
        &|| raw(Code::SetMemTable, table.clone(), &[region.file().as_fd()]),
        &|| raw(Code::SetVringNum, Body::new().u32(0).u32(128), &[]),
        &|| raw(Code::SetVringAddr, ring.clone(), &[]),
        &|| raw(Code::SetVringBase, Body::new().u32(0).u32(0), &[]),
        &|| raw(Code::SetVringKick, Body::new().u64(0), &[kick]),
        &|| raw(Code::SetVringCall, Body::new().u64(0), &[call]),
        &|| raw(Code::SetVringErr, Body::new().u64(0), &[call]),
        &|| raw(Code::SetVringEnable, Body::new().u32(0).u32(1), &[]),
        // A kick is pending when the connection ends.
        &|| {
            let _ = nix::unistd::write(kick, &1u64.to_ne_bytes());
        },
    ];
    let many = vec![kick; 40];
    match step {
        0..=12 => all.iter().take(step).for_each(|message| message()),
        // In the middle of a header, and of a body.
        13 => drop((&mut socket.stream()).write(&[1, 0, 0, 0, 1])),
        14 => drop((&mut socket.stream()).write(&[5, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 1])),
        // Descriptors that no message takes, more than a message takes, and more than may be received.
        15 => raw(Code::GetFeatures, Body::new(), &[kick, call]),
        16 => raw(Code::SetOwner, Body::new(), &[kick; 8]),
        17 => raw(Code::SetVringKick, Body::new().u64(0), &[kick, call, kick]),
        18 => raw(Code::SetVringCall, Body::new().u64(0x100), &[call]),
        19 => raw(Code::SetMemTable, table.clone(), &many[..32]),
        20 => raw(Code::SetVringErr, Body::new().u64(0), &many),
        // A descriptor with the second half of a message.
        21 => {
            drop((&mut socket.stream()).write(&[14, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]));
            drop(socket.send_raw(0, 0, &[], &many[..8]));
        }
        // Replaced again and again: SET_LOG_FD, SET_BACKEND_REQ_FD, GPU_SET_SOCKET and the others' own.
        22 => (0..64).for_each(|code| drop(socket.send_raw(code, 0, &[0; 8], &[kick]))),
        _ => {
            all.iter().for_each(|message| message());
            for _ in 0..8 {
                all[3]();
                all[7]();
                all[8]();
                all[9]();
            }
        }
    }
}

#[test]
fn a_thousand_connections_of_every_kind_leave_nothing_behind_and_the_next_is_served() {
    let _alone = alone();
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    for step in 0..STEPS {
        leave_at(&rig, step, &memory);
    }
    assert_alive(&mut rig.boot(Vmm::Qemu), &rig.share());
    let before = settled();
    for round in 0..1000 {
        leave_at(&rig, round % STEPS, &memory);
        if round % 100 == 99 {
            assert_alive(&mut rig.boot(Vmm::Qemu), &rig.share());
        }
    }
    assert_nothing_left(before, settled());
    assert_alive(&mut rig.boot(Vmm::Qemu), &rig.share());
}

#[test]
fn a_front_end_that_leaves_while_its_queue_is_stopped_is_not_waited_for() {
    let _alone = alone();
    let script = Arc::new(Script::default());
    let theirs = Arc::clone(&script);
    let rig = Rig::with(move || theirs.session(), 2);
    let power_on = || Machine::power_on(&rig.socket(), &MachineOptions::new(Vmm::Qemu)).expect("power on");
    for round in 1..=3 {
        let (frontend, mut transport) = power_on();
        // It blocks on the host until the gate opens, which it does not.
        transport.send(&frame(wire::Tfsync { fid: 0, datasync: 0 }, 1), &[], 4096);
        until("it blocks", || {
            script.begun.load(std::sync::atomic::Ordering::SeqCst) == round
        });
        let body = Body::new().u32(0).u32(0);
        let sent = frontend
            .socket()
            .send_raw(Code::GetVringBase as u32, 0, body.as_bytes(), &[]);
        sent.expect("sent");
        std::thread::sleep(Duration::from_millis(20));
        drop(frontend);
        let (_frontend, mut transport) = power_on();
        let token = transport.send(&frame(wire::Tclunk { fid: 0 }, 1), &[], 4096);
        assert_eq!(transport.wait(token).len(), 7);
    }
    script.open_gate();
}

/// A session whose end hangs on the host until the gate opens.
struct HangsAtItsEnd(script::Session, Arc<Script>);

impl device::Handler for HangsAtItsEnd {
    fn handle(
        &self,
        r: &mut server::Request<'_>,
        s: &mut server::Scratch,
        how: server::How,
    ) -> server::Outcome {
        self.0.handle(r, s, how)
    }
    fn reset(&self) {
        while !self.1.gate_is_open() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    fn wake_count(&self) -> u64 {
        0
    }
}

impl Drop for HangsAtItsEnd {
    fn drop(&mut self) {
        device::Handler::reset(self);
    }
}

#[test]
fn a_session_that_hangs_while_it_ends_does_not_keep_the_next_one() {
    let _alone = alone();
    let script = Arc::new(Script::default());
    let theirs = Arc::clone(&script);
    let rig = Rig::with(move || HangsAtItsEnd(theirs.session(), Arc::clone(&theirs)), 2);
    for reset in [None, Some(Code::ResetDevice), Some(Code::SetOwner), None] {
        let options = MachineOptions::new(Vmm::Qemu);
        let (frontend, mut transport) = Machine::power_on(&rig.socket(), &options).expect("power on");
        let token = transport.send(&frame(wire::Tclunk { fid: 0 }, 1), &[], 4096);
        assert_eq!(transport.wait(token).len(), 7);
        if let Some(code) = reset {
            // It hangs there, too; the front-end leaves without an answer.
            frontend
                .socket()
                .send_raw(code as u32, 0, &[], &[])
                .expect("sent");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    script.open_gate();
}

/// Clock ticks that the threads named "queue" have been at work.
fn queue_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).ok();
    let ticks = |stat: String| {
        let (name, rest) = stat.split_once(") ")?;
        // utime and stime are the fields 14 and 15; `rest` begins with the third.
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        name.ends_with("(queue").then_some(number(11)? + number(12)?)
    };
    tasks.flatten().filter_map(stat).filter_map(ticks).sum()
}

#[test]
fn whatever_the_kick_is_an_idle_queue_costs_nothing() {
    let _alone = alone();
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    let (_reader, pipe) = std::io::pipe().expect("pipe");
    let (filled, mut filler) = std::io::pipe().expect("pipe");
    filler.write_all(&[0; 60_000]).expect("room");
    let (gone, socket) = std::os::unix::net::UnixStream::pair().expect("socketpair");
    drop(gone);
    let set = |flags| {
        let event = EventFd::from_flags(flags).expect("eventfd");
        event.write(u64::MAX - 1).expect("room");
        File::from(event.as_fd().try_clone_to_owned().expect("dup"))
    };
    let nested = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).expect("epoll");
    let kicks: [File; 6] = [
        set(EfdFlags::empty()),
        set(EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK),
        File::from(std::os::fd::OwnedFd::from(pipe)),
        File::from(std::os::fd::OwnedFd::from(filled)),
        File::from(std::os::fd::OwnedFd::from(socket)),
        File::from(nested.0),
    ];
    let mut ring = Ring::new(&memory, RingOptions::default());
    let mut frontend = Frontend::connect(&rig.socket(), Vmm::CloudHypervisor, &memory).expect("connect");
    frontend.start(&mut ring).expect("start");
    for kick in &kicks {
        // The one before is set when it is replaced, and is written to afterwards.
        frontend.kick();
        frontend.give_kick(kick.as_fd()).expect("kick");
        frontend.kick();
        frontend.fence().expect("it answers");
        std::thread::sleep(Duration::from_millis(20));
        let before = queue_ticks();
        std::thread::sleep(Duration::from_millis(300));
        let ticks = queue_ticks() - before;
        // A thread that spins has 30, or half of that on a busy machine.
        assert!(ticks <= 5, "{ticks} clock ticks in 300 ms with {kick:?}");
    }
}
