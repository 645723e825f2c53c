//! Tlink, Tsymlink, Treadlink.

use std::os::unix::fs::MetadataExt;

use testkit::client::Errno;

use crate::common::*;

#[test]
fn hard_links() {
    each(|mut f| {
        f.create(1, "file", O_RDWR);
        // From an open fid and from a closed one.
        f.client.link(0, 1, "open").unwrap();
        f.client.walk_all(0, 2, &["file"]).unwrap();
        f.client.link(0, 2, "closed").unwrap();
        for name in ["open", "closed"] {
            assert_eq!(
                (f.host(name).ino(), f.host(name).dev()),
                (f.host("file").ino(), f.host("file").dev())
            );
        }
        assert_eq!(f.host("file").nlink(), 3);
        f.client.unlinkat(0, "open", 0).unwrap();
        assert!(f.path("file").exists());
        assert_eq!(f.client.link(0, 1, "closed"), Err(Errno::EEXIST));
        assert_eq!(f.client.link(0, 1, ".."), Err(Errno::EEXIST));
        assert_eq!(f.client.link(0, 9, "x"), Err(Errno::ENOENT));
        assert_eq!(f.client.link(2, 1, "x"), Err(Errno::ENOTDIR));
        assert_eq!(f.client.link(0, 0, "x"), Err(Errno::EPERM));
    });
}

#[test]
fn symlinks() {
    each(|mut f| {
        let qid = f.client.symlink(0, "link", "../some/where", gid()).unwrap();
        assert_eq!(qid.kind, 2);
        assert_eq!(
            std::fs::read_link(f.path("link")).unwrap().to_str(),
            Some("../some/where")
        );
        assert_eq!(f.client.walk_all(0, 1, &["link"]).unwrap(), qid);
        assert_eq!(f.client.readlink(1).unwrap(), b"../some/where");
        f.client.unlinkat(0, "link", 0).unwrap();
        assert!(std::fs::symlink_metadata(f.path("link")).is_err());
    });
}

#[test]
fn targets_have_bounds() {
    let mut f = Fixture::new();
    let longest = vec![b'x'; 4095];
    f.client.symlink(0, "long", &longest, 0).unwrap();
    f.client.walk_all(0, 1, &["long"]).unwrap();
    assert_eq!(f.client.readlink(1).unwrap(), longest);
    assert_eq!(
        f.client.symlink(0, "x", vec![b'x'; 4096], 0),
        Err(Errno::ENAMETOOLONG)
    );
    assert_eq!(f.client.symlink(0, "x", "", 0), Err(Errno::ENOENT));
    assert_eq!(f.client.symlink(0, "x", "a\0b", 0), Err(Errno::EINVAL));
    assert_eq!(f.client.symlink(0, "long", "y", 0), Err(Errno::EEXIST));
    assert_eq!(f.client.readlink(0), Err(Errno::EINVAL));
    assert_eq!(f.client.readlink(9), Err(Errno::ENOENT));
    // A reply without room gets an error, not half a target.
    let answer = f.client.raw(&[11, 0, 0, 0, 22, 1, 0, 1, 0, 0, 0], 4096);
    assert_eq!(answer[7..], libc::EMSGSIZE.to_le_bytes());
    let answer = f.client.raw(&[11, 0, 0, 0, 22, 1, 0, 1, 0, 0, 0], 4104);
    assert_eq!(answer.len(), 4104);
}
