//! Runs inside the guest (and on the host beside it): several processes at once on the same files.
//! Compiled with rustc alone, as `probe.rs` is.
//!
//!     stress count FILE NAME HOW ROUNDS NAMES    raises the number in FILE under a lock, HOW being fcntl or
//!                                                flock, until each of NAMES (comma-separated) did so ROUNDS times
//!     stress flock HOW                           flock(2) on standard input, without waiting: exclusive, shared, unlock
//!     stress append FILE NAME LINES              appends lines, each with one write
//!     stress write FILE WRITER WRITERS           writes this writer's blocks, in every generation, and reads each back
//!     stress scribble FILE WRITER WRITERS        the same with all blocks, which the other writers write too
//!     stress verify FILE WRITERS owned|any       is each block whole, and of a last generation (of its owner)?
//!     stress appended FILE LINES NAMES           has each of NAMES all its lines, whole and in order?
//!     stress list DIR                            prints the path of every file below
//!     stress concurrent DIR                      four processes at once write, scribble and append, then all is verified

use std::fs::{File, OpenOptions};
use std::io::{Error, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, exit};

/// Of odd length, so that neighbours share pages.
const BLOCK: usize = 12_345;
/// A block that others write at the same time. Beyond 1024 bytes and without a cache, Linux's client sends a
/// message for each page of the caller's buffer (it has since it uses netfs: seen with 6.12 and 7.3), and
/// nothing keeps another's messages from coming between.
const SMALL_BLOCK: usize = 1_001;
const BLOCKS: u64 = 48;
const GENERATIONS: u64 = 6;
/// Lines that each process of `concurrent` appends.
const LINES: u64 = 150;
/// magic, writer, generation, offset, checksum of the rest
const HEADER: usize = 5 * 8;
const MAGIC: u64 = 0x6b63_6f6c_6220_7039;

const F_SETLKW: i32 = 7;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;
const LOCK_EX: i32 = 2;
const LOCK_SH: i32 = 1;
const LOCK_NB: i32 = 4;
const LOCK_UN: i32 = 8;

/// `struct flock` of x86_64.
#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    start: i64,
    len: i64,
    pid: i32,
}

unsafe extern "C" {
    fn fcntl(fd: i32, command: i32, lock: *mut Flock) -> i32;
    fn flock(fd: i32, operation: i32) -> i32;
}

type Result<T = ()> = std::result::Result<T, String>;

fn at<T>(what: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| format!("{what}: {e}"))
}

fn open(path: &str) -> Result<File> {
    at("open", OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path))
}

// ---------------------------------------------------------------- locks

/// Waits as long as it takes; a record lock covers the first eight bytes.
fn lock(file: &File, how: &str, exclusive: bool) -> Result {
    let status = match how {
        "flock" => {
            // SAFETY: flock only looks at the descriptor, which is open.
            unsafe { flock(file.as_raw_fd(), if exclusive { LOCK_EX } else { LOCK_UN }) }
        }
        _ => {
            let kind = if exclusive { F_WRLCK } else { F_UNLCK };
            let mut range = Flock { kind, whence: 0, start: 0, len: 8, pid: 0 };
            // SAFETY: the descriptor is open and `range` is the structure that F_SETLKW reads.
            unsafe { fcntl(file.as_raw_fd(), F_SETLKW, &mut range) }
        }
    };
    if status == 0 { Ok(()) } else { Err(format!("{how}: {}", Error::last_os_error())) }
}

/// The file is the number, eight bytes, and then who raised it, a line for each time. All of it is
/// read, checked and written under the lock: whoever gets in between breaks it.
fn count(path: &str, name: &str, how: &str, rounds: usize, names: &[&str]) -> Result {
    let file = open(path)?;
    loop {
        lock(&file, how, true)?;
        let size = at("fstat", file.metadata())?.len();
        let mut content = vec![0; size as usize];
        at("read", file.read_exact_at(&mut content, 0))?;
        let (number, who) = if content.is_empty() { ([0; 8], "") } else {
            let (number, who) = content.split_first_chunk().ok_or("the number is cut")?;
            (*number, std::str::from_utf8(who).map_err(|_| "not lines")?)
        };
        let number = u64::from_le_bytes(number);
        let turns = |name: &str| who.lines().filter(|line| *line == name).count();
        if number != who.lines().count() as u64 {
            return Err(format!("the number is {number} after {} turns", who.lines().count()));
        }
        if names.iter().all(|name| turns(name) >= rounds) {
            println!("{how}: {name} had {} turns of {number}", turns(name));
            return lock(&file, how, false);
        }
        if number > 100_000 {
            return Err(format!("{name} had {} turns of {number}: somebody starves", turns(name)));
        }
        at("write", file.write_all_at(&(number + 1).to_le_bytes(), 0))?;
        at("write", file.write_all_at(format!("{name}\n").as_bytes(), size.max(8)))?;
        lock(&file, how, false)?;
        // As a program that has more to do: a lock that is never free for a moment is nobody else's. Who
        // has had his turns leaves more of them to the others, one of which may be stopped for a while.
        let pause = if turns(name) < rounds { 1 } else { 20 };
        std::thread::sleep(std::time::Duration::from_millis(pause));
    }
}

// ---------------------------------------------------------------- append

fn append(path: &str, name: &str, lines: u64) -> Result {
    let mut file = at("open", OpenOptions::new().append(true).create(true).open(path))?;
    for n in 0..lines {
        // Of different lengths, so that a line in another's place shows.
        let line = format!("{name} {n} {}\n", "x".repeat((n * 37 % 200) as usize));
        at("append", file.write_all(line.as_bytes()))?;
    }
    Ok(())
}

fn check_appended(path: &Path, names: &[String], lines: u64) -> Result {
    let text = at("read", std::fs::read_to_string(path))?;
    for name in names {
        let found: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(name.as_str())?.strip_prefix(' ')).collect();
        let should: Vec<_> = (0..lines).map(|n| format!("{n} {}", "x".repeat((n * 37 % 200) as usize))).collect();
        if found != should {
            return Err(format!("of {name}'s {lines} lines there are {}, or not in order", found.len()));
        }
    }
    let (is, should) = (text.lines().count() as u64, lines * names.len() as u64);
    if is == should { Ok(()) } else { Err(format!("{is} lines in place of {should}")) }
}

// ---------------------------------------------------------------- blocks

fn fill(block: &mut [u8], writer: u64, generation: u64, offset: u64) {
    let mut state = (writer << 48 ^ generation << 32 ^ offset).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in block[HEADER..].chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
    let checksum = checksum(&block[HEADER..]);
    for (field, value) in [MAGIC, writer, generation, offset, checksum].into_iter().enumerate() {
        block[field * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Writer and generation of a block that is whole.
fn who(block: &[u8], offset: u64) -> Result<(u64, u64)> {
    let field = |n: usize| u64::from_le_bytes(block[n * 8..][..8].try_into().expect("eight bytes"));
    if field(0) != MAGIC || field(3) != offset {
        return Err(format!("at {offset}: no block, or that of {} (magic {:x})", field(3), field(0)));
    }
    let mut should = vec![0; block.len()];
    fill(&mut should, field(1), field(2), offset);
    match should.iter().zip(block).position(|(a, b)| a != b) {
        None => Ok((field(1), field(2))),
        Some(wrong) => Err(format!("at {offset}: writer {} generation {} is torn at byte {wrong}", field(1), field(2))),
    }
}

/// `step`: of how many blocks the writer's own is one; 1: all are everybody's.
fn write(path: &str, writer: u64, step: u64) -> Result {
    let file = open(path)?;
    let size = if step == 1 { SMALL_BLOCK } else { BLOCK };
    let (mut block, mut back) = (vec![0; size], vec![0; size]);
    for generation in 1..=GENERATIONS {
        for n in (writer % step..BLOCKS).step_by(step as usize) {
            let offset = n * size as u64;
            fill(&mut block, writer, generation, offset);
            at("write", file.write_all_at(&block, offset))?;
            if step == 1 {
                continue; // it may be another's by now, and read while that is written
            }
            at("read", file.read_exact_at(&mut back, offset))?;
            if back != block {
                return Err(format!("writer {writer}: what was just written at {offset} is read otherwise"));
            }
        }
        if (writer + generation) % 3 == 0 {
            at("fdatasync", file.sync_data())?;
        }
    }
    Ok(())
}

fn verify(path: &str, writers: u64, owned: bool) -> Result {
    let file = at("open", File::open(path))?;
    let length = at("fstat", file.metadata())?.len();
    let size = if owned { BLOCK } else { SMALL_BLOCK };
    if length != BLOCKS * size as u64 {
        return Err(format!("{path} has {length} bytes"));
    }
    let mut block = vec![0; size];
    for n in 0..BLOCKS {
        let offset = n * size as u64;
        at("read", file.read_exact_at(&mut block, offset))?;
        let (writer, generation) = who(&block, offset)?;
        // Whoever wrote last wrote his last generation.
        if generation != GENERATIONS || writer >= writers || (owned && writer != n % writers) {
            return Err(format!("block {n} is of writer {writer}, generation {generation}"));
        }
    }
    Ok(())
}

// ---------------------------------------------------------------- all of it

fn concurrent(dir: &str) -> Result {
    const WRITERS: u64 = 4;
    let file = |name: &str| format!("{dir}/{name}");
    let program = at("myself", std::env::current_exe())?;
    let mut children = Vec::new();
    for writer in 0..WRITERS {
        let (id, writers) = (writer.to_string(), WRITERS.to_string());
        for args in [
            ["write".into(), file("owned"), id.clone(), writers.clone()],
            ["scribble".into(), file("scribbled"), id.clone(), writers.clone()],
            ["append".into(), file("appended"), format!("writer-{id}"), LINES.to_string()],
        ] {
            let child = Command::new(&program).args(&args).spawn();
            children.push((args.join(" "), at("start", child)?));
        }
    }
    let mut failed = Vec::new();
    for (what, mut child) in children {
        if !at("wait", child.wait())?.success() {
            failed.push(what);
        }
    }
    if !failed.is_empty() {
        return Err(format!("failed: {failed:?}"));
    }
    verify(&file("owned"), WRITERS, true)?;
    verify(&file("scribbled"), WRITERS, false)?;
    let names: Vec<_> = (0..WRITERS).map(|n| format!("writer-{n}")).collect();
    check_appended(Path::new(&file("appended")), &names, LINES)
}

/// With the kinds that the listing itself gives: no file is asked for.
fn list(dir: &Path, out: &mut impl Write) -> Result {
    for entry in at("opendir", std::fs::read_dir(dir))? {
        let entry = at("readdir", entry)?;
        if at("type", entry.file_type())?.is_dir() {
            list(&entry.path(), out)?;
        } else {
            at("print", writeln!(out, "{}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn number(arg: &str) -> Result<u64> {
    arg.parse().map_err(|_| format!("{arg} is no number"))
}

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["count", file, name, how, rounds, names] => {
            number(rounds).and_then(|rounds| count(file, name, how, rounds as usize, &names.split(',').collect::<Vec<_>>()))
        }
        ["flock", how] => {
            let operation = match how {
                "exclusive" => LOCK_EX | LOCK_NB,
                "shared" => LOCK_SH | LOCK_NB,
                _ => LOCK_UN,
            };
            // SAFETY: flock only looks at the descriptor, which is open.
            match unsafe { flock(0, operation) } {
                0 => Ok(()),
                _ => Err(Error::last_os_error().to_string()),
            }
        }
        ["append", file, name, lines] => number(lines).and_then(|lines| append(file, name, lines)),
        ["write", file, writer, writers] => {
            number(writer).and_then(|writer| write(file, writer, number(writers)?))
        }
        ["scribble", file, writer, _] => number(writer).and_then(|writer| write(file, writer, 1)),
        ["verify", file, writers, how] => number(writers).and_then(|writers| verify(file, writers, how == "owned")),
        ["appended", file, lines, names] => {
            let names: Vec<_> = names.split(',').map(str::to_owned).collect();
            number(lines).and_then(|lines| check_appended(Path::new(file), &names, lines))
        }
        ["list", dir] => list(Path::new(dir), &mut std::io::BufWriter::new(std::io::stdout())),
        ["concurrent", dir] => concurrent(dir),
        _ => Err(format!("unknown arguments {args:?}")),
    };
    if let Err(why) = result {
        println!("stress {}: {why}", args.join(" "));
        exit(1);
    }
}
