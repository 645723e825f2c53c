//! Random messages in random chains: every one is answered or completed with nothing, and nothing gets out of the
//! share. The seed is printed when a test fails.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{Rig, assert_alive, link, memory, submit};
use testkit::random::{Random, damaged_message};
use testkit::ring::{INDIRECT, NEXT, WRITE};
use testkit::{Descriptor, Machine, MachineOptions, RingOptions, Vmm};
use wire::*;

fn machine(rig: &Rig) -> Machine {
    rig.boot(Vmm::Qemu)
}

#[test]
fn random_messages_are_all_answered() {
    let seed = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let rig = Rig::new();
    rig.put("file", b"content");
    let outside = rig.outside();
    let symlink = |target: &std::path::Path, name: &str| {
        std::os::unix::fs::symlink(target, rig.share().join(name)).expect("symlink");
    };
    symlink(&outside, "out");
    symlink(std::path::Path::new(".."), "up");
    let before = std::fs::metadata(outside.join("file")).expect("stat");
    let mut machine = machine(&rig);
    let mut answers = std::collections::BTreeSet::<u8>::new();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(1);
    while std::time::Instant::now() < end {
        let mut tokens = Vec::new();
        for _ in 0..1 + random.below(20) {
            let message = damaged_message(&mut random);
            let capacity = [0, 5, 11, 12, 64, 160, 4096, 8192][random.below(8)];
            tokens.push(machine.client.transport().stage(&message, &[], capacity));
        }
        machine.ring().notify();
        for token in tokens {
            // A blocking lock may wait for its turn: nobody holds one against it but other fids of the same
            // client, which share its locks.
            let reply = machine.client.transport().wait(token);
            assert!(!reply.windows(6).any(|bytes| bytes == b"secret"));
            answers.extend(reply.get(4));
        }
        if random.below(10) == 0 {
            // So that not all of it ends on fids that do not exist.
            machine.client.version(1 << 16).expect("version");
            for fid in 0..3 {
                machine.client.attach(fid, NONUNAME).expect("attach");
            }
            machine.client.walk(0, 3, &["file"]).ok();
            machine.client.lopen(3, P9_DOTL_RDWR).ok();
        }
    }
    // Else it would be a test of refusals alone.
    println!("answers {answers:?}");
    assert!(answers.len() > 15, "{answers:?}");
    // It may have taken our own right to write there, too.
    std::fs::set_permissions(rig.share(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    machine.client.version(8192).expect("version");
    machine.client.attach(0, NONUNAME).expect("attach");
    assert_alive(&mut machine, &rig.share());
    // Nothing got out of the share.
    let names: Vec<_> = std::fs::read_dir(&outside)
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(names, ["file"]);
    let after = std::fs::metadata(outside.join("file")).expect("stat");
    let attributes = |stat: &std::fs::Metadata| (stat.mode(), stat.uid(), stat.nlink(), stat.ctime_nsec());
    assert_eq!(attributes(&before), attributes(&after));
    assert_eq!(std::fs::read(outside.join("file")).expect("read"), b"secret");
    let mut beside: Vec<_> = std::fs::read_dir(outside.parent().expect("a parent"))
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    beside.sort();
    assert_eq!(beside, ["outside", "share", "socket"]);
}

#[test]
fn random_chains_are_all_completed() {
    let seed = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let rig = Rig::new();
    let mut machine = rig.boot_with(&MachineOptions {
        ring: RingOptions {
            size: 64,
            ..RingOptions::default()
        },
        ..MachineOptions::new(Vmm::CloudHypervisor)
    });
    // All that is read or written is here, so that the ring itself is not: a device that is told to write into
    // its own ring does as it is told.
    let area = memory(&machine).alloc(1 << 20, 4096);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(1);
    while std::time::Instant::now() < end {
        let message = damaged_message(&mut random);
        area.write(0, &message);
        for at in 0..8 {
            let entry = random_descriptor(&mut random, area.gpa(), 8);
            area.write(65_536 + 16 * at, &entry.to_bytes());
        }
        let count = 1 + random.below(5);
        let chain: Vec<Descriptor> = (0..count)
            .map(|at| match random.below(8) {
                0 => link(area.gpa() + 65_536, 16 * random.below(10) as u32, INDIRECT, 0),
                1 => random_descriptor(&mut random, area.gpa(), 64),
                _ if at == 0 => link(area.gpa(), message.len() as u32, NEXT, 1),
                _ => link(
                    area.gpa() + 131_072 * at as u64,
                    random.below(10_000) as u32,
                    if at + 1 < count { WRITE | NEXT } else { WRITE },
                    at as u16 + 1,
                ),
            })
            .collect();
        submit(&mut machine, &chain);
    }
    machine.client.version(8192).expect("version");
    machine.client.attach(0, NONUNAME).expect("attach");
    assert_alive(&mut machine, &rig.share());
}

fn random_descriptor(random: &mut Random, base: u64, indices: usize) -> Descriptor {
    let addr = match random.below(8) {
        0 => random.next() | 1 << 40,
        _ => base + 131_072 + random.below(800_000) as u64,
    };
    let len = match random.below(8) {
        0 => random.next() as u32 | 1 << 31,
        _ => random.below(5000) as u32,
    };
    link(addr, len, random.below(8) as u16, random.below(indices) as u16)
}
