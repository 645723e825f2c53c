//! Nodes: the host objects that a session's fids stand for, one per object.
//!
//! A node keeps an `O_PATH` descriptor while there are enough of them, and always what it takes to find the object
//! again: the node of a parent and the path below it, and a file handle to tell it by. This file and `evict` are the
//! book-keeping; the system calls are in `find`.
//!
//! Hard links and bind mounts of one object are one node, reached the way it was reached first: a guest that sees a
//! directory twice, once mounted read-only, is told so by the mount that it looked at first.

mod evict;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use host::{FileType, Identity, Object};

use crate::bytes::ByteStore;
use crate::pin::Raw;
use crate::slab::{HashedSlab, Keyed, NONE, Secret};

pub(crate) use evict::{Known, Start};

/// How many parents are looked at to tell that a new name makes no circle: as many as it may be found through.
const CIRCLE_CHECK: usize = 4096;

/// Nanoseconds within which two objects may have one time of birth: some file systems count in units of two seconds (FAT),
/// and the kernel's clock moves by a tick (`current_time`).
const TICK: u64 = 3_000_000_000;

/// Which object a node is. Exact while somebody holds the object. Afterwards its inode number is used again, by an object
/// of any type, and even with the same time of birth, which moves by the tick of a clock: then it takes the file handle,
/// too, to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Same {
    dev: u64,
    ino: u64,
    /// Nanoseconds; 0 when not known.
    birth: u64,
    /// `S_IFMT` bits of the host object.
    host_type: u32,
}

impl Same {
    /// Of an identity.
    pub(crate) fn of(id: &Identity) -> Same {
        let sec = id.birth.sec.cast_unsigned().wrapping_mul(1_000_000_000);
        Same {
            dev: id.dev,
            ino: id.ino,
            birth: sec.wrapping_add(id.birth.nsec.into()),
            host_type: id.host_type,
        }
    }

    /// Whether nothing that is made at `time` or later has this time of birth: it is known, and not of just now.
    fn was_born_before(self, time: SystemTime) -> bool {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        self.birth != 0 && self.birth.saturating_add(TICK) < now
    }

    /// Inode numbers are used again and again, so a client can have any number of nodes that differ only in their birth.
    fn hash(self, secret: &Secret) -> u64 {
        secret.spread(secret.spread(self.ino ^ self.dev.rotate_left(32)) ^ self.birth)
    }
}

/// One host object.
#[derive(Debug)]
pub(crate) struct Node {
    /// Which one.
    pub(crate) same: Same,
    /// Its `O_PATH` descriptor, unless evicted.
    fd: Option<OwnedFd>,
    /// What the guest sees.
    pub(crate) file_type: FileType,
    /// The root is never evicted.
    root: bool,
    /// Its file handle, from the first eviction on: the bytes of a [`host::Handle`].
    handle: u32,
    /// The directory that `path` starts from.
    parent: u32,
    /// One or more names with `/` between: a walk of many names leaves no node for those in the middle.
    path: u32,
    /// Fids, and nodes whose parent this is.
    refs: u32,
    /// Requests under way.
    pins: u32,
    /// Open fids. Their object may have no name any more, so it is not evicted.
    opens: u32,
    /// How many names had been removed when it was made.
    made: u32,
    /// Whether it is on the list of those that may be evicted.
    listed: bool,
    /// Walked to by more than one name, so that `path` need not be the one that a fid was walked to by.
    pub(crate) several: bool,
    chain: u32,
    newer: u32,
    older: u32,
}

impl Node {
    /// The number of its descriptor, if it has one.
    #[inline]
    pub(crate) fn raw(&self) -> Option<Raw> {
        self.fd.as_ref().map(Raw::of)
    }

    /// The object, if it has a descriptor.
    #[inline]
    pub(crate) fn object(&self) -> Option<Object<'_>> {
        let fd = self.fd.as_ref()?;
        Some(Object::by_path(fd.as_fd(), self.host_type()))
    }

    /// Whether it is the shared directory.
    #[inline]
    pub(crate) fn is_root(&self) -> bool {
        self.root
    }

    /// `S_IFMT` bits of the host object.
    #[inline]
    pub(crate) fn host_type(&self) -> u32 {
        self.same.host_type
    }

    /// Whether its file handle is known.
    pub(crate) fn has_handle(&self) -> bool {
        self.handle != NONE
    }

    /// Whether an object with this [`Same`] that is found after nobody has held this one can be told to be it.
    fn can_be_told(&self) -> bool {
        self.has_handle() || self.same.was_born_before(SystemTime::now())
    }
}

impl Keyed for Node {
    fn hash(&self, secret: &Secret) -> u64 {
        self.same.hash(secret)
    }
    fn chain(&self) -> u32 {
        self.chain
    }
    fn set_chain(&mut self, next: u32) {
        self.chain = next;
    }
}

/// Whether the object of a descriptor has this file handle: [`host::Share::is_of_handle`].
pub(crate) type HasHandle<'a> = &'a dyn Fn(BorrowedFd<'_>, &[u8]) -> bool;

/// All nodes of a session.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: HashedSlab<Node>,
    bytes: ByteStore,
    /// Beyond this many, new nodes do not keep their parents alive.
    most: usize,
    /// Ends of the list of `evict`.
    newest: u32,
    oldest: u32,
    /// Nodes with a descriptor.
    open: usize,
    /// Names of files that the client has removed, in whatever way; wraps.
    removals: u32,
    /// Pins there are.
    pinned: usize,
    /// Nodes that nobody refers to but what is gone: see [`Nodes::release`].
    doomed: Vec<u32>,
}

/// Nodes freed at once. A chain of directories can be millions long, each held by the one below only.
const CASCADE: usize = 256;

/// How often so many when a session ends.
const AT_ONCE: usize = 64;

impl Nodes {
    /// No nodes; room for `most` with parents.
    pub(crate) fn new(most: usize) -> Nodes {
        Nodes {
            nodes: HashedSlab::default(),
            bytes: ByteStore::default(),
            most,
            newest: NONE,
            oldest: NONE,
            open: 0,
            removals: 0,
            pinned: 0,
            doomed: Vec::new(),
        }
    }

    /// Nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether a request is at work on any of them.
    pub(crate) fn in_use(&self) -> bool {
        self.pinned > 0
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.bytes() + self.bytes.bytes() + self.doomed.capacity() * size_of::<u32>()
    }

    /// Whether a walk's nodes would take no more memory.
    pub(crate) fn has_spare(&self) -> bool {
        self.nodes.spare() > wire::MAXWELEM && self.bytes.spare() > wire::MAXWELEM * 256
    }

    /// Says whether names may take more memory. Where they may not, nodes keep the place that is known, if any.
    pub(crate) fn set_full(&mut self, full: bool) {
        self.bytes.full = full;
    }

    /// Descriptors that nodes hold.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// The node `number`.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&Node> {
        self.nodes.get(number)
    }

    /// The node of the object that `fd` names, found at `path` below the node `parent` if that is known; counted as
    /// one reference more. A descriptor too many goes to `dead`.
    pub(crate) fn adopt(
        &mut self,
        fd: OwnedFd,
        id: &Identity,
        from: Option<(u32, &[u8])>,
        has_handle: HasHandle<'_>,
        dead: &mut Vec<OwnedFd>,
    ) -> u32 {
        self.go_on(dead);
        let same = Same::of(id);
        let found = self
            .nodes
            .find(|secret| same.hash(secret), |node| node.same == same);
        if let Some(number) = found {
            // While its descriptor is open nothing else can get the inode number.
            if self.is_open(number) || self.tells(number, fd.as_fd(), has_handle) {
                self.restore(number, fd, dead);
                self.touch(number);
                self.retain(number);
                if let Some((parent, path)) = from {
                    self.came_by(number, parent, path);
                    self.name(number, parent, path, dead);
                }
                return number;
            }
            // The evicted node is, or may be, another object. It is found again by its own means, or not at all.
            self.nodes.unindex(number);
        }
        let number = self.nodes.insert(Node {
            same,
            fd: Some(fd),
            file_type: id.file_type,
            root: false,
            handle: NONE,
            parent: NONE,
            path: NONE,
            refs: 1,
            pins: 0,
            opens: 0,
            made: self.removals,
            listed: false,
            several: false,
            chain: NONE,
            newer: NONE,
            older: NONE,
        });
        self.open += 1;
        self.link(number);
        if let Some((parent, path)) = from
            && self.nodes.len() <= self.most
        {
            // Nobody's ancestor yet, so no circle can come of it.
            self.place_at(number, parent, path);
        }
        number
    }

    fn is_open(&self, number: u32) -> bool {
        self.nodes.get(number).is_some_and(|node| node.fd.is_some())
    }

    /// Whether an object that has the node's [`Same`], and was found while nobody held the node's, is that one.
    fn tells(&self, number: u32, fd: BorrowedFd<'_>, has_handle: HasHandle<'_>) -> bool {
        let Some(node) = self.nodes.get(number) else {
            return false;
        };
        match self.handle(number) {
            Some(handle) => has_handle(fd, &handle),
            // It was let go when nothing that is made later could have its birth.
            None => node.same.birth != 0,
        }
    }

    /// The node's file handle, if it is known.
    pub(crate) fn handle(&self, number: u32) -> Option<Vec<u8>> {
        let node = self.nodes.get(number).filter(|node| node.has_handle())?;
        let mut bytes = Vec::new();
        self.bytes.get(node.handle, &mut bytes);
        Some(bytes)
    }

    /// Notes whether a walk came by another name than the one that is known.
    fn came_by(&mut self, number: u32, parent: u32, path: &[u8]) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.several |= node.parent != parent || !self.bytes.is(node.path, path);
        }
    }

    /// Marks the root.
    pub(crate) fn set_root(&mut self, number: u32) {
        self.unlink(number);
        if let Some(node) = self.nodes.get_mut(number) {
            node.root = true;
        }
    }

    /// The node with this identity that has a descriptor or can be told from its successors.
    #[inline]
    pub(crate) fn find(&self, id: &Identity) -> Option<u32> {
        let same = Same::of(id);
        self.nodes
            .find(|secret| same.hash(secret), |node| node.same == same)
    }

    /// Notes that the node is at `path` below `parent` now.
    pub(crate) fn name(&mut self, number: u32, parent: u32, path: &[u8], dead: &mut Vec<OwnedFd>) {
        let Some(node) = self.nodes.get(number) else {
            return;
        };
        let (old_parent, old_path) = (node.parent, node.path);
        if node.root || path.is_empty() || (old_parent == parent && self.bytes.is(old_path, path)) {
            return;
        }
        let directory = node.host_type() == libc::S_IFDIR;
        // A directory that host and guest moved about in turns must not become its own ancestor.
        let mut above = if directory { parent } else { NONE };
        for _ in 0..CIRCLE_CHECK {
            if above == number {
                return;
            }
            match self.nodes.get(above) {
                Some(node) => above = node.parent,
                None => break,
            }
        }
        if above != NONE || self.nodes.get(parent).is_none() {
            return;
        }
        if self.place_at(number, parent, path) {
            self.bytes.remove(old_path);
            self.release(old_parent, dead);
        }
    }

    /// False when there is no room for the path.
    fn place_at(&mut self, number: u32, parent: u32, path: &[u8]) -> bool {
        let path = self.bytes.put(path);
        if path == NONE {
            return false;
        }
        self.retain(parent);
        if let Some(node) = self.nodes.get_mut(number) {
            (node.parent, node.path) = (parent, path);
        }
        // It may have been on no list for want of a way to find it again.
        self.link(number);
        true
    }

    /// Notes that a file has lost a name: which of them is not known.
    pub(crate) fn removed(&mut self) {
        self.removals = self.removals.wrapping_add(1);
    }

    /// Whether the node goes with the next reference, and may have lost a name since it was made.
    #[inline]
    pub(crate) fn last_of_removed(&self, node: &Node) -> bool {
        node.refs == 1 && node.made != self.removals
    }

    /// The node's parent and the path from there.
    pub(crate) fn place(&self, number: u32) -> Option<(u32, Vec<u8>)> {
        let node = self.nodes.get(number)?;
        let mut path = Vec::new();
        self.bytes.get(node.path, &mut path);
        (node.parent != NONE && !path.is_empty()).then_some((node.parent, path))
    }

    /// One reference more.
    pub(crate) fn retain(&mut self, number: u32) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.refs += 1;
        }
    }

    /// One reference less; a node without any, and then its parents without any, are gone. Of very many parents those
    /// that are left go with what is added later.
    pub(crate) fn release(&mut self, number: u32, dead: &mut Vec<OwnedFd>) {
        let mut at = number;
        for _ in 0..CASCADE {
            let Some(node) = self.nodes.get_mut(at) else {
                return;
            };
            node.refs = node.refs.saturating_sub(1);
            if node.refs > 0 || node.pins > 0 {
                return;
            }
            at = self.free(at, dead);
        }
        if at != NONE {
            self.doomed.push(at);
        }
    }

    /// Frees what [`Nodes::release`] has left, as far as that goes at once.
    pub(crate) fn finish(&mut self, dead: &mut Vec<OwnedFd>) {
        for _ in 0..AT_ONCE {
            self.go_on(dead);
        }
    }

    /// Frees some of what [`Nodes::release`] has left.
    fn go_on(&mut self, dead: &mut Vec<OwnedFd>) {
        if let Some(number) = self.doomed.pop() {
            self.release(number, dead);
        }
    }

    /// Takes a node out; gives its parent, whose reference is then the caller's.
    fn free(&mut self, number: u32, dead: &mut Vec<OwnedFd>) -> u32 {
        self.unlink(number);
        let Some(node) = self.nodes.remove(number) else {
            return NONE;
        };
        if let Some(fd) = node.fd {
            self.open -= 1;
            dead.push(fd);
        }
        self.bytes.remove(node.handle);
        self.bytes.remove(node.path);
        node.parent
    }

    /// A request begins to use the node: it is neither freed nor evicted.
    #[inline]
    pub(crate) fn pin(&mut self, number: u32) {
        self.touch(number);
        if let Some(node) = self.nodes.get_mut(number) {
            node.pins += 1;
            self.pinned += 1;
        }
    }

    /// A request has done with the node.
    #[inline]
    pub(crate) fn unpin(&mut self, number: u32, dead: &mut Vec<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(number) else {
            return;
        };
        node.pins = node.pins.saturating_sub(1);
        let last = node.refs == 0 && node.pins == 0;
        self.pinned = self.pinned.saturating_sub(1);
        if last {
            let parent = self.free(number, dead);
            self.release(parent, dead);
        }
    }

    /// A fid of it was opened.
    pub(crate) fn opened(&mut self, number: u32) {
        self.unlink(number);
        if let Some(node) = self.nodes.get_mut(number) {
            node.opens += 1;
        }
    }

    /// An open fid of it is gone.
    pub(crate) fn closed(&mut self, number: u32) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.opens = node.opens.saturating_sub(1);
        }
        self.link(number);
    }
}

#[cfg(test)]
mod tests;
