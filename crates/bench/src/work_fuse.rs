//! The same work in FUSE messages, as virtiofsd answers them with its guest cache off.

use testkit::memory::GuestMemory;
use testkit::ring::Ring;

use crate::engine::{self, Lane};
use crate::exchange::{Carry, Exchange, Expect, Rotate};
use crate::fuse;
use crate::work::{Act, BIG, ENTRIES};

const OFFSET_AT: usize = fuse::IN_HEADER + 8;
const LISTING: u32 = 64 * 1024;
const RDWR: u32 = 2;
const CREAT: u32 = 0o100;

/// Node and file handles that the lanes start from.
#[derive(Clone, Copy, Debug)]
pub struct Mounted {
    small: u64,
    /// The nodes of `a` and `a/b`.
    path: [u64; 2],
    big: (u64, u64),
    target: (u64, u64),
    many: (u64, u64),
    scratch: u64,
}

fn rpc(ring: &mut Ring, memory: &GuestMemory, frame: &[u8], least: usize) -> Result<Exchange, String> {
    let least = (fuse::OUT_HEADER + least) as u32;
    engine::once(ring, Exchange::ordinary(memory, frame, 4096, Expect::Fuse(least)))
        .map_err(|why| format!("opcode {}: {why}", frame[4]))
}

fn lookup(ring: &mut Ring, memory: &GuestMemory, parent: u64, name: &str) -> Result<u64, String> {
    let reply = rpc(ring, memory, &fuse::lookup(parent, name), fuse::ENTRY_OUT)?;
    Ok(reply.reply_u64(fuse::ENTRY_NODE_AT))
}

fn open(ring: &mut Ring, memory: &GuestMemory, name: &str, directory: bool) -> Result<(u64, u64), String> {
    let node = lookup(ring, memory, fuse::ROOT, name)?;
    let frame = if directory {
        fuse::opendir(node)
    } else {
        fuse::open(node, RDWR)
    };
    let reply = rpc(ring, memory, &frame, fuse::OPEN_OUT)?;
    Ok((node, reply.reply_u64(fuse::OPEN_HANDLE_AT)))
}

/// FUSE_INIT, and the nodes and handles that the work starts from.
pub fn mount(ring: &mut Ring, memory: &GuestMemory) -> Result<Mounted, String> {
    rpc(ring, memory, &fuse::init(), 8)?;
    let a = lookup(ring, memory, fuse::ROOT, "a")?;
    Ok(Mounted {
        small: lookup(ring, memory, fuse::ROOT, "small")?,
        path: [a, lookup(ring, memory, a, "b")?],
        big: open(ring, memory, "big", false)?,
        target: open(ring, memory, "target", false)?,
        many: open(ring, memory, "many", true)?,
        scratch: lookup(ring, memory, fuse::ROOT, "scratch")?,
    })
}

/// One lane for each act.
pub fn lanes(
    ring: &mut Ring,
    memory: &GuestMemory,
    mounted: &Mounted,
    acts: &[Act],
) -> Result<Vec<Lane>, String> {
    let count = acts.len() as u64;
    acts.iter()
        .zip(0u64..)
        .map(|(act, number)| Ok(Lane::new(lane(ring, memory, mounted, number, *act, count)?)))
        .collect()
}

fn lane(
    ring: &mut Ring,
    memory: &GuestMemory,
    mounted: &Mounted,
    lane: u64,
    act: Act,
    lanes: u64,
) -> Result<Vec<Exchange>, String> {
    let plain = |frame: Vec<u8>, least: usize| {
        Exchange::ordinary(
            memory,
            &frame,
            4096,
            Expect::Fuse((fuse::OUT_HEADER + least) as u32),
        )
    };
    let entry = |parent, name| plain(fuse::lookup(parent, name), fuse::ENTRY_OUT);
    let step = |bytes: u32| {
        let rotate = Rotate {
            at: OFFSET_AT,
            step: act.distance(bytes) * lanes,
            limit: BIG - BIG % u64::from(bytes),
        };
        (rotate, act.distance(bytes) * lane)
    };
    let read = |(node, handle), count: u32| {
        let expect = Expect::FuseExactly(fuse::OUT_HEADER as u32 + count);
        Exchange::reading(
            memory,
            &fuse::read(node, handle, 0, count),
            fuse::OUT_HEADER,
            count as usize,
            expect,
        )
    };
    let write = |(node, handle), count: u32| {
        let head = fuse::write(node, handle, 0, count);
        Exchange::writing(memory, &head, count as usize, Expect::FuseWritten(count))
    };
    let handle_to = |from, exchange| Carry {
        from,
        exchange,
        to: fuse::HANDLE_AT,
    };
    let node_to = |from, exchange| Carry {
        from,
        exchange,
        to: fuse::NODE_AT,
    };
    Ok(match act {
        // virtiofsd answers an unknown request with ENOSYS; the cheapest it does with success is a getattr of
        // the root. It is shown as such.
        Act::Null => vec![plain(fuse::getattr(fuse::ROOT), fuse::ATTR_OUT)],
        Act::Getattr => vec![plain(fuse::getattr(mounted.small), fuse::ATTR_OUT)],
        Act::Walk => {
            let [a, b] = mounted.path;
            vec![entry(fuse::ROOT, "a"), entry(a, "b"), entry(b, "c")]
        }
        Act::SmallFile => vec![
            // The reply of a lookup has the attributes in it.
            entry(fuse::ROOT, "small"),
            plain(fuse::open(mounted.small, 0), fuse::OPEN_OUT)
                .carrying(handle_to(fuse::OPEN_HANDLE_AT, 2))
                .carrying(handle_to(fuse::OPEN_HANDLE_AT, 3)),
            read((mounted.small, 0), 4096),
            plain(fuse::release(mounted.small, 0), 0),
        ],
        Act::Create => {
            let name = format!("new-{lane}");
            let mut create = plain(
                fuse::create(mounted.scratch, &name, RDWR | CREAT, 0o100_644),
                fuse::ENTRY_OUT + fuse::OPEN_OUT,
            );
            for later in 1..=3 {
                create = create.carrying(node_to(fuse::ENTRY_NODE_AT, later));
            }
            // SETATTR names the node only.
            for later in [1, 3] {
                create = create.carrying(handle_to(fuse::CREATE_HANDLE_AT, later));
            }
            vec![
                create,
                write((0, 0), 4096),
                plain(fuse::chmod(0, 0o100_600), fuse::ATTR_OUT),
                plain(fuse::release(0, 0), 0),
                plain(fuse::unlink(mounted.scratch, &name), 0),
            ]
        }
        Act::Readdir => listing(ring, memory, mounted.many)?,
        Act::Read(count) | Act::ReadApart(count) => {
            let (rotate, start) = step(count);
            vec![read(mounted.big, count).rotating(rotate, start)]
        }
        Act::Write(count) | Act::WriteApart(count) => {
            let (rotate, start) = step(count);
            vec![write(mounted.target, count).rotating(rotate, start)]
        }
        Act::ReadScattered(count) => {
            let (rotate, start) = step(count);
            vec![read(mounted.big, count).scattered().rotating(rotate, start)]
        }
        Act::WriteScattered(count) => {
            let (rotate, start) = step(count);
            vec![write(mounted.target, count).scattered().rotating(rotate, start)]
        }
    })
}

/// As in 9P: the requests of a whole listing, learned from one.
fn listing(
    ring: &mut Ring,
    memory: &GuestMemory,
    (node, handle): (u64, u64),
) -> Result<Vec<Exchange>, String> {
    let capacity = fuse::OUT_HEADER + LISTING as usize;
    let request = |offset, expect| {
        Exchange::ordinary(
            memory,
            &fuse::readdir(node, handle, offset, LISTING),
            capacity,
            expect,
        )
    };
    let (mut offset, mut seen, mut requests) = (0, 0, Vec::new());
    loop {
        let exchange = engine::once(ring, request(offset, Expect::Fuse(fuse::OUT_HEADER as u32)))?;
        let reply = exchange.reply(capacity);
        let size = u32::from_le_bytes([reply[0], reply[1], reply[2], reply[3]]);
        requests.push(request(offset, Expect::FuseExactly(size)));
        let data = reply.get(fuse::OUT_HEADER..size as usize).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        // fuse_dirent: ino[8] off[8] namelen[4] type[4] name, padded to 8.
        let mut at = 0;
        while let Some(head) = data.get(at..at + 24) {
            offset = u64::from_le_bytes(head[8..16].try_into().unwrap_or_default());
            let name = u32::from_le_bytes(head[16..20].try_into().unwrap_or_default()) as usize;
            at += (24 + name).next_multiple_of(8);
            seen += 1;
        }
    }
    match seen >= ENTRIES {
        true => Ok(requests),
        false => Err(format!("{seen} entries listed, {ENTRIES} are there")),
    }
}
