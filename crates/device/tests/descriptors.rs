//! Connections leave nothing behind. A program of its own, because it counts the process's descriptors and threads.

mod common;

use std::time::Duration;

use common::{Rig, until};
use testkit::Vmm;

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}"))
        .expect("procfs")
        .count()
}

/// Descriptors and threads, once they no longer change: the device's side of a connection ends after ours.
fn settled() -> (usize, usize) {
    let mut last = (0, 0);
    until("descriptors and threads settle", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = (count("fd"), count("task"));
        std::mem::replace(&mut last, now) == now
    });
    last
}

#[test]
fn fifty_connections_leave_no_descriptor_and_no_thread_behind() {
    let rig = Rig::new();
    rig.put("file", b"content");
    let connect = |vmm| {
        let mut machine = rig.boot(vmm);
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, wire::P9_DOTL_RDWR).expect("open");
        machine.client.clone_fid(0, 2).expect("clone");
        machine.client.lopen(2, wire::P9_DOTL_RDONLY).expect("open");
        machine.client.readdir(2, 0, 4096).expect("readdir");
    };
    for vmm in Vmm::ALL {
        connect(vmm);
    }
    let before = settled();
    for round in 0..50 {
        connect(Vmm::ALL[round % 3]);
    }
    let after = settled();
    assert!(
        after.0 <= before.0 + 2 && after.1 <= before.1,
        "{before:?} descriptors and threads before, {after:?} after"
    );
}
