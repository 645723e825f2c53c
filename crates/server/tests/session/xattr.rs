//! Txattrwalk and Txattrcreate.

use server::Limits;
use testkit::client::Errno;
use wire::{P9_XATTR_CREATE, P9_XATTR_REPLACE};

use crate::common::*;

fn file() -> Fixture {
    let mut f = Fixture::new();
    f.write("file", "");
    f.client.walk_all(0, 1, &["file"]).unwrap();
    f
}

#[test]
fn values_go_and_come_back() {
    let mut f = file();
    f.client.setxattr(1, 5, "user.test", b"value", 0).unwrap();
    assert_eq!(f.client.getxattr(1, 5, "user.test").unwrap(), b"value");
    // Of any length; empty is one.
    for len in [0, 1, 100, 3000] {
        f.client.setxattr(1, 5, "user.test", &vec![b'v'; len], 0).unwrap();
        assert_eq!(f.client.getxattr(1, 5, "user.test").unwrap().len(), len);
    }
    assert_eq!(f.client.getxattr(1, 5, "user.none"), Err(Errno::ENODATA));
    assert_eq!(f.client.xattrwalk(9, 5, "user.test"), Err(Errno::ENOENT));
    assert_eq!(f.client.xattrwalk(1, 1, "user.test"), Err(Errno::EINVAL));
}

#[test]
fn create_replace_and_remove() {
    let mut f = file();
    let mut set = |value: &[u8], flags| f.client.setxattr(1, 5, "user.test", value, flags);
    assert_eq!(set(b"a", P9_XATTR_REPLACE), Err(Errno::ENODATA));
    assert_eq!(set(b"", P9_XATTR_CREATE), Ok(()));
    assert_eq!(set(b"a", P9_XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(set(b"a", P9_XATTR_REPLACE), Ok(()));
    assert_eq!(f.client.getxattr(1, 5, "user.test").unwrap(), b"a");
    // What Linux sends for removexattr(2).
    f.client
        .setxattr(1, 5, "user.test", b"", P9_XATTR_REPLACE)
        .unwrap();
    assert_eq!(f.client.getxattr(1, 5, "user.test"), Err(Errno::ENODATA));
    assert_eq!(
        f.client.setxattr(1, 5, "user.test", b"", P9_XATTR_REPLACE),
        Err(Errno::ENODATA)
    );
}

#[test]
fn an_acl_of_nothing_is_removed() {
    let mut f = file();
    // user::rw-, user:1000:r--, group::r--, mask::r--, other::---
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let name = "system.posix_acl_access";
    if f.client.setxattr(1, 5, name, &acl, 0) == Err(Errno::EOPNOTSUPP) {
        return;
    }
    assert_eq!(f.client.getxattr(1, 5, name).unwrap(), acl);
    for _ in 0..2 {
        f.client.setxattr(1, 5, name, b"", 0).unwrap();
        assert_eq!(f.client.getxattr(1, 5, name), Err(Errno::ENODATA));
    }
}

#[test]
fn names_are_listed() {
    let mut f = file();
    assert_eq!(f.client.getxattr(1, 5, "").unwrap(), b"");
    f.client.setxattr(1, 5, "user.a", b"1", 0).unwrap();
    f.client.setxattr(1, 5, "user.b", b"2", 0).unwrap();
    let list = f.client.getxattr(1, 5, "").unwrap();
    let mut names: Vec<&[u8]> = list
        .split(|&b| b == 0)
        .filter(|n| n.starts_with(b"user."))
        .collect();
    names.sort();
    assert_eq!(names, [b"user.a", b"user.b"]);
    assert_eq!(list.last(), Some(&0));
}

#[test]
fn a_value_is_read_in_slices() {
    let mut f = file();
    let value: Vec<u8> = (0..3000).map(|i| i as u8).collect();
    f.client.setxattr(1, 5, "user.test", &value, 0).unwrap();
    assert_eq!(f.client.xattrwalk(1, 5, "user.test").unwrap(), 3000);
    assert_eq!(f.client.read(5, 0, 1000).unwrap(), value[..1000]);
    assert_eq!(f.client.read(5, 2900, 1000).unwrap(), value[2900..]);
    assert_eq!(f.client.read(5, 3000, 1000).unwrap(), b"");
    assert_eq!(f.client.read(5, u64::MAX, 1000).unwrap(), b"");
    // It is what it was when it was asked for.
    f.client.setxattr(1, 6, "user.test", b"short", 0).unwrap();
    assert_eq!(f.client.read(5, 0, 4000).unwrap(), value);
    assert_eq!(f.client.write(5, 0, b"x"), Err(Errno::EINVAL));
}

#[test]
fn a_value_is_written_whole_or_not_at_all() {
    let mut f = file();
    let start = |f: &mut Fixture, size, flags| {
        f.client.clone_fid(1, 5).unwrap();
        f.client.xattrcreate(5, "user.test", size, flags).unwrap();
    };
    start(&mut f, 6, 0);
    assert_eq!(f.client.read(5, 0, 6), Err(Errno::EINVAL));
    f.client.write(5, 0, b"abc").unwrap();
    assert_eq!(f.client.write(5, 4, b"x"), Err(Errno::EINVAL));
    assert_eq!(f.client.write(5, 3, b"defg"), Err(Errno::ENOSPC));
    assert_eq!(f.client.write(5, u64::MAX, b"d"), Err(Errno::ENOSPC));
    f.client.write(5, 3, b"def").unwrap();
    f.client.write(5, 0, b"A").unwrap();
    f.client.clunk(5).unwrap();
    assert_eq!(f.client.getxattr(1, 5, "user.test").unwrap(), b"Abcdef");
    start(&mut f, 6, 0);
    f.client.write(5, 0, b"half").unwrap();
    assert_eq!(f.client.clunk(5), Err(Errno::EINVAL));
    assert_eq!(f.client.clunk(5), Err(Errno::ENOENT));
    start(&mut f, 6, 0);
    f.client.write(5, 0, b"gone").unwrap();
    assert_eq!(f.client.remove(5), Err(Errno::EINVAL));
    assert_eq!(f.client.getxattr(1, 5, "user.test").unwrap(), b"Abcdef");
    assert!(f.path("file").exists());
}

#[test]
fn bad_requests() {
    let mut f = file();
    assert_eq!(f.client.xattrcreate(1, "user.test", 65537, 0), Err(Errno::E2BIG));
    assert_eq!(
        f.client.xattrcreate(1, "user.test", u64::MAX, 0),
        Err(Errno::E2BIG)
    );
    assert_eq!(f.client.xattrcreate(1, "user.test", 1, 4), Err(Errno::EINVAL));
    assert_eq!(f.client.xattrcreate(1, "", 1, 0), Err(Errno::EINVAL));
    assert_eq!(f.client.xattrcreate(1, "user.\0", 1, 0), Err(Errno::EINVAL));
    assert_eq!(f.client.xattrcreate(1, [b'u'; 300], 1, 0), Err(Errno::ERANGE));
    assert_eq!(f.client.xattrcreate(9, "user.test", 1, 0), Err(Errno::EINVAL));
    f.client.xattrcreate(1, "user.test", 1, 0).unwrap();
    // An xattr's fid is nothing else.
    assert_eq!(f.client.xattrcreate(1, "user.test", 1, 0), Err(Errno::EINVAL));
    assert_eq!(f.client.stat(1), Err(Errno::EINVAL));
    assert_eq!(f.client.lopen(1, 0), Err(Errno::EINVAL));
    assert_eq!(f.client.clone_fid(1, 7), Err(Errno::EINVAL));
    assert_eq!(f.client.xattrwalk(1, 7, ""), Err(Errno::EINVAL));
    f.create(3, "open", O_RDWR);
    assert_eq!(f.client.xattrcreate(3, "user.test", 1, 0), Err(Errno::EINVAL));
    assert_eq!(f.client.xattrwalk(3, 7, "user.test"), Err(Errno::ENODATA));
}

#[test]
fn there_is_a_limit() {
    for (limit, max_xattr_fids) in [(1024, Limits::default().max_xattr_fids), (100, 100), (1124, 0)] {
        let limits = Limits {
            max_xattr_fids,
            ..Limits::default()
        };
        let mut f = Fixture::with(host::SecurityModel::Passthrough, limits);
        f.write("WRITE", "");
        f.client.walk_all(0, 1, &["WRITE"]).unwrap();
        for fid in 0..limit {
            f.client.clone_fid(1, 10 + fid).unwrap();
            f.client.xattrcreate(10 + fid, "user.test", 8192, 0).unwrap();
        }
        assert_eq!(f.session.usage().xattrs, limit as usize);
        if max_xattr_fids != 0 {
            f.client.clone_fid(1, 5).unwrap();
            assert_eq!(f.client.xattrcreate(5, "user.test", 8192, 0), Err(Errno::ENOSPC));
            assert_eq!(f.client.xattrwalk(1, 6, ""), Err(Errno::ENOSPC));
        }
        for fid in 0..limit {
            assert_eq!(f.client.clunk(10 + fid), Err(Errno::EINVAL));
        }
        assert_eq!(f.session.usage().xattrs, 0);
        f.client.xattrwalk(1, 6, "").unwrap();
    }
}

#[test]
fn bytes_have_a_limit_too() {
    let limits = Limits {
        max_xattr_bytes: 100_000,
        ..Limits::default()
    };
    let mut f = Fixture::with(host::SecurityModel::Passthrough, limits);
    f.client.clone_fid(0, 1).unwrap();
    f.client.clone_fid(0, 2).unwrap();
    f.client.xattrcreate(1, "user.test", 65536, 0).unwrap();
    assert_eq!(f.client.xattrcreate(2, "user.test", 65536, 0), Err(Errno::ENOSPC));
    assert_eq!(f.client.clunk(1), Err(Errno::EINVAL));
    f.client.xattrcreate(2, "user.test", 65536, 0).unwrap();
}
