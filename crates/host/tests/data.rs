//! Reading, writing, listing, syncing.

mod common;

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use common::*;
use host::{DirEntry, IoVec, SecurityModel};

#[test]
fn data_goes_where_it_belongs() {
    let f = Fixture::new(SecurityModel::Squash);
    let node = f.create("file", libc::O_RDWR, 0o600);
    assert_eq!(f.write(&node, 5, b"hello").unwrap(), 5);
    assert_eq!(f.read(&node, 0, 100, false).unwrap(), b"\0\0\0\0\0hello");
    assert_eq!(f.read(&node, 10, 100, false).unwrap(), b"");
    assert_eq!(f.read(&node, 100, 100, true).unwrap(), b"");
    // An offset beyond what a file can have is an error, not a negative number.
    assert_eq!(errno(f.read(&node, u64::MAX, 1, false)), libc::EINVAL);
    assert_eq!(errno(f.write(&node, u64::MAX, b"x")), libc::EINVAL);
    f.share.fsync(ROOT, node.file(), false).unwrap();
    f.share.fsync(ROOT, node.file(), true).unwrap();
    let reader = f.open("file", libc::O_RDONLY);
    assert_eq!(errno(f.write(&reader, 0, b"x")), libc::EBADF);
}

#[test]
fn append_goes_to_the_end_wherever_that_is() {
    let f = Fixture::new(SecurityModel::Squash);
    let node = f.create("file", libc::O_RDWR, 0o600);
    f.write(&node, 0, b"0123456789").unwrap();
    let mut more = *b"abc";
    // SAFETY: `more` lives over the call.
    let iov = unsafe { [IoVec::new(more.as_mut_ptr(), 3)] };
    assert_eq!(f.share.write(ROOT, node.file(), &iov, 2, true).unwrap(), 3);
    f.write(&node, 2, b"XY").unwrap();
    assert_eq!(f.read(&node, 0, 100, false).unwrap(), b"01XY456789abc");
}

#[test]
fn a_list_of_more_pieces_than_the_kernel_takes_is_a_short_count() {
    let f = Fixture::new(SecurityModel::Squash);
    let node = f.create("file", libc::O_RDWR, 0o600);
    let mut bytes = vec![7u8; 3000];
    // SAFETY: `bytes` lives over the calls.
    let iov: Vec<IoVec> = bytes
        .chunks_mut(1)
        .map(|b| unsafe { IoVec::new(b.as_mut_ptr(), 1) })
        .collect();
    assert_eq!(f.share.write(ROOT, node.file(), &iov, 0, false).unwrap(), 1024);
    assert_eq!(f.share.read(ROOT, node.file(), &iov, 0, false).unwrap(), 1024);
}

#[test]
fn a_read_that_must_not_wait_reads_what_is_in_memory() {
    // A file system on disk, and one in memory that does not know RWF_NOWAIT.
    for parent in ["/tmp", "/dev/shm"] {
        if !Path::new(parent).exists() {
            continue;
        }
        let f = Fixture::within(Path::new(parent), SecurityModel::Squash, |_| {});
        let node = f.create("file", libc::O_RDWR, 0o600);
        f.write(&node, 0, &[5; 10000]).unwrap();
        for _ in 0..3 {
            match f.read(&node, 0, 10000, true) {
                Ok(bytes) => assert_eq!(bytes, [5; 10000]),
                // Only a file system on disk may say so.
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EAGAIN));
                    assert_ne!(parent, "/dev/shm");
                }
            }
            assert_eq!(f.read(&node, 0, 10000, false).unwrap(), [5; 10000]);
        }
    }
}

#[test]
fn a_listing_has_every_entry_once_with_its_type_and_goes_on_anywhere() {
    let f = Fixture::new(SecurityModel::Squash);
    for i in 0..500 {
        std::fs::write(f.dir.join(format!("file-with-a-long-name-{i}")), "").unwrap();
    }
    std::fs::create_dir(f.dir.join("sub")).unwrap();
    symlink("x", f.dir.join("link")).unwrap();
    let root = f.open("", libc::O_RDONLY);
    let all = f.list(&root);
    assert_eq!(all.len(), 504);
    assert_eq!(all.iter().map(|e| &e.0).collect::<HashSet<_>>().len(), 504);
    assert_eq!(all.iter().map(|e| e.2).collect::<HashSet<_>>().len(), 504);
    assert!(all.iter().all(|e| e.2 > 0 && e.2 <= i64::MAX as u64));
    let find = |name: &str| all.iter().find(|e| e.0 == name).unwrap();
    assert_eq!(find("sub").3, libc::DT_DIR);
    assert_eq!(find("link").3, libc::DT_LNK);
    assert_eq!(find("file-with-a-long-name-7").3, libc::DT_REG);
    for name in ["sub", "link", "file-with-a-long-name-499"] {
        assert_eq!(find(name).1, f.walk(name).id.unique);
    }
    // The parent of the root is the root, in a listing too.
    assert_eq!(find(".").1, root.id.unique);
    assert_eq!(find("..").1, root.id.unique);
    let sub = f.list(&f.open("sub", libc::O_RDONLY));
    assert_eq!(sub.iter().find(|e| e.0 == "..").unwrap().1, root.id.unique);
    // In small pieces, each from the cookie of the last: the same entries.
    let mut pieces = Vec::new();
    let mut cookie = 0;
    loop {
        let (before, mut left) = (pieces.len(), 7);
        let mut buf = [0; 1024];
        f.share
            .read_dir(ROOT, &root.object(), cookie, &mut buf, &mut |e: &DirEntry<'_>| {
                if left == 0 {
                    return false;
                }
                left -= 1;
                pieces.push(String::from_utf8(e.name.to_vec()).unwrap());
                cookie = e.cookie;
                true
            })
            .unwrap();
        if pieces.len() == before {
            break;
        }
    }
    assert_eq!(pieces, all.iter().map(|e| e.0.clone()).collect::<Vec<_>>());
    // What cannot be listed says so.
    let mut buf = [0; 1024];
    let closed = f.root();
    assert_eq!(
        errno(
            f.share
                .read_dir(ROOT, &closed.object(), 0, &mut buf, &mut |_: &DirEntry<'_>| true)
        ),
        libc::EBADF
    );
    let file = f.open("file-with-a-long-name-0", libc::O_RDONLY);
    assert_eq!(
        errno(
            f.share
                .read_dir(ROOT, &file.object(), 0, &mut buf, &mut |_: &DirEntry<'_>| true)
        ),
        libc::ENOTDIR
    );
    assert_eq!(
        errno(
            f.share
                .read_dir(ROOT, &root.object(), 0, &mut buf[..8], &mut |_: &DirEntry<'_>| {
                    true
                })
        ),
        libc::EINVAL
    );
    assert_eq!(
        errno(
            f.share
                .read_dir(ROOT, &root.object(), u64::MAX, &mut buf, &mut |_: &DirEntry<
                    '_,
                >| {
                    true
                })
        ),
        libc::EINVAL
    );
}

#[test]
fn listings_of_one_open_directory_in_several_threads_do_not_mix() {
    let f = Fixture::new(SecurityModel::Squash);
    for i in 0..300 {
        std::fs::write(f.dir.join(format!("{i}")), "").unwrap();
    }
    let root = f.open("", libc::O_RDONLY);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..30 {
                    assert_eq!(f.list(&root).len(), 302);
                }
            });
        }
    });
}

#[test]
fn entries_removed_while_listing_do_not_disturb_it() {
    let f = Fixture::new(SecurityModel::Squash);
    for i in 0..300 {
        std::fs::write(f.dir.join(format!("{i}")), "").unwrap();
    }
    let root = f.open("", libc::O_RDONLY);
    let mut cookie = 0;
    let mut removed = 0;
    // rm -r: list some, remove them, go on from there.
    loop {
        let mut names = Vec::new();
        let mut buf = [0; 600];
        f.share
            .read_dir(ROOT, &root.object(), cookie, &mut buf, &mut |e: &DirEntry<'_>| {
                names.push(e.name.to_vec());
                cookie = e.cookie;
                names.len() < 10
            })
            .unwrap();
        if names.is_empty() {
            break;
        }
        for entry in names.iter().filter(|n| !n.starts_with(b".")) {
            let entry = host::Name::new(entry).unwrap();
            f.share.unlink(ROOT, &root.object(), &entry, false).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 300);
}

#[test]
fn statfs_needs_no_permission_on_the_object() {
    unprivileged("statfs_needs_no_permission_on_the_object", 12345, || {
        let f = Fixture::new(SecurityModel::Squash);
        let node = f.create("file", libc::O_RDWR, 0);
        let stat = f.share.statfs(ROOT, &node.object()).unwrap();
        assert_eq!(stat.namelen, 255);
        assert!(stat.blocks >= stat.bfree && stat.bsize >= 512);
        let meta = std::fs::metadata(&f.dir).unwrap();
        assert_eq!(meta.dev(), node.id.dev);
    });
}
