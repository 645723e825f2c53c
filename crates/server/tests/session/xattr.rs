//! Txattrwalk and Txattrcreate.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use server::Limits;
use testkit::client::Errno;
use testkit::scenario::Random;
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

/// The host's own calls on a path; errors as the client says them.
struct Host(CString);

impl Host {
    fn new(path: &Path) -> Host {
        Host(CString::new(path.as_os_str().as_bytes()).unwrap())
    }

    fn result(count: i64) -> Result<usize, Errno> {
        usize::try_from(count).map_err(|_| Errno::last())
    }

    fn set(&self, name: &str, value: &[u8], flags: u32) -> Result<(), Errno> {
        let name = CString::new(name).unwrap();
        let (value, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: strings that end with NUL, and bytes of that length.
        let result = unsafe { libc::setxattr(self.0.as_ptr(), name.as_ptr(), value, len, flags as i32) };
        Host::result(result.into()).map(drop)
    }

    fn remove(&self, name: &str) -> Result<(), Errno> {
        let name = CString::new(name).unwrap();
        // SAFETY: strings that end with NUL.
        let result = unsafe { libc::removexattr(self.0.as_ptr(), name.as_ptr()) };
        Host::result(result.into()).map(drop)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let name = CString::new(name).unwrap();
        let mut value = vec![0; 65536];
        let room = value.as_mut_ptr().cast();
        // SAFETY: strings that end with NUL, and room of that length.
        let result = unsafe { libc::getxattr(self.0.as_ptr(), name.as_ptr(), room, 65536) };
        value.truncate(Host::result(result as i64)?);
        Ok(value)
    }

    /// Names, sorted, but those of the mapped modes' own.
    fn list(&self) -> Vec<String> {
        let mut list = vec![0; 65536];
        // SAFETY: a string that ends with NUL, and room of that length.
        let result = unsafe { libc::listxattr(self.0.as_ptr(), list.as_mut_ptr().cast(), 65536) };
        list.truncate(Host::result(result as i64).unwrap());
        let mut names = names(&list);
        names.retain(|name| !name.starts_with("user.virtfs."));
        names
    }
}

fn names(list: &[u8]) -> Vec<String> {
    assert!(list.is_empty() || list.last() == Some(&0), "half a name");
    let names = list.split(|&b| b == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

/// What is done to one file through the share and to another one by the host has the same results.
#[test]
fn they_do_what_the_hosts_own_do() {
    for model in MODELS {
        let mut f = Fixture::with(model, Limits::default());
        f.create(1, "guest", O_RDWR);
        f.write("host", "");
        f.client.walk_all(0, 2, &["guest"]).unwrap();
        let (guest, host) = (Host::new(&f.path("guest")), Host::new(&f.path("host")));
        let mut random = Random::new(7);
        let mut refused = 0;
        for round in 0..300 {
            // A name that is too long, too, and one of no known kind.
            let name = match random.below(12) {
                0 => format!("user.{}", "n".repeat(251)),
                1 => "user.".to_owned(),
                2 => "nonsense.name".to_owned(),
                _ => format!("user.{}", random.below(4)),
            };
            // By the walked fid or by the open one.
            let fid = 1 + random.below(2) as u32;
            let value = vec![random.below(256) as u8; [0, 1, 4, 200][random.below(4)]];
            let flags = [0, P9_XATTR_CREATE, P9_XATTR_REPLACE][random.below(3)];
            let (what, by_guest, by_host) = match random.below(4) {
                0 => (
                    "remove",
                    f.client.setxattr(2, 5, &name, b"", P9_XATTR_REPLACE),
                    host.remove(&name),
                ),
                1 => (
                    "get",
                    f.client.getxattr(fid, 5, &name).map(drop),
                    host.get(&name).map(drop),
                ),
                // This one removes: the protocol has no other way to say that.
                _ if value.is_empty() && flags == P9_XATTR_REPLACE => continue,
                _ => (
                    "set",
                    f.client.setxattr(2, 5, &name, &value, flags),
                    host.set(&name, &value, flags),
                ),
            };
            assert_eq!(by_guest, by_host, "{model:?} {round}: {what} {name} {flags}");
            refused += usize::from(by_guest.is_err());
            let listed = f.client.getxattr(fid, 5, "").unwrap();
            let listed: Vec<_> = names(&listed)
                .into_iter()
                .filter(|n| n.starts_with("user."))
                .collect();
            assert_eq!(listed, host.list(), "{model:?} {round}");
            assert_eq!(guest.list(), listed, "{model:?} {round}");
            for name in listed {
                let value = host.get(&name);
                assert_eq!(
                    f.client.getxattr(fid, 5, &name),
                    value,
                    "{model:?} {round}: {name}"
                );
                assert_eq!(guest.get(&name), value, "{model:?} {round}: {name}");
            }
        }
        assert!((40..260).contains(&refused), "{refused} were refused");
    }
}

/// A value or a list that changes between the question for its size and the reading of it.
#[test]
fn cve_2017_15038_sizes_are_exact_whatever_happens_meanwhile() {
    for model in MODELS {
        let mut f = Fixture::with(model, Limits::default());
        f.create(1, "file", O_RDWR);
        let host = Host::new(&f.path("file"));
        host.set("user.value", b"", 0).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random::new(1);
                while !done.load(Ordering::Relaxed) {
                    let len = random.below(250);
                    host.set("user.value", &vec![len as u8; len], 0).unwrap();
                    let name = format!("user.{}", "n".repeat(1 + len));
                    host.set(&name, b"", 0).unwrap();
                    host.remove(&name).unwrap();
                }
            });
            let mut sizes = std::collections::HashSet::new();
            for _ in 0..1000 {
                let size = f.client.xattrwalk(1, 5, "user.value").unwrap();
                let value = f.client.read(5, 0, 4000).unwrap();
                assert_eq!(value.len() as u64, size);
                assert!(value.iter().all(|&b| usize::from(b) == value.len()), "{value:?}");
                f.client.clunk(5).unwrap();
                sizes.insert(size);
                let size = f.client.xattrwalk(1, 5, "").unwrap();
                let list = f.client.read(5, 0, 4000).unwrap();
                assert_eq!(list.len() as u64, size);
                assert!(names(&list).contains(&"user.value".to_owned()));
                f.client.clunk(5).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(sizes.len() > 1, "nothing changed");
        });
    }
}
