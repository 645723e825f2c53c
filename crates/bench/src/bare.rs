//! The system calls that the work comes down to, made by the driver itself: what no server can beat. Data goes from
//! and to memory of the same kind as the guest's, a buffer for each that would be in flight: copying to one warm
//! buffer of huge pages again and again is half as fast again, and no guest has that.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::memory::{Area, GuestMemory, PAGE};

use crate::engine::Run;
use crate::work::{Act, BIG, Drive, ENTRIES, READ, Work};

/// Room for a listing.
const LISTING: usize = 64 * 1024;
/// Most payloads in flight at a time.
const LANES: usize = 32;

/// The same files, opened as a server would have them.
#[derive(Debug)]
pub struct Bare {
    root: File,
    small: File,
    big: File,
    target: File,
    many: File,
    scratch: File,
    listing: Vec<u8>,
    /// A payload for each lane.
    payloads: Vec<Area>,
    turn: usize,
    _memory: GuestMemory,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn stat_empty(file: &impl AsRawFd) -> io::Result<libc::statx> {
    let mut out = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the path is a string, `out` has room for the record.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
            libc::STATX_BASIC_STATS,
            out.as_mut_ptr(),
        )
    };
    check(result.into())?;
    // SAFETY: statx succeeded, so the record is written.
    Ok(unsafe { out.assume_init() })
}

fn open_at(dir: &impl AsRawFd, name: &CStr, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: the name is a string.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    check(fd.into())?;
    // SAFETY: openat gave this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn whole(moved: libc::ssize_t, count: usize) -> io::Result<()> {
    match check(moved as libc::c_long)? as usize == count {
        true => Ok(()),
        false => Err(io::Error::other("a short transfer")),
    }
}

fn read(file: &File, into: &Area, count: usize, offset: u64) -> io::Result<()> {
    assert!(count <= into.len());
    // SAFETY: the area has `count` bytes, and is memory that anybody may write to.
    let moved = unsafe { libc::pread64(file.as_raw_fd(), into.as_ptr().cast(), count, offset as i64) };
    whole(moved, count)
}

fn write(file: &File, from: &Area, count: usize, offset: u64) -> io::Result<()> {
    assert!(count <= from.len());
    // SAFETY: the area has `count` bytes.
    let moved = unsafe { libc::pwrite64(file.as_raw_fd(), from.as_ptr().cast(), count, offset as i64) };
    whole(moved, count)
}

/// The pages of the first `count` bytes of `area`, the last one first.
fn scattered(area: &Area, count: usize) -> Vec<libc::iovec> {
    assert!(count <= area.len());
    let piece = |at: usize| libc::iovec {
        iov_base: area.as_ptr().wrapping_add(at).cast(),
        iov_len: PAGE.min(count - at),
    };
    (0..count).step_by(PAGE).rev().map(piece).collect()
}

const PATH: i32 = libc::O_PATH | libc::O_NOFOLLOW;

impl Bare {
    /// Opens what [`crate::work::prepare`] made.
    pub fn new(directory: &Path) -> io::Result<Bare> {
        let path = |name: &str| {
            OpenOptions::new()
                .read(true)
                .custom_flags(PATH)
                .open(directory.join(name))
        };
        let memory = GuestMemory::new(&[(0, LANES * READ as usize)])?;
        let payload = |_| {
            let area = memory.alloc(READ as usize, 4096);
            area.fill(0x5a);
            area
        };
        Ok(Bare {
            payloads: (0..LANES).map(payload).collect(),
            turn: 0,
            root: path(".")?,
            small: path("small")?,
            big: File::open(directory.join("big"))?,
            target: OpenOptions::new().write(true).open(directory.join("target"))?,
            many: File::open(directory.join("many"))?,
            scratch: path("scratch")?,
            listing: vec![0; LISTING],
            _memory: memory,
        })
    }

    fn operation(&mut self, act: Act, lanes: usize, offset: &mut u64) -> io::Result<()> {
        self.turn = (self.turn + 1) % lanes.min(LANES);
        let payload = &self.payloads[self.turn];
        match act {
            Act::Null => {
                // SAFETY: getppid takes and breaks nothing.
                unsafe { libc::getppid() };
            }
            Act::Getattr => {
                stat_empty(&self.small)?;
            }
            Act::Walk => {
                let a = open_at(&self.root, c"a", PATH, 0)?;
                stat_empty(&a)?;
                let b = open_at(&a, c"b", PATH, 0)?;
                stat_empty(&b)?;
                let c = open_at(&b, c"c", PATH, 0)?;
                stat_empty(&c)?;
            }
            Act::SmallFile => {
                let path = open_at(&self.root, c"small", PATH, 0)?;
                stat_empty(&path)?;
                let file = File::from(open_at(&self.root, c"small", libc::O_RDONLY, 0)?);
                read(&file, payload, 4096, 0)?;
            }
            Act::Create => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                let file = File::from(open_at(&self.scratch, c"bare", flags, 0o644)?);
                write(&file, payload, 4096, 0)?;
                // SAFETY: takes a descriptor and a number.
                check(unsafe { libc::fchmod(file.as_raw_fd(), 0o600) }.into())?;
                drop(file);
                // SAFETY: the name is a string.
                check(unsafe { libc::unlinkat(self.scratch.as_raw_fd(), c"bare".as_ptr(), 0) }.into())?;
            }
            Act::Readdir => self.list()?,
            Act::Read(count) | Act::ReadApart(count) => {
                read(&self.big, payload, count as usize, *offset)?;
                *offset = next(*offset, act.distance(count), count);
            }
            Act::Write(count) | Act::WriteApart(count) => {
                write(&self.target, payload, count as usize, *offset)?;
                *offset = next(*offset, act.distance(count), count);
            }
            Act::ReadScattered(count) => {
                let pieces = scattered(payload, count as usize);
                let (fd, len) = (self.big.as_raw_fd(), pieces.len() as i32);
                // SAFETY: the pieces lie in the area, and are memory that anybody may write to.
                let moved = unsafe { libc::preadv(fd, pieces.as_ptr(), len, *offset as i64) };
                whole(moved, count as usize)?;
                *offset = next(*offset, act.distance(count), count);
            }
            Act::WriteScattered(count) => {
                let pieces = scattered(payload, count as usize);
                let (fd, len) = (self.target.as_raw_fd(), pieces.len() as i32);
                // SAFETY: the pieces lie in the area.
                let moved = unsafe { libc::pwritev(fd, pieces.as_ptr(), len, *offset as i64) };
                whole(moved, count as usize)?;
                *offset = next(*offset, act.distance(count), count);
            }
        }
        Ok(())
    }

    fn list(&mut self) -> io::Result<()> {
        // SAFETY: takes a descriptor and numbers.
        check(unsafe { libc::lseek(self.many.as_raw_fd(), 0, libc::SEEK_SET) })?;
        let mut seen = 0;
        loop {
            // SAFETY: the buffer has as many bytes as the call is told.
            let got = check(unsafe {
                let buffer = self.listing.as_mut_ptr();
                libc::syscall(libc::SYS_getdents64, self.many.as_raw_fd(), buffer, LISTING)
            })? as usize;
            if got == 0 {
                break;
            }
            let mut at = 0;
            while at < got {
                at += usize::from(u16::from_ne_bytes([self.listing[at + 16], self.listing[at + 17]]));
                seen += 1;
            }
        }
        if seen == ENTRIES + 2 {
            Ok(())
        } else {
            Err(io::Error::other("entries are missing"))
        }
    }

    /// Does the work for about `length`, one call after the other.
    pub fn run(&mut self, work: &Work, length: Duration) -> Result<Run, String> {
        let fail = |error: io::Error| format!("{}: {error}", work.name);
        let think = match work.drive {
            Drive::Throughput(_) => None,
            Drive::Thinking(think) => Some(think),
            Drive::Beside(..) => Some(Duration::ZERO),
        };
        let lanes = match work.drive {
            Drive::Throughput(lanes) => lanes,
            Drive::Thinking(_) | Drive::Beside(..) => 1,
        };
        let begin = Instant::now();
        let (mut done, mut offset, mut all) = (0u64, 0, Vec::new());
        while begin.elapsed() < length {
            if let Some(think) = think {
                let start = Instant::now();
                self.operation(work.act, lanes, &mut offset).map_err(fail)?;
                all.push(start.elapsed().as_nanos() as u64);
                let pause = Instant::now();
                while pause.elapsed() < think {
                    std::hint::spin_loop();
                }
            } else {
                for _ in 0..16 {
                    self.operation(work.act, lanes, &mut offset).map_err(fail)?;
                    done += 1;
                }
            }
        }
        if think.is_some() {
            return Ok(Run::from_latencies(all));
        }
        Ok(Run {
            rate: done as f64 / begin.elapsed().as_secs_f64(),
            ..Run::default()
        })
    }
}

/// As the lanes' own offsets go on: beyond the end, at the beginning, and where places do not adjoin at other ones.
fn next(offset: u64, distance: u64, count: u32) -> u64 {
    (offset + distance) % (BIG - BIG % u64::from(count))
}
