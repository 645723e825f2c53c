//! Where the guest is kept from being some of the host's users, it is none of them by a detour either.

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use common::*;
use host::sys::cred::{CAP_CHOWN, Caps};
use host::sys::xattr::Target;
use host::{Caller, CheckAccess, IdMaps, IdOptions, KernelXattrs, SecurityModel, SetAttr, ShareOptions};

const BOTH: [SecurityModel; 2] = [SecurityModel::Passthrough, SecurityModel::Squash];

const NO_ID: u32 = u32::MAX;

/// Names nobody, or no group, or neither.
const NAMELESS: [Caller; 3] = [
    Caller {
        uid: NO_ID,
        gid: 1000,
    },
    Caller {
        uid: 1000,
        gid: NO_ID,
    },
    Caller {
        uid: NO_ID,
        gid: NO_ID,
    },
];

fn squash_root() -> IdOptions {
    IdOptions {
        squash_root: Some("6000:6001".parse().unwrap()),
        ..IdOptions::default()
    }
}

fn squash_all() -> IdOptions {
    IdOptions {
        squash_all: Some("6000:6001".parse().unwrap()),
        ..IdOptions::default()
    }
}

fn maps() -> IdOptions {
    IdOptions {
        uid_map: vec!["0:100000:2000".parse().unwrap()],
        gid_map: vec!["0:100000:2000".parse().unwrap()],
        ..IdOptions::default()
    }
}

fn one_map(users: bool) -> IdOptions {
    let both = maps();
    match users {
        true => IdOptions {
            gid_map: Vec::new(),
            ..both
        },
        false => IdOptions {
            uid_map: Vec::new(),
            ..both
        },
    }
}

fn forbid() -> IdOptions {
    IdOptions {
        forbid: vec!["0-999".parse().unwrap()],
        ..IdOptions::default()
    }
}

fn restrictions() -> [IdOptions; 6] {
    [
        squash_root(),
        squash_all(),
        maps(),
        one_map(true),
        one_map(false),
        forbid(),
    ]
}

fn fixture(model: SecurityModel, options: &IdOptions) -> Fixture {
    Fixture::with(model, |share| share.ids = IdMaps::new(options).unwrap())
}

/// Makes one of each kind that needs no privilege of its own; gives the names.
fn make_all(f: &Fixture, who: Caller) -> Vec<&'static str> {
    let root = f.root();
    let root = root.object();
    f.try_create(who, "file", libc::O_RDWR, 0o4755).unwrap();
    f.share.mkdir(who, &root, &name("dir"), 0o755).unwrap();
    f.share
        .mknod(who, &root, &name("fifo"), libc::S_IFIFO | 0o644, 0)
        .unwrap();
    f.share
        .mknod(who, &root, &name("plain"), libc::S_IFREG | 0o6755, 0)
        .unwrap();
    f.share.symlink(who, &root, &name("link"), b"target").unwrap();
    vec!["file", "dir", "fifo", "plain", "link"]
}

#[test]
fn what_nobody_makes_never_belongs_to_this_process() {
    if !is_root() {
        return;
    }
    for model in BOTH {
        for options in restrictions() {
            for who in NAMELESS {
                let f = fixture(model, &options);
                for file in make_all(&f, who) {
                    let meta = std::fs::symlink_metadata(f.dir.join(file)).unwrap();
                    assert_ne!(meta.uid(), 0, "{model:?} {options:?} {who:?} {file}");
                    assert_ne!(meta.gid(), 0, "{model:?} {options:?} {who:?} {file}");
                }
            }
        }
        // Nothing is restricted: what nobody makes is this process's, as always.
        let f = fixture(model, &IdOptions::default());
        for file in make_all(&f, NAMELESS[2]) {
            let meta = std::fs::symlink_metadata(f.dir.join(file)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (0, 0));
        }
    }
}

#[test]
fn nobody_is_refused_where_the_overflow_id_is_forbidden() {
    if !is_root() {
        return;
    }
    for model in BOTH {
        let options = IdOptions {
            forbid: vec!["0".parse().unwrap(), "60000-70000".parse().unwrap()],
            ..IdOptions::default()
        };
        let f = fixture(model, &options);
        for who in NAMELESS {
            assert_eq!(errno(f.try_create(who, "file", libc::O_RDWR, 0o644)), libc::EPERM);
        }
        assert_eq!(std::fs::read_dir(&f.dir).unwrap().count(), 0);
    }
}

#[test]
fn no_id_leaves_the_owner_whatever_the_options() {
    if !is_root() {
        return;
    }
    let every = restrictions().into_iter().chain([IdOptions::default()]);
    for options in every {
        for model in BOTH {
            let f = fixture(model, &options);
            std::fs::write(f.dir.join("file"), "").unwrap();
            chown(f.dir.join("file"), Some(70001), Some(70002)).unwrap();
            for (uid, gid) in [
                (Some(NO_ID), None),
                (None, Some(NO_ID)),
                (Some(NO_ID), Some(NO_ID)),
            ] {
                let set = SetAttr {
                    uid,
                    gid,
                    ..SetAttr::default()
                };
                f.share.setattr(ROOT, &f.walk("file").object(), &set).unwrap();
                let meta = std::fs::metadata(f.dir.join("file")).unwrap();
                assert_eq!((meta.uid(), meta.gid()), (70001, 70002), "{options:?}");
            }
        }
    }
}

/// The guest fills a program of the host's with its own instructions; it must not run as the host's user then.
#[test]
fn a_set_id_bit_needs_an_owner_that_the_guest_could_give() {
    if !is_root() {
        return;
    }
    let chmod = |f: &Fixture, mode| {
        let set = SetAttr {
            mode: Some(libc::S_IFREG | mode),
            ..SetAttr::default()
        };
        errno(f.share.setattr(ROOT, &f.walk("tool").object(), &set))
    };
    for model in BOTH {
        for options in [squash_root(), squash_all(), maps(), forbid()] {
            let f = fixture(model, &options);
            let tool = f.dir.join("tool");
            std::fs::write(&tool, "the host's").unwrap();
            std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o4755)).unwrap();
            let node = f.open("tool", libc::O_RDWR);
            f.write(&node, 0, b"the guest's").unwrap();
            let mode = || std::fs::metadata(&tool).unwrap().mode() & 0o7777;
            assert_eq!(mode(), 0o755, "a write takes it away");
            for bits in [0o4755, 0o2755, 0o6755] {
                assert_eq!(chmod(&f, bits), libc::EPERM, "{model:?} {options:?}");
                assert_eq!(mode(), 0o755);
            }
            // Other permissions are the guest's to change, and so are directories: they run nothing.
            assert_eq!(chmod(&f, 0o1711), 0);
            std::fs::create_dir(f.dir.join("dir")).unwrap();
            let set = SetAttr {
                mode: Some(libc::S_IFDIR | 0o2775),
                ..SetAttr::default()
            };
            f.share.setattr(ROOT, &f.walk("dir").object(), &set).unwrap();
            // What belongs to one of the guest's own users may have them. (1234 is none of the host's for a map.)
            let own = Caller { uid: 1234, gid: 1234 };
            f.try_create(own, "own", libc::O_RDWR, 0o6755).unwrap();
            let meta = std::fs::metadata(f.dir.join("own")).unwrap();
            assert_eq!(meta.mode() & 0o7777, 0o6755);
            assert!(meta.uid() > 999 && meta.gid() > 999);
        }
        // In two steps or one: the owner counts that the file has then.
        let f = fixture(model, &squash_root());
        std::fs::write(f.dir.join("tool"), "").unwrap();
        let set = SetAttr {
            mode: Some(libc::S_IFREG | 0o4755),
            uid: Some(0),
            gid: Some(0),
            ..SetAttr::default()
        };
        f.share.setattr(ROOT, &f.walk("tool").object(), &set).unwrap();
        let meta = std::fs::metadata(f.dir.join("tool")).unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (6000, 6001, 0o4755)
        );
        let f = fixture(model, &IdOptions::default());
        std::fs::write(f.dir.join("tool"), "").unwrap();
        assert_eq!(chmod(&f, 0o4755), 0);
    }
}

/// Squash forgives a refused owner, but not where the object would be left with one that the guest could not give.
#[test]
fn a_refused_owner_is_not_forgiven_where_the_object_would_stay_roots() {
    if !is_root() {
        return;
    }
    // Capabilities are a thread's: this one is the process without CAP_CHOWN.
    let without = || {
        Caps::current().unwrap().with(CAP_CHOWN, false).apply().unwrap();
        for options in [squash_root(), squash_all(), maps()] {
            let f = fixture(SecurityModel::Squash, &options);
            let who = user(1000);
            let root = f.root();
            let root = root.object();
            let refused = [
                errno(f.try_create(who, "file", libc::O_RDWR, 0o4755)),
                errno(f.share.mkdir(who, &root, &name("dir"), 0o755)),
                errno(f.share.mknod(who, &root, &name("fifo"), libc::S_IFIFO, 0)),
                errno(f.share.symlink(who, &root, &name("link"), b"x")),
            ];
            assert_eq!(refused, [libc::EPERM; 4], "{options:?}");
            assert_eq!(std::fs::read_dir(&f.dir).unwrap().count(), 0);
        }
        let f = fixture(SecurityModel::Squash, &IdOptions::default());
        f.try_create(user(1000), "file", libc::O_RDWR, 0o755).unwrap();
    };
    std::thread::scope(|scope| scope.spawn(without).join().unwrap());
}

#[test]
fn a_device_of_the_hosts_is_made_only_where_that_is_allowed() {
    if !is_root() {
        return;
    }
    let zero = libc::makedev(1, 5);
    let refused = |f: &Fixture, what: &str| {
        let root = f.root();
        let root = root.object();
        std::fs::write(f.dir.join("taken"), "").unwrap();
        for kind in [libc::S_IFCHR, libc::S_IFBLK] {
            for who in [ROOT, user(1000), NAMELESS[0], NAMELESS[2]] {
                for rdev in [zero, 1, u64::MAX, 1 << 32] {
                    let made = f.share.mknod(who, &root, &name("dev"), kind | 0o666, rdev);
                    assert_eq!(errno(made), libc::EPERM, "{what}");
                }
                let made = f.share.mknod(who, &root, &name("taken"), kind | 0o666, zero);
                assert_eq!(errno(made), libc::EEXIST, "{what}");
            }
        }
        assert_eq!(
            errno(f.share.mknod(ROOT, &root, &name("b"), libc::S_IFBLK, 0)),
            libc::EPERM
        );
        assert_eq!(std::fs::read_dir(&f.dir).unwrap().count(), 1, "{what}");
        // No device: an overlay's whiteout, a FIFO, a socket.
        for (kind, made) in [
            (libc::S_IFCHR, "whiteout"),
            (libc::S_IFIFO, "fifo"),
            (libc::S_IFSOCK, "socket"),
        ] {
            f.share
                .mknod(user(1000), &root, &name(made), kind | 0o600, 0)
                .unwrap();
        }
    };
    for model in BOTH {
        for options in restrictions().into_iter().chain([IdOptions::default()]) {
            refused(&fixture(model, &options), &format!("{model:?} {options:?}"));
        }
    }
    let f = Fixture::with(SecurityModel::Passthrough, |o| o.allow_devices = true);
    let root = f.root();
    f.share
        .mknod(
            user(1000),
            &root.object(),
            &name("dev"),
            libc::S_IFCHR | 0o600,
            zero,
        )
        .unwrap();
    assert_eq!(std::fs::metadata(f.dir.join("dev")).unwrap().rdev(), zero);
    // Nobody opens it, allowed or not.
    assert_eq!(errno(f.try_open("dev", libc::O_RDONLY)), libc::ENXIO);
    // Mapped, it is an empty file.
    for model in [SecurityModel::MappedXattr, SecurityModel::MappedFile] {
        let f = Fixture::new(model);
        let root = f.root();
        f.share
            .mknod(ROOT, &root.object(), &name("dev"), libc::S_IFCHR | 0o666, zero)
            .unwrap();
        assert!(std::fs::metadata(f.dir.join("dev")).unwrap().is_file());
        assert_eq!(f.attr(&f.walk("dev")).rdev, zero);
    }
}

#[test]
fn what_goes_round_a_restriction_cannot_be_allowed_beside_it() {
    let check = |model, change: &dyn Fn(&mut ShareOptions)| {
        let mut options = ShareOptions::new("/", model);
        options.allow_devices = true;
        change(&mut options);
        options.check()
    };
    assert_eq!(check(SecurityModel::Passthrough, &|_| ()), Ok(()));
    for model in [
        SecurityModel::Squash,
        SecurityModel::MappedXattr,
        SecurityModel::MappedFile,
    ] {
        let error = check(model, &|_| ()).unwrap_err();
        assert!(error.contains("--security-model passthrough"), "{error}");
    }
    for ids in restrictions() {
        let error = check(SecurityModel::Passthrough, &|o| {
            o.ids = IdMaps::new(&ids).unwrap()
        });
        assert!(error.unwrap_err().contains("--squash-root"));
    }
    let host = check(SecurityModel::Passthrough, &|o| {
        o.check_access = CheckAccess::Host
    });
    assert!(host.unwrap_err().contains("--check-access host"));
}

/// `VFS_CAP_REVISION_2`, CAP_SETUID permitted and effective.
fn capability() -> [u8; 20] {
    let mut value = [0; 20];
    value[0] = 1;
    value[3] = 2;
    value[4] = 1 << 7;
    value
}

fn on_host(f: &Fixture, file: &str, xattr: &str) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(f.dir.join(file)).unwrap();
    let mut value = vec![0; 100];
    let len = host::sys::xattr::get(Target::Open(file.as_fd()), &c(xattr), &mut value)?;
    value.truncate(len);
    Ok(value)
}

fn set_on_host(f: &Fixture, file: &str, xattr: &str, value: &[u8]) {
    let file = std::fs::File::open(f.dir.join(file)).unwrap();
    host::sys::xattr::set(Target::Open(file.as_fd()), &c(xattr), value, 0).unwrap();
}

#[test]
fn the_kernels_own_xattrs_are_set_only_where_that_is_allowed() {
    if !is_root() {
        return;
    }
    let capability = capability();
    let kinds: [(&str, &[u8]); 4] = [
        ("security.capability", &capability),
        ("security.selinux", b"system_u:object_r:bin_t:s0"),
        ("trusted.overlay.opaque", b"y"),
        ("system.nfs4_acl", b"x"),
    ];
    let refused = |f: &Fixture, what: &str| {
        std::fs::write(f.dir.join("file"), "").unwrap();
        let file = f.open("file", libc::O_RDWR);
        for (xattr, value) in kinds {
            for who in [ROOT, user(1000), NAMELESS[2]] {
                for object in [file.object(), f.walk("file").object()] {
                    let set = f.share.set_xattr(who, &object, &c(xattr), value, 0);
                    assert_eq!(errno(set), libc::EOPNOTSUPP, "{what} {xattr}");
                }
            }
            assert!(on_host(f, "file", xattr).is_err(), "{what} {xattr}");
        }
        // What the host has set is shown as far as it concerns the guest, and stays.
        for (xattr, value) in [kinds[0], kinds[2]] {
            set_on_host(f, "file", xattr, value);
            let removed = f.share.remove_xattr(ROOT, &file.object(), &c(xattr));
            assert_eq!(errno(removed), libc::EOPNOTSUPP, "{what} {xattr}");
            assert_eq!(on_host(f, "file", xattr).unwrap(), value);
        }
        let get = |xattr| f.share.get_xattr(ROOT, &file.object(), &c(xattr), &mut [0; 100]);
        assert_eq!(get("security.capability").unwrap(), 20);
        assert_eq!(errno(get("trusted.overlay.opaque")), libc::ENODATA);
        f.share
            .set_xattr(ROOT, &file.object(), &c("user.x"), b"y", 0)
            .unwrap();
        let mut names = Vec::new();
        f.share.list_xattr(ROOT, &file.object(), &mut names).unwrap();
        let mut names: Vec<_> = names.split(|&b| b == 0).filter(|name| !name.is_empty()).collect();
        names.sort();
        assert_eq!(names, [&b"security.capability"[..], b"user.x"], "{what}");
    };
    for model in BOTH {
        for options in restrictions().into_iter().chain([IdOptions::default()]) {
            refused(&fixture(model, &options), &format!("{model:?} {options:?}"));
        }
        let f = Fixture::with(model, |o| {
            o.allow_xattrs = KernelXattrs {
                security: true,
                trusted: true,
            }
        });
        std::fs::write(f.dir.join("file"), "").unwrap();
        for (xattr, value) in [kinds[0], kinds[2]] {
            let file = f.walk("file");
            f.share
                .set_xattr(ROOT, &file.object(), &c(xattr), value, 0)
                .unwrap();
            assert_eq!(on_host(&f, "file", xattr).unwrap(), value);
            f.share.remove_xattr(ROOT, &file.object(), &c(xattr)).unwrap();
        }
        let other = f
            .share
            .set_xattr(ROOT, &f.walk("file").object(), &c("system.nfs4_acl"), b"x", 0);
        assert_eq!(errno(other), libc::EOPNOTSUPP);
    }
    // Mapped, they are the guest's own affair, or nothing.
    let f = Fixture::new(SecurityModel::MappedXattr);
    f.create("file", libc::O_RDWR, 0o755);
    f.share
        .set_xattr(ROOT, &f.walk("file").object(), &c(kinds[0].0), &capability, 0)
        .unwrap();
    assert!(on_host(&f, "file", kinds[0].0).is_err());
    assert_eq!(
        on_host(&f, "file", "user.virtfs.security.capability").unwrap(),
        capability
    );
    let f = Fixture::new(SecurityModel::MappedFile);
    f.create("file", libc::O_RDWR, 0o755);
    for (xattr, value) in kinds {
        let set = f
            .share
            .set_xattr(ROOT, &f.walk("file").object(), &c(xattr), value, 0);
        assert_eq!(errno(set), libc::EOPNOTSUPP);
    }
}
