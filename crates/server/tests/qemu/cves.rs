//! By CVE number, where there is one.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use host::CheckAccess;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use server::Limits;
use testkit::client::{Client, Errno};
use wire::*;

use crate::common::*;
use crate::{Case, SecurityModel::*, until};

#[test]
fn cve_2016_7116_dot_dot_in_a_name_does_not_escape() {
    for model in MODELS {
        let mut case = Case::new(model);
        case.put("file", "");
        let root = case.client().stat(0).unwrap().qid.path;
        let client = case.client();
        let up = client.walk(0, 1, &["..", "..", ".."]).unwrap();
        assert!(
            up.iter().all(|qid| qid.path == root),
            "above the root is the root"
        );
        client.walk_all(0, 2, &["file"]).unwrap();
        for name in [
            "..",
            ".",
            "../outside/new",
            "../outside",
            "/",
            "/etc",
            "sub/../../new",
            "a/b",
        ] {
            client.clone_fid(0, 3).unwrap();
            assert!(client.lcreate(3, name, O_RDWR, 0o644, gid()).is_err(), "{name}");
            client.clunk(3).unwrap();
            client.mkdir(0, name, 0o755, gid()).unwrap_err();
            client
                .mknod(0, name, libc::S_IFREG | 0o644, (0, 0), gid())
                .unwrap_err();
            client.symlink(0, name, "x", gid()).unwrap_err();
            client.link(0, 2, name).unwrap_err();
            client.rename(2, 0, name).unwrap_err();
            client.renameat(0, "file", 0, name).unwrap_err();
            client.renameat(0, name, 0, "other").unwrap_err();
            client.unlinkat(0, name, 0).unwrap_err();
            client.unlinkat(0, name, P9_DOTL_AT_REMOVEDIR).unwrap_err();
            if name.contains('/') {
                client.walk(0, 3, &[name]).unwrap_err();
            }
        }
        assert_eq!(
            case.names()
                .iter()
                .filter(|name| !name.starts_with(".virtfs"))
                .count(),
            1
        );
        case.nothing_is_left();
    }
}

#[test]
fn cve_2016_8577_9105_9106_reads_links_and_writes_that_fail_leave_nothing() {
    let mut case = Case::new(Passthrough);
    case.put("file", "data");
    case.put("other", "data");
    case.f.client.mkdir(0, "dir", 0o755, gid()).unwrap();
    let client = case.client();
    client.walk_all(0, 1, &["file"]).unwrap();
    client.walk_all(0, 2, &["dir"]).unwrap();
    client.clone_fid(1, 3).unwrap();
    client.lopen(3, O_RDONLY).unwrap();
    let (usage, open) = (case.f.session.usage(), descriptors());
    for _ in 0..200 {
        let client = case.client();
        // Not open, a directory, only to be read.
        client.read(1, 0, 4096).unwrap_err();
        client.read(2, 0, 4096).unwrap_err();
        client.read(77, 0, 4096).unwrap_err();
        client.write(3, 0, &[0; 4000]).unwrap_err();
        client.write(1, 0, b"x").unwrap_err();
        client.link(2, 1, "sub/name").unwrap_err();
        client.link(0, 1, "other").unwrap_err();
        client.link(0, 2, "twin").unwrap_err();
        client.link(1, 1, "twin").unwrap_err();
    }
    assert_eq!((case.f.session.usage(), descriptors()), (usage, open));
    case.nothing_is_left();
}

#[test]
fn cve_2016_8578_an_empty_string_is_answered() {
    for model in MODELS {
        let mut case = Case::new(model);
        case.put("file", "");
        let client = case.client();
        client.walk_all(0, 1, &["file"]).unwrap();
        client.clone_fid(0, 2).unwrap();
        client.lcreate(2, "", O_RDWR, 0o644, gid()).unwrap_err();
        client.walk(0, 3, &[""]).unwrap_err();
        client.mkdir(0, "", 0o755, gid()).unwrap_err();
        client.mknod(0, "", libc::S_IFREG, (0, 0), gid()).unwrap_err();
        client.symlink(0, "", "target", gid()).unwrap_err();
        client.symlink(0, "link", "", gid()).unwrap_err();
        client.link(0, 1, "").unwrap_err();
        client.rename(1, 0, "").unwrap_err();
        client.renameat(0, "", 0, "").unwrap_err();
        client.unlinkat(0, "", 0).unwrap_err();
        client.xattrcreate(2, "", 1, 0).unwrap_err();
        assert_eq!(client.version_of(8192, b"").unwrap().1, b"unknown");
        client.version(8192).unwrap();
        client.attach_at(0, "", 0).unwrap();
        case.nothing_is_left();
    }
}

#[test]
fn cve_2016_9102_a_second_txattrcreate_on_a_fid_is_refused() {
    let mut case = Case::new(Passthrough);
    case.put("file", "");
    case.client().walk_all(0, 1, &["file"]).unwrap();
    case.client().xattrcreate(1, "user.x", 1000, 0).unwrap();
    for _ in 0..100 {
        case.client().xattrcreate(1, "user.y", 60_000, 0).unwrap_err();
    }
    assert_eq!(case.f.session.usage().xattrs, 1);
    case.nothing_is_left();
}

#[test]
fn cve_2016_9103_a_value_is_not_read_before_it_is_written() {
    for model in MODELS {
        let mut case = Case::new(model);
        case.put("file", "");
        let client = case.client();
        client.walk_all(0, 1, &["file"]).unwrap();
        client.clone_fid(1, 2).unwrap();
        client.xattrcreate(2, "user.x", 100, 0).unwrap();
        client.read(2, 0, 100).unwrap_err();
        client.write(2, 0, b"a part").unwrap();
        client.read(2, 0, 100).unwrap_err();
        // Nor is what was not written made up when it is set.
        client.clunk(2).unwrap_err();
        assert_eq!(client.getxattr(1, 2, "user.x"), Err(Errno::ENODATA));
        case.nothing_is_left();
    }
}

#[test]
fn cve_2016_9104_an_offset_and_a_count_that_overflow_are_refused() {
    let mut case = Case::new(Passthrough);
    case.put("file", "");
    let client = case.client();
    client.walk_all(0, 1, &["file"]).unwrap();
    client.setxattr(1, 2, "user.x", b"value", 0).unwrap();
    client.xattrwalk(1, 2, "user.x").unwrap();
    client.clone_fid(1, 3).unwrap();
    client.xattrcreate(3, "user.y", 5, 0).unwrap();
    for offset in [
        6,
        1 << 31,
        u64::from(u32::MAX),
        i64::MAX as u64,
        u64::MAX - 3,
        u64::MAX,
    ] {
        let read = client.read(2, offset, 100);
        assert!(
            read.as_ref().is_ok_and(Vec::is_empty) || read.is_err(),
            "{read:?}"
        );
        client.write(3, offset, b"four").unwrap_err();
        let mut frame = [0; 64];
        let tread = Tread {
            fid: 2,
            offset,
            count: u32::MAX,
        };
        let len = tread.encode(1, &mut frame).unwrap();
        assert!(client.raw(&frame[..len], 8000).len() <= 11);
    }
    // All of it, and not a byte more.
    client.write(3, 0, b"12345").unwrap();
    client.write(3, 5, b"6").unwrap_err();
    assert_eq!(client.read(2, 3, 100).unwrap(), b"ue");
    case.nothing_is_left();
}

#[test]
fn cve_2016_9602_symlinks_are_not_followed() {
    for model in MODELS {
        let mut case = Case::new(model);
        symlink("../outside", case.share("dir-link")).unwrap();
        symlink("../outside/secret", case.share("file-link")).unwrap();
        fs::create_dir(case.share("dir")).unwrap();
        let swapped = case.share("dir");
        let outside = case.f.path("outside");
        let client = case.client();
        client.walk_all(0, 1, &["dir-link", "secret"]).unwrap_err();
        client.walk_all(0, 1, &["dir-link", ".."]).unwrap_err();
        client.walk_all(0, 1, &["file-link"]).unwrap();
        for flags in [O_RDONLY, O_RDWR, O_WRONLY | O_TRUNC] {
            client.clone_fid(1, 2).unwrap();
            client.lopen(2, flags).unwrap_err();
            client.clunk(2).unwrap();
            client.clone_fid(0, 2).unwrap();
            let opened = client.lcreate(2, "file-link", flags, 0o666, gid());
            assert!(opened.is_err(), "{opened:?}");
            client.clunk(2).unwrap();
        }
        // Whatever these do, it is to the symlink itself.
        let _ = client.chmod(1, 0o777);
        let _ = client.chown(1, 7, 7);
        client.truncate(1, 0).unwrap_err();
        let _ = client.setxattr(1, 2, "user.x", b"value", 0);
        client.walk_all(0, 3, &["dir-link"]).unwrap();
        client.mkdir(3, "new", 0o755, gid()).unwrap_err();
        client.unlinkat(3, "secret", 0).unwrap_err();
        client.renameat(3, "secret", 0, "stolen").unwrap_err();
        client.link(3, 1, "twin").unwrap_err();
        client.lopen(3, O_RDONLY).unwrap_err();
        // A directory that is swapped for a symlink once a fid is there.
        client.walk_all(0, 4, &["dir"]).unwrap();
        fs::rename(&swapped, swapped.with_extension("gone")).unwrap();
        symlink(&outside, &swapped).unwrap();
        let _ = client.mkdir(4, "new", 0o755, gid());
        let _ = client.walk_all(4, 5, &["secret"]).unwrap_err();
        let _ = client.unlinkat(4, "secret", 0);
        let _ = client.chmod(4, 0o700);
        client.walk_all(0, 6, &["dir", "secret"]).unwrap_err();
        case.nothing_is_left();
    }
}

#[test]
fn cve_2016_9913_9914_9915_9916_a_session_that_goes_leaves_nothing() {
    for model in MODELS {
        let mut case = Case::new(model);
        case.put("file", "data");
        for fid in (10..100).step_by(5) {
            case.f.client.clone_fid(0, fid).unwrap();
            case.f.client.lopen(fid, O_RDONLY).unwrap();
            case.f.client.readdir(fid, 0, 100).unwrap();
            case.f.client.walk_all(0, fid + 1, &["file"]).unwrap();
            case.f.client.lopen(fid + 1, O_RDWR).unwrap();
            case.f.client.lock(&lock(fid + 1, P9_LOCK_TYPE_RDLCK)).unwrap();
            case.f.client.walk_all(0, fid + 2, &["file"]).unwrap();
            case.f.client.xattrcreate(fid + 2, "user.x", 500, 0).unwrap();
            case.f.client.walk_all(0, fid + 3, &["file"]).unwrap();
            case.f.client.xattrwalk(fid + 3, fid + 4, "").unwrap();
        }
        // Without Tclunk and without Tversion.
        let Case { f, before, .. } = case;
        drop(f);
        until(|| descriptors() <= before);
    }
}

fn lock(fid: u32, kind: u8) -> Tlock<'static> {
    Tlock {
        fid,
        kind,
        flags: 0,
        start: 0,
        length: 10,
        proc_id: 1,
        client_id: b"guest",
    }
}

#[test]
fn cve_2017_7377_creating_on_a_fid_in_use_leaves_nothing() {
    let mut case = Case::new(Passthrough);
    case.put("file", "data");
    let client = case.client();
    client.clone_fid(0, 1).unwrap();
    client.lcreate(1, "new", O_RDWR, 0o644, gid()).unwrap();
    client.clone_fid(0, 2).unwrap();
    client.lopen(2, O_RDONLY).unwrap();
    client.walk_all(0, 3, &["file"]).unwrap();
    let (usage, open) = (case.f.session.usage(), descriptors());
    for _ in 0..200 {
        let client = case.client();
        for fid in [1, 2, 3] {
            client.lcreate(fid, "another", O_RDWR, 0o644, gid()).unwrap_err();
            client.attach(fid, 0).unwrap_err();
            client.walk(0, fid, &["file"]).unwrap_err();
        }
        client.lopen(1, O_RDWR).unwrap_err();
        client.lopen(2, O_RDONLY).unwrap_err();
        client.xattrcreate(1, "user.x", 1, 0).unwrap_err();
    }
    assert_eq!((case.f.session.usage(), descriptors()), (usage, open));
    assert_eq!(case.names(), ["file", "new"]);
    case.nothing_is_left();
}

#[test]
fn cve_2017_7471_the_root_fid_is_the_share_and_not_the_hosts_root() {
    for model in MODELS {
        let mut case = Case::new(model);
        let root = fs::metadata("/").unwrap();
        let ids = (
            root.mode(),
            root.uid(),
            root.gid(),
            root.ctime(),
            root.ctime_nsec(),
        );
        case.client().chmod(0, 0o751).unwrap();
        case.client().chown(0, 0, 0).unwrap();
        let times = Tsetattr {
            fid: 0,
            valid: P9_SETATTR_MTIME | P9_SETATTR_MTIME_SET,
            mtime_sec: 1,
            ..Tsetattr::default()
        };
        case.client().setattr(&times).unwrap();
        let _ = case.client().setxattr(0, 1, "user.x", b"value", 0);
        case.client().truncate(0, 0).unwrap_err();
        case.client().remove(0).unwrap_err();
        let now = fs::metadata("/").unwrap();
        assert_eq!(
            ids,
            (now.mode(), now.uid(), now.gid(), now.ctime(), now.ctime_nsec())
        );
        case.client().attach(0, 0).unwrap();
        let stat = case.client().stat(0).unwrap();
        assert_eq!((stat.mode & 0o7777, stat.mtime_sec), (0o751, 1));
        assert_eq!(fs::metadata(case.share("")).unwrap().mtime(), 1);
        case.nothing_is_left();
    }
}

#[test]
fn cve_2017_7493_the_metadata_of_mapped_file_are_out_of_reach() {
    let mut case = Case::new(MappedFile);
    let client = case.client();
    client.clone_fid(0, 1).unwrap();
    client.lcreate(1, "file", O_RDWR, 0o640, gid()).unwrap();
    client.mkdir(0, "dir", 0o755, gid()).unwrap();
    client.walk_all(0, 2, &["dir"]).unwrap();
    assert!(case.share(".virtfs_metadata/file").exists());
    let client = case.client();
    for name in [".virtfs_metadata", ".virtfs_metadata_root"] {
        for dir in [0, 2] {
            client.walk_all(dir, 3, &[name]).unwrap_err();
            client.walk_all(dir, 3, &[name, "file"]).unwrap_err();
            client.clone_fid(dir, 3).unwrap();
            client.lcreate(3, name, O_RDWR, 0o644, gid()).unwrap_err();
            client.clunk(3).unwrap();
            client.mkdir(dir, name, 0o755, gid()).unwrap_err();
            client
                .mknod(dir, name, libc::S_IFREG | 0o644, (0, 0), gid())
                .unwrap_err();
            client.symlink(dir, name, "file", gid()).unwrap_err();
            client.link(dir, 1, name).unwrap_err();
            client.rename(1, dir, name).unwrap_err();
            client.renameat(0, "file", dir, name).unwrap_err();
            client.renameat(dir, name, 0, "seen").unwrap_err();
            client.unlinkat(dir, name, 0).unwrap_err();
            client.unlinkat(dir, name, P9_DOTL_AT_REMOVEDIR).unwrap_err();
        }
    }
    client.clone_fid(0, 3).unwrap();
    client.lopen(3, O_RDONLY).unwrap();
    let entries = client.list(3, 4000).unwrap();
    assert!(entries.iter().all(|entry| !entry.name.starts_with(b".virtfs")));
    assert_eq!(client.stat(1).unwrap().mode & 0o7777, 0o640);
    case.nothing_is_left();
}

#[test]
fn cve_2017_8086_lists_of_xattrs_leave_nothing() {
    for model in MODELS {
        let mut case = Case::new(model);
        case.put("file", "");
        case.client().walk_all(0, 1, &["file"]).unwrap();
        case.client().setxattr(1, 2, "user.x", b"value", 0).unwrap();
        let (usage, open) = (case.f.session.usage(), descriptors());
        for at in 0..300 {
            assert!(case.client().xattrwalk(1, 2, "").unwrap() > 0);
            if at % 2 == 0 {
                case.client().read(2, 0, 4).unwrap();
            }
            case.client().clunk(2).unwrap();
            case.client().xattrwalk(1, 2, "user.none").unwrap_err();
            case.client().xattrwalk(1, 0, "").unwrap_err();
        }
        assert_eq!((case.f.session.usage(), descriptors()), (usage, open));
        case.nothing_is_left();
    }
}

/// Another client of the same session, as another thread of the device is.
fn join(case: &Case) -> Client<Backend> {
    Client::new(Backend::new(case.f.session.clone()))
}

#[test]
fn cve_2018_19364_a_fid_is_renamed_while_another_thread_uses_it() {
    for model in MODELS {
        let mut case = Case::new(model);
        case.client().mkdir(0, "one", 0o755, gid()).unwrap();
        case.client().mkdir(0, "two", 0o755, gid()).unwrap();
        case.client().walk_all(0, 1, &["one"]).unwrap();
        case.client().walk_all(0, 2, &["two"]).unwrap();
        case.client().clone_fid(1, 3).unwrap();
        case.client().lcreate(3, "file", O_RDWR, 0o644, gid()).unwrap();
        case.client().walk_all(1, 4, &["file"]).unwrap();
        let (mut mover, mut user) = (join(&case), join(&case));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for at in 0..200 {
                    mover
                        .rename(4, 1 + at % 2, ["file", "with-a-longer-name"][at as usize % 2])
                        .unwrap();
                }
            });
            for at in 0..200 {
                user.stat(4).unwrap();
                user.truncate(4, at % 7).unwrap();
                user.chmod(4, 0o600).unwrap();
                user.clone_fid(4, 5).unwrap();
                user.lopen(5, O_RDWR).unwrap();
                user.write(5, 0, b"data").unwrap();
                user.clunk(5).unwrap();
            }
        });
        drop(user);
        case.nothing_is_left();
    }
}

#[test]
fn cve_2018_19489_a_directory_is_renamed_while_what_is_in_it_is_changed() {
    for model in MODELS {
        let mut case = Case::new(model);
        case.client().mkdir(0, "dir", 0o755, gid()).unwrap();
        case.client().walk_all(0, 1, &["dir"]).unwrap();
        case.client().clone_fid(1, 2).unwrap();
        case.client().lcreate(2, "file", O_RDWR, 0o644, gid()).unwrap();
        case.client().clunk(2).unwrap();
        let (mut mover, mut user) = (join(&case), join(&case));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for at in 0..200 {
                    let names = ["dir", "a-directory-with-another-name"];
                    mover.renameat(0, names[at % 2], 0, names[(at + 1) % 2]).unwrap();
                }
            });
            for _ in 0..200 {
                user.walk_all(1, 3, &["file"]).unwrap();
                user.chmod(3, 0o600).unwrap();
                user.rename(3, 1, "other").unwrap();
                user.renameat(1, "other", 1, "file").unwrap();
                user.clunk(3).unwrap();
            }
        });
        drop(user);
        case.nothing_is_left();
    }
}

#[test]
fn cve_2021_20181_fids_are_used_while_descriptors_are_given_up() {
    for model in MODELS {
        let limits = Limits {
            fd_budget: 24,
            ..Limits::default()
        };
        let mut case = Case::with(model, limits, |_| {});
        for at in 0..60 {
            case.put(&at.to_string(), &"x".repeat(at));
        }
        for fid in 0..60u32 {
            case.client().walk_all(0, 100 + fid, &[fid.to_string()]).unwrap();
        }
        let threads: Vec<_> = (0..3).map(|_| join(&case)).collect();
        std::thread::scope(|scope| {
            for (number, mut client) in (0u32..).zip(threads) {
                scope.spawn(move || {
                    for step in 0..150u32 {
                        let at = (step * 17 + number * 7) % 60;
                        assert_eq!(client.stat(100 + at).unwrap().size, at.into());
                        let fid = 1000 * (number + 1);
                        client.clone_fid(100 + at, fid).unwrap();
                        match client.lopen(fid, O_RDONLY) {
                            Ok(_) => assert_eq!(client.read(fid, 0, 100).unwrap().len(), at as usize),
                            Err(error) => assert_eq!(error, Errno::EMFILE),
                        }
                        client.clunk(fid).unwrap();
                    }
                });
            }
        });
        case.nothing_is_left();
    }
}

#[test]
fn cve_2023_2861_special_files_are_not_opened() {
    for model in MODELS {
        let mut case = Case::new(model);
        let mode = Mode::from_bits_truncate(0o666);
        mkfifo(&case.share("fifo"), mode).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(case.share("socket")).unwrap();
        let mut names = vec!["fifo", "socket"];
        for (name, kind) in [("character", SFlag::S_IFCHR), ("block", SFlag::S_IFBLK)] {
            if mknod(&case.share(name), kind, mode, makedev(1, 3)).is_ok() {
                names.push(name);
            }
        }
        let begun = Instant::now();
        for name in names {
            let client = case.client();
            client.walk_all(0, 1, &[name]).unwrap();
            for flags in [O_RDONLY, O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC] {
                client.clone_fid(1, 2).unwrap();
                client.lopen(2, flags).unwrap_err();
                client.clunk(2).unwrap();
                client.clone_fid(0, 2).unwrap();
                client.lcreate(2, name, flags, 0o666, gid()).unwrap_err();
                client.clunk(2).unwrap();
            }
            client.truncate(1, 0).unwrap_err();
            client.clunk(1).unwrap();
        }
        // Nor is one that takes the place of a file that was walked to.
        case.put("file", "");
        case.client().walk_all(0, 1, &["file"]).unwrap();
        fs::rename(case.share("fifo"), case.share("file")).unwrap();
        let client = case.client();
        if client.lopen(1, O_RDWR).is_ok() {
            assert_eq!(client.stat(1).unwrap().mode & libc::S_IFMT, libc::S_IFREG);
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "somebody waits for a FIFO's other end"
        );
        drop(socket);
        case.nothing_is_left();
    }
}

#[test]
fn cve_2023_1386_a_write_takes_set_id_bits_away() {
    // In the mapped modes the bits are not the host's, and the guest's kernel sees to them.
    for model in [Passthrough, Squash] {
        let mut case = Case::new(model);
        for act in 0..3 {
            case.put("file", "data");
            fs::set_permissions(case.share("file"), Permissions::from_mode(0o6775)).unwrap();
            let client = case.client();
            client.walk_all(0, 1, &["file"]).unwrap();
            match act {
                0 => client.truncate(1, 2).unwrap(),
                1 => drop(client.lopen(1, O_WRONLY | O_TRUNC).unwrap()),
                _ => {
                    client.lopen(1, O_WRONLY).unwrap();
                    client.write(1, 0, b"x").unwrap();
                }
            }
            client.clunk(1).unwrap();
            let mode = fs::metadata(case.share("file")).unwrap().mode();
            assert_eq!(mode & 0o6000, 0, "{model:?} {act}: {mode:o}");
        }
        case.nothing_is_left();
    }
}

/// QEMU's max_xattr of 2026; its CVE number is not known to us.
#[test]
fn cve_2026_xattr_values_that_are_never_finished_are_bounded() {
    let limits = Limits {
        max_xattr_fids: 50,
        ..Limits::default()
    };
    let mut case = Case::with(Passthrough, limits, |_| {});
    case.put("file", "");
    case.client().walk_all(0, 1, &["file"]).unwrap();
    for fid in 100..1000 {
        case.client().clone_fid(1, fid).unwrap();
        let made = case.client().xattrcreate(fid, "user.x", 65_536, 0);
        assert_eq!(made.is_ok(), fid < 150, "{fid}: {made:?}");
    }
    assert_eq!(case.f.session.usage().xattrs, 50);
    case.nothing_is_left();
}

#[test]
fn gitlab_3358_paths_longer_than_64_kib_are_no_strings_here() {
    for model in MODELS {
        let mut case = Case::new(model);
        let name = "n".repeat(240);
        for depth in 0..300 {
            let client = case.client();
            client.mkdir(depth, &name, 0o755, gid()).unwrap();
            client.walk_all(depth, depth + 1, &[&name]).unwrap();
        }
        let client = case.client();
        client.clone_fid(300, 1000).unwrap();
        client.lcreate(1000, "file", O_RDWR, 0o644, gid()).unwrap();
        client.renameat(0, &name, 0, "another").unwrap();
        client.chmod(1000, 0o600).unwrap();
        client.walk_all(300, 1001, &["file"]).unwrap();
        client.rename(1001, 0, "file").unwrap();
        assert!(case.share("file").exists());
        case.nothing_is_left();
    }
}

/// virtiofsd's.
#[test]
fn cve_2020_10717_files_that_are_opened_without_end_are_refused_in_time() {
    for model in MODELS {
        let limits = Limits {
            fd_budget: 40,
            ..Limits::default()
        };
        let mut case = Case::with(model, limits, |_| {});
        case.put("file", "data");
        let mut open = 0;
        for fid in 1..500 {
            case.client().walk_all(0, fid, &["file"]).unwrap();
            match case.client().lopen(fid, O_RDONLY) {
                Ok(_) => open += 1,
                Err(error) => assert!(matches!(error, Errno::EMFILE | Errno::ENFILE), "{error}"),
            }
        }
        assert!((10..80).contains(&open), "{open}");
        assert!(descriptors() < case.before + 100);
        // Others can still be asked for, and once some are closed, opened.
        for fid in 1..500 {
            case.client().stat(fid).unwrap();
            case.client().clunk(fid).unwrap();
        }
        case.client().walk_all(0, 1, &["file"]).unwrap();
        case.client().lopen(1, O_RDONLY).unwrap();
        case.nothing_is_left();
    }
}

/// virtiofsd's: the server's own supplementary groups let a file keep its set-group-id bit.
#[test]
fn cve_2022_0358_no_set_group_id_for_a_group_that_the_user_is_not_in() {
    let mut case = Case::with(Passthrough, Limits::default(), |options| {
        options.check_access = CheckAccess::Host;
    });
    fs::create_dir(case.share("dir")).unwrap();
    std::os::unix::fs::chown(case.share("dir"), Some(0), Some(0)).unwrap();
    fs::set_permissions(case.share("dir"), Permissions::from_mode(0o2777)).unwrap();
    let client = case.client();
    client.attach(1, 4321).unwrap();
    client.walk_all(1, 2, &["dir"]).unwrap();
    for (name, gid) in [("one", 0), ("two", 4321)] {
        client.clone_fid(2, 3).unwrap();
        let _ = client.lcreate(3, name, O_RDWR, 0o2777, gid);
        client.clunk(3).unwrap();
        let _ = client.mknod(2, format!("{name}-node"), libc::S_IFREG | 0o2777, (0, 0), gid);
    }
    let mut made = 0;
    for entry in fs::read_dir(case.share("dir")).unwrap() {
        made += 1;
        let meta = entry.unwrap().metadata().unwrap();
        assert!(meta.mode() & 0o2000 == 0 || meta.gid() != 0, "{:o}", meta.mode());
    }
    assert!(made > 0, "nothing could be made");
    case.nothing_is_left();
}
