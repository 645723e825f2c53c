//! A device in this process, on a socket and a share of its own.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use device::{DeviceOptions, Handler, Listener, Stop};
use tempfile::TempDir;
use testkit::{Descriptor, Machine, MachineOptions, Vmm};

/// The tag every device here has.
pub const TAG: &[u8] = b"test-share";

/// Ends with the value: serving stops, the directories are removed.
pub struct Rig {
    base: TempDir,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

/// So many threads, whatever hangs.
fn threads(io_threads: usize) -> DeviceOptions {
    DeviceOptions {
        io_threads,
        max_io_threads: io_threads,
        ..DeviceOptions::default()
    }
}

fn base() -> TempDir {
    let base = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(base.path().join("share")).expect("mkdir");
    base
}

impl Rig {
    /// Serves a fresh directory.
    pub fn new() -> Rig {
        let base = base();
        let options = host::ShareOptions::new(base.path().join("share"), host::SecurityModel::Squash);
        let share = Arc::new(host::Share::open(&options).expect("the share opens"));
        let session = move || server::Session::new(Arc::clone(&share), server::Limits::default());
        Rig::start(base, session, threads(2))
    }

    /// Serves what `new_handler` makes, with this many threads for what blocks, and no more.
    pub fn with<H: Handler + 'static>(
        new_handler: impl Fn() -> H + Send + 'static,
        io_threads: usize,
    ) -> Rig {
        Rig::start(base(), new_handler, threads(io_threads))
    }

    /// Serves what `new_handler` makes, with limits of the test's own.
    pub fn with_limits<H: Handler + 'static>(
        new_handler: impl Fn() -> H + Send + 'static,
        limits: DeviceOptions,
    ) -> Rig {
        Rig::start(base(), new_handler, limits)
    }

    fn start<H: Handler + 'static>(
        base: TempDir,
        new_handler: impl Fn() -> H + Send + 'static,
        limits: DeviceOptions,
    ) -> Rig {
        let listener = Listener::new(base.path().join("socket"), true).expect("bind");
        let stop = Arc::new(Stop::new().expect("a stop"));
        let theirs = Arc::clone(&stop);
        let options = DeviceOptions {
            tag: TAG.to_vec(),
            poll_max: Duration::from_micros(50),
            ..limits
        };
        let thread = std::thread::spawn(move || device::serve(listener, new_handler, &options, &theirs));
        Rig {
            base,
            stop,
            thread: Some(thread),
        }
    }

    /// The shared directory.
    pub fn share(&self) -> PathBuf {
        self.base.path().join("share")
    }

    /// A directory beside the share, which no guest may reach.
    pub fn outside(&self) -> PathBuf {
        let outside = self.base.path().join("outside");
        if !outside.exists() {
            std::fs::create_dir(&outside).expect("mkdir");
            std::fs::write(outside.join("file"), "secret").expect("write");
        }
        outside
    }

    /// The device's socket.
    pub fn socket(&self) -> PathBuf {
        self.base.path().join("socket")
    }

    /// A machine with the share mounted.
    pub fn boot(&self, vmm: Vmm) -> Machine {
        self.boot_with(&MachineOptions::new(vmm))
    }

    /// As [`Rig::boot`].
    pub fn boot_with(&self, options: &MachineOptions) -> Machine {
        Machine::boot(&self.socket(), options).expect("the machine boots")
    }

    /// Writes a file into the share.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.share().join(name), bytes).expect("write");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.request();
        // A second panic would hide the first, and a device that hangs would keep the test from failing.
        if !std::thread::panicking() {
            let result = self.thread.take().map(JoinHandle::join);
            assert!(
                matches!(result, Some(Ok(Ok(())))),
                "serving ended with {result:?}"
            );
        }
    }
}

/// The device still answers: a walk, an attribute, a read.
pub fn assert_alive(machine: &mut Machine, share: &Path) {
    std::fs::write(share.join("alive"), "still here").expect("write");
    let client = &mut machine.client;
    client.walk_all(0, 9000, &["alive"]).expect("walk");
    assert_eq!(client.stat(9000).expect("getattr").size, 10);
    client.lopen(9000, wire::P9_DOTL_RDONLY).expect("open");
    assert_eq!(client.read(9000, 0, 100).expect("read"), b"still here");
    client.clunk(9000).expect("clunk");
}

/// A message's bytes.
pub fn frame<'a>(message: impl Into<wire::Tmessage<'a>>, tag: u16) -> Vec<u8> {
    let mut bytes = vec![0; 66_000];
    let len = message.into().encode(tag, &mut bytes).expect("it fits");
    bytes.truncate(len);
    bytes
}

/// A Tread of fid 1 from its beginning.
pub fn read_of(count: u32, tag: u16) -> Vec<u8> {
    let (fid, offset) = (1, 0);
    frame(wire::Tread { fid, offset, count }, tag)
}

/// The errno of an Rlerror, its tag checked.
pub fn errno(reply: &[u8], tag: u16) -> i32 {
    match wire::Rmessage::decode(reply) {
        Ok((got, wire::Rmessage::Lerror(error))) if got == tag => error.ecode as i32,
        other => panic!("not an Rlerror with tag {tag}: {other:?}"),
    }
}

/// Descriptors this process has open.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// Waits until `done`, polling; panics after a time that no machine needs.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + testkit::vhost_user::PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The machine's memory.
pub fn memory(machine: &Machine) -> testkit::GuestMemory {
    machine.frontend.memory().clone()
}

/// Puts these descriptors, linked as their `next` (an index into `chain`) says, into the ring; gives the used length.
pub fn submit(machine: &mut Machine, chain: &[Descriptor]) -> u32 {
    let ring = machine.ring();
    let head = ring.take_head().expect("room");
    let mut at = vec![head];
    for _ in 1..chain.len() {
        at.push(ring.take_descriptor().expect("room"));
    }
    for (index, descriptor) in chain.iter().enumerate() {
        // An index beyond the chain is meant as it is.
        let next = at.get(usize::from(descriptor.next)).copied();
        let next = next.unwrap_or(descriptor.next);
        ring.write_descriptor(at[index], Descriptor { next, ..*descriptor });
    }
    ring.push_available(head);
    ring.notify();
    let (token, len) = ring
        .wait_used(testkit::vhost_user::PATIENCE)
        .expect("the chain is completed");
    assert_eq!(token, head);
    for &index in &at[1..] {
        ring.give_back(index);
    }
    len
}

/// A descriptor.
pub fn link(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr,
        len,
        flags,
        next,
    }
}
