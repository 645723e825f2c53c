//! Treaddir, and what makes, moves and removes the entries of a directory: Tmkdir, Tmknod, Trename, Trenameat,
//! Tunlinkat.

use host::{DirEntry, Listing, Name};
use wire::{
    Dirent, NOFID, P9_DOTL_AT_REMOVEDIR, QTDIR, QTFILE, QTSYMLINK, Qid, Rmkdir, Rmknod, Rreaddir, Rrename,
    Rrenameat, Runlinkat, Tmkdir, Tmknod, Treaddir, Trename, Trenameat, Tunlinkat, encode_rreaddir_header,
};

use crate::failure::Failure;
use crate::pin::{NOGID, Pin};
use crate::reply::Reply;
use crate::request::{Outcome, Scratch, room};
use crate::session::{Session, name};
use crate::table::{State, Tables};
use crate::walk::qid;

/// Bytes of entries in one reply at most, whatever the client asks for: some two thousand, each of which may cost a
/// system call in the mapped modes, and others wait meanwhile. Clients ask until nothing comes.
const LISTING: usize = 64 * 1024;

/// Room for getdents64: its records are about as long as ours, and one of a name of 255 bytes must fit.
const ENTRIES: std::ops::RangeInclusive<usize> = 1024..=64 * 1024;

/// The qid of a directory entry: Linux takes only the path from it (for `d_ino`), so it costs no system call. The
/// version is 0, "not known".
fn entry_qid(path: u64, d_type: u8) -> Qid {
    let kind = match d_type {
        libc::DT_DIR => QTDIR,
        libc::DT_LNK => QTSYMLINK,
        _ => QTFILE,
    };
    Qid {
        kind,
        version: 0,
        path,
    }
}

/// A reply that is being filled with entries.
struct Page<'b> {
    out: &'b mut [u8],
    end: usize,
    full: bool,
}

impl Listing for Page<'_> {
    /// A record of the host's has 24 bytes or more and becomes at most four longer: 13 bytes of qid, 8 of offset, 1 of
    /// type, 2 of length and the name, where the host has 19, the name, its NUL, and padding to a multiple of 8.
    fn room(&self) -> usize {
        let room = self.out.len().saturating_sub(self.end);
        room / 7 * 6
    }

    fn entry(&mut self, entry: &DirEntry<'_>) -> bool {
        let entry = Dirent {
            qid: entry_qid(entry.unique, entry.d_type),
            offset: entry.cookie,
            kind: entry.d_type,
            name: entry.name,
        };
        let rest = self.out.get_mut(self.end..).unwrap_or_default();
        match entry.encode(rest) {
            Some(len) => self.end += len,
            None => self.full = true,
        }
        !self.full
    }
}

impl Session {
    /// Lists an open directory from a cookie on. EINVAL when not even the first entry fits, which an empty
    /// answer would turn into the directory's end; ENOTDIR for a fid that is no open directory, as in QEMU.
    pub(crate) fn readdir(
        &self,
        m: &Treaddir,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
    ) -> Result<Outcome, Failure> {
        const HEADER: usize = Rreaddir::HEADER_LEN;
        let pin = self.pin(m.fid, libc::EINVAL)?;
        if pin.state() != State::Dir {
            return Err(Failure::new(libc::ENOTDIR));
        }
        let wanted = usize::try_from(m.count).unwrap_or(usize::MAX);
        let count = wanted
            .min(self.reply_room(reply).saturating_sub(HEADER))
            .min(LISTING);
        let out = room(&mut scratch.bytes, HEADER + count);
        let entries = room(
            &mut scratch.entries,
            count.clamp(*ENTRIES.start(), *ENTRIES.end()),
        );
        let mut page = Page {
            out,
            end: HEADER,
            full: false,
        };
        self.share
            .read_dir(pin.caller(NOGID), &pin.directory()?, m.offset, entries, &mut page)?;
        let Page { out, end, full } = page;
        if full && end == HEADER {
            return Err(Failure::new(libc::EINVAL));
        }
        let count = u32::try_from(end - HEADER).map_err(|_| Failure::new(libc::EMSGSIZE))?;
        encode_rreaddir_header(out, reply.tag, count).ok_or(Failure::new(libc::EMSGSIZE))?;
        Ok(reply.send_bytes(&out[..end]))
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, m: &Tmkdir<'_>) -> Result<Rmkdir, Failure> {
        let name = name(m.name, libc::EEXIST)?;
        let dir = self.pin(m.dfid, libc::ENOENT)?;
        let id = self
            .share
            .mkdir(dir.caller(m.gid), &dir.directory()?, &name, m.mode & 0o7777)?;
        Ok(Rmkdir { qid: qid(&id) })
    }

    /// Makes a device, a FIFO, a socket or a regular file.
    pub(crate) fn mknod(&self, m: &Tmknod<'_>) -> Result<Rmknod, Failure> {
        let name = name(m.name, libc::EEXIST)?;
        let dir = self.pin(m.dfid, libc::ENOENT)?;
        let id = self.share.mknod(
            dir.caller(m.gid),
            &dir.directory()?,
            &name,
            m.mode,
            libc::makedev(m.major, m.minor),
        )?;
        Ok(Rmknod { qid: qid(&id) })
    }

    /// Moves the fid's object to a name in another directory, or in its own when that is [`NOFID`].
    pub(crate) fn rename(&self, m: &Trename<'_>) -> Result<Rrename, Failure> {
        let new = name(m.name, libc::EISDIR)?;
        let pin = self.pin(m.fid, libc::ENOENT)?;
        pin.is_object()?;
        let to = match m.dfid {
            NOFID => None,
            dfid => Some(self.pin(dfid, libc::ENOENT)?),
        };
        let target = to
            .as_ref()
            .map(|to| Ok::<_, Failure>((to.directory()?, to.view().node)));
        let target = target.transpose()?;
        let place = self.place(pin.view().node, pin.view().uid)?;
        let (target, (node, path)) = match target {
            Some((target, node)) => (target, (node, new.as_bytes().to_vec())),
            None => (place.object(), place.sibling(&new)),
        };
        let caller = pin.caller(NOGID);
        let _move = self.moves.begin();
        self.share
            .rename(caller, &place.object(), &place.name, &target, &new)?;
        // What had the new name has lost it.
        self.with(|tables| tables.nodes.removed());
        self.moved(pin.view().node, node, &path);
        Ok(Rrename)
    }

    /// Moves an entry from one directory to another.
    pub(crate) fn renameat(&self, m: &Trenameat<'_>) -> Result<Rrenameat, Failure> {
        let old = name(m.oldname, libc::EISDIR)?;
        let new = name(m.newname, libc::EISDIR)?;
        let from = self.pin(m.olddirfid, libc::ENOENT)?;
        let to = self.pin(m.newdirfid, libc::ENOENT)?;
        let (source, target) = (from.directory()?, to.directory()?);
        let caller = from.caller(NOGID);
        let _move = self.moves.begin();
        self.share.rename(caller, &source, &old, &target, &new)?;
        self.with(|tables| tables.nodes.removed());
        self.follow(&to, &new);
        Ok(Rrenameat)
    }

    /// After a rename by name: if there is a node of what moved, notes where it is now, so that it can be found
    /// again, removed and renamed by its fids. A failure here is none of the rename's.
    fn follow(&self, to: &Pin<'_>, new: &Name) {
        let look = || self.share.revisit(to.object()?.path, new).map_err(Failure::from);
        let found = match look() {
            Err(failure) if failure.is_exhaustion() && self.evict() > 0 => look(),
            other => other,
        };
        if let Ok((_fd, id)) = found
            && let Some(node) = self.with(|tables| tables.nodes.find(&id))
        {
            self.moved(node, to.view().node, new.as_bytes());
        }
    }

    fn moved(&self, node: u32, parent: u32, path: &[u8]) {
        self.with(|tables| {
            let Tables { nodes, dead, .. } = tables;
            nodes.name(node, parent, path, dead);
        });
    }

    /// Removes an entry: a directory's if the flags say so.
    pub(crate) fn unlinkat(&self, m: &Tunlinkat<'_>) -> Result<Runlinkat, Failure> {
        let old = match m.name {
            b".." => Err(Failure::new(libc::ENOTEMPTY)),
            other => name(other, libc::EINVAL),
        }?;
        if m.flags & !P9_DOTL_AT_REMOVEDIR != 0 {
            return Err(Failure::new(libc::EINVAL));
        }
        let dir = self.pin(m.dirfd, libc::EINVAL)?;
        let directory = m.flags & P9_DOTL_AT_REMOVEDIR != 0;
        self.share
            .unlink(dir.caller(NOGID), &dir.directory()?, &old, directory)?;
        self.with(|tables| match directory {
            true => tables.forget_name(dir.view().node, old.as_bytes()),
            false => tables.nodes.removed(),
        });
        Ok(Runlinkat)
    }
}
