//! QEMU's own virtio-9p as a device at the ring: QEMU runs under qtest, so no guest CPU exists, its RAM is a file
//! that is mapped here too, and this process plays the driver. It is the oracle for answers and on-disk results,
//! and the baseline of the benchmark.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::memory::GuestMemory;
use crate::ring::{Ring, RingOptions};

/// Where microvm puts its virtio-mmio transports, and how many there can be.
const MMIO: u64 = 0xfeb0_0000;
const MMIO_STEP: u64 = 0x200;
const MMIO_SLOTS: u64 = 24;

/// The virtio-mmio registers that are used (virtio 1.2, section 4.2.2).
mod reg {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    pub const CONFIG: u64 = 0x100;
}

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
const ID_9P: u32 = 9;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
/// `VIRTIO_9P_MOUNT_TAG`
const F_MOUNT_TAG: u64 = 1;
const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

/// The first MiB holds firmware and option ROMs; a ring there would not be RAM.
const LOW: u64 = 1 << 20;

/// QEMU may take this long to start on a loaded machine before the start counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The QEMU to use: `VHOST_USER_9P_QEMU`, or what `scripts/setup` left in its cache directory; `None` when neither
/// is there.
pub fn find_qemu() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("VHOST_USER_9P_QEMU") {
        return Some(PathBuf::from(path));
    }
    let cache = std::env::var_os("VHOST_USER_9P_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache/vhost-user-9p")))?;
    let path = cache.join("bin/qemu-system-x86_64");
    path.exists().then_some(path)
}

/// What to start.
#[derive(Clone, Debug)]
pub struct QtestOptions {
    /// QEMU's program; see [`find_qemu`].
    pub qemu: PathBuf,
    /// The directory to share.
    pub directory: PathBuf,
    /// `security_model=`
    pub model: String,
    /// Further `-fsdev` options, as `readonly=on`.
    pub fsdev: Vec<String>,
    /// Bytes of RAM, a multiple of 1 MiB; the first MiB is not usable.
    pub memory: usize,
    /// The ring. Its size must be at most QEMU's 128.
    pub ring: RingOptions,
}

impl QtestOptions {
    /// `directory` in `model`, with 64 MiB of RAM and the ring that Linux would use.
    pub fn new(qemu: impl Into<PathBuf>, directory: impl Into<PathBuf>, model: &str) -> QtestOptions {
        QtestOptions {
            qemu: qemu.into(),
            directory: directory.into(),
            model: model.to_owned(),
            fsdev: Vec::new(),
            memory: 64 << 20,
            ring: RingOptions {
                size: 128,
                indirect: 128,
                event_idx: true,
            },
        }
    }
}

/// qtest's text protocol: one command, one answer.
struct Wire {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    line: String,
}

impl Wire {
    fn command(&mut self, text: fmt::Arguments<'_>) -> io::Result<&str> {
        self.line.clear();
        // One write per command: a command split over packets costs QEMU another turn of its main loop.
        fmt::Write::write_fmt(&mut self.line, text).map_err(io::Error::other)?;
        self.line.push('\n');
        self.stream.write_all(self.line.as_bytes())?;
        loop {
            self.line.clear();
            if self.lines.read_line(&mut self.line)? == 0 {
                return Err(io::Error::other("QEMU closed the qtest connection"));
            }
            // Interrupt reports may come between; nobody asked for them.
            if !self.line.starts_with("IRQ ") {
                break;
            }
        }
        let answer = self.line.trim_end();
        answer
            .strip_prefix("OK")
            .map(str::trim_start)
            .ok_or_else(|| io::Error::other(format!("qtest answered {answer:?}")))
    }

    fn read32(&mut self, address: u64) -> io::Result<u32> {
        let text = self.command(format_args!("readl {address:#x}"))?;
        let digits = text.trim_start_matches("0x");
        let value = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
        u32::try_from(value).map_err(io::Error::other)
    }

    fn write32(&mut self, address: u64, value: u32) -> io::Result<()> {
        self.command(format_args!("writel {address:#x} {value:#x}"))?;
        Ok(())
    }
}

/// A running QEMU with one virtio-9p device, initialised as Linux's driver does it. QEMU ends with this value, or
/// with the thread that started it.
pub struct QtestDevice {
    child: Child,
    wire: Arc<Mutex<Wire>>,
    base: u64,
    memory: GuestMemory,
    features: u64,
}

impl fmt::Debug for QtestDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QtestDevice")
            .field("pid", &self.child.id())
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl QtestDevice {
    /// Starts QEMU (it inherits this process's umask and capabilities), brings the device up, and gives its
    /// request queue, whose kick rings the device.
    pub fn start(options: &QtestOptions) -> io::Result<(QtestDevice, Ring)> {
        let memory = memory(options.memory)?;
        let sockets = tempfile::tempdir()?;
        let path = sockets.path().join("qtest");
        let listener = UnixListener::bind(&path)?;
        let mut child = Command::new(&options.qemu)
            .args(arguments(options, &memory, &path))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let wire = match accept(&listener, &mut child) {
            Ok(wire) => Arc::new(Mutex::new(wire)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let mut ring = Ring::new(&memory, options.ring);
        let mut device = QtestDevice {
            child,
            wire,
            base: 0,
            memory,
            features: 0,
        };
        device.base = device.find()?;
        device.bring_up(&ring)?;
        let (wire, base) = (Arc::clone(&device.wire), device.base);
        ring.set_kick(Box::new(move || {
            let mut wire = wire.lock().expect("no panic under this lock");
            // A dead QEMU shows as a completion that never comes; the driver's wait says so.
            let _ = wire.write32(base + reg::QUEUE_NOTIFY, 0);
        }));
        Ok((device, ring))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Wire) -> io::Result<T>) -> io::Result<T> {
        work(&mut self.wire.lock().expect("no panic under this lock"))
    }

    fn find(&self) -> io::Result<u64> {
        self.with(|wire| {
            for slot in 0..MMIO_SLOTS {
                let base = MMIO + slot * MMIO_STEP;
                if wire.read32(base + reg::MAGIC)? == MAGIC && wire.read32(base + reg::DEVICE_ID)? == ID_9P {
                    return match wire.read32(base + reg::VERSION)? {
                        2 => Ok(base),
                        other => Err(io::Error::other(format!("virtio-mmio version {other}"))),
                    };
                }
            }
            Err(io::Error::other("QEMU shows no 9p device"))
        })
    }

    /// virtio 1.2, section 3.1.1.
    fn bring_up(&mut self, ring: &Ring) -> io::Result<()> {
        let options = ring.options();
        let mut wanted = F_VERSION_1 | F_MOUNT_TAG;
        if options.indirect > 0 {
            wanted |= F_INDIRECT_DESC;
        }
        if options.event_idx {
            wanted |= F_EVENT_IDX;
        }
        let base = self.base;
        let parts: Vec<u64> = ring.parts().iter().map(|area| area.gpa()).collect();
        let mut wire = self.wire.lock().expect("no panic under this lock");
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            wire.write32(base + reg::STATUS, status)?;
        }
        let mut offered = 0;
        for half in 0..2 {
            wire.write32(base + reg::DEVICE_FEATURES_SEL, half)?;
            offered |= u64::from(wire.read32(base + reg::DEVICE_FEATURES)?) << (32 * half);
        }
        if offered & wanted != wanted {
            return Err(io::Error::other(format!(
                "QEMU offers {offered:#x}, not {wanted:#x}"
            )));
        }
        for half in 0..2 {
            wire.write32(base + reg::DRIVER_FEATURES_SEL, half)?;
            wire.write32(base + reg::DRIVER_FEATURES, (wanted >> (32 * half)) as u32)?;
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        wire.write32(base + reg::STATUS, status)?;
        if wire.read32(base + reg::STATUS)? & FEATURES_OK == 0 {
            return Err(io::Error::other("QEMU refused the features"));
        }
        wire.write32(base + reg::QUEUE_SEL, 0)?;
        let most = wire.read32(base + reg::QUEUE_NUM_MAX)?;
        if u32::from(options.size) > most {
            return Err(io::Error::other(format!("QEMU's ring has {most} entries")));
        }
        wire.write32(base + reg::QUEUE_NUM, u32::from(options.size))?;
        for (at, gpa) in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE]
            .into_iter()
            .zip(parts)
        {
            wire.write32(base + at, gpa as u32)?;
            wire.write32(base + at + 4, (gpa >> 32) as u32)?;
        }
        wire.write32(base + reg::QUEUE_READY, 1)?;
        wire.write32(base + reg::STATUS, status | DRIVER_OK)?;
        drop(wire);
        self.features = wanted;
        Ok(())
    }

    /// The negotiated feature bits.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// QEMU's RAM from 1 MiB on.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The mount tag in the device's configuration space.
    pub fn tag(&self) -> io::Result<Vec<u8>> {
        let base = self.base + reg::CONFIG;
        self.with(|wire| {
            // Byte by byte: the space is little endian and of any length.
            let mut byte = |at: u64| -> io::Result<u8> {
                let text = wire.command(format_args!("readb {:#x}", base + at))?;
                let value =
                    u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(io::Error::other)?;
                u8::try_from(value).map_err(io::Error::other)
            };
            let len = u16::from_le_bytes([byte(0)?, byte(1)?]);
            (0..u64::from(len)).map(|at| byte(2 + at)).collect()
        })
    }

    /// Whether QEMU has declared the device broken (it does so on malformed requests).
    pub fn broken(&self) -> io::Result<bool> {
        let at = self.base + reg::STATUS;
        self.with(|wire| Ok(wire.read32(at)? & NEEDS_RESET != 0))
    }

    /// Resets the device and brings it up again with its ring emptied.
    pub fn restart(&mut self, ring: &mut Ring) -> io::Result<()> {
        let at = self.base + reg::STATUS;
        self.with(|wire| wire.write32(at, 0))?;
        ring.restart();
        self.bring_up(ring)
    }
}

impl Drop for QtestDevice {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of QEMU's RAM in one memfd, of which the part above the firmware is given to the allocator.
fn memory(bytes: usize) -> io::Result<GuestMemory> {
    let low = usize::try_from(LOW).map_err(io::Error::other)?;
    let usable = bytes
        .checked_sub(low)
        .filter(|&rest| rest > 0 && bytes.is_multiple_of(low))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let whole = GuestMemory::new(&[(0, bytes)])?;
    let file = whole.regions()[0].file().try_clone()?;
    GuestMemory::from_file(file, LOW, LOW, usable)
}

fn arguments(options: &QtestOptions, memory: &GuestMemory, socket: &Path) -> Vec<OsString> {
    let mib = options.memory >> 20;
    let fd = memory.regions()[0].file().as_raw_fd();
    let me = std::process::id();
    let mut fsdev = OsString::from(format!("local,id=f,security_model={},path=", options.model));
    // QemuOpts: a comma in a value is written twice.
    fsdev.push(options.directory.to_string_lossy().replace(',', ",,"));
    if !options
        .fsdev
        .iter()
        .any(|option| option.starts_with("multidevs="))
    {
        fsdev.push(",multidevs=remap");
    }
    for option in &options.fsdev {
        fsdev.push(format!(",{option}"));
    }
    let mut qtest = OsString::from("unix:");
    qtest.push(socket);
    let file = format!("memory-backend-file,id=mem,size={mib}M,mem-path=/proc/{me}/fd/{fd},share=on");
    let fixed = [
        ["-machine", "microvm,memory-backend=mem,acpi=off"],
        ["-accel", "qtest"],
        ["-m", &format!("{mib}M")],
        ["-object", &file],
        ["-global", "virtio-mmio.force-legacy=false"],
        // The default logs every command.
        ["-qtest-log", "none"],
        ["-display", "none"],
        // Nobody else would end it when this process is killed (it ends with the thread that started it).
        ["-run-with", "exit-with-parent=on"],
        ["-device", "virtio-9p-device,fsdev=f,mount_tag=share"],
    ];
    let mut all: Vec<OsString> = fixed.iter().flatten().map(OsString::from).collect();
    all.extend(["-nodefaults".into(), "-qtest".into(), qtest]);
    all.extend(["-fsdev".into(), fsdev]);
    all
}

/// QEMU connects to us; a QEMU that ends before it does is an error at once.
fn accept(listener: &UnixListener, child: &mut Child) -> io::Result<Wire> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + PATIENCE;
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("QEMU ended with {status}")));
        }
        if Instant::now() > end {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(Wire {
        lines: BufReader::new(stream.try_clone()?),
        stream,
        line: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Pages, Slot};

    /// Needs QEMU, so it is passed over where `scripts/setup` has not run; the oracle and the benchmark, which
    /// are only started on purpose, insist.
    #[test]
    fn qemu_answers_at_the_ring() {
        let Some(qemu) = find_qemu() else {
            return;
        };
        let directory = tempfile::tempdir().expect("a directory");
        let options = QtestOptions::new(qemu, directory.path(), "none");
        let (mut device, mut ring) = QtestDevice::start(&options).expect("QEMU under qtest");
        assert_eq!(device.tag().expect("configuration space"), b"share");
        let mut slot = Slot::new(device.memory(), 4096, 4096, 0, Pages::Adjacent);
        for _ in 0..2 {
            let version = b"\x15\0\0\0\x64\xff\xff\0\x20\0\0\x08\09P2000.L";
            slot.ordinary(version, 4096);
            let token = ring.submit(&slot.readable, &slot.writable).expect("room");
            let done = ring.wait_used(Duration::from_secs(30));
            assert_eq!(done, Some((token, 21)));
            let mut reply = [0; 21];
            slot.reply(&mut reply);
            assert_eq!(reply[4], 101);
            assert_eq!(&reply[5..], &version[5..]);
            device.restart(&mut ring).expect("a reset device comes up again");
        }
        assert!(!device.broken().expect("status"));
    }

    #[test]
    fn a_qemu_that_cannot_start_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = QtestOptions::new("/bin/false", directory.path(), "none");
        assert!(QtestDevice::start(&options).is_err());
    }
}
