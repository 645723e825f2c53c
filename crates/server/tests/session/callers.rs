//! With `--check-access host`, everything is done as the user who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Arc;

use host::{CheckAccess, IdMaps, IdOptions, MayHang, SecurityModel, Share, ShareOptions};
use server::Limits;
use testkit::Fuse;
use testkit::client::Errno;
use testkit::fuse::op;
use wire::*;

use crate::common::*;

const NO_ID: u32 = u32::MAX;

/// A guest's user, and nobody of the host's.
const USER: u32 = 61_000;

fn options(dir: &std::path::Path, model: SecurityModel) -> ShareOptions {
    ShareOptions {
        check_access: CheckAccess::Host,
        may_hang: MayHang::Never,
        ..ShareOptions::new(dir, model)
    }
}

/// A server that is told by the kernel who asks: a FUSE file system.
#[test]
fn the_file_system_hears_the_caller_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("mount");
    std::fs::create_dir(&target).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let Some(fuse) = Fuse::mount(&target) else {
        println!("left out: this process may not mount");
        return;
    };
    fuse.script().data = vec![b'x'; 100_000];
    let share = Share::open(&options(&target, SecurityModel::Squash)).unwrap();
    let mut f = Fixture::on(dir, Arc::new(share), Limits::default());
    let c = &mut f.client;
    for user in [USER, 0, NO_ID] {
        let (root, file) = (user ^ 100, user ^ 200);
        fuse.script().askers.clear();
        c.attach(root, user).unwrap();
        c.walk_all(root, file, &["file"]).unwrap();
        c.stat(file).unwrap();
        c.lopen(file, O_RDWR).unwrap();
        c.read(file, 0, 10_000).unwrap();
        c.read(file, 90_000, 100).unwrap();
        c.write(file, 0, &[7; 10_000]).unwrap();
        c.write(file, 50_000, b"x").unwrap();
        c.fsync(file, 0).unwrap();
        c.fsync(file, 1).unwrap();
        c.statfs(file).unwrap();
        let lock = Tlock {
            fid: file,
            kind: P9_LOCK_TYPE_WRLCK,
            flags: 0,
            start: 5,
            length: 5,
            proc_id: 1,
            client_id: b"guest",
        };
        assert_eq!(c.lock(&lock), Ok(P9_LOCK_SUCCESS));
        let asked = Tgetlock {
            fid: file,
            kind: P9_LOCK_TYPE_WRLCK,
            start: 0,
            length: 0,
            proc_id: 2,
            client_id: b"me",
        };
        c.getlock(&asked).unwrap();
        let askers = fuse.script().askers.clone();
        let host = match user {
            NO_ID => host::idmap::overflow_ids().0,
            user => user,
        };
        let wanted = [
            op::LOOKUP,
            op::GETATTR,
            op::OPEN,
            op::READ,
            op::WRITE,
            op::FSYNC,
            op::STATFS,
            op::SETLK,
            op::GETLK,
        ];
        for opcode in wanted {
            assert!(askers.contains_key(&opcode), "no request {opcode}: {askers:?}");
        }
        let others: BTreeMap<_, _> = askers
            .iter()
            .filter(|(_, who)| **who != BTreeSet::from([host]))
            .collect();
        assert!(others.is_empty(), "as {user}: {others:?}");
        c.clunk(file).unwrap();
        c.clunk(root).unwrap();
    }
}

/// Linux names nobody when it mounts, also where nothing may belong to nobody.
#[test]
fn a_mount_needs_no_user_whatever_is_forbidden() {
    if gid() != 0 {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let mut options = options(dir.path(), SecurityModel::Passthrough);
    let forbidden = IdOptions {
        forbid: vec!["0".parse().unwrap(), "60000-70000".parse().unwrap()],
        ..IdOptions::default()
    };
    options.ids = IdMaps::new(&forbidden).unwrap();
    let share = Share::open(&options).unwrap();
    let session = Arc::new(server::Session::new(Arc::new(share), Limits::default()));
    let mut c = testkit::client::Client::new(Backend::new(session));
    c.version(8192).unwrap();
    c.attach(1, NO_ID).unwrap();
    c.stat(1).unwrap();
    c.statfs(1).unwrap();
    assert_eq!(c.mkdir(1, "dir", 0o755, NO_ID), Err(Errno::EPERM));
    assert_eq!(c.attach(2, 0), Err(Errno::EPERM));
}

/// What the process may do helps a guest's user to nothing.
#[test]
fn a_user_of_the_guest_has_none_of_this_processs_rights() {
    if gid() != 0 {
        return;
    }
    for model in [SecurityModel::Passthrough, SecurityModel::Squash] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let share = Share::open(&options(dir.path(), model)).unwrap();
        let mut f = Fixture::on(dir, Arc::new(share), Limits::default());
        f.write("roots", "the host's");
        f.write("secret", "the host's");
        std::fs::set_permissions(f.path("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::set_permissions(f.path("roots"), PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::create_dir(f.path("own")).unwrap();
        chown(f.path("own"), Some(USER), Some(USER)).unwrap();
        let before = f.host("roots");
        for user in [USER, NO_ID] {
            let c = &mut f.client;
            c.attach(1, user).unwrap();
            c.walk_all(1, 2, &["roots"]).unwrap();
            c.walk_all(1, 3, &["secret"]).unwrap();
            for (name, value) in [
                (
                    "security.capability",
                    &[1u8, 0, 0, 2, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
                ),
                ("trusted.x", b"x"),
            ] {
                assert_eq!(c.setxattr(2, 9, name, value, 0), Err(Errno::EOPNOTSUPP));
            }
            assert_eq!(c.setxattr(2, 9, "user.x", b"x", 0), Err(Errno::EACCES));
            assert_eq!(c.chmod(2, 0o104755), Err(Errno::EPERM));
            // Squash says that it is done.
            assert_eq!(c.chown(2, USER, USER).is_ok(), model == SecurityModel::Squash);
            assert_eq!(c.truncate(2, 0), Err(Errno::EACCES));
            assert_eq!(c.lopen(3, O_RDONLY), Err(Errno::EACCES));
            // EPERM where fs.protected_hardlinks is on.
            let linked = c.link(1, 2, "link");
            assert!(matches!(linked, Err(Errno::EACCES | Errno::EPERM)), "{linked:?}");
            assert_eq!(
                c.mknod(1, "dev", libc::S_IFCHR | 0o666, (1, 5), NO_ID),
                Err(Errno::EPERM)
            );
            assert_eq!(c.mkdir(1, "dir", 0o755, NO_ID), Err(Errno::EACCES));
            assert_eq!(c.unlinkat(1, "roots", 0), Err(Errno::EACCES));
            c.clunk(3).unwrap();
            c.clunk(2).unwrap();
            c.clunk(1).unwrap();
        }
        let after = f.host("roots");
        assert_eq!(
            (before.ctime_nsec(), before.mode(), before.uid(), before.nlink()),
            (after.ctime_nsec(), after.mode(), after.uid(), after.nlink())
        );
        // Its own things are its own.
        let c = &mut f.client;
        c.attach(1, USER).unwrap();
        c.walk_all(1, 2, &["own"]).unwrap();
        c.lcreate(2, "file", O_RDWR, 0o644, NO_ID).unwrap();
        c.write(2, 0, b"data").unwrap();
        c.chmod(2, 0o100600).unwrap();
        c.clunk(2).unwrap();
        assert_eq!(f.host("own/file").uid(), USER);
        assert_ne!(f.host("own/file").gid(), 0);
    }
}
