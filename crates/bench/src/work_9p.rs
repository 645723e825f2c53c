//! The work in 9P2000.L, as Linux's client asks for it.

use testkit::memory::GuestMemory;
use testkit::ring::Ring;
use wire::*;

use crate::engine::{self, Lane};
use crate::exchange::{Exchange, Expect, Rotate};
use crate::work::{Act, BIG, ENTRIES};

const ROOT: u32 = 0;
const FILE: u32 = 1;
const BIG_FILE: u32 = 2;
const TARGET: u32 = 3;
const MANY: u32 = 4;
const SCRATCH: u32 = 5;
/// The first fid that lanes may use.
const LANE_FIDS: u32 = 100;
const OFFSET_AT: usize = 11;
const MSIZE: u32 = 512_000 + 64 * 1024;
const LISTING: u32 = 64 * 1024;

fn frame(tag: u16, message: &Tmessage<'_>) -> Vec<u8> {
    let mut buf = vec![0; 8192];
    let len = message
        .encode(tag, &mut buf)
        .expect("every message of the benchmark is short");
    buf.truncate(len);
    buf
}

/// A Twrite's header for a payload that lies elsewhere.
fn twrite(tag: u16, fid: u32, count: u32) -> Vec<u8> {
    let mut head = frame(
        tag,
        &Tmessage::Write(Twrite {
            fid,
            offset: 0,
            count: 0,
            data: &[],
        }),
    );
    let size = (head.len() as u32 + count).to_le_bytes();
    head[..4].copy_from_slice(&size);
    head[19..23].copy_from_slice(&count.to_le_bytes());
    head
}

fn rpc(ring: &mut Ring, memory: &GuestMemory, message: &Tmessage<'_>) -> Result<Vec<u8>, String> {
    let mark = memory.mark();
    let kind = message.kind() + 1;
    let exchange = Exchange::ordinary(memory, &frame(1, message), 4096, Expect::Message(kind, 7));
    let reply = engine::once(ring, exchange)
        .map_err(|why| format!("{message:?}: {why}"))?
        .reply(4096);
    memory.reset(&mark);
    Ok(reply)
}

fn walk(ring: &mut Ring, memory: &GuestMemory, fid: u32, newfid: u32, names: &[&[u8]]) -> Result<(), String> {
    let names = Names::from(names);
    rpc(ring, memory, &Tmessage::Walk(Twalk { fid, newfid, names })).map(drop)
}

fn open(ring: &mut Ring, memory: &GuestMemory, fid: u32, flags: u32) -> Result<(), String> {
    rpc(ring, memory, &Tmessage::Lopen(Tlopen { fid, flags })).map(drop)
}

/// Mounts, and has the fids that the work starts from.
pub fn attach(ring: &mut Ring, memory: &GuestMemory) -> Result<(), String> {
    rpc(
        ring,
        memory,
        &Tmessage::Version(Tversion {
            msize: MSIZE,
            version: b"9P2000.L",
        }),
    )?;
    let attach = Tattach {
        fid: ROOT,
        afid: NOFID,
        uname: b"",
        aname: b"",
        n_uname: 0,
    };
    rpc(ring, memory, &Tmessage::Attach(attach))?;
    walk(ring, memory, ROOT, FILE, &[b"small"])?;
    walk(ring, memory, ROOT, BIG_FILE, &[b"big"])?;
    open(ring, memory, BIG_FILE, 0)?;
    walk(ring, memory, ROOT, TARGET, &[b"target"])?;
    open(ring, memory, TARGET, 2)?;
    walk(ring, memory, ROOT, MANY, &[b"many"])?;
    open(ring, memory, MANY, 0)?;
    walk(ring, memory, ROOT, SCRATCH, &[b"scratch"])
}

/// One lane for each act.
pub fn lanes(ring: &mut Ring, memory: &GuestMemory, acts: &[Act]) -> Result<Vec<Lane>, String> {
    acts.iter()
        .enumerate()
        .map(|(number, act)| {
            Ok(Lane::new(lane(
                ring,
                memory,
                number as u32,
                *act,
                acts.len() as u64,
            )?))
        })
        .collect()
}

fn lane(
    ring: &mut Ring,
    memory: &GuestMemory,
    lane: u32,
    act: Act,
    lanes: u64,
) -> Result<Vec<Exchange>, String> {
    let tag = lane as u16;
    let fid = LANE_FIDS + lane;
    let plain = |message: &Tmessage<'_>, expect: Expect| {
        Exchange::ordinary(memory, &frame(tag, message), 4096, expect)
    };
    let clunk = |fid| plain(&Tmessage::Clunk(Tclunk { fid }), Expect::Message(RCLUNK, 7));
    let getattr = |fid| {
        let message = Tmessage::Getattr(Tgetattr { fid, mask: 0x17ff });
        plain(&message, Expect::Message(RGETATTR, 160))
    };
    let step = |bytes: u32| {
        let rotate = Rotate {
            at: OFFSET_AT,
            step: act.distance(bytes) * lanes,
            limit: BIG - BIG % u64::from(bytes),
        };
        (rotate, act.distance(bytes) * u64::from(lane))
    };
    let read = |fid: u32, count: u32| {
        let head = frame(
            tag,
            &Tmessage::Read(Tread {
                fid,
                offset: 0,
                count,
            }),
        );
        Exchange::reading(memory, &head, 11, count as usize, Expect::Payload(RREAD, count))
    };
    let write = |fid, count: u32| {
        Exchange::writing(
            memory,
            &twrite(tag, fid, count),
            count as usize,
            Expect::Written(count),
        )
    };
    let down = |newfid, names: &[&[u8]]| {
        let message = Tmessage::Walk(Twalk {
            fid: ROOT,
            newfid,
            names: Names::from(names),
        });
        plain(&message, Expect::Message(RWALK, 9 + 13 * names.len() as u32))
    };
    Ok(match act {
        Act::Null => vec![plain(
            &Tmessage::Flush(Tflush { oldtag: 0xfff0 }),
            Expect::Message(RFLUSH, 7),
        )],
        Act::Getattr => vec![getattr(FILE)],
        Act::Walk => vec![down(fid, &[b"a", b"b", b"c"]), clunk(fid)],
        Act::SmallFile => vec![
            down(fid, &[b"small"]),
            getattr(fid),
            plain(
                &Tmessage::Lopen(Tlopen { fid, flags: 0 }),
                Expect::Message(RLOPEN, 24),
            ),
            read(fid, 4096),
            clunk(fid),
        ],
        Act::Create => {
            let name = format!("new-{lane}");
            let name = name.as_bytes();
            let message = Tmessage::Walk(Twalk {
                fid: SCRATCH,
                newfid: fid,
                names: Names::from(&[][..]),
            });
            let create = Tlcreate {
                fid,
                name,
                flags: 0o102,
                mode: 0o100_644,
                gid: 0,
            };
            let chmod = Tsetattr {
                fid,
                valid: 1,
                mode: 0o100_600,
                ..Tsetattr::default()
            };
            let unlink = Tunlinkat {
                dirfd: SCRATCH,
                name,
                flags: 0,
            };
            vec![
                plain(&message, Expect::Message(RWALK, 9)),
                plain(&Tmessage::Lcreate(create), Expect::Message(RLCREATE, 24)),
                write(fid, 4096),
                plain(&Tmessage::Setattr(chmod), Expect::Message(RSETATTR, 7)),
                clunk(fid),
                plain(&Tmessage::Unlinkat(unlink), Expect::Message(RUNLINKAT, 7)),
            ]
        }
        Act::Readdir => listing(ring, memory, tag)?,
        Act::Read(count) | Act::ReadApart(count) => {
            let (rotate, start) = step(count);
            vec![read(BIG_FILE, count).rotating(rotate, start)]
        }
        Act::Write(count) | Act::WriteApart(count) => {
            let (rotate, start) = step(count);
            vec![write(TARGET, count).rotating(rotate, start)]
        }
        Act::ReadScattered(count) => {
            let (rotate, start) = step(count);
            vec![read(BIG_FILE, count).scattered().rotating(rotate, start)]
        }
        Act::WriteScattered(count) => {
            let (rotate, start) = step(count);
            vec![write(TARGET, count).scattered().rotating(rotate, start)]
        }
    })
}

/// A whole listing takes the same requests each time: this asks once, to learn the cookies and to count.
fn listing(ring: &mut Ring, memory: &GuestMemory, tag: u16) -> Result<Vec<Exchange>, String> {
    let request = |offset, expect| {
        let head = frame(
            tag,
            &Tmessage::Readdir(Treaddir {
                fid: MANY,
                offset,
                count: LISTING,
            }),
        );
        Exchange::ordinary(memory, &head, 11 + LISTING as usize, expect)
    };
    let (mut offset, mut seen, mut requests) = (0, 0, Vec::new());
    loop {
        let exchange = engine::once(ring, request(offset, Expect::Message(RREADDIR, 11)))?;
        let reply = exchange.reply(11 + LISTING as usize);
        let count = u32::from_le_bytes([reply[7], reply[8], reply[9], reply[10]]);
        requests.push(request(offset, Expect::Payload(RREADDIR, count)));
        if count == 0 {
            break;
        }
        for entry in Dirents::new(&reply[11..11 + count as usize]) {
            let entry = entry.map_err(|why| format!("a bad listing: {why:?}"))?;
            offset = entry.offset;
            seen += 1;
        }
    }
    match seen == ENTRIES + 2 {
        true => Ok(requests),
        false => Err(format!("{seen} entries listed instead of {}", ENTRIES + 2)),
    }
}
