//! Starts what is measured, and brings its ring up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testkit::frontend::{Frontend, Vmm};
use testkit::memory::GuestMemory;
use testkit::qtest::{QtestDevice, QtestOptions};
use testkit::ring::{Ring, RingOptions};

use crate::bare::Bare;
use crate::engine::{self, Run};
use crate::work::{Act, Drive, Work};
use crate::work_9p;
use crate::work_fuse::{self, Mounted};

/// Guest memory of each device: enough for eight lanes of 512 KiB and all their headers.
const MEMORY: usize = 64 << 20;

/// Something that does the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The driver's own system calls.
    Bare,
    /// This backend's program, with further options.
    Ours(Vec<String>),
    /// QEMU's virtio-9p in its own process.
    Qemu,
    /// virtiofsd, at this path.
    Virtiofsd(PathBuf),
}

/// A peer that is ready to be driven.
#[derive(Debug)]
pub enum Station {
    /// The driver itself.
    Bare(Bare),
    /// A 9P device over vhost-user.
    Ours(Backend),
    /// QEMU under qtest.
    Qemu(Box<QtestDevice>, Ring),
    /// A FUSE device over vhost-user.
    Virtiofsd(Backend, Mounted),
}

/// A vhost-user backend's process and the connection to it.
#[derive(Debug)]
pub struct Backend {
    process: Process,
    _frontend: Frontend,
    memory: GuestMemory,
    ring: Ring,
    /// Milliseconds from the start of the process until its socket took a connection.
    pub ready_ms: f64,
}

#[derive(Debug)]
struct Process {
    child: Child,
    _sockets: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that dies with the benchmark.
fn bound(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn start_backend(mut command: Command, queue: u32, ring: RingOptions) -> Result<Backend, String> {
    let fail = |what: &str, error: io::Error| format!("{what}: {error}");
    let sockets = TempDir::new().map_err(|error| fail("a directory for the socket", error))?;
    let socket = sockets.path().join("socket");
    command
        .arg("--socket-path")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begin = Instant::now();
    let name = format!("{command:?}");
    let child = command.spawn().map_err(|error| fail(&name, error))?;
    let process = Process {
        child,
        _sockets: sockets,
    };
    let memory = GuestMemory::new(&[(0, MEMORY)]).map_err(|error| fail("guest memory", error))?;
    let mut frontend = loop {
        match Frontend::connect(&socket, Vmm::Qemu, &memory) {
            Ok(frontend) => break frontend,
            Err(error) if begin.elapsed() > Duration::from_secs(20) => return Err(fail(&name, error)),
            Err(_) => sleep(Duration::from_micros(200)),
        }
    };
    let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
    frontend.use_queue(queue);
    let mut ring = Ring::new(&memory, ring);
    frontend.start(&mut ring).map_err(|error| fail(&name, error))?;
    // Nobody listens to the interrupts of a driver that polls, and QEMU's device is not asked for them either.
    ring.set_interrupts(false);
    Ok(Backend {
        process,
        _frontend: frontend,
        memory,
        ring,
        ready_ms,
    })
}

impl Backend {
    /// Nanoseconds of processor time that all threads of the process have had.
    fn processor_ns(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.child.id()));
        let one = |task: io::Result<fs::DirEntry>| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        };
        tasks.map(|tasks| tasks.filter_map(one).sum()).unwrap_or(0)
    }

    /// Share of one processor, in percent, that the process takes while nobody asks, and while it is asked for the
    /// attributes of a file 100 times a second.
    pub fn rest(&mut self) -> Result<(f64, f64), String> {
        const SPAN: Duration = Duration::from_secs(2);
        let percent = |ns: u64, span: Duration| ns as f64 / span.as_nanos() as f64 * 100.0;
        sleep(Duration::from_millis(100));
        let before = self.processor_ns();
        sleep(SPAN);
        let idle = percent(self.processor_ns() - before, SPAN);
        let (begin, before) = (Instant::now(), self.processor_ns());
        while begin.elapsed() < SPAN {
            let mark = self.memory.mark();
            let lanes = work_9p::lanes(&mut self.ring, &self.memory, &[Act::Getattr])?;
            for exchange in lanes.into_iter().flat_map(|lane| lane.exchanges) {
                engine::once(&mut self.ring, exchange)?;
            }
            self.memory.reset(&mark);
            sleep(Duration::from_millis(10));
        }
        Ok((idle, percent(self.processor_ns() - before, begin.elapsed())))
    }

    /// Bytes of the process's resident memory that are its own (not the guest's).
    pub fn private_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

/// What the benchmark was told about the peers.
#[derive(Clone, Debug)]
pub struct Peers {
    /// This backend's program.
    pub ours: PathBuf,
    /// QEMU's program.
    pub qemu: Option<PathBuf>,
    /// The security model, in QEMU's spelling.
    pub model: String,
}

impl Station {
    /// Starts `peer` on `directory` and mounts.
    pub fn start(peer: &Peer, peers: &Peers, directory: &Path) -> Result<Station, String> {
        let ring = RingOptions {
            size: 128,
            indirect: 256,
            event_idx: true,
        };
        match peer {
            Peer::Bare => Ok(Station::Bare(
                Bare::new(directory).map_err(|error| error.to_string())?,
            )),
            Peer::Ours(options) => {
                let mut command = bound(&peers.ours);
                command
                    .arg("--shared-dir")
                    .arg(directory)
                    .args(["--security-model", &peers.model]);
                command.args(options);
                let mut backend = start_backend(command, 0, ring)?;
                work_9p::attach(&mut backend.ring, &backend.memory)?;
                Ok(Station::Ours(backend))
            }
            Peer::Qemu => {
                let qemu = peers.qemu.as_ref().ok_or("no QEMU: run scripts/setup")?;
                let mut options = QtestOptions::new(qemu, directory, &peers.model);
                options.memory = MEMORY;
                options.ring = ring;
                let (device, mut ring) =
                    QtestDevice::start(&options).map_err(|error| format!("QEMU: {error}"))?;
                ring.set_interrupts(false);
                let memory = device.memory().clone();
                work_9p::attach(&mut ring, &memory)?;
                Ok(Station::Qemu(Box::new(device), ring))
            }
            Peer::Virtiofsd(program) => {
                let mut command = bound(program);
                // Its fastest settings: no thread pool (a hop for each request), descriptors instead of file
                // handles, nothing between it and the kernel.
                command.arg("--shared-dir").arg(directory);
                command.args(["--cache=never", "--sandbox=none", "--seccomp=none"]);
                command.args(["--inode-file-handles=never", "--no-announce-submounts"]);
                let mut backend = start_backend(command, 1, ring)?;
                let mounted = work_fuse::mount(&mut backend.ring, &backend.memory)?;
                Ok(Station::Virtiofsd(backend, mounted))
            }
        }
    }

    /// Does the work for about `length`.
    pub fn run(&mut self, work: &Work, length: Duration) -> Result<Run, String> {
        let acts = work.lanes();
        let (ring, memory, lanes) = match self {
            Station::Bare(bare) => return bare.run(work, length),
            Station::Ours(backend) => {
                let mark = backend.memory.mark();
                let lanes = work_9p::lanes(&mut backend.ring, &backend.memory, &acts)?;
                (&mut backend.ring, (backend.memory.clone(), mark), lanes)
            }
            Station::Qemu(device, ring) => {
                let memory = device.memory().clone();
                let mark = memory.mark();
                let lanes = work_9p::lanes(ring, &memory, &acts)?;
                (ring, (memory, mark), lanes)
            }
            Station::Virtiofsd(backend, mounted) => {
                let mark = backend.memory.mark();
                let lanes = work_fuse::lanes(&mut backend.ring, &backend.memory, mounted, &acts)?;
                (&mut backend.ring, (backend.memory.clone(), mark), lanes)
            }
        };
        let mut lanes = lanes;
        let result = match work.drive {
            Drive::Throughput(_) => {
                engine::throughput(ring, &mut lanes, length / 8)?; // warm up
                engine::throughput(ring, &mut lanes, length)
            }
            Drive::Thinking(think) => engine::latency(ring, &mut lanes, think, length),
            Drive::Beside(..) => engine::latency(ring, &mut lanes, Duration::ZERO, length),
        };
        drop(lanes);
        memory.0.reset(&memory.1);
        result.map_err(|why| format!("{}: {why}", work.name))
    }
}
