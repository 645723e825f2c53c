//! Share mode `mapped-xattr`: what lands on the host, what the guest sees, and what QEMU left there.

mod mapped;

use host::{Caller, FileType, SecurityModel, ShareOptions};
use mapped::{OWNER, Tree, errno, of_attr, of_object, seen, unprivileged, what_needs_no_privilege};
use std::os::unix::fs::PermissionsExt;

fn tree() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::new(SecurityModel::MappedXattr, dir.path());
    (dir, tree)
}

/// uid, gid, mode, rdev as the host keeps them.
fn kept(tree: &Tree, path: &str) -> [Option<String>; 4] {
    [
        c"user.virtfs.uid",
        c"user.virtfs.gid",
        c"user.virtfs.mode",
        c"user.virtfs.rdev",
    ]
    .map(|name| tree.host_xattr(path, name))
}

fn some(values: [&str; 4]) -> [Option<String>; 4] {
    values.map(|v| (!v.is_empty()).then(|| v.to_owned()))
}

#[test]
fn new_objects_are_kept_byte_for_byte_as_qemu_keeps_them() {
    let (_dir, tree) = tree();
    tree.create("file", 0o4644).unwrap();
    tree.mkdir("dir", 0o2755).unwrap();
    tree.symlink("link", "to/somewhere").unwrap();
    tree.mknod("block", libc::S_IFBLK | 0o660, libc::makedev(8, 1))
        .unwrap();
    tree.mknod("fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    tree.mknod("socket", libc::S_IFSOCK | 0o755, 0).unwrap();
    tree.mknod("plain", 0o640, 0).unwrap();
    let zero = "0000000000000000";
    for (path, mode, rdev, host_mode) in [
        ("file", "a4890000", "", 0o100600),
        ("dir", "ed450000", "", 0o40700),
        ("link", "ffa10000", "", 0o100600),
        ("block", "b0610000", "0108000000000000", 0o100600),
        ("fifo", "80110000", zero, 0o100600),
        ("socket", "edc10000", zero, 0o100600),
        ("plain", "a0810000", zero, 0o100600),
    ] {
        assert_eq!(
            kept(&tree, path),
            some(["e8030000", "64000000", mode, rdev]),
            "{path}"
        );
        assert_eq!(tree.host_mode(path), host_mode, "{path}");
    }
    assert_eq!(tree.read("link"), "to/somewhere");
    assert_eq!(tree.read("block"), "");
}

#[test]
fn an_owner_who_is_nobody_is_not_kept() {
    let (_dir, tree) = tree();
    let nobody = Caller {
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let root = tree.at("");
    tree.mode
        .mkdir(&root.object(), &mapped::name("d"), 0o755, nobody)
        .unwrap();
    assert_eq!(kept(&tree, "d"), some(["", "", "ed410000", ""]));
}

#[test]
fn what_qemu_wrote_is_what_the_guest_sees() {
    let (_dir, tree) = tree();
    tree.write("device", "");
    tree.write("link", "/etc/target");
    tree.write("typeless", "");
    std::fs::create_dir(tree.host("dir")).unwrap();
    for (path, mode) in [
        ("device", 0o20660u32),
        ("link", 0o120777),
        ("typeless", 0o644),
        ("dir", 0o41777),
    ] {
        tree.set_host_xattr(path, c"user.virtfs.uid", &5u32.to_le_bytes());
        tree.set_host_xattr(path, c"user.virtfs.gid", &6u32.to_le_bytes());
        tree.set_host_xattr(path, c"user.virtfs.mode", &mode.to_le_bytes());
    }
    tree.set_host_xattr("device", c"user.virtfs.rdev", &libc::makedev(4, 64).to_le_bytes());
    assert_eq!(tree.seen("device"), (0o20660, 5, 6));
    assert_eq!(tree.stat("device").rdev, libc::makedev(4, 64));
    assert_eq!(tree.seen("link"), (0o120777, 5, 6));
    assert_eq!(tree.stat("link").size, 11);
    assert_eq!(tree.readlink("link").unwrap(), "/etc/target");
    assert_eq!(tree.seen("typeless"), (0o100644, 5, 6));
    assert_eq!(tree.seen("dir"), (0o41777, 5, 6));
    assert_eq!(errno(tree.readlink("device")), libc::EINVAL);
    assert_eq!(errno(tree.readlink("dir")), libc::EINVAL);
}

#[test]
fn types_are_right_in_walks_and_listings() {
    let (_dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    tree.mkdir("dir", 0o755).unwrap();
    tree.symlink("link", "x").unwrap();
    tree.mknod("fifo", libc::S_IFIFO | 0o644, 0).unwrap();
    tree.mknod("char", libc::S_IFCHR | 0o644, 259).unwrap();
    std::os::unix::fs::symlink("real", tree.host("real")).unwrap();
    tree.write("host", "");
    for (path, d_type, file_type) in [
        ("file", libc::DT_REG, FileType::Regular),
        ("dir", libc::DT_DIR, FileType::Directory),
        ("link", libc::DT_LNK, FileType::Symlink),
        ("fifo", libc::DT_FIFO, FileType::Special),
        ("char", libc::DT_CHR, FileType::Special),
        ("real", libc::DT_LNK, FileType::Symlink),
        ("host", libc::DT_REG, FileType::Regular),
    ] {
        assert_eq!(tree.d_type(path), d_type, "{path}");
        let id = tree.identify(path);
        assert_eq!(id.file_type, file_type, "{path}");
        assert_eq!(of_object(id), of_attr(&tree.stat(path)), "{path}");
    }
}

#[test]
fn host_made_objects_show_through() {
    let (_dir, tree) = tree();
    tree.write("file", "content");
    std::fs::set_permissions(tree.host("file"), PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("../over there", tree.host("link")).unwrap();
    let host = seen(&tree.stat("file"));
    assert_eq!(host.0, 0o100640);
    // QEMU shows such a symlink and cannot read it.
    assert_eq!(tree.seen("link").0 & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(tree.readlink("link").unwrap(), "../over there");
    // Only what is changed stops showing through.
    tree.chmod("file", 0o100600).unwrap();
    assert_eq!(kept(&tree, "file"), some(["", "", "80810000", ""]));
    assert_eq!(tree.seen("file"), (0o100600, host.1, host.2));
    assert_eq!(tree.host_mode("file"), 0o100640);
    // A symlink takes no user xattrs: one clear answer.
    assert_eq!(errno(tree.chown("link", Some(1), None)), libc::EOPNOTSUPP);
}

#[test]
fn chmod_never_changes_a_type() {
    let (_dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    tree.symlink("link", "x").unwrap();
    tree.mkdir("dir", 0o755).unwrap();
    tree.mknod("fifo", libc::S_IFIFO | 0o644, 0).unwrap();
    for (path, kind) in [
        ("file", 0o100000),
        ("link", 0o120000),
        ("dir", 0o40000),
        ("fifo", 0o10000),
    ] {
        for sent in [0o6751, 0o106751, 0o46751] {
            tree.chmod(path, 0).unwrap();
            tree.chmod(path, sent).unwrap();
            assert_eq!(tree.seen(path), (kind | 0o6751, 1000, 100), "{path}");
            let kept = u32::from_str_radix(&tree.host_xattr(path, c"user.virtfs.mode").unwrap(), 16).unwrap();
            assert_eq!(kept.swap_bytes(), kind | 0o6751, "{path}");
        }
    }
}

#[test]
fn chown_keeps_what_is_not_named() {
    let (_dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    tree.chown("file", Some(7), None).unwrap();
    assert_eq!(tree.seen("file"), (0o100644, 7, 100));
    tree.chown("file", None, Some(u32::MAX - 1)).unwrap();
    assert_eq!(tree.seen("file"), (0o100644, 7, u32::MAX - 1));
    let before = tree.stat("file").ctime;
    std::thread::sleep(std::time::Duration::from_millis(20));
    tree.chown("file", None, None).unwrap();
    assert_eq!(tree.seen("file"), (0o100644, 7, u32::MAX - 1));
    assert_ne!(tree.stat("file").ctime, before);
}

#[test]
fn changes_by_others_are_seen_at_once() {
    let (dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    let other = Tree::new(SecurityModel::MappedXattr, dir.path());
    for round in 0..4 {
        // Old enough to be remembered in every second round.
        std::thread::sleep(std::time::Duration::from_millis(if round % 2 == 0 {
            150
        } else {
            0
        }));
        assert_eq!(tree.seen("file"), tree.seen("file"));
        for uid in 0..300 {
            other.chown("file", Some(uid), None).unwrap();
            assert_eq!(tree.seen("file").1, uid);
        }
        tree.set_host_xattr("file", c"user.virtfs.mode", &0o120777u32.to_le_bytes());
        assert_eq!(tree.identify("file").file_type, FileType::Symlink);
        tree.set_host_xattr("file", c"user.virtfs.mode", &0o100644u32.to_le_bytes());
        assert_eq!(tree.identify("file").file_type, FileType::Regular);
    }
}

#[test]
fn values_of_another_size_are_ignored() {
    let (_dir, tree) = tree();
    tree.write("file", "");
    let host = tree.seen("file");
    for value in [&b""[..], b"\x01", b"12345", b"123456789", b"1234567890123456"] {
        for name in [
            c"user.virtfs.uid",
            c"user.virtfs.gid",
            c"user.virtfs.mode",
            c"user.virtfs.rdev",
        ] {
            tree.set_host_xattr("file", name, value);
        }
        assert_eq!(tree.seen("file"), host);
        assert_eq!(tree.stat("file").rdev, 0);
        assert_eq!(tree.d_type("file"), libc::DT_REG);
    }
}

#[test]
fn names_links_and_unlinking_leave_what_is_kept_alone() {
    let (_dir, tree) = tree();
    tree.mkdir("dir", 0o755).unwrap();
    tree.create("a", 0o640).unwrap();
    tree.link("a", "dir/b").unwrap();
    tree.rename("a", "c").unwrap();
    tree.chmod("c", 0o100600).unwrap();
    assert_eq!(tree.seen("dir/b"), (0o100600, 1000, 100));
    assert_eq!(tree.stat("c").nlink, 2);
    let (held, open) = (tree.at("c"), tree.open("c"));
    tree.unlink("dir/b").unwrap();
    tree.unlink("c").unwrap();
    for held in [held, open] {
        let object = held.object();
        tree.mode.set_mode(&object, 0o100444).unwrap();
        tree.mode.set_owner(&object, Some(3), Some(4)).unwrap();
        assert_eq!(seen(&tree.of(&object)), (0o100444, 3, 4));
        tree.mode.set_xattr(&object, c"user.x", b"y", 0).unwrap();
    }
    assert_eq!(errno(tree.rmdir("nothing")), libc::ENOENT);
    assert_eq!(errno(tree.unlink("dir")), libc::EISDIR);
    tree.rmdir("dir").unwrap();
}

#[test]
fn nothing_is_left_of_an_object_that_cannot_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    unprivileged(dir.path(), || {
        let mut options = ShareOptions::new(dir.path(), SecurityModel::MappedXattr);
        // Without the owner's write permission an object takes no user xattrs.
        (options.fmode, options.dmode) = (0o400, 0o500);
        let tree = Tree::with(options);
        assert_eq!(errno(tree.create("file", 0o644)), libc::EACCES);
        assert_eq!(errno(tree.mkdir("dir", 0o755)), libc::EACCES);
        assert_eq!(errno(tree.mknod("fifo", libc::S_IFIFO, 0)), libc::EACCES);
        assert_eq!(errno(tree.symlink("link", "x")), libc::EACCES);
        assert_eq!(std::fs::read_dir(&tree.directory).unwrap().count(), 0);
    });
}

#[test]
fn creating_never_touches_what_is_there() {
    let (_dir, tree) = tree();
    tree.create("file", 0o640).unwrap();
    tree.write("file", "content");
    assert_eq!(errno(tree.create("file", 0o777)), libc::EEXIST);
    assert_eq!(errno(tree.symlink("file", "x")), libc::EEXIST);
    assert_eq!(errno(tree.mknod("file", libc::S_IFIFO, 0)), libc::EEXIST);
    assert_eq!(errno(tree.mkdir("file", 0o777)), libc::EEXIST);
    assert_eq!(errno(tree.mknod("new", libc::S_IFDIR, 0)), libc::EPERM);
    assert_eq!(errno(tree.mknod("new", libc::S_IFLNK, 0)), libc::EINVAL);
    assert_eq!(errno(tree.symlink("new", "")), libc::ENOENT);
    assert_eq!(tree.seen("file"), (0o100640, OWNER.uid, OWNER.gid));
    assert_eq!(tree.read("file"), "content");
}

#[test]
fn the_guests_xattrs_are_its_own_and_ours_are_hidden() {
    let (_dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    tree.set_xattr("file", c"user.comment", b"hello").unwrap();
    tree.set_xattr("file", c"user.empty", b"").unwrap();
    tree.set_xattr("file", c"security.capability", b"caps").unwrap();
    tree.set_xattr("file", c"trusted.overlay.opaque", b"y").unwrap();
    tree.set_xattr("file", c"system.posix_acl_access", b"\x02\0\0\0")
        .unwrap();
    assert_eq!(
        tree.host_xattr("file", c"user.virtfs.system.posix_acl_access")
            .unwrap(),
        "02000000"
    );
    assert_eq!(
        tree.host_xattr("file", c"user.virtfs.security.capability")
            .unwrap(),
        "63617073"
    );
    assert_eq!(tree.host_xattr("file", c"security.capability"), None);
    let names = [
        "security.capability",
        "system.posix_acl_access",
        "trusted.overlay.opaque",
        "user.comment",
        "user.empty",
    ];
    assert_eq!(tree.list_xattr("file"), names);
    assert_eq!(tree.get_xattr("file", c"security.capability").unwrap(), b"caps");
    assert_eq!(tree.get_xattr("file", c"user.empty").unwrap(), b"");
    assert_eq!(errno(tree.get_xattr("file", c"user.virtfs.uid")), libc::ENODATA);
    assert_eq!(errno(tree.get_xattr("file", c"security.selinux")), libc::ENODATA);
    assert_eq!(
        errno(tree.set_xattr("file", c"user.virtfs.uid", b"1234")),
        libc::EACCES
    );
    assert_eq!(
        errno(tree.remove_xattr("file", c"user.virtfs.mode")),
        libc::EACCES
    );
    // SMB servers do not tell them by case.
    for ours in [c"user.VIRTFS.uid", c"user.Virtfs.security.capability"] {
        assert_eq!(errno(tree.set_xattr("file", ours, b"1234")), libc::EACCES);
        assert_eq!(errno(tree.remove_xattr("file", ours)), libc::EACCES);
        assert_eq!(errno(tree.get_xattr("file", ours)), libc::ENODATA);
    }
    assert_eq!(
        errno(tree.set_xattr("file", c"system.other", b"")),
        libc::EOPNOTSUPP
    );
    assert_eq!(
        errno(tree.set_xattr("file", c"system.posix_acl_access", b"\x01\0\0\0")),
        libc::EINVAL
    );
    // Gone by removal, by Linux's empty ACL, and when it never was there.
    tree.set_xattr("file", c"system.posix_acl_access", b"").unwrap();
    assert_eq!(
        errno(tree.get_xattr("file", c"system.posix_acl_access")),
        libc::ENODATA
    );
    tree.remove_xattr("file", c"system.posix_acl_access").unwrap();
    tree.remove_xattr("file", c"security.capability").unwrap();
    assert_eq!(
        errno(tree.remove_xattr("file", c"security.capability")),
        libc::ENODATA
    );
    assert_eq!(
        tree.list_xattr("file"),
        ["trusted.overlay.opaque", "user.comment", "user.empty"]
    );
}

#[test]
fn many_names_are_listed() {
    let (_dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    let names: Vec<_> = (10..70).map(|i| format!("user.a-rather-long-name-{i}")).collect();
    for name in &names {
        let name = std::ffi::CString::new(name.as_str()).unwrap();
        tree.set_xattr("file", &name, b"").unwrap();
    }
    assert_eq!(tree.list_xattr("file"), names);
    assert_eq!(tree.seen("file"), (0o100644, 1000, 100));
}

#[test]
fn no_privilege_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    unprivileged(dir.path(), || {
        let tree = Tree::new(SecurityModel::MappedXattr, dir.path());
        what_needs_no_privilege(&tree, || {
            tree.set_xattr("d/f", c"security.capability", b"x").unwrap();
            tree.set_xattr("d/f", c"trusted.x", b"x").unwrap();
        });
        // A file that its owner cannot write takes no user xattrs; the owner can help that.
        tree.write("readonly", "");
        std::fs::set_permissions(tree.host("readonly"), PermissionsExt::from_mode(0o444)).unwrap();
        tree.chown("readonly", Some(9), Some(9)).unwrap();
        tree.chmod("readonly", 0o100400).unwrap();
        assert_eq!(tree.seen("readonly"), (0o100400, 9, 9));
        assert_eq!(tree.host_mode("readonly"), 0o100444);
    });
}
