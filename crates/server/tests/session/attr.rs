//! Tgetattr and Tsetattr.

use std::os::unix::fs::MetadataExt;

use server::Limits;
use testkit::client::Errno;
use wire::*;

use crate::common::*;

#[test]
fn getattr_is_stat() {
    each(|mut f| {
        f.write("file", vec![7; 5000]);
        f.client.walk_all(0, 1, &["file"]).unwrap();
        let (attr, meta) = (f.client.stat(1).unwrap(), f.host("file"));
        assert_eq!(attr.valid, P9_GETATTR_BASIC);
        assert_eq!(
            (attr.mode, attr.uid, attr.gid),
            (meta.mode(), meta.uid(), meta.gid())
        );
        assert_eq!((attr.size, attr.nlink, attr.blocks), (5000, 1, meta.blocks()));
        assert_eq!(
            (attr.mtime_sec, attr.mtime_nsec),
            (meta.mtime() as u64, meta.mtime_nsec() as u64)
        );
        assert_eq!(
            (attr.ctime_sec, attr.ctime_nsec),
            (meta.ctime() as u64, meta.ctime_nsec() as u64)
        );
        assert_ne!(attr.qid.version, 0);
        assert_eq!(attr.blksize, 128 * 1024);
        assert_eq!(f.client.stat(9), Err(Errno::ENOENT));
    });
}

#[test]
fn setattr_sets_each() {
    each(|mut f| {
        f.write("file", "0123456789");
        f.client.walk_all(0, 1, &["file"]).unwrap();
        f.client.chmod(1, 0o100_640).unwrap();
        f.client.truncate(1, 4).unwrap();
        f.client
            .setattr(&Tsetattr {
                fid: 1,
                valid: P9_SETATTR_ATIME | P9_SETATTR_ATIME_SET | P9_SETATTR_MTIME | P9_SETATTR_MTIME_SET,
                atime_sec: 1_000_000_000,
                atime_nsec: 1,
                mtime_sec: (-5i64).cast_unsigned(),
                mtime_nsec: 999_999_999,
                ..Tsetattr::default()
            })
            .unwrap();
        let meta = f.host("file");
        assert_eq!((meta.mode() & 0o7777, meta.size()), (0o640, 4));
        assert_eq!((meta.atime(), meta.atime_nsec()), (1_000_000_000, 1));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-5, 999_999_999));
        // Times without their _SET bits are now.
        let valid = P9_SETATTR_ATIME | P9_SETATTR_MTIME;
        f.client
            .setattr(&Tsetattr {
                fid: 1,
                valid,
                ..Tsetattr::default()
            })
            .unwrap();
        assert!(f.host("file").mtime() > 1_000_000_000);
        assert!(f.host("file").atime() > 1_000_000_000);
    });
}

#[test]
fn what_truncation_does_to_times_is_its_own() {
    // Linux's Tsetattr for O_TRUNC: size, mtime and ctime, on the open fid.
    each(|mut f| {
        f.write("file", "data");
        f.open(1, "file", O_RDWR);
        let before = f.host("file");
        f.client
            .setattr(&Tsetattr {
                fid: 1,
                valid: 0x68,
                ..Tsetattr::default()
            })
            .unwrap();
        let after = f.host("file");
        assert_eq!(after.size(), 0);
        assert!((after.mtime(), after.mtime_nsec()) >= (before.mtime(), before.mtime_nsec()));
        // With times given they are set after the size.
        f.client
            .setattr(&Tsetattr {
                fid: 1,
                valid: P9_SETATTR_SIZE | P9_SETATTR_MTIME | P9_SETATTR_MTIME_SET,
                size: 10,
                mtime_sec: 77,
                ..Tsetattr::default()
            })
            .unwrap();
        assert_eq!((f.host("file").size(), f.host("file").mtime()), (10, 77));
    });
}

#[test]
fn bad_values_are_refused() {
    let mut f = Fixture::new();
    f.write("file", "data");
    f.client.walk_all(0, 1, &["file"]).unwrap();
    for nsec in [1_000_000_000, libc::UTIME_NOW as u64, libc::UTIME_OMIT as u64] {
        let message = Tsetattr {
            fid: 1,
            valid: P9_SETATTR_MTIME | P9_SETATTR_MTIME_SET,
            mtime_nsec: nsec,
            ..Tsetattr::default()
        };
        assert_eq!(f.client.setattr(&message), Err(Errno::EINVAL));
    }
    assert!(f.client.truncate(1, u64::MAX).is_err());
    assert_eq!(f.client.chmod(9, 0), Err(Errno::EINVAL));
    f.client
        .setattr(&Tsetattr {
            fid: 1,
            valid: 0xffff_fe00,
            ..Tsetattr::default()
        })
        .unwrap();
    f.client
        .setattr(&Tsetattr {
            fid: 1,
            ..Tsetattr::default()
        })
        .unwrap();
}

#[test]
fn a_readonly_share_keeps_its_attributes() {
    let mut f = Fixture::readonly();
    f.client.walk_all(0, 1, &["file"]).unwrap();
    assert_eq!(f.client.chmod(1, 0o777), Err(Errno::EROFS));
    assert_eq!(f.client.truncate(1, 0), Err(Errno::EROFS));
    assert_eq!(f.client.stat(1).unwrap().size, 4);
}

/// In the mapped modes they are regular files on the host.
#[test]
fn only_regular_files_have_a_size_to_change() {
    for model in MODELS {
        let mut f = Fixture::with(model, Limits::default());
        f.client.symlink(0, "link", "target", gid()).unwrap();
        f.client
            .mknod(0, "fifo", libc::S_IFIFO | 0o644, (0, 0), gid())
            .unwrap();
        f.client.walk_all(0, 1, &["link"]).unwrap();
        f.client.walk_all(0, 2, &["fifo"]).unwrap();
        for size in [0, 100] {
            assert_eq!(f.client.truncate(1, size), Err(Errno::EINVAL), "{model:?}");
            assert_eq!(f.client.truncate(2, size), Err(Errno::EINVAL), "{model:?}");
            assert_eq!(f.client.truncate(0, size), Err(Errno::EISDIR), "{model:?}");
        }
        assert_eq!(f.client.readlink(1).unwrap(), b"target", "{model:?}");
        assert_eq!(f.client.stat(2).unwrap().size, 0, "{model:?}");
    }
}
