//! An open file does all that an open file can, whatever has become of its name, and is never taken for what has the
//! name now.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use host::SecurityModel;
use server::Limits;
use testkit::client::Errno;
use wire::*;

use crate::common::*;

/// What happens to the name of a file that the guest has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    GuestUnlinks,
    GuestReplaces,
    GuestRenames,
    HostUnlinks,
    HostReplaces,
    HostRenames,
    /// Removed and made anew: the successor may get the inode number as soon as it is free.
    HostMakesAnew,
}

use Loss::*;

const LOSSES: [Loss; 7] = [
    GuestUnlinks,
    GuestReplaces,
    GuestRenames,
    HostUnlinks,
    HostReplaces,
    HostRenames,
    HostMakesAnew,
];

impl Loss {
    /// Links left.
    fn links(self) -> u64 {
        u64::from(matches!(self, GuestRenames | HostRenames))
    }

    fn by_guest(self) -> bool {
        matches!(self, GuestUnlinks | GuestReplaces | GuestRenames)
    }

    fn happen(self, f: &mut Fixture) {
        let file = f.path("file");
        match self {
            GuestUnlinks => f.client.unlinkat(0, "file", 0).unwrap(),
            GuestRenames => f.client.renameat(0, "file", 0, "elsewhere").unwrap(),
            GuestReplaces => {
                f.create(50, "other", O_WRONLY);
                f.client.write(50, 0, STRANGER).unwrap();
                f.client.clunk(50).unwrap();
                f.client.renameat(0, "other", 0, "file").unwrap();
            }
            HostUnlinks => fs::remove_file(file).unwrap(),
            HostRenames => fs::rename(file, f.path("elsewhere")).unwrap(),
            HostReplaces => {
                f.write("other", STRANGER);
                fs::rename(f.path("other"), file).unwrap();
            }
            HostMakesAnew => {
                fs::remove_file(file).unwrap();
                f.write("file", STRANGER);
            }
        }
    }
}

const STRANGER: &[u8] = b"the successor";

fn lock(f: &mut Fixture, fid: u32, kind: u8) -> u8 {
    let message = Tlock {
        fid,
        kind,
        flags: 0,
        start: 0,
        length: 10,
        proc_id: 1,
        client_id: b"guest",
    };
    f.client.lock(&message).unwrap()
}

/// Everything but reading and writing, by any fid of the file.
fn change_all(f: &mut Fixture, fid: u32, loss: Loss, size: u64) {
    let client = &mut f.client;
    client.truncate(fid, size).unwrap();
    client.chmod(fid, libc::S_IFREG | 0o640).unwrap();
    let before = client.stat(fid).unwrap();
    client.chown(fid, before.uid, before.gid).unwrap();
    let time = Tsetattr {
        fid,
        valid: P9_SETATTR_MTIME | P9_SETATTR_MTIME_SET | P9_SETATTR_ATIME | P9_SETATTR_ATIME_SET,
        mtime_sec: 12,
        mtime_nsec: 34,
        atime_sec: 56,
        atime_nsec: 78,
        ..Tsetattr::default()
    };
    client.setattr(&time).unwrap();
    let attr = client.stat(fid).unwrap();
    assert_eq!((attr.size, attr.mode), (size, libc::S_IFREG | 0o640));
    assert_eq!(
        (attr.uid, attr.gid, attr.nlink),
        (before.uid, before.gid, loss.links())
    );
    assert_eq!((attr.mtime_sec, attr.mtime_nsec), (12, 34));
    assert_eq!((attr.atime_sec, attr.atime_nsec), (56, 78));
    client.statfs(fid).unwrap();
    client
        .setxattr(fid, 60, "user.one", b"value", P9_XATTR_CREATE)
        .unwrap();
    client.setxattr(fid, 60, "user.two", b"", 0).unwrap();
    assert_eq!(client.getxattr(fid, 60, "user.one").unwrap(), b"value");
    let list = client.getxattr(fid, 60, "").unwrap();
    let mut names: Vec<&[u8]> = list.split(|&b| b == 0).collect();
    names.sort_unstable();
    assert_eq!(names, [&b""[..], b"user.one", b"user.two"]);
    for name in ["user.one", "user.two"] {
        client.setxattr(fid, 60, name, b"", P9_XATTR_REPLACE).unwrap();
    }
    assert_eq!(client.getxattr(fid, 60, "").unwrap(), b"");
}

fn all_works(model: SecurityModel, loss: Loss, flags: u32) {
    let mut f = Fixture::with(model, Limits::default());
    f.create(1, "file", O_RDWR);
    f.client.write(1, 0, b"the first").unwrap();
    f.client.clunk(1).unwrap();
    // As Linux has it: a fid of the name, and a clone of it that is open.
    f.client.walk_all(0, 1, &["file"]).unwrap();
    f.client.clone_fid(1, 2).unwrap();
    f.client.lopen(2, flags).unwrap();
    let qid = f.client.stat(2).unwrap().qid;
    loss.happen(&mut f);

    // The open fid first, then the one that was walked to, then clones of either.
    f.client.clone_fid(1, 3).unwrap();
    f.client.clone_fid(2, 4).unwrap();
    for (size, fid) in [(100, 2), (200, 1), (300, 3), (400, 4)] {
        assert_eq!(f.client.stat(fid).unwrap().qid.path, qid.path);
        change_all(&mut f, fid, loss, size);
    }
    if flags == O_WRONLY {
        assert_eq!(f.client.read(2, 0, 10), Err(Errno::EBADF));
    } else {
        assert_eq!(f.client.read(2, 0, 9).unwrap(), b"the first");
        assert_eq!(lock(&mut f, 2, P9_LOCK_TYPE_RDLCK), P9_LOCK_SUCCESS);
    }
    if flags == O_RDONLY {
        assert_eq!(f.client.write(2, 0, b"x"), Err(Errno::EBADF));
    } else {
        assert_eq!(f.client.write(2, 4, b"FIRST").unwrap(), 5);
        assert_eq!(lock(&mut f, 2, P9_LOCK_TYPE_WRLCK), P9_LOCK_SUCCESS);
    }
    assert_eq!(lock(&mut f, 2, P9_LOCK_TYPE_UNLCK), P9_LOCK_SUCCESS);
    f.client.fsync(2, 0).unwrap();
    // Opening again is opening the same.
    let content = if flags == O_RDONLY {
        b"the first"
    } else {
        b"the FIRST"
    };
    for (fid, flags) in [(3, O_RDWR), (4, O_RDONLY)] {
        f.client.lopen(fid, flags).unwrap();
        assert_eq!(f.client.read(fid, 0, 9).unwrap(), content);
    }
    f.client.write(3, 0, b"T").unwrap();
    // No name comes back, or another one's.
    if loss.links() == 0 {
        let again = f.client.link(0, 2, "again");
        assert!(matches!(again, Err(Errno::ENOENT | Errno::ESTALE)), "{again:?}");
        let removed = f.client.remove(1);
        assert!(
            matches!(removed, Err(Errno::ENOENT | Errno::ESTALE)),
            "{removed:?}"
        );
    } else {
        f.client.clunk(1).unwrap();
    }
    // What has the name now is as it was.
    let successor = loss.links() == 0 && f.path("file").exists();
    assert_eq!(
        successor,
        !matches!(loss, GuestUnlinks | HostUnlinks | GuestRenames | HostRenames)
    );
    if successor {
        assert_eq!(fs::read(f.path("file")).unwrap(), STRANGER);
        assert_ne!(f.host("file").mtime(), 12);
        assert_ne!(f.client.walk_all(0, 5, &["file"]).unwrap().path, qid.path);
        let attr = f.client.stat(5).unwrap();
        assert_ne!(attr.mode & 0o7777, 0o640);
        assert_eq!(attr.size, STRANGER.len() as u64);
        assert_eq!(f.client.getxattr(5, 60, "").unwrap(), b"");
        f.client.lopen(5, O_RDONLY).unwrap();
        assert_eq!(f.client.read(5, 0, 100).unwrap(), STRANGER);
    } else {
        assert_eq!(f.client.walk_all(0, 5, &["file"]), Err(Errno::ENOENT));
    }
    for fid in [2, 3] {
        f.client.clunk(fid).unwrap();
    }
    assert_eq!(f.client.read(4, 0, 1).unwrap(), b"T");
}

#[test]
fn an_open_file_outlives_its_name() {
    for model in MODELS {
        for loss in LOSSES {
            for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
                all_works(model, loss, flags);
            }
        }
    }
}

/// Owner and mode that the mapped modes keep elsewhere than in the file.
#[test]
fn an_unlinked_file_keeps_what_the_guest_knows_of_it() {
    for model in [SecurityModel::MappedXattr, SecurityModel::MappedFile] {
        for loss in LOSSES.into_iter().filter(|loss| loss.by_guest()) {
            let mut f = Fixture::with(model, Limits::default());
            f.create(1, "file", O_RDWR);
            f.client.chown(1, 1234, 5678).unwrap();
            f.client.chmod(1, libc::S_IFREG | 0o4751).unwrap();
            loss.happen(&mut f);
            let attr = f.client.stat(1).unwrap();
            let seen = (attr.uid, attr.gid, attr.mode & 0o7777);
            assert_eq!(seen, (1234, 5678, 0o4751), "{model:?} {loss:?}");
            f.client.chown(1, 77, u32::MAX).unwrap();
            f.client.chmod(1, libc::S_IFREG | 0o600).unwrap();
            f.client.clone_fid(1, 2).unwrap();
            let attr = f.client.stat(2).unwrap();
            assert_eq!((attr.uid, attr.mode & 0o7777), (77, 0o600), "{model:?} {loss:?}");
        }
    }
}

/// A fid that is not open stays with its object, too.
#[test]
fn a_walked_fid_is_not_its_successor() {
    for model in MODELS {
        for loss in LOSSES {
            let mut f = Fixture::with(model, Limits::default());
            f.write("file", "the first");
            fs::set_permissions(f.path("file"), fs::Permissions::from_mode(0o604)).unwrap();
            let qid = f.client.walk_all(0, 1, &["file"]).unwrap();
            loss.happen(&mut f);
            let attr = f.client.stat(1).unwrap();
            assert_eq!((attr.qid.path, attr.size), (qid.path, 9), "{model:?} {loss:?}");
            f.client.chmod(1, libc::S_IFREG | 0o600).unwrap();
            f.client.lopen(1, O_RDWR).unwrap();
            assert_eq!(f.client.read(1, 0, 100).unwrap(), b"the first");
            f.client.write(1, 0, b"X").unwrap();
            if f.path("file").exists() {
                assert_eq!(fs::read(f.path("file")).unwrap(), STRANGER);
            }
        }
    }
}

/// The same with directories: what is made in one that was moved is made in that one.
#[test]
fn a_directory_stays_itself_when_it_is_moved_or_replaced() {
    for model in MODELS {
        for by_host in [false, true] {
            let mut f = Fixture::with(model, Limits::default());
            f.client.mkdir(0, "dir", 0o755, gid()).unwrap();
            f.client.walk_all(0, 1, &["dir"]).unwrap();
            f.client.clone_fid(1, 2).unwrap();
            f.client.lopen(2, O_RDONLY).unwrap();
            match by_host {
                true => fs::rename(f.path("dir"), f.path("moved")).unwrap(),
                false => f.client.renameat(0, "dir", 0, "moved").unwrap(),
            }
            fs::create_dir(f.path("dir")).unwrap();
            f.write("dir/stranger", "");
            for (fid, name) in [(1, "one"), (2, "two")] {
                f.client.mkdir(fid, name, 0o755, gid()).unwrap();
                assert!(f.path("moved").join(name).is_dir(), "{model:?} {by_host}");
                assert_eq!(f.client.walk_all(fid, 3, &["stranger"]), Err(Errno::ENOENT));
            }
            let names: Vec<_> = f.client.list(2, 4096).unwrap();
            assert!(names.iter().all(|entry| entry.name != b"stranger"));
            // Out of it and in again leads to what has the name now.
            f.client.walk_all(2, 3, &["..", "dir", "stranger"]).unwrap();
        }
    }
}

#[test]
fn a_removed_directory_lists_nothing() {
    for model in MODELS {
        let mut f = Fixture::with(model, Limits::default());
        f.client.mkdir(0, "dir", 0o755, gid()).unwrap();
        f.open(1, "dir", O_RDONLY);
        f.client.unlinkat(0, "dir", 0x200).unwrap();
        // As Linux itself answers; readdir(3) takes it for the end.
        assert_eq!(f.client.readdir(1, 0, 4096), Err(Errno::ENOENT));
        f.client.stat(1).unwrap();
        f.client.chmod(1, libc::S_IFDIR | 0o700).unwrap();
        assert_eq!(f.client.stat(1).unwrap().mode & 0o7777, 0o700);
        assert_eq!(f.client.walk(1, 2, &["x"]), Err(Errno::ENOENT));
        assert_eq!(f.client.mkdir(1, "x", 0o755, 0), Err(Errno::ENOENT));
        f.client.clunk(1).unwrap();
    }
}
