//! What the options forbid, whose rights count, and what the log says of a refusal.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Mutex;

use common::*;
use host::{Caller, CheckAccess, IdMaps, IdOptions, SecurityModel, SetAttr, SetTime, Share, ShareOptions};

/// Makes a directory of this owner and mode: the umask of the test process is 0 once a share is open.
fn directory(path: &Path, owner: u32, mode: u32) {
    std::fs::create_dir(path).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
}

/// Keeps what is logged.
struct Log(Mutex<Vec<String>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

fn logged(about: &str) -> String {
    let log = LOG.0.lock().unwrap();
    log.iter()
        .rfind(|line| line.contains(about))
        .cloned()
        .unwrap_or_else(|| panic!("{log:?}"))
}

fn listen() {
    let _ = log::set_logger(&LOG);
    log::set_max_level(log::LevelFilter::Warn);
}

#[test]
fn a_read_only_share_is_never_changed() {
    listen();
    let f = Fixture::with(SecurityModel::Squash, |o| o.readonly = true);
    std::fs::write(f.dir.join("file"), "content").unwrap();
    std::fs::create_dir(f.dir.join("dir")).unwrap();
    let before = std::fs::metadata(f.dir.join("file")).unwrap();
    let (root, file) = (f.root(), f.open("file", libc::O_RDONLY));
    let (root, object) = (root.object(), file.object());
    let set = SetAttr {
        mode: Some(0),
        ..SetAttr::default()
    };
    let x = c("user.x");
    let n = name("new");
    let old = name("file");
    let refused = [
        errno(f.share.setattr(ROOT, &object, &set)),
        errno(f.share.mkdir(ROOT, &root, &n, 0o700)),
        errno(f.share.mknod(ROOT, &root, &n, libc::S_IFIFO, 0)),
        errno(f.share.symlink(ROOT, &root, &n, b"t")),
        errno(f.share.link(ROOT, &object, &root, &n)),
        errno(f.share.rename(ROOT, &root, &old, &root, &n)),
        errno(f.share.unlink(ROOT, &root, &old, false)),
        errno(f.share.unlink(ROOT, &root, &name("dir"), true)),
        errno(f.share.set_xattr(ROOT, &object, &x, b"v", 0)),
        errno(f.share.remove_xattr(ROOT, &object, &x)),
        errno(f.share.open_object(ROOT, &object, libc::O_WRONLY)),
        errno(f.share.open_object(ROOT, &object, libc::O_RDWR)),
        errno(f.share.open_object(ROOT, &object, libc::O_RDONLY | libc::O_TRUNC)),
        errno(f.share.create(ROOT, &root, &n, libc::O_RDONLY, 0o600)),
        errno(f.share.create(ROOT, &root, &old, libc::O_RDWR, 0o600)),
        errno(f.share.write(ROOT, file.file(), &[], 0, false)),
    ];
    assert_eq!(refused, [libc::EROFS; 16]);
    // Reading is all there, with O_CREAT too when the file is, as on any read-only file system.
    let node = f.create("file", libc::O_RDONLY, 0o600);
    assert_eq!(f.read(&node, 0, 10, false).unwrap(), b"content");
    let excl = f.try_create(ROOT, "file", libc::O_RDONLY | libc::O_EXCL, 0o600);
    assert_eq!(errno(excl), libc::EEXIST);
    let after = std::fs::metadata(f.dir.join("file")).unwrap();
    assert_eq!(
        (after.ctime_nsec(), after.mode()),
        (before.ctime_nsec(), before.mode())
    );
    assert!(logged("setattr").contains("leave out --readonly"));
}

#[test]
fn a_refusal_is_explained_with_file_rule_and_remedy() {
    unprivileged_over(
        "a_refusal_is_explained_with_file_rule_and_remedy",
        12345,
        |dir| {
            for (name, owner) in [("closed", 1000), ("open", 12345)] {
                directory(&dir.join(name), owner, 0o755);
            }
            std::fs::write(dir.join("secret"), "x").unwrap();
            std::fs::set_permissions(dir.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        },
        |dir| {
            listen();
            let f = Fixture::over(dir, SecurityModel::Passthrough, |_| {});
            let start = logged("lacks");
            assert!(start.contains("CAP_CHOWN") && start.contains("--security-model squash"));

            // The oldest complaint: the share shows its owner and says "permission denied".
            assert_eq!(
                errno(f.try_create(ROOT, "closed/new", libc::O_RDWR, 0o644)),
                libc::EACCES
            );
            let said = logged("closed/new");
            assert!(said.contains("belongs to 1000:1000 with mode 0755"), "{said}");
            assert!(said.contains("this process runs as 12345:12345"), "{said}");
            assert!(said.contains("setfacl -m u:12345:rwX"), "{said}");

            assert_eq!(
                errno(f.try_create(user(7), "open/new", libc::O_RDWR, 0o644)),
                libc::EPERM
            );
            let said = logged("open/new");
            assert!(said.contains("guest user 7 shall own it"), "{said}");
            assert!(said.contains("--security-model squash"), "{said}");

            assert_eq!(errno(f.try_open("secret", libc::O_RDONLY)), libc::EACCES);
            assert!(logged("secret").contains("belongs to 0:0 with mode 0600"));

            let set = SetAttr {
                mtime: SetTime::Now,
                ..SetAttr::default()
            };
            assert_eq!(
                errno(f.share.setattr(ROOT, &f.walk("secret").object(), &set)),
                libc::EPERM
            );
            assert!(logged("setattr").contains("only its owner may do that"));
        },
    );
}

#[test]
fn with_check_access_host_an_operation_has_the_users_rights_and_no_more() {
    if !is_root() {
        return;
    }
    let f = Fixture::with(SecurityModel::Passthrough, |o| o.check_access = CheckAccess::Host);
    let theirs = f.dir.join("theirs");
    directory(&theirs, 5001, 0o755);
    std::fs::write(f.dir.join("secret"), "x").unwrap();
    std::fs::set_permissions(f.dir.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let (me, other) = (user(5001), user(5002));
    let secret = f.walk("secret");
    for who in [me, other, user(u32::MAX)] {
        let open = f.share.open_object(who, &secret.object(), libc::O_RDONLY);
        assert_eq!(errno(open), libc::EACCES);
        let chmod = SetAttr {
            mode: Some(0o777),
            ..SetAttr::default()
        };
        assert_eq!(errno(f.share.setattr(who, &secret.object(), &chmod)), libc::EPERM);
        assert_eq!(
            errno(f.share.unlink(who, &f.root().object(), &name("secret"), false)),
            libc::EACCES
        );
    }
    // Root of the guest is root of the host here.
    f.share
        .open_object(ROOT, &secret.object(), libc::O_RDONLY)
        .unwrap();
    assert_eq!(
        errno(f.try_create(other, "theirs/x", libc::O_RDWR, 0o600)),
        libc::EACCES
    );
    // The user's group is the host's to say, and 5001 has none there: the group it names is refused.
    assert_eq!(
        errno(f.try_create(me, "theirs/x", libc::O_RDWR, 0o600)),
        libc::EPERM
    );
    assert_eq!(std::fs::read_dir(&theirs).unwrap().count(), 0);
    let nogroup = Caller {
        uid: 5001,
        gid: u32::MAX,
    };
    f.try_create(nogroup, "theirs/x", libc::O_RDWR, 0o640).unwrap();
    let meta = std::fs::metadata(theirs.join("x")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (5001, 0o640));
    // Owner changes, reading one's own, and a file without read permission.
    let node = f.walk("theirs/x");
    f.share
        .open_object(nogroup, &node.object(), libc::O_RDWR)
        .unwrap();
    let give = SetAttr {
        uid: Some(5002),
        ..SetAttr::default()
    };
    assert_eq!(
        errno(f.share.setattr(nogroup, &node.object(), &give)),
        libc::EPERM
    );
    // Set-group-id for a group one is not in: the kernel drops it, and no raised capability keeps it.
    let chmod = SetAttr {
        mode: Some(0o2755),
        ..SetAttr::default()
    };
    chown(theirs.join("x"), Some(5001), Some(0)).unwrap();
    f.share.setattr(nogroup, &node.object(), &chmod).unwrap();
    assert_eq!(
        std::fs::metadata(theirs.join("x")).unwrap().mode() & 0o7777,
        0o755
    );
    // Walking needs search permission.
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(errno(f.try_walk(other, "theirs/x")), libc::EACCES);
    f.try_walk(nogroup, "theirs/x").unwrap();
    // The thread has its own rights back each time: it could not do this otherwise, and writing clears set-id bits.
    assert!(std::fs::read(f.dir.join("secret")).is_ok());
    let tool = f.create("tool", libc::O_RDWR, 0o4755);
    f.write(&tool, 0, b"x").unwrap();
    assert_eq!(f.attr(&tool).mode, 0o100755);
}

/// The sets that the kernel shows, by their names there.
fn capability_sets() -> Vec<(String, u64)> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let lines = status.lines().filter_map(|line| line.split_once(":\t"));
    lines
        .filter(|(name, _)| name.starts_with("Cap"))
        .map(|(name, set)| (name.to_owned(), u64::from_str_radix(set, 16).unwrap()))
        .collect()
}

#[test]
fn a_thread_that_works_as_a_user_has_no_capability_but_the_way_back() {
    use host::sys::cred::{CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SETGID, CAP_SETUID, Caps};
    if !is_root() {
        return;
    }
    let effective = || {
        capability_sets()
            .into_iter()
            .find(|(name, _)| name == "CapEff")
            .unwrap()
            .1
    };
    let bits = |caps: &[u32]| caps.iter().fold(0, |set, cap| set | 1u64 << cap);
    let before = capability_sets();
    let caps = Caps::current().unwrap();
    let credentials = host::creds::Credentials::new(caps, host::Users::read(&[])).unwrap();
    for who in [user(5001), user(u32::MAX), user(65534), user(1)] {
        let guard = credentials.enter(who).unwrap();
        assert_eq!(effective(), bits(&[CAP_SETUID, CAP_SETGID]), "{who:?}");
        drop(guard);
        assert_eq!(capability_sets(), before);
    }
    let guard = credentials.enter(ROOT).unwrap();
    let as_root = [CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER];
    assert_eq!(effective(), bits(&as_root));
    drop(guard);
    assert_eq!(capability_sets(), before);
    // Without the others, what it has not it does not get.
    let less = || {
        Caps::current().unwrap().with(CAP_CHOWN, false).apply().unwrap();
        let caps = Caps::current().unwrap();
        let credentials = host::creds::Credentials::new(caps, host::Users::read(&[])).unwrap();
        let _guard = credentials.enter(ROOT).unwrap();
        assert_eq!(effective() & bits(&[CAP_CHOWN]), 0);
    };
    std::thread::scope(|scope| scope.spawn(less).join().unwrap());
}

/// An ext4 of which 40 % are kept for root, mounted at `at`; `None` where that cannot be had.
fn reserved_for_root(image: &Path, at: &Path) -> Option<Mounted> {
    use std::process::Command;
    std::fs::File::create(image).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "40"])
        .arg(image)
        .status();
    let mounted = |_| {
        Command::new("mount")
            .args(["-o", "loop"])
            .args([image, at])
            .status()
    };
    made.and_then(mounted)
        .is_ok_and(|status| status.success())
        .then(|| Mounted::at(at))
}

/// With the capability, a write uses blocks that are kept for root, and goes beyond quotas.
#[test]
fn a_user_does_not_write_where_only_the_process_may() {
    if !is_root() || !own_mounts() {
        return;
    }
    let f = Fixture::with(SecurityModel::Passthrough, |o| o.check_access = CheckAccess::Host);
    let full = f.dir.join("full");
    std::fs::create_dir(&full).unwrap();
    let Some(_mount) = reserved_for_root(&f.dir.join("image"), &full) else {
        println!("left out: no ext4 on a loop device here");
        return;
    };
    std::fs::set_permissions(&full, PermissionsExt::from_mode(0o777)).unwrap();
    let open = |who: Caller, file: &str| {
        let (dir, file) = (f.walk("full"), name(file));
        let (_, file, _) = f
            .share
            .create(who, &dir.object(), &file, libc::O_RDWR, 0o600)
            .unwrap();
        file
    };
    let who = Caller {
        uid: 5001,
        gid: u32::MAX,
    };
    let users = open(who, "users");
    let write = |file: &std::os::fd::OwnedFd| {
        use std::os::fd::AsFd;
        let mut bytes = vec![7u8; 64 << 10];
        // SAFETY: `bytes` lives over the calls.
        let iov = unsafe { [host::IoVec::new(bytes.as_mut_ptr(), bytes.len())] };
        let mut at = 0;
        loop {
            match f.share.write(who, file.as_fd(), &iov, at, false) {
                Ok(written) => at += written as u64,
                Err(e) => break (at, e.raw_os_error()),
            }
        }
    };
    let (users, why) = write(&users);
    assert_eq!(why, Some(libc::ENOSPC));
    let stat = f.share.statfs(ROOT, &f.walk("full").object()).unwrap();
    assert!(users > 0 && stat.bfree > 1000, "{users} {stat:?}");
}

#[test]
fn a_thread_that_cannot_get_its_own_rights_back_ends_the_process() {
    use host::sys::cred::{CAP_SETGID, Caps};
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "HOST_TEST_ABORT";
    if !is_root() {
        return;
    }
    if std::env::var_os(CHILD).is_some() {
        let caps = Caps::current().unwrap();
        let credentials = host::creds::Credentials::new(caps, host::Users::read(&[])).unwrap();
        let guard = credentials.enter(user(5001)).unwrap();
        Caps::current().unwrap().with(CAP_SETGID, false).apply().unwrap();
        drop(guard);
        // Not reached.
        std::process::exit(0);
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_thread_that_cannot_get_its_own_rights_back_ends_the_process",
            "--test-threads=1",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGABRT));
}

#[test]
fn check_access_host_needs_privileges_and_says_so() {
    unprivileged("check_access_host_needs_privileges_and_says_so", 12345, || {
        let mut options = ShareOptions::new("/", SecurityModel::Squash);
        options.check_access = CheckAccess::Host;
        let error = Share::open(&options).unwrap_err();
        assert!(error.contains("CAP_SETUID") && error.contains("--check-access guest"));
    });
}

#[test]
fn threads_with_different_callers_do_not_share_rights() {
    if !is_root() {
        return;
    }
    let f = Fixture::with(SecurityModel::Squash, |o| o.check_access = CheckAccess::Host);
    for id in 6000..6004 {
        let dir = f.dir.join(id.to_string());
        directory(&dir, id, 0o700);
        std::fs::write(dir.join("file"), "x").unwrap();
    }
    std::thread::scope(|scope| {
        for id in 6000..6004 {
            let f = &f;
            scope.spawn(move || {
                for _ in 0..200 {
                    for dir in 6000..6004 {
                        let got = errno(f.try_walk(user(id), &format!("{dir}/file")));
                        let want = if id == dir { 0 } else { libc::EACCES };
                        assert_eq!(got, want, "{id} in {dir}");
                    }
                }
            });
        }
    });
}

#[test]
fn ids_are_mapped_in_attributes_creation_chown_and_acls() {
    if !is_root() {
        return;
    }
    let ids = IdOptions {
        uid_map: vec!["0:100000:1000".parse().unwrap()],
        gid_map: vec!["0:200000:1000".parse().unwrap()],
        ..IdOptions::default()
    };
    let f = Fixture::with(SecurityModel::Passthrough, |o| o.ids = IdMaps::new(&ids).unwrap());
    let node = f
        .try_create(Caller { uid: 5, gid: 6 }, "file", libc::O_RDWR, 0o600)
        .unwrap();
    let meta = std::fs::metadata(f.dir.join("file")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (100_005, 200_006));
    let attr = f.attr(&node);
    assert_eq!((attr.uid, attr.gid), (5, 6));
    let set = SetAttr {
        uid: Some(7),
        gid: Some(8),
        ..SetAttr::default()
    };
    f.share.setattr(ROOT, &node.object(), &set).unwrap();
    let meta = std::fs::metadata(f.dir.join("file")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (100_007, 200_008));
    let outside = SetAttr {
        uid: Some(1000),
        ..SetAttr::default()
    };
    assert_eq!(
        errno(f.share.setattr(ROOT, &node.object(), &outside)),
        libc::EPERM
    );
    assert_eq!(
        errno(f.try_create(user(1000), "no", libc::O_RDWR, 0o600)),
        libc::EPERM
    );
    // u::rw-, u:9:r--, g::---, m::r--, o::---
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 9),
        (4, 0, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let access = c("system.posix_acl_access");
    match errno(f.share.set_xattr(ROOT, &node.object(), &access, &acl, 0)) {
        0 => {}
        libc::EOPNOTSUPP => return,
        other => panic!("errno {other}"),
    }
    let mut buf = [0; 100];
    let len = f
        .share
        .get_xattr(ROOT, &node.object(), &access, &mut buf)
        .unwrap();
    assert_eq!(&buf[..len], acl);
    // On the host it is the host's number.
    let plain = Fixture::over(&f.dir, SecurityModel::Passthrough, |_| {});
    let node = plain.walk("file");
    plain
        .share
        .get_xattr(ROOT, &node.object(), &access, &mut buf)
        .unwrap();
    assert_eq!(&buf[16..20], 100_009u32.to_le_bytes());
}
