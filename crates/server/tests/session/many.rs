//! More fids than descriptors.

use std::sync::Arc;

use host::{FileHandles, SecurityModel, Share, ShareOptions};
use server::Limits;
use testkit::client::Errno;

use crate::common::*;

const BUDGET: usize = 256;

fn tight() -> Limits {
    Limits {
        fd_budget: BUDGET,
        ..Limits::default()
    }
}

/// A share as `options` say, of a directory of its own.
fn fixture(options: ShareOptions) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let options = ShareOptions {
        directory: dir.path().to_owned(),
        ..options
    };
    let share = Arc::new(Share::open(&options).unwrap());
    Fixture::on(dir, share, tight())
}

fn crowd(options: ShareOptions, files: u32, fids: u32) {
    if options.file_handles == FileHandles::Open && !handles_open() {
        return;
    }
    let mut f = fixture(options);
    std::fs::create_dir_all(f.path("sub/dir")).unwrap();
    for at in 0..files {
        f.write(&format!("sub/dir/{at}"), at.to_string());
    }
    f.client.walk_all(0, 1, &["sub", "dir"]).unwrap();
    for fid in 0..fids {
        let name = (fid % files).to_string();
        let qid = match fid % 3 {
            0 => f.client.walk_all(1, 100 + fid, &[name]).unwrap(),
            1 => f
                .client
                .walk_all(0, 100 + fid, &["sub", "dir", name.as_str()])
                .unwrap(),
            _ => f
                .client
                .walk_all(1, 100 + fid, &["..", "dir", name.as_str()])
                .unwrap(),
        };
        assert_eq!(qid.kind, 0);
        assert!(f.session.usage().descriptors <= BUDGET + 1);
    }
    assert_eq!(f.session.usage().fids, fids as usize + 2);
    // All of them work, in an order that has nothing to do with how they came.
    for step in 0..fids {
        let fid = (step * 7919) % fids;
        assert_eq!(
            f.client.stat(100 + fid).unwrap().size,
            (fid % files).to_string().len() as u64
        );
        if step % 16 == 0 {
            f.client.clone_fid(100 + fid, 2).unwrap();
            f.client.lopen(2, O_RDONLY).unwrap();
            assert_eq!(
                f.client.read(2, 0, 100).unwrap(),
                (fid % files).to_string().as_bytes()
            );
            f.client.clunk(2).unwrap();
        }
        assert!(f.session.usage().descriptors <= BUDGET + 1);
    }
    for fid in 0..fids {
        f.client.clunk(100 + fid).unwrap();
    }
    f.client.clunk(1).unwrap();
    assert_eq!(f.session.usage().fids, 1);
    // The root's, and those of the two directories, which stay known.
    assert_eq!(f.session.usage().nodes, 3);
}

#[test]
fn twenty_thousand_fids_live_on_256_descriptors() {
    crowd(by_name(), 2_000, 20_000);
}

#[test]
fn and_with_file_handles_to_open() {
    crowd(open_handles(), 1_000, 5_000);
}

/// Found again by file handle.
fn open_handles() -> ShareOptions {
    ShareOptions {
        file_handles: FileHandles::Open,
        ..ShareOptions::new("", SecurityModel::Squash)
    }
}

/// Found again by name.
fn by_name() -> ShareOptions {
    ShareOptions::new("", SecurityModel::Squash)
}

/// Whether this process may open by file handle what is in temporary directories.
fn handles_open() -> bool {
    let options = ShareOptions {
        directory: std::env::temp_dir(),
        ..open_handles()
    };
    Share::open(&options).is_ok()
}

/// Without the right to open file handles.
fn unprivileged(test: impl FnOnce() + Send + 'static) {
    // Capabilities are a thread's own.
    std::thread::spawn(move || {
        let _ = caps::drop(
            None,
            caps::CapSet::Effective,
            caps::Capability::CAP_DAC_READ_SEARCH,
        );
        test();
    })
    .join()
    .unwrap();
}

#[test]
fn and_without_the_right_to_open_them() {
    unprivileged(|| crowd(by_name(), 1_000, 5_000));
}

/// Uses up the budget, so that what was idle is evicted.
fn evict_all(f: &mut Fixture) {
    for fid in 0..BUDGET as u32 * 2 {
        f.client
            .walk_all(0, 10_000 + fid, &[format!("filler{fid}")])
            .unwrap();
    }
}

fn fill(f: &Fixture) {
    for at in 0..BUDGET * 2 {
        f.write(&format!("filler{at}"), "");
    }
}

fn moved_about(options: ShareOptions) {
    let mut f = fixture(options);
    fill(&f);
    std::fs::create_dir_all(f.path("a/b")).unwrap();
    std::fs::create_dir(f.path("c")).unwrap();
    f.write("a/b/file", "data");
    f.write("a/b/kept", "kept");
    std::os::unix::fs::symlink("target", f.path("a/b/link")).unwrap();
    f.client.walk_all(0, 1, &["a"]).unwrap();
    f.client.walk_all(1, 2, &["b"]).unwrap();
    f.client.walk_all(2, 3, &["file"]).unwrap();
    f.client.walk_all(0, 4, &["c"]).unwrap();
    f.client.walk_all(2, 5, &["link"]).unwrap();
    evict_all(&mut f);
    // The guest moves the directory and the file; their fids are what they were.
    f.client.renameat(1, "b", 4, "d").unwrap();
    f.client.renameat(2, "file", 1, "moved").unwrap();
    evict_more(&mut f);
    assert_eq!(f.client.stat(3).unwrap().size, 4);
    assert_eq!(f.client.readlink(5).unwrap(), b"target");
    assert_eq!(f.client.walk(2, 6, &["kept"]).unwrap().len(), 1);
    evict_more(&mut f);
    f.client.remove(3).unwrap();
    assert!(!f.path("a/moved").exists());
    assert!(f.path("c/d/kept").exists());
}

fn evict_more(f: &mut Fixture) {
    for fid in 0..BUDGET as u32 * 2 {
        f.client.stat(10_000 + fid).unwrap();
    }
}

#[test]
fn evicted_objects_are_found_after_the_guests_renames() {
    moved_about(by_name());
    unprivileged(|| moved_about(by_name()));
    if handles_open() {
        moved_about(open_handles());
    }
}

/// An object has its new name on the host before that is noted here: who looks for it meanwhile looks again.
#[test]
fn and_while_the_guest_renames() {
    let mut f = fixture(by_name());
    fill(&f);
    std::fs::create_dir_all(f.path("a/sub")).unwrap();
    for at in 0..50 {
        f.write(&format!("a/sub/{at}"), "data");
    }
    f.client.walk_all(0, 1, &["a"]).unwrap();
    for at in 0..50 {
        f.client
            .walk_all(1, 100 + at, &["sub".to_string(), at.to_string()])
            .unwrap();
    }
    f.client.clunk(1).unwrap();
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (session, end) = (f.session.clone(), &end);
        let renames = scope.spawn(move || {
            let mut client = testkit::client::Client::new(Backend::new(session));
            let mut count = 0;
            while !end.load(std::sync::atomic::Ordering::Relaxed) {
                for (from, to) in [("a", "b"), ("b", "a")] {
                    client.renameat(0, from, 0, to).unwrap();
                    count += 1;
                }
            }
            count
        });
        let looks = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..20 {
                evict_all_again(&mut f, round);
                for at in 0..50 {
                    assert_eq!(
                        f.client.stat(100 + at).map(|attr| attr.size),
                        Ok(4),
                        "{round}: {at}"
                    );
                }
            }
        }));
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(renames.join().unwrap() > 0);
        looks.unwrap();
    });
}

/// As [`evict_all`], whether that was done before or not.
fn evict_all_again(f: &mut Fixture, round: u32) {
    match round {
        0 => evict_all(f),
        _ => evict_more(f),
    }
}

/// What the host renames is not where it was; only with `--file-handles open` it is found.
#[test]
fn what_the_host_renames_is_stale_or_found_by_handle() {
    let renamed = |options| {
        let mut f = fixture(options);
        fill(&f);
        std::fs::create_dir_all(f.path("a/b")).unwrap();
        f.write("a/b/file", "data");
        f.write("other", "another file");
        f.client.walk_all(0, 1, &["a", "b"]).unwrap();
        f.client.walk_all(1, 2, &["file"]).unwrap();
        evict_all(&mut f);
        std::fs::rename(f.path("a"), f.path("c")).unwrap();
        std::fs::create_dir_all(f.path("a/b")).unwrap();
        std::fs::hard_link(f.path("other"), f.path("a/b/file")).unwrap();
        let found = f.client.stat(2).map(|attr| attr.size);
        evict_more(&mut f);
        // Back again, and so is the object.
        std::fs::remove_dir_all(f.path("a")).unwrap();
        std::fs::rename(f.path("c"), f.path("a")).unwrap();
        assert_eq!(f.client.stat(2).unwrap().size, 4);
        found
    };
    assert_eq!(renamed(by_name()), Err(Errno::ESTALE));
    if handles_open() {
        assert_eq!(renamed(open_handles()), Ok(4));
    }
}

fn replaced(options: ShareOptions) {
    let mut f = fixture(options);
    fill(&f);
    f.write("file", "old");
    f.write("gone", "gone");
    f.client.walk_all(0, 1, &["file"]).unwrap();
    f.client.walk_all(0, 2, &["gone"]).unwrap();
    evict_all(&mut f);
    // ext4 and others give the freed inode number to the next file.
    std::fs::remove_file(f.path("file")).unwrap();
    f.write("file", "another");
    std::fs::remove_file(f.path("gone")).unwrap();
    assert_eq!(f.client.stat(1), Err(Errno::ESTALE));
    assert_eq!(f.client.stat(2), Err(Errno::ESTALE));
    assert_eq!(f.client.lopen(1, O_RDWR | O_TRUNC), Err(Errno::ESTALE));
    f.client.walk_all(0, 3, &["file"]).unwrap();
    assert_eq!(f.client.stat(3).unwrap().size, 7);
    assert_eq!(f.client.stat(1), Err(Errno::ESTALE));
    f.client.clunk(1).unwrap();
    f.client.clunk(2).unwrap();
    assert_eq!(std::fs::read(f.path("file")).unwrap(), b"another");
}

#[test]
fn a_successor_is_never_taken_for_what_was_evicted() {
    replaced(by_name());
    unprivileged(|| replaced(by_name()));
    if handles_open() {
        replaced(open_handles());
    }
}

#[test]
fn what_is_open_stays_open() {
    let mut f = Fixture::with(SecurityModel::Squash, tight());
    fill(&f);
    f.create(1, "file", O_RDWR);
    f.client.write(1, 0, b"data").unwrap();
    f.client.unlinkat(0, "file", 0).unwrap();
    evict_all(&mut f);
    assert_eq!(f.client.read(1, 0, 10).unwrap(), b"data");
    f.client.clone_fid(1, 2).unwrap();
    evict_more(&mut f);
    assert_eq!(f.client.stat(2).unwrap().size, 4);
}

#[test]
fn fids_have_a_limit() {
    let limits = Limits {
        max_fids: 10,
        ..Limits::default()
    };
    let mut f = Fixture::with(SecurityModel::Passthrough, limits);
    for fid in 1..10 {
        f.client.clone_fid(0, fid).unwrap();
    }
    assert_eq!(f.client.clone_fid(0, 10), Err(Errno::ENFILE));
    assert_eq!(f.client.attach(10, 0), Err(Errno::ENFILE));
    assert_eq!(f.client.xattrwalk(0, 10, ""), Err(Errno::ENFILE));
    f.client.clunk(5).unwrap();
    f.client.clone_fid(0, 10).unwrap();
}

#[test]
fn paths_may_be_longer_than_any_string() {
    let mut f = Fixture::new();
    let name = "d".repeat(255);
    f.client.clone_fid(0, 1).unwrap();
    for _ in 0..257 {
        f.client.mkdir(1, &name, 0o755, gid()).unwrap();
        f.client.walk_all(1, 1, &[&name]).unwrap();
    }
    assert_eq!(f.client.stat(1).unwrap().mode & libc::S_IFMT, libc::S_IFDIR);
    for _ in 0..257 {
        f.client.remove(1).unwrap();
        f.client.clone_fid(0, 1).unwrap();
        walk_down(&mut f, &name);
    }
}

/// Takes fid 1 as far down as there are directories.
fn walk_down(f: &mut Fixture, name: &str) {
    while f.client.walk_all(1, 1, &[name]).is_ok() {}
}

#[test]
fn descriptors_come_back() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "data").unwrap();
    let share = Arc::new(Share::open(&ShareOptions::new(dir.path(), SecurityModel::Squash)).unwrap());
    let session = Arc::new(server::Session::new(share, Limits::default()));
    let mut client = testkit::client::Client::mount(Backend::new(session.clone()), 8192).unwrap();
    for fid in 1..50 {
        client.walk_all(0, fid, &["file"]).unwrap();
        client.lopen(fid, O_RDONLY).unwrap();
    }
    assert_eq!(session.usage().descriptors, 49 + 2);
    session.reset();
    assert_eq!(session.usage(), server::Usage::default());
}

/// All of the directories above it have given their descriptors up, and get theirs back only as far as there is room.
#[test]
fn what_is_found_far_down_does_not_take_all_descriptors() {
    const DEEP: u32 = 400;
    let limits = Limits {
        fd_budget: 24,
        ..Limits::default()
    };
    let mut f = Fixture::with(SecurityModel::Passthrough, limits);
    for at in 0..60 {
        f.write(&format!("filler{at}"), "");
    }
    f.client.clone_fid(0, 1).unwrap();
    for level in 1..=DEEP {
        f.client.mkdir(level, "d", 0o755, gid()).unwrap();
        f.client.walk_all(level, level + 1, &["d"]).unwrap();
        f.client.clunk(level).unwrap();
    }
    for round in [100_000, 200_000] {
        for at in 0..60 {
            f.client
                .walk_all(0, round + at, &[format!("filler{at}")])
                .unwrap();
        }
    }
    f.client.stat(DEEP + 1).unwrap();
    let usage = f.session.usage();
    assert!(usage.nodes > DEEP as usize, "{usage:?}");
    assert!(usage.descriptors < 24 + 24, "{usage:?}");
}
