//! Writes that come up short or fail, on file systems that make them: the error is reported, never a part (see
//! `server/io.rs`). ENOSPC of a small tmpfs, EIO and EDQUOT of a FUSE file system. (EFBIG: see `rlimit.rs` beside this.)

use std::path::Path;
use std::sync::Arc;

use host::{SecurityModel, Share, ShareOptions};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use server::{Limits, Outcome};
use testkit::Fuse;
use testkit::client::Errno;
use testkit::fuse::MAX_WRITE;

use crate::common::*;

/// A share of what `mount` puts at a directory; `None` where it cannot. The mount goes before the directory does.
fn mounted<M>(mount: impl FnOnce(&Path) -> Option<M>) -> Option<(Fixture, M)> {
    mounted_with(mount, |_| {})
}

fn mounted_with<M>(
    mount: impl FnOnce(&Path) -> Option<M>,
    change: impl FnOnce(&mut ShareOptions),
) -> Option<(Fixture, M)> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("mount");
    std::fs::create_dir(&target).unwrap();
    let Some(mount) = mount(&target) else {
        println!("left out: this process may not mount");
        return None;
    };
    let mut options = ShareOptions::new(&target, SecurityModel::Squash);
    change(&mut options);
    let share = Share::open(&options).unwrap();
    Some((Fixture::on(dir, Arc::new(share), Limits::default()), mount))
}

fn fuse() -> Option<(Fixture, Fuse)> {
    mounted(Fuse::mount)
}

struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(target: &Path) -> Option<Tmpfs> {
        let options = Some("size=256k");
        mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), options).ok()?;
        Some(Tmpfs(target.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_file_system() {
    let Some((mut f, tmpfs)) = mounted(Tmpfs::mount) else {
        return;
    };
    let size = || std::fs::metadata(tmpfs.0.join("file")).unwrap().len();
    f.create(1, "file", O_RDWR);
    // In slices, of which the last finds no room.
    assert_eq!(f.client.write(1, 0, &[7; 300_000]), Err(Errno::ENOSPC));
    let written = size();
    assert!((100_000..300_000).contains(&written), "{written}");
    assert_eq!(f.client.write(1, written, b"more"), Err(Errno::ENOSPC));
    // In one call of the host, which says so by a short count.
    assert_eq!(f.client.write(1, written - 2, b"more"), Err(Errno::ENOSPC));
    // At once, and as an append.
    f.client.truncate(1, 0).unwrap();
    f.client.clone_fid(0, 2).unwrap();
    f.client.walk_all(2, 2, &["file"]).unwrap();
    f.client.lopen(2, O_WRONLY | O_APPEND).unwrap();
    assert_eq!(f.client.write(2, 0, &[7; 300_000]), Err(Errno::ENOSPC));
    assert!((100_000..300_000).contains(&size()), "{}", size());
    assert_eq!(f.client.write(2, 0, b"more"), Err(Errno::ENOSPC));
    assert_eq!(f.client.write(2, 0, b""), Ok(0));
    // Room again.
    f.client.truncate(1, 5).unwrap();
    assert_eq!(f.client.write(2, 0, b"more"), Ok(4));
    assert_eq!(size(), 9);
}

#[test]
fn a_quota_and_a_broken_disk() {
    for (host, guest) in [(libc::EDQUOT, Errno::EDQUOT), (libc::EIO, Errno::EIO)] {
        let Some((mut f, fuse)) = fuse() else { return };
        f.open(1, "file", O_RDWR);
        (fuse.script().write, fuse.script().writes_before) = (host, 1);
        // The first piece that the kernel sends is taken, the next is not.
        assert_eq!(f.client.write(1, 0, &[7; 2 * MAX_WRITE]), Err(guest));
        let written = fuse.script().data.len();
        assert!((1..=MAX_WRITE).contains(&written), "{written}");
        assert_eq!(f.client.write(1, written as u64, b"more"), Err(guest));
        fuse.script().write = 0;
        assert_eq!(f.client.write(1, written as u64, b"more"), Ok(4));
    }
}

/// As when the host's kernel throttles whoever dirties pages. On a file system that is not known to hang, requests are
/// tried on the queue thread first.
#[test]
fn slow_writes_leave_the_queue_thread() {
    let never = |options: &mut ShareOptions| options.may_hang = host::MayHang::Never;
    let Some((mut f, fuse)) = mounted_with(Fuse::mount, never) else {
        return;
    };
    f.open(1, "file", O_RDWR);
    let large = [7; 40_000];
    let deferred = |f: &mut Fixture| f.client.transport().outcomes[0] == Outcome::Defer;
    fuse.script().write_delay = std::time::Duration::from_millis(30);
    for _ in 0..2 {
        assert_eq!(f.client.write(1, 0, &large), Ok(40_000));
    }
    fuse.script().write_delay = std::time::Duration::ZERO;
    let mut left = 0;
    loop {
        assert_eq!(f.client.write(1, 0, &large), Ok(40_000));
        if !deferred(&mut f) {
            break;
        }
        left += 1;
        assert!(left < 1000, "never tried again");
        // What is small is not worth it.
        assert_eq!(f.client.write(1, 0, b"small"), Ok(5));
        assert!(!deferred(&mut f));
    }
    assert!(left > 0);
    // In the middle of a large one: the rest is for another thread, and nothing is written twice.
    fuse.script().data.clear();
    fuse.script().write_delay = std::time::Duration::from_millis(30);
    assert_eq!(f.client.write(1, 0, &[8; 300_000]), Ok(300_000));
    assert!(f.client.transport().outcomes.contains(&Outcome::Defer));
    assert_eq!(fuse.script().data, [8; 300_000]);
}

#[test]
fn a_read_that_fails() {
    let Some((mut f, fuse)) = fuse() else { return };
    fuse.script().data = vec![7; 10_000];
    fuse.script().read = libc::EIO;
    f.open(1, "file", O_RDONLY);
    assert_eq!(f.client.read(1, 0, 5000), Err(Errno::EIO));
    fuse.script().read = 0;
    assert_eq!(f.client.read(1, 0, 20_000), Ok(vec![7; 10_000]));
}

#[test]
fn a_sync_that_fails() {
    let Some((mut f, fuse)) = fuse() else { return };
    f.open(1, "file", O_RDWR);
    f.client.write(1, 0, b"data").unwrap();
    f.client.fsync(1, 0).unwrap();
    fuse.script().fsync = libc::EIO;
    assert_eq!(f.client.fsync(1, 0), Err(Errno::EIO));
    assert_eq!(f.client.fsync(1, 1), Err(Errno::EIO));
}

#[test]
fn a_close_that_fails() {
    let Some((mut f, fuse)) = fuse() else { return };
    fuse.script().flush = libc::EDQUOT;
    f.open(1, "file", O_RDWR);
    f.client.write(1, 0, b"data").unwrap();
    assert_eq!(f.client.clunk(1), Err(Errno::EDQUOT));
    assert_eq!(fuse.script().flushes, 1);
    assert_eq!(f.client.clunk(1), Err(Errno::ENOENT), "gone in any case");
    // One that only reads has lost nothing.
    f.open(1, "file", O_RDONLY);
    assert_eq!(f.client.clunk(1), Ok(()));
    // One with locks goes another way.
    f.open(1, "file", O_WRONLY);
    let lock = wire::Tlock {
        fid: 1,
        kind: wire::P9_LOCK_TYPE_WRLCK,
        flags: 0,
        start: 0,
        length: 0,
        proc_id: 1,
        client_id: b"guest",
    };
    assert_eq!(f.client.lock(&lock), Ok(wire::P9_LOCK_SUCCESS));
    assert_eq!(f.client.clunk(1), Err(Errno::EDQUOT));
    f.open(1, "file", O_WRONLY);
    fuse.script().flush = 0;
    assert_eq!(f.client.clunk(1), Ok(()));
    drop(fuse);
    assert_eq!(f.session.usage().fids, 1);
}

#[test]
fn appending_where_only_the_server_knows_the_end() {
    let Some((mut f, fuse)) = fuse() else { return };
    f.open(1, "file", O_WRONLY | O_APPEND);
    assert_eq!(fuse.script().opened & libc::O_APPEND, libc::O_APPEND);
    f.client.write(1, 0, b"one\n").unwrap();
    // Another client of that server, of which this host's kernel hears nothing.
    fuse.script().data.extend(b"TWO\n");
    f.client.write(1, 4, b"three\n").unwrap();
    assert_eq!(fuse.script().data, b"one\nTWO\nthree\n");
    // A client that has been seen without a write-back cache appends with every fid.
    f.open(2, "file", O_RDWR | O_APPEND);
    assert_eq!(fuse.script().opened & libc::O_APPEND, libc::O_APPEND);
    // A positioned write needs a descriptor without it.
    f.open(3, "file", O_RDWR);
    assert_eq!(fuse.script().opened & libc::O_APPEND, 0);
    f.client.write(3, 0, b"ONE").unwrap();
    assert!(fuse.script().data.starts_with(b"ONE\n"));
}
