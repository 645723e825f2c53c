//! The control channel: any vhost-user messages in any order with any descriptors, and what is in the memory that they
//! hand over, sent to the served socket. Afterwards a front-end that behaves must be served, and nothing be left of the
//! other one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use ::device::{DeviceOptions, Listener, Stop};
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tempfile::TempDir;
use testkit::frontend::{EVENT_IDX, INDIRECT_DESC, MOUNT_TAG, PROTOCOL_FEATURES, VERSION_1};
use testkit::vhost_user::{Body, Code, Socket};
use testkit::{
    Client, Frontend, GuestMemory, Machine, MachineOptions, Pages, Random, Ring, RingOptions, RingTransport,
    Vmm,
};

use crate::changes::Changes;
use crate::handlers::Real;
use crate::script::{Reader, Script, parse};
use crate::watchdog;

/// A message: code, flags, how many descriptors, which ones, the body.
const MESSAGE: u8 = 0;
/// Bytes into a memory file: which, where, the bytes.
const WRITE: u8 = 1;
/// The kick descriptor is written to.
const KICK: u8 = 2;
/// Bytes into the socket, whatever they are.
const RAW: u8 = 3;
const KINDS: u8 = 4;

/// Bytes of the memory files, the largest first.
const FILES: [usize; 3] = [0x4_0000, 0x4_0000, 0x1000];
/// Where the front-end says that it has mapped them.
const USER: u64 = 0x7f00_0000_0000;

/// The descriptors to choose from; the first are what an honest front-end has.
const DESCRIPTORS: usize = 18;
const KICK_FD: usize = 3;
const CALL_FD: usize = 4;

/// How long threads and descriptors may take to go.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tries a script.
///
/// # Panics
/// When the next front-end is not served, or threads or descriptors are left.
pub fn run(data: &[u8]) {
    let _watched = watchdog::watch();
    let server = &*SERVER;
    let (_, records) = parse(data);
    let mut frontend = Hostile::connect(server);
    for (kind, body) in records.take(200) {
        frontend.step(kind % KINDS, body);
    }
    drop(frontend);
    server.serves();
    server.is_idle();
}

/// The device, served in this process.
struct Server {
    base: TempDir,
    /// Threads and descriptors of this process while no front-end is there.
    idle: Mutex<Option<(usize, usize)>>,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let base = tempfile::tempdir().expect("a temporary directory");
    let listener = Listener::new(base.path().join("socket"), true).expect("bind");
    let options = DeviceOptions {
        io_threads: 1,
        max_io_threads: 2,
        ..DeviceOptions::default()
    };
    std::thread::spawn(move || {
        let stop = Stop::new().expect("a stop");
        ::device::serve(listener, || Real::new(None), &options, &Arc::new(stop)).expect("it serves");
        // The script that is being tried is the one that did it.
        eprintln!("Nobody is served any more.");
        std::process::abort();
    });
    let server = Server {
        base,
        idle: Mutex::default(),
    };
    server.serves();
    // What is only made once is there now.
    std::thread::sleep(Duration::from_millis(100));
    *server.idle.lock().expect("no panic") = Some(usage());
    server
});

/// Threads and descriptors of this process.
fn usage() -> (usize, usize) {
    let count = |dir| std::fs::read_dir(dir).expect("procfs").count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

/// What this process has open.
fn links() -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("procfs");
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect()
}

impl Server {
    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.base.path().join("socket")).expect("connect")
    }

    /// A front-end that behaves gets what it asks for.
    fn serves(&self) {
        let options = MachineOptions {
            memory: vec![(0, 1 << 20)],
            payload: 4096,
            msize: 8192,
            ring: RingOptions {
                size: 16,
                indirect: 16,
                event_idx: true,
            },
            ..MachineOptions::new(Vmm::Qemu)
        };
        let mut machine = Machine::boot(&self.base.path().join("socket"), &options).expect("a machine boots");
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        assert_eq!(machine.client.stat(1).expect("getattr").size, 4);
        machine.frontend.stop().expect("stop");
    }

    /// No thread and no descriptor of a front-end that has gone is left.
    fn is_idle(&self) {
        let idle = self
            .idle
            .lock()
            .expect("no panic")
            .expect("measured at the start");
        let end = Instant::now() + PATIENCE;
        loop {
            let now = usage();
            if now == idle {
                return;
            }
            assert!(
                Instant::now() < end,
                "threads and descriptors: {now:?}, at the start {idle:?}; {:?}",
                links()
            );
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// A front-end that sends what a script says.
struct Hostile {
    socket: Socket,
    files: Vec<File>,
    kick: EventFd,
    others: Vec<OwnedFd>,
}

fn memfd(len: usize) -> File {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("memfd");
    let file = File::from(fd);
    file.set_len(len as u64).expect("ftruncate");
    file
}

fn event(value: u64, flags: EfdFlags) -> EventFd {
    let event = EventFd::from_flags(flags | EfdFlags::EFD_CLOEXEC).expect("eventfd");
    if value > 0 {
        event.write(value).expect("write");
    }
    event
}

/// A pipe's ends, the writing one of a pipe that is full.
fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("pipe");
    while nix::unistd::write(&writer, &[0; 4096]).is_ok() {}
    // Whoever writes to it now waits.
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty())).expect("fcntl");
    (reader, writer)
}

fn open(path: &std::path::Path, flags: OFlag) -> OwnedFd {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty()).expect("open")
}

impl Hostile {
    fn connect(server: &Server) -> Hostile {
        let path = server.base.path();
        let stream = server.connect();
        stream.set_nonblocking(true).expect("fcntl");
        let (reader, writer) = pipe();
        let (one, other) = UnixStream::pair().expect("socketpair");
        let regular = path.join("regular");
        std::fs::write(&regular, [0; 100]).expect("write");
        let nonblocking = EfdFlags::EFD_NONBLOCK;
        let others: Vec<OwnedFd> = vec![
            event(0, nonblocking).into(),
            // One that a writer waits for, one that it does not; one that is set, one that a reader waits for.
            event(u64::MAX - 1, EfdFlags::empty()).into(),
            event(u64::MAX - 1, nonblocking).into(),
            event(1, EfdFlags::empty()).into(),
            event(0, EfdFlags::empty()).into(),
            event(3, nonblocking | EfdFlags::EFD_SEMAPHORE).into(),
            reader,
            writer,
            one.into(),
            other.into(),
            open(&regular, OFlag::O_RDWR),
            open(&regular, OFlag::O_PATH),
            open(path, OFlag::O_RDONLY),
            open(std::path::Path::new("/dev/null"), OFlag::O_RDWR),
        ];
        let hostile = Hostile {
            socket: Socket::new(stream).expect("a socket"),
            files: FILES.into_iter().map(memfd).collect(),
            kick: event(0, nonblocking),
            others,
        };
        assert_eq!(hostile.files.len() + 1 + hostile.others.len(), DESCRIPTORS);
        hostile
    }

    fn descriptor(&self, which: usize) -> BorrowedFd<'_> {
        let which = which % DESCRIPTORS;
        match which {
            KICK_FD => self.kick.as_fd(),
            _ if which < KICK_FD => self.files[which].as_fd(),
            _ => self.others[which - KICK_FD - 1].as_fd(),
        }
    }

    /// The device may have gone, or be too busy to read: then nothing is sent.
    fn step(&mut self, kind: u8, body: &[u8]) {
        let mut body = Reader(body);
        match kind {
            MESSAGE => {
                let (code, flags, count) = (body.u8(), body.u8(), body.u8());
                let descriptors: Vec<usize> = (0..count % 34).map(|_| body.u8().into()).collect();
                let descriptors: Vec<_> = descriptors
                    .into_iter()
                    .map(|which| self.descriptor(which))
                    .collect();
                let _ = self
                    .socket
                    .send_raw(code.into(), flags.into(), body.rest(), &descriptors);
            }
            WRITE => {
                let file = usize::from(body.u8()) % FILES.len();
                let at = body.u64();
                let bytes = body.rest();
                if at
                    .checked_add(bytes.len() as u64)
                    .is_some_and(|end| end <= FILES[file] as u64)
                {
                    self.files[file].write_all_at(bytes, at).expect("pwrite");
                }
            }
            KICK => {
                let _ = self.kick.write(1);
                // Let it begin.
                std::thread::sleep(Duration::from_micros(50));
            }
            _ => drop(self.socket.stream().write(body.rest())),
        }
        self.read();
    }

    /// Takes what was answered so far, so that the device never waits for room.
    fn read(&self) {
        let mut bytes = [0; 4096];
        while matches!(self.socket.stream().read(&mut bytes), Ok(1..)) {}
    }
}

/// The script of `work` by our client under `vmm`: the messages of its front-end, and what it writes into guest memory.
///
/// # Panics
/// When the work fails.
pub fn record(vmm: Vmm, options: RingOptions, work: impl FnOnce(&mut Client<RingTransport>)) -> Script {
    let recording = Arc::new(Mutex::new(Script::default()));
    let memory = GuestMemory::new(&[(0, FILES[0])]).expect("memory");
    let mapped = memory.regions()[0].user_addr();
    let mut socket = Socket::new(SERVER.connect()).expect("a socket");
    let messages = Arc::clone(&recording);
    socket.set_tap(Box::new(move |code, flags, body, fds| {
        let mut record = vec![code as u8, flags as u8, fds.len() as u8];
        record.extend(fds.iter().map(|fd| kind_of(code, *fd)));
        record.extend(body.chunks(8).flat_map(|word| unmapped(word, mapped)));
        messages.lock().expect("no panic").records.push((MESSAGE, record));
    }));
    let mut frontend = Frontend::new(socket, vmm, &memory).expect("a front-end");
    let mut ring = Ring::new(&memory, options);
    frontend.start(&mut ring).expect("start");
    let mut changes = Changes::of(&memory, vec![0; FILES[0]]);
    let steps = Arc::clone(&recording);
    let guest = memory.clone();
    let changes = Mutex::new(move || {
        let mut steps = steps.lock().expect("no panic");
        for (at, bytes) in changes.take(&guest) {
            let record = [&[0][..], &at.to_le_bytes(), &bytes].concat();
            steps.records.push((WRITE, record));
        }
        steps.records.push((KICK, Vec::new()));
    });
    let kick = frontend.kick_handle();
    ring.set_kick(Box::new(move || {
        (changes.lock().expect("no panic"))();
        let _ = kick.write(1);
    }));
    let transport = RingTransport::new(&memory, ring, 4096, Pages::Scattered);
    let mut client = Client::mount(transport, 8192).expect("mount");
    work(&mut client);
    frontend.stop().expect("stop");
    recording.lock().expect("no panic").clone()
}

/// Which of the script's descriptors plays this one.
fn kind_of(code: u32, fd: BorrowedFd<'_>) -> u8 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("procfs");
    match link.to_string_lossy().starts_with("/memfd:") {
        true => 0,
        false if code == Code::SetVringKick as u32 => KICK_FD as u8,
        false => CALL_FD as u8,
    }
}

/// An address as it is in all scripts, wherever this process has its memory.
fn unmapped(word: &[u8], mapped: u64) -> Vec<u8> {
    let number = word.try_into().ok().map(u64::from_ne_bytes);
    let offset = number.and_then(|number| number.checked_sub(mapped));
    match offset.filter(|offset| *offset < FILES[0] as u64) {
        Some(offset) => (USER + offset).to_ne_bytes().to_vec(),
        None => word.to_vec(),
    }
}

/// Changes `data` into another script.
pub fn mutate(data: &mut Vec<u8>, random: &mut Random) {
    let mut script = Script::decode(data);
    script.mutate(random, |random| vec![fresh(random)]);
    *data = script.encode();
}

const CODES: [Code; 22] = [
    Code::GetFeatures,
    Code::SetFeatures,
    Code::SetOwner,
    Code::SetMemTable,
    Code::SetVringNum,
    Code::SetVringAddr,
    Code::SetVringBase,
    Code::GetVringBase,
    Code::SetVringKick,
    Code::SetVringCall,
    Code::SetVringErr,
    Code::GetProtocolFeatures,
    Code::SetProtocolFeatures,
    Code::GetQueueNum,
    Code::SetVringEnable,
    Code::SetBackendReqFd,
    Code::GetConfig,
    Code::SetConfig,
    Code::ResetDevice,
    Code::GetMaxMemSlots,
    Code::AddMemReg,
    Code::RemMemReg,
];

/// An index, a size, a count: mostly a small one.
fn number(random: &mut Random) -> u32 {
    match random.below(8) {
        0 => random.next() as u32,
        1 => u32::MAX,
        _ => [0, 0, 0, 1, 2, 16, 256, 32768][random.below(8)],
    }
}

fn user(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.next(),
        _ => USER + 4 * random.below(0x1_0000) as u64,
    }
}

fn region(body: Body, random: &mut Random) -> Body {
    let page = |random: &mut Random| 0x1000 * random.below(0x40) as u64;
    match random.below(4) {
        0 => body
            .u64(page(random))
            .u64(page(random))
            .u64(USER + page(random))
            .u64(page(random)),
        1 => body
            .u64(random.next())
            .u64(random.next())
            .u64(user(random))
            .u64(random.next()),
        _ => body.u64(0).u64(FILES[0] as u64).u64(USER).u64(0),
    }
}

fn fresh(random: &mut Random) -> (u8, Vec<u8>) {
    let kind = match random.below(10) {
        0 => return (KICK, Vec::new()),
        1 => WRITE,
        2 if random.below(4) == 0 => RAW,
        _ => MESSAGE,
    };
    if kind == WRITE {
        let mut body = vec![random.below(FILES.len()) as u8];
        body.extend((2 * random.below(FILES[0] / 2) as u64).to_le_bytes());
        body.extend((0..1 + random.below(16)).map(|_| random.next() as u8));
        return (WRITE, body);
    }
    if kind == RAW {
        return (RAW, (0..random.below(40)).map(|_| random.next() as u8).collect());
    }
    let code = CODES[random.below(CODES.len())];
    let body = match code {
        Code::SetFeatures => {
            let known = MOUNT_TAG | VERSION_1 | PROTOCOL_FEATURES | INDIRECT_DESC | EVENT_IDX;
            Body::new().u64(if random.below(4) == 0 {
                random.next()
            } else {
                known & !(random.next() & EVENT_IDX)
            })
        }
        Code::SetProtocolFeatures => Body::new().u64(random.next() & 0xf_ffff),
        Code::SetMemTable => {
            let count = random.below(4);
            let mut body = Body::new().u32(count as u32).u32(0);
            for _ in 0..count {
                body = region(body, random);
            }
            body
        }
        Code::AddMemReg | Code::RemMemReg => region(Body::new().u64(0), random),
        Code::SetVringAddr => {
            let body = Body::new().u32(number(random)).u32(0);
            body.u64(user(random)).u64(user(random)).u64(user(random)).u64(0)
        }
        Code::SetVringNum | Code::SetVringBase | Code::GetVringBase | Code::SetVringEnable => {
            Body::new().u32(number(random)).u32(number(random))
        }
        Code::SetVringKick | Code::SetVringCall | Code::SetVringErr => {
            Body::new().u64([0, 0, 0, 0x100, 1, random.next()][random.below(6)])
        }
        Code::GetConfig | Code::SetConfig => {
            let len = random.below(300);
            Body::new()
                .u32(number(random))
                .u32(len as u32)
                .u32(0)
                .bytes(&vec![0; len])
        }
        _ => Body::new(),
    };
    let flags = [0, 0, 8, 8, random.next() as u8][random.below(5)];
    let descriptors: Vec<u8> = match code {
        _ if random.below(8) == 0 => (0..random.below(10)).map(|_| random.next() as u8).collect(),
        Code::SetMemTable => vec![0, 1, 2][..random.below(4)].to_vec(),
        Code::AddMemReg => vec![random.below(3) as u8],
        Code::SetVringKick | Code::SetVringCall | Code::SetVringErr | Code::SetBackendReqFd => {
            vec![random.below(DESCRIPTORS) as u8]
        }
        _ => Vec::new(),
    };
    let mut record = vec![code as u8, flags, descriptors.len() as u8];
    record.extend(descriptors);
    record.extend(body.as_bytes());
    (MESSAGE, record)
}
