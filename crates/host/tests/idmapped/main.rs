//! Mounts that have no id for this process, or for some users: idmapped ones (mount_setattr(2), MOUNT_ATTR_IDMAP).

#[path = "../common/mod.rs"]
mod common;
mod mount;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use common::*;
use host::{Caller, CheckAccess, IdMaps, IdOptions, SecurityModel, SetAttr, SetTime, Share, ShareOptions};

/// What 0 on the disk shows as on the mount, which has `COUNT` ids from there on and no other.
const FIRST: u32 = 100_000;
const COUNT: u32 = 2000;
/// One that nothing knows.
const USER: u32 = FIRST + 1000;
/// One that the mount has not.
const OUTSIDE: u32 = 5;

/// A directory of a mount like this; `disk` is the same one with the ids of the disk.
struct Place {
    disk: PathBuf,
    dir: PathBuf,
    _mounted: Mounted,
    _temp: tempfile::TempDir,
}

fn place() -> Option<Place> {
    if !is_root() || !own_mounts() {
        eprintln!("NOT TESTED: this takes root");
        return None;
    }
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let at = |name: &str| temp.path().join(name);
    for dir in ["disk", "dir"] {
        std::fs::create_dir(at(dir)).unwrap();
    }
    if !mount::bind_idmapped(&at("disk"), &at("dir"), 0, FIRST, COUNT) {
        return None;
    }
    let mounted = Mounted::at(&at("dir"));
    Some(Place {
        disk: at("disk"),
        dir: at("dir"),
        _mounted: mounted,
        _temp: temp,
    })
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn give(to: Caller) -> SetAttr {
    SetAttr {
        uid: Some(to.uid),
        gid: Some(to.gid),
        ..SetAttr::default()
    }
}

/// Makes one of each in `dir`, by `who`; what came of it.
fn one_of_each(f: &Fixture, dir: &str, who: Caller) -> [i32; 6] {
    let dir = f.walk(dir);
    let dir = dir.object();
    let file = f
        .share
        .create(who, &dir, &name("file"), libc::O_RDWR, 0o640)
        .map(drop);
    [
        errno(file),
        errno(f.share.mkdir(who, &dir, &name("dir"), 0o750)),
        errno(f.share.mknod(who, &dir, &name("fifo"), libc::S_IFIFO | 0o640, 0)),
        errno(f.share.mknod(who, &dir, &name("plain"), libc::S_IFREG | 0o640, 0)),
        errno(f.share.symlink(who, &dir, &name("symlink"), b"target")),
        errno(
            f.share
                .create(who, &dir, &name("file"), libc::O_RDWR | libc::O_EXCL, 0),
        ),
    ]
}

const ALL_MADE: [i32; 6] = [0, 0, 0, 0, 0, libc::EEXIST];
const NONE_MADE: [i32; 6] = [libc::EOVERFLOW; 6];
const NAMES: [&str; 5] = ["file", "dir", "fifo", "plain", "symlink"];

/// Links and renames, xattrs and ACLs, setattr, and takes away again what [`one_of_each`] has made in `dir`.
fn use_and_remove(f: &Fixture, dir: &str, who: Caller) {
    let node = f.walk(dir);
    let dir_object = node.object();
    let file = f.walk(&format!("{dir}/file"));
    let object = file.object();
    f.share.link(who, &object, &dir_object, &name("link")).unwrap();
    let inner = f.walk(&format!("{dir}/dir"));
    f.share
        .rename(who, &dir_object, &name("link"), &inner.object(), &name("moved"))
        .unwrap();
    f.share
        .rename(who, &inner.object(), &name("moved"), &dir_object, &name("back"))
        .unwrap();
    // Of a directory, to another one.
    f.share.mkdir(who, &inner.object(), &name("deep"), 0o700).unwrap();
    f.share
        .rename(who, &inner.object(), &name("deep"), &dir_object, &name("deep"))
        .unwrap();
    let set = SetAttr {
        mode: Some(0o600),
        size: Some(7),
        mtime: SetTime::Now,
        ..SetAttr::default()
    };
    f.share.setattr(who, &object, &set).unwrap();
    assert_eq!((f.attr(&file).mode & 0o7777, f.attr(&file).size), (0o600, 7));
    f.share.set_xattr(who, &object, &c("user.x"), b"v", 0).unwrap();
    f.share.remove_xattr(who, &object, &c("user.x")).unwrap();
    for gone in ["file", "back", "fifo", "plain", "symlink"] {
        f.share.unlink(who, &dir_object, &name(gone), false).unwrap();
    }
    for gone in ["dir", "deep"] {
        f.share.unlink(who, &dir_object, &name(gone), true).unwrap();
    }
}

#[test]
fn who_has_an_id_on_the_mount_gets_files_there_and_who_has_none_gets_none() {
    let Some(place) = place() else { return };
    for model in [SecurityModel::Passthrough, SecurityModel::Squash] {
        let f = Fixture::over(&place.dir, model, |_| {});
        for who in [
            user(FIRST),
            user(USER),
            Caller {
                uid: USER,
                gid: FIRST,
            },
        ] {
            assert_eq!(one_of_each(&f, "", who), ALL_MADE, "{model:?} {who:?}");
            for made in NAMES {
                let disk = (who.uid - FIRST, who.gid - FIRST);
                assert_eq!(owner(&place.disk.join(made)), disk, "{model:?} {made}");
            }
            assert_eq!(
                std::fs::metadata(place.disk.join("dir")).unwrap().mode() & 0o7777,
                0o750
            );
            use_and_remove(&f, "", who);
        }
        // The process is itself again after each.
        std::fs::write(place.disk.join("own"), "").unwrap();
        assert_eq!(owner(&place.disk.join("own")), (0, 0));
        std::fs::remove_file(place.disk.join("own")).unwrap();
    }

    // What the mount has no id for is refused, and leaves nothing behind; squash forgives it.
    let f = Fixture::over(&place.dir, SecurityModel::Passthrough, |_| {});
    for who in [
        ROOT,
        user(OUTSIDE),
        Caller {
            uid: USER,
            gid: OUTSIDE,
        },
    ] {
        let some = one_of_each(&f, "", who);
        assert_eq!(some, NONE_MADE, "{who:?}");
        assert_eq!(std::fs::read_dir(&place.disk).unwrap().count(), 0);
    }
    let node = f.try_create(user(USER), "file", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(
        errno(f.share.setattr(ROOT, &node.object(), &give(ROOT))),
        libc::EOVERFLOW
    );
    f.share
        .setattr(ROOT, &node.object(), &give(user(FIRST + 7)))
        .unwrap();
    assert_eq!(owner(&place.disk.join("file")), (7, 7));
    let f = Fixture::over(&place.dir, SecurityModel::Squash, |_| {});
    f.share.setattr(ROOT, &node.object(), &give(ROOT)).unwrap();
    assert_eq!(owner(&place.disk.join("file")), (7, 7));
    std::fs::remove_file(place.disk.join("file")).unwrap();
    for (who, disk) in [
        (ROOT, (0, 0)),
        (user(OUTSIDE), (0, 0)),
        (user(u32::MAX), (0, 0)),
        (user(1 << 31), (0, 0)),
        (
            Caller {
                uid: USER,
                gid: OUTSIDE,
            },
            (1000, 0),
        ),
        (
            Caller {
                uid: OUTSIDE,
                gid: USER,
            },
            (0, 1000),
        ),
    ] {
        assert_eq!(one_of_each(&f, "", who), ALL_MADE, "{who:?}");
        for made in NAMES {
            assert_eq!(owner(&place.disk.join(made)), disk, "{who:?} {made}");
        }
        use_and_remove(&f, "", who);
    }
}

#[test]
fn an_idmapped_mount_below_the_share_works_as_well() {
    let Some(place) = place() else { return };
    let top = place.dir.parent().unwrap().to_owned();
    let f = Fixture::over(&top, SecurityModel::Passthrough, |_| {});
    assert_eq!(one_of_each(&f, "dir", user(USER)), ALL_MADE);
    assert_eq!(owner(&place.disk.join("symlink")), (1000, 1000));
    use_and_remove(&f, "dir", user(USER));
    assert_eq!(one_of_each(&f, "dir", ROOT), NONE_MADE);
    // Beside the mount point nothing has changed.
    std::fs::create_dir(top.join("beside")).unwrap();
    assert_eq!(one_of_each(&f, "beside", ROOT), ALL_MADE);
    assert_eq!(owner(&top.join("beside/fifo")), (0, 0));
}

#[test]
fn what_belongs_to_nobody_on_the_mount_stays_as_it_is() {
    let Some(place) = place() else { return };
    let f = Fixture::over(&place.dir, SecurityModel::Passthrough, |_| {});
    std::fs::create_dir(place.disk.join("foreign")).unwrap();
    std::fs::write(place.disk.join("file"), "x").unwrap();
    for path in ["foreign", "file"] {
        chown(place.disk.join(path), Some(COUNT + 1), Some(COUNT + 1)).unwrap();
    }
    let node = f.walk("file");
    assert_eq!((f.attr(&node).uid, f.attr(&node).gid), (65534, 65534));
    assert_ne!(one_of_each(&f, "foreign", user(USER))[0], 0);
    let root = f.root();
    let unlinked = f.share.unlink(ROOT, &root.object(), &name("file"), false);
    assert_eq!(errno(unlinked), libc::EOVERFLOW);
    // It can be given to somebody.
    f.share.setattr(ROOT, &node.object(), &give(user(USER))).unwrap();
    assert_eq!(owner(&place.disk.join("file")), (1000, 1000));
}

#[test]
fn ids_are_mapped_and_squashed_before_the_mount_maps_them() {
    let Some(place) = place() else { return };
    let with = |change: &dyn Fn(&mut IdOptions)| {
        let mut ids = IdOptions::default();
        change(&mut ids);
        Fixture::over(&place.dir, SecurityModel::Passthrough, |o| {
            o.ids = IdMaps::new(&ids).unwrap();
        })
    };
    let pair = |text: &str| Some(text.parse().unwrap());
    let f = with(&|o| {
        o.uid_map = vec![format!("0:{FIRST}:{COUNT}").parse().unwrap()];
        o.gid_map = o.uid_map.clone();
    });
    for id in [0, 1000] {
        assert_eq!(one_of_each(&f, "", user(id)), ALL_MADE);
        assert_eq!(owner(&place.disk.join("dir")), (id, id));
        let attr = f.attr(&f.walk("dir"));
        assert_eq!((attr.uid, attr.gid), (id, id));
        use_and_remove(&f, "", user(id));
    }
    let f = with(&|o| o.squash_all = pair(&format!("{USER}:{FIRST}")));
    assert_eq!(one_of_each(&f, "", ROOT), ALL_MADE);
    assert_eq!(owner(&place.disk.join("fifo")), (1000, 0));
    use_and_remove(&f, "", ROOT);
    let f = with(&|o| o.squash_root = pair(&format!("{USER}:{FIRST}")));
    assert_eq!(one_of_each(&f, "", ROOT), ALL_MADE);
    use_and_remove(&f, "", ROOT);
    assert_eq!(one_of_each(&f, "", user(OUTSIDE)), NONE_MADE);
}

#[test]
fn acls_have_the_ids_of_the_mount() {
    let Some(place) = place() else { return };
    let f = Fixture::over(&place.dir, SecurityModel::Passthrough, |_| {});
    let node = f.try_create(user(USER), "file", libc::O_RDWR, 0o640).unwrap();
    let acl = |id: u32| {
        let mut blob = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in [
            (1u16, 6u16, u32::MAX),
            (2, 4, id),
            (4, 4, u32::MAX),
            (16, 4, u32::MAX),
            (32, 0, u32::MAX),
        ] {
            blob.extend(tag.to_le_bytes());
            blob.extend(perm.to_le_bytes());
            blob.extend(id.to_le_bytes());
        }
        blob
    };
    let attr = c("system.posix_acl_access");
    f.share
        .set_xattr(ROOT, &node.object(), &attr, &acl(FIRST + 3), 0)
        .unwrap();
    let mut got = [0; 100];
    let len = f.share.get_xattr(ROOT, &node.object(), &attr, &mut got).unwrap();
    assert_eq!(got[..len], acl(FIRST + 3)[..]);
    // One that the mount has no id for: the kernel's refusal, not another user's entry.
    let refused = errno(f.share.set_xattr(ROOT, &node.object(), &attr, &acl(OUTSIDE), 0));
    assert!([libc::EINVAL, libc::EOVERFLOW].contains(&refused), "{refused}");
}

#[test]
fn the_mapped_modes_go_on_as_the_owner_of_the_directory() {
    for model in [SecurityModel::MappedXattr, SecurityModel::MappedFile] {
        // The thread that opens the share goes on as another user.
        let test = std::thread::spawn(move || {
            let Some(place) = place() else { return };
            chown(&place.disk, Some(1000), Some(1000)).unwrap();
            let f = Fixture::over(&place.dir, model, |_| {});
            for who in [ROOT, user(USER), user(OUTSIDE), user(1 << 31)] {
                assert_eq!(one_of_each(&f, "", who), ALL_MADE, "{model:?} {who:?}");
                for made in NAMES {
                    assert_eq!(owner(&place.disk.join(made)), (1000, 1000), "{model:?}");
                    let attr = f.attr(&f.walk(made));
                    assert_eq!((attr.uid, attr.gid), (who.uid, who.gid), "{model:?} {made}");
                }
                use_and_remove(&f, "", who);
            }
        });
        test.join().unwrap();
    }
}

#[test]
fn with_check_access_host_a_user_needs_an_id_and_gains_no_group() {
    let Some(place) = place() else { return };
    let checked = |model| {
        let mut options = ShareOptions::new(&place.dir, model);
        options.check_access = CheckAccess::Host;
        Share::open(&options).unwrap()
    };
    let make = |dir: &str, owner: Option<u32>, group: Option<u32>, mode: u32| {
        let path = place.disk.join(dir);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        chown(&path, owner, group).unwrap();
    };
    make("own", Some(1000), Some(7), 0o755);
    make("groups", Some(0), Some(7), 0o775);
    make("everybodys", Some(0), Some(7), 0o777);
    for model in [SecurityModel::Passthrough, SecurityModel::Squash] {
        let mut f = Fixture::over(&place.dir, model, |_| {});
        f.share = checked(model);
        // The host's user database does not know it, so its group is nogroup, which the mount has no id for.
        let who = Caller {
            uid: USER,
            gid: FIRST + 7,
        };
        for dir in ["own", "everybodys"] {
            assert_eq!(one_of_each(&f, dir, who), ALL_MADE, "{model:?} {dir}");
            assert_eq!(
                owner(&place.disk.join(dir).join("fifo")),
                (1000, 7),
                "{model:?} {dir}"
            );
            use_and_remove(&f, dir, who);
            assert_eq!(one_of_each(&f, dir, user(OUTSIDE)), NONE_MADE, "{model:?}");
        }
        // To be given a group of the mount is not to be a member of it.
        let refused = one_of_each(&f, "groups", who);
        assert!(
            refused
                .iter()
                .all(|e| [libc::EACCES, libc::EOVERFLOW].contains(e)),
            "{refused:?}"
        );
        assert_eq!(std::fs::read_dir(place.disk.join("groups")).unwrap().count(), 0);
    }
}
