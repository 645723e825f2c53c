//! Tlopen and Tlcreate.

use std::os::unix::fs::MetadataExt;

use testkit::client::Errno;

use crate::common::*;

#[test]
fn open_gives_the_qid_and_whole_pages() {
    each(|mut f| {
        f.write("file", "data");
        let qid = f.client.walk_all(0, 1, &["file"]).unwrap();
        let answer = f.client.lopen(1, O_RDWR).unwrap();
        assert_eq!(answer.qid.path, qid.path);
        assert_eq!(answer.iounit, 507_904);
        f.client.clone_fid(0, 2).unwrap();
        assert_eq!(f.client.lopen(2, O_RDONLY).unwrap().iounit, 0);
        f.client.version(4096).unwrap();
        f.client.attach(0, 0).unwrap();
        f.client.walk_all(0, 1, &["file"]).unwrap();
        assert_eq!(f.client.lopen(1, O_RDWR).unwrap().iounit, 4072);
    });
}

#[test]
fn what_cannot_be_opened() {
    each(|mut f| {
        f.write("file", "");
        std::fs::create_dir(f.path("dir")).unwrap();
        std::os::unix::fs::symlink("file", f.path("link")).unwrap();
        f.client
            .mknod(0, "fifo", libc::S_IFIFO | 0o600, (0, 0), gid())
            .unwrap();
        let mut open = |name: &str, flags| {
            f.client.walk_all(0, 1, &[name]).unwrap();
            let result = f.client.lopen(1, flags).map(drop);
            f.client.clunk(1).unwrap();
            result
        };
        assert_eq!(open("dir", O_RDWR), Err(Errno::EISDIR));
        assert_eq!(open("dir", O_WRONLY), Err(Errno::EISDIR));
        assert_eq!(open("link", O_RDONLY), Err(Errno::ELOOP));
        assert_eq!(open("fifo", O_RDONLY), Err(Errno::ENXIO));
        assert_eq!(open("file", 3), Err(Errno::EINVAL));
        assert_eq!(open("file", 0o200000), Err(Errno::ENOTDIR));
        // O_CREAT, O_EXCL, O_NOCTTY, O_NONBLOCK, O_DIRECT, O_CLOEXEC and unknown bits mean nothing here.
        assert_eq!(
            open(
                "file",
                O_RDWR | 0o100 | 0o200 | 0o400 | 0o4000 | 0o40000 | 0o2000000 | 1 << 30
            ),
            Ok(())
        );
        assert_eq!(f.client.lopen(9, O_RDONLY), Err(Errno::ENOENT));
    });
}

#[test]
fn an_open_fid_is_not_opened_again() {
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    assert_eq!(f.client.lopen(1, O_RDONLY), Err(Errno::EINVAL));
    assert_eq!(f.client.lcreate(1, "x", O_RDWR, 0o644, 0), Err(Errno::EINVAL));
    f.client.clone_fid(0, 2).unwrap();
    f.client.lopen(2, O_RDONLY).unwrap();
    assert_eq!(f.client.lcreate(2, "x", O_RDWR, 0o644, 0), Err(Errno::EINVAL));
    assert!(!f.path("x").exists());
}

#[test]
fn truncation_at_open() {
    each(|mut f| {
        f.write("file", "data");
        f.open(1, "file", O_RDWR | O_TRUNC);
        assert_eq!(f.host("file").size(), 0);
    });
}

#[test]
fn create_makes_a_file() {
    each(|mut f| {
        f.client.clone_fid(0, 1).unwrap();
        let answer = f
            .client
            .lcreate(1, "file", O_RDWR | O_EXCL, 0o4751, gid())
            .unwrap();
        assert_eq!(f.client.stat(1).unwrap().qid.path, answer.qid.path);
        assert_eq!(f.host("file").mode(), 0o104_751);
        f.client.write(1, 0, b"data").unwrap();
        assert_eq!(f.client.read(1, 0, 100).unwrap(), b"data");
        // The fid is the file now, not the directory.
        assert_eq!(f.client.walk(1, 2, &["file"]), Err(Errno::ENOTDIR));
    });
}

#[test]
fn create_leaves_what_is_there_alone() {
    each(|mut f| {
        f.write("file", "data");
        std::fs::set_permissions(
            f.path("file"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        f.client.clone_fid(0, 1).unwrap();
        assert_eq!(
            f.client.lcreate(1, "file", O_RDWR | O_EXCL, 0o777, 12345),
            Err(Errno::EEXIST)
        );
        f.client.lcreate(1, "file", O_RDWR, 0o777, 12345).unwrap();
        let meta = f.host("file");
        assert_eq!((meta.mode() & 0o7777, meta.size()), (0o600, 4));
        assert_ne!(meta.gid(), 12345);
        assert_eq!(f.client.read(1, 0, 10).unwrap(), b"data");
    });
}

#[test]
fn create_refuses_what_is_no_name() {
    let mut f = Fixture::new();
    std::fs::create_dir(f.path("dir")).unwrap();
    f.client.clone_fid(0, 1).unwrap();
    let mut create = |name: &[u8]| f.client.lcreate(1, name, O_RDWR, 0o644, 0).map(drop);
    assert_eq!(create(b"."), Err(Errno::EEXIST));
    assert_eq!(create(b".."), Err(Errno::EEXIST));
    assert_eq!(create(b""), Err(Errno::ENOENT));
    assert_eq!(create(b"a/b"), Err(Errno::ENOENT));
    assert_eq!(create(b"a\0b"), Err(Errno::ENOENT));
    assert_eq!(create(&[b'x'; 256]), Err(Errno::ENAMETOOLONG));
    assert_eq!(create(b"dir"), Err(Errno::EISDIR));
    assert_eq!(f.client.lcreate(9, "x", O_RDWR, 0o644, 0), Err(Errno::ENOENT));
    f.write("file", "");
    f.client.walk_all(0, 2, &["file"]).unwrap();
    assert_eq!(f.client.lcreate(2, "x", O_RDWR, 0o644, 0), Err(Errno::ENOTDIR));
}

#[test]
fn a_readonly_share_is_only_read() {
    let mut f = Fixture::readonly();
    f.client.walk_all(0, 1, &["file"]).unwrap();
    for flags in [O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC] {
        assert_eq!(f.client.lopen(1, flags), Err(Errno::EROFS));
    }
    f.client.lopen(1, O_RDONLY).unwrap();
    assert_eq!(f.client.read(1, 0, 10).unwrap(), b"data");
    f.client.clone_fid(0, 2).unwrap();
    assert_eq!(f.client.lcreate(2, "x", O_RDWR, 0o644, 0), Err(Errno::EROFS));
}
