//! Id maps through the whole share: attributes, creation, chown and the ids inside ACLs, in both directions and in
//! every mode.

mod common;

use common::{Fixture, ROOT, c, errno, is_root, name, user};
use host::sys::{self, ProcFd, xattr::Target};
use host::{Caller, IdMaps, IdOptions, SecurityModel, SetAttr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

const MODES: [SecurityModel; 3] = [
    SecurityModel::MappedXattr,
    SecurityModel::MappedFile,
    SecurityModel::Passthrough,
];

const ALL: [SecurityModel; 4] = [MODES[0], MODES[1], MODES[2], SecurityModel::Squash];

fn fixture(model: SecurityModel, options: &IdOptions) -> Fixture {
    Fixture::with(model, |share| share.ids = IdMaps::new(options).unwrap())
}

fn mapped() -> IdOptions {
    IdOptions {
        uid_map: vec!["0:100000:1000".parse().unwrap()],
        gid_map: vec!["0:200000:1000".parse().unwrap()],
        ..IdOptions::default()
    }
}

fn owner(f: &Fixture, path: &str) -> (u32, u32) {
    let attr = f.attr(&f.walk(path));
    (attr.uid, attr.gid)
}

/// Owner and group as the mode keeps them on the host.
fn kept(f: &Fixture, model: SecurityModel, path: &str) -> (u32, u32) {
    match model {
        SecurityModel::MappedXattr => {
            let number = |name| {
                let mut buf = [0; 4];
                sys::xattr::get(
                    Target::Path(&ProcFd::open().unwrap(), f.walk(path).path.as_fd()),
                    name,
                    &mut buf,
                )
                .unwrap();
                u32::from_le_bytes(buf)
            };
            (number(c"user.virtfs.uid"), number(c"user.virtfs.gid"))
        }
        SecurityModel::MappedFile => {
            let text = std::fs::read_to_string(f.dir.join(".virtfs_metadata").join(path)).unwrap();
            let number = |key: &str| {
                text.lines()
                    .find_map(|l| l.strip_prefix(key))
                    .unwrap()
                    .parse()
                    .unwrap()
            };
            (number("virtfs.uid="), number("virtfs.gid="))
        }
        _ => {
            let found = std::fs::symlink_metadata(f.dir.join(path)).unwrap();
            (found.uid(), found.gid())
        }
    }
}

fn chown(f: &Fixture, path: &str, uid: Option<u32>, gid: Option<u32>) -> std::io::Result<()> {
    let set = SetAttr {
        uid,
        gid,
        ..SetAttr::default()
    };
    f.share.setattr(ROOT, &f.walk(path).object(), &set)
}

#[test]
fn owners_are_mapped_both_ways() {
    for model in MODES {
        if model == SecurityModel::Passthrough && !is_root() {
            continue;
        }
        let f = fixture(model, &mapped());
        f.try_create(Caller { uid: 7, gid: 8 }, "file", libc::O_RDWR, 0o644)
            .unwrap();
        f.share
            .mkdir(ROOT, &f.root().object(), &name("dir"), 0o755)
            .unwrap();
        f.share
            .symlink(user(1), &f.root().object(), &name("link"), b"x")
            .unwrap();
        for (path, guest) in [("file", (7, 8)), ("dir", (0, 0)), ("link", (1, 1))] {
            assert_eq!(owner(&f, path), guest, "{model:?} {path}");
            assert_eq!(
                kept(&f, model, path),
                (100_000 + guest.0, 200_000 + guest.1),
                "{model:?} {path}"
            );
        }
        chown(&f, "file", Some(999), None).unwrap();
        assert_eq!(owner(&f, "file"), (999, 8));
        assert_eq!(kept(&f, model, "file"), (100_999, 200_008));
    }
}

#[test]
fn ids_without_counterpart_are_refused_and_shown_as_the_overflow_id() {
    for model in ALL {
        let f = fixture(model, &mapped());
        std::fs::write(f.dir.join("host"), "").unwrap();
        assert_eq!(owner(&f, "host"), (65534, 65534), "{model:?}");
        let object = f.walk("host");
        for (uid, gid) in [(Some(1000), None), (None, Some(1000)), (Some(65534), None)] {
            assert_eq!(errno(chown(&f, "host", uid, gid)), libc::EPERM, "{model:?}");
        }
        let root = f.root();
        let (root, new) = (root.object(), name("new"));
        for who in [user(1000), Caller { uid: 0, gid: 1000 }] {
            assert_eq!(errno(f.try_create(who, "new", libc::O_RDWR, 0o644)), libc::EPERM);
            assert_eq!(errno(f.share.mkdir(who, &root, &new, 0o755)), libc::EPERM);
            assert_eq!(
                errno(f.share.mknod(who, &root, &new, libc::S_IFIFO, 0)),
                libc::EPERM
            );
            assert_eq!(errno(f.share.symlink(who, &root, &new, b"x")), libc::EPERM);
        }
        assert_eq!(std::fs::read_dir(&f.dir).unwrap().count(), 1);
        // Looking, opening and removing are the guest kernel's to allow.
        assert!(
            f.share
                .stat(user(1000), &object.object(), &mut host::Attr::default())
                .is_ok()
        );
    }
}

#[test]
fn squashed_and_forbidden_ids() {
    for model in [SecurityModel::MappedXattr, SecurityModel::MappedFile] {
        let options = IdOptions {
            squash_root: Some("1000:1001".parse().unwrap()),
            forbid: vec!["0-99".parse().unwrap()],
            ..IdOptions::default()
        };
        let f = fixture(model, &options);
        f.try_create(ROOT, "root", libc::O_RDWR, 0o644).unwrap();
        assert_eq!(kept(&f, model, "root"), (1000, 1001));
        assert_eq!(owner(&f, "root"), (1000, 1001));
        assert_eq!(
            errno(f.try_create(user(50), "x", libc::O_RDWR, 0o644)),
            libc::EPERM
        );
        assert_eq!(errno(chown(&f, "root", Some(99), None)), libc::EPERM);
        chown(&f, "root", Some(100), Some(0)).unwrap();
        assert_eq!(kept(&f, model, "root"), (100, 1001));

        let everybody = IdOptions {
            squash_all: Some("7:8".parse().unwrap()),
            ..IdOptions::default()
        };
        let f = fixture(model, &everybody);
        f.try_create(user(55), "file", libc::O_RDWR, 0o644).unwrap();
        chown(&f, "file", Some(3), Some(3)).unwrap();
        assert_eq!(kept(&f, model, "file"), (7, 8));
    }
}

/// An ACL with one named user and one named group.
fn acl(uid: u32, gid: u32) -> Vec<u8> {
    let mut blob = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 7, uid),
        (4, 4, u32::MAX),
        (8, 5, gid),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        blob.extend(tag.to_le_bytes());
        blob.extend(perm.to_le_bytes());
        blob.extend(id.to_le_bytes());
    }
    blob
}

#[test]
fn ids_inside_acls_are_mapped_both_ways() {
    for model in MODES {
        let f = fixture(model, &mapped());
        std::fs::create_dir(f.dir.join("dir")).unwrap();
        let dir = f.walk("dir");
        for which in ["system.posix_acl_access", "system.posix_acl_default"] {
            let set = |blob: &[u8]| f.share.set_xattr(ROOT, &dir.object(), &c(which), blob, 0);
            set(&acl(7, 8)).unwrap();
            let host = match model {
                SecurityModel::MappedXattr => c(&format!("user.virtfs.{which}")),
                _ => c(which),
            };
            let mut buf = [0; 200];
            let proc = ProcFd::open().unwrap();
            let len = sys::xattr::get(Target::Path(&proc, dir.path.as_fd()), &host, &mut buf).unwrap();
            assert_eq!(buf[..len], acl(100_007, 200_008), "{model:?}");
            let len = f
                .share
                .get_xattr(ROOT, &dir.object(), &c(which), &mut [])
                .unwrap();
            assert_eq!(len, acl(7, 8).len());
            let len = f
                .share
                .get_xattr(ROOT, &dir.object(), &c(which), &mut buf)
                .unwrap();
            assert_eq!(buf[..len], acl(7, 8), "{model:?}");
            assert_eq!(errno(set(&acl(1000, 8))), libc::EPERM);
            assert_eq!(errno(set(&acl(7, 1000))), libc::EPERM);
            assert_eq!(errno(set(b"\x02\0\0\0\x01")), libc::EINVAL);
            assert_eq!(errno(set(b"\x03\0\0\0")), libc::EINVAL);
            // One that the host made names somebody the guest does not have.
            let value = acl(5, 200_001);
            sys::xattr::set(Target::Path(&proc, dir.path.as_fd()), &host, &value, 0).unwrap();
            let len = f
                .share
                .get_xattr(ROOT, &dir.object(), &c(which), &mut buf)
                .unwrap();
            assert_eq!(buf[..len], acl(65534, 1), "{model:?}");
            set(b"").unwrap();
            let gone = f.share.get_xattr(ROOT, &dir.object(), &c(which), &mut buf);
            assert_eq!(errno(gone), libc::ENODATA, "{model:?}");
        }
    }
}

#[test]
fn the_mapped_modes_work_through_the_share() {
    for model in [SecurityModel::MappedXattr, SecurityModel::MappedFile] {
        let f = Fixture::new(model);
        let root = f.root();
        f.share
            .mknod(ROOT, &root.object(), &name("fifo"), libc::S_IFIFO | 0o600, 0)
            .unwrap();
        f.share
            .symlink(ROOT, &root.object(), &name("link"), b"fifo")
            .unwrap();
        let file = f.create("file", libc::O_RDWR, 0o400);
        f.write(&file, 0, b"0123456789").unwrap();
        // No special file, no symlink is opened, though the host would open what they are kept in.
        for (path, refusal) in [("fifo", libc::ENXIO), ("link", libc::ELOOP)] {
            let flags = libc::O_RDWR | libc::O_TRUNC;
            assert_eq!(
                errno(f.try_create(ROOT, path, flags, 0o600)),
                refusal,
                "{model:?}"
            );
        }
        let mut dir = f.root();
        dir.file = Some(f.share.open_object(ROOT, &dir.object(), libc::O_RDONLY).unwrap());
        let mut listed: Vec<_> = f
            .list(&dir)
            .into_iter()
            .map(|(name, _, _, kind)| (name, kind))
            .collect();
        listed.sort();
        let expected = [
            (".", libc::DT_DIR),
            ("..", libc::DT_DIR),
            ("fifo", libc::DT_FIFO),
            ("file", libc::DT_REG),
            ("link", libc::DT_LNK),
        ];
        assert_eq!(listed, expected.map(|(name, kind)| (name.to_owned(), kind)));
        f.share
            .unlink(ROOT, &root.object(), &name("file"), false)
            .unwrap();
        let set = SetAttr {
            size: Some(4),
            mode: Some(0o100640),
            uid: Some(3),
            ..SetAttr::default()
        };
        f.share.setattr(ROOT, &file.object(), &set).unwrap();
        let attr = f.attr(&file);
        assert_eq!(
            (attr.size, attr.mode, attr.uid, attr.nlink),
            (4, 0o100640, 3, 0),
            "{model:?}"
        );
    }
    let f = Fixture::new(SecurityModel::MappedFile);
    for ours in [".virtfs_metadata", ".virtfs_metadata_root"] {
        let (root, ours) = (f.root(), name(ours));
        let (root, file) = (root.object(), name("file"));
        f.create("file", libc::O_RDWR, 0o600);
        let s = &f.share;
        for refusal in [
            errno(s.lookup(ROOT, &root, &ours)),
            errno(s.create(ROOT, &root, &ours, libc::O_RDWR, 0o600)),
            errno(s.mkdir(ROOT, &root, &ours, 0o700)),
            errno(s.mknod(ROOT, &root, &ours, libc::S_IFIFO, 0)),
            errno(s.symlink(ROOT, &root, &ours, b"x")),
            errno(s.link(ROOT, &f.walk("file").object(), &root, &ours)),
            errno(s.rename(ROOT, &root, &file, &root, &ours)),
            errno(s.rename(ROOT, &root, &ours, &root, &file)),
            errno(s.unlink(ROOT, &root, &ours, false)),
            errno(s.unlink(ROOT, &root, &ours, true)),
        ] {
            assert_eq!(refusal, libc::EINVAL);
        }
    }
}
