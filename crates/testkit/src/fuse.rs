//! A FUSE file system in the test's own process, which fails, and hangs, when it is told to.
//!
//! It has a root directory for everybody and, in it, `file`. Every other name but those that begin with `hang` is
//! none; looking up those is answered when the test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Opcodes of linux/fuse.h.
#[expect(missing_docs, reason = "the names are the header's")]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
}

/// FUSE_BIG_WRITES: a WRITE may have more than a page.
const BIG_WRITES: u32 = 1 << 5;
/// FUSE_POSIX_LOCKS: the file system has the locks, not the kernel.
const POSIX_LOCKS: u32 = 1 << 1;
/// Bytes of `fuse_in_header`, and of `fuse_write_in` behind it.
const HEADER: usize = 40;
const WRITE_IN: usize = 40;
/// Largest write that the kernel is told to send.
pub const MAX_WRITE: usize = 64 << 10;

const ROOT: u64 = 1;
const FILE: u64 = 2;

/// What becomes of requests for `file`.
#[derive(Debug, Default)]
pub struct Script {
    /// Its content, as a server has it that others write to as well.
    pub data: Vec<u8>,
    /// WRITEs fail with this errno, 0: they do not.
    pub write: i32,
    /// So many WRITEs succeed before.
    pub writes_before: usize,
    /// WRITEs are answered so late.
    pub write_delay: Duration,
    /// READs fail with this errno.
    pub read: i32,
    /// FSYNC's errno.
    pub fsync: i32,
    /// The errno of FLUSH, which close(2) reports.
    pub flush: i32,
    /// SETLKs hang like look-ups; else every lock is granted.
    pub hang_locks: bool,
    /// Flags of the last OPEN.
    pub opened: i32,
    /// FLUSHes seen.
    pub flushes: usize,
    /// Which users have asked, by opcode; but for a file's end, which is the kernel's to tell.
    pub askers: BTreeMap<u32, BTreeSet<u32>>,
}

/// A mounted file system, gone with the value.
#[derive(Debug)]
pub struct Fuse {
    target: PathBuf,
    device: File,
    thread: Option<JoinHandle<()>>,
    script: Arc<Mutex<Script>>,
    /// The look-ups and locks that wait, by their number.
    pub hanging: Receiver<u64>,
}

fn script(of: &Mutex<Script>) -> MutexGuard<'_, Script> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fuse {
    /// Mounts it. `None` where this process may not; a test says then that it is left out.
    pub fn mount(target: &Path) -> Option<Fuse> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("testkit"),
            target,
            Some("fuse"),
            flags,
            Some(options.as_str()),
        )
        .ok()?;
        let (send, hanging) = channel();
        let script = Arc::new(Mutex::new(Script::default()));
        let theirs = Server {
            device: device.try_clone().expect("dup"),
            script: Arc::clone(&script),
            hanging: send,
        };
        Some(Fuse {
            target: target.to_owned(),
            device,
            thread: Some(std::thread::spawn(move || theirs.serve())),
            script,
            hanging,
        })
    }

    /// What becomes of requests from now on, and what became of those before.
    pub fn script(&self) -> MutexGuard<'_, Script> {
        script(&self.script)
    }

    /// Answers what hangs with an errno.
    pub fn fail(&self, unique: u64, errno: i32) {
        reply(&self.device, unique, -errno, &[]);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Force: what hangs is answered with an error, and the thread's read ends.
        let _ = umount2(&self.target, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    device: File,
    script: Arc<Mutex<Script>>,
    hanging: Sender<u64>,
}

impl Server {
    fn serve(mut self) {
        let mut buffer = vec![0; MAX_WRITE + (64 << 10)];
        while let Ok(len) = self.device.read(&mut buffer) {
            assert!(len >= HEADER);
            self.answer(&buffer[..len]);
        }
    }

    fn answer(&self, message: &[u8]) {
        let (unique, node) = (long(message, 8), long(message, 16));
        let body = &message[HEADER..];
        let mut script = script(&self.script);
        let opcode = word(message, 4);
        if !matches!(
            opcode,
            op::INIT | op::FLUSH | op::RELEASE | op::FORGET | op::BATCH_FORGET | op::INTERRUPT
        ) {
            script.askers.entry(opcode).or_default().insert(word(message, 24));
        }
        let ok = |body: &[u8]| reply(&self.device, unique, 0, body);
        let errno = |errno: i32| reply(&self.device, unique, -errno, &[]);
        match opcode {
            op::INIT => {
                let mut out = [0; 64];
                out[0..4].copy_from_slice(&7u32.to_ne_bytes());
                out[4..8].copy_from_slice(&31u32.to_ne_bytes());
                out[12..16].copy_from_slice(&(BIG_WRITES | POSIX_LOCKS).to_ne_bytes());
                out[20..24].copy_from_slice(&(MAX_WRITE as u32).to_ne_bytes());
                ok(&out);
            }
            op::GETATTR => {
                let mut out = vec![0; 16];
                out.extend(attributes(node, script.data.len()));
                ok(&out);
            }
            op::LOOKUP if body.starts_with(b"hang") => {
                let _ = self.hanging.send(unique);
            }
            op::LOOKUP if body == b"file\0" => {
                let mut out = vec![0; 40];
                out[0..8].copy_from_slice(&FILE.to_ne_bytes());
                out.extend(attributes(FILE, script.data.len()));
                ok(&out);
            }
            op::LOOKUP => errno(libc::ENOENT),
            op::OPEN => {
                script.opened = word(body, 0).cast_signed();
                ok(&[0; 16]);
            }
            op::READ if script.read != 0 => errno(script.read),
            op::READ => {
                let (from, count) = (long(body, 8) as usize, word(body, 16) as usize);
                let from = from.min(script.data.len());
                let end = (from + count).min(script.data.len());
                ok(&script.data[from..end]);
            }
            op::WRITE if script.write != 0 && script.writes_before == 0 => errno(script.write),
            op::WRITE => {
                script.writes_before = script.writes_before.saturating_sub(1);
                std::thread::sleep(script.write_delay);
                let bytes = &body[WRITE_IN..];
                let at = match word(body, 32).cast_signed() & libc::O_APPEND {
                    0 => long(body, 8) as usize,
                    _ => script.data.len(),
                };
                let end = at + bytes.len();
                if script.data.len() < end {
                    script.data.resize(end, 0);
                }
                script.data[at..end].copy_from_slice(bytes);
                let mut out = [0; 8];
                out[0..4].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
                ok(&out);
            }
            op::SETLK if script.hang_locks => {
                let _ = self.hanging.send(unique);
            }
            op::SETLK => ok(&[]),
            op::GETLK => {
                let mut out = [0; 24];
                out[16..20].copy_from_slice(&(libc::F_UNLCK as u32).to_ne_bytes());
                ok(&out);
            }
            op::FSYNC => errno(script.fsync),
            op::FLUSH => {
                script.flushes += 1;
                errno(script.flush);
            }
            op::STATFS => ok(&[0; 80]),
            op::RELEASE => ok(&[]),
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => {}
            _ => errno(libc::ENOSYS),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// `fuse_attr`.
fn attributes(node: u64, size: usize) -> [u8; 88] {
    let (mode, links) = match node {
        ROOT => (libc::S_IFDIR | 0o777, 2u32),
        _ => (libc::S_IFREG | 0o666, 1),
    };
    let mut out = [0; 88];
    out[0..8].copy_from_slice(&node.to_ne_bytes());
    out[8..16].copy_from_slice(&(size as u64).to_ne_bytes());
    out[60..64].copy_from_slice(&mode.to_ne_bytes());
    out[64..68].copy_from_slice(&links.to_ne_bytes());
    out
}

fn reply(mut device: &File, unique: u64, error: i32, body: &[u8]) {
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(error.to_ne_bytes());
    message.extend(unique.to_ne_bytes());
    message.extend(body);
    // ENOENT: the request was given up.
    let _ = device.write(&message);
}
