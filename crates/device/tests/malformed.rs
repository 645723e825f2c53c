//! What no driver should put into a ring: each chain is answered or completed with length 0, and the device works on.

mod common;

use common::{Rig, assert_alive, errno, frame, link, memory, read_of, submit};
use testkit::ring::{INDIRECT, NEXT, WRITE};
use testkit::{Descriptor, Machine, MachineOptions, Piece, Vmm};
use wire::*;

fn machine(rig: &Rig) -> Machine {
    rig.boot(Vmm::Qemu)
}

/// Sends `message` in one piece with a reply buffer of `capacity` bytes; gives the reply.
fn send(machine: &mut Machine, message: &[u8], capacity: usize) -> Vec<u8> {
    machine.client.raw(message, capacity)
}

#[test]
fn broken_chains_are_completed_with_nothing() {
    let rig = Rig::new();
    let mut machine = machine(&rig);
    let memory = memory(&machine);
    let message = memory.alloc(4096, 4096);
    message.write(0, &frame(Tgetattr { fid: 0, mask: 1 }, 3));
    let reply = memory.alloc(4096, 4096);
    let (t, r) = (message.gpa(), reply.gpa());
    let nowhere = 0xdead_0000_0000;
    let chains: &[(&str, &[Descriptor])] = &[
        ("nothing at all", &[link(t, 0, 0, 0)]),
        ("nothing to read", &[link(r, 4096, WRITE, 0)]),
        ("nothing to write", &[link(t, 19, 0, 0)]),
        ("a loop of one", &[link(t, 19, NEXT, 0)]),
        (
            "a loop of two",
            &[link(t, 19, NEXT, 1), link(r, 64, WRITE | NEXT, 0)],
        ),
        ("a next beyond the table", &[link(t, 19, NEXT, 60_000)]),
        (
            "writable first",
            &[link(r, 4096, WRITE | NEXT, 1), link(t, 19, 0, 0)],
        ),
        (
            "readable after writable",
            &[
                link(t, 7, NEXT, 1),
                link(r, 64, WRITE | NEXT, 2),
                link(t, 12, 0, 0),
            ],
        ),
        (
            "read from nowhere",
            &[link(nowhere, 19, NEXT, 1), link(r, 64, WRITE, 0)],
        ),
        (
            "write to nowhere",
            &[link(t, 19, NEXT, 1), link(nowhere, 64, WRITE, 0)],
        ),
        (
            "to the end of the world",
            &[link(t, 19, NEXT, 1), link(u64::MAX - 3, 64, WRITE, 0)],
        ),
        (
            "more than there is",
            &[link(t, 19, NEXT, 1), link(r, u32::MAX, WRITE, 0)],
        ),
        (
            "between the regions",
            &[link(t, 19, NEXT, 1), link((64 << 20) - 8, 64, WRITE, 0)],
        ),
    ];
    for (what, chain) in chains {
        let len = submit(&mut machine, chain);
        assert_eq!(len, 0, "{what}");
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn broken_indirect_tables_are_completed_with_nothing() {
    let rig = Rig::new();
    let mut machine = machine(&rig);
    let memory = memory(&machine);
    let message = memory.alloc(4096, 4096);
    message.write(0, &frame(Tgetattr { fid: 0, mask: 1 }, 3));
    let reply = memory.alloc(4096, 4096);
    let table = memory.alloc(4096, 4096);
    let (t, r, i) = (message.gpa(), reply.gpa(), table.gpa());
    let cases: &[(&str, Descriptor, &[Descriptor])] = &[
        ("an empty table", link(i, 0, INDIRECT, 0), &[]),
        ("half a descriptor", link(i, 8, INDIRECT, 0), &[]),
        ("one and a half", link(i, 24, INDIRECT, 0), &[link(t, 19, 0, 0)]),
        ("a table nowhere", link(0xdead_0000_0000, 32, INDIRECT, 0), &[]),
        (
            "a huge table",
            link(i, u32::MAX - 15, INDIRECT, 0),
            &[link(t, 19, 0, 0)],
        ),
        (
            "a table in a table",
            link(i, 32, INDIRECT, 0),
            &[link(t, 19, NEXT, 1), link(i, 32, INDIRECT, 0)],
        ),
        (
            "a next beyond the table",
            link(i, 32, INDIRECT, 0),
            &[link(t, 19, NEXT, 2), link(r, 64, WRITE, 0)],
        ),
        (
            "a loop",
            link(i, 32, INDIRECT, 0),
            &[link(t, 19, NEXT, 1), link(r, 64, WRITE | NEXT, 1)],
        ),
        (
            "writable first",
            link(i, 32, INDIRECT, 0),
            &[link(r, 64, WRITE | NEXT, 1), link(t, 19, 0, 0)],
        ),
    ];
    for (what, head, entries) in cases {
        for (at, entry) in entries.iter().enumerate() {
            table.write(16 * at, &entry.to_bytes());
        }
        assert_eq!(submit(&mut machine, &[*head]), 0, "{what}");
        assert_alive(&mut machine, &rig.share());
    }
    // The specification forbids it; the device may serve it or not, but it must answer.
    table.write(0, &link(t, 19, NEXT, 1).to_bytes());
    table.write(16, &link(r, 64, WRITE, 0).to_bytes());
    submit(
        &mut machine,
        &[link(i, 32, INDIRECT | NEXT, 1), link(r, 64, WRITE, 0)],
    );
    assert_alive(&mut machine, &rig.share());
}

/// What a guest does when its device no longer works: it resets it.
fn reset(machine: &mut Machine) {
    machine.reset_queue().expect("reset");
    machine.client.version(8192).expect("version");
    machine.client.attach(0, NONUNAME).expect("attach");
}

#[test]
fn an_available_entry_beyond_the_ring_is_survived() {
    let rig = Rig::new();
    let mut machine = machine(&rig);
    for head in [128, 60_000, 0xffff] {
        let ring = machine.ring();
        let used = ring.used_index();
        ring.push_available(head);
        ring.notify();
        common::until("the entry is taken", || ring.used_index() != used);
        let [_, _, area] = ring.parts();
        let at = 4 + 8 * usize::from(used & (ring.options().size - 1));
        assert_eq!(area.get(at, 8), [u32::from(head).to_le_bytes(), [0; 4]].concat());
        reset(&mut machine);
        assert_alive(&mut machine, &rig.share());
    }
}

#[test]
fn an_available_index_that_jumps_is_survived() {
    for event_idx in [false, true] {
        let rig = Rig::new();
        let mut options = MachineOptions::new(Vmm::Qemu);
        options.ring.event_idx = event_idx;
        let mut machine = rig.boot_with(&options);
        for wrong in [129, 1000, 0x8000, 0xffff] {
            let ring = machine.ring();
            ring.write_available_index(ring.available_index().wrapping_add(wrong));
            ring.kick();
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(
                ring.used_index(),
                ring.seen_index(),
                "{wrong} more: something was completed"
            );
            reset(&mut machine);
            assert_alive(&mut machine, &rig.share());
        }
    }
}

#[test]
fn broken_messages_are_answered() {
    let rig = Rig::new();
    rig.put("file", b"content");
    let mut machine = machine(&rig);
    let good = frame(Tgetattr { fid: 0, mask: 1 }, 9);
    // Shorter than a header: there is no tag to answer to.
    for len in 1..7 {
        let reply = send(&mut machine, &good[..len], 4096);
        assert!(reply.is_empty() || reply[4] == RLERROR, "{len} bytes");
    }
    // Shorter than it says.
    for len in 7..good.len() {
        let reply = send(&mut machine, &good[..len], 4096);
        assert_ne!(errno(&reply, 9), 0, "{len} bytes");
    }
    // A size that is less than a header, less than the message, or beyond all there is.
    for (size, refused) in [
        (0u32, true),
        (6, true),
        (7, true),
        (18, true),
        (20, true),
        (1 << 20, true),
        (u32::MAX, true),
        (19, false),
    ] {
        let mut lying = good.clone();
        lying[..4].copy_from_slice(&size.to_le_bytes());
        let reply = send(&mut machine, &lying, 4096);
        assert_eq!(reply[4] == RLERROR, refused, "size {size}");
        assert_eq!(reply[5..7], [9, 0], "size {size}");
    }
    // More bytes than the size says, and more in the message than its fields.
    let reply = send(&mut machine, &[&good[..], &[0xff; 100]].concat(), 4096);
    assert_eq!(reply[4], RGETATTR);
    // Types that do not exist, R-messages, the old dialect's.
    for kind in [0, 1, 6, 7, 25, 98, 101, 102, 112, 114, 124, 126, 255] {
        let mut unknown = good.clone();
        unknown[4] = kind;
        let reply = send(&mut machine, &unknown, 4096);
        assert_eq!(errno(&reply, 9), libc::EOPNOTSUPP, "type {kind}");
    }
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn broken_names_and_walks_are_answered() {
    let rig = Rig::new();
    let mut machine = machine(&rig);
    // 17 names, more names than bytes, a string beyond the message.
    for names in [
        &[&17u16.to_le_bytes()[..], &[0; 34]].concat()[..],
        &[&3u16.to_le_bytes()[..], &[1, 0, b'a']].concat()[..],
        &[&1u16.to_le_bytes()[..], &[0xff, 0xff, b'a']].concat()[..],
        &[0xff, 0xff],
    ] {
        let mut message = vec![0, 0, 0, 0, TWALK, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        message.extend_from_slice(names);
        let size = message.len() as u32;
        message[..4].copy_from_slice(&size.to_le_bytes());
        let reply = send(&mut machine, &message, 4096);
        assert_ne!(errno(&reply, 5), 0);
    }
    let long = [b'n'; 256];
    let bad: [&[u8]; 7] = [b"", b"/", b"a/b", b"/etc", b"a\0b", b"../x", &long];
    for name in bad {
        assert!(machine.client.walk(0, 1, &[name]).is_err(), "{name:?}");
        assert!(machine.client.mkdir(0, name, 0o755, 0).is_err(), "{name:?}");
        assert!(machine.client.symlink(0, name, "x", 0).is_err(), "{name:?}");
        assert!(machine.client.unlinkat(0, name, 0).is_err(), "{name:?}");
        assert!(machine.client.renameat(0, "a", 0, name).is_err(), "{name:?}");
    }
    for name in [".", ".."] {
        assert!(machine.client.mkdir(0, name, 0o755, 0).is_err());
        assert!(machine.client.unlinkat(0, name, P9_DOTL_AT_REMOVEDIR).is_err());
    }
    // ".." of the root is the root.
    let root = machine.client.stat(0).expect("getattr").qid;
    if let Ok(qids) = machine.client.walk(0, 1, &["..", ".."]) {
        assert_eq!(qids, [root, root]);
    }
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_message_longer_than_any_honest_one_is_answered() {
    let rig = Rig::new();
    let mut machine = machine(&rig);
    let target = vec![b't'; 40_000];
    let symlink = Tsymlink {
        dfid: 0,
        name: b"long",
        target: &target,
        gid: 0,
    };
    let reply = send(&mut machine, &frame(symlink, 4), 4096);
    assert_ne!(errno(&reply, 4), 0);
    let mut many = frame(Tclunk { fid: 77 }, 4);
    many.resize(60_000, 0);
    many[..4].copy_from_slice(&60_000u32.to_le_bytes());
    let reply = send(&mut machine, &many, 4096);
    assert_ne!(errno(&reply, 4), 0);
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn no_reply_is_longer_than_its_buffer() {
    let rig = Rig::new();
    rig.put("file", &[b'x'; 100_000]);
    std::os::unix::fs::symlink("t".repeat(300), rig.share().join("link")).expect("symlink");
    let mut machine = machine(&rig);
    let client = &mut machine.client;
    client.walk_all(0, 1, &["file"]).expect("walk");
    client.lopen(1, P9_DOTL_RDONLY).expect("open");
    client.walk_all(0, 2, &["link"]).expect("walk");
    client.clone_fid(0, 3).expect("clone");
    client.lopen(3, P9_DOTL_RDONLY).expect("open");
    let (offset, count) = (0, 4096);
    let messages: [(&str, Tmessage<'_>); 7] = [
        ("getattr", Tgetattr { fid: 0, mask: 1 }.into()),
        (
            "read",
            Tread {
                fid: 1,
                offset,
                count,
            }
            .into(),
        ),
        (
            "readdir",
            Treaddir {
                fid: 3,
                offset,
                count,
            }
            .into(),
        ),
        ("readlink", Treadlink { fid: 2 }.into()),
        ("statfs", Tstatfs { fid: 0 }.into()),
        ("flush", Tflush { oldtag: 99 }.into()),
        ("fsync", Tfsync { fid: 1, datasync: 0 }.into()),
    ];
    for (what, message) in messages {
        for capacity in 0..30 {
            // The transport checks the used length against the buffer.
            let reply = send(&mut machine, &frame(message, 6), capacity);
            assert!(
                reply.is_empty() || reply[5..7] == [6, 0],
                "{what} into {capacity} bytes: {reply:?}"
            );
            if capacity >= 11 {
                assert!(!reply.is_empty(), "{what} into {capacity} bytes: an Rlerror fits");
            }
            if capacity < 7 {
                assert!(reply.is_empty(), "{what} into {capacity} bytes");
            }
        }
    }
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn what_lies_behind_a_reply_buffer_is_not_touched() {
    let rig = Rig::new();
    rig.put("file", &[b'x'; 100_000]);
    let mut machine = machine(&rig);
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, P9_DOTL_RDONLY).expect("open");
    let memory = memory(&machine);
    let message = memory.alloc(4096, 4096);
    let area = memory.alloc(3 * 4096, 4096);
    for (capacity, count) in [(11, 4096), (12, u32::MAX), (500, 4096), (5000, 1 << 30)] {
        area.fill(0xaa);
        message.write(0, &read_of(count, 2));
        let t = Piece {
            gpa: message.gpa(),
            len: 23,
        };
        // In the middle, so that both sides are seen.
        let r = Piece {
            gpa: area.gpa() + 4096,
            len: capacity,
        };
        let ring = machine.ring();
        let token = ring.submit(&[t], &[r]).expect("room");
        let (used, len) = ring.wait_used(testkit::vhost_user::PATIENCE).expect("an answer");
        assert_eq!(used, token);
        assert!(len <= capacity);
        let before = area.get(0, 4096);
        let behind = area.get(4096 + capacity as usize, 4096 * 2 - capacity as usize);
        assert!(
            before.iter().chain(&behind).all(|&byte| byte == 0xaa),
            "{capacity} bytes"
        );
        let reply = area.get(4096, len as usize);
        match Rmessage::decode(&reply) {
            Ok((2, Rmessage::Read(read))) => assert!(read.data.iter().all(|&byte| byte == b'x')),
            Ok((2, Rmessage::Lerror(_))) => (),
            other => panic!("{other:?}"),
        }
    }
    assert_alive(&mut machine, &rig.share());
}

#[test]
fn a_write_with_less_payload_than_it_says_writes_no_more() {
    let rig = Rig::new();
    let mut machine = machine(&rig);
    let client = &mut machine.client;
    client.clone_fid(0, 1).expect("clone");
    client
        .lcreate(1, "file", P9_DOTL_RDWR, 0o644, testkit::scenario::gid())
        .expect("create");
    for (count, there) in [(100u32, 10usize), (u32::MAX, 10), (1 << 20, 3000), (5, 0)] {
        let write = Twrite {
            fid: 1,
            offset: 0,
            count,
            data: &vec![b'w'; there.min(count as usize)],
        };
        let mut bytes = vec![0; 5000];
        let len = Message::encode(&write, 8, &mut bytes).unwrap_or_else(|| {
            // A size beyond 32 bits does not exist; send the largest.
            let write = Twrite { count: 100, ..write };
            let len = Message::encode(&write, 8, &mut bytes).expect("it fits");
            bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            bytes[19..23].copy_from_slice(&count.to_le_bytes());
            len
        });
        let reply = send(&mut machine, &bytes[..len], 4096);
        match Rmessage::decode(&reply) {
            Ok((8, Rmessage::Write(write))) => assert!(write.count as usize <= there, "{count}"),
            Ok((8, Rmessage::Lerror(_))) => (),
            other => panic!("{other:?}"),
        }
        let size = std::fs::metadata(rig.share().join("file")).expect("stat").len();
        assert!(
            size <= 3000,
            "{count} asked, {there} there: {size} bytes in the file"
        );
    }
    assert_alive(&mut machine, &rig.share());
}
