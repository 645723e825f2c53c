//! The limits that have options: each with its errno, and room again when something is given back.

use std::fs;

use testkit::{Errno, Machine};
use wire::*;

use crate::program::{Program, answer, frame, host_lock};

fn machine(program: &Program) -> Machine {
    fs::write(program.share().join("file"), "content").expect("write");
    program.boot(4096)
}

#[test]
fn fids() {
    let program = Program::start(&["--max-fids", "100"]);
    let client = &mut machine(&program).client;
    for fid in 1..100 {
        client.clone_fid(0, fid).expect("clone");
    }
    assert_eq!(client.clone_fid(0, 100), Err(Errno::ENFILE));
    assert_eq!(client.walk(0, 100, &["file"]), Err(Errno::ENFILE));
    assert_eq!(client.attach(100, NONUNAME), Err(Errno::ENFILE));
    client.stat(99).expect("the others live on");
    client.clunk(7).expect("clunk");
    client.clone_fid(0, 100).expect("room again");
}

#[test]
fn xattrs() {
    let program = Program::start(&["--max-xattr-fids", "3"]);
    let client = &mut machine(&program).client;
    for fid in 1..=4 {
        client.walk_all(0, fid, &["file"]).expect("walk");
    }
    for fid in 1..=3 {
        client.xattrcreate(fid, "user.a", 1, 0).expect("xattrcreate");
    }
    assert_eq!(client.xattrcreate(4, "user.a", 1, 0), Err(Errno::ENOSPC));
    assert_eq!(client.xattrwalk(4, 5, ""), Err(Errno::ENOSPC));
    client.stat(4).expect("still the file's");
    assert_eq!(client.write(1, 0, b"1"), Ok(1));
    client.clunk(1).expect("set");
    assert_eq!(client.xattrwalk(4, 5, "user.a"), Ok(1));
}

#[test]
fn bytes_of_xattrs() {
    let program = Program::start(&["--max-xattr-fids", "0", "--max-xattr-bytes", "65536"]);
    let client = &mut machine(&program).client;
    for fid in 1..=3 {
        client.walk_all(0, fid, &["file"]).expect("walk");
    }
    client.xattrcreate(1, "user.a", 65_000, 0).expect("xattrcreate");
    assert_eq!(client.xattrcreate(2, "user.b", 1000, 0), Err(Errno::ENOSPC));
    client.xattrcreate(3, "user.c", 536, 0).expect("what is left");
}

#[test]
fn locks() {
    let program = Program::start(&["--max-locks", "10"]);
    let client = &mut machine(&program).client;
    client.walk_all(0, 1, &["file"]).expect("walk");
    client.lopen(1, P9_DOTL_RDWR).expect("open");
    let lock = |start: u64, kind| Tlock {
        fid: 1,
        kind,
        flags: 0,
        start,
        length: 1,
        proc_id: 1,
        client_id: b"guest",
    };
    let mut taken = 0;
    let error = loop {
        match client.lock(&lock(taken * 10, P9_LOCK_TYPE_WRLCK)) {
            Ok(status) => assert_eq!(status, P9_LOCK_SUCCESS),
            Err(error) => break error,
        }
        taken += 1;
        assert!(taken <= 10);
    };
    assert_eq!(error, Errno::ENOLCK);
    // A lock in the middle of another needs room for three, hence one less than it says.
    assert!(taken >= 9);
    assert_eq!(client.lock(&lock(0, P9_LOCK_TYPE_UNLCK)), Ok(P9_LOCK_SUCCESS));
    assert_eq!(client.lock(&lock(1000, P9_LOCK_TYPE_WRLCK)), Ok(P9_LOCK_SUCCESS));
}

/// The kernel sends SIGXFSZ, which ends a process that does not expect it.
#[test]
fn a_file_that_may_not_be_longer_does_not_end_the_program() {
    let program = Program::start_limited("--fsize=10000", &["--log-level", "off"]);
    let client = &mut machine(&program).client;
    client.walk_all(0, 1, &["file"]).expect("walk");
    client.lopen(1, P9_DOTL_RDWR).expect("open");
    // An error, although two bytes fit: see `server/io.rs`.
    assert_eq!(client.write(1, 9998, b"more"), Err(Errno::EFBIG));
    assert_eq!(client.write(1, 10_000, b"more"), Err(Errno::EFBIG));
    assert_eq!(client.truncate(1, 10_001), Err(Errno::EFBIG));
    assert_eq!(client.stat(1).expect("getattr").size, 10_000);
}

#[test]
fn requests_and_lock_waiters() {
    let program = Program::start(&["--max-requests", "6", "--max-lock-waiters", "2"]);
    let mut machine = machine(&program);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(program.share().join("file"))
        .expect("open");
    assert!(host_lock(&file, libc::F_WRLCK, 0, 0));
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, P9_DOTL_RDWR).expect("open");
    let transport = machine.client.transport();
    let lock = |tag: u16| Tlock {
        fid: 1,
        kind: P9_LOCK_TYPE_WRLCK,
        flags: P9_LOCK_FLAGS_BLOCK,
        start: tag.into(),
        length: 1,
        proc_id: tag.into(),
        client_id: b"guest",
    };
    let status = |reply: &[u8], tag: u16| match answer(reply, tag) {
        Rmessage::Lock(lock) => lock.status,
        other => panic!("{other:?}"),
    };
    // More than may be at work at a time.
    let mut waiting: Vec<(u16, u16)> = (0..40)
        .map(|tag| (tag, transport.send(&frame(lock(tag), tag), &[], 4096)))
        .collect();
    for _ in 2..40 {
        let (token, reply) = transport.next_reply();
        let at = waiting.iter().position(|asked| asked.1 == token).expect("asked");
        let (tag, _) = waiting.swap_remove(at);
        assert_eq!(status(&reply, tag), P9_LOCK_BLOCKED);
    }
    machine.client.stat(1).expect("the others go on");
    assert!(host_lock(&file, libc::F_UNLCK, 0, 0));
    for (tag, token) in waiting {
        let reply = machine.client.transport().wait(token);
        assert_eq!(status(&reply, tag), P9_LOCK_SUCCESS);
    }
}

/// Two descriptors for each open file, three with a lock, and the rest is left to the connection.
#[test]
fn open_files() {
    const LIMIT: usize = 512;
    let program = Program::start(&["--rlimit-nofile", &LIMIT.to_string()]);
    for at in 0..LIMIT {
        fs::write(program.share().join(format!("file{at}")), "content").expect("write");
    }
    let mut machine = program.boot(4096);
    let client = &mut machine.client;
    let lock = |fid, kind| Tlock {
        fid,
        kind,
        flags: 0,
        start: 0,
        length: 0,
        proc_id: 1,
        client_id: b"guest",
    };
    let mut open = |locked: bool| {
        let mut opened = 0;
        loop {
            let fid = opened + 1;
            let result = client
                .walk_all(0, fid, &[format!("file{fid}")])
                .and_then(|_| client.lopen(fid, P9_DOTL_RDWR));
            match result {
                Ok(_) => opened = fid,
                Err(error) => {
                    assert_eq!(error, Errno::EMFILE);
                    client.stat(fid).expect("still what it was");
                    client.clunk(fid).expect("clunk");
                    break;
                }
            }
            if locked {
                match client.lock(&lock(fid, P9_LOCK_TYPE_WRLCK)) {
                    Ok(status) => assert_eq!(status, P9_LOCK_SUCCESS),
                    Err(error) => assert_eq!(error, Errno::ENOLCK),
                }
            }
        }
        assert!(program.descriptors() < LIMIT - 32, "{}", program.descriptors());
        // All else goes on.
        client.mkdir(0, "made", 0o755, 0).expect("mkdir");
        client.unlinkat(0, "made", 0x200).expect("rmdir");
        client.walk_all(0, 9000, &["file400"]).expect("walk");
        client.stat(9000).expect("getattr");
        assert_eq!(client.read(opened, 0, 10).expect("read"), b"content");
        let mut create = |fid: u32| {
            client.clone_fid(0, fid).expect("clone");
            client.lcreate(fid, format!("new{fid}"), P9_DOTL_RDWR, 0o600, 0)
        };
        // What is not open makes room for a few.
        let refused = (9001..9010).find_map(|fid| create(fid).err().map(|error| (fid, error)));
        let (refused, error) = refused.expect("an end");
        assert_eq!(error, Errno::EMFILE);
        assert!(!program.share().join(format!("new{refused}")).exists());
        for fid in [1, 2] {
            client.clunk(fid).expect("clunk");
        }
        client
            .lcreate(refused, "room", P9_DOTL_RDWR, 0o600, 0)
            .expect("room again");
        for fid in 9000..=refused {
            client.clunk(fid).expect("clunk");
        }
        for fid in 9001..refused {
            client.unlinkat(0, format!("new{fid}"), 0).expect("unlink");
        }
        client.unlinkat(0, "room", 0).expect("unlink");
        for fid in 3..=opened {
            client.clunk(fid).expect("clunk");
        }
        opened
    };
    let plain = open(false);
    assert!((190..=216).contains(&plain), "{plain}");
    let locked = open(true);
    assert!((128..=150).contains(&locked), "{locked}");
    assert_eq!(open(false), plain, "nothing is lost");
}
