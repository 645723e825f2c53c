//! The dearest requests that a guest can make, of every message: how long what is small and ready waits behind one of them,
//! and how long the front-end's own messages do while the ring is full of them.
//!
//! docs/limits.md states 100 ms for both on a machine like the one it was measured on. Here only what is twenty times as
//! much fails: before there were bounds it was tens of seconds and more.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::Machine;
use testkit::vhost_user::Code;
use wire::*;

use crate::program::{Program, number};

const TOO_LONG: Duration = Duration::from_secs(2);

/// Requests of a kind in the ring at a time.
const MANY: usize = 48;

/// Fids of the set-ups' own, and those that requests may make.
const DEEP: u32 = 1;
const TOP: u32 = 2;
const CROWD: u32 = 3;
const LISTED: u32 = 4;
const FILE: u32 = 5;
const LOCKED: u32 = 6;
const LINK: u32 = 7;
const XATTRS: u32 = 8;
const LONG: u32 = 9;
const FRESH: u32 = 1_000_000;

fn frame<'a>(message: impl Into<Tmessage<'a>>, tag: u16) -> Vec<u8> {
    let mut bytes = vec![0; 16 * 1024];
    let len = message.into().encode(tag, &mut bytes).expect("it fits");
    bytes.truncate(len);
    bytes
}

struct Bounds {
    machine: Machine,
    worst: (Duration, Duration, Duration),
}

impl Bounds {
    /// Has the device work on what `make` gives, one and then many at a time.
    fn of<'a, M: Into<Tmessage<'a>>>(&mut self, what: &str, mut make: impl FnMut(u32) -> M) {
        self.with_reply(what, 4096, |number, tag| frame(make(number), tag));
    }

    fn with_reply(&mut self, what: &str, cap: usize, mut make: impl FnMut(u32, u16) -> Vec<u8>) {
        let small = |tag| frame(Tgetattr { fid: 0, mask: 0x7ff }, tag);
        let frontend = &self.machine.frontend;
        let transport = self.machine.client.transport();
        // Behind one of them.
        let begun = Instant::now();
        let first = transport.stage(&make(0, 1), &[], cap);
        let behind = transport.send(&small(2), &[], 4096);
        transport.wait(behind);
        let waited = begun.elapsed();
        transport.wait(first);
        let one = begun.elapsed();
        // While there are many.
        let mut tokens: Vec<u16> = (1..=MANY as u32)
            .map(|number| transport.stage(&make(number, number as u16), &[], cap))
            .collect();
        let begun = Instant::now();
        tokens.push(transport.send(&small(1000), &[], 4096));
        frontend
            .socket()
            .vring_state(Code::SetVringEnable, 1, true)
            .expect("SET_VRING_ENABLE");
        let control = begun.elapsed();
        for token in tokens {
            transport.wait(token);
        }
        let many = begun.elapsed();
        println!(
            "{what:48} behind one {:7.2} ms, itself {:7.2}; {MANY} of them {:7.1}, the front-end {:7.2} ms",
            waited.as_secs_f64() * 1e3,
            one.as_secs_f64() * 1e3,
            many.as_secs_f64() * 1e3,
            control.as_secs_f64() * 1e3,
        );
        assert!(waited < TOO_LONG, "{what}: {waited:?}");
        assert!(control < TOO_LONG, "{what}: {control:?}");
        self.worst.0 = self.worst.0.max(waited);
        self.worst.1 = self.worst.1.max(control);
        self.worst.2 = self.worst.2.max(one);
    }
}

/// All that requests are made dear with.
fn prepare(program: &Program, mode: &str) -> Bounds {
    let share = program.share();
    let entries = number("BOUNDS_ENTRIES", 20_000);
    let levels = number("BOUNDS_LEVELS", 5_000);
    let locks = 4_000;
    // In the mapped models the directory is the program's user's.
    let user = nix::unistd::geteuid().as_raw();
    chown(&share, Some(user), Some(user)).expect("chown");
    fs::create_dir(share.join("crowd")).expect("mkdir");
    for at in 0..entries {
        File::create(share.join(format!("crowd/{at}"))).expect("create");
    }
    let mut machine = program.boot(512 << 10);
    let gid = fs::metadata(&share).expect("stat").gid();
    let client = &mut machine.client;
    // A tree as deep as the guest cares to make it.
    client.mkdir(0, "top", 0o755, gid).expect("mkdir");
    client.walk_all(0, TOP, &["top"]).expect("walk");
    client.clone_fid(TOP, DEEP).expect("clone");
    for _ in 0..levels {
        client.mkdir(DEEP, "d", 0o755, gid).expect("mkdir");
        client.walk_all(DEEP, DEEP, &["d"]).expect("walk");
    }
    client.walk_all(0, CROWD, &["crowd"]).expect("walk");
    client.clone_fid(CROWD, LISTED).expect("clone");
    client.lopen(LISTED, P9_DOTL_RDONLY).expect("open");
    for fid in [FILE, LOCKED] {
        client.clone_fid(0, fid).expect("clone");
        client
            .lcreate(fid, format!("file{fid}"), P9_DOTL_RDWR, 0o644, gid)
            .expect("create");
    }
    client.write(FILE, 0, &vec![7; 500_000]).expect("write");
    client.symlink(0, "link", "t".repeat(4000), gid).expect("symlink");
    client.walk_all(0, LINK, &["link"]).expect("walk");
    // Very many ranges, most of them of owners of their own.
    let mut lock = |at: u64| {
        let message = Tlock {
            fid: LOCKED,
            kind: P9_LOCK_TYPE_RDLCK,
            flags: 0,
            start: 2 * at,
            length: u64::from(at.is_multiple_of(2)),
            proc_id: at as u32,
            client_id: b"guest",
        };
        assert_eq!(client.lock(&message), Ok(P9_LOCK_SUCCESS));
    };
    (0..locks).for_each(&mut lock);
    client.walk_all(0, XATTRS, &["crowd", "0"]).expect("walk");
    for at in 0..40 {
        let name = format!("user.{at:0>200}");
        if client.setxattr(XATTRS, FRESH, &name, b"v", 0).is_err() {
            break;
        }
    }
    // Directories of long names in each other.
    client.clone_fid(0, LONG).expect("clone");
    for _ in 0..15 {
        let name = "l".repeat(255);
        client.mkdir(LONG, &name, 0o755, gid).expect("mkdir");
        client.walk_all(LONG, LONG, &[&name]).expect("walk");
    }
    println!("{mode}: {entries} entries, {levels} levels, {locks} ranges");
    Bounds {
        machine,
        worst: Default::default(),
    }
}

fn every_message(mode: &str) {
    let program = Program::start(&["--security-model", mode]);
    let mut bounds = prepare(&program, mode);
    let b = &mut bounds;
    let long = "l".repeat(255);
    let deep_names = [b".." as &[u8]; 16];
    let long_names = [long.as_bytes(); 16];
    let fresh = |number: u32| FRESH + number;
    b.of("Tgetattr", |_| Tgetattr {
        fid: DEEP,
        mask: 0x3fff,
    });
    b.of("Tattach", |n| Tattach {
        fid: fresh(n),
        afid: NOFID,
        uname: b"",
        aname: b"",
        n_uname: 0,
    });
    b.of("Twalk of sixteen ..", |n| Twalk {
        fid: DEEP,
        newfid: fresh(100 + n),
        names: Names::new(&deep_names),
    });
    b.of("Twalk of sixteen long names", |n| Twalk {
        fid: 0,
        newfid: fresh(200 + n),
        names: Names::new(&long_names),
    });
    b.of("Tstatfs", |_| Tstatfs { fid: DEEP });
    b.of("Treadlink", |_| Treadlink { fid: LINK });
    b.of("Tmkdir", |n| Tmkdir {
        dfid: CROWD,
        name: [b"mkdir", n.to_string().as_bytes()].concat().leak(),
        mode: 0o755,
        gid: 0,
    });
    b.of("Tmkdir in the depth", |n| Tmkdir {
        dfid: DEEP,
        name: [b"mkdir", n.to_string().as_bytes()].concat().leak(),
        mode: 0o755,
        gid: 0,
    });
    b.of("Twalk in the depth", |n| Twalk {
        fid: DEEP,
        newfid: fresh(400 + n),
        names: Names::new(&[b"mkdir1"]),
    });
    b.of("Tmknod", |n| Tmknod {
        dfid: CROWD,
        name: [b"mknod", n.to_string().as_bytes()].concat().leak(),
        mode: libc::S_IFIFO | 0o644,
        major: 0,
        minor: 0,
        gid: 0,
    });
    b.of("Tsymlink", |n| Tsymlink {
        dfid: CROWD,
        name: [b"sym", n.to_string().as_bytes()].concat().leak(),
        target: &[b't'; 4000],
        gid: 0,
    });
    b.of("Tlink", |n| Tlink {
        dfid: CROWD,
        fid: FILE,
        name: [b"hard", n.to_string().as_bytes()].concat().leak(),
    });
    b.of("Trename of the top of a deep tree", |n| Trename {
        fid: TOP,
        dfid: 0,
        name: if n % 2 == 0 { b"above" } else { b"top" },
    });
    b.of("Trenameat into the depth", |n| Trenameat {
        olddirfid: CROWD,
        oldname: [b"mkdir", n.to_string().as_bytes()].concat().leak(),
        newdirfid: DEEP,
        newname: [b"m", n.to_string().as_bytes()].concat().leak(),
    });
    b.of("Tunlinkat", |n| Tunlinkat {
        dirfd: CROWD,
        name: [b"hard", n.to_string().as_bytes()].concat().leak(),
        flags: 0,
    });
    b.of("Txattrwalk, all names", |n| Txattrwalk {
        fid: XATTRS,
        newfid: fresh(300 + n),
        name: b"",
    });
    b.of("Txattrcreate", |n| Txattrcreate {
        fid: fresh(n),
        name: b"user.large",
        size: 65536,
        flags: 0,
    });
    b.of("Tsetattr", |n| Tsetattr {
        fid: FILE,
        valid: P9_SETATTR_SIZE,
        mode: 0,
        uid: 0,
        gid: 0,
        size: u64::from(n % 2) << 30,
        atime_sec: 0,
        atime_nsec: 0,
        mtime_sec: 0,
        mtime_nsec: 0,
    });
    b.of("Tfsync", |_| Tfsync {
        fid: FILE,
        datasync: 0,
    });
    b.with_reply("Tread of 500 KiB", 500_011, |_, tag| {
        frame(
            Tread {
                fid: FILE,
                offset: 0,
                count: 500_000,
            },
            tag,
        )
    });
    b.with_reply("Treaddir of 500 KiB", 500_011, |_, tag| {
        frame(
            Treaddir {
                fid: LISTED,
                offset: 0,
                count: 500_000,
            },
            tag,
        )
    });
    b.with_reply("Treaddir from nowhere", 500_011, |n, tag| {
        frame(
            Treaddir {
                fid: LISTED,
                offset: 0x1234_5678_9abc + u64::from(n) * 977,
                count: 500_000,
            },
            tag,
        )
    });
    b.of("Twrite", |_| Twrite {
        fid: FILE,
        offset: 0,
        count: 0,
        data: b"",
    });
    let lock = |n: u32, kind, start: u64, length| Tlock {
        fid: LOCKED,
        kind,
        flags: 0,
        start,
        length,
        proc_id: 100_000 + n,
        client_id: b"guest",
    };
    b.of("Tlock of the whole file", |n| lock(n, P9_LOCK_TYPE_RDLCK, 0, 0));
    b.of("Tlock that unlocks it", |n| lock(n, P9_LOCK_TYPE_UNLCK, 0, 0));
    b.of("Tlock of the last byte", |n| {
        lock(n, P9_LOCK_TYPE_WRLCK, 1 << 40, 1)
    });
    b.of("Tgetlock", |n| Tgetlock {
        fid: LOCKED,
        kind: P9_LOCK_TYPE_WRLCK,
        start: 0,
        length: 0,
        proc_id: n,
        client_id: &[b'c'; 4000],
    });
    b.of("Tflush", |n| Tflush { oldtag: n as u16 });
    b.of("Tlopen", |n| Tlopen {
        fid: fresh(200 + n),
        flags: P9_DOTL_RDONLY,
    });
    b.of("Tlcreate", |n| Tlcreate {
        fid: fresh(100 + n),
        name: b"new",
        flags: P9_DOTL_RDWR,
        mode: 0o644,
        gid: 0,
    });
    b.of("Tclunk of xattrs", |n| Tclunk { fid: fresh(n) });
    b.of("Tremove", |n| Tremove { fid: fresh(100 + n) });
    b.of("an unknown message", |_| Tmessage::Unknown { kind: 99 });
    // What one message gives back: the locks of a fid, a tree's directories, all that there is.
    b.of("Tclunk of the locks", |n| Tclunk {
        fid: if n == 0 { LOCKED } else { fresh(n) },
    });
    b.of("Tclunk of the depth", |n| Tclunk {
        fid: if n == 0 { DEEP } else { fresh(n) },
    });
    let fids = number("BOUNDS_FIDS", 30_000);
    for fid in 0..fids {
        // These met in one bucket of 32,768 when the hash was everybody's to know.
        b.machine
            .client
            .clone_fid(0, 2_000_000 + fid as u32)
            .expect("clone");
    }
    b.of("Tversion", |_| Tversion {
        msize: 8192,
        version: b"9P2000.L",
    });
    println!(
        "{mode}: behind one request {:.1} ms at most, the front-end {:.1} ms",
        b.worst.0.as_secs_f64() * 1e3,
        b.worst.1.as_secs_f64() * 1e3
    );
    // std's own removal goes down by recursion.
    let removed = Command::new("rm")
        .arg("-rf")
        .arg(program.share().join("top"))
        .arg(program.share().join("above"))
        .status();
    assert!(removed.is_ok_and(|status| status.success()));
}

#[test]
fn no_message_keeps_others_waiting() {
    every_message("passthrough");
}

#[test]
fn nor_does_one_in_the_mapped_models() {
    every_message("mapped-xattr");
    every_message("mapped-file");
}
