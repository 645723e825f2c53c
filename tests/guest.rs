//! The whole way, with a stock Linux kernel at its far end: each test starts the built program on a
//! fresh directory, lets `scripts/vm` boot a guest on it with a job from `tests/guest/`, and then
//! looks at the directory from the host's side.
//!
//! Needs root (the share's files get owners) and what `scripts/setup` fetches; `scripts/test` sees
//! to both. No test asserts a time; the time limits here only end what hangs.
#![allow(missing_docs)]

#[path = "guest/access.rs"]
mod access;
#[path = "guest/backend.rs"]
mod backend;
#[path = "guest/changes.rs"]
mod changes;
#[path = "guest/debian.rs"]
mod debian;
#[path = "guest/errors.rs"]
mod errors;
#[path = "guest/flock.rs"]
mod flock;
#[path = "guest/many.rs"]
mod many;
#[path = "guest/monitor.rs"]
mod monitor;
#[path = "guest/pause.rs"]
mod pause;
#[path = "guest/pjdfstest.rs"]
mod pjdfstest;
#[path = "guest/plug.rs"]
mod plug;
#[path = "guest/tree.rs"]
mod tree;
#[path = "guest/two.rs"]
mod two;
#[path = "guest/vm.rs"]
mod vm;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backend::{Backend, Setup};
use pjdfstest::{Known, Results};
use vm::{Vm, sha256, wait_until};

/// The number of a user and a group without any privilege.
const ORDINARY: u32 = 1234;

/// Every kind of work, with some of the client's cache modes, in one guest.
fn all_kinds_of_work(guest: impl FnOnce(Vm) -> Vm, caches: &[&str]) {
    let backend = Setup {
        options: &["--allow-devices"],
        ..Setup::ROOT
    }
    .start();
    fs::write(backend.share().join("from-the-host"), "written on the host\n").unwrap();
    let locked = File::create(backend.share().join("locked-by-the-host")).unwrap();
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 10,
        l_len: 10,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&locked, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let probe = vm::compile("probe");
    let list = tempfile::tempdir().unwrap();
    let list = list.path().join("caches");
    fs::write(&list, caches.join(" ")).unwrap();
    guest(Vm::on(&backend))
        .no_mount()
        .add_tool("fsx")
        .add("tests/guest/fsx.toml")
        .add(&probe.path)
        .add(&list)
        .run("work.sh")
        .expect_success();

    for cache in caches {
        let kept = backend.share().join(cache).join("kept");
        let file = kept.join("dir/below/file");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            format!("written in the guest with cache={cache}\n")
        );
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o604);
        assert_eq!((meta.uid(), meta.gid()), (1, 2));
        assert_eq!(meta.mtime(), 981_173_106);
        assert_eq!(meta.nlink(), 2);
        assert_eq!(fs::metadata(kept.join("hardlink")).unwrap().ino(), meta.ino());
        let symlink = fs::read_link(kept.join("symlink")).unwrap();
        assert_eq!(symlink, Path::new("dir/below/file"));
        let empty = fs::metadata(kept.join("empty")).unwrap();
        assert!(empty.is_dir());
        assert_eq!(empty.mode() & 0o7777, 0o751);
        assert_eq!(fs::read(kept.join("large")).unwrap(), vec![b'k'; 300_000]);
        assert!(
            fs::symlink_metadata(kept.join("fifo"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
    }
    backend.stop();
}

#[test]
fn all_kinds_of_work_at_native_speed() {
    all_kinds_of_work(|vm| vm, &["none", "mmap", "loose"]);
}

#[test]
fn all_kinds_of_work_on_the_stable_kernel() {
    all_kinds_of_work(|vm| vm.kernel("stable"), &["none", "mmap", "loose"]);
}

/// Two processors make requests at the same time. They are emulated, and so slow at waking each
/// other that one cache mode must do.
#[test]
fn all_kinds_of_work_on_two_processors() {
    all_kinds_of_work(|vm| vm.kernel("backports").cpus(2), &["none"]);
}

/// fsx, concurrent writers, SQLite and git, with every cache mode of the client.
#[test]
fn programs_that_ask_much() {
    let backend = Backend::start("passthrough");
    let stress = vm::compile("stress");
    Vm::on(&backend)
        .no_mount()
        .programs()
        .add_tool("fsx")
        .add("tests/guest/fsx.toml")
        .add(&stress.path)
        .run("programs.sh")
        .expect_success();

    for cache in ["none", "mmap", "loose"] {
        let writers = backend.share().join(cache).join("writers");
        for args in [
            &["verify", "owned", "4", "owned"][..],
            &["verify", "scribbled", "4", "any"],
            &[
                "appended",
                "appended",
                "150",
                "writer-0,writer-1,writer-2,writer-3",
            ],
        ] {
            let output = Command::new(&stress.path)
                .args(args)
                .current_dir(&writers)
                .output();
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{cache}: {said}");
        }
    }
    backend.stop();
}

/// Runs pjdfstest on shares of every kind and on the host's own file system, and compares.
fn posix_behaviour(shares: &[(Setup, &[Known])]) {
    let host = Results::of_host();
    let dir = tempfile::tempdir().unwrap();
    let names = dir.path().join("names");
    host.write_names(&names);
    let backends: Vec<_> = shares.iter().map(|(setup, _)| setup.start()).collect();
    let output = Vm::with(&backends)
        .no_mount()
        .add_tool("pjdfstest")
        .add("tests/guest/pjdfstest.toml")
        .add(&names)
        .run("pjdfstest.sh");
    output.expect_success();
    let guest = Results::of_guest(&output.text);
    assert_eq!(guest.len(), shares.len(), "not every share was tested");
    let differences: String = shares
        .iter()
        .zip(&guest)
        .map(|((setup, known), guest)| pjdfstest::compare(setup.tag, &host, guest, known))
        .collect();
    assert!(differences.is_empty(), "{differences}");
    backends.into_iter().for_each(Backend::stop);
}

#[test]
fn pjdfstest_in_every_mode_as_root() {
    let share = |model| Setup {
        model,
        tag: model,
        ..Setup::ROOT
    };
    let passthrough = Setup {
        options: &["--allow-devices"],
        ..share("passthrough")
    };
    posix_behaviour(&[
        (share("mapped-file"), &[]),
        (share("mapped-xattr"), &[]),
        (passthrough, &[]),
        (share("squash"), &[pjdfstest::NO_DEVICES]),
    ]);
}

/// The process is an ordinary user and the directory its own; `docs/share-modes.md` has the table.
#[test]
fn pjdfstest_without_privileges() {
    let share = |model| Setup {
        model,
        tag: model,
        process: Some(ORDINARY),
        owner: ORDINARY,
        ..Setup::ROOT
    };
    posix_behaviour(&[
        (share("mapped-file"), &[]),
        (share("mapped-xattr"), &[]),
        (
            share("squash"),
            &[pjdfstest::NO_DEVICES, pjdfstest::SQUASH_WITHOUT_PRIVILEGES],
        ),
    ]);
}

#[test]
fn archive_is_unpacked_listed_compared_packed_and_removed() {
    let backend = Backend::start("passthrough");
    let share = backend.share();
    let origin = tempfile::tempdir().unwrap();
    let tree = origin.path().join("tree");
    tree::generate(&tree);
    let archive = share.join("archive.tar");
    tree::pack(&tree, &archive);
    let before = fs::read(&archive).unwrap();

    let job = Vm::on(&backend).memory("1G").no_mount().start("archive.sh");
    // The guest goes on when the host has looked.
    let ready = share.join("look-now");
    let reached = wait_until(vm::TIMEOUT, || ready.exists() || job.is_finished());
    if !reached || !ready.exists() {
        job.wait().expect_success();
        panic!("the guest ended without waiting for the host");
    }
    let differences = tree::differences(&tree, &share.join("tree"));
    let again = origin.path().join("again");
    tree::unpack(&share.join("again.tar"), &again);
    let repacked = tree::differences(&tree, &again);
    fs::write(share.join("go-on"), "").unwrap();
    job.wait().expect_success();

    assert_eq!(
        differences,
        Vec::<String>::new(),
        "what the guest unpacked differs"
    );
    assert_eq!(repacked, Vec::<String>::new(), "what the guest packed differs");
    let mut left: Vec<_> = fs::read_dir(share)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["archive.tar", "go-on"], "the guest did not remove all");
    assert!(
        fs::read(&archive).unwrap() == before,
        "the archive itself changed"
    );
    backend.stop();
}

#[test]
fn large_file_is_copied_each_way() {
    let backend = Backend::start("squash");
    let share = backend.share();
    let came = share.join("to-the-guest");
    let made = Command::new("dd")
        .args([
            "if=/dev/urandom",
            "bs=1M",
            "count=64",
            "status=none",
            "iflag=fullblock",
        ])
        .arg(format!("of={}", came.display()))
        .status();
    assert!(made.unwrap().success());

    let output = Vm::on(&backend).memory("1G").run("copy.sh");
    output.expect_success();
    let sum = |label: &str| {
        let line = output.text.lines().find_map(|line| line.strip_prefix(label));
        line.unwrap_or_else(|| panic!("no line {label:?}"))
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(sum("sum of what came: "), sha256(&came), "host to guest");
    assert_eq!(
        sha256(&share.join("from-the-guest")),
        sha256(&came),
        "guest to host"
    );
    let new = share.join("new-from-the-guest");
    assert_eq!(fs::metadata(&new).unwrap().len(), 64 << 20);
    assert_eq!(
        sum("sum of what is new: "),
        sha256(&new),
        "guest to host, odd blocks"
    );
    backend.stop();
}

/// One backend outlives the device's reset, the guest's reboot, another kernel in the guest's place, the guest's sudden
/// death, and goes on with the next guest, always on the same listener.
#[test]
fn backend_outlives_its_guests() {
    let backend = Backend::start("passthrough");
    let boots = || fs::read_to_string(backend.share().join("boots")).unwrap();
    let calls = vm::compile("calls");

    // A reboot, a kexec and a reboot inside of one QEMU: no new connection, but all set up again.
    let output = Vm::on(&backend)
        .allow_reboot()
        .kexec()
        .add(&calls.path)
        .run("reboot.sh");
    output.expect_success();
    assert_eq!(boots().trim(), "4");
    // No kernel took leave, and what each had open is closed.
    assert_eq!(backend.open_files(), Vec::<PathBuf>::new());

    // QEMU is killed while the guest is busy: the connection breaks with requests under way.
    let busy = Vm::on(&backend).start("busy.sh");
    let rounds = backend.share().join("rounds");
    assert!(
        wait_until(Duration::from_secs(120), || rounds.exists() || busy.is_finished()),
        "the guest is not getting to work"
    );
    busy.kill();

    // The next front-end finds the backend listening, and a session without its predecessor's fids.
    let output = Vm::on(&backend).add(&calls.path).run("reboot.sh");
    output.expect_success();
    assert_eq!(boots().trim(), "5");
    backend.stop();
}
