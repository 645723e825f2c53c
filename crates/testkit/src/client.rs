//! A 9P2000.L client: one typed call per message, errors as errno.

use std::fmt;

pub use nix::errno::Errno;
use wire::*;

use crate::transport::Transport;

/// What most replies may take, as Linux allots it.
const REPLY: usize = 4096;
/// Likewise for Rreadlink.
const REPLY_LONG: usize = 8192;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which object.
    pub qid: Qid,
    /// The cookie of what comes after it.
    pub offset: u64,
    /// `DT_*`
    pub kind: u8,
    /// Its name.
    pub name: Vec<u8>,
}

/// A lock as Rgetlock describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// `P9_LOCK_TYPE_*`
    pub kind: u8,
    /// First byte.
    pub start: u64,
    /// Bytes, 0 to the end.
    pub length: u64,
    /// Process on the client.
    pub proc_id: u32,
    /// Which client.
    pub client_id: Vec<u8>,
}

/// A client over some transport. Calls panic when the answer is not a valid one to the question: no tag, no type, no
/// shape of its own; an Rlerror is an `Err`.
pub struct Client<T> {
    transport: T,
    msize: u32,
    tag: u16,
    frame: Vec<u8>,
    reply: Vec<u8>,
}

impl<T> fmt::Debug for Client<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("msize", &self.msize)
            .finish_non_exhaustive()
    }
}

impl<T: Transport> Client<T> {
    /// A client that has said nothing yet.
    pub fn new(transport: T) -> Client<T> {
        Client {
            transport,
            msize: 8192,
            tag: 0,
            frame: vec![0; 70_000],
            reply: Vec::new(),
        }
    }

    /// Tversion, and Tattach of the root as fid 0 for everybody: what a mount does.
    pub fn mount(transport: T, msize: u32) -> Result<Client<T>, Errno> {
        let mut client = Client::new(transport);
        client.version(msize)?;
        client.attach(0, NONUNAME)?;
        Ok(client)
    }

    /// The transport.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Gives the transport back.
    pub fn into_transport(self) -> T {
        self.transport
    }

    /// What Rversion said.
    pub fn msize(&self) -> u32 {
        self.msize
    }

    /// The tag the next request will have.
    pub fn next_tag(&self) -> u16 {
        self.tag
    }

    /// Sends any bytes as they are and gives whatever comes back.
    pub fn raw(&mut self, frame: &[u8], reply_cap: usize) -> Vec<u8> {
        self.transport.rpc(frame, &[], reply_cap)
    }

    /// Sends a message and gives the body of its answer, which must be of type `kind`.
    fn call<'m, M: Message<'m>>(
        &mut self,
        message: &M,
        payload: &[u8],
        reply_cap: usize,
    ) -> Result<&[u8], Errno> {
        let tag = if M::KIND == TVERSION { NOTAG } else { self.tag };
        self.tag = (self.tag + 1) % NOTAG;
        let len = message
            .encode(tag, &mut self.frame)
            .expect("the message fits its buffer");
        self.reply = self.transport.rpc(&self.frame[..len], payload, reply_cap);
        let header = Header::decode(&self.reply)
            .unwrap_or_else(|| panic!("message {} was completed without an answer", M::KIND));
        assert_eq!(header.size as usize, self.reply.len(), "size of the answer");
        assert_eq!(header.tag, tag, "tag of the answer");
        let body = &self.reply[Header::LEN..];
        if header.kind == RLERROR {
            let error = Rlerror::decode_body(body).expect("Rlerror");
            assert!((1..4096).contains(&error.ecode), "errno {}", error.ecode);
            return Err(Errno::from_raw(error.ecode as i32));
        }
        assert_eq!(header.kind, M::KIND + 1, "type of the answer");
        Ok(body)
    }

    /// Tversion with the dialect 9P2000.L; gives (and keeps) the server's msize.
    pub fn version(&mut self, msize: u32) -> Result<u32, Errno> {
        let (msize, version) = self.version_of(msize, VERSION_9P2000_L)?;
        assert_eq!(version, VERSION_9P2000_L);
        self.msize = msize;
        Ok(msize)
    }

    /// Tversion with any dialect; gives the answer.
    pub fn version_of(&mut self, msize: u32, version: &[u8]) -> Result<(u32, Vec<u8>), Errno> {
        let body = self.call(&Tversion { msize, version }, &[], REPLY)?;
        let answer = Rversion::decode_body(body).expect("Rversion");
        Ok((answer.msize, answer.version.to_vec()))
    }

    /// Tattach of the root for the user `n_uname`.
    pub fn attach(&mut self, fid: u32, n_uname: u32) -> Result<Qid, Errno> {
        self.attach_at(fid, "", n_uname)
    }

    /// Tattach of the tree `aname`.
    pub fn attach_at(&mut self, fid: u32, aname: impl AsRef<[u8]>, n_uname: u32) -> Result<Qid, Errno> {
        let message = Tattach {
            fid,
            afid: NOFID,
            uname: b"nobody",
            aname: aname.as_ref(),
            n_uname,
        };
        let body = self.call(&message, &[], REPLY)?;
        Ok(Rattach::decode_body(body).expect("Rattach").qid)
    }

    /// Twalk: as many qids as names were found; `newfid` exists only when it is all of them.
    pub fn walk<N: AsRef<[u8]>>(&mut self, fid: u32, newfid: u32, names: &[N]) -> Result<Vec<Qid>, Errno> {
        let names: Vec<&[u8]> = names.iter().map(AsRef::as_ref).collect();
        let message = Twalk {
            fid,
            newfid,
            names: Names::new(&names),
        };
        let body = self.call(&message, &[], (9 + 13 * names.len()).max(11))?;
        Ok(Rwalk::decode_body(body).expect("Rwalk").qids.iter().collect())
    }

    /// Twalk without names: another fid for the same object.
    pub fn clone_fid(&mut self, fid: u32, newfid: u32) -> Result<(), Errno> {
        let qids = self.walk::<&[u8]>(fid, newfid, &[])?;
        assert!(qids.is_empty());
        Ok(())
    }

    /// Twalk that counts as failed with ENOENT unless it went all the way, as Linux sees it.
    pub fn walk_all<N: AsRef<[u8]>>(&mut self, fid: u32, newfid: u32, names: &[N]) -> Result<Qid, Errno> {
        let qids = self.walk(fid, newfid, names)?;
        match qids.last() {
            Some(&qid) if qids.len() == names.len() => Ok(qid),
            _ => Err(Errno::ENOENT),
        }
    }

    /// Tclunk.
    pub fn clunk(&mut self, fid: u32) -> Result<(), Errno> {
        self.call(&Tclunk { fid }, &[], REPLY).map(drop)
    }

    /// Tremove.
    pub fn remove(&mut self, fid: u32) -> Result<(), Errno> {
        self.call(&Tremove { fid }, &[], REPLY).map(drop)
    }

    /// Tflush.
    pub fn flush(&mut self, oldtag: u16) -> Result<(), Errno> {
        self.call(&Tflush { oldtag }, &[], REPLY).map(drop)
    }

    /// Tgetattr.
    pub fn getattr(&mut self, fid: u32, mask: u64) -> Result<Rgetattr, Errno> {
        let body = self.call(&Tgetattr { fid, mask }, &[], REPLY)?;
        Ok(Rgetattr::decode_body(body).expect("Rgetattr"))
    }

    /// Tgetattr of all that stat(2) shows.
    pub fn stat(&mut self, fid: u32) -> Result<Rgetattr, Errno> {
        self.getattr(fid, P9_GETATTR_ALL)
    }

    /// Tsetattr.
    pub fn setattr(&mut self, message: &Tsetattr) -> Result<(), Errno> {
        self.call(message, &[], REPLY).map(drop)
    }

    /// Tsetattr of the mode alone.
    pub fn chmod(&mut self, fid: u32, mode: u32) -> Result<(), Errno> {
        self.setattr(&Tsetattr {
            fid,
            valid: P9_SETATTR_MODE,
            mode,
            ..Tsetattr::default()
        })
    }

    /// Tsetattr of the owner and group alone.
    pub fn chown(&mut self, fid: u32, uid: u32, gid: u32) -> Result<(), Errno> {
        self.setattr(&Tsetattr {
            fid,
            valid: P9_SETATTR_UID | P9_SETATTR_GID,
            uid,
            gid,
            ..Tsetattr::default()
        })
    }

    /// Tsetattr of the size alone.
    pub fn truncate(&mut self, fid: u32, size: u64) -> Result<(), Errno> {
        self.setattr(&Tsetattr {
            fid,
            valid: P9_SETATTR_SIZE,
            size,
            ..Tsetattr::default()
        })
    }

    /// Tlopen.
    pub fn lopen(&mut self, fid: u32, flags: u32) -> Result<Rlopen, Errno> {
        let body = self.call(&Tlopen { fid, flags }, &[], REPLY)?;
        Ok(Rlopen::decode_body(body).expect("Rlopen"))
    }

    /// Tlcreate: `fid` becomes the new file, open.
    pub fn lcreate(
        &mut self,
        fid: u32,
        name: impl AsRef<[u8]>,
        flags: u32,
        mode: u32,
        gid: u32,
    ) -> Result<Rlcreate, Errno> {
        let message = Tlcreate {
            fid,
            name: name.as_ref(),
            flags,
            mode,
            gid,
        };
        let body = self.call(&message, &[], REPLY)?;
        Ok(Rlcreate::decode_body(body).expect("Rlcreate"))
    }

    /// Tread.
    pub fn read(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<u8>, Errno> {
        let message = Tread { fid, offset, count };
        let body = self.call(&message, &[], 11 + count as usize)?;
        Ok(Rread::decode_body(body).expect("Rread").data.to_vec())
    }

    /// Twrite; gives the bytes written.
    pub fn write(&mut self, fid: u32, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let message = Twrite {
            fid,
            offset,
            count: u32::try_from(data.len()).expect("payloads of tests are small"),
            data: &[],
        };
        let body = self.call(&message, data, REPLY)?;
        Ok(Rwrite::decode_body(body).expect("Rwrite").count)
    }

    /// Treaddir.
    pub fn readdir(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<Entry>, Errno> {
        let message = Treaddir { fid, offset, count };
        let body = self.call(&message, &[], 11 + count as usize)?;
        let answer = Rreaddir::decode_body(body).expect("Rreaddir");
        assert!(answer.data.len() <= count as usize, "more than asked for");
        let entries = answer.entries().map(|entry| {
            let entry = entry.expect("whole entries");
            Entry {
                qid: entry.qid,
                offset: entry.offset,
                kind: entry.kind,
                name: entry.name.to_vec(),
            }
        });
        Ok(entries.collect())
    }

    /// Treaddir until the end, `count` bytes at a time.
    pub fn list(&mut self, fid: u32, count: u32) -> Result<Vec<Entry>, Errno> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let offset = all.last().map_or(0, |entry| entry.offset);
            let more = self.readdir(fid, offset, count)?;
            if more.is_empty() {
                return Ok(all);
            }
            all.extend(more);
        }
    }

    /// Tmkdir.
    pub fn mkdir(&mut self, dfid: u32, name: impl AsRef<[u8]>, mode: u32, gid: u32) -> Result<Qid, Errno> {
        let message = Tmkdir {
            dfid,
            name: name.as_ref(),
            mode,
            gid,
        };
        let body = self.call(&message, &[], REPLY)?;
        Ok(Rmkdir::decode_body(body).expect("Rmkdir").qid)
    }

    /// Tmknod.
    pub fn mknod(
        &mut self,
        dfid: u32,
        name: impl AsRef<[u8]>,
        mode: u32,
        (major, minor): (u32, u32),
        gid: u32,
    ) -> Result<Qid, Errno> {
        let message = Tmknod {
            dfid,
            name: name.as_ref(),
            mode,
            major,
            minor,
            gid,
        };
        let body = self.call(&message, &[], REPLY)?;
        Ok(Rmknod::decode_body(body).expect("Rmknod").qid)
    }

    /// Tsymlink.
    pub fn symlink(
        &mut self,
        dfid: u32,
        name: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
        gid: u32,
    ) -> Result<Qid, Errno> {
        let message = Tsymlink {
            dfid,
            name: name.as_ref(),
            target: target.as_ref(),
            gid,
        };
        let body = self.call(&message, &[], REPLY)?;
        Ok(Rsymlink::decode_body(body).expect("Rsymlink").qid)
    }

    /// Treadlink.
    pub fn readlink(&mut self, fid: u32) -> Result<Vec<u8>, Errno> {
        let body = self.call(&Treadlink { fid }, &[], REPLY_LONG)?;
        Ok(Rreadlink::decode_body(body).expect("Rreadlink").target.to_vec())
    }

    /// Tlink: a further name in `dfid` for `fid`.
    pub fn link(&mut self, dfid: u32, fid: u32, name: impl AsRef<[u8]>) -> Result<(), Errno> {
        let name = name.as_ref();
        self.call(&Tlink { dfid, fid, name }, &[], REPLY).map(drop)
    }

    /// Trename.
    pub fn rename(&mut self, fid: u32, dfid: u32, name: impl AsRef<[u8]>) -> Result<(), Errno> {
        let name = name.as_ref();
        self.call(&Trename { fid, dfid, name }, &[], REPLY).map(drop)
    }

    /// Trenameat.
    pub fn renameat(
        &mut self,
        olddirfid: u32,
        oldname: impl AsRef<[u8]>,
        newdirfid: u32,
        newname: impl AsRef<[u8]>,
    ) -> Result<(), Errno> {
        let message = Trenameat {
            olddirfid,
            oldname: oldname.as_ref(),
            newdirfid,
            newname: newname.as_ref(),
        };
        self.call(&message, &[], REPLY).map(drop)
    }

    /// Tunlinkat; `flags` is 0 or `P9_DOTL_AT_REMOVEDIR`.
    pub fn unlinkat(&mut self, dirfd: u32, name: impl AsRef<[u8]>, flags: u32) -> Result<(), Errno> {
        let name = name.as_ref();
        self.call(&Tunlinkat { dirfd, name, flags }, &[], REPLY).map(drop)
    }

    /// Txattrwalk; gives the value's size. An empty name lists.
    pub fn xattrwalk(&mut self, fid: u32, newfid: u32, name: impl AsRef<[u8]>) -> Result<u64, Errno> {
        let name = name.as_ref();
        let body = self.call(&Txattrwalk { fid, newfid, name }, &[], REPLY)?;
        Ok(Rxattrwalk::decode_body(body).expect("Rxattrwalk").size)
    }

    /// Txattrcreate.
    pub fn xattrcreate(
        &mut self,
        fid: u32,
        name: impl AsRef<[u8]>,
        size: u64,
        flags: u32,
    ) -> Result<(), Errno> {
        let message = Txattrcreate {
            fid,
            name: name.as_ref(),
            size,
            flags,
        };
        self.call(&message, &[], REPLY).map(drop)
    }

    /// Tlock; gives `P9_LOCK_SUCCESS` and its kin.
    pub fn lock(&mut self, message: &Tlock<'_>) -> Result<u8, Errno> {
        let body = self.call(message, &[], REPLY)?;
        Ok(Rlock::decode_body(body).expect("Rlock").status)
    }

    /// Tgetlock.
    pub fn getlock(&mut self, message: &Tgetlock<'_>) -> Result<Lock, Errno> {
        let body = self.call(message, &[], REPLY)?;
        let answer = Rgetlock::decode_body(body).expect("Rgetlock");
        Ok(Lock {
            kind: answer.kind,
            start: answer.start,
            length: answer.length,
            proc_id: answer.proc_id,
            client_id: answer.client_id.to_vec(),
        })
    }

    /// Tfsync.
    pub fn fsync(&mut self, fid: u32, datasync: u32) -> Result<(), Errno> {
        self.call(&Tfsync { fid, datasync }, &[], REPLY).map(drop)
    }

    /// Tstatfs.
    pub fn statfs(&mut self, fid: u32) -> Result<Rstatfs, Errno> {
        let body = self.call(&Tstatfs { fid }, &[], REPLY)?;
        Ok(Rstatfs::decode_body(body).expect("Rstatfs"))
    }

    /// Reads an xattr of `fid` as Linux does, by way of `scratch`, a fid that is free.
    pub fn getxattr(&mut self, fid: u32, scratch: u32, name: impl AsRef<[u8]>) -> Result<Vec<u8>, Errno> {
        let size = self.xattrwalk(fid, scratch, name)?;
        let value = self.read(scratch, 0, u32::try_from(size).expect("xattrs are small"));
        self.clunk(scratch)?;
        value
    }

    /// Sets an xattr of `fid` as Linux does, by way of `scratch`, a fid that is free.
    pub fn setxattr(
        &mut self,
        fid: u32,
        scratch: u32,
        name: impl AsRef<[u8]>,
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        self.clone_fid(fid, scratch)?;
        let written = self
            .xattrcreate(scratch, name, value.len() as u64, flags)
            .and_then(|()| match value {
                [] => Ok(0),
                value => self.write(scratch, 0, value),
            });
        // The value is set by the clunk, and its failure is the clunk's.
        let clunked = self.clunk(scratch);
        written.and(clunked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Direct;

    /// Answers every request with `answer`, and checks what came.
    fn server(answer: Rmessage<'_>, check: impl Fn(Tmessage<'_>, &[u8])) -> impl Transport {
        Direct(move |message: &[u8], payload: &[u8], capacity: usize| {
            let (tag, request) = Tmessage::decode(message).expect("a valid request");
            check(request, payload);
            let mut reply = vec![0; capacity];
            let len = answer.encode(tag, &mut reply).expect("fits");
            reply.truncate(len);
            reply
        })
    }

    #[test]
    fn an_error_is_an_errno() {
        let answer = Rlerror {
            ecode: libc::ENOTDIR as u32,
        };
        let mut client = Client::new(server(answer.into(), |_, _| ()));
        assert_eq!(client.clunk(1), Err(Errno::ENOTDIR));
        assert_eq!(client.walk(1, 2, &["a"]), Err(Errno::ENOTDIR));
    }

    #[test]
    fn a_write_says_the_whole_size_and_leaves_the_payload_apart() {
        let check = |request: Tmessage<'_>, payload: &[u8]| {
            let Tmessage::Write(write) = request else {
                panic!("{request:?}");
            };
            assert_eq!((write.fid, write.offset, write.count), (3, 9, 5));
            assert_eq!(payload, b"hello");
        };
        let mut client = Client::new(server(Rwrite { count: 5 }.into(), check));
        assert_eq!(client.write(3, 9, b"hello"), Ok(5));
    }

    #[test]
    #[should_panic(expected = "type of the answer")]
    fn a_wrong_answer_is_noticed() {
        let mut client = Client::new(server(Rclunk.into(), |_, _| ()));
        let _ = client.stat(1);
    }
}
