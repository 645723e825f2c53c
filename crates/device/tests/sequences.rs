//! Bring-up, stop and go, and departure, in the order of messages of each front-end.

mod common;

use std::time::Duration;

use common::{Rig, TAG, assert_alive};
use testkit::frontend::{EVENT_IDX, INDIRECT_DESC, MOUNT_TAG, PROTOCOL_FEATURES, VERSION_1};
use testkit::vhost_user::{Code, protocol};
use testkit::{Errno, Frontend, GuestMemory, Machine, MachineOptions, Pages, RingOptions, Vmm, scenario};

#[test]
fn a_share_works_from_end_to_end_under_each_front_end() {
    for vmm in Vmm::ALL {
        for pages in [Pages::Scattered, Pages::Adjacent] {
            let rig = Rig::new();
            let mut machine = rig.boot_with(&MachineOptions {
                pages,
                ..MachineOptions::new(vmm)
            });
            scenario::end_to_end(&mut machine.client, &rig.share());
        }
    }
}

#[test]
fn only_what_is_supported_is_offered() {
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    let frontend = Frontend::connect(&rig.socket(), Vmm::Qemu, &memory).expect("connect");
    let needed = MOUNT_TAG | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES | VERSION_1;
    assert_eq!(frontend.features() & needed, needed);
    let (packed, access_platform) = (1 << 34, 1 << 33);
    assert_eq!(frontend.features() & (packed | access_platform), 0);
    for feature in [
        protocol::CONFIG,
        protocol::MQ,
        protocol::REPLY_ACK,
        protocol::CONFIGURE_MEM_SLOTS,
    ] {
        assert!(frontend.has(feature), "{feature:#x}");
    }
    // Each of these makes a front-end send messages that would end the connection.
    let inband_notifications = 1 << 14;
    for feature in [protocol::STATUS, protocol::INFLIGHT_SHMFD, inband_notifications] {
        assert!(!frontend.has(feature), "{feature:#x}");
    }
    assert_eq!(
        frontend
            .socket()
            .ask_u64(Code::GetQueueNum, false)
            .expect("reply"),
        1
    );
    let slots = frontend
        .socket()
        .ask_u64(Code::GetMaxMemSlots, false)
        .expect("reply");
    assert!(slots >= 8, "{slots} slots");
}

#[test]
fn the_configuration_space_has_exactly_the_bytes_asked_for() {
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    let mut whole = vec![0; 256];
    whole[0] = TAG.len() as u8;
    whole[2..2 + TAG.len()].copy_from_slice(TAG);
    for vmm in Vmm::ALL {
        let frontend = Frontend::connect(&rig.socket(), vmm, &memory).expect("connect");
        assert_eq!(frontend.tag().expect("tag"), TAG);
        for offset in [0, 1, 2, 3, 11, 12, 13, 100, 255] {
            for len in [1, 2, 3, 4, 8, 12, 64, 156, 256] {
                if offset + len <= 256 {
                    let got = frontend.config(offset, len).expect("config");
                    let expected = &whole[offset as usize..][..len as usize];
                    assert_eq!(got, expected, "{vmm:?}: {len} bytes at {offset}");
                }
            }
        }
        // Beyond the space: zeroes or a refusal, but the device must be there for the next one.
        drop(frontend.config(4000, 8));
    }
    let frontend = Frontend::connect(&rig.socket(), Vmm::Qemu, &memory).expect("connect");
    assert_eq!(frontend.tag().expect("tag"), TAG);
}

#[test]
fn the_configuration_space_cannot_be_written() {
    let rig = Rig::new();
    let mut machine = rig.boot(Vmm::Qemu);
    let body = testkit::vhost_user::Body::new().u32(2).u32(1).u32(0).bytes(b"X");
    drop(machine.frontend.socket().tell(Code::SetConfig, body, &[], true));
    assert_eq!(machine.frontend.tag().expect("tag"), TAG);
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn fids_survive_stop_and_cont() {
    for vmm in Vmm::STOPPING {
        let rig = Rig::new();
        rig.put("file", b"content");
        let mut machine = rig.boot(vmm);
        machine.client.walk_all(0, 1, &["file"]).expect("walk");
        machine.client.lopen(1, wire::P9_DOTL_RDONLY).expect("open");
        std::fs::remove_file(rig.share().join("file")).expect("unlink");
        for _ in 0..3 {
            let base = machine.stop().expect("stop");
            assert_eq!(
                base,
                machine.ring().available_index(),
                "{vmm:?}: where it stopped"
            );
            machine.cont(base).expect("cont");
            assert_eq!(machine.client.read(1, 0, 100).expect("read"), b"content");
        }
    }
}

#[test]
fn fids_survive_pause_and_resume_and_requests_wait_for_it() {
    let rig = Rig::new();
    rig.put("file", b"content");
    let mut machine = rig.boot(Vmm::CloudHypervisor);
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, wire::P9_DOTL_RDONLY).expect("open");
    machine.frontend.pause().expect("pause");
    let message = common::frame(
        wire::Tread {
            fid: 1,
            offset: 0,
            count: 100,
        },
        7,
    );
    let token = machine.client.transport().send(&message, &[], 111);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.client.transport().try_reply(token), None);
    machine.frontend.resume().expect("resume");
    assert_eq!(machine.client.transport().wait(token).len(), 11 + 7);
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_guest_may_reset_the_queue_and_mount_again() {
    for vmm in Vmm::ALL {
        let rig = Rig::new();
        let mut machine = rig.boot(vmm);
        machine
            .client
            .mkdir(0, "one", 0o755, scenario::gid())
            .expect("mkdir");
        machine.reset_queue().expect("reset");
        machine.client.version(8192).expect("version");
        assert!(machine.client.stat(0).is_err(), "Tversion drops all fids");
        machine.client.attach(0, wire::NONUNAME).expect("attach");
        machine.client.walk_all(0, 1, &["one"]).expect("walk");
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn a_device_reset_drops_the_fids() {
    let rig = Rig::new();
    let mut machine = rig.boot(Vmm::Qemu);
    if !machine.frontend.has(protocol::RESET_DEVICE) {
        return;
    }
    machine.stop().expect("stop");
    machine.frontend.reset_device().expect("reset");
    machine.client.transport().restart();
    let ring = &mut machine.client.transport().ring;
    machine.frontend.start(ring).expect("start");
    assert!(machine.client.stat(0).is_err());
    machine.client.version(8192).expect("version");
    machine.client.attach(0, wire::NONUNAME).expect("attach");
    assert_alive(&mut machine, &rig.share());
}

/// That many Tgetattr, some in flight at a time.
fn getattrs(machine: &mut Machine, count: usize) {
    let message = common::frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
    let transport = machine.client.transport();
    // A chain in the ring itself takes two descriptors.
    let batch = (transport.ring.free_slots() / 2).clamp(1, 64);
    let mut left = count;
    while left > 0 {
        let now = left.min(batch);
        let tokens: Vec<u16> = (0..now).map(|_| transport.stage(&message, &[], 4096)).collect();
        transport.ring.notify();
        for token in tokens {
            assert_eq!(transport.wait(token)[4], wire::RGETATTR);
        }
        left -= now;
    }
}

#[test]
fn every_ring_that_can_be_negotiated_works() {
    let rig = Rig::new();
    for event_idx in [false, true] {
        for (size, indirect) in [
            (1, 128),
            (2, 0),
            (2, 128),
            (64, 0),
            (64, 128),
            (128, 128),
            (256, 0),
            (1024, 128),
            (1024, 0),
            (32768, 8),
        ] {
            let mut options = MachineOptions::new(Vmm::Crosvm);
            options.ring = RingOptions {
                size,
                indirect,
                event_idx,
            };
            if indirect == 0 {
                // What fits into the ring itself, one descriptor each way at the least.
                options.payload = if size < 16 { 0 } else { 32 << 10 };
                options.msize = 4096;
            } else if indirect == 8 {
                options.payload = 16 << 10;
                options.msize = 8192;
            }
            let mut machine = rig.boot_with(&options);
            // Once around, whatever the size.
            getattrs(&mut machine, usize::from(size) + 70);
            if size >= 64 || indirect == 128 {
                scenario::end_to_end(&mut machine.client, &rig.share());
            } else {
                assert_alive(&mut machine, &rig.share());
            }
        }
    }
}

#[test]
fn the_driver_is_signalled_when_it_wants_to_be() {
    for event_idx in [false, true] {
        let rig = Rig::new();
        let mut options = MachineOptions::new(Vmm::Qemu);
        options.ring.event_idx = event_idx;
        let mut machine = rig.boot_with(&options);
        while machine.frontend.wait_call(Duration::from_millis(20)) {}
        machine.client.stat(0).expect("getattr");
        assert!(
            !machine.frontend.wait_call(Duration::from_millis(20)),
            "an interrupt that nobody asked for"
        );
        for _ in 0..10 {
            machine.ring().set_interrupts(true);
            let message = common::frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
            let token = machine.client.transport().send(&message, &[], 4096);
            assert!(machine.frontend.wait_call(testkit::vhost_user::PATIENCE));
            assert!(machine.client.transport().try_reply(token).is_some());
        }
    }
}

#[test]
fn the_call_descriptor_may_change_while_requests_are_in_flight() {
    for vmm in Vmm::ALL {
        let rig = Rig::new();
        let mut machine = rig.boot(vmm);
        let message = common::frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
        for _ in 0..50 {
            let transport = machine.client.transport();
            let tokens: Vec<u16> = (0..16).map(|_| transport.send(&message, &[], 4096)).collect();
            machine.frontend.replace_call().expect("call");
            for token in tokens {
                machine.client.transport().wait(token);
            }
        }
        machine.frontend.fence().expect("fence");
        machine.ring().set_interrupts(true);
        machine.client.transport().send(&message, &[], 4096);
        assert!(machine.frontend.wait_call(testkit::vhost_user::PATIENCE));
    }
}

#[test]
fn no_request_is_missed_whether_the_device_polls_or_sleeps() {
    for event_idx in [false, true] {
        let rig = Rig::new();
        let mut options = MachineOptions::new(Vmm::Qemu);
        options.ring.event_idx = event_idx;
        let mut machine = rig.boot_with(&options);
        let mut random = scenario::Random::new(23);
        for _ in 0..3000 {
            // The device looks for up to 50 microseconds before it sleeps: hit both, and the moment between.
            let pause = Duration::from_nanos(random.below(120_000) as u64);
            let end = std::time::Instant::now() + pause;
            while std::time::Instant::now() < end {
                std::hint::spin_loop();
            }
            machine.client.stat(0).expect("getattr");
        }
    }
}

#[test]
fn the_rings_indices_may_wrap() {
    for event_idx in [false, true] {
        let rig = Rig::new();
        let mut options = MachineOptions::new(Vmm::Crosvm);
        options.ring.event_idx = event_idx;
        let mut machine = rig.boot_with(&options);
        let message = common::frame(wire::Tgetattr { fid: 0, mask: 1 }, 1);
        getattrs(&mut machine, 0xffa0);
        // Over the end with one interrupt each.
        while machine.frontend.wait_call(Duration::ZERO) {}
        for _ in 0..200 {
            machine.ring().set_interrupts(true);
            let token = machine.client.transport().send(&message, &[], 4096);
            assert!(machine.frontend.wait_call(testkit::vhost_user::PATIENCE));
            assert!(machine.client.transport().try_reply(token).is_some());
        }
        let base = machine.stop().expect("stop");
        assert_eq!(base, machine.ring().available_index());
        machine.cont(base).expect("cont");
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn the_next_front_end_finds_a_fresh_session() {
    let rig = Rig::new();
    for round in 0..4 {
        for vmm in Vmm::ALL {
            let mut machine = rig.boot(vmm);
            assert!(machine.client.stat(77).is_err(), "a fid of the last one");
            machine.client.clone_fid(0, 77).expect("clone");
            assert_alive(&mut machine, &rig.share());
            if round % 2 == 0 {
                machine.stop().expect("stop");
            }
        }
    }
}

#[test]
fn a_front_end_may_leave_at_any_message() {
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    drop(testkit::vhost_user::Socket::connect(&rig.socket()).expect("connect"));
    let socket = testkit::vhost_user::Socket::connect(&rig.socket()).expect("connect");
    // Half a header.
    use std::io::Write;
    socket.stream().write_all(&[1, 0, 0, 0, 1]).expect("send");
    drop(socket);
    drop(Frontend::connect(&rig.socket(), Vmm::Qemu, &memory).expect("connect"));
    // A message that does not exist, and one that is not supported: the connection ends, the device does not.
    for code in [99, 6, 40] {
        let socket = testkit::vhost_user::Socket::connect(&rig.socket()).expect("connect");
        socket.send_raw(code, 0, &[0; 8], &[]).expect("send");
        assert!(socket.closed_by_peer(), "message {code}");
    }
    let mut machine = rig.boot(Vmm::Qemu);
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_front_end_may_leave_in_the_middle_of_requests() {
    let rig = Rig::new();
    rig.put("file", &scenario::pattern(4 << 20, 3));
    for vmm in Vmm::ALL {
        for _ in 0..5 {
            let mut machine = rig.boot(vmm);
            machine.client.walk_all(0, 1, &["file"]).expect("walk");
            machine.client.lopen(1, wire::P9_DOTL_RDONLY).expect("open");
            for at in 0..64 {
                let message = common::frame(
                    wire::Tread {
                        fid: 1,
                        offset: u64::from(at) << 16,
                        count: 400_000,
                    },
                    at,
                );
                machine.client.transport().stage(&message, &[], 400_011);
            }
            machine.ring().notify();
        }
    }
    let mut machine = rig.boot(Vmm::Qemu);
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_vring_of_an_impossible_size_is_survived() {
    let rig = Rig::new();
    let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memory");
    for size in [0, 3, 65_536, u32::MAX] {
        let frontend = Frontend::connect(&rig.socket(), Vmm::Qemu, &memory).expect("connect");
        drop(frontend.socket().vring_state(Code::SetVringNum, size, true));
    }
    let mut machine = rig.boot(Vmm::Qemu);
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_walk_from_an_unknown_fid_is_an_error_of_its_own() {
    let rig = Rig::new();
    let mut machine: Machine = rig.boot(Vmm::Qemu);
    assert!(matches!(
        machine.client.walk(55, 56, &["x"]),
        Err(Errno::EBADF | Errno::ENOENT)
    ));
}
