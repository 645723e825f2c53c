//! Walking: never out of the share, never through a symlink, and each object with its own number.

mod common;

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, symlink};

use common::*;
use host::{FileType, MultiDevs, SecurityModel, Share, ShareOptions};

#[test]
fn a_walk_finds_objects_and_follows_no_symlink() {
    let f = Fixture::new(SecurityModel::Squash);
    std::fs::create_dir_all(f.dir.join("a/b")).unwrap();
    std::fs::write(f.dir.join("a/b/c"), "x").unwrap();
    symlink("a", f.dir.join("link")).unwrap();
    symlink("/proc/self/fd/0", f.dir.join("magic")).unwrap();
    let node = f.walk("a/b/c");
    assert_eq!(node.id.ino, std::fs::metadata(f.dir.join("a/b/c")).unwrap().ino());
    assert_eq!(f.walk("link").id.file_type, FileType::Symlink);
    assert_eq!(f.walk("magic").id.file_type, FileType::Symlink);
    assert_eq!(errno(f.try_walk(ROOT, "link/b")), libc::ENOTDIR);
    assert_eq!(errno(f.try_walk(ROOT, "magic/b")), libc::ENOTDIR);
    assert_eq!(errno(f.try_walk(ROOT, "a/b/c/d")), libc::ENOTDIR);
    assert_eq!(errno(f.try_walk(ROOT, "a/nothing")), libc::ENOENT);
    // The same object is the same, however it is found, and a root of its own is the root.
    assert_eq!(f.walk("a/b").id, f.walk("a/b").id);
    assert_ne!(f.walk("a/b").id.unique, f.walk("a").id.unique);
}

#[test]
fn symlinks_and_special_files_are_never_opened() {
    let f = Fixture::new(SecurityModel::Squash);
    symlink("/etc/passwd", f.dir.join("link")).unwrap();
    let fifo = c(f.dir.join("fifo").to_str().unwrap());
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o666) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(f.dir.join("sock")).unwrap();
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_NONBLOCK] {
        assert_eq!(errno(f.try_open("link", flags)), libc::ELOOP);
        assert_eq!(errno(f.try_open("fifo", flags)), libc::ENXIO);
        assert_eq!(errno(f.try_open("sock", flags)), libc::ENXIO);
    }
    assert_eq!(errno(f.try_open("", libc::O_RDWR)), libc::EISDIR);
    std::fs::write(f.dir.join("file"), "x").unwrap();
    assert_eq!(
        errno(f.try_open("file", libc::O_RDONLY | libc::O_DIRECTORY)),
        libc::ENOTDIR
    );
    assert_eq!(errno(f.try_open("file", 3)), libc::EINVAL);
    // O_PATH and O_TMPFILE would make something else than an open file; they are not among the flags we pass.
    let node = f.open(
        "file",
        libc::O_RDONLY | libc::O_PATH | libc::O_APPEND | libc::O_DIRECT,
    );
    assert_eq!(f.read(&node, 0, 9, false).unwrap(), b"x");
}

#[test]
fn the_parent_never_lies_above_the_root() {
    let f = Fixture::new(SecurityModel::Squash);
    std::fs::create_dir_all(f.dir.join("a/b/c")).unwrap();
    let root = f.root();
    let (_, id) = f.share.parent(ROOT, &root.object()).unwrap();
    assert_eq!(id.ino, root.id.ino);
    let c = f.walk("a/b/c");
    let (_, id) = f.share.parent(ROOT, &c.object()).unwrap();
    assert_eq!(id.ino, f.walk("a/b").id.ino);
    let (_, id) = f.share.parent(ROOT, &f.walk("a").object()).unwrap();
    assert_eq!(id.ino, root.id.ino);
    let file = f.create("a/file", libc::O_RDWR, 0o600);
    assert_eq!(errno(f.share.parent(ROOT, &file.object())), libc::ENOTDIR);
    // The host moves a directory out of the share while the guest holds it: no way out with it.
    let outside = f.dir.parent().unwrap().join("outside");
    std::fs::rename(f.dir.join("a/b"), &outside).unwrap();
    assert_eq!(errno(f.share.parent(ROOT, &c.object())), libc::ENOENT);
    // And back in.
    std::fs::rename(&outside, f.dir.join("b")).unwrap();
    let (_, id) = f.share.parent(ROOT, &c.object()).unwrap();
    assert_eq!(id.ino, f.walk("b").id.ino);
}

#[test]
fn moving_the_shared_directory_itself_changes_nothing() {
    let f = Fixture::new(SecurityModel::Squash);
    f.create("file", libc::O_RDWR, 0o600);
    let new = f.dir.with_file_name("elsewhere");
    std::fs::rename(&f.dir, &new).unwrap();
    std::fs::create_dir(&f.dir).unwrap();
    f.walk("file");
    let root = f.root();
    let (_, id) = f.share.parent(ROOT, &root.object()).unwrap();
    assert_eq!(id.ino, root.id.ino);
}

#[test]
fn objects_of_several_file_systems_have_numbers_of_their_own() {
    if !is_root() {
        return;
    }
    std::thread::spawn(|| {
        if !own_mounts() {
            return;
        }
        let fill = |f: &Fixture| {
            for sub in ["one", "two"] {
                let dir = f.dir.join(sub);
                std::fs::create_dir(&dir).unwrap();
                mount_tmpfs(&dir);
                for file in ["a", "b", "c"] {
                    std::fs::write(dir.join(file), "x").unwrap();
                }
            }
        };
        let f = Fixture::new(SecurityModel::Passthrough);
        fill(&f);
        let paths = [
            "", "one", "two", "one/a", "one/b", "one/c", "two/a", "two/b", "two/c",
        ];
        let unique: Vec<u64> = paths.iter().map(|p| f.walk(p).id.unique).collect();
        let ino: HashSet<u64> = paths.iter().map(|p| f.walk(p).id.ino).collect();
        assert!(ino.len() < paths.len(), "the host's numbers repeat");
        assert_eq!(unique.iter().collect::<HashSet<_>>().len(), paths.len());
        // A listing says the same numbers.
        let listed = f.list(&f.open("two", libc::O_RDONLY));
        let a = listed.iter().find(|e| e.0 == "a").unwrap();
        assert_eq!(a.1, f.walk("two/a").id.unique);
        // And so does the next process.
        let again = Share::open(&ShareOptions::new(&f.dir, SecurityModel::Squash)).unwrap();
        let g = Fixture::over(&f.dir, SecurityModel::Squash, |_| {});
        drop(again);
        for (path, unique) in paths.iter().zip(&unique).rev() {
            assert_eq!(g.walk(path).id.unique, *unique);
        }
        // `..` out of a mount is the directory it is mounted in.
        let (_, id) = f.share.parent(ROOT, &f.walk("one").object()).unwrap();
        assert_eq!(id.unique, unique[0]);

        let forbid = Fixture::over(&f.dir, SecurityModel::Passthrough, |o| {
            o.multidevs = MultiDevs::Forbid
        });
        assert_eq!(errno(forbid.try_walk(ROOT, "one")), libc::ENODEV);
        let names: HashSet<String> = forbid
            .list(&forbid.open("", libc::O_RDONLY))
            .into_iter()
            .map(|e| e.0)
            .collect();
        assert!(names.contains("one"));
        let warn = Fixture::over(&f.dir, SecurityModel::Passthrough, |o| {
            o.multidevs = MultiDevs::Warn
        });
        let node = warn.walk("one/a");
        assert_eq!(node.id.unique, node.id.ino);
    })
    .join()
    .unwrap();
}

/// Changes of one size as fast as they come, each looked at: no two looks may be answered alike.
fn versions_tell_changes_apart(f: &Fixture, path: &str, tick: u64) {
    let node = f.create(path, libc::O_RDWR, 0o600);
    let mut seen = HashSet::new();
    for round in 0..500 {
        match round % 2 {
            0 => std::fs::write(f.dir.join(path), b"same size").unwrap(),
            _ => drop(f.write(&node, 0, b"SAME SIZE").unwrap()),
        }
        let version = f.share.identify(&node.object()).unwrap().version;
        assert!(seen.insert(version), "{path}: the same after change {round}");
    }
    // What has been left alone for longer than the file system's clock takes to move keeps its version.
    std::thread::sleep(std::time::Duration::from_millis(tick));
    let last = f.walk(path).id.version;
    assert_eq!(f.walk(path).id.version, last);
    assert_eq!(f.attr(&node).version, last);
}

#[test]
fn a_version_changes_with_every_change_of_content() {
    versions_tell_changes_apart(&Fixture::new(SecurityModel::Squash), "file", 2200);
}

#[test]
fn a_version_changes_where_time_goes_by_the_tick() {
    if !is_root() {
        return;
    }
    std::thread::spawn(|| {
        if !own_mounts() {
            return;
        }
        let f = Fixture::new(SecurityModel::Squash);
        for (kind, dir) in [(c"ramfs", "ram"), (c"tmpfs", "tmp")] {
            std::fs::create_dir(f.dir.join(dir)).unwrap();
            mount(kind, &f.dir.join(dir));
            versions_tell_changes_apart(&f, &format!("{dir}/file"), 200);
            // And as a root.
            let g = Fixture::over(&f.dir.join(dir), SecurityModel::Squash, |_| {});
            versions_tell_changes_apart(&g, "another", 200);
        }
    })
    .join()
    .unwrap();
}

/// The first look at a file system may be the one that hangs, so it is not looked at to find out.
#[test]
fn a_mount_that_may_hang_is_known_before_it_is_met() {
    if !is_root() {
        return;
    }
    std::thread::spawn(|| {
        // A FUSE file system that nobody serves answers nothing at all.
        let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        let (true, Ok(device)) = (own_mounts(), device) else {
            return;
        };
        let f = Fixture::new(SecurityModel::Squash);
        assert!(!f.share.may_hang());
        let target = f.dir.join("sub dir");
        std::fs::create_dir(&target).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let mounted = mount_with(c"fuse", &target, &options);
        let open =
            |dir: &std::path::Path| Share::open(&ShareOptions::new(dir, SecurityModel::Squash)).unwrap();
        assert!(open(&f.dir).may_hang());
        let beside = f.dir.join("beside");
        std::fs::create_dir(&beside).unwrap();
        assert!(!open(&beside).may_hang());
        drop(mounted);
        assert!(!open(&f.dir).may_hang());
    })
    .join()
    .unwrap();
}

#[test]
fn a_handle_outlives_every_descriptor_but_not_its_object() {
    let f = Fixture::new(SecurityModel::Squash);
    std::fs::create_dir(f.dir.join("dir")).unwrap();
    f.create("dir/file", libc::O_RDWR, 0o600);
    for path in ["dir", "dir/file"] {
        let node = f.walk(path);
        let mut buf = [0; 128];
        // Only where the process and the file system can.
        let Some((mount, kind, len)) = f.share.handle(&node.object(), &mut buf) else {
            return;
        };
        let ino = node.id.ino;
        drop(node);
        std::fs::rename(f.dir.join("dir"), f.dir.join("moved")).unwrap();
        let fd = f.share.open_handle(mount, kind, &buf[..len]).unwrap();
        let object = host::Object {
            path: fd.as_fd(),
            file: None,
            host_type: if path == "dir" {
                libc::S_IFDIR
            } else {
                libc::S_IFREG
            },
        };
        assert_eq!(f.share.identify(&object).unwrap().ino, ino);
        f.share.open_object(ROOT, &object, libc::O_RDONLY).unwrap();
        assert_eq!(
            errno(f.share.open_handle(mount + 77, kind, &buf[..len])),
            libc::ESTALE
        );
        assert_ne!(errno(f.share.open_handle(mount, kind, &[0; 200])), 0);
        std::fs::rename(f.dir.join("moved"), f.dir.join("dir")).unwrap();
        if path == "dir/file" {
            drop(fd);
            std::fs::remove_file(f.dir.join(path)).unwrap();
            assert_eq!(errno(f.share.open_handle(mount, kind, &buf[..len])), libc::ESTALE);
        }
    }
}

#[test]
fn a_directory_that_cannot_be_shared_is_refused_in_one_sentence() {
    let open = |path: &str| Share::open(&ShareOptions::new(path, SecurityModel::Squash)).unwrap_err();
    assert_eq!(
        open("/no/such/directory"),
        "cannot open the shared directory /no/such/directory: No such file or directory (os error 2)"
    );
    assert_eq!(open("/etc/passwd"), "/etc/passwd is not a directory");
}
