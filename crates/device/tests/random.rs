//! Random messages in random chains: every one is answered or completed with nothing, and nothing gets out of the
//! share. The seed is printed when a test fails.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{Rig, assert_alive, link, memory, submit};
use testkit::ring::{INDIRECT, NEXT, WRITE};
use testkit::scenario::Random;
use testkit::{Descriptor, Machine, MachineOptions, RingOptions, Vmm};
use wire::*;

fn machine(rig: &Rig) -> Machine {
    rig.boot(Vmm::Qemu)
}

fn fid(random: &mut Random) -> u32 {
    match random.below(20) {
        0 => random.next() as u32,
        _ => random.below(8) as u32,
    }
}

fn number(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => random.next(),
        1 => u64::MAX - random.below(10) as u64,
        2 => random.below(1 << 20) as u64,
        _ => random.below(8) as u64,
    }
}

fn name(random: &mut Random) -> &'static [u8] {
    const NAMES: [&[u8]; 14] = [
        b"a",
        b"b",
        b"c",
        b"dir",
        b"file",
        b"file",
        b"out",
        b"up",
        b"..",
        b".",
        b"../outside",
        b"/",
        b"",
        b"user.x",
    ];
    NAMES[random.below(NAMES.len())]
}

/// A message with random fields, most of them such that it could succeed.
fn valid_message(random: &mut Random, buf: &mut [u8]) -> usize {
    let r = random;
    let tag = r.below(70) as u16;
    let (a, b) = (fid(r), fid(r));
    let (x, y) = (number(r), number(r));
    let (m, n) = (name(r), name(r));
    let (p, q) = (number(r) as u32, number(r) as u32);
    let names: [&[u8]; 3] = [name(r), name(r), name(r)];
    let message: Tmessage<'_> = match r.below(30) {
        0 => Tstatfs { fid: a }.into(),
        1 | 2 => Tlopen { fid: a, flags: p }.into(),
        3 => Tlcreate {
            fid: a,
            name: m,
            flags: p,
            mode: q,
            gid: 0,
        }
        .into(),
        4 => Tsymlink {
            dfid: a,
            name: m,
            target: n,
            gid: 0,
        }
        .into(),
        5 => Tmknod {
            dfid: a,
            name: m,
            mode: p,
            major: 0,
            minor: q,
            gid: 0,
        }
        .into(),
        6 => Trename {
            fid: a,
            dfid: b,
            name: m,
        }
        .into(),
        7 => Treadlink { fid: a }.into(),
        8 => Tgetattr { fid: a, mask: x }.into(),
        9 => Tsetattr {
            fid: a,
            valid: p,
            mode: q,
            size: x & 0xff_ffff,
            atime_nsec: y,
            ..Tsetattr::default()
        }
        .into(),
        10 => Txattrwalk {
            fid: a,
            newfid: b,
            name: m,
        }
        .into(),
        11 => Txattrcreate {
            fid: a,
            name: m,
            size: x,
            flags: q,
        }
        .into(),
        12 => Treaddir {
            fid: a,
            offset: x,
            count: q,
        }
        .into(),
        13 => Tfsync { fid: a, datasync: p }.into(),
        14 => Tlock {
            fid: a,
            kind: p as u8,
            flags: q,
            start: x,
            length: y,
            proc_id: 1,
            client_id: m,
        }
        .into(),
        15 => Tgetlock {
            fid: a,
            kind: p as u8,
            start: x,
            length: y,
            proc_id: 1,
            client_id: m,
        }
        .into(),
        16 => Tlink {
            dfid: a,
            fid: b,
            name: m,
        }
        .into(),
        17 => Tmkdir {
            dfid: a,
            name: m,
            mode: p,
            gid: 0,
        }
        .into(),
        18 => Trenameat {
            olddirfid: a,
            oldname: m,
            newdirfid: b,
            newname: n,
        }
        .into(),
        19 => Tunlinkat {
            dirfd: a,
            name: m,
            flags: if p % 2 == 0 { 0 } else { P9_DOTL_AT_REMOVEDIR },
        }
        .into(),
        20 => Tattach {
            fid: a,
            afid: NOFID,
            uname: b"",
            aname: b"",
            n_uname: p,
        }
        .into(),
        21 => Tflush {
            oldtag: r.below(70) as u16,
        }
        .into(),
        22..=24 => Twalk {
            fid: a,
            newfid: b,
            names: Names::new(&names[..r.below(4)]),
        }
        .into(),
        25 => Tread {
            fid: a,
            offset: x,
            count: q,
        }
        .into(),
        26 | 27 => Twrite {
            fid: a,
            offset: x & 0xff_ffff,
            count: 8,
            data: b"payload!",
        }
        .into(),
        28 => Tclunk { fid: a }.into(),
        _ => Tremove { fid: a }.into(),
    };
    message.encode(tag, buf).expect("it fits")
}

/// A message, one in four of them damaged.
fn random_message(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    let len = valid_message(random, &mut bytes);
    bytes.truncate(len);
    match random.below(16) {
        0 => {
            let at = random.below(len);
            bytes[at] = random.next() as u8;
        }
        1 => bytes.truncate(1 + random.below(len)),
        2 => {
            let size = random.next() as u32;
            bytes[..4].copy_from_slice(&size.to_le_bytes());
        }
        3 => {
            for _ in 0..4 {
                let at = 7 + random.below(len - 6);
                bytes.insert(at.min(bytes.len()), random.next() as u8);
            }
        }
        _ => (),
    }
    bytes
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
            let message = random_message(&mut random);
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
        let message = random_message(&mut random);
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
