//! Which client process holds which byte ranges, and the host locks that stand for them.
//!
//! One open file description per inode and session carries all of a client's locks on that inode, for the
//! client's own kernel arbitrates between its processes before it asks (`v9fs_file_do_lock`). But two of them may
//! share a read lock, and the one that lets go must not take the other's with it; so the ranges are kept per process
//! (Tlock's `proc_id` and `client_id`), and the host's lock is dropped only where nobody's is left.
//!
//! A flock(2) arrives as a record lock over the whole file (`v9fs_file_flock_dotl`), so its owner seems to be the
//! process that took it; let go by another one, it lasts until the fid is clunked. That errs to the safe side.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use crate::nodes::Same;

/// The last byte that a lock can cover (`OFFSET_MAX`): to here means "to the end, wherever it will be".
pub(crate) const LAST: u64 = i64::MAX as u64;

/// Bytes `start..=end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    /// From a message's fields; `None` when they reach beyond [`LAST`].
    pub(crate) fn new(start: u64, length: u64) -> Option<Range> {
        let end = match length {
            0 => LAST,
            length => start.checked_add(length - 1)?,
        };
        (start <= LAST && end <= LAST).then_some(Range { start, end })
    }

    /// As a message has it: 0 for "to the end".
    pub(crate) fn length(self) -> u64 {
        match self.end {
            LAST => 0,
            end => end - self.start + 1,
        }
    }

    fn meets(self, other: Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// What is left of this without `other`: before it, after it.
    fn without(self, other: Range) -> [Option<Range>; 2] {
        if !self.meets(other) {
            return [Some(self), None];
        }
        let (start, end) = (self.start, self.end);
        let before = (start < other.start).then(|| Range {
            start,
            end: other.start - 1,
        });
        let after = (end > other.end).then(|| Range {
            start: other.end + 1,
            end,
        });
        [before, after]
    }
}

/// A range held by a client's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) range: Range,
    /// The process.
    pub(crate) owner: u64,
    /// The fid it was taken through.
    pub(crate) fid: u32,
    /// Exclusive.
    pub(crate) write: bool,
}

/// The locks of one inode.
#[derive(Debug)]
pub(crate) struct Inode {
    /// The open file description that carries them. It also keeps the inode number from being used again.
    pub(crate) file: OwnedFd,
    held: Vec<Held>,
}

impl Inode {
    /// No locks yet, on `file`.
    pub(crate) fn new(file: OwnedFd) -> Inode {
        Inode {
            file,
            held: Vec::new(),
        }
    }

    /// Whether nobody holds anything.
    pub(crate) fn is_free(&self) -> bool {
        self.held.is_empty()
    }

    /// Notes what was granted; it replaces what that process held there.
    pub(crate) fn take(&mut self, new: Held) {
        self.cut(new.owner, new.range);
        let mut new = new;
        // One record for neighbours of a kind: a process that locks a file byte by byte holds one range.
        self.held.retain(|old| {
            let alike = (old.owner, old.fid, old.write) == (new.owner, new.fid, new.write);
            let touches = old.range.end.checked_add(1) == Some(new.range.start)
                || new.range.end.checked_add(1) == Some(old.range.start);
            if alike && touches {
                new.range = Range {
                    start: old.range.start.min(new.range.start),
                    end: old.range.end.max(new.range.end),
                };
            }
            !(alike && touches)
        });
        self.held.push(new);
    }

    fn cut(&mut self, owner: u64, range: Range) {
        let mut at = 0;
        while let Some(&held) = self.held.get(at) {
            if held.owner != owner || !held.range.meets(range) {
                at += 1;
                continue;
            }
            self.held.swap_remove(at);
            for rest in held.range.without(range).into_iter().flatten() {
                self.held.push(Held { range: rest, ..held });
            }
        }
    }

    /// Takes `range` from `owner`; gives the parts of it that nobody holds any more.
    pub(crate) fn release(&mut self, owner: u64, range: Range) -> Vec<Range> {
        self.cut(owner, range);
        self.uncovered(range)
    }

    /// Takes all that was taken through `fid`; gives the parts that nobody holds any more.
    pub(crate) fn release_fid(&mut self, fid: u32) -> Vec<Range> {
        let (gone, rest): (Vec<Held>, Vec<Held>) = self.held.iter().partition(|held| held.fid == fid);
        self.held = rest;
        gone.iter().flat_map(|held| self.uncovered(held.range)).collect()
    }

    /// The parts of `range` that nobody holds.
    fn uncovered(&self, range: Range) -> Vec<Range> {
        let mut free = vec![range];
        for held in &self.held {
            if held.range.meets(range) {
                free = free
                    .iter()
                    .flat_map(|part| part.without(held.range))
                    .flatten()
                    .collect();
            }
        }
        free
    }
}

/// All locks of a session.
///
/// The host is asked without the session's lock on these, for on a server that is gone such a call may never return;
/// but what is noted of an inode must be what the host has. So a request takes the inode out, makes its calls, and puts
/// it back; others that want the same one wait.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    inodes: HashMap<Same, Inode>,
    /// Taken out.
    busy: Vec<Same>,
    /// Requests that wait for one of these.
    pub(crate) waiting: usize,
    /// Ranges held, over all inodes.
    count: usize,
    /// Counts resets: what was taken out before one is not put back after it.
    epoch: u64,
}

/// An inode taken out; without locks it has no descriptor.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) inode: Option<Inode>,
    same: Same,
    before: usize,
    epoch: u64,
}

impl Out {
    /// All of it; what is left has no locks.
    pub(crate) fn take(&mut self) -> Out {
        Out {
            inode: self.inode.take(),
            ..*self
        }
    }
}

impl Locks {
    /// Ranges held.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Descriptors held, but for those taken out.
    pub(crate) fn files(&self) -> usize {
        self.inodes.len()
    }

    /// Takes an inode out; `None` while another request has it.
    pub(crate) fn take_out(&mut self, same: Same) -> Option<Out> {
        if self.busy.contains(&same) {
            return None;
        }
        self.busy.push(same);
        let inode = self.inodes.remove(&same);
        Some(Out {
            before: inode.as_ref().map_or(0, |inode| inode.held.len()),
            inode,
            same,
            epoch: self.epoch,
        })
    }

    /// Puts it back. Gives what is to be closed, which frees what is left of its locks: the description of an inode
    /// without any, or of one that a reset has taken from the client.
    pub(crate) fn put_back(&mut self, out: Out) -> Option<Inode> {
        self.busy.retain(|&busy| busy != out.same);
        if out.epoch != self.epoch {
            return out.inode;
        }
        let after = out.inode.as_ref().map_or(0, |inode| inode.held.len());
        self.count = self.count.saturating_sub(out.before) + after;
        match out.inode {
            Some(inode) if !inode.is_free() => self.inodes.insert(out.same, inode),
            other => other,
        }
    }

    /// Forgets all locks; gives what is to be closed.
    pub(crate) fn reset(&mut self) -> HashMap<Same, Inode> {
        self.epoch += 1;
        self.count = 0;
        std::mem::take(&mut self.inodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    fn inode() -> Inode {
        let file = tempfile::tempfile().unwrap();
        Inode::new(file.into())
    }

    fn held(range: Range, owner: u64, write: bool) -> Held {
        let fid = u32::try_from(owner).unwrap();
        Held {
            range,
            owner,
            fid,
            write,
        }
    }

    #[test]
    fn ranges_end_where_files_can() {
        assert_eq!(Range::new(0, 0), Some(range(0, LAST)));
        assert_eq!(Range::new(5, 1), Some(range(5, 5)));
        assert_eq!(Range::new(LAST, 1), Some(range(LAST, LAST)));
        assert_eq!(Range::new(LAST, 2), None);
        assert_eq!(Range::new(u64::MAX, 0), None);
        assert_eq!(Range::new(1, u64::MAX), None);
        assert_eq!(range(0, LAST).length(), 0);
        assert_eq!(range(3, 4).length(), 2);
    }

    fn same(ino: u64) -> Same {
        Same::of(&host::Identity {
            dev: 1,
            ino,
            birth: host::Time::default(),
            at_home: true,
            unique: ino,
            version: 1,
            host_type: libc::S_IFREG,
            file_type: host::FileType::Regular,
        })
    }

    #[test]
    fn an_inode_is_taken_out_by_one_at_a_time() {
        let mut locks = Locks::default();
        let mut one = locks.take_out(same(1)).unwrap();
        assert!(locks.take_out(same(1)).is_none());
        let two = locks.take_out(same(2)).unwrap();
        let mut held_twice = inode();
        held_twice.take(held(range(0, 0), 1, true));
        held_twice.take(held(range(5, 5), 1, true));
        one.inode = Some(held_twice);
        assert!(locks.put_back(one).is_none() && locks.put_back(two).is_none());
        assert_eq!((locks.count(), locks.files()), (2, 1));
        let mut one = locks.take_out(same(1)).unwrap();
        assert_eq!(one.inode.as_mut().unwrap().release_fid(1).len(), 2);
        assert!(locks.put_back(one).is_some(), "to be closed without the lock");
        assert_eq!((locks.count(), locks.files()), (0, 0));
    }

    #[test]
    fn what_was_taken_out_before_a_reset_is_not_put_back() {
        let mut locks = Locks::default();
        let mut one = locks.take_out(same(1)).unwrap();
        let mut inode = inode();
        inode.take(held(range(0, 0), 1, true));
        one.inode = Some(inode);
        assert!(locks.reset().is_empty());
        assert!(locks.take_out(same(1)).is_none(), "still at work");
        assert!(locks.put_back(one).is_some());
        assert_eq!((locks.count(), locks.files()), (0, 0));
        assert!(locks.take_out(same(1)).is_some_and(|out| out.inode.is_none()));
    }

    #[test]
    fn a_shared_lock_outlives_one_of_its_holders() {
        let mut locks = inode();
        locks.take(held(range(0, 9), 1, false));
        locks.take(held(range(5, 14), 2, false));
        locks.cut(1, range(0, LAST));
        assert_eq!(locks.uncovered(range(0, 9)), [range(0, 4)]);
        locks.cut(2, range(7, 8));
        assert_eq!(
            locks.uncovered(range(0, 20)),
            [range(0, 4), range(7, 8), range(15, 20)]
        );
    }

    #[test]
    fn neighbours_are_one_record() {
        let mut locks = inode();
        for at in 0..100 {
            locks.take(held(range(at, at), 1, true));
        }
        assert_eq!(locks.held, [held(range(0, 99), 1, true)]);
        locks.take(held(range(50, 50), 1, false));
        assert_eq!(locks.held.len(), 3);
    }

    proptest! {
        /// Against a byte map.
        #[test]
        fn coverage_is_what_is_held(steps in prop::collection::vec((0u64..3, 0u64..32, 0u64..8, 0u8..3), 1..60)) {
            let mut locks = inode();
            let mut bytes = [[None::<bool>; 3]; 64];
            for (owner, start, more, kind) in steps {
                let range = range(start, start + more);
                match kind {
                    0 => locks.cut(owner, range),
                    kind => locks.take(held(range, owner, kind == 1)),
                }
                for byte in &mut bytes[start as usize..=(start + more) as usize] {
                    byte[owner as usize] = (kind != 0).then_some(kind == 1);
                }
                let free: Vec<Range> = locks.uncovered(super::Range { start: 0, end: 63 });
                for (at, byte) in bytes.iter().enumerate() {
                    let at = at as u64;
                    let point = super::Range { start: at, end: at };
                    prop_assert_eq!(free.iter().any(|r| r.meets(point)), byte.iter().all(Option::is_none));
                    for (owner, kind) in byte.iter().enumerate() {
                        let mut of = locks.held.iter().filter(|h| h.owner == owner as u64 && h.range.meets(point));
                        prop_assert_eq!(of.next().map(|h| h.write), *kind);
                        prop_assert!(of.next().is_none());
                    }
                }
            }
        }
    }
}
