//! A step as a request, and its answer as a value that can be compared.

use wire::{
    Names, Qid, Rgetattr, Rmessage, Rstatfs, Tattach, Tclunk, Tflush, Tfsync, Tgetattr, Tgetlock, Tlcreate,
    Tlink, Tlock, Tlopen, Tmessage, Tmkdir, Tmknod, Tread, Treaddir, Treadlink, Tremove, Trename, Trenameat,
    Tsetattr, Tstatfs, Tsymlink, Tunlinkat, Tversion, Twalk, Twrite, Txattrcreate, Txattrwalk,
};

use crate::step::{Bytes, Step};

/// The session's msize. Larger than any answer here.
pub const MSIZE: u32 = 32 * 1024;

/// Who locks.
const CLIENT: &[u8] = b"guest";

/// What answers requests, one at a time.
pub trait Server {
    /// The R-message to a T-message.
    fn rpc(&mut self, frame: &[u8]) -> Vec<u8>;
    /// For the messages of a failing test.
    fn name(&self) -> &str;
}

/// One directory entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: Bytes,
    /// `DT_*`
    pub kind: u8,
    pub qid_kind: u8,
    pub path: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Error(i32),
    Done,
    Qid(Qid),
    Walk(Vec<Qid>),
    Open {
        qid: Qid,
        iounit: u32,
    },
    Attr(Box<Rgetattr>),
    Data(Bytes),
    /// Sorted by name: the order is the host directory's.
    Listing(Vec<Entry>),
    Count(u32),
    Size(u64),
    Target(Bytes),
    Statfs(Box<Rstatfs>),
    /// Of Tlock.
    Status(u8),
    /// Of Tgetlock: kind, start, length, process.
    Lock(u8, u64, u64, u32),
    /// Nothing that the request may be answered with.
    Broken(String),
}

impl Answer {
    pub fn error(&self) -> Option<i32> {
        match self {
            Answer::Error(error) => Some(*error),
            _ => None,
        }
    }
}

fn send(server: &mut dyn Server, message: Tmessage<'_>, tag: u16) -> Answer {
    let mut frame = vec![0; MSIZE as usize];
    let len = message.encode(tag, &mut frame).expect("steps fit into a message");
    let reply = server.rpc(&frame[..len]);
    let expected = message.kind() + 1;
    match Rmessage::decode(&reply) {
        Ok((got, _)) if got != tag => Answer::Broken(format!("tag {got} in place of {tag}")),
        Ok((_, Rmessage::Lerror(error))) => Answer::Error(error.ecode as i32),
        Ok((_, answer)) if answer.kind() != expected => Answer::Broken(format!("{answer:?} to {message:?}")),
        Ok((_, answer)) => value(answer),
        Err(error) => Answer::Broken(format!("{error:?} in {reply:?} to {message:?}")),
    }
}

fn value(answer: Rmessage<'_>) -> Answer {
    match answer {
        Rmessage::Attach(answer) => Answer::Qid(answer.qid),
        Rmessage::Walk(answer) => Answer::Walk(answer.qids.iter().collect()),
        Rmessage::Lopen(answer) => Answer::Open {
            qid: answer.qid,
            iounit: answer.iounit,
        },
        Rmessage::Lcreate(answer) => Answer::Open {
            qid: answer.qid,
            iounit: answer.iounit,
        },
        Rmessage::Mkdir(answer) => Answer::Qid(answer.qid),
        Rmessage::Mknod(answer) => Answer::Qid(answer.qid),
        Rmessage::Symlink(answer) => Answer::Qid(answer.qid),
        Rmessage::Getattr(answer) => Answer::Attr(Box::new(answer)),
        Rmessage::Read(answer) => Answer::Data(Bytes(answer.data.to_vec())),
        Rmessage::Write(answer) => Answer::Count(answer.count),
        Rmessage::Xattrwalk(answer) => Answer::Size(answer.size),
        Rmessage::Readlink(answer) => Answer::Target(Bytes(answer.target.to_vec())),
        Rmessage::Statfs(answer) => Answer::Statfs(Box::new(answer)),
        Rmessage::Lock(answer) => Answer::Status(answer.status),
        Rmessage::Getlock(answer) if answer.client_id != CLIENT => Answer::Broken(format!("{answer:?}")),
        Rmessage::Getlock(answer) => Answer::Lock(answer.kind, answer.start, answer.length, answer.proc_id),
        _ => Answer::Done,
    }
}

/// A new session: all fids are gone.
pub fn version(server: &mut dyn Server) {
    let message = Tversion {
        msize: MSIZE,
        version: b"9P2000.L",
    };
    let mut frame = [0; 64];
    let len = Tmessage::from(message)
        .encode(wire::NOTAG, &mut frame)
        .expect("fits");
    let reply = server.rpc(&frame[..len]);
    match Rmessage::decode(&reply) {
        Ok((_, Rmessage::Version(answer))) => {
            assert_eq!(
                (answer.msize, answer.version),
                (MSIZE, &b"9P2000.L"[..]),
                "{}",
                server.name()
            );
        }
        other => panic!("{}: {other:?} to Tversion", server.name()),
    }
}

/// Does a step that is a request.
pub fn ask(server: &mut dyn Server, step: &Step, tag: u16) -> Answer {
    let fill;
    let list: Vec<&[u8]>;
    let message: Tmessage<'_> = match step {
        Step::Attach { fid, uid } => Tattach {
            fid: *fid,
            afid: wire::NOFID,
            uname: b"",
            aname: b"",
            n_uname: *uid,
        }
        .into(),
        Step::Walk { fid, newfid, names } => {
            list = names.iter().map(|name| name.0.as_slice()).collect();
            Twalk {
                fid: *fid,
                newfid: *newfid,
                names: Names::new(&list),
            }
            .into()
        }
        Step::Clunk { fid } => Tclunk { fid: *fid }.into(),
        Step::Remove { fid } => Tremove { fid: *fid }.into(),
        Step::Lopen { fid, flags } => Tlopen {
            fid: *fid,
            flags: *flags,
        }
        .into(),
        Step::Lcreate {
            fid,
            name,
            flags,
            mode,
            gid,
        } => Tlcreate {
            fid: *fid,
            name: &name.0,
            flags: *flags,
            mode: *mode,
            gid: *gid,
        }
        .into(),
        Step::Mkdir {
            dfid,
            name,
            mode,
            gid,
        } => Tmkdir {
            dfid: *dfid,
            name: &name.0,
            mode: *mode,
            gid: *gid,
        }
        .into(),
        Step::Mknod {
            dfid,
            name,
            mode,
            major,
            minor,
            gid,
        } => Tmknod {
            dfid: *dfid,
            name: &name.0,
            mode: *mode,
            major: *major,
            minor: *minor,
            gid: *gid,
        }
        .into(),
        Step::Symlink {
            dfid,
            name,
            target,
            gid,
        } => Tsymlink {
            dfid: *dfid,
            name: &name.0,
            target: &target.0,
            gid: *gid,
        }
        .into(),
        Step::Link { dfid, fid, name } => Tlink {
            dfid: *dfid,
            fid: *fid,
            name: &name.0,
        }
        .into(),
        Step::Rename { fid, dfid, name } => Trename {
            fid: *fid,
            dfid: *dfid,
            name: &name.0,
        }
        .into(),
        Step::Renameat {
            olddirfid,
            oldname,
            newdirfid,
            newname,
        } => Trenameat {
            olddirfid: *olddirfid,
            oldname: &oldname.0,
            newdirfid: *newdirfid,
            newname: &newname.0,
        }
        .into(),
        Step::Unlinkat { dirfd, name, flags } => Tunlinkat {
            dirfd: *dirfd,
            name: &name.0,
            flags: *flags,
        }
        .into(),
        Step::Getattr { fid } => Tgetattr {
            fid: *fid,
            mask: 0x7ff,
        }
        .into(),
        Step::Setattr {
            fid,
            valid,
            mode,
            uid,
            gid,
            size,
            atime_sec,
            atime_nsec,
            mtime_sec,
            mtime_nsec,
        } => Tsetattr {
            fid: *fid,
            valid: *valid,
            mode: *mode,
            uid: *uid,
            gid: *gid,
            size: *size,
            atime_sec: *atime_sec,
            atime_nsec: *atime_nsec,
            mtime_sec: *mtime_sec,
            mtime_nsec: *mtime_nsec,
        }
        .into(),
        Step::Readlink { fid } => Treadlink { fid: *fid }.into(),
        Step::Read { fid, offset, count } => Tread {
            fid: *fid,
            offset: *offset,
            count: *count,
        }
        .into(),
        Step::Write { fid, offset, data } => Twrite {
            fid: *fid,
            offset: *offset,
            count: data.0.len() as u32,
            data: &data.0,
        }
        .into(),
        Step::Fill {
            fid,
            offset,
            byte,
            count,
        } => {
            fill = vec![*byte as u8; *count as usize];
            Twrite {
                fid: *fid,
                offset: *offset,
                count: *count,
                data: &fill,
            }
            .into()
        }
        Step::Readdir { fid, count } => return listing(server, *fid, *count, tag),
        Step::Readpage { fid, offset, count } => {
            let mut entries = Vec::new();
            return match page(server, *fid, *offset, *count, tag, &mut entries) {
                Ok(_) => Answer::Listing(entries),
                Err(answer) => answer,
            };
        }
        Step::Xattrwalk { fid, newfid, name } => Txattrwalk {
            fid: *fid,
            newfid: *newfid,
            name: &name.0,
        }
        .into(),
        Step::Xattrcreate {
            fid,
            name,
            size,
            flags,
        } => Txattrcreate {
            fid: *fid,
            name: &name.0,
            size: *size,
            flags: *flags,
        }
        .into(),
        Step::Statfs { fid } => Tstatfs { fid: *fid }.into(),
        Step::Fsync { fid, datasync } => Tfsync {
            fid: *fid,
            datasync: *datasync,
        }
        .into(),
        Step::Lock {
            fid,
            kind,
            flags,
            start,
            length,
            proc_id,
        } => Tlock {
            fid: *fid,
            kind: *kind as u8,
            flags: *flags,
            start: *start,
            length: *length,
            proc_id: *proc_id,
            client_id: CLIENT,
        }
        .into(),
        Step::Getlock {
            fid,
            kind,
            start,
            length,
            proc_id,
        } => Tgetlock {
            fid: *fid,
            kind: *kind as u8,
            start: *start,
            length: *length,
            proc_id: *proc_id,
            client_id: CLIENT,
        }
        .into(),
        Step::Flush { oldtag } => Tflush {
            oldtag: *oldtag as u16,
        }
        .into(),
        Step::HostFile { .. } | Step::HostDir { .. } | Step::HostSymlink { .. } | Step::HostRemove { .. } => {
            unreachable!("the host's steps are no requests")
        }
    };
    send(server, message, tag)
}

fn listing(server: &mut dyn Server, fid: u32, count: u32, tag: u16) -> Answer {
    let mut entries = Vec::new();
    let mut offset = 0;
    // No directory here needs as many; a cookie that leads back would.
    for _ in 0..1000 {
        match page(server, fid, offset, count, tag, &mut entries) {
            Ok(Some(next)) => offset = next,
            Ok(None) => {
                entries.sort();
                return Answer::Listing(entries);
            }
            Err(answer) => return answer,
        }
    }
    Answer::Broken("a listing without end".to_owned())
}

/// One Treaddir; gives the last cookie, `None` at the end.
fn page(
    server: &mut dyn Server,
    fid: u32,
    offset: u64,
    count: u32,
    tag: u16,
    entries: &mut Vec<Entry>,
) -> Result<Option<u64>, Answer> {
    let mut frame = [0; 64];
    let message = Tmessage::from(Treaddir { fid, offset, count });
    let len = message.encode(tag, &mut frame).expect("fits");
    let reply = server.rpc(&frame[..len]);
    let answer = match Rmessage::decode(&reply) {
        Ok((_, Rmessage::Readdir(answer))) => answer,
        Ok((_, Rmessage::Lerror(error))) => return Err(Answer::Error(error.ecode as i32)),
        other => return Err(Answer::Broken(format!("{other:?} to {message:?}"))),
    };
    if answer.data.len() > count as usize {
        return Err(Answer::Broken(format!("{} bytes of entries", answer.data.len())));
    }
    let mut last = None;
    for entry in answer.entries() {
        match entry {
            Ok(entry) => {
                last = Some(entry.offset);
                entries.push(Entry {
                    name: Bytes(entry.name.to_vec()),
                    kind: entry.kind,
                    qid_kind: entry.qid.kind,
                    path: entry.qid.path,
                });
            }
            Err(error) => return Err(Answer::Broken(format!("{error:?} in a listing"))),
        }
    }
    Ok(last)
}
