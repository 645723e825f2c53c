//! An open file that has no name any more does all that an open file can.

use std::os::unix::fs::MetadataExt;

use testkit::client::Errno;
use wire::*;

use crate::common::*;

#[test]
fn an_unlinked_file_is_a_file() {
    each(|mut f| {
        f.create(1, "file", O_RDWR);
        let host = std::fs::File::open(f.path("file")).unwrap();
        f.client.unlinkat(0, "file", 0).unwrap();
        let meta = || host.metadata().unwrap();
        let data = vec![9; 16 * 1024];
        assert_eq!(f.client.write(1, 0, &data).unwrap(), 16 * 1024);
        assert_eq!(f.client.read(1, 0, 16 * 1024).unwrap(), data);
        let attr = f.client.stat(1).unwrap();
        assert_eq!((attr.size, attr.nlink), (16 * 1024, 0));
        f.client.truncate(1, 100).unwrap();
        f.client.chmod(1, 0o100_604).unwrap();
        f.client.chown(1, meta().uid(), meta().gid()).unwrap();
        f.client
            .setattr(&Tsetattr {
                fid: 1,
                valid: P9_SETATTR_MTIME | P9_SETATTR_MTIME_SET,
                mtime_sec: 12,
                ..Tsetattr::default()
            })
            .unwrap();
        assert_eq!(
            (meta().size(), meta().mode() & 0o7777, meta().mtime()),
            (100, 0o604, 12)
        );
        f.client.fsync(1, 0).unwrap();
        f.client.statfs(1).unwrap();
        f.client.setxattr(1, 2, "user.test", b"value", 0).unwrap();
        assert_eq!(f.client.getxattr(1, 2, "user.test").unwrap(), b"value");
        assert_eq!(f.client.getxattr(1, 2, "").unwrap(), b"user.test\0");
        // A clone is the same object, and can be opened.
        f.client.clone_fid(1, 3).unwrap();
        assert_eq!(f.client.stat(3).unwrap().qid.path, attr.qid.path);
        f.client.chmod(3, 0o100_600).unwrap();
        f.client.lopen(3, O_RDONLY).unwrap();
        assert_eq!(f.client.read(3, 0, 1000).unwrap().len(), 100);
        assert!(f.client.link(0, 1, "again").is_err());
        f.client.clunk(1).unwrap();
        assert_eq!(f.client.read(3, 0, 1000).unwrap().len(), 100);
    });
}

#[test]
fn a_removed_directory_lists_nothing() {
    let mut f = Fixture::new();
    f.client.mkdir(0, "dir", 0o755, gid()).unwrap();
    f.open(1, "dir", O_RDONLY);
    f.client.unlinkat(0, "dir", 0x200).unwrap();
    // As Linux itself answers; readdir(3) takes it for the end.
    assert_eq!(f.client.readdir(1, 0, 4096), Err(Errno::ENOENT));
    f.client.stat(1).unwrap();
    assert_eq!(f.client.walk(1, 2, &["x"]), Err(Errno::ENOENT));
    assert_eq!(f.client.mkdir(1, "x", 0o755, 0), Err(Errno::ENOENT));
    f.client.clunk(1).unwrap();
}

#[test]
fn a_successor_is_another_object() {
    each(|mut f| {
        f.create(1, "file", O_RDWR);
        f.client.write(1, 0, b"old").unwrap();
        f.client.walk_all(0, 2, &["file"]).unwrap();
        f.write("new", "new");
        std::fs::rename(f.path("new"), f.path("file")).unwrap();
        assert_eq!(f.client.read(1, 0, 10).unwrap(), b"old");
        f.client.lopen(2, O_RDONLY).unwrap();
        assert_eq!(f.client.read(2, 0, 10).unwrap(), b"old");
        f.open(3, "file", O_RDONLY);
        assert_eq!(f.client.read(3, 0, 10).unwrap(), b"new");
    });
}
