//! Treaddir, Tmkdir, Tmknod, Trename, Trenameat, Tunlinkat.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use host::{SecurityModel, Share, ShareOptions};
use server::Limits;
use testkit::client::Errno;

use crate::common::*;

fn names(f: &mut Fixture, fid: u32, count: u32) -> Vec<String> {
    let entries = f.client.list(fid, count).unwrap();
    let mut names: Vec<String> = entries
        .into_iter()
        .map(|e| String::from_utf8(e.name).unwrap())
        .collect();
    names.sort();
    names
}

fn hundred(f: &Fixture) -> Vec<String> {
    let mut names = vec![".".to_owned(), "..".to_owned()];
    for at in 0..100 {
        let name = format!("ReadDirFile{at}");
        f.write(&name, "");
        names.push(name);
    }
    names.sort();
    names
}

#[test]
fn a_listing_is_whole_in_pieces_of_any_size() {
    each(|mut f| {
        let want = hundred(&f);
        f.client.clone_fid(0, 1).unwrap();
        f.client.lopen(1, O_RDONLY).unwrap();
        for count in [511_989, 512, 256, 128, 40] {
            assert_eq!(names(&mut f, 1, count), want, "{count}");
        }
    });
}

#[test]
fn an_entry_that_never_fits_is_no_end() {
    let mut f = Fixture::new();
    f.write(&"n".repeat(255), "");
    f.client.clone_fid(0, 1).unwrap();
    f.client.lopen(1, O_RDONLY).unwrap();
    assert_eq!(f.client.readdir(1, 0, 20), Err(Errno::EINVAL));
    let entries = f.client.list(1, 24 + 255).unwrap();
    assert_eq!(entries.len(), 3);
    assert_eq!(f.client.readdir(1, 0, 0), Err(Errno::EINVAL));
}

#[test]
fn entries_carry_type_number_and_cookie() {
    let mut f = Fixture::new();
    f.write("file", "");
    std::fs::create_dir(f.path("dir")).unwrap();
    std::os::unix::fs::symlink("x", f.path("link")).unwrap();
    f.client.clone_fid(0, 1).unwrap();
    f.client.lopen(1, O_RDONLY).unwrap();
    let entries = f.client.list(1, 8192).unwrap();
    for (name, kind, d_type) in [
        ("file", 0, libc::DT_REG),
        ("dir", 0x80, libc::DT_DIR),
        ("link", 2, libc::DT_LNK),
    ] {
        let entry = entries.iter().find(|e| e.name == name.as_bytes()).unwrap();
        assert_eq!((entry.qid.kind, entry.kind), (kind, d_type));
        f.client.walk_all(0, 2, &[name]).unwrap();
        assert_eq!(f.client.stat(2).unwrap().qid.path, entry.qid.path);
        f.client.clunk(2).unwrap();
    }
    let mut cookies: Vec<u64> = entries.iter().map(|e| e.offset).collect();
    assert!(cookies.iter().all(|&c| c > 0 && i64::try_from(c).is_ok()));
    cookies.sort_unstable();
    cookies.dedup();
    assert_eq!(cookies.len(), entries.len());
}

#[test]
fn cookies_survive_clunk_and_reopen() {
    let mut f = Fixture::new();
    let want = hundred(&f);
    let mut got = Vec::new();
    let mut cookie = 0;
    loop {
        f.client.clone_fid(0, 1).unwrap();
        f.client.lopen(1, O_RDONLY).unwrap();
        let entries = f.client.readdir(1, cookie, 300).unwrap();
        f.client.clunk(1).unwrap();
        let Some(last) = entries.last() else { break };
        cookie = last.offset;
        got.extend(entries.into_iter().map(|e| String::from_utf8(e.name).unwrap()));
    }
    got.sort();
    assert_eq!(got, want);
}

#[test]
fn changes_during_a_listing_leave_the_others_alone() {
    let mut f = Fixture::new();
    hundred(&f);
    f.client.clone_fid(0, 1).unwrap();
    f.client.lopen(1, O_RDONLY).unwrap();
    let mut seen = Vec::new();
    let mut cookie = 0;
    let mut round = 0;
    loop {
        let entries = f.client.readdir(1, cookie, 256).unwrap();
        let Some(last) = entries.last() else { break };
        cookie = last.offset;
        // Entries already seen vanish, others appear.
        for entry in &entries {
            let name = String::from_utf8(entry.name.clone()).unwrap();
            if name.ends_with('7') {
                let _ = std::fs::remove_file(f.path(&name));
            }
            seen.push(name);
        }
        f.write(&format!("new{round}"), "");
        round += 1;
        assert!(round < 1000, "the listing goes in circles");
    }
    let before = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), before, "an entry came twice");
    for at in 0..100 {
        assert!(seen.contains(&format!("ReadDirFile{at}")), "{at}");
    }
}

#[test]
fn only_open_directories_are_listed() {
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    assert_eq!(f.client.readdir(1, 0, 1000), Err(Errno::ENOTDIR));
    assert_eq!(f.client.readdir(0, 0, 1000), Err(Errno::ENOTDIR));
    assert_eq!(f.client.readdir(9, 0, 1000), Err(Errno::EINVAL));
}

#[test]
fn directories_come_and_go() {
    each(|mut f| {
        let qid = f.client.mkdir(0, "dir", 0o2750, gid()).unwrap();
        assert_eq!(qid.kind, 0x80);
        assert_eq!(f.host("dir").mode() & 0o7777, 0o2750);
        assert_eq!(f.client.mkdir(0, "dir", 0o750, gid()), Err(Errno::EEXIST));
        assert_eq!(f.client.walk_all(0, 1, &["dir"]).unwrap(), qid);
        assert_eq!(f.client.unlinkat(0, "dir", 0), Err(Errno::EISDIR));
        f.client.mkdir(1, "sub", 0o755, gid()).unwrap();
        assert_eq!(f.client.unlinkat(0, "dir", 0x200), Err(Errno::ENOTEMPTY));
        // An open directory is as good as any.
        f.client.lopen(1, O_RDONLY).unwrap();
        f.client.mkdir(1, "sub2", 0o755, gid()).unwrap();
        f.client.unlinkat(1, "sub", 0x200).unwrap();
        f.client.unlinkat(1, "sub2", 0x200).unwrap();
        f.client.unlinkat(0, "dir", 0x200).unwrap();
        assert!(!f.path("dir").exists());
    });
}

#[test]
fn files_come_and_go() {
    each(|mut f| {
        f.create(1, "file", O_RDWR);
        assert!(f.path("file").is_file());
        assert_eq!(f.client.unlinkat(0, "file", 0x200), Err(Errno::ENOTDIR));
        f.client.unlinkat(0, "file", 0).unwrap();
        assert!(!f.path("file").exists());
        assert_eq!(f.client.unlinkat(0, "file", 0), Err(Errno::ENOENT));
    });
}

#[test]
fn special_files() {
    let mut f = Fixture::new();
    f.client
        .mknod(0, "fifo", libc::S_IFIFO | 0o640, (0, 0), gid())
        .unwrap();
    f.client
        .mknod(0, "sock", libc::S_IFSOCK | 0o600, (0, 0), gid())
        .unwrap();
    f.client
        .mknod(0, "reg", libc::S_IFREG | 0o600, (0, 0), gid())
        .unwrap();
    assert!(f.host("fifo").file_type().is_fifo());
    assert_eq!(f.host("fifo").mode() & 0o7777, 0o640);
    assert!(f.host("sock").file_type().is_socket());
    assert!(f.host("reg").is_file());
}

#[test]
fn devices_are_made_where_they_are_allowed() {
    for allow_devices in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let options = ShareOptions {
            allow_devices,
            ..ShareOptions::new(dir.path(), SecurityModel::Passthrough)
        };
        let mut f = Fixture::on(dir, Arc::new(Share::open(&options).unwrap()), Limits::default());
        let made = f.client.mknod(0, "dev", libc::S_IFCHR | 0o600, (1, 7), gid());
        // Also where this process may not make any.
        if !allow_devices || made.is_err() {
            assert_eq!(made, Err(Errno::EPERM));
            assert!(!f.path("dev").exists());
            continue;
        }
        assert_eq!(f.host("dev").rdev(), libc::makedev(1, 7));
        f.client.walk_all(0, 1, &["dev"]).unwrap();
        assert_eq!(f.client.stat(1).unwrap().rdev, libc::makedev(1, 7));
    }
}

#[test]
fn renames() {
    each(|mut f| {
        f.client.mkdir(0, "a", 0o755, gid()).unwrap();
        f.client.mkdir(0, "b", 0o755, gid()).unwrap();
        f.client.walk_all(0, 1, &["a"]).unwrap();
        f.client.walk_all(0, 2, &["b"]).unwrap();
        f.write("a/file", "data");
        f.client.walk_all(1, 3, &["file"]).unwrap();
        f.client.renameat(1, "file", 2, "moved").unwrap();
        assert_eq!(std::fs::read(f.path("b/moved")).unwrap(), b"data");
        // The fid is the same object still.
        f.client.lopen(3, O_RDONLY).unwrap();
        assert_eq!(f.client.read(3, 0, 10).unwrap(), b"data");
        assert_eq!(f.client.renameat(1, "none", 2, "x"), Err(Errno::ENOENT));
        assert_eq!(f.client.renameat(9, "none", 2, "x"), Err(Errno::ENOENT));
        for dots in [".", ".."] {
            assert_eq!(f.client.renameat(1, dots, 2, "x"), Err(Errno::EISDIR));
            assert_eq!(f.client.renameat(2, "moved", 1, dots), Err(Errno::EISDIR));
        }
    });
}

#[test]
fn renames_by_fid() {
    each(|mut f| {
        f.client.mkdir(0, "dir", 0o755, gid()).unwrap();
        f.write("file", "data");
        f.client.walk_all(0, 1, &["dir"]).unwrap();
        f.client.walk_all(0, 2, &["file"]).unwrap();
        f.client.rename(2, 1, "moved").unwrap();
        assert_eq!(std::fs::read(f.path("dir/moved")).unwrap(), b"data");
        // In the same directory, and again: the fid knows where it is.
        f.client.rename(2, wire::NOFID, "again").unwrap();
        f.client.rename(2, 0, "file").unwrap();
        assert_eq!(std::fs::read(f.path("file")).unwrap(), b"data");
        // A fid that came by several names.
        f.client.mkdir(1, "deep", 0o755, gid()).unwrap();
        f.write("dir/deep/x", "x");
        f.client.walk_all(0, 3, &["dir", "deep", "x"]).unwrap();
        f.client.rename(3, 0, "y").unwrap();
        assert_eq!(std::fs::read(f.path("y")).unwrap(), b"x");
        assert_eq!(f.client.rename(0, 1, "root"), Err(Errno::EBUSY));
        assert_eq!(f.client.rename(2, 1, ".."), Err(Errno::EISDIR));
        assert_eq!(f.client.rename(9, 1, "x"), Err(Errno::ENOENT));
    });
}

#[test]
fn bad_names_and_flags() {
    let mut f = Fixture::new();
    for dots in [".", ".."] {
        assert_eq!(f.client.mkdir(0, dots, 0o755, 0), Err(Errno::EEXIST));
        assert_eq!(
            f.client.mknod(0, dots, libc::S_IFIFO, (0, 0), 0),
            Err(Errno::EEXIST)
        );
    }
    assert_eq!(f.client.unlinkat(0, ".", 0x200), Err(Errno::EINVAL));
    assert_eq!(f.client.unlinkat(0, "..", 0x200), Err(Errno::ENOTEMPTY));
    f.write("file", "");
    assert_eq!(f.client.unlinkat(0, "file", 1), Err(Errno::EINVAL));
    assert_eq!(f.client.unlinkat(9, "file", 0), Err(Errno::EINVAL));
    assert_eq!(f.client.mkdir(9, "x", 0o755, 0), Err(Errno::ENOENT));
    assert_eq!(f.client.mkdir(0, "a/b", 0o755, 0), Err(Errno::ENOENT));
    f.client.walk_all(0, 1, &["file"]).unwrap();
    assert_eq!(f.client.mkdir(1, "x", 0o755, 0), Err(Errno::ENOTDIR));
    assert_eq!(f.client.unlinkat(1, "x", 0), Err(Errno::ENOTDIR));
}
