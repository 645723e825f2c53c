//! Random numbers from a seed, and random messages made with them.

use wire::*;

/// xorshift64: small, and the same everywhere for one seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end` (not 0).
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
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

/// Names that a share may have for these messages to meet something.
pub const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"dir",
    b"file",
    b"file",
    b"out",
    b"up",
    b"fifo",
    b"..",
    b".",
    b"../outside",
    b"/",
    b"",
    b".virtfs_metadata",
    b"user.x",
];

const XATTRS: [&[u8]; 7] = [
    b"user.x",
    b"user.y",
    b"user.virtfs.mode",
    b"security.capability",
    b"trusted.x",
    b"system.posix_acl_access",
    b"",
];

const OPEN_FLAGS: [u32; 5] = [
    P9_DOTL_RDONLY,
    P9_DOTL_WRONLY,
    P9_DOTL_RDWR,
    P9_DOTL_RDWR | P9_DOTL_TRUNC,
    P9_DOTL_WRONLY | P9_DOTL_APPEND,
];

fn name(random: &mut Random) -> &'static [u8] {
    NAMES[random.below(NAMES.len())]
}

fn xattr_name(random: &mut Random) -> &'static [u8] {
    XATTRS[random.below(XATTRS.len())]
}

/// A T-message with random fields, most of them such that it could succeed; gives its length. Fids are mostly below 8
/// and names those of [`NAMES`]; `buf` has 256 bytes.
pub fn message(random: &mut Random, buf: &mut [u8]) -> usize {
    let r = random;
    let tag = r.below(70) as u16;
    let (a, b) = (fid(r), fid(r));
    let (x, y) = (number(r), number(r));
    let (m, n) = (name(r), name(r));
    let (p, q) = (number(r) as u32, number(r) as u32);
    let names: [&[u8]; 3] = [name(r), name(r), name(r)];
    let message: Tmessage<'_> = match r.below(34) {
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
        29 => Txattrwalk {
            fid: a,
            newfid: b,
            name: xattr_name(r),
        }
        .into(),
        30 => Txattrcreate {
            fid: a,
            name: xattr_name(r),
            size: if r.below(4) == 0 { y } else { 8 },
            flags: r.below(4) as u32,
        }
        .into(),
        31 => Tlopen {
            fid: a,
            flags: OPEN_FLAGS[r.below(OPEN_FLAGS.len())],
        }
        .into(),
        _ => Tremove { fid: a }.into(),
    };
    message.encode(tag, buf).expect("it fits")
}

/// A message, one in four of them damaged.
pub fn damaged_message(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    let len = message(random, &mut bytes);
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
