//! The session's lock, and guards that keep fids and nodes where they are while a request uses them without it.
//!
//! A handler is straight-line code: pin, make the system calls, lock, note what came of it. The one `unsafe` here
//! turns the number of a descriptor in a pinned record into something to make system calls with.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::{MutexGuard, PoisonError};

use host::{Caller, FileType, Object};
use wire::MAXWELEM;

use crate::failure::Failure;
use crate::nodes::{Nodes, Same};
use crate::session::Session;
use crate::table::{Glance, Opened, State, Tables, View};

/// gid of messages that create nothing.
pub(crate) const NOGID: u32 = u32::MAX;

/// Descriptors closed per turn of the lock.
const CLOSE: usize = 8;

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

    /// Closes what was collected, some at a time, without the lock.
    fn close_dead<'s>(&'s self, mut tables: MutexGuard<'s, Tables>) {
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
            Some(work(glance.caller(), &glance.object()))
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
            fids.map_while(|number| tables.glance(number))
                .take_while(|&glance| work(glance.caller(), &glance.object()))
                .count()
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
    pub(crate) fn pin_node(&self, node: u32, caller: Caller) -> Result<NodePin<'_>, Failure> {
        let path = self.with(|tables| {
            tables.nodes.pin(node);
            tables.nodes.get(node).and_then(|node| node.raw())
        });
        let mut pin = NodePin {
            session: self,
            node,
            path: path.unwrap_or(-1),
        };
        if path.is_none() {
            pin.path = self.find_again(node, caller)?;
        }
        Ok(pin)
    }
}

/// A descriptor in a record that stays pinned for `'a`.
fn borrow<'a>(raw: RawFd) -> BorrowedFd<'a> {
    // SAFETY: only called by the guards below with descriptors of records that they have pinned, and for a `Glance` under
    // the lock that it was made under. A pinned record gives up neither descriptor, and no record does while the lock is
    // held; the guards hand the result out for no longer than they live, `at_once` for no longer than it holds the lock.
    unsafe { BorrowedFd::borrow_raw(raw) }
}

impl Glance {
    fn caller(&self) -> Caller {
        Caller {
            uid: self.uid,
            gid: NOGID,
        }
    }

    /// Only while the lock is held that this was made under.
    pub(crate) fn object(&self) -> Object<'_> {
        Object::by_path(borrow(self.path), self.host_type)
    }
}

/// A fid in use by a request.
pub(crate) struct Pin<'s> {
    session: &'s Session,
    pub(crate) view: View,
    epoch: u64,
}

impl Pin<'_> {
    /// Finds the object again if its node was evicted.
    #[inline]
    pub(crate) fn find(&mut self) -> Result<(), Failure> {
        if self.view.path.is_none() {
            self.view.path = Some(self.session.find_again(self.view.node, self.caller(NOGID))?);
        }
        Ok(())
    }

    /// The fid's object.
    #[inline]
    pub(crate) fn object(&self) -> Object<'_> {
        let file = self.view.file.map(borrow);
        // An evicted node of an open fid would do with the open descriptor; there is none (see `Nodes::victim`).
        let path = self.view.path.or(self.view.file).unwrap_or(-1);
        Object {
            path: borrow(path),
            file,
            host_type: self.view.host_type,
        }
    }

    /// The open descriptor: of a file (EINVAL otherwise).
    pub(crate) fn file(&self) -> Result<BorrowedFd<'_>, Failure> {
        match self.view.file {
            Some(raw) => Ok(borrow(raw)),
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

    /// ENOTDIR when the object is no directory (EINVAL for an xattr's fid).
    pub(crate) fn is_directory(&self) -> Result<(), Failure> {
        self.is_object()?;
        match self.view.file_type {
            FileType::Directory => Ok(()),
            _ => Err(Failure::new(libc::ENOTDIR)),
        }
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
    session: &'s Session,
    node: u32,
    path: RawFd,
}

impl<'s> NodePin<'s> {
    /// Takes over a pin that the tables have counted already.
    pub(crate) fn taken(session: &'s Session, node: u32, path: RawFd) -> NodePin<'s> {
        NodePin { session, node, path }
    }

    /// Its descriptor.
    pub(crate) fn path(&self) -> BorrowedFd<'_> {
        borrow(self.path)
    }

    /// Which node.
    pub(crate) fn node(&self) -> u32 {
        self.node
    }

    /// The pin is the caller's to end.
    pub(crate) fn give(self) -> u32 {
        std::mem::ManuallyDrop::new(self).node
    }
}

impl Drop for NodePin<'_> {
    fn drop(&mut self) {
        self.session.with(|tables| {
            let Tables { nodes, dead, .. } = tables;
            nodes.unpin(self.node, dead);
        });
    }
}

/// Directories that a walk's first names led to lately, each in the one before; pinned.
pub(crate) struct Trail<'s> {
    session: &'s Session,
    known: [Option<(u32, RawFd, Same)>; MAXWELEM],
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

    /// One more, which has been pinned for this trail.
    pub(crate) fn push(&mut self, node: u32, path: RawFd, same: Same) {
        if let Some(place) = self.known.get_mut(self.count) {
            *place = Some((node, path, same));
            self.count += 1;
        }
    }

    fn get(&self, index: usize) -> Option<(u32, RawFd, Same)> {
        self.known.get(index).copied().flatten()
    }

    /// The descriptor of directory `index`.
    pub(crate) fn path(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.get(index).map(|(_, path, _)| borrow(path))
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
