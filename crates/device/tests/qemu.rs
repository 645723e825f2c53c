//! What went wrong in QEMU's 9P device, by what it is known as; see `crates/server/tests/qemu` for all that takes no ring.

mod common;

use common::{Rig, assert_alive, errno, frame, open_descriptors, until};
use testkit::Vmm;
use testkit::scenario::gid;
use wire::*;

/// A process counts its descriptors here, so one at a time.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn defect_7_a_flushed_clunk_closes_and_a_flushed_value_is_set() {
    let _turn = TURN.lock();
    let rig = Rig::new();
    rig.put("file", b"data");
    let mut machine = rig.boot(Vmm::Qemu);
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.clone_fid(1, 2).expect("clone");
    machine.client.clunk(2).expect("clunk");
    let open = open_descriptors();
    for round in 0..100 {
        let client = &mut machine.client;
        client.clone_fid(1, 2).expect("clone");
        client.lopen(2, P9_DOTL_RDWR).expect("open");
        client.clone_fid(1, 3).expect("clone");
        let name = format!("user.name{round}");
        client.xattrcreate(3, name, 5, 0).expect("xattrcreate");
        client.write(3, 0, b"value").expect("write");
        let transport = client.transport();
        let mut tokens = Vec::new();
        for (fid, tag) in [(2, 500), (3, 501)] {
            tokens.push(transport.stage(&frame(Tclunk { fid }, tag), &[], 100));
            tokens.push(transport.stage(&frame(Tflush { oldtag: tag }, tag + 100), &[], 100));
        }
        transport.ring.notify();
        let kinds: Vec<u8> = tokens.into_iter().map(|token| transport.wait(token)[4]).collect();
        assert_eq!(kinds, [RCLUNK, RFLUSH, RCLUNK, RFLUSH]);
    }
    until("all are closed", || open_descriptors() == open);
    let list = machine.client.getxattr(1, 2, "").expect("listxattr");
    assert_eq!(
        list.split(|byte| *byte == 0)
            .filter(|name| name.starts_with(b"user.name"))
            .count(),
        100
    );
}

#[test]
fn defect_9_a_malformed_message_bricks_nothing() {
    let _turn = TURN.lock();
    let rig = Rig::new();
    let mut machine = rig.boot(Vmm::Qemu);
    let good = frame(Tgetattr { fid: 0, mask: 1 }, 7);
    let with_size = |size: u32| [&size.to_le_bytes(), &good[4..]].concat();
    for (broken, room) in [
        (good[..6].to_vec(), 100),
        (good[..7].to_vec(), 100),
        (with_size(0), 100),
        (with_size(6), 100),
        (with_size(18), 100),
        (with_size(20), 100),
        (with_size(u32::MAX), 100),
        (good.clone(), 0),
        (good.clone(), 3),
        (good.clone(), 11),
        ([&good[..4], &[255], &good[5..]].concat(), 100),
        // A Twalk of more names than there are, of a name longer than the message.
        (
            [&[15, 0, 0, 0, 110, 7, 0], &[0; 8][..], &[255, 255]].concat(),
            100,
        ),
        (
            [&[19, 0, 0, 0, 110, 7, 0], &[0; 8][..], &[1, 0, 255, 255]].concat(),
            100,
        ),
    ] {
        let reply = machine.client.raw(&broken, room);
        if !reply.is_empty() {
            assert!(errno(&reply, 7) > 0);
        }
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn cve_2016_9913_a_front_end_that_goes_leaves_nothing() {
    let _turn = TURN.lock();
    let rig = Rig::new();
    rig.put("file", b"data");
    let threads = || std::fs::read_dir("/proc/self/task").expect("procfs").count();
    drop(rig.boot(Vmm::Qemu));
    std::thread::sleep(std::time::Duration::from_millis(100));
    let idle = (open_descriptors(), threads());
    for vmm in Vmm::ALL {
        let mut machine = rig.boot(vmm);
        for fid in (10..60).step_by(3) {
            let client = &mut machine.client;
            client.walk_all(0, fid, &["file"]).expect("walk");
            client.lopen(fid, P9_DOTL_RDWR).expect("open");
            client.walk_all(0, fid + 1, &["file"]).expect("walk");
            client
                .xattrcreate(fid + 1, "user.x", 500, 0)
                .expect("xattrcreate");
            client.clone_fid(0, fid + 2).expect("clone");
            let name = format!("new{fid}-{vmm:?}");
            client
                .lcreate(fid + 2, name, P9_DOTL_RDWR, 0o644, gid())
                .expect("create");
            client.fsync(fid, 0).expect("fsync");
        }
        drop(machine);
        until("its descriptors and threads go", || {
            (open_descriptors(), threads()) == idle
        });
    }
}
