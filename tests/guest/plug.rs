//! The share is unplugged and plugged in while the machine runs: on the connection that there is, and on a new one.

use std::fs;
use std::time::Duration;

use crate::backend::{Backend, Setup};
use crate::monitor::Monitor;
use crate::vm::{self, Running, Vm, wait_until};

/// The device itself; an event of the same name about its inner part comes before.
const DELETED: &str = r#""device": "d1""#;

/// Waits until the guest has come to this step of plug.sh.
fn wait_for_step(table: &Backend, job: &Running, step: &str) {
    let reached = wait_until(Duration::from_secs(240), || {
        table.share().join(step).exists() || job.is_finished()
    });
    assert!(reached && !job.is_finished(), "the guest does not come to {step}");
}

/// Waits until the program's log has this line so many times.
fn wait_for_log(backend: &Backend, line: &str, times: usize) {
    let count = || backend.log().matches(line).count();
    assert!(
        wait_until(Duration::from_secs(60), || count() >= times),
        "not {times} times {line:?}:\n{}",
        backend.log()
    );
}

#[test]
fn a_share_can_be_unplugged_and_plugged_in() {
    // The two talk to each other by files on the first share, which stays.
    let backends = [
        Setup {
            tag: "table",
            ..Setup::ROOT
        }
        .start(),
        Setup {
            tag: "share",
            ..Setup::ROOT
        }
        .start(),
    ];
    let [table, backend] = &backends;
    let tell = |what: &str| fs::write(table.share().join(what), "").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let calls = vm::compile("calls");
    let job = Vm::with(&backends)
        .qmp(&socket)
        .hot_plug()
        .no_mount()
        .add(&calls.path)
        .start("plug.sh");
    wait_for_step(table, &job, "busy");
    let mut monitor = Monitor::connect(&socket);
    let plug = |monitor: &mut Monitor, chardev: &str| {
        let device = fs::read_to_string(vm::cache().join("qemu/device")).unwrap();
        let device = device.trim();
        let more = r#""virtio-id": 9, "num_vqs": 1, "vq_size": 256, "config_size": 256"#;
        let arguments =
            format!(r#""driver": "{device}", "id": "d1", "bus": "s1", "chardev": "{chardev}", {more}"#);
        monitor.execute_with("device_add", &arguments);
    };

    // While it is mounted and in use Linux keeps the device, and what is in use works; the unplugging ends with umount.
    monitor.execute_with("device_del", r#""id": "d1""#);
    tell("unplugged");
    wait_for_step(table, &job, "unmounting");
    monitor.execute("query-status");
    assert!(!monitor.has_seen("DEVICE_DELETED"), "it was in use");
    tell("unmount");
    monitor.wait_for(DELETED);
    assert_eq!(backend.open_files(), Vec::<std::path::PathBuf>::new());

    // The same connection again.
    plug(&mut monitor, "c1");
    wait_for_log(backend, "begins a new session on its connection", 1);
    tell("plugged-1");
    wait_for_step(table, &job, "unmounted-1");
    monitor.execute_with("device_del", r#""id": "d1""#);
    monitor.wait_for(DELETED);

    // A new one; the backend serves one at a time, so the old one goes first.
    monitor.execute_with("chardev-remove", r#""id": "c1""#);
    let path = backend.socket();
    let address = format!(r#""type": "unix", "data": {{"path": "{}"}}"#, path.display());
    let kind = format!(r#""type": "socket", "data": {{"addr": {{{address}}}, "server": false}}"#);
    monitor.execute_with("chardev-add", &format!(r#""id": "c2", "backend": {{{kind}}}"#));
    plug(&mut monitor, "c2");
    wait_for_log(backend, "A front-end has connected", 2);
    tell("plugged-2");
    wait_for_step(table, &job, "unmounted-2");
    job.wait().expect_success();
    assert_eq!(
        fs::read_to_string(backend.share().join("plugged")).unwrap(),
        "0\n1\n2\n"
    );
    backends.into_iter().for_each(Backend::stop);
}
