//! The session's lock, and guards that keep fids and nodes where they are while a request uses them without it.
//!
//! A handler is straight-line code: pin, make the system calls, lock, note what came of it. The `unsafe` here turns the
//! number of a descriptor in a pinned record into something to make system calls with.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{MutexGuard, PoisonError};

use host::{At, Caller, FileType, Object};
use wire::MAXWELEM;

use crate::failure::Failure;
use crate::nodes::{Node, Nodes, Same};
use crate::session::Session;
use crate::table::{Opened, State, Tables, View};

/// gid of messages that create nothing.
pub(crate) const NOGID: u32 = u32::MAX;

/// Descriptors closed per turn of the lock.
const CLOSE: usize = 8;

/// Descriptors that are too many for the thread that happens to find them.
const MUCH: usize = 64;

/// The number of a descriptor that a record has: of one that was open when it was looked at, so it is never -1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw(RawFd);

impl Raw {
    /// Of a record's descriptor.
    #[inline]
    pub(crate) fn of(fd: &OwnedFd) -> Raw {
        Raw(fd.as_raw_fd())
    }

    /// # Safety
    /// The record must keep the descriptor for `'a`: it does while it is pinned.
    #[inline]
    unsafe fn borrow<'a>(self) -> BorrowedFd<'a> {
        // SAFETY: open when this was made, and the caller vouches for it since.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl Session {
    /// Runs `work` on the tables, under the lock. Descriptors that are no longer needed are closed after it.
    #[inline(always)]
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Tables) -> R) -> R {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut tables);
        if !tables.dead.is_empty() {
            self.close_dead(tables);
        }
        result
    }

    /// Closes what was collected, some at a time, without the lock; what is much, elsewhere.
    fn close_dead<'s>(&'s self, mut tables: MutexGuard<'s, Tables>) {
        if tables.dead.len() > MUCH {
            let dead = std::mem::take(&mut tables.dead);
            drop(tables);
            self.closing.run(dead.len(), move || drop(dead));
            return;
        }
        while !tables.dead.is_empty() {
            let mut batch: [Option<OwnedFd>; CLOSE] = [const { None }; CLOSE];
            for place in &mut batch {
                *place = tables.dead.pop();
            }
            let more = !tables.dead.is_empty();
            drop(tables);
            for fd in batch.into_iter().flatten() {
                // Nobody is left to be told of an error: where somebody is, Tclunk closes.
                let _ = host::close(fd);
            }
            if !more {
                return;
            }
            tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Pins the fid `number`, with its object found again if that was necessary; `missing` is the errno when there
    /// is no such fid.
    #[inline(always)]
    pub(crate) fn pin(&self, number: u32, missing: i32) -> Result<Pin<'_>, Failure> {
        self.pin_if(number, missing, |_, _| Ok(()))
    }

    /// As [`Session::pin`], after `check` has looked at the tables. Inlined for good: handed over in memory, the
    /// dozen narrow fields would be read as wider words than they were written, which waits for the stores.
    #[inline(always)]
    pub(crate) fn pin_if(
        &self,
        number: u32,
        missing: i32,
        check: impl FnOnce(&mut Tables, &View) -> Result<(), Failure>,
    ) -> Result<Pin<'_>, Failure> {
        let (view, epoch) = self.with(|tables| {
            let view = tables.pin(number).ok_or(Failure::new(missing))?;
            if let Err(failure) = check(tables, &view) {
                tables.unpin(&view);
                return Err(failure);
            }
            Ok((view, tables.epoch()))
        })?;
        let mut pin = Pin {
            session: self,
            view,
            epoch,
        };
        if pin.view.state != State::XattrRead {
            pin.find()?;
        }
        Ok(pin)
    }

    /// Runs `work`, which is one short system call, on the object of the fid `number` with the session's lock held: one turn
    /// of it in place of two, and no guard. `None` when `work` did not run: there is no such fid, it stands for no
    /// object, or its object must be found again.
    #[inline(always)]
    pub(crate) fn at_once<R>(&self, number: u32, work: impl FnOnce(Caller, &Object<'_>) -> R) -> Option<R> {
        self.with(|tables| {
            let glance = tables.glance(number)?;
            Some(work(glance.caller(), &glance.object))
        })
    }

    /// As [`Session::at_once`] for each of `fids`, until there is none to work on or `work` gives false; gives how often
    /// it gave true.
    #[inline]
    pub(crate) fn each_at_once(
        &self,
        fids: impl Iterator<Item = u32>,
        mut work: impl FnMut(Caller, &Object<'_>) -> bool,
    ) -> usize {
        self.with(|tables| {
            let worked = |&number: &u32| match tables.glance(number) {
                Some(glance) => work(glance.caller(), &glance.object),
                None => false,
            };
            fids.take_while(worked).count()
        })
    }

    /// As [`Session::pin`], but an evicted object is not looked for.
    pub(crate) fn pin_as_is(&self, number: u32, missing: i32) -> Result<Pin<'_>, Failure> {
        let (view, epoch) = self.with(|tables| {
            let view = tables.pin(number).ok_or(Failure::new(missing))?;
            Ok::<_, Failure>((view, tables.epoch()))
        })?;
        Ok(Pin {
            session: self,
            view,
            epoch,
        })
    }

    /// Pins a node that a pinned fid or node refers to.
    pub(crate) fn pin_node(&self, node: u32) -> Result<NodePin<'_>, Failure> {
        let path = self.with(|tables| {
            tables.nodes.pin(node);
            tables.nodes.get(node).and_then(Node::raw)
        });
        let count = Count { session: self, node };
        let path = match path {
            Some(path) => path,
            None => self.find_again(node)?,
        };
        Ok(NodePin { count, path })
    }
}

/// A fid in use by a request.
pub(crate) struct Pin<'s> {
    session: &'s Session,
    /// Pinned.
    view: View,
    epoch: u64,
}

impl Pin<'_> {
    /// Finds the object again if its node was evicted.
    #[inline]
    pub(crate) fn find(&mut self) -> Result<(), Failure> {
        if self.view.path().is_none() {
            let found = self.session.find_again(self.view.node)?;
            self.view.found(found);
        }
        Ok(())
    }

    /// The fid as it was when it was pinned.
    #[inline]
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// The fid's object. EINVAL when it stands for none, or for one that nobody has found again.
    #[inline]
    pub(crate) fn object(&self) -> Result<Object<'_>, Failure> {
        let path = self.view.path().ok_or(Failure::new(libc::EINVAL))?;
        Ok(Object {
            // SAFETY: the node is pinned for as long as this guard lives, and so are both descriptors: a pinned node is
            // not evicted, a pinned fid not freed, and the descriptor that a fid was opened with stays with it.
            path: unsafe { path.borrow() },
            // SAFETY: as above.
            file: self.view.file().map(|file| unsafe { file.borrow() }),
            host_type: self.view.host_type,
            at: At::Unknown,
        })
    }

    /// The open descriptor: of a file (EINVAL otherwise).
    pub(crate) fn file(&self) -> Result<BorrowedFd<'_>, Failure> {
        match self.view.file() {
            // SAFETY: as in `object`.
            Some(file) => Ok(unsafe { file.borrow() }),
            None => Err(Failure::new(libc::EINVAL)),
        }
    }

    /// Who asks.
    #[inline]
    pub(crate) fn caller(&self, gid: u32) -> Caller {
        Caller {
            uid: self.view.uid,
            gid,
        }
    }

    /// The fid's state when it was pinned.
    #[inline]
    pub(crate) fn state(&self) -> State {
        self.view.state
    }

    /// How the fid was opened.
    pub(crate) fn how(&self) -> Opened {
        self.view.how
    }

    /// What the guest sees.
    pub(crate) fn file_type(&self) -> FileType {
        self.view.file_type
    }

    /// When the request began, for [`Tables::add`].
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// EINVAL when the fid stands for an xattr and not for an object.
    #[inline]
    pub(crate) fn is_object(&self) -> Result<(), Failure> {
        match self.view.state {
            State::Walked | State::File | State::Dir => Ok(()),
            State::XattrRead | State::XattrWrite => Err(Failure::new(libc::EINVAL)),
        }
    }

    /// EINVAL when the fid is open or an xattr's.
    pub(crate) fn is_unopened(&self) -> Result<(), Failure> {
        match self.view.state {
            State::Walked => Ok(()),
            _ => Err(Failure::new(libc::EINVAL)),
        }
    }

    /// The object, to do something with a name in it. ENOTDIR when it is no directory (EINVAL for an xattr's fid), ESTALE
    /// when the host has moved it out of the shared directory.
    pub(crate) fn directory(&self) -> Result<Object<'_>, Failure> {
        self.is_object()?;
        if self.view.file_type != FileType::Directory {
            return Err(Failure::new(libc::ENOTDIR));
        }
        let object = self.object()?;
        if !self.view.root {
            self.session.still_inside(&object)?;
        }
        Ok(object)
    }
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.session.with(|tables| tables.unpin(&self.view));
    }
}

/// A node in use by a request, not through a fid.
pub(crate) struct NodePin<'s> {
    count: Count<'s>,
    path: Raw,
}

/// A request that a node's `pins` counts.
struct Count<'s> {
    session: &'s Session,
    node: u32,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.session.with(|tables| {
            let Tables { nodes, dead, .. } = tables;
            nodes.unpin(self.node, dead);
        });
    }
}

impl<'s> NodePin<'s> {
    /// Pins a node of the session's, whose lock the caller has; `None` when it has no descriptor. Not to be dropped under
    /// the lock.
    pub(crate) fn new(session: &'s Session, nodes: &mut Nodes, node: u32) -> Option<NodePin<'s>> {
        let path = nodes.get(node)?.raw()?;
        nodes.pin(node);
        Some(NodePin {
            count: Count { session, node },
            path,
        })
    }

    /// Its descriptor.
    pub(crate) fn path(&self) -> BorrowedFd<'_> {
        // SAFETY: the node is pinned for as long as this guard lives.
        unsafe { self.path.borrow() }
    }

    /// Which node.
    pub(crate) fn node(&self) -> u32 {
        self.count.node
    }

    /// The pin is the caller's to end.
    pub(crate) fn give(self) -> u32 {
        std::mem::ManuallyDrop::new(self.count).node
    }
}

/// Directories that a walk's first names led to lately, each in the one before; pinned.
pub(crate) struct Trail<'s> {
    session: &'s Session,
    known: [Option<(u32, Raw, Same)>; MAXWELEM],
    count: usize,
}

impl<'s> Trail<'s> {
    /// Nothing is known.
    pub(crate) fn new(session: &'s Session) -> Trail<'s> {
        Trail {
            session,
            known: [None; MAXWELEM],
            count: 0,
        }
    }

    /// Pins one more node of the session's; `None` when it has no descriptor, or there is no more room.
    pub(crate) fn push(&mut self, nodes: &mut Nodes, number: u32) -> Option<()> {
        let place = self.known.get_mut(self.count)?;
        let node = nodes.get(number)?;
        *place = Some((number, node.raw()?, node.same));
        self.count += 1;
        nodes.pin(number);
        Some(())
    }

    fn get(&self, index: usize) -> Option<(u32, Raw, Same)> {
        self.known.get(index).copied().flatten()
    }

    /// The descriptor of directory `index`.
    pub(crate) fn path(&self, index: usize) -> Option<BorrowedFd<'_>> {
        // SAFETY: the nodes are pinned until `end`, for which nobody may borrow from this.
        self.get(index).map(|(_, path, _)| unsafe { path.borrow() })
    }

    /// Which directory `index` is.
    pub(crate) fn same(&self, index: usize) -> Option<Same> {
        self.get(index).map(|(.., same)| same)
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = u32> {
        self.known.iter().map_while(|known| known.map(|(node, ..)| node))
    }

    /// Ends the pins.
    pub(crate) fn end(&mut self, nodes: &mut Nodes, dead: &mut Vec<OwnedFd>) {
        while let Some(last) = self.count.checked_sub(1) {
            self.count = last;
            if let Some((node, ..)) = self.known.get_mut(last).and_then(Option::take) {
                nodes.unpin(node, dead);
            }
        }
    }
}

impl Drop for Trail<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            let session = self.session;
            session.with(|tables| {
                let Tables { nodes, dead, .. } = tables;
                self.end(nodes, dead);
            });
        }
    }
}
