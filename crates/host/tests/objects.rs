//! Making, finding, changing and removing objects in the modes whose objects are the host's own.

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use common::*;
use host::{Caller, FileType, SecurityModel, SetAttr, SetTime, Time};

const BOTH: [SecurityModel; 2] = [SecurityModel::Passthrough, SecurityModel::Squash];

#[test]
fn new_objects_get_owner_group_and_exact_mode() {
    if !is_root() {
        return;
    }
    for model in BOTH {
        let devices = model == SecurityModel::Passthrough;
        let f = Fixture::with(model, |o| o.allow_devices = devices);
        let who = Caller { uid: 1234, gid: 4321 };
        let root = f.root();
        let node = f
            .try_create(who, "file", libc::O_RDWR | libc::O_EXCL, 0o6751)
            .unwrap();
        assert_eq!(node.id.file_type, FileType::Regular);
        let id = f.share.mkdir(who, &root.object(), &name("dir"), 0o3770).unwrap();
        assert_eq!(id.file_type, FileType::Directory);
        let id = f
            .share
            .mknod(who, &root.object(), &name("fifo"), libc::S_IFIFO | 0o642, 0)
            .unwrap();
        assert_eq!(id.file_type, FileType::Special);
        let dev = libc::makedev(300, 70000);
        let made = f
            .share
            .mknod(who, &root.object(), &name("dev"), libc::S_IFBLK | 0o604, dev);
        assert_eq!(made.is_ok(), devices);
        f.share
            .mknod(who, &root.object(), &name("sock"), libc::S_IFSOCK | 0o777, 0)
            .unwrap();
        f.share
            .mknod(who, &root.object(), &name("plain"), libc::S_IFREG | 0o444, 0)
            .unwrap();
        let id = f
            .share
            .symlink(who, &root.object(), &name("link"), b"no/where")
            .unwrap();
        assert_eq!(id.file_type, FileType::Symlink);
        for (file, mode) in [
            ("file", 0o106751),
            ("dir", 0o043770),
            ("fifo", 0o010642),
            ("dev", 0o060604),
            ("sock", 0o140777),
            ("plain", 0o100444),
            ("link", 0o120777),
        ] {
            if file == "dev" && !devices {
                continue;
            }
            let meta = std::fs::symlink_metadata(f.dir.join(file)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (1234, 4321), "{file}");
            assert_eq!(meta.mode(), mode, "{file}: {:o}", meta.mode());
            let attr = f.attr(&f.walk(file));
            assert_eq!((attr.mode, attr.uid, attr.gid), (mode, 1234, 4321), "{file}");
            assert_eq!(attr.unique, meta.ino());
            assert_eq!((attr.size, attr.nlink), (meta.size(), meta.nlink()));
        }
        if devices {
            assert_eq!(f.attr(&f.walk("dev")).rdev, dev);
        }
        assert_eq!(
            std::fs::read_link(f.dir.join("link")).unwrap().to_str(),
            Some("no/where")
        );
        let mut target = [0; 100];
        let link = f.walk("link");
        let len = f.share.readlink(ROOT, &link.object(), &mut target).unwrap();
        assert_eq!(&target[..len], b"no/where");
        assert_eq!(
            errno(f.share.readlink(ROOT, &root.object(), &mut target)),
            libc::EINVAL
        );
    }
}

#[test]
fn a_creator_may_write_to_what_the_mode_denies() {
    unprivileged("a_creator_may_write_to_what_the_mode_denies", 12345, || {
        let f = Fixture::new(SecurityModel::Squash);
        for mode in [0, 0o444] {
            let node = f.create(&format!("m{mode}"), libc::O_RDWR, mode);
            assert_eq!(f.write(&node, 0, b"abc").unwrap(), 3);
            assert_eq!(f.read(&node, 1, 9, false).unwrap(), b"bc");
            assert_eq!(f.attr(&node).mode & 0o7777, mode);
            // Through the open descriptor, not by opening again, which would be refused.
            let set = SetAttr {
                size: Some(1),
                ..SetAttr::default()
            };
            f.share.setattr(ROOT, &node.object(), &set).unwrap();
            assert_eq!(f.attr(&node).size, 1);
        }
    });
}

#[test]
fn create_opens_what_is_there_and_never_alters_it() {
    for model in BOTH {
        let f = Fixture::new(model);
        let path = f.dir.join("old");
        std::fs::write(&path, "content").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let before = std::fs::metadata(&path).unwrap();
        let node = f
            .try_create(user(77), "old", libc::O_RDWR | libc::O_CREAT, 0o6777)
            .unwrap();
        let after = std::fs::metadata(&path).unwrap();
        assert_eq!(
            (
                after.mode(),
                after.uid(),
                after.gid(),
                after.ctime_nsec(),
                after.ino()
            ),
            (
                before.mode(),
                before.uid(),
                before.gid(),
                before.ctime_nsec(),
                before.ino()
            )
        );
        assert_eq!(f.read(&node, 0, 10, false).unwrap(), b"content");
        assert_eq!(node.id.ino, after.ino());
        let excl = f.try_create(user(77), "old", libc::O_RDWR | libc::O_EXCL, 0o600);
        assert_eq!(errno(excl), libc::EEXIST);
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        f.create("old", libc::O_WRONLY | libc::O_TRUNC, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        // What is there and is no file is not touched either.
        symlink("/etc/passwd", f.dir.join("link")).unwrap();
        assert_eq!(
            errno(f.try_create(ROOT, "link", libc::O_RDONLY, 0o600)),
            libc::ELOOP
        );
        std::fs::create_dir(f.dir.join("dir")).unwrap();
        assert_eq!(
            errno(f.try_create(ROOT, "dir", libc::O_RDONLY, 0o600)),
            libc::EISDIR
        );
        let fifo = c(f.dir.join("fifo").to_str().unwrap());
        // SAFETY: a NUL-terminated path.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert_eq!(
            errno(f.try_create(ROOT, "fifo", libc::O_RDWR, 0o600)),
            libc::ENXIO
        );
        assert!(
            std::fs::symlink_metadata(f.dir.join("fifo"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
    }
}

#[test]
fn a_refused_owner_leaves_nothing_behind_in_passthrough_and_is_forgiven_in_squash() {
    unprivileged(
        "a_refused_owner_leaves_nothing_behind_in_passthrough_and_is_forgiven_in_squash",
        12345,
        || {
            let me = me();
            let other = user(me.uid + 1);
            let f = Fixture::new(SecurityModel::Passthrough);
            let root = f.root();
            assert_eq!(errno(f.try_create(other, "f", libc::O_RDWR, 0o644)), libc::EPERM);
            assert_eq!(
                errno(f.share.mkdir(other, &root.object(), &name("d"), 0o755)),
                libc::EPERM
            );
            let fifo = libc::S_IFIFO | 0o600;
            assert_eq!(
                errno(f.share.mknod(other, &root.object(), &name("p"), fifo, 0)),
                libc::EPERM
            );
            assert_eq!(
                errno(f.share.symlink(other, &root.object(), &name("l"), b"x")),
                libc::EPERM
            );
            assert_eq!(std::fs::read_dir(&f.dir).unwrap().count(), 0);
            f.try_create(me, "mine", libc::O_RDWR, 0o644).unwrap();

            let f = Fixture::new(SecurityModel::Squash);
            let root = f.root();
            f.try_create(other, "f", libc::O_RDWR, 0o4644).unwrap();
            f.share.mkdir(other, &root.object(), &name("d"), 0o755).unwrap();
            f.share.mknod(other, &root.object(), &name("p"), fifo, 0).unwrap();
            f.share.symlink(other, &root.object(), &name("l"), b"x").unwrap();
            for file in ["f", "d", "p", "l"] {
                let meta = std::fs::symlink_metadata(f.dir.join(file)).unwrap();
                assert_eq!(meta.uid(), me.uid);
                let set = SetAttr {
                    uid: Some(0),
                    gid: Some(0),
                    ..SetAttr::default()
                };
                f.share.setattr(ROOT, &f.walk(file).object(), &set).unwrap();
                assert_eq!(std::fs::symlink_metadata(f.dir.join(file)).unwrap().uid(), me.uid);
            }
            assert_eq!(
                std::fs::metadata(f.dir.join("f")).unwrap().mode() & 0o7777,
                0o4644
            );
            // Everything else is honest.
            let null = libc::makedev(1, 3);
            let device = f
                .share
                .mknod(ROOT, &root.object(), &name("null"), libc::S_IFCHR | 0o666, null);
            assert_eq!(errno(device), libc::EPERM);
        },
    );
}

#[test]
fn setattr_applies_everything_in_the_right_order() {
    if !is_root() {
        return;
    }
    for model in BOTH {
        let f = Fixture::new(model);
        let node = f.create("file", libc::O_RDWR, 0o600);
        f.write(&node, 0, b"0123456789").unwrap();
        let at = |sec| SetTime::At(Time { sec, nsec: 7 });
        let set = SetAttr {
            mode: Some(libc::S_IFREG | 0o6755),
            uid: Some(55),
            gid: Some(66),
            size: Some(4),
            atime: at(1000),
            mtime: at(-2000),
            ctime: true,
        };
        f.share.setattr(ROOT, &node.object(), &set).unwrap();
        let attr = f.attr(&node);
        // The owner does not cost the set-id bits, the size does not cost the time.
        assert_eq!((attr.mode, attr.uid, attr.gid), (0o106755, 55, 66));
        assert_eq!((attr.size, attr.atime.sec, attr.mtime.sec), (4, 1000, -2000));
        assert_eq!(attr.mtime.nsec, 7);
        let bad = SetAttr {
            atime: SetTime::At(Time {
                sec: 1,
                nsec: 1_073_741_823,
            }),
            ..SetAttr::default()
        };
        assert_eq!(errno(f.share.setattr(ROOT, &node.object(), &bad)), libc::EINVAL);
    }
}

#[test]
fn an_object_without_a_name_can_be_changed_in_every_way() {
    for model in BOTH {
        let f = Fixture::new(model);
        let me = me().uid;
        let mut file = f.create("file", libc::O_RDWR, 0o600);
        let dir = {
            f.share
                .mkdir(common::me(), &f.root().object(), &name("dir"), 0o700)
                .unwrap();
            f.walk("dir")
        };
        std::fs::remove_file(f.dir.join("file")).unwrap();
        std::fs::remove_dir(f.dir.join("dir")).unwrap();
        let set = SetAttr {
            mode: Some(0o640),
            uid: Some(me),
            atime: SetTime::At(Time { sec: 5, nsec: 0 }),
            mtime: SetTime::Now,
            ..SetAttr::default()
        };
        for node in [&file, &dir] {
            f.share.setattr(ROOT, &node.object(), &set).unwrap();
            let attr = f.attr(node);
            assert_eq!((attr.mode & 0o7777, attr.atime.sec), (0o640, 5));
        }
        // Open, then by its O_PATH descriptor alone.
        for open in [true, false] {
            if !open {
                file.file = None;
            }
            for node in [&file, &dir] {
                let x = c("user.x");
                f.share.set_xattr(ROOT, &node.object(), &x, b"value", 0).unwrap();
                let mut buf = [0; 16];
                assert_eq!(f.share.get_xattr(ROOT, &node.object(), &x, &mut buf).unwrap(), 5);
                assert_eq!(&buf[..5], b"value");
                assert_eq!(f.share.get_xattr(ROOT, &node.object(), &x, &mut []).unwrap(), 5);
                assert_eq!(
                    errno(f.share.get_xattr(ROOT, &node.object(), &x, &mut buf[..4])),
                    libc::ERANGE
                );
                let mut list = vec![9; 3];
                f.share.list_xattr(ROOT, &node.object(), &mut list).unwrap();
                assert_eq!(list, b"user.x\0");
                f.share.remove_xattr(ROOT, &node.object(), &x).unwrap();
                assert_eq!(
                    errno(f.share.get_xattr(ROOT, &node.object(), &x, &mut buf)),
                    libc::ENODATA
                );
            }
            let set = SetAttr {
                size: Some(if open { 100 } else { 200 }),
                ..SetAttr::default()
            };
            f.share.setattr(ROOT, &file.object(), &set).unwrap();
            assert_eq!(Some(f.attr(&file).size), set.size);
        }
        // A clone of the fid can still be opened, and has no name to be linked by.
        f.share.open_object(ROOT, &file.object(), libc::O_RDWR).unwrap();
        assert_eq!(
            errno(
                f.share
                    .link(ROOT, &file.object(), &f.root().object(), &name("again"))
            ),
            libc::ENOENT
        );
        f.share.statfs(ROOT, &dir.object()).unwrap();
    }
}

#[test]
fn a_symlink_itself_is_changed() {
    for model in BOTH {
        let f = Fixture::new(model);
        std::fs::write(f.dir.join("target"), "x").unwrap();
        symlink("target", f.dir.join("link")).unwrap();
        let before = std::fs::metadata(f.dir.join("target")).unwrap();
        let link = f.walk("link");
        let mut set = SetAttr {
            mtime: SetTime::At(Time { sec: 99, nsec: 1 }),
            ..SetAttr::default()
        };
        if is_root() {
            set.uid = Some(5);
        }
        f.share.setattr(ROOT, &link.object(), &set).unwrap();
        let meta = std::fs::symlink_metadata(f.dir.join("link")).unwrap();
        assert_eq!(meta.mtime(), 99);
        if is_root() {
            assert_eq!(meta.uid(), 5);
        }
        let chmod = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        assert_eq!(
            errno(f.share.setattr(ROOT, &link.object(), &chmod)),
            libc::EOPNOTSUPP
        );
        let size = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        assert_ne!(errno(f.share.setattr(ROOT, &link.object(), &size)), 0);
        let after = std::fs::metadata(f.dir.join("target")).unwrap();
        assert_eq!(
            (after.ctime_nsec(), after.uid(), after.size()),
            (before.ctime_nsec(), before.uid(), 1)
        );
        // And linked: the symlink, not what it names.
        f.share
            .link(ROOT, &link.object(), &f.root().object(), &name("link2"))
            .unwrap();
        assert_eq!(
            std::fs::symlink_metadata(f.dir.join("link2")).unwrap().ino(),
            meta.ino()
        );
    }
}

#[test]
fn an_xattr_of_a_symlink_is_not_its_targets() {
    if !is_root() {
        return;
    }
    let f = Fixture::with(SecurityModel::Passthrough, |o| o.allow_xattrs.trusted = true);
    std::fs::write(f.dir.join("target"), "x").unwrap();
    symlink("target", f.dir.join("link")).unwrap();
    let (link, target) = (f.walk("link"), f.walk("target"));
    let key = c("trusted.test");
    match errno(f.share.set_xattr(ROOT, &link.object(), &key, b"v", 0)) {
        0 => {}
        // Not on every file system, and not in every container.
        libc::EOPNOTSUPP | libc::EPERM => return,
        other => panic!("errno {other}"),
    }
    assert_eq!(
        f.share
            .get_xattr(ROOT, &link.object(), &key, &mut [0; 9])
            .unwrap(),
        1
    );
    assert_eq!(
        errno(f.share.get_xattr(ROOT, &target.object(), &key, &mut [0; 9])),
        libc::ENODATA
    );
    let user = c("user.x");
    assert_eq!(
        errno(f.share.set_xattr(ROOT, &link.object(), &user, b"v", 0)),
        libc::EPERM
    );
}

#[test]
fn truncating_a_file_one_may_only_write_to_does_not_need_ownership() {
    unprivileged_over(
        "truncating_a_file_one_may_only_write_to_does_not_need_ownership",
        12345,
        |dir| {
            std::fs::write(dir.join("f"), "content").unwrap();
            std::fs::set_permissions(dir.join("f"), PermissionsExt::from_mode(0o666)).unwrap();
        },
        |dir| {
            let f = Fixture::over(dir, SecurityModel::Squash, |_| {});
            let node = f.open("f", libc::O_WRONLY);
            // What open(O_TRUNC) of a Linux guest sends.
            let set = SetAttr {
                size: Some(3),
                mtime: SetTime::Now,
                ctime: true,
                ..SetAttr::default()
            };
            f.share.setattr(ROOT, &node.object(), &set).unwrap();
            assert_eq!(f.attr(&node).size, 3);
            // By the O_PATH descriptor alone, and touch: both times now.
            let set = SetAttr {
                size: Some(1),
                atime: SetTime::Now,
                ..set
            };
            f.share.setattr(ROOT, &f.walk("f").object(), &set).unwrap();
            assert_eq!(f.attr(&node).size, 1);
            // A time of one's choice is the owner's, honestly.
            let set = SetAttr {
                mtime: SetTime::At(Time { sec: 1, nsec: 0 }),
                ..SetAttr::default()
            };
            assert_eq!(errno(f.share.setattr(ROOT, &node.object(), &set)), libc::EPERM);
            let chmod = SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            };
            assert_eq!(errno(f.share.setattr(ROOT, &node.object(), &chmod)), libc::EPERM);
        },
    );
}

#[test]
fn writing_clears_set_id_bits_although_the_process_is_root() {
    for model in BOTH {
        let f = Fixture::new(model);
        let node = f.create("tool", libc::O_RDWR, 0o6755);
        f.write(&node, 0, b"#!").unwrap();
        assert_eq!(f.attr(&node).mode, 0o100755);
        let chmod = SetAttr {
            mode: Some(0o6755),
            ..SetAttr::default()
        };
        f.share.setattr(ROOT, &node.object(), &chmod).unwrap();
        assert_eq!(f.attr(&node).mode, 0o106755);
        let truncate = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        f.share.setattr(ROOT, &node.object(), &truncate).unwrap();
        assert_eq!(f.attr(&node).mode, 0o100755);
    }
}

#[test]
fn ctime_alone_can_be_moved() {
    for model in BOTH {
        let f = Fixture::new(model);
        let node = f.create("file", libc::O_RDWR, 0o600);
        let before = f.attr(&node);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let set = SetAttr {
            ctime: true,
            ..SetAttr::default()
        };
        f.share.setattr(ROOT, &node.object(), &set).unwrap();
        let after = f.attr(&node);
        assert_ne!(after.ctime, before.ctime);
        assert_ne!(after.version, before.version);
        assert_eq!((after.mtime, after.mode), (before.mtime, before.mode));
    }
}

#[test]
fn rename_link_and_unlink_work_and_tell_why_not() {
    for model in BOTH {
        let f = Fixture::new(model);
        let root = f.root();
        std::fs::create_dir(f.dir.join("d")).unwrap();
        let d = f.walk("d");
        let node = f.create("a", libc::O_RDWR, 0o644);
        f.share
            .rename(ROOT, &root.object(), &name("a"), &d.object(), &name("b"))
            .unwrap();
        assert_eq!(f.walk("d/b").id.ino, node.id.ino);
        f.share
            .link(ROOT, &node.object(), &root.object(), &name("c"))
            .unwrap();
        assert_eq!(f.attr(&node).nlink, 2);
        assert_eq!(
            errno(f.share.link(ROOT, &node.object(), &root.object(), &name("c"))),
            libc::EEXIST
        );
        assert_eq!(
            errno(f.share.unlink(ROOT, &root.object(), &name("d"), true)),
            libc::ENOTEMPTY
        );
        assert_eq!(
            errno(f.share.unlink(ROOT, &root.object(), &name("d"), false)),
            libc::EISDIR
        );
        assert_eq!(
            errno(f.share.unlink(ROOT, &root.object(), &name("c"), true)),
            libc::ENOTDIR
        );
        assert_eq!(
            errno(f.share.unlink(ROOT, &root.object(), &name("zz"), false)),
            libc::ENOENT
        );
        f.share.unlink(ROOT, &d.object(), &name("b"), false).unwrap();
        f.share.unlink(ROOT, &root.object(), &name("c"), false).unwrap();
        f.share.unlink(ROOT, &root.object(), &name("d"), true).unwrap();
        assert_eq!(std::fs::read_dir(&f.dir).unwrap().count(), 0);
    }
}

#[test]
fn a_new_file_of_our_own_gets_group_and_mode_whatever_its_directory_passes_on() {
    if !is_root() {
        return;
    }
    for model in BOTH {
        let f = Fixture::new(model);
        let who = Caller { uid: 0, gid: 0 };
        // Set-group-id: the directory's group would be the file's.
        let dir = f.dir.join("shared");
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, None, Some(4321)).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o2777)).unwrap();
        // A default ACL: user::rwx group::r-x other::--- would take bits away.
        let limited = f.dir.join("limited");
        std::fs::create_dir(&limited).unwrap();
        let acl: Vec<u8> =
            [(1u16, 7u16), (4, 5), (0x20, 0)]
                .iter()
                .fold(vec![2, 0, 0, 0], |mut all, (tag, bits)| {
                    all.extend(tag.to_le_bytes());
                    all.extend(bits.to_le_bytes());
                    all.extend(u32::MAX.to_le_bytes());
                    all
                });
        let node = f.walk("limited");
        f.share
            .set_xattr(who, &node.object(), c"system.posix_acl_default", &acl, 0)
            .unwrap();
        for (parent, mode) in [
            ("shared", 0o664),
            ("shared", 0o6755),
            ("limited", 0o666),
            ("limited", 0o604),
        ] {
            let parent = f.walk(parent);
            for caller in [
                who,
                Caller {
                    uid: u32::MAX,
                    gid: 0,
                },
            ] {
                let name = name("file");
                let (_, file, id) = f
                    .share
                    .create(caller, &parent.object(), &name, libc::O_RDWR | libc::O_EXCL, mode)
                    .unwrap();
                assert_eq!(id.file_type, FileType::Regular);
                let meta = std::fs::File::from(file).metadata().unwrap();
                assert_eq!((meta.uid(), meta.gid()), (0, 0));
                assert_eq!(
                    meta.mode() & 0o7777,
                    mode,
                    "{:o} instead of {mode:o}",
                    meta.mode()
                );
                f.share.unlink(who, &parent.object(), &name, false).unwrap();
            }
        }
    }
}
