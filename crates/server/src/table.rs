//! A session's state: the fid table, and what fids are made of.
//!
//! Everything here is quick and makes no system call; it happens under the session's lock. Descriptors that are
//! no longer needed are collected and closed after the lock is given back.

use std::ops::Range;
use std::os::fd::OwnedFd;

use host::{Caller, FileType, Identity, Object};

use crate::capability::Capabilities;
use crate::dentries::Dentries;
use crate::failure::Failure;
use crate::nodes::{HasHandle, Nodes};
use crate::pin::{NOGID, Raw, Trail};
use crate::session::Limits;
use crate::slab::{HashedSlab, Keyed, NONE, Secret, Slab};

/// What a fid is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// From Tattach or Twalk: names an object, not open.
    Walked,
    /// An open regular file.
    File,
    /// An open directory.
    Dir,
    /// From Txattrwalk: an xattr's value, or the list of names, to be read.
    XattrRead,
    /// From Txattrcreate: an xattr's value, to be written and then set by Tclunk.
    XattrWrite,
}

/// How a fid was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opened {
    /// With O_APPEND.
    pub(crate) append: bool,
    /// Every write goes to the end, and the descriptor itself has O_APPEND: see `io`.
    pub(crate) always: bool,
    /// With O_WRONLY.
    pub(crate) write_only: bool,
    /// With O_WRONLY or O_RDWR.
    pub(crate) writes: bool,
}

/// One fid.
#[derive(Debug)]
pub(crate) struct Fid {
    /// The client's number.
    number: u32,
    /// `n_uname` of the attach it descends from.
    uid: u32,
    node: u32,
    xattr: u32,
    /// Of the session that it is part of: see [`Tables::epoch`].
    epoch: u32,
    file: Option<OwnedFd>,
    /// Requests under way.
    pins: u32,
    chain: u32,
    state: State,
    how: Opened,
    /// No longer in the table; gone with the last pin.
    dead: bool,
    /// An open for reading and writing was refused.
    refused: bool,
    /// Locks may have been taken through it.
    locks: bool,
}

impl Keyed for Fid {
    fn hash(&self, secret: &Secret) -> u64 {
        secret.spread(self.number.into())
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// An xattr on its way from or to the client.
#[derive(Debug, Default)]
pub(crate) struct Xattr {
    /// Its name, to be set; empty when it is read.
    pub(crate) name: Vec<u8>,
    /// The value, or as much of it as has come.
    pub(crate) value: Vec<u8>,
    /// Bytes announced.
    pub(crate) size: usize,
    /// `XATTR_CREATE`, `XATTR_REPLACE` or 0.
    pub(crate) flags: i32,
}

/// A fid as a request sees it: copies of its fields, good while it is pinned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) fid: u32,
    pub(crate) node: u32,
    path: Option<Raw>,
    file: Option<Raw>,
    pub(crate) host_type: u32,
    pub(crate) file_type: FileType,
    pub(crate) state: State,
    pub(crate) how: Opened,
    pub(crate) uid: u32,
    pub(crate) locks: bool,
    /// The node is the shared directory.
    pub(crate) root: bool,
}

impl View {
    /// Of the node's descriptor, if it has one.
    #[inline]
    pub(crate) fn path(&self) -> Option<Raw> {
        self.path
    }

    /// Of the fid's own descriptor, if it is open.
    #[inline]
    pub(crate) fn file(&self) -> Option<Raw> {
        self.file
    }

    /// The same fid once it was turned to `node`.
    pub(crate) fn of(&self, node: u32) -> View {
        View { node, ..*self }
    }

    /// Notes the descriptor that the node has got back.
    pub(crate) fn found(&mut self, path: Raw) {
        self.path = Some(path);
    }
}

/// A fid's object without a pin: good until the lock is given back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glance<'t> {
    pub(crate) object: Object<'t>,
    uid: u32,
}

impl Glance<'_> {
    /// Who asks.
    #[inline]
    pub(crate) fn caller(&self) -> Caller {
        Caller {
            uid: self.uid,
            gid: NOGID,
        }
    }
}

/// Which part of the memory is for nothing but xattrs, if they may have so much.
const XATTRS: usize = 8;

/// Bytes of an xattr's name at most.
const XATTR_NAME: usize = 256;

/// Records dropped at once when a session ends.
const AT_ONCE: usize = 4096;

/// Records of a session that has ended looked at whenever a fid is added.
const BY_AND_BY: u32 = 64;

/// All of a session's state.
#[derive(Debug)]
pub(crate) struct Tables {
    fids: HashedSlab<Fid>,
    pub(crate) nodes: Nodes,
    dentries: Dentries,
    pub(crate) capabilities: Capabilities,
    xattrs: Slab<Xattr>,
    xattr_bytes: usize,
    files: usize,
    /// Counts resets: what began before one must not add fids after it.
    epoch: u64,
    /// Where fids of former sessions may be left: see [`Tables::reset`].
    left: Range<u32>,
    /// To be closed when the lock is given back.
    pub(crate) dead: Vec<OwnedFd>,
    /// The client opens files for writing only, as one with a write-back cache does not: see `io`.
    pub(crate) uncached: bool,
    limits: Limits,
}

impl Tables {
    /// Nothing yet.
    pub(crate) fn new(limits: Limits) -> Tables {
        Tables {
            fids: HashedSlab::default(),
            nodes: Nodes::new(limits.max_fids.saturating_mul(2)),
            dentries: Dentries::new(limits.fd_budget),
            capabilities: Capabilities::default(),
            xattrs: Slab::default(),
            xattr_bytes: 0,
            files: 0,
            epoch: 0,
            left: 0..0,
            dead: Vec::new(),
            uncached: false,
            limits,
        }
    }

    #[inline]
    fn find(&self, number: u32) -> Option<u32> {
        self.fids
            .find(|secret| secret.spread(number.into()), |fid| fid.number == number)
    }

    /// Descriptors that fids and nodes hold.
    pub(crate) fn descriptors(&self) -> usize {
        self.files + self.nodes.open()
    }

    /// Fids, nodes and xattr buffers there are.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.fids.len(), self.nodes.len(), self.xattrs.len())
    }

    /// Which session this is, of those that Tversion began.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// EINVAL when there is a fid `number`.
    pub(crate) fn vacant(&self, number: u32) -> Result<(), Failure> {
        match self.find(number) {
            Some(_) => Err(Failure::new(libc::EINVAL)),
            None => Ok(()),
        }
    }

    /// Pins the fid `number`.
    #[inline]
    pub(crate) fn pin(&mut self, number: u32) -> Option<View> {
        let at = self.find(number)?;
        let fid = self.fids.get_mut(at)?;
        fid.pins += 1;
        let node_number = fid.node;
        let view = View {
            fid: at,
            node: node_number,
            path: None,
            file: fid.file.as_ref().map(Raw::of),
            host_type: 0,
            file_type: FileType::Special,
            state: fid.state,
            how: fid.how,
            uid: fid.uid,
            locks: fid.locks,
            root: false,
        };
        self.nodes.pin(node_number);
        let node = self.nodes.get(node_number)?;
        Some(View {
            path: node.raw(),
            host_type: node.host_type(),
            file_type: node.file_type,
            root: node.is_root(),
            ..view
        })
    }

    /// What is to be known of the fid `number` to look at its object. `None` for a fid of no object, or when the object has
    /// no descriptor.
    #[inline]
    pub(crate) fn glance(&mut self, number: u32) -> Option<Glance<'_>> {
        let fid = self.fids.get(self.find(number)?)?;
        if !matches!(fid.state, State::Walked | State::File | State::Dir) {
            return None;
        }
        let (node, uid) = (fid.node, fid.uid);
        self.nodes.touch(node);
        let object = self.nodes.get(node)?.object()?;
        Some(Glance { object, uid })
    }

    /// Who has the fid `number`, and its object, if it is the last of a regular file of which a name may have been removed
    /// while the client knew it.
    #[inline]
    pub(crate) fn last_of_removed(&self, number: u32) -> Option<(Caller, Object<'_>)> {
        let fid = self.fids.get(self.find(number)?)?;
        let node = self.nodes.get(fid.node)?;
        let last = node.host_type() == libc::S_IFREG && self.nodes.last_of_removed(node);
        let caller = Caller {
            uid: fid.uid,
            gid: NOGID,
        };
        node.object().filter(|_| last).map(|object| (caller, object))
    }

    /// Ends [`Tables::pin`].
    #[inline]
    pub(crate) fn unpin(&mut self, view: &View) {
        self.nodes.unpin(view.node, &mut self.dead);
        let Some(fid) = self.fids.get_mut(view.fid) else {
            return;
        };
        fid.pins = fid.pins.saturating_sub(1);
        if fid.dead && fid.pins == 0 {
            self.free(view.fid);
        }
    }

    /// Pins the directories that `names`, from the node `from` on, led to lately, and notes them in `trail`.
    pub(crate) fn follow<'n>(
        &mut self,
        from: u32,
        names: impl Iterator<Item = &'n [u8]>,
        trail: &mut Trail<'_>,
    ) {
        let mut at = from;
        for name in names {
            let Some(node) = self.dentries.find(at, name) else {
                return;
            };
            if trail.push(&mut self.nodes, node).is_none() {
                return;
            }
            at = node;
        }
    }

    /// The node of what a walk found at the path `from`, with a reference of the caller's; later walks will know the
    /// way, if it is a directory.
    pub(crate) fn adopt_named(
        &mut self,
        fd: OwnedFd,
        id: &Identity,
        from: (u32, &[u8]),
        has_handle: HasHandle<'_>,
    ) -> u32 {
        let node = self.nodes.adopt(fd, id, Some(from), has_handle, &mut self.dead);
        let single = !from.1.contains(&b'/');
        if single && id.at_home && id.file_type == FileType::Directory && id.host_type == libc::S_IFDIR {
            self.nodes.retain(node);
            if let Some(old) = self.dentries.put(from.0, from.1, node) {
                self.nodes.release(old, &mut self.dead);
            }
        }
        node
    }

    /// As [`Tables::adopt_named`] for a directory on a walk's way; `None`, and nothing is kept, for one that cannot be
    /// told again by a look.
    pub(crate) fn settle(
        &mut self,
        fd: OwnedFd,
        id: &Identity,
        from: (u32, &[u8]),
        has_handle: HasHandle<'_>,
    ) -> Option<u32> {
        if !id.at_home {
            self.dead.push(fd);
            return None;
        }
        Some(self.adopt_named(fd, id, from, has_handle))
    }

    /// Forgets which directory `name` in the directory node `parent` led to: it is gone, and should not be held.
    pub(crate) fn forget_name(&mut self, parent: u32, name: &[u8]) {
        if let Some(node) = self.dentries.forget(parent, name) {
            self.nodes.release(node, &mut self.dead);
        }
    }

    /// The fid behind a pin, if it still stands for the same object, and the client has not given it back meanwhile, by
    /// itself or with its whole session: of a large one the records go later ([`Tables::reset`]).
    fn live(&mut self, view: &View) -> Result<&mut Fid, Failure> {
        let epoch = self.epoch as u32;
        self.fids
            .get_mut(view.fid)
            .filter(|fid| !fid.dead && fid.epoch == epoch && fid.node == view.node)
            .ok_or(Failure::new(libc::EBADF))
    }

    /// Adds a fid for `node`, of which the caller gives a reference, on failure too. `epoch` is when the request
    /// began.
    pub(crate) fn add(&mut self, number: u32, uid: u32, node: u32, epoch: u64) -> Result<u32, Failure> {
        self.sweep(BY_AND_BY);
        let result = if epoch != self.epoch {
            Err(Failure::new(libc::ECONNRESET))
        } else if self.fids.len() >= self.limits.max_fids || self.is_full() {
            Err(Failure::new(libc::ENFILE))
        } else {
            self.vacant(number)
        };
        if let Err(failure) = result {
            self.nodes.release(node, &mut self.dead);
            return Err(failure);
        }
        Ok(self.fids.insert(Fid {
            number,
            uid,
            node,
            xattr: NONE,
            epoch: self.epoch as u32,
            file: None,
            pins: 0,
            chain: NONE,
            state: State::Walked,
            how: Opened::default(),
            dead: false,
            refused: false,
            locks: false,
        }))
    }

    /// Makes the fid stand for another node, of which the caller gives a reference, on failure too. Only while it
    /// is not open.
    pub(crate) fn turn(&mut self, view: &View, node: u32) -> Result<(), Failure> {
        let full = self.is_full();
        let old = match self.live(view) {
            Ok(_) if full => {
                self.nodes.release(node, &mut self.dead);
                return Err(Failure::new(libc::ENFILE));
            }
            Ok(fid) if fid.state == State::Walked => std::mem::replace(&mut fid.node, node),
            Ok(_) => {
                self.nodes.release(node, &mut self.dead);
                return Err(Failure::new(libc::EINVAL));
            }
            Err(failure) => {
                self.nodes.release(node, &mut self.dead);
                return Err(failure);
            }
        };
        self.nodes.release(old, &mut self.dead);
        Ok(())
    }

    /// Makes the fid an open one. Only while it is not open.
    pub(crate) fn open(
        &mut self,
        view: &View,
        file: OwnedFd,
        state: State,
        how: Opened,
    ) -> Result<(), Failure> {
        let result = self.live(view).and_then(|fid| match fid.state {
            State::Walked => Ok(fid),
            _ => Err(Failure::new(libc::EINVAL)),
        });
        let fid = match result {
            Ok(fid) => fid,
            Err(failure) => {
                self.dead.push(file);
                return Err(failure);
            }
        };
        fid.file = Some(file);
        (fid.state, fid.how) = (state, how);
        let (node, genuine) = (fid.node, how.write_only && !fid.refused);
        self.uncached |= genuine;
        self.files += 1;
        self.nodes.opened(node);
        if how.writes {
            self.capabilities.opened(node);
        }
        Ok(())
    }

    /// Notes that an open for reading and writing was refused: a client that tries writing only next does so for
    /// want of better.
    pub(crate) fn refuse(&mut self, view: &View) {
        if let Ok(fid) = self.live(view) {
            fid.refused = true;
        }
    }

    /// Notes that locks are taken through the fid; EBADF when it is gone.
    pub(crate) fn will_lock(&mut self, view: &View) -> Result<(), Failure> {
        self.live(view).map(|fid| fid.locks = true)
    }

    /// Whether locks were taken through the fid.
    pub(crate) fn has_locks(&mut self, view: &View) -> bool {
        self.fids.get(view.fid).is_some_and(|fid| fid.locks)
    }

    /// Bytes of memory that all this takes.
    pub(crate) fn bytes(&self) -> usize {
        self.lasting_bytes() + self.xattrs.bytes() + self.xattrs.len() * XATTR_NAME + self.xattr_bytes
    }

    /// Those of fids and what they stand for. They are kept for others of these until the session ends.
    fn lasting_bytes(&self) -> usize {
        self.fids.bytes() + self.nodes.bytes()
    }

    /// Whether there is no room for a fid more and the nodes of a walk. What is full does not grow in any other way, either.
    ///
    /// A part of the limit is never theirs: since their memory does not become less, a guest that has once met the limit could
    /// read no xattr any more, neither an ACL, whatever it gives back.
    fn is_full(&mut self) -> bool {
        let most = self.limits.max_state_bytes;
        let for_xattrs = self.limits.max_xattr_bytes.min(most / XATTRS);
        let full = self.lasting_bytes() >= most - for_xattrs;
        self.nodes.set_full(full);
        full && (self.fids.spare() == 0 || !self.nodes.has_spare())
    }

    /// ENOSPC when an xattr of `size` bytes is more than the limits allow.
    fn xattr_fits(&self, size: usize) -> Result<(), Failure> {
        let fids = self.limits.max_xattr_fids;
        let bytes = self.xattr_bytes.saturating_add(size);
        let full = self.bytes() >= self.limits.max_state_bytes;
        if full || (fids != 0 && self.xattrs.len() >= fids) || bytes > self.limits.max_xattr_bytes {
            return Err(Failure::new(libc::ENOSPC));
        }
        Ok(())
    }

    /// Makes the fid at `at` one of `xattr`.
    fn attach_xattr(&mut self, at: u32, state: State, xattr: Xattr) {
        self.xattr_bytes += xattr.size;
        let number = self.xattrs.insert(xattr);
        if let Some(fid) = self.fids.get_mut(at) {
            (fid.state, fid.xattr) = (state, number);
        }
    }

    /// Adds a fid from which `xattr` is read.
    pub(crate) fn add_xattr(
        &mut self,
        number: u32,
        from: &View,
        xattr: Xattr,
        epoch: u64,
    ) -> Result<(), Failure> {
        self.xattr_fits(xattr.size)?;
        self.nodes.retain(from.node);
        let at = self.add(number, from.uid, from.node, epoch)?;
        self.attach_xattr(at, State::XattrRead, xattr);
        Ok(())
    }

    /// Makes the fid one to which `xattr` is written. Only while it is not open.
    pub(crate) fn turn_xattr(&mut self, view: &View, xattr: Xattr) -> Result<(), Failure> {
        self.xattr_fits(xattr.size)?;
        if self.live(view)?.state != State::Walked {
            return Err(Failure::new(libc::EINVAL));
        }
        self.attach_xattr(view.fid, State::XattrWrite, xattr);
        Ok(())
    }

    /// The xattr of a pinned fid.
    pub(crate) fn xattr(&mut self, view: &View) -> Option<&mut Xattr> {
        let number = self.fids.get(view.fid)?.xattr;
        self.xattrs.get_mut(number)
    }

    /// Takes a pinned fid out of the table; false when that has happened already.
    pub(crate) fn clunk(&mut self, view: &View) -> bool {
        let dead = self.fids.get(view.fid).is_none_or(|fid| fid.dead);
        if !dead {
            self.bury(view.fid);
        }
        !dead
    }

    /// Takes the fid `number` out when nothing but that is to be done: no request uses it, it has no locks and
    /// is not an xattr to be set. Gives the descriptor whose close is to be watched, if it is one. `None` when it is
    /// not so, or there is no such fid, or it is an open file and `open` says that this is not the thread to close
    /// one.
    pub(crate) fn clunk_idle(&mut self, number: u32, open: bool) -> Option<Option<OwnedFd>> {
        let at = self.find(number)?;
        let fid = self.fids.get(at)?;
        if fid.pins > 0 || fid.locks || fid.state == State::XattrWrite || (fid.file.is_some() && !open) {
            return None;
        }
        let written = self.take_written(at);
        self.bury(at);
        Some(written)
    }

    /// The descriptor of a pinned fid that was clunked, for its close to be watched: `None` if nothing can have been
    /// written through it, or another request still uses it.
    pub(crate) fn take_written_last(&mut self, view: &View) -> Option<OwnedFd> {
        let last = self.fids.get(view.fid).is_some_and(|fid| fid.pins == 1);
        last.then(|| self.take_written(view.fid))?
    }

    fn take_written(&mut self, at: u32) -> Option<OwnedFd> {
        let fid = self.fids.get_mut(at).filter(|fid| fid.how.writes)?;
        let (file, node) = (fid.file.take()?, fid.node);
        self.files -= 1;
        self.nodes.closed(node);
        Some(file)
    }

    fn bury(&mut self, at: u32) {
        self.fids.unindex(at);
        if let Some(fid) = self.fids.get_mut(at) {
            fid.dead = true;
            if fid.how.writes {
                self.capabilities.closed(fid.node);
            }
            if fid.pins == 0 {
                self.free(at);
            }
        }
    }

    fn free(&mut self, at: u32) {
        let Some(fid) = self.fids.remove(at) else { return };
        if let Some(file) = fid.file {
            self.files -= 1;
            self.nodes.closed(fid.node);
            self.dead.push(file);
        }
        if let Some(xattr) = self.xattrs.remove(fid.xattr) {
            self.xattr_bytes = self.xattr_bytes.saturating_sub(xattr.size);
        }
        self.nodes.release(fid.node, &mut self.dead);
    }

    /// Drops all fids. Those in use by requests under way go with the last of these.
    ///
    /// What is much, or `apart`, is given to the caller to be dropped when nobody waits: that may take seconds, and
    /// closing a file may free its blocks. If some of it is in use it cannot be moved; then it is forgotten, and goes bit by
    /// bit with the fids that are added later.
    pub(crate) fn reset(&mut self, apart: bool) -> Option<Tables> {
        let end = self.fids.end();
        let apart = self.is_much() || (apart && self.nodes.len() > 0);
        if apart && !self.nodes.in_use() {
            let fresh = self.fresh();
            return Some(std::mem::replace(self, fresh));
        }
        self.epoch += 1;
        self.fids.unindex_all();
        self.left = 0..end;
        self.sweep(AT_ONCE as u32);
        let Tables {
            nodes,
            dentries,
            dead,
            ..
        } = self;
        dentries.drain().for_each(|node| nodes.release(node, dead));
        nodes.finish(dead);
        self.uncached = false;
        if self.fids.len() == 0 && self.nodes.len() == 0 {
            // Give the memory back.
            let (dead, epoch) = (std::mem::take(&mut self.dead), self.epoch);
            *self = Tables {
                dead,
                epoch,
                ..self.fresh()
            };
        }
        None
    }

    /// Whether to drop all this takes long.
    pub(crate) fn is_much(&self) -> bool {
        let records = self.fids.len() + self.nodes.len() + self.xattrs.len();
        records.max(self.fids.end() as usize) > AT_ONCE
    }

    /// Empty ones of the next session.
    fn fresh(&self) -> Tables {
        Tables {
            epoch: self.epoch + 1,
            ..Tables::new(self.limits)
        }
    }

    /// Drops what is left of former sessions among so many records.
    fn sweep(&mut self, most: u32) {
        if self.left.is_empty() {
            return;
        }
        let upto = self.left.start.saturating_add(most).min(self.left.end);
        for at in self.left.start..upto {
            let stale = |fid: &Fid| !fid.dead && fid.epoch != self.epoch as u32;
            if self.fids.get(at).is_some_and(stale) {
                self.bury(at);
            }
        }
        self.left.start = upto;
    }
}

#[cfg(test)]
mod tests;
