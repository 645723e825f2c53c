//! Tlock and Tgetlock.

use server::{How, Limits, Outcome};
use testkit::client::{Client, Errno};
use wire::*;

use crate::common::*;

const READ: u8 = P9_LOCK_TYPE_RDLCK;
const WRITE: u8 = P9_LOCK_TYPE_WRLCK;
const UNLOCK: u8 = P9_LOCK_TYPE_UNLCK;

fn message(fid: u32, kind: u8, start: u64, length: u64, proc_id: u32) -> Tlock<'static> {
    Tlock {
        fid,
        kind,
        flags: 0,
        start,
        length,
        proc_id,
        client_id: b"guest",
    }
}

fn lock(c: &mut Client<Backend>, fid: u32, kind: u8, start: u64, length: u64, proc_id: u32) -> u8 {
    c.lock(&message(fid, kind, start, length, proc_id)).unwrap()
}

/// Two guests with the same file open as fid 1.
fn two() -> (Fixture, Client<Backend>) {
    let mut f = Fixture::new();
    f.write("file", "data");
    f.open(1, "file", O_RDWR);
    let mut other = f.another();
    other.walk_all(0, 1, &["file"]).unwrap();
    other.lopen(1, O_RDWR).unwrap();
    (f, other)
}

fn getlock(c: &mut Client<Backend>, kind: u8, start: u64, length: u64) -> testkit::client::Lock {
    c.getlock(&Tgetlock {
        fid: 1,
        kind,
        start,
        length,
        proc_id: 77,
        client_id: b"me",
    })
    .unwrap()
}

#[test]
fn guests_see_each_others_locks() {
    let (mut f, mut other) = two();
    assert_eq!(lock(&mut f.client, 1, WRITE, 10, 10, 1), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut other, 1, WRITE, 15, 1, 1), P9_LOCK_BLOCKED);
    assert_eq!(lock(&mut other, 1, READ, 0, 0, 1), P9_LOCK_BLOCKED);
    assert_eq!(lock(&mut other, 1, WRITE, 20, 0, 1), P9_LOCK_SUCCESS);
    let found = getlock(&mut other, READ, 0, 0);
    assert_eq!(
        (found.kind, found.start, found.length, found.proc_id),
        (WRITE, 10, 10, 0)
    );
    assert_eq!(found.client_id, b"me");
    let found = getlock(&mut f.client, WRITE, 0, 0);
    assert_eq!((found.kind, found.start, found.length), (WRITE, 20, 0));
    // One's own are not in the way, and nothing is where nothing is.
    let found = getlock(&mut f.client, WRITE, 0, 15);
    assert_eq!(
        (found.kind, found.start, found.length, found.proc_id),
        (UNLOCK, 0, 15, 77)
    );
    assert_eq!(lock(&mut f.client, 1, UNLOCK, 0, 0, 1), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut other, 1, WRITE, 0, 0, 1), P9_LOCK_SUCCESS);
}

#[test]
fn what_linux_asks_for_f_getlk_sees_every_lock() {
    // Whatever the program asked about, the type on the wire is UNLCK.
    let (mut f, mut other) = two();
    assert_eq!(getlock(&mut other, UNLOCK, 0, 0).kind, UNLOCK);
    lock(&mut f.client, 1, WRITE, 10, 1, 1);
    let found = getlock(&mut other, UNLOCK, 0, 0);
    assert_eq!((found.kind, found.start, found.length), (WRITE, 10, 1));
    assert_eq!(getlock(&mut other, UNLOCK, 11, 5).kind, UNLOCK);
    assert_eq!(getlock(&mut f.client, UNLOCK, 0, 0).kind, UNLOCK, "one's own");
    lock(&mut f.client, 1, READ, 10, 1, 1);
    assert_eq!(getlock(&mut other, UNLOCK, 0, 0).kind, READ);
    // A client that says what it wants is told what is in the way of that.
    assert_eq!(getlock(&mut other, READ, 0, 0).kind, UNLOCK);
    assert_eq!(getlock(&mut other, WRITE, 0, 0).kind, READ);
}

#[test]
fn the_host_sees_them() {
    let (mut f, _other) = two();
    let host = std::fs::File::options()
        .read(true)
        .write(true)
        .open(f.path("file"))
        .unwrap();
    let whole = |kind| host::sys::io::Lock {
        kind,
        start: 0,
        length: 0,
    };
    let set = |kind| host::sys::io::set_lock(std::os::fd::AsFd::as_fd(&host), whole(kind));
    assert_eq!(lock(&mut f.client, 1, READ, 0, 1, 1), P9_LOCK_SUCCESS);
    assert!(set(libc::F_RDLCK).is_ok());
    assert!(set(libc::F_WRLCK).is_err());
    assert_eq!(lock(&mut f.client, 1, WRITE, 0, 1, 1), P9_LOCK_BLOCKED);
    set(libc::F_UNLCK).unwrap();
    assert_eq!(lock(&mut f.client, 1, WRITE, 0, 1, 1), P9_LOCK_SUCCESS);
}

#[test]
fn processes_of_one_guest_do_not_conflict_but_count() {
    let (mut f, mut other) = two();
    // Two processes of the first guest share a read lock, through fids of their own.
    f.open(2, "file", O_RDWR);
    assert_eq!(lock(&mut f.client, 1, READ, 0, 0, 1), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut f.client, 2, READ, 0, 0, 2), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut other, 1, WRITE, 0, 0, 1), P9_LOCK_BLOCKED);
    // One lets go: the other one's lock stays.
    assert_eq!(lock(&mut f.client, 1, UNLOCK, 0, 0, 1), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut other, 1, WRITE, 0, 0, 1), P9_LOCK_BLOCKED);
    assert_eq!(lock(&mut f.client, 2, UNLOCK, 0, 0, 2), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut other, 1, WRITE, 0, 0, 1), P9_LOCK_SUCCESS);
}

#[test]
fn a_child_that_closes_does_not_unlock_its_parents() {
    let (mut f, mut other) = two();
    assert_eq!(lock(&mut f.client, 1, WRITE, 0, 0, 1), P9_LOCK_SUCCESS);
    // What Linux sends when process 2 closes its inherited descriptor of the same open file.
    assert_eq!(lock(&mut f.client, 1, UNLOCK, 0, 0, 2), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut other, 1, READ, 0, 0, 1), P9_LOCK_BLOCKED);
}

#[test]
fn clunk_remove_and_reset_let_go() {
    let (mut f, mut other) = two();
    let wakes = f.session.wake_count();
    lock(&mut f.client, 1, WRITE, 0, 0, 1);
    f.client.clunk(1).unwrap();
    assert_ne!(f.session.wake_count(), wakes);
    assert_eq!(lock(&mut other, 1, WRITE, 0, 0, 1), P9_LOCK_SUCCESS);
    other.version(8192).unwrap();
    f.open(1, "file", O_RDWR);
    assert_eq!(lock(&mut f.client, 1, WRITE, 0, 0, 1), P9_LOCK_SUCCESS);
    let before = descriptors();
    f.session.reset();
    // The fid's file, its node, the lock's own.
    assert!(descriptors() < before);
}

#[test]
fn the_last_fid_of_an_inode_is_not_the_one_that_locked() {
    let (mut f, mut other) = two();
    f.open(2, "file", O_RDWR);
    lock(&mut f.client, 1, WRITE, 0, 0, 1);
    f.client.clunk(2).unwrap();
    assert_eq!(lock(&mut other, 1, WRITE, 0, 0, 1), P9_LOCK_BLOCKED);
    f.client.clunk(1).unwrap();
    assert_eq!(lock(&mut other, 1, WRITE, 0, 0, 1), P9_LOCK_SUCCESS);
}

#[test]
fn a_client_may_wait() {
    let (mut f, mut other) = two();
    lock(&mut f.client, 1, WRITE, 0, 0, 1);
    let waiting = Tlock {
        flags: P9_LOCK_FLAGS_BLOCK,
        ..message(1, WRITE, 0, 0, 1)
    };
    let mut frame = [0; 100];
    let len = wire::Message::encode(&waiting, 9, &mut frame).unwrap();
    other.transport().call(&frame[..len], b"", 4096, false);
    assert!(matches!(
        other.transport().outcomes[..],
        [Outcome::Wait { retry_ms: 1.. }]
    ));
    // A queue that stops gets an answer.
    other.transport().how = How::Last;
    assert_eq!(other.lock(&waiting).unwrap(), P9_LOCK_BLOCKED);
    other.transport().how = How::Inline;
    let waiter = std::thread::spawn(move || other.lock(&waiting).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(20));
    lock(&mut f.client, 1, UNLOCK, 0, 0, 1);
    assert_eq!(waiter.join().unwrap(), P9_LOCK_SUCCESS);
}

#[test]
fn bad_requests() {
    let (mut f, _other) = two();
    let mut refused = |m: Tlock<'_>| f.client.lock(&m).unwrap_err();
    assert_eq!(refused(message(9, READ, 0, 0, 1)), Errno::ENOENT);
    assert_eq!(refused(message(0, READ, 0, 0, 1)), Errno::EBADF);
    assert_eq!(refused(message(1, 3, 0, 0, 1)), Errno::EINVAL);
    assert_eq!(refused(message(1, READ, u64::MAX, 0, 1)), Errno::EINVAL);
    assert_eq!(refused(message(1, READ, 1, u64::MAX, 1)), Errno::EINVAL);
    for flags in [2, 3, 4] {
        assert_eq!(
            refused(Tlock {
                flags,
                ..message(1, READ, 0, 0, 1)
            }),
            Errno::EINVAL
        );
    }
}

#[test]
fn there_is_a_limit() {
    let limits = Limits {
        max_locks: 10,
        ..Limits::default()
    };
    let mut f = Fixture::with(host::SecurityModel::Passthrough, limits);
    f.create(1, "file", O_RDWR);
    let mut taken = 0;
    let refused = loop {
        match f.client.lock(&message(1, WRITE, taken * 2, 1, 1)) {
            Ok(status) => assert_eq!(status, P9_LOCK_SUCCESS),
            Err(errno) => break errno,
        }
        taken += 1;
    };
    assert_eq!((refused, taken), (Errno::ENOLCK, 9));
    lock(&mut f.client, 1, UNLOCK, 0, 0, 1);
    lock(&mut f.client, 1, WRITE, 0, 1, 1);
}

#[test]
fn a_file_that_may_only_be_read_takes_read_locks() {
    let mut f = Fixture::readonly();
    f.open(1, "file", O_RDONLY);
    assert_eq!(lock(&mut f.client, 1, READ, 0, 0, 1), P9_LOCK_SUCCESS);
    // What can only be fcntl's is refused as Linux refuses it (`fcntl_setlk`); `flock` has the others.
    assert_eq!(f.client.lock(&message(1, WRITE, 0, 1, 1)), Err(Errno::EBADF));
    assert_eq!(f.client.lock(&message(1, WRITE, 1, 0, 1)), Err(Errno::EBADF));
    assert_eq!(lock(&mut f.client, 1, WRITE, 0, 0, 1), P9_LOCK_SUCCESS);
}

/// Locks every other byte of the first `2 * count` through fid 1, and everything through fid 2 for each of `owners`.
fn crowd(f: &mut Fixture, count: u64, owners: u32) {
    f.open(2, "file", O_RDWR);
    for at in 0..count {
        assert_eq!(lock(&mut f.client, 1, READ, 2 * at, 1, 1), P9_LOCK_SUCCESS);
    }
    for owner in 0..owners {
        assert_eq!(lock(&mut f.client, 2, READ, 0, 0, 100 + owner), P9_LOCK_SUCCESS);
    }
}

/// Tries for a lock until nobody is in the way; fails after a while.
fn soon(c: &mut Client<Backend>, kind: u8, start: u64, length: u64) {
    let begun = std::time::Instant::now();
    while lock(c, 1, kind, start, length, 1) == P9_LOCK_BLOCKED {
        assert!(begun.elapsed().as_secs() < 60, "{start} is never let go of");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// It took (ranges)² × owners: half a minute for these, hours for what the limits allow.
#[test]
fn the_locks_of_a_fid_are_released_in_one_sweep() {
    for kept in [1, 2] {
        let (mut f, mut other) = two();
        crowd(&mut f, 1000, 4000);
        let begun = std::time::Instant::now();
        f.client.clunk(3 - kept).unwrap();
        assert!(f.deferred() == (kept == 1), "4000 are not for the queue thread");
        // A part is let go of before the answer, the rest soon after; meanwhile others get theirs.
        assert_eq!(lock(&mut f.client, kept, READ, 5000, 1, 7), P9_LOCK_SUCCESS);
        assert_eq!(lock(&mut f.client, kept, UNLOCK, 5000, 1, 7), P9_LOCK_SUCCESS);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        if kept == 1 {
            for at in [1, 999, 1001, 1999] {
                soon(&mut other, WRITE, at, 1);
            }
            soon(&mut other, WRITE, 2000, 0);
        }
        assert_eq!(lock(&mut other, 1, WRITE, 0, 1, 1), P9_LOCK_BLOCKED);
        assert_eq!(lock(&mut other, 1, WRITE, 1998, 1, 1), P9_LOCK_BLOCKED);
        f.client.clunk(kept).unwrap();
        soon(&mut other, WRITE, 0, 0);
    }
}

/// One unlock may free very many parts of a file.
#[test]
fn what_one_unlock_frees_is_let_go_of_bit_by_bit() {
    let (mut f, mut other) = two();
    crowd(&mut f, 1000, 1);
    assert_eq!(lock(&mut f.client, 2, UNLOCK, 0, 0, 100), P9_LOCK_SUCCESS);
    // Taken again while that goes on: it stays.
    assert_eq!(lock(&mut f.client, 2, READ, 1, 1, 100), P9_LOCK_SUCCESS);
    (2..1000).for_each(|at| soon(&mut other, WRITE, 2 * at - 1, 1));
    soon(&mut other, WRITE, 1999, 0);
    for at in [0, 1, 2, 4, 1998] {
        assert_eq!(lock(&mut other, 1, WRITE, at, 1, 1), P9_LOCK_BLOCKED);
    }
    f.session.reset();
    soon(&mut other, WRITE, 0, 0);
}

/// To unlock a byte in the middle leaves two ranges, so that may be refused as well.
#[test]
fn unlocking_makes_no_more_ranges_than_the_limit() {
    let limits = Limits {
        max_locks: 10,
        ..Limits::default()
    };
    let mut f = Fixture::with(host::SecurityModel::Passthrough, limits);
    f.create(1, "file", O_RDWR);
    lock(&mut f.client, 1, WRITE, 0, 0, 1);
    let refused = (0..100).find_map(|at| {
        f.client
            .lock(&message(1, UNLOCK, 2 * at + 1, 1, 1))
            .err()
            .map(|e| (at, e))
    });
    assert_eq!(refused, Some((9, Errno::ENOLCK)));
    // Not one that leaves no more than there were.
    lock(&mut f.client, 1, UNLOCK, 0, 1, 1);
    lock(&mut f.client, 1, UNLOCK, 0, 0, 1);
}

/// Linux searches a list of a file's locks for each call.
#[test]
fn one_file_has_so_many_locks_at_most() {
    let (mut f, _other) = two();
    let count = 16 * 1024;
    for at in 0..count {
        assert_eq!(lock(&mut f.client, 1, WRITE, 2 * at, 1, 1), P9_LOCK_SUCCESS);
    }
    assert_eq!(
        f.client.lock(&message(1, WRITE, 2 * count, 1, 1)),
        Err(Errno::ENOLCK)
    );
    assert_eq!(lock(&mut f.client, 1, READ, 8, 1, 1), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut f.client, 1, UNLOCK, 8, 1, 1), P9_LOCK_SUCCESS);
    assert_eq!(lock(&mut f.client, 1, WRITE, 2 * count, 1, 1), P9_LOCK_SUCCESS);
    f.client.clunk(1).unwrap();
}
