//! A host that swaps objects under the client's hands: directories for symlinks to a canary outside of the share, files for
//! devices, FIFOs, sockets, directories. Whatever the client does meanwhile, with so few descriptors that nodes are given
//! up all the time: the canary is not touched, and no special file is opened.
//!
//! `RACE_SECONDS` is for how long in each mode (default 2).

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use host::{SecurityModel, Share, ShareOptions};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use server::{How, Limits, Session};
use testkit::client::{Client, Errno};
use wire::*;

use crate::common::*;

/// Names in the shared directory, and in each directory in it, that come and go as anything.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Fids of one client.
const FIDS: u32 = 40;

/// What the host puts under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    ToCanary,
    ToSecret,
    Fifo,
    Character,
    Block,
    Socket,
}

const KINDS: [Kind; 14] = [
    Kind::File,
    Kind::File,
    Kind::File,
    Kind::File,
    Kind::Directory,
    Kind::Directory,
    Kind::Directory,
    Kind::Directory,
    Kind::ToCanary,
    Kind::ToSecret,
    Kind::Fifo,
    Kind::Character,
    Kind::Block,
    Kind::Socket,
];

/// Bits of a small generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.roll(all.len() as u64) as usize]
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Who is told of each open of what is watched.
struct Watch(OwnedFd);

impl Watch {
    fn new() -> Watch {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        assert!(fd >= 0);
        // SAFETY: a new descriptor, which nobody else owns.
        Watch(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// False when the object is gone.
    fn add(&self, path: &Path, events: u32) -> bool {
        let flags = events | libc::IN_DONT_FOLLOW;
        // SAFETY: a NUL-terminated path.
        unsafe { libc::inotify_add_watch(self.0.as_raw_fd(), c(path).as_ptr(), flags) >= 0 }
    }

    /// What has happened: events other than that a watched object is gone.
    fn events(&self) -> Vec<u32> {
        let mut seen = Vec::new();
        let mut buf = [0u8; 4096];
        loop {
            // SAFETY: `buf` is writable for its length.
            let len = unsafe { libc::read(self.0.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
            let Ok(len @ 1..) = usize::try_from(len) else {
                return seen;
            };
            let mut rest = &buf[..len];
            while rest.len() >= 16 {
                let field = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
                let (mask, name) = (field(4), field(12) as usize);
                // An overflow would hide others, so it counts.
                if mask & (OPENED | TOUCHED | libc::IN_Q_OVERFLOW) != 0 {
                    seen.push(mask);
                }
                rest = &rest[16 + name..];
            }
        }
    }
}

/// A special file that is opened, in whatever way.
const OPENED: u32 = libc::IN_OPEN | libc::IN_ACCESS | libc::IN_MODIFY;

/// A canary that is looked into or changed.
const TOUCHED: u32 = OPENED
    | libc::IN_ATTRIB
    | libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_MOVE_SELF
    | libc::IN_DELETE_SELF;

/// What the host does, and where.
struct Host<'a> {
    base: &'a Path,
    watch: &'a Watch,
    serial: u64,
    dice: Dice,
    swaps: u64,
    special: u64,
}

impl Host<'_> {
    fn make(&mut self, kind: Kind) -> Option<PathBuf> {
        self.serial += 1;
        let path = self
            .base
            .join("staging")
            .join(format!("{}-{}", self.dice.0, self.serial));
        let special = |kind: u32, device| {
            // SAFETY: a NUL-terminated path.
            let made = unsafe { libc::mknod(c(&path).as_ptr(), kind | 0o666, device) } == 0;
            // Before anybody can find it.
            made && self.watch.add(&path, OPENED)
        };
        let made = match kind {
            Kind::File => fs::write(&path, "a file").is_ok(),
            Kind::Directory => fs::create_dir(&path).is_ok() && fs::write(path.join("a"), "inside").is_ok(),
            Kind::ToCanary => symlink(self.base.join("canary"), &path).is_ok(),
            Kind::ToSecret => symlink("../canary/secret", &path).is_ok(),
            Kind::Fifo => special(libc::S_IFIFO, 0),
            // Devices that nothing happens to when they are opened after all: /dev/full and the last loop device.
            Kind::Character => special(libc::S_IFCHR, libc::makedev(1, 7)),
            Kind::Block => special(libc::S_IFBLK, libc::makedev(7, 7)),
            Kind::Socket => special(libc::S_IFSOCK, 0),
        };
        let kinds = [Kind::Fifo, Kind::Character, Kind::Block, Kind::Socket];
        self.special += u64::from(made && kinds.contains(&kind));
        made.then_some(path)
    }

    /// Puts something else under a name, in one step or with the name free in between, so that the inode number is
    /// used again by the next object.
    fn swap(&mut self) {
        let mut dir = open_dir(None, &self.base.join("share")).unwrap();
        for _ in 0..self.dice.roll(3) {
            match open_dir(Some(&dir), Path::new(self.dice.of(&NAMES))) {
                Some(below) => dir = below,
                None => break,
            }
        }
        let name = match self.dice.roll(8) {
            // Where mapped-file keeps what it keeps, and the directory of that itself.
            0 => {
                let Some(below) = open_dir(Some(&dir), Path::new(".virtfs_metadata")) else {
                    return;
                };
                dir = below;
                self.dice.of(&NAMES)
            }
            1 => ".virtfs_metadata",
            2 => ".virtfs_metadata_root",
            _ => self.dice.of(&NAMES),
        };
        let name = CString::new(name).unwrap();
        let dir = dir.as_raw_fd();
        if self.dice.roll(3) == 0 {
            for flags in [0, libc::AT_REMOVEDIR] {
                // SAFETY: a NUL-terminated name.
                unsafe { libc::unlinkat(dir, name.as_ptr(), flags) };
            }
        }
        let kind = self.dice.of(&KINDS);
        let Some(made) = self.make(kind) else { return };
        let rename = |flags: libc::c_uint| {
            let (call, from) = (libc::SYS_renameat2, c(&made));
            // SAFETY: NUL-terminated names.
            unsafe { libc::syscall(call, libc::AT_FDCWD, from.as_ptr(), dir, name.as_ptr(), flags) == 0 }
        };
        let exchanged = rename(libc::RENAME_EXCHANGE);
        self.swaps += u64::from(exchanged || rename(0));
        // What was there has been moved out of the share, and is gone now.
        let _ = fs::remove_file(&made).or_else(|_| fs::remove_dir_all(&made));
    }
}

/// The directory `path`, as `O_PATH`: the host does not go through the symlinks that it makes.
fn open_dir(at: Option<&OwnedFd>, path: &Path) -> Option<OwnedFd> {
    let at = at.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a NUL-terminated path.
    let fd = unsafe { libc::openat(at, c(path).as_ptr(), flags) };
    // SAFETY: a new descriptor, which nobody else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a client did.
#[derive(Default)]
struct Count {
    done: u64,
    refused: u64,
    stale: u64,
    opened: u64,
}

struct Guest<'a> {
    client: Client<Backend>,
    first: u32,
    dice: Dice,
    /// Inode numbers that no guest may ever meet.
    forbidden: &'a [u64],
    /// Fids that were walked to, and what they were then.
    walked: Vec<(u32, u8)>,
    open: Vec<u32>,
    count: Count,
}

impl Guest<'_> {
    /// Of a directory, or what was one.
    fn dir(&mut self) -> u32 {
        let dirs: Vec<u32> = self
            .walked
            .iter()
            .filter(|(_, kind)| *kind == QTDIR)
            .map(|(fid, _)| *fid)
            .collect();
        match dirs.len() as u64 {
            0 => 0,
            len => match self.dice.roll(len + 1) as usize {
                0 => 0,
                at => dirs[at - 1],
            },
        }
    }

    /// Any that was walked to.
    fn any(&mut self) -> u32 {
        match self.walked.len() as u64 {
            0 => 0,
            len => self.walked[self.dice.roll(len) as usize].0,
        }
    }

    fn opened(&mut self) -> u32 {
        match self.open.len() as u64 {
            0 => self.any(),
            len => self.open[self.dice.roll(len) as usize],
        }
    }

    fn forget(&mut self, fid: u32) {
        self.walked.retain(|(known, _)| *known != fid);
        self.open.retain(|known| *known != fid);
    }

    fn flags(&mut self) -> u32 {
        self.dice.of(&[O_RDONLY, O_RDONLY, O_WRONLY, O_RDWR]) | self.dice.of(&[0, 0, O_TRUNC, O_APPEND])
    }

    fn check(&self, path: u64) {
        assert!(!self.forbidden.contains(&path), "out of the share: {path}");
    }

    fn step(&mut self) {
        let (dir, any, name, other) = (self.dir(), self.any(), self.dice.of(&NAMES), self.dice.of(&NAMES));
        let (flags, xattr) = (self.flags(), self.first + FIDS);
        let result = match self.dice.roll(32) {
            0..=7 => self.walk(dir),
            8..=10 if any != 0 => self.client.lopen(any, flags).map(|_| {
                self.count.opened += 1;
                self.forget(any);
                self.open.push(any);
            }),
            11 if dir != 0 => self.client.lcreate(dir, name, flags, 0o644, gid()).map(|_| {
                self.count.opened += 1;
                self.forget(dir);
                self.open.push(dir);
            }),
            12 | 13 => match self.opened() {
                0 => Ok(()),
                fid => {
                    self.forget(fid);
                    self.client.clunk(fid)
                }
            },
            14 => {
                let fid = self.opened();
                self.client.read(fid, 0, 100).map(drop)
            }
            15 => {
                let fid = self.opened();
                self.client.write(fid, 0, b"written").map(drop)
            }
            16 | 17 => self.client.mkdir(dir, name, 0o755, gid()).map(drop),
            18 => self.client.unlinkat(dir, name, 0),
            19 => self.client.unlinkat(dir, name, P9_DOTL_AT_REMOVEDIR),
            20 => {
                let to = self.dir();
                self.client.renameat(dir, name, to, other)
            }
            21 => self.client.rename(any, dir, name),
            22 if any != 0 => {
                self.forget(any);
                self.client.remove(any)
            }
            23 => self.client.link(dir, any, name),
            24 => self
                .client
                .symlink(dir, name, "../canary/secret", gid())
                .map(drop),
            25 => self.client.truncate(any, 3),
            26 => self.client.chmod(any, self.dice.of(&[0o644, 0o755, 0o600])),
            27 => {
                let set = self.client.setxattr(any, xattr, "user.race", b"x", 0);
                // Left over where that was refused half-way.
                let _ = self.client.clunk(xattr);
                set
            }
            28 => self.client.readlink(any).map(drop),
            29 => {
                let fid = self.opened();
                self.client.readdir(fid, 0, 4096).map(drop)
            }
            30 => self
                .client
                .mknod(dir, name, libc::S_IFREG | 0o644, (0, 0), gid())
                .map(drop),
            _ => self.client.stat(any).map(|attr| self.check(attr.qid.path)),
        };
        match result {
            Ok(()) => self.count.done += 1,
            Err(Errno::ESTALE) => self.count.stale += 1,
            Err(_) => self.count.refused += 1,
        }
    }

    fn walk(&mut self, from: u32) -> Result<(), Errno> {
        let to = self.first + self.dice.roll(u64::from(FIDS)) as u32;
        if to == from {
            return Ok(());
        }
        self.forget(to);
        let _ = self.client.clunk(to);
        let names: Vec<&str> = (0..=self.dice.roll(2))
            .map(|_| match self.dice.roll(12) {
                0 => "..",
                1 => ".",
                _ => self.dice.of(&NAMES),
            })
            .collect();
        let qids = self.client.walk(from, to, &names)?;
        qids.iter().for_each(|qid| self.check(qid.path));
        match qids.last() {
            Some(last) if qids.len() == names.len() => self.walked.push((to, last.kind)),
            _ => return Err(Errno::ENOENT),
        }
        Ok(())
    }
}

/// All that can be seen of the canary.
fn canary(base: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    for path in ["canary", "canary/secret", "canary/below", "canary/below/file"] {
        let path = base.join(path);
        let meta = fs::symlink_metadata(&path).unwrap();
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        seen.push(format!(
            "{} {:o} {} {} {} {times:?}",
            meta.ino(),
            meta.mode(),
            meta.uid(),
            meta.nlink(),
            meta.size()
        ));
    }
    seen
}

fn race(base: &Path, model: SecurityModel, own: bool, time: Duration) -> Count {
    for dir in ["share", "staging", "canary/below", "mounted"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    for file in ["canary/secret", "canary/below/file"] {
        fs::write(base.join(file), "nobody's business").unwrap();
        fs::set_permissions(base.join(file), PermissionsExt::from_mode(0o600)).unwrap();
    }
    let watch = Watch::new();
    for path in ["canary", "canary/secret", "canary/below"] {
        assert!(watch.add(&base.join(path), TOUCHED));
    }
    let before = canary(base);
    let none = None::<&str>;
    let mounted = own
        && mount(
            Some(&base.join("share")),
            &base.join("mounted"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .is_ok();
    let shown = base.join(if mounted { "mounted" } else { "share" });
    let share = Arc::new(Share::open(&ShareOptions::new(&shown, model)).unwrap());
    let limits = Limits {
        fd_budget: 8,
        ..Limits::default()
    };
    let session = Arc::new(Session::new(share.clone(), limits));
    drop(Client::mount(Backend::new(session.clone()), 64_000).unwrap());
    let forbidden: Vec<u64> = [
        "",
        "staging",
        "canary",
        "canary/secret",
        "canary/below",
        "canary/below/file",
    ]
    .map(|path| fs::metadata(base.join(path)).unwrap().ino())
    .to_vec();
    let (end, begun) = (AtomicBool::new(false), Instant::now());
    let mut total = Count::default();
    let (mut swaps, mut special, mut events) = (0, 0, Vec::new());
    std::thread::scope(|scope| {
        let hosts: Vec<_> = (0..2)
            .map(|thread| {
                let mut host = Host {
                    base,
                    watch: &watch,
                    serial: 0,
                    dice: Dice(thread + 1),
                    swaps: 0,
                    special: 0,
                };
                let end = &end;
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    while !end.load(Ordering::Relaxed) {
                        host.swap();
                        // The kernel keeps no more than it has been told to keep.
                        seen.extend(host.watch.events());
                    }
                    (host.swaps, host.special, seen)
                })
            })
            .collect();
        let guests: Vec<_> = (0..3)
            .map(|thread| {
                let mut backend = Backend::new(session.clone());
                backend.how = [How::Inline, How::Blocking][thread as usize % 2];
                let mut guest = Guest {
                    client: Client::new(backend),
                    first: 100 + 100 * thread,
                    dice: Dice(u64::from(thread) + 77),
                    forbidden: &forbidden,
                    walked: Vec::new(),
                    open: Vec::new(),
                    count: Count::default(),
                };
                scope.spawn(move || {
                    // Whatever fails, the others end.
                    while begun.elapsed() < time {
                        guest.step();
                    }
                    guest.count
                })
            })
            .collect();
        let counts: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
        end.store(true, Ordering::Relaxed);
        for host in hosts {
            let (swapped, made, seen) = host.join().unwrap();
            (swaps, special) = (swaps + swapped, special + made);
            events.extend(seen);
        }
        for count in counts {
            let count = count.unwrap();
            total.done += count.done;
            total.refused += count.refused;
            total.stale += count.stale;
            total.opened += count.opened;
        }
    });
    events.extend(watch.events());
    assert!(
        events.is_empty(),
        "{model:?}: the canary or a special file was opened: {events:x?}"
    );
    assert_eq!(canary(base), before, "{model:?}");
    assert_eq!(
        fs::read(base.join("canary/secret")).unwrap(),
        b"nobody's business"
    );
    println!(
        "{model:?}, {}: {} requests done, {} of them opens; {} refused, {} stale; {swaps} swaps by the host, \
         {special} special files made",
        if mounted {
            "a mount of its own"
        } else {
            "a directory"
        },
        total.done,
        total.opened,
        total.refused,
        total.stale
    );
    drop(session);
    if mounted {
        let _ = umount2(&shown, MntFlags::MNT_DETACH);
    }
    total
}

/// On the file system that uses inode numbers again at once and knows no time of birth, where one can be had.
fn on_small_inodes(base: &Path) -> bool {
    let none = None::<&str>;
    // SAFETY: concerns this thread alone, and those that it makes.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0
        && mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).is_ok();
    let image = base.with_extension("image");
    let quiet = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let made = fs::File::create(&image).is_ok_and(|file| file.set_len(64 << 20).is_ok());
    if !own
        || !made
        || !quiet(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-I", "128"])
                .arg(&image),
        )
        || !quiet(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(base))
    {
        println!("without a file system of its own");
    }
    own
}

#[test]
fn a_host_that_swaps_objects_opens_no_way_out() {
    let seconds = std::env::var("RACE_SECONDS").map_or(2.0, |text| text.parse().expect("seconds"));
    // Each mode on a mount of its own, as in a sandbox, and on a mere directory.
    let time = Duration::from_secs_f64(seconds / 2.0);
    std::thread::spawn(move || {
        let temp = tempfile::tempdir().unwrap();
        let file_system = temp.path().join("fs");
        fs::create_dir(&file_system).unwrap();
        let own = on_small_inodes(&file_system);
        for model in MODELS {
            for mounted in [false, true] {
                if mounted && !own {
                    continue;
                }
                let base = file_system.join(format!("{model:?}{mounted}"));
                fs::create_dir(&base).unwrap();
                let count = race(&base, model, mounted, time);
                assert!(
                    count.done > 100 && count.opened > 0,
                    "{model:?}: too little happened"
                );
                fs::remove_dir_all(base).unwrap();
            }
        }
        let _ = umount2(&file_system, MntFlags::MNT_DETACH);
    })
    .join()
    .unwrap();
}
