//! Walking: never out of the share, never through a symlink, and each object with its own number.

mod common;

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use common::*;
use host::{FileHandles, FileType, Handle, MultiDevs, Object, SecurityModel, SetAttr, Share, ShareOptions};

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

/// Levels of a tree whose depth must not matter.
const DEEP: usize = 20_000;

/// Where making as many directories takes no time, if there is such a place.
fn fast() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    }
}

/// Makes `depth` directories `d`, each in the one before, below `dir`; gives the last.
fn dig(dir: &Node, depth: usize) -> OwnedFd {
    let mut at = dir.path.try_clone().unwrap();
    for _ in 0..depth {
        // SAFETY: a constant NUL-terminated name.
        let made = unsafe { libc::mkdirat(at.as_raw_fd(), c"d".as_ptr(), 0o755) };
        assert_eq!(made, 0);
        at = open_path(&at, c"d");
    }
    at
}

/// Takes them away again, which std's own removal does not do with so many.
fn fill(deepest: OwnedFd, depth: usize) {
    let mut at = deepest;
    for _ in 0..depth {
        at = open_path(&at, c"..");
        // SAFETY: a constant NUL-terminated name.
        unsafe { libc::unlinkat(at.as_raw_fd(), c"d".as_ptr(), libc::AT_REMOVEDIR) };
    }
}

fn open_path(dir: &OwnedFd, name: &CStr) -> OwnedFd {
    // SAFETY: a NUL-terminated name that lives over the call, which gives a descriptor of nobody else's.
    unsafe {
        let fd = libc::openat(dir.as_raw_fd(), name.as_ptr(), libc::O_PATH | libc::O_DIRECTORY);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

/// Of what has no path that is ever shown the log still says below which directory it is.
#[test]
fn what_is_beyond_path_max_is_shown_below_the_shared_directory() {
    let dir = tempfile::tempdir_in(fast()).unwrap();
    let root = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
    let options = ShareOptions::new(dir.path(), SecurityModel::Squash);
    let context = host::Context::new(
        open_path(&root, c"."),
        host::Surroundings::here().unwrap(),
        options,
    )
    .unwrap();
    let shown = |fd: &OwnedFd| String::from_utf8(context.shown_path(fd.as_fd())).unwrap();
    let top = dir.path().display();
    let mut at = root.try_clone().unwrap();
    for depth in 0..2500 {
        let path = format!("{top}{}", "/d".repeat(depth));
        match path.len() {
            ..4095 => assert_eq!(shown(&at), path),
            4097.. => assert_eq!(shown(&at), format!("{top}/…")),
            _ => {}
        }
        // SAFETY: a constant NUL-terminated name.
        assert_eq!(unsafe { libc::mkdirat(at.as_raw_fd(), c"d".as_ptr(), 0o755) }, 0);
        at = open_path(&at, c"d");
    }
    fill(at, 2500);
}

/// To follow the parents up to the root took 100 ms for one `..` from here, and a walk may have sixteen.
#[test]
fn the_parent_is_found_without_going_up_to_the_root() {
    let f = Fixture::within(fast(), SecurityModel::Squash, |_| {});
    let deepest = dig(&f.root(), DEEP);
    let object = Object::by_path(deepest.as_fd(), libc::S_IFDIR);
    let begun = std::time::Instant::now();
    for _ in 0..200 {
        // No path tells where it is.
        assert_eq!(errno(f.share.parent(ROOT, &object)), libc::ELOOP);
    }
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    fill(deepest, DEEP);
    let near = dig(&f.root(), 1000);
    let (above, _) = f
        .share
        .parent(ROOT, &Object::by_path(near.as_fd(), libc::S_IFDIR))
        .unwrap();
    let id = f
        .share
        .identify(ROOT, &Object::by_path(above.as_fd(), libc::S_IFDIR))
        .unwrap();
    let is = f.share.identify(
        ROOT,
        &Object::by_path(open_path(&near, c"..").as_fd(), libc::S_IFDIR),
    );
    assert_eq!(id, is.unwrap());
    fill(near, 1000);
}

/// Where the shared directory is the root of its mount, as in the sandbox, the kernel keeps `..` inside.
#[test]
fn the_parent_in_a_mount_of_the_shared_directory() {
    if !is_root() {
        return;
    }
    std::thread::spawn(|| {
        if !own_mounts() {
            return;
        }
        let host = tempfile::tempdir_in(fast()).unwrap();
        let shared = host.path().join("shared");
        let at = host.path().join("mount");
        std::fs::create_dir_all(shared.join("a/b/c")).unwrap();
        std::fs::create_dir(&at).unwrap();
        let _bound = bind(&shared, &at);
        let f = Fixture::over(&at, SecurityModel::Passthrough, |_| {});
        let deepest = dig(&f.root(), DEEP);
        let object = Object::by_path(deepest.as_fd(), libc::S_IFDIR);
        let begun = std::time::Instant::now();
        for _ in 0..200 {
            assert_eq!(errno(f.share.parent(ROOT, &object)), libc::ELOOP);
        }
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        fill(deepest, DEEP);
        // Below a mount in it.
        std::fs::create_dir(f.dir.join("sub")).unwrap();
        let _sub = mount_with(c"tmpfs", &f.dir.join("sub"), "");
        std::fs::create_dir_all(f.dir.join("sub/x/y")).unwrap();
        let (_, id) = f.share.parent(ROOT, &f.walk("sub/x/y").object()).unwrap();
        assert_eq!(id, f.walk("sub/x").id);
        let (_, id) = f.share.parent(ROOT, &f.walk("sub").object()).unwrap();
        assert_eq!(id, f.root().id);
        // What the host moves out of the directory that is mounted.
        let c = f.walk("a/b/c");
        let (_, id) = f.share.parent(ROOT, &c.object()).unwrap();
        assert_eq!(id, f.walk("a/b").id);
        std::fs::rename(shared.join("a/b"), host.path().join("outside")).unwrap();
        assert_eq!(errno(f.share.parent(ROOT, &c.object())), libc::ENOENT);
    })
    .join()
    .unwrap();
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
        let version = f.share.identify(ROOT, &node.object()).unwrap().version;
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
    if !is_root() {
        return;
    }
    let f = Fixture::with(SecurityModel::Squash, |o| o.file_handles = FileHandles::Open);
    std::fs::create_dir(f.dir.join("dir")).unwrap();
    f.create("dir/file", libc::O_RDWR, 0o600);
    for path in ["dir", "dir/file"] {
        let node = f.walk(path);
        let handle = f.share.handle(&node.object()).unwrap();
        assert!(Handle::opens(handle.as_bytes()));
        let ino = node.id.ino;
        drop(node);
        std::fs::rename(f.dir.join("dir"), f.dir.join("moved")).unwrap();
        let fd = f.share.open_handle(handle.as_bytes()).unwrap();
        let object = host::Object::by_path(fd.as_fd(), 0);
        assert_eq!(f.share.identify(ROOT, &object).unwrap().ino, ino);
        assert!(f.share.is_of_handle(fd.as_fd(), handle.as_bytes()));
        f.share.open_object(ROOT, &object, libc::O_RDONLY).unwrap();
        let mut other = handle.as_bytes().to_vec();
        other[0] += 77;
        assert_eq!(errno(f.share.open_handle(&other)), libc::ESTALE);
        for wrong in [&[][..], &[0; 7], &[0; 8], &[0; 300]] {
            assert_ne!(errno(f.share.open_handle(wrong)), 0);
            assert!(!f.share.is_of_handle(fd.as_fd(), wrong));
        }
        std::fs::rename(f.dir.join("moved"), f.dir.join("dir")).unwrap();
        if path == "dir/file" {
            drop(fd);
            std::fs::remove_file(f.dir.join(path)).unwrap();
            assert_eq!(errno(f.share.open_handle(handle.as_bytes())), libc::ESTALE);
        }
    }
}

/// By default a handle only says which object it is, and asking for it takes no privilege.
#[test]
fn a_handle_tells_objects_apart_and_opens_nothing() {
    let work = || {
        let f = Fixture::new(SecurityModel::Squash);
        let mut seen: Vec<Handle> = Vec::new();
        // The inode number is used again at once on ext4 and others.
        for _ in 0..50 {
            let made = f.create("file", libc::O_RDWR, 0o600);
            let handle = f.share.handle(&made.object()).unwrap();
            assert!(!Handle::opens(handle.as_bytes()));
            assert!(
                f.share
                    .is_of_handle(f.walk("file").path.as_fd(), handle.as_bytes())
            );
            assert!(seen.iter().all(|other| !other.is(handle.as_bytes())));
            seen.push(handle);
            std::fs::remove_file(f.dir.join("file")).unwrap();
        }
    };
    unprivileged("a_handle_tells_objects_apart_and_opens_nothing", 1234, work);
}

/// One sentence, and nothing is served.
#[test]
fn handles_that_this_process_may_not_open_are_refused() {
    unprivileged("handles_that_this_process_may_not_open_are_refused", 1234, || {
        let options = ShareOptions {
            file_handles: FileHandles::Open,
            ..ShareOptions::new("/tmp", SecurityModel::Squash)
        };
        assert_eq!(
            Share::open(&options).unwrap_err(),
            "--file-handles open needs CAP_DAC_READ_SEARCH in the initial user namespace, which this process lacks"
        );
    });
}

/// Whatever the caller takes it for.
#[test]
fn what_is_opened_is_asked_what_it_is() {
    let f = Fixture::new(SecurityModel::Squash);
    symlink("/etc/passwd", f.dir.join("link")).unwrap();
    let fifo = c(f.dir.join("fifo").to_str().unwrap());
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o666) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(f.dir.join("sock")).unwrap();
    for (path, expected) in [
        ("link", libc::ELOOP),
        ("fifo", libc::ENXIO),
        ("sock", libc::ENXIO),
    ] {
        let node = f.walk(path);
        for host_type in [libc::S_IFREG, libc::S_IFDIR] {
            let object = host::Object::by_path(node.path.as_fd(), host_type);
            for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
                assert_eq!(errno(f.share.open_object(ROOT, &object, flags)), expected);
            }
            let size = SetAttr {
                size: Some(0),
                ..SetAttr::default()
            };
            assert_ne!(errno(f.share.setattr(ROOT, &object, &size)), 0);
        }
    }
    for model in [SecurityModel::MappedXattr, SecurityModel::MappedFile] {
        let f = Fixture::over(&f.dir, model, |_| {});
        let node = f.walk("fifo");
        let object = host::Object::by_path(node.path.as_fd(), libc::S_IFREG);
        assert_eq!(
            errno(f.share.open_object(ROOT, &object, libc::O_RDONLY)),
            libc::ENXIO
        );
        assert_eq!(
            errno(f.share.readlink(ROOT, &object, &mut [0; 100])),
            libc::EINVAL
        );
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
