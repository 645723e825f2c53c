//! Several threads at one session, as the queue thread and the pool are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use host::SecurityModel;
use server::{How, Limits, Session};
use testkit::client::{Client, Errno};

use crate::common::*;

const THREADS: u32 = 4;

/// A client that joins a session that is there already.
fn join(session: &Arc<Session>, how: How) -> Client<Backend> {
    let mut backend = Backend::new(session.clone());
    backend.how = how;
    Client::new(backend)
}

fn how(thread: u32) -> How {
    if thread.is_multiple_of(2) {
        How::Inline
    } else {
        How::Blocking
    }
}

#[test]
fn each_gets_its_own_data() {
    let limits = Limits {
        fd_budget: 24,
        ..Limits::default()
    };
    let f = Fixture::with(SecurityModel::Squash, limits);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let session = &f.session;
            scope.spawn(move || {
                let mut client = join(session, how(thread));
                let base = 100 * (thread + 1);
                for round in 0..150u32 {
                    let name = format!("{thread}-{}", round % 7);
                    let data = format!("{thread}:{round}").repeat(500);
                    client.clone_fid(0, base).unwrap();
                    client
                        .lcreate(base, &name, O_RDWR | O_TRUNC, 0o644, gid())
                        .unwrap();
                    assert_eq!(
                        client.write(base, 0, data.as_bytes()).unwrap() as usize,
                        data.len()
                    );
                    // Idle fids, more than there are descriptors for.
                    for at in 1..10 {
                        client.walk_all(0, base + at, &[&name]).unwrap();
                    }
                    for at in 1..10 {
                        assert_eq!(client.stat(base + at).unwrap().size as usize, data.len());
                        client.lopen(base + at, O_RDONLY).unwrap();
                        assert_eq!(client.read(base + at, 0, 100_000).unwrap(), data.as_bytes());
                        client.clunk(base + at).unwrap();
                    }
                    client.clunk(base).unwrap();
                    client.unlinkat(0, &name, 0).unwrap();
                }
            });
        }
    });
    assert_eq!(f.session.usage().fids, 1);
    assert_eq!(f.session.usage().nodes, 1);
}

/// Threads that use and give back one another's fids: answers may be errors, but only honest ones.
#[test]
fn shared_fids_may_go_at_any_time() {
    let limits = Limits {
        fd_budget: 6,
        ..Limits::default()
    };
    let f = Fixture::with(SecurityModel::Squash, limits);
    for at in 0..10 {
        f.write(&at.to_string(), at.to_string().repeat(1000));
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let session = &f.session;
            scope.spawn(move || {
                let mut client = join(session, how(thread));
                let honest = |error: Errno| {
                    assert!(
                        matches!(error, Errno::ENOENT | Errno::EINVAL | Errno::EBADF),
                        "{error}"
                    );
                };
                let mut seed = 12345 + thread;
                for _ in 0..6000 {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let (fid, file) = (1 + (seed >> 8) % 8, (seed >> 16) % 10);
                    let name = file.to_string();
                    let result = match (seed >> 24) % 8 {
                        0 | 1 => client.walk(0, fid, &[&name]).map(drop),
                        2 => client.lopen(fid, O_RDWR).map(drop),
                        3 => client.read(fid, 0, 5000).map(|data| {
                            assert!(data.len() == 1000 && data.iter().all(|&b| b == data[0]));
                        }),
                        4 => client.stat(fid).map(|attr| assert_eq!(attr.size, 1000)),
                        5 => client.clone_fid(fid, 1 + (seed >> 4) % 8),
                        6 => client
                            .xattrwalk(fid, 20 + thread, "")
                            .and_then(|_| client.clunk(20 + thread)),
                        _ => client.clunk(fid),
                    };
                    if let Err(error) = result {
                        honest(error);
                    }
                }
            });
        }
    });
    f.session.reset();
    assert_eq!(f.session.usage(), server::Usage::default());
}

/// Guests without a write-back cache, two processes each, and the host append to one file. Each thinks that it knows
/// where the end is, and is wrong most of the time.
#[test]
fn appenders_lose_no_line() {
    const LINES: usize = 200;
    let f = Fixture::with(SecurityModel::Squash, Limits::default());
    f.write("log", "");
    let sessions = [f.session.clone(), f.another().into_transport().session];
    let line = |who: usize, at: usize| format!("{who}:{at}:{}\n", "x".repeat(at * 7));
    std::thread::scope(|scope| {
        for (guest, session) in sessions.iter().enumerate() {
            for process in 0..2usize {
                scope.spawn(move || {
                    let mut client = join(session, how(process as u32));
                    let fid = 10 + process as u32;
                    client.walk_all(0, fid, &["log"]).unwrap();
                    client.lopen(fid, O_WRONLY | O_APPEND).unwrap();
                    let mut end = 0;
                    for at in 0..LINES {
                        let line = line(2 * guest + process, at);
                        assert_eq!(client.write(fid, end, line.as_bytes()), Ok(line.len() as u32));
                        end += line.len() as u64;
                    }
                });
            }
        }
        scope.spawn(|| {
            let mut host = std::fs::File::options().append(true).open(f.path("log")).unwrap();
            for at in 0..LINES {
                std::io::Write::write_all(&mut host, line(4, at).as_bytes()).unwrap();
            }
        });
    });
    let text = std::fs::read_to_string(f.path("log")).unwrap();
    let mut next = [0; 5];
    for found in text.split_inclusive('\n') {
        let who = found.split(':').next().unwrap().parse::<usize>().unwrap();
        assert_eq!(found, line(who, next[who]), "in the order they were written");
        next[who] += 1;
    }
    assert_eq!(next, [LINES; 5]);
}

#[test]
fn locks_of_threads_and_guests() {
    let f = Fixture::with(SecurityModel::Squash, Limits::default());
    f.write("counter", "0");
    // Two guests, two processes each, raise a counter under a lock.
    let sessions = [f.session.clone(), f.another().into_transport().session];
    std::thread::scope(|scope| {
        for (guest, session) in sessions.iter().enumerate() {
            // Processes of one guest take turns in the guest's own kernel.
            let turn = Arc::new(std::sync::Mutex::new(()));
            for process in 0..2u32 {
                let turn = turn.clone();
                scope.spawn(move || {
                    let mut client = join(session, how(process));
                    let fid = 10 + process;
                    client.walk_all(0, fid, &["counter"]).unwrap();
                    client.lopen(fid, O_RDWR).unwrap();
                    for _ in 0..50 {
                        let _turn = turn.lock().unwrap();
                        let message = |kind| wire::Tlock {
                            fid,
                            kind,
                            flags: if kind == wire::P9_LOCK_TYPE_WRLCK { 1 } else { 0 },
                            start: 0,
                            length: 0,
                            proc_id: process,
                            client_id: b"",
                        };
                        assert_eq!(
                            client.lock(&message(wire::P9_LOCK_TYPE_WRLCK)).unwrap(),
                            0,
                            "{guest}"
                        );
                        let text = String::from_utf8(client.read(fid, 0, 100).unwrap()).unwrap();
                        let next = text.trim().parse::<u32>().unwrap() + 1;
                        client.write(fid, 0, next.to_string().as_bytes()).unwrap();
                        assert_eq!(client.lock(&message(wire::P9_LOCK_TYPE_UNLCK)).unwrap(), 0);
                    }
                });
            }
        }
    });
    assert_eq!(std::fs::read(f.path("counter")).unwrap(), b"200");
}

#[test]
fn a_reset_in_the_middle_leaves_nothing() {
    let f = Fixture::with(SecurityModel::Squash, Limits::default());
    f.write("file", "data");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (session, stop) = (&f.session, &stop);
            scope.spawn(move || {
                let mut client = join(session, how(thread));
                let fid = 10 + thread;
                while !stop.load(Ordering::Relaxed) {
                    // Any of these may find its session gone.
                    let _ = client.attach(fid, 0);
                    let _ = client.walk(fid, 20 + fid, &["file"]);
                    let _ = client.lopen(20 + fid, O_RDWR);
                    let _ = client.lock(&wire::Tlock {
                        fid: 20 + fid,
                        kind: wire::P9_LOCK_TYPE_WRLCK,
                        flags: 0,
                        start: 0,
                        length: 0,
                        proc_id: 1,
                        client_id: b"",
                    });
                    let _ = client.xattrwalk(fid, 30 + fid, "");
                    let _ = client.clunk(30 + fid);
                }
            });
        }
        let mut client = join(&f.session, How::Inline);
        for _ in 0..300 {
            client.version(8192).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    f.session.reset();
    assert_eq!(f.session.usage(), server::Usage::default());
    // The lock is free for others.
    let mut other = f.another();
    other.walk_all(0, 1, &["file"]).unwrap();
    other.lopen(1, O_RDWR).unwrap();
    let message = wire::Tlock {
        fid: 1,
        kind: wire::P9_LOCK_TYPE_WRLCK,
        flags: 0,
        start: 0,
        length: 0,
        proc_id: 1,
        client_id: b"",
    };
    assert_eq!(other.lock(&message).unwrap(), 0);
}
