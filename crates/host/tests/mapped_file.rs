//! Share mode `mapped-file`: the metadata files byte for byte, and what becomes of them in every operation.

mod mapped;

use host::{Attr, SecurityModel};
use mapped::{Tree, errno, name, of_attr, of_object, seen, unprivileged, what_needs_no_privilege};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

fn tree() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::new(SecurityModel::MappedFile, dir.path());
    (dir, tree)
}

fn ino(tree: &Tree, path: &str) -> u64 {
    std::fs::metadata(tree.host(path)).unwrap().ino()
}

fn exists(tree: &Tree, path: &str) -> bool {
    tree.host(path).symlink_metadata().is_ok()
}

const FILE: &str = "virtfs.uid=1000\nvirtfs.gid=100\nvirtfs.mode=33188\n";

#[test]
fn new_objects_are_kept_byte_for_byte_as_qemu_keeps_them() {
    let (_dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    tree.mkdir("dir", 0o2755).unwrap();
    tree.symlink("link", "to/somewhere").unwrap();
    tree.mknod("block", libc::S_IFBLK | 0o660, libc::makedev(8, 1))
        .unwrap();
    tree.mknod("fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    for (path, mode, rdev, host_mode) in [
        ("file", 33188, "", 0o100600),
        ("dir", 17901, "", 0o40700),
        ("link", 41471, "", 0o100600),
        ("block", 25008, "virtfs.rdev=2049\n", 0o100600),
        ("fifo", 4480, "virtfs.rdev=0\n", 0o100600),
    ] {
        let text = format!("virtfs.uid=1000\nvirtfs.gid=100\nvirtfs.mode={mode}\n{rdev}");
        assert_eq!(tree.read(&format!(".virtfs_metadata/{path}")), text);
        assert_eq!(tree.host_mode(path), host_mode, "{path}");
        assert_eq!(tree.host_mode(&format!(".virtfs_metadata/{path}")), 0o100600);
    }
    assert_eq!(tree.host_mode(".virtfs_metadata"), 0o40700);
    assert_eq!(tree.read("link"), "to/somewhere");
    assert_eq!(tree.stat("block").rdev, libc::makedev(8, 1));
    // A directory's own metadata are beside it, the root's have a name of their own.
    tree.create("dir/inner", 0o644).unwrap();
    assert_eq!(tree.read("dir/.virtfs_metadata/inner"), FILE);
    let host = tree.seen("");
    tree.chmod("", 0o41777).unwrap();
    assert_eq!(tree.read(".virtfs_metadata_root"), "virtfs.mode=17407\n");
    assert_eq!(tree.seen(""), (0o41777, host.1, host.2));
}

#[test]
fn what_qemu_wrote_is_what_the_guest_sees() {
    let (_dir, tree) = tree();
    tree.write("d/file", "");
    tree.write("d/link", "/etc/target");
    tree.write("d/device", "");
    tree.write(
        ".virtfs_metadata_root",
        "virtfs.uid=3\nvirtfs.gid=4\nvirtfs.mode=16877\n",
    );
    tree.write(
        ".virtfs_metadata/d",
        "virtfs.uid=1\nvirtfs.gid=2\nvirtfs.mode=17407\n",
    );
    tree.write(
        "d/.virtfs_metadata/file",
        "virtfs.uid=-2\nvirtfs.gid=0\nvirtfs.mode=33279\n",
    );
    tree.write(
        "d/.virtfs_metadata/link",
        "virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=41471\n",
    );
    tree.write(
        "d/.virtfs_metadata/device",
        "virtfs.uid=0\nvirtfs.gid=6\nvirtfs.mode=25008\nvirtfs.rdev=2049\n",
    );
    assert_eq!(tree.seen(""), (0o40755, 3, 4));
    assert_eq!(tree.seen("d"), (0o41777, 1, 2));
    assert_eq!(tree.seen("d/file"), (0o100777, u32::MAX - 1, 0));
    assert_eq!(tree.seen("d/link"), (0o120777, 0, 0));
    assert_eq!(tree.readlink("d/link").unwrap(), "/etc/target");
    assert_eq!(tree.seen("d/device"), (0o60660, 0, 6));
    assert_eq!(tree.stat("d/device").rdev, libc::makedev(8, 1));
    for (path, d_type) in [
        ("d", libc::DT_DIR),
        ("d/file", libc::DT_REG),
        ("d/link", libc::DT_LNK),
        ("d/device", libc::DT_BLK),
    ] {
        assert_eq!(tree.d_type(path), d_type);
        assert_eq!(of_object(tree.identify(path)), of_attr(&tree.stat(path)));
    }
}

/// find(1) takes the count of a directory's links for that of the directories in it.
#[test]
fn a_directory_does_not_count_ours_among_its_own() {
    let (_dir, tree) = tree();
    let links = |path: &str| {
        let on_host = std::fs::metadata(tree.host(path)).unwrap().nlink();
        let in_guest = tree.stat(path).nlink;
        (in_guest, on_host)
    };
    std::fs::create_dir(tree.host("dir")).unwrap();
    let (_, empty) = links("dir");
    assert_eq!(links("dir"), (empty, empty));
    tree.mkdir("dir/sub", 0o755).unwrap();
    assert!(exists(&tree, "dir/.virtfs_metadata"));
    let counted = links("dir").1 - empty;
    // A file system that does not count has nothing to be corrected.
    assert_eq!(links("dir").0, if counted == 0 { empty } else { empty + 1 });
    tree.rmdir("dir/sub").unwrap();
    assert!(exists(&tree, "dir/.virtfs_metadata"));
    assert_eq!(links("dir").0, empty);
}

#[test]
fn host_made_objects_show_through_and_can_be_renamed_and_linked() {
    let (_dir, tree) = tree();
    tree.write("file", "content");
    std::fs::create_dir(tree.host("dir")).unwrap();
    symlink("over there", tree.host("real")).unwrap();
    let host = tree.seen("file");
    assert_eq!(tree.readlink("real").unwrap(), "over there");
    assert!(!exists(&tree, ".virtfs_metadata"));
    // QEMU refuses both with ENOENT.
    tree.rename("file", "dir/moved").unwrap();
    assert_eq!(tree.seen("dir/moved"), host);
    tree.link("dir/moved", "again").unwrap();
    assert_eq!(tree.seen("again"), host);
    // From now on the two names share what is kept.
    tree.chown("again", Some(5), None).unwrap();
    tree.chmod("dir/moved", 0o100750).unwrap();
    assert_eq!(tree.seen("again"), (0o100750, 5, host.2));
    assert_eq!(tree.seen("dir/moved"), (0o100750, 5, host.2));
    // Even a host-made symlink can have an owner here.
    tree.chown("real", Some(8), Some(9)).unwrap();
    assert_eq!(tree.seen("real"), (0o120777, 8, 9));
}

#[test]
fn a_rename_moves_what_is_kept() {
    let (_dir, tree) = tree();
    tree.mkdir("a", 0o755).unwrap();
    tree.mkdir("b", 0o755).unwrap();
    tree.create("a/f", 0o644).unwrap();
    tree.rename("a/f", "a/g").unwrap();
    assert_eq!(tree.read("a/.virtfs_metadata/g"), FILE);
    assert!(!exists(&tree, "a/.virtfs_metadata/f"));
    tree.rename("a/g", "b/h").unwrap();
    assert_eq!(tree.read("b/.virtfs_metadata/h"), FILE);
    assert!(!exists(&tree, "a/.virtfs_metadata/g"));
    // Over another one.
    tree.mknod("b/victim", libc::S_IFCHR | 0o600, 5).unwrap();
    tree.rename("b/h", "b/victim").unwrap();
    assert_eq!(tree.read("b/.virtfs_metadata/victim"), FILE);
    assert!(!exists(&tree, "b/.virtfs_metadata/h"));
    assert_eq!(tree.seen("b/victim"), (0o100644, 1000, 100));
    // A directory, with all that is in it; what is held inside is found again.
    let held = tree.at("b/victim");
    tree.rename("b", "a/c").unwrap();
    assert_eq!(tree.seen("a/c"), (0o40755, 1000, 100));
    assert_eq!(seen(&tree.of(&held.object())), (0o100644, 1000, 100));
    tree.mode.set_mode(&held.object(), 0o100600).unwrap();
    assert_eq!(tree.seen("a/c/victim").0, 0o100600);
}

#[test]
fn a_host_made_object_does_not_inherit_from_what_it_replaces() {
    let (_dir, tree) = tree();
    tree.write("host", "");
    let host = tree.seen("host");
    tree.mknod("victim", libc::S_IFCHR | 0o600, 5).unwrap();
    tree.rename("host", "victim").unwrap();
    assert_eq!(tree.seen("victim"), host);
    assert!(!exists(&tree, ".virtfs_metadata/victim"));
}

#[test]
fn a_failing_rename_changes_nothing() {
    let (_dir, tree) = tree();
    tree.mkdir("dir", 0o755).unwrap();
    tree.mkdir("full", 0o755).unwrap();
    tree.create("full/x", 0o644).unwrap();
    tree.create("file", 0o644).unwrap();
    std::fs::create_dir(tree.host("bare")).unwrap();
    assert_eq!(errno(tree.rename("file", "dir")), libc::EISDIR);
    assert_eq!(errno(tree.rename("dir", "file")), libc::ENOTDIR);
    assert_eq!(errno(tree.rename("dir", "full")), libc::ENOTEMPTY);
    assert_eq!(errno(tree.rename("dir", "dir/inside")), libc::EINVAL);
    assert_eq!(errno(tree.rename("nothing", "new")), libc::ENOENT);
    std::fs::remove_file(tree.host("full/x")).unwrap();
    assert_eq!(errno(tree.rename("full", "full/y")), libc::EINVAL);
    std::fs::create_dir_all(tree.host("full/sub/sub")).unwrap();
    assert_eq!(errno(tree.rename("full", "full/sub")), libc::EINVAL);
    assert_eq!(errno(tree.rename("full/sub", "full")), libc::ENOTEMPTY);
    for path in ["dir", "full"] {
        assert_eq!(tree.seen(path), (0o40755, 1000, 100));
    }
    assert_eq!(tree.read(".virtfs_metadata/file"), FILE);
    assert!(!exists(&tree, "dir/.virtfs_metadata"));
    assert!(!exists(&tree, "full/.virtfs_metadata/y"));
}

#[test]
fn two_names_of_one_object_share_what_is_kept() {
    let (_dir, tree) = tree();
    tree.mkdir("d", 0o755).unwrap();
    tree.create("one", 0o644).unwrap();
    tree.link("one", "d/two").unwrap();
    assert_eq!(
        ino(&tree, ".virtfs_metadata/one"),
        ino(&tree, "d/.virtfs_metadata/two")
    );
    tree.chmod("d/two", 0o100600).unwrap();
    tree.chown("one", Some(0), Some(0)).unwrap();
    for path in ["one", "d/two"] {
        assert_eq!(tree.seen(path), (0o100600, 0, 0));
    }
    assert_eq!(
        ino(&tree, ".virtfs_metadata/one"),
        ino(&tree, "d/.virtfs_metadata/two")
    );
    // rename(2) between two names of one object does nothing.
    tree.rename("one", "d/two").unwrap();
    assert!(exists(&tree, "one") && exists(&tree, ".virtfs_metadata/one"));
    tree.unlink("one").unwrap();
    assert_eq!(tree.seen("d/two"), (0o100600, 0, 0));
    assert!(!exists(&tree, ".virtfs_metadata/one"));
    assert_eq!(errno(tree.link("d", "hard")), libc::EPERM);
    assert_eq!(errno(tree.link("d/two", "d")), libc::EEXIST);
    assert!(!exists(&tree, ".virtfs_metadata/hard"));
    assert_eq!(tree.seen("d").0, 0o40755);
}

#[test]
fn a_rewrite_is_in_place_and_leaves_no_old_text() {
    let (_dir, tree) = tree();
    tree.mknod("n", libc::S_IFCHR | 0o666, libc::makedev(1, 3))
        .unwrap();
    tree.chown("n", Some(4_000_000_000), Some(4_000_000_000)).unwrap();
    let before = ino(&tree, ".virtfs_metadata/n");
    tree.chown("n", Some(0), Some(0)).unwrap();
    assert_eq!(
        tree.read(".virtfs_metadata/n"),
        "virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=8630\nvirtfs.rdev=259\n"
    );
    assert_eq!(ino(&tree, ".virtfs_metadata/n"), before);
    assert_eq!(tree.host_mode(".virtfs_metadata/n"), 0o100600);
}

#[test]
fn chmod_keeps_the_type_and_moves_ctime() {
    let (_dir, tree) = tree();
    tree.symlink("link", "x").unwrap();
    let before = tree.stat("link");
    std::thread::sleep(std::time::Duration::from_millis(20));
    tree.chmod("link", 0o700).unwrap();
    let after = tree.stat("link");
    assert_eq!(after.mode, 0o120700);
    assert_ne!(after.ctime, before.ctime);
    assert_eq!(after.mtime, before.mtime);
    assert_ne!(after.version, before.version);
    std::thread::sleep(std::time::Duration::from_millis(20));
    tree.chown("link", None, None).unwrap();
    assert_ne!(tree.stat("link").ctime, after.ctime);
}

#[test]
fn failing_removals_lose_nothing() {
    let (_dir, tree) = tree();
    tree.mkdir("dir", 0o755).unwrap();
    tree.create("dir/f", 0o644).unwrap();
    assert_eq!(errno(tree.rmdir("dir")), libc::ENOTEMPTY);
    assert_eq!(errno(tree.unlink("dir")), libc::EISDIR);
    assert_eq!(errno(tree.rmdir("dir/f")), libc::ENOTDIR);
    assert_eq!(errno(tree.unlink("dir/g")), libc::ENOENT);
    assert_eq!(tree.seen("dir"), (0o40755, 1000, 100));
    assert_eq!(tree.read("dir/.virtfs_metadata/f"), FILE);
    tree.unlink("dir/f").unwrap();
    tree.rmdir("dir").unwrap();
    assert!(!exists(&tree, ".virtfs_metadata/dir"));
}

#[test]
fn leftover_metadata_never_keep_a_directory() {
    let (_dir, tree) = tree();
    for path in ["dir", "target", "moved"] {
        tree.mkdir(path, 0o755).unwrap();
        tree.create(&format!("{path}/gone"), 0o644).unwrap();
        std::fs::remove_file(tree.host(&format!("{path}/gone"))).unwrap();
        // Once shared by itself.
        tree.write(&format!("{path}/.virtfs_metadata_root"), "virtfs.uid=1\n");
    }
    tree.rmdir("dir").unwrap();
    tree.rename("moved", "target").unwrap();
    assert!(!exists(&tree, "dir") && !exists(&tree, "moved"));
    tree.rmdir("target").unwrap();
    // What somebody else put there is not ours to remove.
    tree.mkdir("dir", 0o755).unwrap();
    tree.write("dir/.virtfs_metadata/sub/file", "");
    assert_eq!(errno(tree.rmdir("dir")), libc::EISDIR);
    assert_eq!(tree.seen("dir").0, 0o40755);
}

#[test]
fn a_new_object_does_not_inherit_from_one_that_is_gone() {
    let (_dir, tree) = tree();
    tree.mknod("n", libc::S_IFCHR | 0o666, libc::makedev(1, 3))
        .unwrap();
    tree.link("n", "other").unwrap();
    // The host removes one name; its metadata stay, shared with the other name's.
    std::fs::remove_file(tree.host("n")).unwrap();
    tree.create("n", 0o644).unwrap();
    assert_eq!(tree.read(".virtfs_metadata/n"), FILE);
    assert_eq!(tree.seen("other"), (0o20666, 1000, 100));
    std::fs::remove_file(tree.host("n")).unwrap();
    tree.link("other", "n").unwrap();
    assert_eq!(tree.seen("n"), (0o20666, 1000, 100));
    std::fs::remove_file(tree.host("n")).unwrap();
    tree.create("f", 0o600).unwrap();
    tree.rename("f", "n").unwrap();
    assert_eq!(tree.seen("n"), (0o100600, 1000, 100));
    assert_eq!(tree.seen("other"), (0o20666, 1000, 100));
}

#[test]
fn an_object_without_a_name_keeps_what_was_kept() {
    let (_dir, tree) = tree();
    tree.create("file", 0o640).unwrap();
    tree.mkdir("dir", 0o2750).unwrap();
    tree.symlink("link", "target").unwrap();
    let (file, dir, link) = (tree.open("file"), tree.at("dir"), tree.at("link"));
    tree.unlink("file").unwrap();
    tree.rmdir("dir").unwrap();
    tree.create("victor", 0o600).unwrap();
    tree.rename("victor", "link").unwrap();
    let stat = |held: &mapped::Held| seen(&tree.of(&held.object()));
    assert_eq!(stat(&file), (0o100640, 1000, 100));
    assert_eq!(stat(&dir), (0o42750, 1000, 100));
    assert_eq!(stat(&link), (0o120777, 1000, 100));
    let mut buf = [0; 100];
    let len = tree.mode.readlink(&link.object(), &mut buf).unwrap();
    assert_eq!(&buf[..len], b"target");
    tree.mode.set_mode(&file.object(), 0o100400).unwrap();
    tree.mode.set_owner(&file.object(), Some(6), None).unwrap();
    assert_eq!(stat(&file), (0o100400, 6, 100));
    tree.mode.set_xattr(&file.object(), c"user.x", b"y", 0).unwrap();
    assert_eq!(
        errno(
            tree.mode
                .link(&file.object(), &tree.at("").object(), &name("back"))
        ),
        libc::ENOENT
    );
    assert!(!exists(&tree, "back") && !exists(&tree, ".virtfs_metadata/back"));
}

#[test]
fn an_object_that_lost_one_of_its_names_shares_with_the_others() {
    let (_dir, tree) = tree();
    tree.create("temporary", 0o600).unwrap();
    let held = tree.open("temporary");
    tree.link("temporary", "final").unwrap();
    tree.unlink("temporary").unwrap();
    tree.mode.set_mode(&held.object(), 0o100444).unwrap();
    assert_eq!(tree.seen("final"), (0o100444, 1000, 100));
    tree.chown("final", Some(7), None).unwrap();
    assert_eq!(seen(&tree.of(&held.object())), (0o100444, 7, 100));
    tree.mode
        .link(&held.object(), &tree.at("").object(), &name("third"))
        .unwrap();
    tree.chmod("third", 0o100400).unwrap();
    assert_eq!(tree.seen("final"), (0o100400, 7, 100));
}

#[test]
fn names_are_found_whatever_happens_to_them() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::create_dir(outer.path().join("share")).unwrap();
    let mut tree = Tree::new(SecurityModel::MappedFile, &outer.path().join("share"));
    tree.mkdir("d", 0o755).unwrap();
    tree.create("d/x (deleted)", 0o644).unwrap();
    assert_eq!(tree.seen("d/x (deleted)"), (0o100644, 1000, 100));
    tree.chmod("d/x (deleted)", 0o100600).unwrap();
    assert_eq!(tree.seen("d/x (deleted)").0, 0o100600);
    let held = tree.at("d/x (deleted)");
    // The host renames the shared directory itself, and leaves another one in its place.
    std::fs::rename(outer.path().join("share"), outer.path().join("share2")).unwrap();
    std::fs::create_dir(outer.path().join("share")).unwrap();
    assert_eq!(seen(&tree.of(&held.object())), (0o100600, 1000, 100));
    tree.directory = outer.path().join("share2");
    tree.chmod("d/x (deleted)", 0o100640).unwrap();
    assert_eq!(tree.seen("d/x (deleted)").0, 0o100640);
    // An object that the host moves out of the share: the host's values, no failure.
    std::fs::rename(tree.host("d/x (deleted)"), outer.path().join("x")).unwrap();
    let attr = tree.of(&held.object());
    assert_eq!(attr.mode, 0o100600);
    tree.mode.set_mode(&held.object(), 0o100444).unwrap();
    assert!(!outer.path().join(".virtfs_metadata").exists());
}

#[test]
fn beyond_path_max_it_takes_the_name() {
    let (_dir, tree) = tree();
    let long = "n".repeat(200);
    let mut at = tree.at("");
    for depth in 0..30 {
        tree.mode
            .mkdir(&at.object(), &name(&long), 0o755, mapped::OWNER)
            .unwrap();
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let next = host::sys::path::open_beneath(at.object().path, name(&long).as_c_str(), flags, 0).unwrap();
        let dir = std::mem::replace(&mut at.path, next);
        let (right, wrong) = (name(&long), name("other"));
        let (named, misnamed) = (
            at.object().at(dir.as_fd(), &right),
            at.object().at(dir.as_fd(), &wrong),
        );
        assert_eq!(tree.of(&named).mode, 0o40755);
        tree.mode.set_mode(&named, 0o40711).unwrap();
        assert_eq!(tree.of(&named).mode, 0o40711);
        // A name that is not the object's is not believed.
        for object in [at.object(), misnamed] {
            let mut attr = Attr::default();
            let stat = tree.mode.stat(&object, &mut attr);
            let set = tree.mode.set_mode(&object, 0o40711);
            if depth < 20 - 1 {
                stat.and(set).unwrap();
                assert_eq!(attr.mode, 0o40711, "{depth}");
            } else if depth > 20 {
                assert_eq!(
                    (errno(stat), errno(set)),
                    (libc::ENAMETOOLONG, libc::ENAMETOOLONG)
                );
            }
        }
        // Moved by the host, say.
        assert_eq!(tree.of(&at.object().nowhere()).mode, 0o40700);
    }
}

/// Inode numbers are used again: what is remembered of the last object of a number is not the next one's.
#[test]
fn a_new_object_does_not_inherit_from_one_with_its_inode_number() {
    let (_dir, tree) = tree();
    let long = "n".repeat(200);
    let mut at = tree.at("");
    // Where the kernel shows no path, memory is all there is.
    for _ in 0..25 {
        tree.mode
            .mkdir(&at.object(), &name(&long), 0o755, mapped::OWNER)
            .unwrap();
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        at.path = host::sys::path::open_beneath(at.path.as_fd(), name(&long).as_c_str(), flags, 0).unwrap();
    }
    let mut again = 0;
    for n in 0..100 {
        tree.symlink("symlink", "target").unwrap();
        let gone = tree.host("symlink").metadata().unwrap().ino();
        tree.unlink("symlink").unwrap();
        let new = name(&format!("file{n}"));
        let file = tree
            .mode
            .create(&at.object(), &new, libc::O_RDWR, 0o644, mapped::OWNER)
            .unwrap();
        let stat = host::sys::attr::stat(file.as_fd()).unwrap();
        again += u32::from(stat.stx_ino == gone);
        let held = mapped::Held {
            path: file,
            file: None,
            host_type: libc::S_IFREG,
        };
        for object in [held.object().at(at.path.as_fd(), &new), held.object().nowhere()] {
            assert_eq!(tree.of(&object).mode & libc::S_IFMT, libc::S_IFREG);
        }
    }
    println!("{again} inode numbers were used again");
}

/// Nor is it one that the host has made, of which this mode hears only when the guest holds it and the host removes it.
#[test]
fn a_hosts_object_does_not_inherit_either() {
    let (_dir, tree) = tree();
    let mut again = 0;
    for n in 0..50 {
        tree.symlink("symlink", "target").unwrap();
        let gone = tree.host("symlink").metadata().unwrap().ino();
        tree.unlink("symlink").unwrap();
        let name = format!("file{n}");
        tree.write(&name, "by the host");
        again += u32::from(tree.host(&name).metadata().unwrap().ino() == gone);
        let held = tree.open(&name);
        std::fs::remove_file(tree.host(&name)).unwrap();
        assert_eq!(tree.of(&held.object()).mode & libc::S_IFMT, libc::S_IFREG);
    }
    println!("{again} inode numbers were used again");
}

#[test]
fn torn_or_odd_metadata_are_survived() {
    let (_dir, tree) = tree();
    tree.write("file", "");
    let host = tree.seen("file");
    for text in [
        "",
        "virtfs.ui",
        "virtfs.uid=\nvirtfs.mode=",
        "\n\n\n",
        "garbage\0\u{ff}",
    ] {
        tree.write(".virtfs_metadata/file", text);
        assert_eq!(tree.seen("file"), host, "{text:?}");
    }
    tree.write(".virtfs_metadata/file", "virtfs.uid=5\nvirtfs.what=1\n");
    tree.chmod("file", 0o100444).unwrap();
    assert_eq!(
        tree.read(".virtfs_metadata/file"),
        "virtfs.uid=5\nvirtfs.mode=33060\n"
    );
    // Much too long: the rest of it goes.
    tree.write(".virtfs_metadata/file", &"x".repeat(100_000));
    tree.chmod("file", 0o100444).unwrap();
    assert!(
        tree.read(".virtfs_metadata/file")
            .starts_with("virtfs.mode=33060\n")
    );
    assert_eq!(tree.seen("file").0, 0o100444);
    std::fs::remove_file(tree.host(".virtfs_metadata/file")).unwrap();
    std::fs::create_dir(tree.host(".virtfs_metadata/file")).unwrap();
    assert_eq!(tree.seen("file"), host);
}

#[test]
fn symlinks_in_our_place_are_not_followed() {
    let outer = tempfile::tempdir().unwrap();
    let share = outer.path().join("share");
    std::fs::create_dir_all(outer.path().join("secret")).unwrap();
    std::fs::create_dir(&share).unwrap();
    std::fs::write(outer.path().join("secret/file"), "virtfs.uid=99\n").unwrap();
    let tree = Tree::new(SecurityModel::MappedFile, &share);
    tree.write("file", "");
    let host = tree.seen("file");
    symlink("../secret", tree.host(".virtfs_metadata")).unwrap();
    assert_eq!(tree.seen("file"), host);
    assert!(tree.chmod("file", 0o644).is_err());
    // No half objects either.
    assert!(tree.create("new", 0o644).is_err());
    assert!(tree.mkdir("newdir", 0o755).is_err());
    assert!(tree.symlink("newlink", "x").is_err());
    assert!(tree.link("file", "hard").is_err());
    let mut left: Vec<_> = std::fs::read_dir(&share)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, [".virtfs_metadata", "file"]);
    std::fs::remove_file(tree.host(".virtfs_metadata")).unwrap();
    std::fs::create_dir(tree.host(".virtfs_metadata")).unwrap();
    symlink("../../secret/file", tree.host(".virtfs_metadata/file")).unwrap();
    assert_eq!(tree.seen("file"), host);
    tree.chmod("file", 0o100640).unwrap();
    assert_eq!(
        std::fs::read_to_string(outer.path().join("secret/file")).unwrap(),
        "virtfs.uid=99\n"
    );
    assert_eq!(tree.seen("file").0, 0o100640);
}

#[test]
fn our_names_are_reserved() {
    let (_dir, tree) = tree();
    for ours in [".virtfs_metadata", ".virtfs_metadata_root", ".VIRTFS_METADATA"] {
        assert_eq!(tree.mode.reserved(ours.as_bytes()), Some(libc::EINVAL));
    }
    for other in [".virtfs_metadata_", "virtfs_metadata", "x"] {
        assert_eq!(tree.mode.reserved(other.as_bytes()), None);
    }
}

#[test]
fn xattrs_are_the_hosts_own() {
    let (_dir, tree) = tree();
    tree.create("file", 0o644).unwrap();
    tree.set_xattr("file", c"user.comment", b"hello").unwrap();
    tree.set_xattr("file", c"user.virtfs.uid", b"1234").unwrap();
    assert_eq!(tree.list_xattr("file"), ["user.comment", "user.virtfs.uid"]);
    assert_eq!(tree.host_xattr("file", c"user.comment").unwrap(), "68656c6c6f");
    for name in [c"security.capability", c"trusted.x", c"system.other"] {
        assert_eq!(errno(tree.set_xattr("file", name, b"x")), libc::EOPNOTSUPP);
        assert_eq!(errno(tree.get_xattr("file", name)), libc::EOPNOTSUPP);
        assert_eq!(errno(tree.remove_xattr("file", name)), libc::EOPNOTSUPP);
    }
    assert_eq!(tree.seen("file"), (0o100644, 1000, 100));
}

#[test]
fn no_privilege_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    unprivileged(dir.path(), || {
        let tree = Tree::new(SecurityModel::MappedFile, dir.path());
        what_needs_no_privilege(&tree, || ());
        tree.write("readonly", "");
        std::fs::set_permissions(tree.host("readonly"), PermissionsExt::from_mode(0o444)).unwrap();
        tree.chown("readonly", Some(9), Some(9)).unwrap();
        assert_eq!(tree.seen("readonly"), (0o100444, 9, 9));
    });
}

#[test]
fn two_servers_on_one_tree_lose_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let trees = [(); 2].map(|()| Tree::new(SecurityModel::MappedFile, dir.path()));
    trees[0].create("file", 0o644).unwrap();
    std::thread::scope(|scope| {
        for (index, tree) in trees.iter().enumerate() {
            scope.spawn(move || {
                for id in 0..200 {
                    let (uid, gid) = if index == 0 {
                        (Some(id), None)
                    } else {
                        (None, Some(id))
                    };
                    tree.chown("file", uid, gid).unwrap();
                    let seen = tree.seen("file");
                    assert_eq!(if index == 0 { seen.1 } else { seen.2 }, id);
                }
            });
        }
    });
    assert_eq!(trees[0].seen("file"), (0o100644, 199, 199));
}

/// What somebody put where metadata are kept: with O_NONBLOCK, too, an open of a FIFO lets a writer in that waits for a reader,
/// and an open of a device acts.
#[test]
fn special_files_in_the_place_of_metadata_are_not_opened() {
    let (_dir, tree) = tree();
    for path in ["file", "other", "gone"] {
        tree.create(path, 0o644).unwrap();
    }
    // SAFETY: no memory is passed.
    let watch = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
    assert!(watch >= 0);
    let stock = tree.directory.with_extension("stock");
    std::fs::create_dir(&stock).unwrap();
    let c = |path: &std::path::Path| std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let put = |kind: u32, at: &str| {
        let special = stock.join(format!("{kind:o}"));
        // /dev/full, and the last loop device.
        let device = if kind == libc::S_IFCHR {
            libc::makedev(1, 7)
        } else {
            libc::makedev(7, 7)
        };
        // SAFETY: NUL-terminated paths.
        let made = unsafe {
            libc::mknod(c(&special).as_ptr(), kind | 0o666, device);
            libc::inotify_add_watch(watch, c(&special).as_ptr(), libc::IN_OPEN)
        };
        let at = tree.host(at);
        let _ = std::fs::remove_file(&at);
        // Only root makes devices.
        made >= 0 && std::fs::hard_link(&special, at).is_ok()
    };
    for kind in [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK] {
        for at in [
            ".virtfs_metadata/file",
            ".virtfs_metadata/other",
            ".virtfs_metadata_root",
        ] {
            if !put(kind, at) {
                println!("left out: {kind:o}");
                continue;
            }
        }
        // As for what has no metadata.
        assert_eq!(tree.stat("file").mode & libc::S_IFMT, libc::S_IFREG);
        tree.stat("");
        assert_eq!(tree.d_type("file"), libc::DT_REG);
        tree.rename("other", "moved").unwrap();
        tree.chmod("file", 0o600).unwrap();
        assert_eq!(
            tree.read(".virtfs_metadata/file"),
            "virtfs.mode=33152\n",
            "made anew"
        );
        tree.chmod("", 0o755).unwrap();
        put(kind, ".virtfs_metadata/file");
        tree.link("file", "linked").unwrap();
        tree.unlink("linked").unwrap();
        tree.rename("moved", "other").unwrap();
    }
    let mut buf = [0u8; 4096];
    // SAFETY: `buf` is writable for its length.
    let len = unsafe { libc::read(watch, buf.as_mut_ptr().cast(), buf.len()) };
    let opened = (0..usize::try_from(len).unwrap_or(0))
        .step_by(16)
        .filter(|at| u32::from_ne_bytes(buf[at + 4..at + 8].try_into().unwrap()) & libc::IN_OPEN != 0)
        .count();
    assert_eq!(opened, 0, "a special file was opened");
    // SAFETY: the descriptor is this test's own.
    unsafe { libc::close(watch) };
    std::fs::remove_dir_all(stock).unwrap();
}
