//! Every message there is, built from arbitrary material.

use proptest::collection::vec;
use proptest::prelude::*;
use wire::*;

/// What fields are filled with. Integers are taken round and round.
#[derive(Clone, Debug)]
pub struct Material {
    integers: Vec<u64>,
    strings: Vec<Vec<u8>>,
    qids: Vec<Qid>,
    data: Vec<u8>,
}

pub fn material() -> impl Strategy<Value = Material> {
    let integer = prop_oneof![
        any::<u64>(),
        0..4u64,
        Just(u64::MAX),
        any::<u32>().prop_map(u64::from)
    ];
    let string = prop_oneof![
        4 => vec(any::<u8>(), 0..20),
        1 => Just(Vec::new()),
        1 => vec(any::<u8>(), 255..300),
    ];
    let qid = any::<(u8, u32, u64)>().prop_map(|(kind, version, path)| Qid { kind, version, path });
    (
        vec(integer, 20..40),
        vec(string, 0..=MAXWELEM),
        vec(qid, 1..=MAXWELEM),
        vec(any::<u8>(), 0..100),
    )
        .prop_map(|(integers, strings, qids, data)| Material {
            integers,
            strings,
            qids,
            data,
        })
}

impl Material {
    pub fn strings(&self) -> Vec<&[u8]> {
        self.strings.iter().map(Vec::as_slice).collect()
    }

    fn string(&self, index: usize) -> &[u8] {
        self.strings.get(index).map_or(b"", Vec::as_slice)
    }
}

/// Takes integers of any width.
struct Integers<'a>(std::iter::Cycle<std::slice::Iter<'a, u64>>);

impl Integers<'_> {
    fn q(&mut self) -> u64 {
        *self.0.next().expect("there are some")
    }
    fn d(&mut self) -> u32 {
        self.q() as u32
    }
    fn b(&mut self) -> u8 {
        self.q() as u8
    }
}

pub fn tmessages<'a>(m: &'a Material, names: &'a [&'a [u8]]) -> Vec<Tmessage<'a>> {
    let mut i = Integers(m.integers.iter().cycle());
    let (s, t) = (m.string(0), m.string(1));
    vec![
        Tversion {
            msize: i.d(),
            version: s,
        }
        .into(),
        Tattach {
            fid: i.d(),
            afid: i.d(),
            uname: s,
            aname: t,
            n_uname: i.d(),
        }
        .into(),
        Tflush { oldtag: i.d() as u16 }.into(),
        Twalk {
            fid: i.d(),
            newfid: i.d(),
            names: names.into(),
        }
        .into(),
        Tclunk { fid: i.d() }.into(),
        Tremove { fid: i.d() }.into(),
        Tlopen {
            fid: i.d(),
            flags: i.d(),
        }
        .into(),
        Tlcreate {
            fid: i.d(),
            name: s,
            flags: i.d(),
            mode: i.d(),
            gid: i.d(),
        }
        .into(),
        Tread {
            fid: i.d(),
            offset: i.q(),
            count: i.d(),
        }
        .into(),
        Twrite {
            fid: i.d(),
            offset: i.q(),
            count: m.data.len() as u32,
            data: &m.data,
        }
        .into(),
        Treaddir {
            fid: i.d(),
            offset: i.q(),
            count: i.d(),
        }
        .into(),
        Tmkdir {
            dfid: i.d(),
            name: s,
            mode: i.d(),
            gid: i.d(),
        }
        .into(),
        Tmknod {
            dfid: i.d(),
            name: s,
            mode: i.d(),
            major: i.d(),
            minor: i.d(),
            gid: i.d(),
        }
        .into(),
        Trename {
            fid: i.d(),
            dfid: i.d(),
            name: s,
        }
        .into(),
        Trenameat {
            olddirfid: i.d(),
            oldname: s,
            newdirfid: i.d(),
            newname: t,
        }
        .into(),
        Tunlinkat {
            dirfd: i.d(),
            name: s,
            flags: i.d(),
        }
        .into(),
        Tgetattr {
            fid: i.d(),
            mask: i.q(),
        }
        .into(),
        Tsetattr {
            fid: i.d(),
            valid: i.d(),
            mode: i.d(),
            uid: i.d(),
            gid: i.d(),
            size: i.q(),
            atime_sec: i.q(),
            atime_nsec: i.q(),
            mtime_sec: i.q(),
            mtime_nsec: i.q(),
        }
        .into(),
        Txattrwalk {
            fid: i.d(),
            newfid: i.d(),
            name: s,
        }
        .into(),
        Txattrcreate {
            fid: i.d(),
            name: s,
            size: i.q(),
            flags: i.d(),
        }
        .into(),
        Tlock {
            fid: i.d(),
            kind: i.b(),
            flags: i.d(),
            start: i.q(),
            length: i.q(),
            proc_id: i.d(),
            client_id: s,
        }
        .into(),
        Tgetlock {
            fid: i.d(),
            kind: i.b(),
            start: i.q(),
            length: i.q(),
            proc_id: i.d(),
            client_id: s,
        }
        .into(),
        Tlink {
            dfid: i.d(),
            fid: i.d(),
            name: s,
        }
        .into(),
        Tsymlink {
            dfid: i.d(),
            name: s,
            target: t,
            gid: i.d(),
        }
        .into(),
        Treadlink { fid: i.d() }.into(),
        Tfsync {
            fid: i.d(),
            datasync: i.d(),
        }
        .into(),
        Tstatfs { fid: i.d() }.into(),
        Tmessage::Unknown { kind: TAUTH },
    ]
}

pub fn rmessages(m: &Material) -> Vec<Rmessage<'_>> {
    let mut i = Integers(m.integers.iter().cycle());
    let s = m.string(0);
    let qid = m.qids[0];
    vec![
        Rversion {
            msize: i.d(),
            version: s,
        }
        .into(),
        Rlerror { ecode: i.d() }.into(),
        Rattach { qid }.into(),
        Rflush.into(),
        Rwalk {
            qids: Qids::new(&m.qids),
        }
        .into(),
        Rclunk.into(),
        Rremove.into(),
        Rlopen { qid, iounit: i.d() }.into(),
        Rlcreate { qid, iounit: i.d() }.into(),
        Rread { data: &m.data }.into(),
        Rwrite { count: i.d() }.into(),
        Rreaddir { data: &m.data }.into(),
        Rmkdir { qid }.into(),
        Rmknod { qid }.into(),
        Rrename.into(),
        Rrenameat.into(),
        Runlinkat.into(),
        Rgetattr {
            valid: i.q(),
            qid,
            mode: i.d(),
            uid: i.d(),
            gid: i.d(),
            nlink: i.q(),
            rdev: i.q(),
            size: i.q(),
            blksize: i.q(),
            blocks: i.q(),
            atime_sec: i.q(),
            atime_nsec: i.q(),
            mtime_sec: i.q(),
            mtime_nsec: i.q(),
            ctime_sec: i.q(),
            ctime_nsec: i.q(),
            btime_sec: i.q(),
            btime_nsec: i.q(),
            generation: i.q(),
            data_version: i.q(),
        }
        .into(),
        Rsetattr.into(),
        Rxattrwalk { size: i.q() }.into(),
        Rxattrcreate.into(),
        Rlock { status: i.b() }.into(),
        Rgetlock {
            kind: i.b(),
            start: i.q(),
            length: i.q(),
            proc_id: i.d(),
            client_id: s,
        }
        .into(),
        Rlink.into(),
        Rsymlink { qid }.into(),
        Rreadlink { target: s }.into(),
        Rfsync.into(),
        Rstatfs {
            kind: i.d(),
            bsize: i.d(),
            blocks: i.q(),
            bfree: i.q(),
            bavail: i.q(),
            files: i.q(),
            ffree: i.q(),
            fsid: i.q(),
            namelen: i.d(),
        }
        .into(),
        Rmessage::Unknown { kind: RERROR },
    ]
}
