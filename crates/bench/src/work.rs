//! What is measured: the same work, in each protocol's words.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Entries of the directory that is listed.
pub const ENTRIES: usize = 1000;
/// Bytes of the large file.
pub const BIG: u64 = 64 << 20;
/// Payload of a large read.
pub const READ: u32 = 512 << 10;
/// Payload of a large write: what is left of 512,000 bytes of msize in whole pages.
pub const WRITE: u32 = 508 << 10 & !4095;

/// What a lane does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A message that does nothing: the cost of the way there and back.
    Null,
    /// Attributes of one file.
    Getattr,
    /// Three names down, and forget it.
    Walk,
    /// Look a small file up, its attributes, open, read 4 KiB, close.
    SmallFile,
    /// Create, write 4 KiB, chmod, close, unlink.
    Create,
    /// List a directory of [`ENTRIES`] entries.
    Readdir,
    /// Read so many bytes, one lane behind the other in the file.
    Read(u32),
    /// Write so many bytes, in the same way.
    Write(u32),
    /// Read so many bytes at places that do not adjoin.
    ReadApart(u32),
    /// Write so many bytes at places that do not adjoin.
    WriteApart(u32),
    /// Read so many bytes into pages of which no two are neighbours.
    ReadScattered(u32),
    /// Write so many bytes from pages of which no two are neighbours.
    WriteScattered(u32),
}

impl Act {
    /// Bytes from the place of one transfer to that of the next lane, for one of `count` bytes.
    pub fn distance(&self, count: u32) -> u64 {
        match self {
            Act::ReadApart(_) | Act::WriteApart(_) => 3 * u64::from(count),
            _ => count.into(),
        }
    }
}

/// How it is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// So many operations in flight, counted.
    Throughput(usize),
    /// One at a time, with a pause between, latency measured.
    Thinking(Duration),
    /// One at a time, latency measured, beside so many lanes of another act.
    Beside(usize, Act),
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// What the table calls it.
    pub name: &'static str,
    /// What the first lane does.
    pub act: Act,
    /// How.
    pub drive: Drive,
}

impl Work {
    /// The acts of all lanes.
    pub fn lanes(&self) -> Vec<Act> {
        match self.drive {
            Drive::Throughput(count) => vec![self.act; count],
            Drive::Thinking(_) => vec![self.act],
            Drive::Beside(count, other) => {
                let mut all = vec![other; count + 1];
                all[0] = self.act;
                all
            }
        }
    }

    /// Whether the share mode and the file system matter more than the data.
    pub fn is_metadata(&self) -> bool {
        let small = !matches!(
            self.act,
            Act::Null
                | Act::Read(_)
                | Act::Write(_)
                | Act::ReadApart(_)
                | Act::WriteApart(_)
                | Act::ReadScattered(_)
                | Act::WriteScattered(_)
        );
        small && !matches!(self.drive, Drive::Beside(..))
    }

    /// Whether the result is latencies, not a rate.
    pub fn is_latency(&self) -> bool {
        !matches!(self.drive, Drive::Throughput(_))
    }

    /// What one operation moves, for the table: entries or bytes, and the unit of the rate.
    pub fn unit(&self) -> (f64, &'static str) {
        match self.act {
            Act::Readdir => (ENTRIES as f64, "entries/s"),
            Act::Read(bytes) | Act::Write(bytes) | Act::ReadScattered(bytes) | Act::WriteScattered(bytes)
                if bytes > 4096 =>
            {
                (f64::from(bytes) / 1e6, "MB/s")
            }
            _ => (1.0, "ops/s"),
        }
    }
}

/// Everything that is measured, in the table's order.
pub fn all() -> Vec<Work> {
    let throughput = |name, act, lanes| Work {
        name,
        act,
        drive: Drive::Throughput(lanes),
    };
    let think = Duration::from_micros(20);
    vec![
        throughput("null request, 1 in flight", Act::Null, 1),
        throughput("getattr, 1 in flight", Act::Getattr, 1),
        throughput("getattr, 32 in flight", Act::Getattr, 32),
        Work {
            name: "getattr, 20 µs between requests",
            act: Act::Getattr,
            drive: Drive::Thinking(think),
        },
        throughput("walk of 3 names + clunk, 1 in flight", Act::Walk, 1),
        throughput("walk of 3 names + clunk, 32 in flight", Act::Walk, 32),
        throughput("walk, getattr, open, read 4 KiB, clunk", Act::SmallFile, 1),
        throughput("create, write 4 KiB, chmod, clunk, unlink", Act::Create, 1),
        throughput("readdir of 1000 entries", Act::Readdir, 1),
        throughput("read 4 KiB, 1 in flight", Act::Read(4096), 1),
        throughput("read 4 KiB, 32 in flight", Act::Read(4096), 32),
        throughput("read 4 KiB apart, 32 in flight", Act::ReadApart(4096), 32),
        throughput("read 512 KiB, 1 in flight", Act::Read(READ), 1),
        throughput("read 512 KiB, 8 in flight", Act::Read(READ), 8),
        throughput(
            "read 512 KiB into scattered pages, 1 in flight",
            Act::ReadScattered(READ),
            1,
        ),
        throughput("write 4 KiB, 1 in flight", Act::Write(4096), 1),
        throughput("write 4 KiB, 32 in flight", Act::Write(4096), 32),
        throughput("write 4 KiB apart, 32 in flight", Act::WriteApart(4096), 32),
        throughput("write 508 KiB, 1 in flight", Act::Write(WRITE), 1),
        throughput(
            "write 508 KiB from scattered pages, 1 in flight",
            Act::WriteScattered(WRITE),
            1,
        ),
        Work {
            name: "getattr beside four 512 KiB reads",
            act: Act::Getattr,
            drive: Drive::Beside(4, Act::Read(READ)),
        },
    ]
}

/// Makes the files that the work needs, and has them in the page cache.
pub fn prepare(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory.join("a/b"))?;
    fs::write(directory.join("a/b/c"), [b'c'; 4096])?;
    fs::write(directory.join("small"), [b's'; 4096])?;
    fs::create_dir_all(directory.join("many"))?;
    // Ten bytes a name, as ordinary files have.
    for number in 0..ENTRIES {
        fs::write(directory.join(format!("many/entry-{number:04}")), b"")?;
    }
    fs::create_dir_all(directory.join("scratch"))?;
    for name in ["big", "target"] {
        let block = vec![0x42u8; 1 << 20];
        let mut file = fs::File::create(directory.join(name))?;
        for _ in 0..BIG >> 20 {
            io::Write::write_all(&mut file, &block)?;
        }
        file.sync_all()?;
    }
    Ok(())
}
