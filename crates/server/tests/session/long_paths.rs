//! Names lead on where no path does: what is done beyond PATH_MAX has the answers that it has right below the root.

use std::fmt::Debug;
use std::os::fd::AsFd;

use std::sync::Arc;

use host::sys::path;
use host::{CheckAccess, SecurityModel, Share, ShareOptions};
use server::{Limits, Session};
use testkit::client::Client;
use testkit::client::Errno;
use wire::{
    P9_LOCK_TYPE_WRLCK, P9_SETATTR_ATIME, P9_SETATTR_ATIME_SET, P9_SETATTR_MTIME, P9_SETATTR_MTIME_SET,
    QTDIR, QTFILE, QTSYMLINK, Tgetlock, Tlock, Tsetattr,
};

use crate::common::*;

/// Bytes of a name, at most.
const NAME_MAX: usize = 255;

/// Fids of the directories that a script works in, and the first that is its own.
const HERE: u32 = 1;
const THERE: u32 = 2;
const OWN: u32 = 10;

/// Makes directories of names of `len` bytes, the first in `top` and each in the one before, until the path from the
/// shared directory is longer than `bytes`; `fid` is the last.
fn dig(f: &mut Fixture, fid: u32, top: &str, len: usize, bytes: usize) {
    f.client.mkdir(0, top, 0o755, gid()).unwrap();
    f.client.walk_all(0, fid, &[top]).unwrap();
    let name = "d".repeat(len);
    for _ in 0..=bytes / (len + 1) {
        f.client.mkdir(fid, &name, 0o755, gid()).unwrap();
        f.client.walk_all(fid, fid, &[&name]).unwrap();
    }
}

/// What a script saw, a line for each answer, without what differs between two directories.
struct Script<'f> {
    f: &'f mut Fixture,
    seen: Vec<String>,
}

impl Script<'_> {
    fn say(&mut self, what: &str, answer: impl Debug) {
        self.seen.push(format!("{what}: {answer:?}"));
    }

    /// The attributes of `fid`.
    fn stat(&mut self, what: &str, fid: u32) {
        let answer = self.f.client.stat(fid).map(|a| {
            let size = if a.mode & libc::S_IFMT == libc::S_IFDIR {
                0
            } else {
                a.size
            };
            let mode = format!("{:o}", a.mode);
            let kind = match a.mode & libc::S_IFMT {
                libc::S_IFDIR => QTDIR,
                libc::S_IFLNK => QTSYMLINK,
                _ => QTFILE,
            };
            assert_eq!(a.qid.kind, kind, "{what}");
            (mode, a.uid, a.gid, a.nlink, a.rdev, size)
        });
        self.say(what, answer);
    }

    /// What `name` in `dir` is for who looks it up anew.
    fn look(&mut self, dir: u32, name: &str) {
        let short = &name[..name.len().min(20)];
        let walked = self.f.client.walk_all(dir, OWN + 9, &[name]).map(|qid| qid.kind);
        let found = walked.is_ok();
        self.say(&format!("walk {short}"), walked);
        if found {
            self.stat(&format!("stat {short}"), OWN + 9);
            let target = self.f.client.readlink(OWN + 9);
            self.say(&format!("readlink {short}"), target);
            self.f.client.clunk(OWN + 9).unwrap();
        }
    }

    /// The listing of `dir`, which agrees with the attributes of what is in it.
    fn list(&mut self, dir: u32) {
        self.f.client.clone_fid(dir, OWN + 8).unwrap();
        self.f.client.lopen(OWN + 8, O_RDONLY).unwrap();
        let mut entries = self.f.client.list(OWN + 8, 8192).unwrap();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries.iter().filter(|e| e.name != b"." && e.name != b"..") {
            let walked = self.f.client.walk_all(dir, OWN + 9, &[&entry.name]).unwrap();
            let stat = self.f.client.stat(OWN + 9).unwrap();
            let kind = u32::from(entry.kind) << 12;
            assert_eq!(kind, stat.mode & libc::S_IFMT, "{}", entry.name.escape_ascii());
            assert_eq!((walked.path, walked.kind), (stat.qid.path, stat.qid.kind));
            assert_eq!((entry.qid.path, entry.qid.kind), (stat.qid.path, stat.qid.kind));
            self.f.client.clunk(OWN + 9).unwrap();
        }
        self.f.client.clunk(OWN + 8).unwrap();
        let names: Vec<_> = entries.iter().map(|e| (e.name.len(), e.kind)).collect();
        self.say("list", names);
    }
}

/// Every operation, in and between the directories of the fids `HERE` and `THERE`, which are left as they were.
fn script(f: &mut Fixture) -> Vec<String> {
    let mut s = Script { f, seen: Vec::new() };
    let long = "l".repeat(NAME_MAX);
    let mut clunk = Vec::new();

    for (at, name) in ["sub", &long].into_iter().enumerate() {
        let made = s.f.client.mkdir(HERE, name, 0o2751, gid());
        s.say("mkdir", made.map(|qid| qid.kind));
        s.look(HERE, name);
        let removed = s.f.client.unlinkat(HERE, name, 0x200);
        s.say("rmdir", (at, removed));
    }
    let too_long = s.f.client.mkdir(HERE, "l".repeat(NAME_MAX + 1), 0o755, gid());
    s.say("mkdir of 256 bytes", too_long);
    let made = s.f.client.mkdir(HERE, "sub", 0o700, gid());
    s.say("mkdir", made.map(|qid| qid.kind));

    // Symlinks, short and of the longest targets.
    for (name, len) in [("symlink", 6), ("longest", 4095), ("beyond", 4096)] {
        let made = s.f.client.symlink(HERE, name, vec![b't'; len], gid());
        s.say(name, made.map(|qid| qid.kind));
        s.look(HERE, name);
    }
    for (name, mode, device) in [
        ("fifo", libc::S_IFIFO | 0o640, (0, 0)),
        ("socket", libc::S_IFSOCK | 0o600, (0, 0)),
        ("char", libc::S_IFCHR | 0o666, (1, 3)),
        ("block", libc::S_IFBLK | 0o660, (8, 1)),
        ("regular", libc::S_IFREG | 0o444, (0, 0)),
    ] {
        let made = s.f.client.mknod(HERE, name, mode, device, gid());
        s.say(name, made.map(|qid| qid.kind));
        s.look(HERE, name);
    }
    s.list(HERE);

    // A file, open all the time.
    let open = OWN;
    s.f.client.clone_fid(HERE, open).unwrap();
    let created = s.f.client.lcreate(open, &long, O_RDWR, 0o640, gid());
    s.say("lcreate", created.map(|r| r.qid.kind));
    clunk.push(open);
    let wrote = s.f.client.write(open, 0, b"some data");
    s.say("write", wrote);
    let (file, dir) = (OWN + 1, OWN + 2);
    s.f.client.walk_all(HERE, file, &[&long]).unwrap();
    s.f.client.walk_all(HERE, dir, &["sub"]).unwrap();
    clunk.extend([file, dir]);
    for fid in [open, file, dir] {
        let done = s.f.client.chmod(fid, 0o751);
        s.say("chmod", done);
        let done = s.f.client.chown(fid, 1000, 1001);
        s.say("chown", done);
        let done = s.f.client.setattr(&Tsetattr {
            fid,
            valid: P9_SETATTR_ATIME | P9_SETATTR_ATIME_SET | P9_SETATTR_MTIME | P9_SETATTR_MTIME_SET,
            atime_sec: 1_000_000_000,
            mtime_sec: 2_000_000_000,
            ..Tsetattr::default()
        });
        s.say("utimes", done);
        let times = s.f.client.stat(fid).map(|a| (a.atime_sec, a.mtime_sec));
        s.say("times", times);
        s.stat("changed", fid);
    }
    let done = s.f.client.truncate(file, 4);
    s.say("truncate", done);
    let read = s.f.client.read(open, 0, 100);
    s.say("read", read);
    for flags in [O_RDONLY, O_RDWR | O_TRUNC, O_WRONLY | O_APPEND] {
        s.f.client.walk_all(HERE, OWN + 3, &[&long]).unwrap();
        let opened = s.f.client.lopen(OWN + 3, flags).map(|r| r.qid.kind);
        let wrote = s.f.client.write(OWN + 3, 0, b"more");
        let read = s.f.client.read(OWN + 3, 0, 100);
        s.say("open", (opened, wrote, read));
        s.stat("open", OWN + 3);
        s.f.client.clunk(OWN + 3).unwrap();
    }
    for fid in [open, file] {
        let synced = s.f.client.fsync(fid, 0);
        let room = s.f.client.statfs(fid).map(|r| (r.bsize, r.namelen));
        s.say("fsync, statfs", (synced, room));
    }
    let lock = Tlock {
        fid: open,
        kind: P9_LOCK_TYPE_WRLCK,
        flags: 0,
        start: 0,
        length: 10,
        proc_id: 1,
        client_id: b"guest",
    };
    let locked = s.f.client.lock(&lock);
    let held = s.f.client.getlock(&Tgetlock {
        fid: open,
        kind: P9_LOCK_TYPE_WRLCK,
        start: 0,
        length: 1,
        proc_id: 2,
        client_id: b"guest",
    });
    s.say("lock", (locked, held));

    // Xattrs and ACLs: a list of names, the longest names, the largest values.
    let acl: &[u8] = &[
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 232, 3, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
        16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    for fid in [open, file, dir] {
        let longest = format!("user.{}", "x".repeat(250));
        let beyond = format!("user.{}", "x".repeat(251));
        for (name, value) in [
            ("user.small", &b"value"[..]),
            ("user.empty", b""),
            (&longest, b"v"),
            (&beyond, b"v"),
            ("user.large", &[7; 65536]),
            ("user.beyond", &[7; 65537]),
            ("security.x", b"x"),
            ("trusted.x", b"x"),
            ("system.posix_acl_access", acl),
            ("system.posix_acl_default", acl),
        ] {
            let short = &name[..name.len().min(30)];
            let set = s.f.client.setxattr(fid, OWN + 7, name, value, 0);
            let got =
                s.f.client
                    .getxattr(fid, OWN + 7, name)
                    .map(|got| (got.len(), got == value));
            s.say(short, (set, got));
            let _ = s.f.client.clunk(OWN + 7);
        }
        let listed = s.f.client.getxattr(fid, OWN + 7, "").map(|list| {
            let mut names: Vec<_> = list.split(|&b| b == 0).map(<[u8]>::to_vec).collect();
            names.sort();
            names
        });
        s.say("listxattr", listed);
        let removed = s.f.client.setxattr(fid, OWN + 7, "user.small", b"", 2);
        s.say("removexattr", removed);
        s.stat("with an ACL", fid);
    }

    // Names: links, renames within and across, over something, and what open files show of them.
    let linked = s.f.client.link(THERE, file, "link");
    s.say("link", linked);
    s.look(THERE, "link");
    let done = s.f.client.chmod(file, 0o604);
    s.say("chmod", done);
    s.look(THERE, "link");
    for (from, old, to, new) in [
        (HERE, "symlink", HERE, "renamed"),
        (HERE, "renamed", THERE, "across"),
        (HERE, "fifo", THERE, "fifo"),
        (HERE, "longest", THERE, "fifo"),
        (HERE, "sub", THERE, "sub"),
        (HERE, &long, THERE, &long),
        (THERE, "nothing", HERE, "nothing"),
    ] {
        let renamed = s.f.client.renameat(from, old, to, new);
        s.say("renameat", renamed);
        s.look(to, new);
    }
    for fid in [open, file, dir] {
        s.stat("renamed", fid);
        let done = s.f.client.chmod(fid, 0o711);
        s.say("chmod", done);
        s.stat("renamed", fid);
    }
    s.list(HERE);
    s.list(THERE);
    let linked =
        s.f.client
            .walk_all(THERE, OWN + 3, &["across"])
            .and_then(|_| s.f.client.link(HERE, OWN + 3, "both"));
    s.say("link of a symlink", linked);
    s.look(HERE, "both");
    let renamed = s.f.client.rename(OWN + 3, HERE, "third");
    s.say("rename", renamed);
    s.f.client.clunk(OWN + 3).unwrap();

    // Removal, with the file open.
    for (at, name, flags) in [
        (THERE, &long[..], 0),
        (THERE, "sub", 0x200),
        (THERE, "fifo", 0),
        (THERE, "across", 0),
        (HERE, "third", 0),
        (HERE, "both", 0),
        (HERE, "socket", 0),
        (HERE, "char", 0),
        (HERE, "block", 0),
        (HERE, "regular", 0),
    ] {
        let removed = s.f.client.unlinkat(at, name, flags);
        s.say(&format!("unlink {}", &name[..name.len().min(20)]), removed);
        s.stat("removed", open);
    }
    s.look(THERE, "link");
    s.f.client.walk_all(THERE, OWN + 3, &["link"]).unwrap();
    let removed = s.f.client.remove(OWN + 3);
    s.say("remove", removed);
    s.stat("removed", open);
    let done = s.f.client.chmod(open, 0o600);
    s.say("chmod", done);
    s.stat("removed", open);
    s.list(HERE);
    s.list(THERE);
    for fid in clunk {
        s.f.client.clunk(fid).unwrap();
    }
    s.seen
}

/// The script right below the root and beyond PATH_MAX, with names and paths of several lengths.
fn compare(f: &mut Fixture, what: &str) {
    f.client.mkdir(0, "here", 0o755, gid()).unwrap();
    f.client.mkdir(0, "there", 0o755, gid()).unwrap();
    f.client.walk_all(0, HERE, &["here"]).unwrap();
    f.client.walk_all(0, THERE, &["there"]).unwrap();
    let near = script(f);
    for fid in [HERE, THERE] {
        f.client.clunk(fid).unwrap();
    }
    for (len, here, there) in [
        (100, 4500, 4200),
        (NAME_MAX, 9000, 4200),
        (100, 4500, 0),
        (100, 0, 4500),
    ] {
        dig(f, HERE, &format!("from {len}, {here}, {there}"), len, here);
        dig(f, THERE, &format!("to {len}, {here}, {there}"), len, there);
        let far = script(f);
        for (near, far) in near.iter().zip(&far) {
            assert_eq!(near, far, "{what}, names of {len}, {here} and {there} bytes deep");
        }
        assert_eq!(near.len(), far.len());
        for fid in [HERE, THERE] {
            f.client.clunk(fid).unwrap();
        }
    }
}

#[test]
fn what_is_beyond_path_max_is_as_anywhere() {
    for model in MODELS {
        compare(
            &mut Fixture::with(model, Limits::default()),
            &format!("{model:?}"),
        );
    }
}

#[test]
fn what_is_beyond_path_max_and_was_let_go_is_as_anywhere() {
    let limits = Limits {
        fd_budget: 1,
        ..Limits::default()
    };
    for model in MODELS {
        compare(&mut Fixture::with(model, limits), &format!("{model:?}, evicted"));
    }
}

#[test]
fn what_is_beyond_path_max_is_as_anywhere_for_the_hosts_users() {
    for model in [SecurityModel::Passthrough, SecurityModel::Squash] {
        let dir = tempfile::tempdir().unwrap();
        let options = ShareOptions {
            check_access: CheckAccess::Host,
            ..ShareOptions::new(dir.path(), model)
        };
        let share = Arc::new(Share::open(&options).unwrap());
        let mut f = Fixture::on(dir, share, Limits::default());
        f.client.clunk(0).unwrap();
        f.client.attach(0, 0).unwrap();
        compare(&mut f, &format!("{model:?}, check-access host"));
    }
}

/// Each length around PATH_MAX, one by one, of an object and of its metadata's path.
#[test]
fn types_are_right_at_every_length_around_path_max() {
    let mut f = Fixture::with(SecurityModel::MappedFile, Limits::default());
    dig(&mut f, HERE, "top", 100, 3700);
    for len in 1..=250 {
        // The directory's path takes all the lengths that there are, and with it those of what is in it.
        let dir = "d".repeat(len);
        f.client.mkdir(HERE, &dir, 0o750, gid()).unwrap();
        f.client.walk_all(HERE, THERE, &[&dir]).unwrap();
        for name in ["s".to_owned(), "s".repeat(130)] {
            let made = f.client.symlink(THERE, &name, "target", gid()).unwrap();
            assert_eq!(made.kind, QTSYMLINK, "{len}");
            f.client.walk_all(THERE, OWN, &[&name]).unwrap();
            assert_eq!(f.client.stat(OWN).unwrap().mode, 0o120777, "{len}");
            assert_eq!(f.client.readlink(OWN).unwrap(), b"target");
            f.client.clunk(OWN).unwrap();
        }
        assert_eq!(f.client.stat(THERE).unwrap().mode, 0o40750);
        f.client.clunk(THERE).unwrap();
    }
}

/// What was changed there is written down, for whoever serves the directory next, with or without the right to change it.
#[test]
fn what_is_kept_beyond_path_max_is_there_the_next_time() {
    for model in [SecurityModel::MappedXattr, SecurityModel::MappedFile] {
        let mut f = Fixture::with(model, Limits::default());
        dig(&mut f, HERE, "top", 100, 4500);
        f.client.symlink(HERE, "symlink", "target", gid()).unwrap();
        f.client.mkdir(HERE, "dir", 0o700, gid()).unwrap();
        f.client.walk_all(HERE, OWN, &["dir"]).unwrap();
        f.client.chmod(OWN, 0o1711).unwrap();
        f.client.chown(OWN, 1000, 1001).unwrap();
        let options = ShareOptions {
            readonly: true,
            ..ShareOptions::new(f.dir.path(), model)
        };
        let share = Arc::new(Share::open(&options).unwrap());
        let mut next = Client::mount(
            Backend::new(Arc::new(Session::new(share, Limits::default()))),
            8192,
        )
        .unwrap();
        next.walk_all(0, HERE, &["top"]).unwrap();
        for _ in 0..=4500 / 101 {
            next.walk_all(HERE, HERE, &["d".repeat(100)]).unwrap();
        }
        assert_eq!(next.walk_all(HERE, OWN, &["symlink"]).unwrap().kind, QTSYMLINK);
        assert_eq!(next.readlink(OWN).unwrap(), b"target");
        next.walk_all(HERE, OWN + 1, &["dir"]).unwrap();
        let stat = next.stat(OWN + 1).unwrap();
        assert_eq!((stat.mode, stat.uid, stat.gid), (0o41711, 1000, 1001));
        assert_eq!(next.chmod(OWN + 1, 0o700), Err(Errno::EROFS));
        assert_eq!(next.symlink(HERE, "new", "target", gid()), Err(Errno::EROFS));
    }
}

/// A target goes with its length or not at all.
#[test]
fn a_target_that_the_reply_has_no_room_for_is_not_cut() {
    for model in MODELS {
        let mut f = Fixture::with(model, Limits::default());
        f.client.symlink(0, "longest", vec![b't'; 4095], gid()).unwrap();
        for (msize, whole) in [(4095 + 9, true), (4096, false)] {
            f.client.version(msize).unwrap();
            f.client.attach(0, 0).unwrap();
            f.client.walk_all(0, OWN, &["longest"]).unwrap();
            let target = f.client.readlink(OWN);
            match whole {
                true => assert_eq!(target.map(|target| target.len()), Ok(4095)),
                false => assert_eq!(target, Err(Errno::EMSGSIZE)),
            }
        }
    }
}

/// What the host moves there keeps its place for nobody: the fid shows the host's values, and who looks it up finds it.
#[test]
fn what_the_host_moves_beyond_path_max_is_found_by_its_new_name() {
    let mut f = Fixture::with(SecurityModel::MappedFile, Limits::default());
    dig(&mut f, HERE, "top", 100, 4500);
    f.client.mkdir(HERE, "dir", 0o755, gid()).unwrap();
    f.client.walk_all(HERE, THERE, &["dir"]).unwrap();
    f.client.symlink(THERE, "symlink", "target", gid()).unwrap();
    f.client.walk_all(THERE, OWN, &["symlink"]).unwrap();
    // With the directory: its own notes come along, and the way down to what is in it stays as it was.
    let mut dir = std::os::fd::OwnedFd::from(std::fs::File::open(f.path("top")).unwrap());
    let name = std::ffi::CString::new("d".repeat(100)).unwrap();
    for _ in 0..=4500 / 101 {
        dir = path::open_beneath(dir.as_fd(), &name, libc::O_PATH | libc::O_DIRECTORY, 0).unwrap();
    }
    let dir = dir.as_fd();
    path::rename(dir, c"dir", dir, c"moved", 0).unwrap();
    assert_eq!(f.client.readlink(OWN).unwrap(), b"target");
    assert_eq!(f.client.stat(OWN).unwrap().mode, 0o120777);
    // Alone: the notes stay behind.
    path::rename(dir, c"moved/symlink", dir, c"alone", 0).unwrap();
    assert_eq!(f.client.stat(OWN).unwrap().mode, 0o100600);
    assert_eq!(f.client.readlink(OWN), Err(Errno::EINVAL));
    assert_eq!(f.client.walk_all(HERE, OWN + 1, &["alone"]).unwrap().kind, QTFILE);
}
