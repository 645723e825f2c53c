//! The virtual machine is stopped and continued while its guest is busy: QEMU takes the queue from the backend
//! (GET_VRING_BASE) with requests under way and a lock waiting, and gives it back.

use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use nix::fcntl::{FcntlArg, fcntl};

use crate::backend::Backend;
use crate::monitor::Monitor;
use crate::vm::{self, Running, Vm, wait_until};

/// Locks or unlocks the whole file.
fn lock(file: &fs::File, kind: libc::c_int) {
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&range)).unwrap();
}

fn rounds(share: &Path) -> usize {
    fs::read_to_string(share.join("rounds")).map_or(0, |text| text.lines().count())
}

fn wait_for_rounds(share: &Path, job: &Running, more: usize) {
    let begin = rounds(share);
    let reached = wait_until(Duration::from_secs(240), || {
        rounds(share) >= begin + more || job.is_finished()
    });
    assert!(reached && !job.is_finished(), "the guest does not go on");
}

#[test]
fn stopping_and_continuing_the_machine_loses_nothing() {
    let backend = Backend::start("passthrough");
    let share = backend.share();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let counted = fs::File::create(share.join("counted")).unwrap();
    lock(&counted, libc::F_WRLCK);
    let stress = vm::compile("stress");
    let job = Vm::on(&backend).qmp(&socket).add(&stress.path).start("pause.sh");
    let busy = wait_until(Duration::from_secs(240), || {
        rounds(share) > 0 || job.is_finished()
    });
    assert!(busy && !job.is_finished(), "the guest is not getting to work");

    let mut monitor = Monitor::connect(&socket);
    for stop in 0..20 {
        monitor.execute("stop");
        // What the guest had asked for is done when the answer comes; nothing moves from here on.
        let before = (rounds(share), fs::read(share.join("block")).ok());
        thread::sleep(Duration::from_millis(50));
        let after = (rounds(share), fs::read(share.join("block")).ok());
        assert!(before == after, "the share changed while the machine was stopped");
        monitor.execute("cont");
        // At another point of its work each time.
        thread::sleep(Duration::from_millis(30 + 7 * stop));
    }
    wait_for_rounds(share, &job, 2);
    assert_eq!(
        fs::metadata(share.join("counted")).unwrap().len(),
        0,
        "the host's lock did not hold"
    );
    lock(&counted, libc::F_UNLCK);
    fs::write(share.join("enough"), "").unwrap();
    job.wait().expect_success();
    let text = fs::read_to_string(share.join("rounds")).unwrap();
    let expected: String = (1..=rounds(share)).map(|n| format!("round {n}\n")).collect();
    assert_eq!(text, expected);
    backend.stop();
}
