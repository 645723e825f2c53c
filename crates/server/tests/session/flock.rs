//! flock(2) in a guest, which arrives as a lock of the whole file and asks for no right to read or to write it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;

use host::sys::cred::{CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, Caps};
use host::sys::io::{Lock, lock_whole, set_lock};
use host::{CheckAccess, SecurityModel, Share, ShareOptions};
use server::{How, Limits, Outcome, Session};
use testkit::client::{Client, Errno};
use wire::*;

use crate::common::*;

const READ: u8 = P9_LOCK_TYPE_RDLCK;
const WRITE: u8 = P9_LOCK_TYPE_WRLCK;
const UNLOCK: u8 = P9_LOCK_TYPE_UNLCK;

type Guest = Client<Backend>;

fn message(fid: u32, kind: u8, proc_id: u32) -> Tlock<'static> {
    Tlock {
        fid,
        kind,
        // As flock(LOCK_UN) has it.
        flags: match kind {
            UNLOCK => P9_LOCK_FLAGS_BLOCK,
            _ => 0,
        },
        start: 0,
        length: 0,
        proc_id,
        client_id: b"guest",
    }
}

fn flock(c: &mut Guest, fid: u32, kind: u8) -> Result<bool, Errno> {
    c.lock(&message(fid, kind, fid))
        .map(|status| status == P9_LOCK_SUCCESS)
}

/// A byte, by fcntl(2).
fn record(c: &mut Guest, fid: u32, kind: u8, start: u64) -> Result<bool, Errno> {
    let part = Tlock {
        start,
        length: 1,
        ..message(fid, kind, fid)
    };
    c.lock(&part).map(|status| status == P9_LOCK_SUCCESS)
}

fn open(c: &mut Guest, fid: u32, flags: u32) {
    c.walk_all(0, fid, &["file"]).unwrap();
    c.lopen(fid, flags).unwrap();
}

/// A guest of its own, served by a process of its own as far as locks go.
fn guest(dir: &Path, model: SecurityModel, readonly: bool) -> Guest {
    let options = ShareOptions {
        readonly,
        ..ShareOptions::new(dir, model)
    };
    let share = Arc::new(Share::open(&options).unwrap());
    let session = Arc::new(Session::new(share, Limits::default()));
    Client::mount(Backend::new(session), 8192).unwrap()
}

/// All that two guests can do with flock(2), which have the file open as fid 1, and `first` also as fid 2.
fn exclude_each_other(first: &mut Guest, other: &mut Guest, what: &str) {
    let yes = Ok(true);
    let no = Ok(false);
    assert_eq!(flock(first, 1, WRITE), yes, "{what}");
    assert_eq!(flock(first, 1, WRITE), yes, "{what}: again");
    assert_eq!(flock(other, 1, WRITE), no, "{what}");
    assert_eq!(flock(other, 1, READ), no, "{what}");
    // To a shared one, and back.
    assert_eq!(flock(first, 1, READ), yes, "{what}");
    assert_eq!(flock(other, 1, READ), yes, "{what}");
    assert_eq!(flock(other, 1, WRITE), no, "{what}");
    assert_eq!(flock(other, 1, UNLOCK), yes, "{what}");
    assert_eq!(flock(first, 1, WRITE), yes, "{what}");
    assert_eq!(flock(other, 1, READ), no, "{what}");
    assert_eq!(flock(first, 1, UNLOCK), yes, "{what}");
    assert_eq!(flock(other, 1, WRITE), yes, "{what}");
    assert_eq!(flock(first, 1, READ), no, "{what}");
    assert_eq!(flock(other, 1, UNLOCK), yes, "{what}");
    // Two processes share one; the last to let go lets go.
    assert_eq!(flock(first, 1, READ), yes, "{what}");
    assert_eq!(flock(first, 2, READ), yes, "{what}");
    assert_eq!(flock(first, 1, UNLOCK), yes, "{what}");
    assert_eq!(flock(other, 1, WRITE), no, "{what}");
    assert_eq!(flock(first, 2, UNLOCK), yes, "{what}");
    assert_eq!(flock(other, 1, WRITE), yes, "{what}");
    assert_eq!(flock(first, 2, WRITE), no, "{what}");
    // Whoever closes lets go.
    other.clunk(1).unwrap();
    assert_eq!(flock(first, 2, WRITE), yes, "{what}");
    first.clunk(2).unwrap();
    open(other, 1, O_RDONLY);
    assert_eq!(flock(other, 1, WRITE), yes, "{what}");
    assert_eq!(flock(first, 1, WRITE), no, "{what}");
    let session = other.transport().session.clone();
    session.reset();
    assert_eq!(flock(first, 1, WRITE), yes, "{what}");
}

#[test]
fn an_exclusive_flock_needs_no_right_to_write() {
    for model in MODELS {
        for readonly in [[true, true], [true, false], [false, true], [false, false]] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("file"), "data").unwrap();
            let [mut first, mut other] = readonly.map(|readonly| guest(dir.path(), model, readonly));
            open(&mut first, 1, O_RDONLY);
            open(&mut first, 2, O_RDONLY);
            open(&mut other, 1, O_RDONLY);
            exclude_each_other(&mut first, &mut other, &format!("{model:?}, {readonly:?}"));
        }
    }
}

/// What Linux says when process `proc_id` closes a copy of a descriptor (`locks_remove_posix`).
fn close_a_copy(c: &mut Guest, fid: u32, proc_id: u32) {
    let unlock = Tlock {
        flags: 0,
        ..message(fid, UNLOCK, proc_id)
    };
    assert_eq!(c.lock(&unlock).unwrap(), P9_LOCK_SUCCESS);
}

fn two_guests() -> (tempfile::TempDir, Guest, Guest) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "data").unwrap();
    let guests = [(); 2].map(|()| guest(dir.path(), SecurityModel::Passthrough, false));
    let [first, other] = guests;
    (dir, first, other)
}

/// `exec 9<file; flock 9` in a script: the process that has locked ends, and its shell has the lock.
#[test]
fn a_flock_outlives_the_process_that_took_it() {
    for (flags, kind) in [(O_RDONLY, WRITE), (O_WRONLY, WRITE), (O_RDONLY, READ)] {
        let (_dir, mut first, mut other) = two_guests();
        open(&mut first, 1, flags);
        open(&mut other, 1, O_RDWR);
        assert_eq!(first.lock(&message(1, kind, 77)).unwrap(), P9_LOCK_SUCCESS);
        close_a_copy(&mut first, 1, 77);
        close_a_copy(&mut first, 1, 78);
        assert_eq!(flock(&mut other, 1, WRITE), Ok(false), "{flags:o} {kind}");
        // `flock -u 9` is one more process.
        assert_eq!(first.lock(&message(1, UNLOCK, 79)).unwrap(), P9_LOCK_SUCCESS);
        assert_eq!(flock(&mut other, 1, WRITE), Ok(true), "{flags:o} {kind}");
        assert_eq!(flock(&mut other, 1, UNLOCK), Ok(true));
        // And the shell ends without that.
        assert_eq!(first.lock(&message(1, kind, 80)).unwrap(), P9_LOCK_SUCCESS);
        close_a_copy(&mut first, 1, 80);
        first.clunk(1).unwrap();
        assert_eq!(flock(&mut other, 1, WRITE), Ok(true), "{flags:o} {kind}");
    }
}

/// A process locks a file, opens it once more to read it, and closes that; or it shares a lock with itself.
#[test]
fn a_flock_is_of_its_own_descriptor() {
    for proc_id in [7, u32::MAX] {
        let (_dir, mut first, mut other) = two_guests();
        open(&mut first, 1, O_RDWR);
        open(&mut first, 2, O_RDWR);
        open(&mut other, 1, O_RDWR);
        assert_eq!(first.lock(&message(1, WRITE, proc_id)).unwrap(), P9_LOCK_SUCCESS);
        close_a_copy(&mut first, 2, 7);
        assert_eq!(flock(&mut other, 1, READ), Ok(false));
        assert_eq!(first.lock(&message(1, READ, proc_id)).unwrap(), P9_LOCK_SUCCESS);
        assert_eq!(first.lock(&message(2, READ, proc_id)).unwrap(), P9_LOCK_SUCCESS);
        first.clunk(2).unwrap();
        assert_eq!(flock(&mut other, 1, WRITE), Ok(false));
        first.clunk(1).unwrap();
        assert_eq!(flock(&mut other, 1, WRITE), Ok(true));
    }
}

/// fcntl(2) on a descriptor that is open for both.
#[test]
fn a_record_lock_of_the_whole_file_is_let_go_of_as_asked() {
    let (_dir, mut first, mut other) = two_guests();
    open(&mut first, 1, O_RDWR);
    open(&mut other, 1, O_RDWR);
    assert_eq!(flock(&mut first, 1, WRITE), Ok(true));
    close_a_copy(&mut first, 1, 1);
    assert_eq!(flock(&mut other, 1, WRITE), Ok(true));
}

/// A thread with nothing but the rights of root as a user.
fn without_rights(work: impl FnOnce() + Send) {
    if gid() != 0 {
        println!("left out: not root");
        return;
    }
    let work = || {
        let mut caps = Caps::current().unwrap();
        for cap in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER] {
            caps = caps.with(cap, false);
        }
        caps.apply().unwrap();
        work();
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
}

/// A file of another user, of which this process's is one of the others.
fn file_of_another(mode: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "data").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    chown(&file, Some(1234), Some(1234)).unwrap();
    dir
}

#[test]
fn a_process_without_rights_locks_what_it_can_open() {
    without_rights(|| {
        for (mode, flags) in [(0o604, O_RDONLY), (0o602, O_WRONLY)] {
            let dir = file_of_another(mode);
            let [mut first, mut other] =
                [false; 2].map(|readonly| guest(dir.path(), SecurityModel::Passthrough, readonly));
            open(&mut first, 1, flags);
            open(&mut other, 1, flags);
            for kind in [READ, WRITE] {
                assert_eq!(flock(&mut first, 1, kind), Ok(true), "{mode:o} {kind}");
                assert_eq!(flock(&mut other, 1, WRITE), Ok(false), "{mode:o} {kind}");
                assert_eq!(flock(&mut other, 1, READ), Ok(kind == READ), "{mode:o} {kind}");
                assert_eq!(flock(&mut other, 1, UNLOCK), Ok(true));
                assert_eq!(flock(&mut first, 1, UNLOCK), Ok(true));
            }
            // What can only be fcntl's: as Linux has it (`fcntl_setlk`).
            let (may, may_not) = if flags == O_RDONLY {
                (READ, WRITE)
            } else {
                (WRITE, READ)
            };
            assert_eq!(record(&mut first, 1, may, 5), Ok(true), "{mode:o}");
            assert_eq!(record(&mut first, 1, may_not, 7), Err(Errno::EBADF), "{mode:o}");
            assert_eq!(record(&mut other, 1, may, 6), Ok(true), "{mode:o}");
        }
        let dir = file_of_another(0o604);
        let [mut first, mut other] =
            [false; 2].map(|readonly| guest(dir.path(), SecurityModel::Passthrough, readonly));
        open(&mut first, 1, O_RDONLY);
        open(&mut first, 2, O_RDONLY);
        open(&mut other, 1, O_RDONLY);
        exclude_each_other(&mut first, &mut other, "unprivileged");
    });
}

#[test]
fn an_immutable_file_takes_locks() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "data").unwrap();
    let chattr = |how: &str| {
        let status = std::process::Command::new("chattr").arg(how).arg(&file).status();
        status.is_ok_and(|status| status.success())
    };
    // Opened while it could be written to, and locked when it could not be opened so any more.
    let mut writer = guest(dir.path(), SecurityModel::Passthrough, false);
    open(&mut writer, 1, O_RDWR);
    if !chattr("+i") {
        println!("left out: no immutable files here");
        return;
    }
    let locking = std::thread::spawn(move || {
        for model in MODELS {
            let [mut first, mut other] = [false; 2].map(|readonly| guest(dir.path(), model, readonly));
            open(&mut first, 1, O_RDONLY);
            open(&mut first, 2, O_RDONLY);
            open(&mut other, 1, O_RDONLY);
            exclude_each_other(&mut first, &mut other, &format!("immutable, {model:?}"));
            assert_eq!(flock(&mut first, 1, UNLOCK), Ok(true));
            assert_eq!(record(&mut writer, 1, WRITE, 5), Ok(true));
            assert_eq!(record(&mut first, 1, READ, 5), Ok(false));
            assert_eq!(record(&mut writer, 1, UNLOCK, 5), Ok(true));
            assert_eq!(record(&mut first, 1, READ, 5), Ok(true));
        }
        dir
    });
    let locked = locking.join();
    assert!(chattr("-i"));
    locked.unwrap();
}

/// The rights that count are those with which the guest opened the file.
#[test]
fn a_lock_asks_for_no_right_that_the_open_file_has() {
    without_rights(|| {
        for (flags, may) in [
            (O_RDWR, &[READ, WRITE][..]),
            (O_WRONLY, &[WRITE]),
            (O_RDONLY, &[READ]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("file");
            std::fs::write(&file, "data").unwrap();
            let mut first = guest(dir.path(), SecurityModel::Passthrough, false);
            open(&mut first, 1, flags);
            let host = File::options().read(true).write(true).open(&file).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o000)).unwrap();
            let taken = || {
                let lock = |kind| Lock {
                    kind,
                    start: 0,
                    length: 0,
                };
                let taken = set_lock(host.as_fd(), lock(libc::F_WRLCK)).is_err();
                set_lock(host.as_fd(), lock(libc::F_UNLCK)).unwrap();
                let whole = lock_whole(host.as_fd(), Some(true)).is_err();
                lock_whole(host.as_fd(), None).unwrap();
                (taken, whole)
            };
            for &kind in may {
                assert_eq!(record(&mut first, 1, kind, 5), Ok(true), "{flags}");
                assert_eq!(taken(), (true, false), "{flags} {kind}");
                assert_eq!(flock(&mut first, 1, kind), Ok(true), "{flags}");
                assert_eq!(taken(), (true, true), "{flags} {kind}");
                // The fid stays open.
                assert_eq!(flock(&mut first, 1, UNLOCK), Ok(true), "{flags}");
                assert_eq!(taken(), (false, false), "{flags} {kind}");
            }
            assert_eq!(flock(&mut first, 1, WRITE), Ok(true), "{flags}");
            first.transport().session.reset();
            assert_eq!(taken(), (false, false), "{flags}");
        }
    });
}

/// Whoever locked first, a user who may only read, does not decide what the others may.
#[test]
fn one_users_rights_are_not_the_next_ones() {
    if gid() != 0 {
        println!("left out: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "data").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    chown(&file, Some(61_000), Some(61_000)).unwrap();
    let options = ShareOptions {
        check_access: CheckAccess::Host,
        ..ShareOptions::new(dir.path(), SecurityModel::Passthrough)
    };
    let share = Arc::new(Share::open(&options).unwrap());
    let f = Fixture::on(dir, share, Limits::default());
    let mut other = f.another();
    other.attach(10, 61_000).unwrap();
    other.walk_all(10, 1, &["file"]).unwrap();
    other.lopen(1, O_RDWR).unwrap();
    let mut c = f.client;
    for (fid, user, flags) in [(1, 61_001, O_RDONLY), (2, 61_000, O_RDWR)] {
        c.attach(10 + fid, user).unwrap();
        c.walk_all(10 + fid, fid, &["file"]).unwrap();
        c.lopen(fid, flags).unwrap();
    }
    assert_eq!(record(&mut c, 1, READ, 5), Ok(true));
    assert_eq!(record(&mut c, 2, WRITE, 8), Ok(true));
    assert_eq!(record(&mut other, 1, WRITE, 5), Ok(false), "still locked");
    assert_eq!(record(&mut other, 1, READ, 8), Ok(false));
    assert_eq!(record(&mut c, 1, UNLOCK, 5), Ok(true));
    assert_eq!(record(&mut other, 1, WRITE, 5), Ok(true));
    assert_eq!(record(&mut other, 1, UNLOCK, 5), Ok(true));
    assert_eq!(record(&mut c, 2, UNLOCK, 8), Ok(true));
    // The same with flock(2).
    assert_eq!(flock(&mut c, 1, READ), Ok(true));
    assert_eq!(record(&mut c, 2, WRITE, 8), Ok(true));
    assert_eq!(flock(&mut other, 1, WRITE), Ok(false));
    assert_eq!(flock(&mut c, 1, UNLOCK), Ok(true));
    assert_eq!(record(&mut other, 1, WRITE, 5), Ok(true));
}

/// As on a local file system: flock(2) meets flock(2), and fcntl(2) meets fcntl(2). What a guest locks as a whole may be
/// either, so it meets both.
#[test]
fn the_hosts_programs_are_met() {
    let lock = |kind, start, length| Lock { kind, start, length };
    for readonly in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "data").unwrap();
        let mut c = guest(dir.path(), SecurityModel::Passthrough, readonly);
        open(&mut c, 1, O_RDONLY);
        let host = File::options().read(true).write(true).open(&file).unwrap();
        let host = host.as_fd();
        lock_whole(host, Some(true)).unwrap();
        assert_eq!(flock(&mut c, 1, READ), Ok(false));
        assert_eq!(flock(&mut c, 1, WRITE), Ok(false));
        // Nothing is left of what was refused.
        set_lock(host, lock(libc::F_WRLCK, 0, 0)).unwrap();
        set_lock(host, lock(libc::F_UNLCK, 0, 0)).unwrap();
        assert_eq!(record(&mut c, 1, READ, 5), Ok(true), "no flock");
        assert_eq!(record(&mut c, 1, UNLOCK, 5), Ok(true));
        lock_whole(host, Some(false)).unwrap();
        assert_eq!(flock(&mut c, 1, WRITE), Ok(false));
        assert_eq!(flock(&mut c, 1, READ), Ok(true));
        assert!(lock_whole(host, Some(true)).is_err());
        lock_whole(host, None).unwrap();
        // A shared lock stays shared when it cannot be made exclusive, for other processes of the guest.
        open(&mut c, 2, O_RDONLY);
        set_lock(host, lock(libc::F_RDLCK, 7, 1)).unwrap();
        assert_eq!(flock(&mut c, 2, READ), Ok(true));
        assert_eq!(
            flock(&mut c, 2, WRITE),
            Ok(readonly),
            "a reader is seen by whom may write"
        );
        set_lock(host, lock(libc::F_UNLCK, 0, 0)).unwrap();
        assert_eq!(flock(&mut c, 1, UNLOCK), Ok(true));
        assert_eq!(flock(&mut c, 2, UNLOCK), Ok(true));
        lock_whole(host, Some(true)).unwrap();
        lock_whole(host, None).unwrap();
        set_lock(host, lock(libc::F_WRLCK, 7, 1)).unwrap();
        assert_eq!(flock(&mut c, 1, WRITE), Ok(false));
        lock_whole(host, Some(true)).unwrap();
        lock_whole(host, None).unwrap();
        set_lock(host, lock(libc::F_UNLCK, 0, 0)).unwrap();
        assert_eq!(flock(&mut c, 1, WRITE), Ok(true));
        assert!(lock_whole(host, Some(false)).is_err());
        assert!(set_lock(host, lock(libc::F_WRLCK, 7, 1)).is_err());
        // A lock that has a hole is fcntl's.
        assert_eq!(record(&mut c, 1, UNLOCK, 5), Ok(true));
        lock_whole(host, Some(true)).unwrap();
        set_lock(host, lock(libc::F_WRLCK, 5, 1)).unwrap();
        assert!(set_lock(host, lock(libc::F_WRLCK, 6, 1)).is_err());
    }
}

/// flock(2) lets go of a lock that it cannot turn into another kind at once, or two who do it wait forever.
#[test]
fn two_that_want_more_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "data").unwrap();
    for readonly in [[true, true], [true, false], [false, false]] {
        let [mut first, mut other] =
            readonly.map(|readonly| guest(dir.path(), SecurityModel::Passthrough, readonly));
        open(&mut first, 1, O_RDONLY);
        open(&mut other, 1, O_RDONLY);
        assert_eq!(flock(&mut first, 1, READ), Ok(true));
        assert_eq!(flock(&mut other, 1, READ), Ok(true));
        let waiting = Tlock {
            flags: P9_LOCK_FLAGS_BLOCK,
            ..message(1, WRITE, 1)
        };
        let mut frame = [0; 100];
        let len = wire::Message::encode(&waiting, 9, &mut frame).unwrap();
        for _ in 0..3 {
            let wakes = first.transport().session.wake_count();
            first.transport().call(&frame[..len], b"", 4096, false);
            assert!(matches!(
                first.transport().outcomes[..],
                [Outcome::Wait { retry_ms: 1.. }]
            ));
            // It wakes others once, and so not itself for ever.
            let woken = first.transport().session.wake_count();
            first.transport().call(&frame[..len], b"", 4096, false);
            assert_eq!(first.transport().session.wake_count(), woken, "{wakes}");
        }
        assert_eq!(other.lock(&waiting), Ok(P9_LOCK_SUCCESS), "{readonly:?}");
        first.transport().how = How::Last;
        assert_eq!(first.lock(&waiting), Ok(P9_LOCK_BLOCKED));
        first.transport().how = How::Inline;
        let waiter = std::thread::spawn(move || first.lock(&waiting));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waiter.is_finished());
        assert_eq!(flock(&mut other, 1, UNLOCK), Ok(true));
        assert_eq!(waiter.join().unwrap(), Ok(P9_LOCK_SUCCESS));
    }
}

/// Of many who count under an exclusive lock nobody is lost.
#[test]
fn one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "0").unwrap();
    std::thread::scope(|scope| {
        for readonly in [true, true, false] {
            let (mut c, file) = (guest(dir.path(), SecurityModel::Passthrough, readonly), &file);
            scope.spawn(move || {
                open(&mut c, 1, O_RDONLY);
                for round in 0..40 {
                    let shared = Tlock {
                        flags: P9_LOCK_FLAGS_BLOCK,
                        ..message(1, READ, 1)
                    };
                    if round % 4 == 0 {
                        assert_eq!(c.lock(&shared), Ok(P9_LOCK_SUCCESS));
                    }
                    let exclusive = Tlock {
                        kind: WRITE,
                        ..shared
                    };
                    assert_eq!(c.lock(&exclusive), Ok(P9_LOCK_SUCCESS));
                    let count: u32 = std::fs::read_to_string(file).unwrap().parse().unwrap();
                    std::thread::yield_now();
                    std::fs::write(file, (count + 1).to_string()).unwrap();
                    assert_eq!(flock(&mut c, 1, UNLOCK), Ok(true));
                }
            });
        }
    });
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "120");
}
