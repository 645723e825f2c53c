//! Twalk, Tclunk, Tremove.

use std::os::fd::{AsFd, OwnedFd};

use host::{FileType, Identity, Name, NameError, Object};
use wire::{QTDIR, QTFILE, QTSYMLINK, Qid, Qids, Rclunk, Rremove, Rwalk, Tclunk, Tremove, Twalk};

use crate::failure::Failure;
use crate::locks::TakenOut;
use crate::nodes::{HasHandle, Same};
use crate::pin::{NOGID, Pin, Trail};
use crate::reply::Reply;
use crate::request::{How, Outcome, Scratch};
use crate::session::Session;
use crate::table::{State, Tables};

/// The qid of an object.
pub(crate) fn qid(id: &Identity) -> Qid {
    qid_of(id.file_type, id.version, id.unique)
}

/// The qid of what the guest sees as a `file_type`.
pub(crate) fn qid_of(file_type: FileType, version: u32, path: u64) -> Qid {
    let kind = match file_type {
        FileType::Directory => QTDIR,
        FileType::Symlink => QTSYMLINK,
        FileType::Regular | FileType::Special => QTFILE,
    };
    Qid { kind, version, path }
}

/// One step of a walk.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Step {
    Stay,
    Up,
    Down(Name),
    /// Longer than any file system's names: the step fails when it is reached.
    TooLong,
}

impl Step {
    fn new(name: &[u8]) -> Result<Step, Failure> {
        match Name::new(name) {
            Ok(name) => Ok(Step::Down(name)),
            Err(NameError::Dot) => Ok(Step::Stay),
            Err(NameError::DotDot) => Ok(Step::Up),
            Err(NameError::TooLong) => Ok(Step::TooLong),
            Err(NameError::Illegal) => Err(Failure::new(libc::ENOENT)),
        }
    }
}

/// How far a walk has come.
struct Progress<'s> {
    /// Where it is, once it has left the fid's own object.
    here: Option<(OwnedFd, Identity)>,
    /// The node that `path` leads there from, if there is one.
    base: Option<Base<'s>>,
    /// Names with `/` between.
    path: &'s mut Vec<u8>,
}

/// A node that is a walk's point of reference.
struct Base<'s> {
    session: &'s Session,
    node: u32,
    /// Whether it has a reference of its own; the first one is pinned anyway.
    retained: bool,
}

impl<'s> Base<'s> {
    fn pinned(session: &'s Session, node: u32) -> Base<'s> {
        Base {
            session,
            node,
            retained: false,
        }
    }

    /// The node above, and the path from there to the one above this (empty when that is it). `above` is what the
    /// host says is there.
    fn above(&self, above: &Identity, path: &mut Vec<u8>) -> Option<Base<'s>> {
        let node = self.session.with(|tables| {
            let nodes = &mut tables.nodes;
            let place = nodes.place(self.node).and_then(|(parent, way)| {
                let up = way.iter().rposition(|&b| b == b'/').unwrap_or(0);
                let known = up > 0 || nodes.get(parent).map(|node| node.same) == Some(Same::of(above));
                path.extend_from_slice(way.get(..up)?);
                known.then_some(parent)
            });
            // Above the root is the root; and what the host has moved may be below another one that is known.
            let parent = place.or_else(|| nodes.find(above))?;
            nodes.retain(parent);
            Some(parent)
        })?;
        Some(Base {
            session: self.session,
            node,
            retained: true,
        })
    }
}

impl Drop for Base<'_> {
    fn drop(&mut self) {
        if self.retained {
            self.session.with(|tables| {
                let Tables { nodes, dead, .. } = tables;
                nodes.release(self.node, dead);
            });
        }
    }
}

/// Whether all names lead down, and none to a directory's own place or its parent's. ENOENT when one is no name.
fn only_down(m: &Twalk<'_>) -> Result<bool, Failure> {
    let mut down = true;
    for name in m.names {
        match Name::check(name) {
            Ok(_) | Err(NameError::TooLong) => {}
            Err(NameError::Dot | NameError::DotDot) => down = false,
            Err(NameError::Illegal) => return Err(Failure::new(libc::ENOENT)),
        }
    }
    Ok(down)
}

/// Takes one `step` after the other, each of which gets how many came before it and its name; gives how many were
/// possible. The failure of the first is the walk's; so is a lack of descriptors, after which it is begun again.
pub(crate) fn steps(
    m: &Twalk<'_>,
    qids: &mut [Qid],
    mut step: impl FnMut(usize, &[u8]) -> Result<Qid, Failure>,
) -> Result<usize, Failure> {
    let mut done = 0;
    for (name, place) in m.names.iter().zip(qids) {
        match step(done, name) {
            Ok(qid) => *place = qid,
            Err(failure) if done == 0 || failure.is_exhaustion() => return Err(failure),
            Err(_) => break,
        }
        done += 1;
    }
    Ok(done)
}

/// Makes the new fid of a walk that has come to `node`, of which the caller gives a reference, or turns the old one.
pub(crate) fn seat(tables: &mut Tables, m: &Twalk<'_>, pin: &Pin<'_>, node: u32) -> Result<(), Failure> {
    match m.newfid == m.fid {
        true => tables.turn(pin.view(), node),
        false => tables.add(m.newfid, pin.view().uid, node, pin.epoch()).map(drop),
    }
}

impl Session {
    /// Goes down `names` from any fid but an xattr's; an open one is as good as any, Linux uses those too. All names
    /// are checked before the first step. Fewer qids than names when a later step fails, and then no new fid.
    pub(crate) fn walk(
        &self,
        m: &Twalk<'_>,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
        how: How,
    ) -> Result<Outcome, Failure> {
        let same = m.newfid == m.fid;
        let down = only_down(m);
        // For each step up in a mount that does not show all of its file system, the kernel goes up to the mount's root to
        // see whether it still is above (`path_connected`): milliseconds where a tree is very deep. Linux's client
        // sends none.
        if down == Ok(false) && how == How::Inline {
            return Ok(Outcome::Defer);
        }
        let mut trail = Trail::new(self);
        let mut held = 0;
        let pin = self.pin_if(m.fid, libc::ENOENT, |tables, view| {
            if !same {
                tables.vacant(m.newfid)?;
            }
            held = tables.descriptors();
            if down == Ok(true) {
                tables.follow(view.node, m.names.iter(), &mut trail);
            }
            Ok(())
        })?;
        pin.is_object()?;
        if same {
            pin.is_unopened()?;
        }
        if !m.names.is_empty() {
            // What has no name that is known keeps its descriptor.
            self.may_walk(held)?;
            if !pin.view().root && pin.file_type() == FileType::Directory {
                self.still_inside(&pin.object()?)?;
            }
        }
        let down = down?;
        let mut qids = [Qid::default(); wire::MAXWELEM];
        let mut done = 0;
        if m.names.is_empty() {
            // A second fid of the same object: the node is shared, nothing is asked of the host.
            if !same {
                self.with(|tables| {
                    tables.nodes.retain(pin.view().node);
                    tables.add(m.newfid, pin.view().uid, pin.view().node, pin.epoch())
                })?;
            }
        } else if down {
            done = self.descend_from(m, &pin, &mut trail, scratch, &mut qids)?;
        } else {
            let mut progress = Progress {
                here: None,
                base: Some(Base::pinned(self, pin.view().node)),
                path: &mut scratch.bytes,
            };
            progress.path.clear();
            done = steps(m, &mut qids, |_, name| {
                self.step(&pin, &mut progress, &Step::new(name)?)
            })?;
            if done == m.names.len() {
                self.arrive(m, &pin, progress)?;
            }
        }
        drop(pin);
        let qids = qids.get(..done).unwrap_or_default();
        Ok(reply.send(&Rwalk {
            qids: Qids::new(qids),
        }))
    }

    fn step(&self, pin: &Pin<'_>, progress: &mut Progress<'_>, step: &Step) -> Result<Qid, Failure> {
        let caller = pin.caller(NOGID);
        let from = match &progress.here {
            Some((fd, id)) => Object::by_path(fd.as_fd(), id.host_type),
            None => pin.object()?,
        };
        let file_type = progress
            .here
            .as_ref()
            .map_or(pin.file_type(), |(_, id)| id.file_type);
        if file_type != FileType::Directory {
            return Err(Failure::new(libc::ENOTDIR));
        }
        let there = match step {
            Step::Stay => {
                let id = match &progress.here {
                    Some((_, id)) => *id,
                    None => self.share.identify(caller, &from)?,
                };
                return Ok(qid(&id));
            }
            Step::TooLong => return Err(Failure::new(libc::ENAMETOOLONG)),
            Step::Up => {
                let there = self.share.parent(caller, &from)?;
                match progress.path.iter().rposition(|&b| b == b'/') {
                    Some(at) => progress.path.truncate(at),
                    None if progress.path.is_empty() => {
                        let base = progress.base.take();
                        progress.base = base.and_then(|base| base.above(&there.1, progress.path));
                    }
                    None => progress.path.clear(),
                }
                there
            }
            Step::Down(name) => {
                if !progress.path.is_empty() {
                    progress.path.push(b'/');
                }
                progress.path.extend_from_slice(name.as_bytes());
                self.share.lookup(caller, &from, name)?
            }
        };
        let qid = qid(&there.1);
        if let Some((behind, _)) = progress.here.replace(there) {
            // An O_PATH descriptor: there is nothing that could fail.
            let _ = host::close(behind);
        }
        Ok(qid)
    }

    /// Makes the new fid, or turns the old one, to where the walk has come.
    fn arrive(&self, m: &Twalk<'_>, pin: &Pin<'_>, progress: Progress<'_>) -> Result<(), Failure> {
        let Progress { here, base, path } = progress;
        let has_handle: HasHandle<'_> = &|fd, handle| self.share.is_of_handle(fd, handle);
        let over = self.with(|tables| {
            let node = match here {
                Some((fd, id)) => {
                    let from = base.as_ref().map(|base| (base.node, &path[..]));
                    let Tables { nodes, dead, .. } = tables;
                    nodes.adopt(fd, &id, from, has_handle, dead)
                }
                None => {
                    tables.nodes.retain(pin.view().node);
                    pin.view().node
                }
            };
            seat(tables, m, pin, node)?;
            Ok::<bool, Failure>(tables.descriptors() > self.limits.fd_budget)
        })?;
        if over {
            self.evict();
        }
        Ok(())
    }

    /// Gives a fid back. An xattr that was written is set now, and a file that was open for writing is closed now;
    /// the error of that is the answer, and the fid is gone either way.
    ///
    /// Where a file system tells only at close(2) that what was written did not arrive (NFS, FUSE, quotas), this is
    /// the last chance to say so, and QEMU's server does (`v9fs_clunk`). Linux's client does not pass it on: its
    /// close(2) ends in `v9fs_dir_release`, whose result the VFS ignores; a guest that must know calls fsync.
    pub(crate) fn clunk(&self, m: &Tclunk, reply: &Reply<'_>, how: How) -> Result<Outcome, Failure> {
        // Closing a file of a network file system waits until all that was written has arrived.
        let may_wait = how != How::Inline || !self.share.may_hang();
        let idle = self.with(|tables| {
            let long = how == How::Inline && may_wait && self.last_of_much(tables, m.fid);
            (!long).then(|| tables.clunk_idle(m.fid, may_wait))
        });
        match idle {
            Some(Some(written)) => {
                close(written)?;
                return Ok(reply.send(&Rclunk));
            }
            Some(None) if may_wait => {}
            _ => return Ok(Outcome::Defer),
        }
        let mut pin = self.pin_as_is(m.fid, libc::ENOENT)?;
        let mut locks = match self.locks_for(&pin, how) {
            Some(locks) => locks,
            None => return Ok(Outcome::Defer),
        };
        self.bury(&pin, &mut locks, how);
        drop(locks);
        if pin.state() == State::XattrWrite {
            pin.find()
                .and_then(|()| self.set_xattr(&pin))
                .map_err(Failure::settled)?;
        }
        close(self.with(|tables| tables.take_written_last(pin.view())))?;
        Ok(reply.send(&Rclunk))
    }

    /// Removes the fid's object by the name it was reached by, and gives the fid back, whatever the answer. ESTALE
    /// when another object has that name now.
    pub(crate) fn remove(&self, m: &Tremove, reply: &Reply<'_>, how: How) -> Result<Outcome, Failure> {
        let pin = self.pin_as_is(m.fid, libc::EINVAL)?;
        let mut locks = match self.locks_for(&pin, how) {
            Some(locks) => locks,
            None => return Ok(Outcome::Defer),
        };
        let mut removed = self.remove_object(&pin);
        if matches!(removed, Err(failure) if failure.is_exhaustion()) && self.evict() > 0 {
            removed = self.remove_object(&pin);
        }
        self.bury(&pin, &mut locks, how);
        removed.map_err(Failure::settled)?;
        Ok(reply.send(&Rremove))
    }

    fn remove_object(&self, pin: &Pin<'_>) -> Result<(), Failure> {
        pin.is_object()?;
        let place = self.place(pin.view().node, pin.view().uid)?;
        let directory = pin.file_type() == FileType::Directory;
        self.share
            .unlink(pin.caller(NOGID), &place.object(), &place.name, directory)?;
        self.with(|tables| match place.node() {
            Some(parent) if directory => tables.forget_name(parent, place.name.as_bytes()),
            _ => tables.nodes.removed(),
        });
        Ok(())
    }

    /// The locks of the fid's inode, if it may have some: `None` when another thread has them, or they are very
    /// many, and this one must not wait.
    fn locks_for(&self, pin: &Pin<'_>, how: How) -> Option<Option<TakenOut>> {
        if !pin.view().locks {
            return Some(None);
        }
        match self.inode(pin) {
            None => Some(None),
            Some(same) => {
                let mut out = self.take_out(same, how)?;
                (!Session::many_locks(&mut out, pin, how)).then_some(Some(out))
            }
        }
    }

    /// Takes the fid out of the table, and then its locks.
    fn bury(&self, pin: &Pin<'_>, locks: &mut Option<TakenOut>, how: How) {
        let has_locks = self.with(|tables| tables.clunk(pin.view()) && tables.has_locks(pin.view()));
        if !has_locks {
            return;
        }
        if locks.is_none() {
            // They were taken since.
            *locks = self
                .inode(pin)
                .and_then(|same| self.take_out(same, How::Blocking));
        }
        if let Some(out) = locks {
            self.release_fid(out, pin, how);
        }
    }
}

/// Closes what a file was written through. The request has had its effect then, whatever comes of it.
fn close(written: Option<OwnedFd>) -> Result<(), Failure> {
    match written {
        Some(file) => host::close(file).map_err(|error| Failure::from(error).settled()),
        None => Ok(()),
    }
}
