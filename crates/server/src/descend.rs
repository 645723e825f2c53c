//! Walks that only go down, which are all that Linux sends.
//!
//! A directory that a walk went through lately has a node, and is not opened again: one look says whether the name
//! still leads to it (see `dentries`), and the walk goes on from the node's descriptor. What is no directory is opened
//! for every walk: holding a file that the host removes would keep its blocks.

use std::os::fd::{AsFd, OwnedFd};

use host::{FileType, Identity, Name, Object};
use wire::{Qid, Twalk};

use crate::failure::Failure;
use crate::nodes::{HasHandle, Same};
use crate::pin::{NOGID, Pin, Trail};
use crate::request::Scratch;
use crate::session::Session;
use crate::table::Tables;
use crate::walk::{qid, seat, steps};

/// How far a walk has come.
struct Progress<'s, 't> {
    trail: &'t mut Trail<'s>,
    /// How many of the trail's directories are still where they were.
    met: usize,
    /// Directories on the way that were opened, up to the one before the last.
    passed: &'t mut Vec<(OwnedFd, Identity)>,
    /// The last one that was opened.
    here: Option<(OwnedFd, Identity)>,
}

impl Session {
    /// Goes down the names of `m`, none of which is `.` or `..`, from `pin`, and makes the new fid; gives how many steps
    /// were possible. The trail is what was known of the way when the fid was pinned.
    pub(crate) fn descend_from(
        &self,
        m: &Twalk<'_>,
        pin: &Pin<'_>,
        trail: &mut Trail<'_>,
        scratch: &mut Scratch,
        qids: &mut [Qid],
    ) -> Result<usize, Failure> {
        let Scratch { passed, bytes, .. } = scratch;
        let progress = Progress {
            trail,
            met: 0,
            passed,
            here: None,
        };
        let done = self.go_down(m, pin, progress, bytes, qids);
        // What is left of a walk that did not arrive.
        passed.clear();
        done
    }

    fn go_down(
        &self,
        m: &Twalk<'_>,
        pin: &Pin<'_>,
        mut progress: Progress<'_, '_>,
        path: &mut Vec<u8>,
        qids: &mut [Qid],
    ) -> Result<usize, Failure> {
        let done = steps(m, qids, |done, name| {
            self.step_down(pin, &mut progress, done, name)
        })?;
        if done == m.names.len() {
            self.arrive_below(m, pin, progress, path)?;
        }
        Ok(done)
    }

    fn step_down(
        &self,
        pin: &Pin<'_>,
        progress: &mut Progress<'_, '_>,
        done: usize,
        name: &[u8],
    ) -> Result<Qid, Failure> {
        let Progress {
            trail,
            met,
            passed,
            here,
        } = progress;
        let known = met.checked_sub(1).and_then(|last| trail.path(last));
        let (from, file_type) = match (&*here, known) {
            (Some((fd, id)), _) => (Object::by_path(fd.as_fd(), id.host_type), id.file_type),
            (None, Some(path)) => (Object::by_path(path, libc::S_IFDIR), FileType::Directory),
            (None, None) => (pin.object()?, pin.file_type()),
        };
        if file_type != FileType::Directory {
            return Err(Failure::new(libc::ENOTDIR));
        }
        // Names were checked but for their length.
        let name = Name::new(name).map_err(|_| Failure::new(libc::ENAMETOOLONG))?;
        let caller = pin.caller(NOGID);
        if *met == done
            && let Some(same) = trail.same(done)
        {
            let looked = self.share.look(caller, &from, &name);
            if let Ok(Some(id)) = looked
                && Same::of(&id) == same
            {
                *met += 1;
                return Ok(qid(&id));
            }
            // It is gone, or something else has its name.
            let parent = met.checked_sub(1).and_then(|last| trail.nodes().nth(last));
            let parent = parent.unwrap_or(pin.view().node);
            self.with(|tables| tables.forget_name(parent, name.as_bytes()));
            looked?;
        }
        let there = self.share.lookup(caller, &from, &name)?;
        let qid = qid(&there.1);
        passed.extend(here.replace(there));
        Ok(qid)
    }

    /// Makes the new fid, or turns the old one, to where the walk has come, and notes the directories on the way.
    fn arrive_below(
        &self,
        m: &Twalk<'_>,
        pin: &Pin<'_>,
        progress: Progress<'_, '_>,
        path: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let Progress {
            trail,
            met,
            passed,
            here,
        } = progress;
        let has_handle: HasHandle<'_> = &|fd, handle| self.share.is_of_handle(fd, handle);
        let over = self.with(|tables| {
            if pin.epoch() != tables.epoch() {
                // What was reset meanwhile learns nothing of this.
                return Err(Failure::new(libc::ECONNRESET));
            }
            let mut names = m.names.iter();
            let mut base = pin.view().node;
            for (node, name) in trail.nodes().take(met).zip(names.by_ref()) {
                tables.nodes.name(node, base, name, &mut tables.dead);
                base = node;
            }
            // Until the end, so that no place that another takes in the table of names ends the chain.
            let mut held = Held::default();
            path.clear();
            for ((fd, id), name) in passed.drain(..).zip(names.by_ref()) {
                path.extend_from_slice(name);
                match tables.settle(fd, &id, (base, path), has_handle) {
                    Some(node) => {
                        held.push(node);
                        base = node;
                        path.clear();
                    }
                    None => path.push(b'/'),
                }
            }
            let node = match (here, names.next()) {
                (Some((fd, id)), Some(name)) => {
                    path.extend_from_slice(name);
                    tables.adopt_named(fd, &id, (base, path), has_handle)
                }
                _ => {
                    tables.nodes.retain(base);
                    base
                }
            };
            let made = seat(tables, m, pin, node);
            for node in held.all() {
                tables.nodes.release(node, &mut tables.dead);
            }
            let Tables { nodes, dead, .. } = tables;
            trail.end(nodes, dead);
            made.map(|()| tables.descriptors() > self.limits.fd_budget)
        })?;
        if over {
            self.evict();
        }
        Ok(())
    }
}

/// Nodes with a reference of the walk's own.
#[derive(Default)]
struct Held {
    nodes: [u32; wire::MAXWELEM],
    count: usize,
}

impl Held {
    fn push(&mut self, node: u32) {
        if let Some(place) = self.nodes.get_mut(self.count) {
            *place = node;
            self.count += 1;
        }
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        self.nodes.iter().copied().take(self.count)
    }
}
