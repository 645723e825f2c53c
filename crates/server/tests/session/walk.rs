//! Twalk, Tclunk, Tremove.

use testkit::client::Errno;

use crate::common::*;

fn tree(f: &Fixture) {
    std::fs::create_dir_all(f.path("a/b/c")).unwrap();
    f.write("a/b/c/file", "data");
    f.write("plain", "");
    std::os::unix::fs::symlink("/etc", f.path("link")).unwrap();
}

#[test]
fn a_walk_gives_a_qid_per_name() {
    each(|mut f| {
        tree(&f);
        let qids = f.client.walk(0, 1, &["a", "b", "c", "file"]).unwrap();
        assert_eq!(qids.len(), 4);
        assert_eq!(
            qids.iter().map(|q| q.kind).collect::<Vec<_>>(),
            [0x80, 0x80, 0x80, 0]
        );
        assert_eq!(f.client.stat(1).unwrap().qid.path, qids[3].path);
        assert_eq!(f.client.stat(1).unwrap().size, 4);
    });
}

#[test]
fn sixteen_names_are_the_most() {
    let mut f = Fixture::new();
    let names = vec!["d"; 16];
    std::fs::create_dir_all(f.dir.path().join(names.join("/"))).unwrap();
    assert_eq!(f.client.walk(0, 1, &names).unwrap().len(), 16);
    let mut frame = vec![0, 0, 0, 0, 110, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 17, 0];
    for _ in 0..17 {
        frame.extend_from_slice(&[1, 0, b'd']);
    }
    frame[0] = u8::try_from(frame.len()).unwrap();
    assert_eq!(f.client.raw(&frame, 4096)[7], libc::EINVAL as u8);
}

#[test]
fn a_name_with_a_slash_is_no_name() {
    let mut f = Fixture::new();
    tree(&f);
    for bad in [&b" /"[..], b"", b"a/b", b"a\0", b"/"] {
        assert_eq!(f.client.walk(0, 1, &[bad]), Err(Errno::ENOENT));
        // Checked before the first step.
        assert_eq!(f.client.walk(0, 1, &[b"a", bad]), Err(Errno::ENOENT));
    }
    assert_eq!(f.client.walk(0, 1, &[&[b'x'; 256][..]]), Err(Errno::ENAMETOOLONG));
}

#[test]
fn no_names_make_a_clone() {
    let mut f = Fixture::new();
    assert!(f.client.walk::<&str>(0, 1, &[]).unwrap().is_empty());
    let (root, clone) = (f.client.stat(0).unwrap().qid, f.client.stat(1).unwrap().qid);
    assert_eq!((root.kind, root.path), (clone.kind, clone.path));
    f.client.clone_fid(1, 1).unwrap();
    f.client.clunk(1).unwrap();
}

#[test]
fn dotdot_of_the_root_is_the_root() {
    let mut f = Fixture::new();
    tree(&f);
    let root = f.client.stat(0).unwrap().qid;
    assert_eq!(f.client.walk(0, 1, &[".."]).unwrap(), [root]);
    let there_and_back = f.client.walk(0, 2, &["a", "b", "..", "..", "..", ".."]).unwrap();
    assert_eq!(there_and_back.last(), Some(&root));
    // The way back leaves names that still lead somewhere.
    f.client
        .walk_all(0, 3, &["a", "b", "..", "b", "c", "..", "c", "file"])
        .unwrap();
    f.client.remove(3).unwrap();
    assert!(!f.path("a/b/c/file").exists());
}

#[test]
fn a_walk_may_stop_early() {
    let mut f = Fixture::new();
    tree(&f);
    assert_eq!(f.client.walk(0, 1, &["none"]), Err(Errno::ENOENT));
    let qids = f.client.walk(0, 1, &["a", "none", "b"]).unwrap();
    assert_eq!(qids.len(), 1);
    assert_ne!(qids[0], f.client.stat(0).unwrap().qid);
    // No new fid then.
    assert_eq!(f.client.stat(1), Err(Errno::ENOENT));
    assert_eq!(f.client.walk(0, 1, &["plain", "x"]).unwrap().len(), 1);
    assert_eq!(f.client.walk(0, 1, &["plain", ".."]).unwrap().len(), 1);
}

#[test]
fn symlinks_are_objects_not_ways() {
    let mut f = Fixture::new();
    tree(&f);
    let qids = f.client.walk(0, 1, &["link", "passwd"]).unwrap();
    assert_eq!(qids.len(), 1);
    assert_eq!(qids[0].kind, 2);
}

#[test]
fn fids_in_use_are_refused() {
    let mut f = Fixture::new();
    tree(&f);
    f.client.walk_all(0, 1, &["plain"]).unwrap();
    assert_eq!(f.client.walk(0, 1, &["a"]), Err(Errno::EINVAL));
    assert_eq!(f.client.walk::<&str>(0, 1, &[]), Err(Errno::EINVAL));
    assert_eq!(f.client.walk(9, 2, &["a"]), Err(Errno::ENOENT));
    assert_eq!(f.client.clunk(9), Err(Errno::ENOENT));
    // All bits set is a fid like any other.
    f.client.walk_all(0, u32::MAX, &["a"]).unwrap();
    f.client.clunk(u32::MAX).unwrap();
}

#[test]
fn a_fid_can_walk_itself() {
    let mut f = Fixture::new();
    tree(&f);
    f.client.clone_fid(0, 1).unwrap();
    let qid = f.client.walk_all(1, 1, &["a", "b"]).unwrap();
    assert_eq!(f.client.stat(1).unwrap().qid.path, qid.path);
    // A failed walk leaves it where it was.
    assert_eq!(f.client.walk(1, 1, &["c", "none"]).unwrap().len(), 1);
    assert_eq!(f.client.stat(1).unwrap().qid.path, qid.path);
    // Not once it is open.
    f.client.lopen(1, O_RDONLY).unwrap();
    assert_eq!(f.client.walk(1, 1, &["c"]), Err(Errno::EINVAL));
    assert_eq!(f.client.clone_fid(1, 1), Err(Errno::EINVAL));
}

#[test]
fn an_open_fid_is_a_source() {
    each(|mut f| {
        tree(&f);
        f.open(1, "a", O_RDONLY);
        let qid = f.client.walk_all(1, 2, &["b", "c", "file"]).unwrap();
        f.client.lopen(2, O_RDWR).unwrap();
        f.client.clone_fid(2, 3).unwrap();
        assert_eq!(f.client.stat(3).unwrap().qid.path, qid.path);
        f.client.lopen(3, O_RDONLY).unwrap();
        assert_eq!(f.client.read(3, 0, 10).unwrap(), b"data");
    });
}

#[test]
fn remove_removes_and_always_clunks() {
    each(|mut f| {
        tree(&f);
        f.client.walk_all(0, 1, &["a", "b", "c", "file"]).unwrap();
        f.client.remove(1).unwrap();
        assert!(!f.path("a/b/c/file").exists());
        assert_eq!(f.client.stat(1), Err(Errno::ENOENT));
        f.client.walk_all(0, 1, &["a"]).unwrap();
        assert_eq!(f.client.remove(1), Err(Errno::ENOTEMPTY));
        assert_eq!(f.client.stat(1), Err(Errno::ENOENT));
        f.client.walk_all(0, 1, &["a", "b", "c"]).unwrap();
        f.client.remove(1).unwrap();
        assert_eq!(f.client.remove(1), Err(Errno::EINVAL));
        f.client.clone_fid(0, 1).unwrap();
        assert_eq!(f.client.remove(1), Err(Errno::EBUSY));
    });
}

#[test]
fn remove_never_takes_another_object() {
    let mut f = Fixture::new();
    tree(&f);
    f.client.walk_all(0, 1, &["plain"]).unwrap();
    std::fs::rename(f.path("plain"), f.path("moved")).unwrap();
    f.write("plain", "another");
    assert_eq!(f.client.remove(1), Err(Errno::ESTALE));
    assert_eq!(std::fs::read(f.path("plain")).unwrap(), b"another");
}

#[test]
fn remove_follows_the_guests_own_renames() {
    let mut f = Fixture::new();
    tree(&f);
    f.client.walk_all(0, 1, &["plain"]).unwrap();
    f.client.walk_all(0, 2, &["a"]).unwrap();
    f.client.renameat(0, "plain", 2, "moved").unwrap();
    f.client.renameat(0, "a", 0, "z").unwrap();
    f.client.remove(1).unwrap();
    assert!(!f.path("z/moved").exists());
}

#[test]
fn remove_and_rename_never_take_another_name_of_the_object() {
    let mut f = Fixture::new();
    tree(&f);
    std::fs::hard_link(f.path("plain"), f.path("other")).unwrap();
    f.client.walk_all(0, 1, &["plain"]).unwrap();
    f.client.walk_all(0, 2, &["other"]).unwrap();
    assert_eq!(f.client.rename(1, 0, "new"), Err(Errno::EOPNOTSUPP));
    assert_eq!(f.client.remove(1), Err(Errno::EOPNOTSUPP));
    assert!(f.path("plain").exists() && f.path("other").exists());
    // By name there is no doubt, and without the other name none either.
    f.client.unlinkat(0, "plain", 0).unwrap();
    f.client.remove(2).unwrap();
    assert!(!f.path("other").exists());
}

/// The kernel may have to go up to the root for each step.
#[test]
fn steps_up_are_not_for_the_queue_thread() {
    let mut f = Fixture::new();
    std::fs::create_dir_all(f.path("a/b")).unwrap();
    f.client.walk_all(0, 1, &["a", "b"]).unwrap();
    assert!(!f.deferred());
    f.client.walk_all(1, 2, &[".."]).unwrap();
    assert!(f.deferred());
}
