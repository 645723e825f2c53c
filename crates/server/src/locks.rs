//! Which client process holds which byte ranges, and the host locks that stand for them.
//!
//! One open file description per inode and session carries all of a client's locks on that inode, for the
//! client's own kernel arbitrates between its processes before it asks (`v9fs_file_do_lock`). But two of them may
//! share a read lock, and the one that lets go must not take the other's with it; so the ranges are kept per process
//! (Tlock's `proc_id` and `client_id`), and the host's lock is dropped only where nobody's is left.
//!
//! A flock(2) arrives as a record lock over the whole file (`v9fs_file_flock_dotl`), in the name of the process that took
//! it, but is the open file's: the process may end (flock(1) in a script), open and close the file once more, or hold
//! another one through another descriptor. So a lock of the whole file is noted per process and fid.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host::{Caller, LockFile, Share};

use crate::background::Background;
use crate::coverage::Coverage;
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

    pub(crate) fn is_whole(self) -> bool {
        self.start == 0 && self.end == LAST
    }

    fn meets(self, other: Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// Puts ranges in order, those that meet or touch made one.
fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut all: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(1) => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// A range held by a client's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) range: Range,
    /// The process, or the process and the fid.
    pub(crate) owner: u64,
    /// The fid it was taken through.
    pub(crate) fid: u32,
    /// Exclusive.
    pub(crate) write: bool,
}

/// What [`Held`] says beside owner and start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rest {
    end: u64,
    fid: u32,
    write: bool,
}

/// Places on one inode where a range may begin or end. Linux keeps a file's locks in a list, which it searches from the
/// front for every call: with so many of them, one takes 0.3 ms, and the host's other programs wait for it as well.
const PLACES: usize = 32 * 1024;

/// Ranges that one request may move from one description to another: a system call each.
const MOVED: usize = 256;

/// The locks of one inode. Each of a request's changes costs O(log n), and none a look at all ranges.
#[derive(Debug)]
pub(crate) struct Inode {
    /// The open file description that carries them. It also keeps the inode number from being used again.
    pub(crate) file: LockFile,
    /// By owner and start; one owner's do not meet.
    held: BTreeMap<(u64, u64), Rest>,
    /// The same by the fid they were taken through.
    fids: BTreeSet<(u32, u64, u64)>,
    coverage: Coverage,
    /// Locks of the whole file: shared, exclusive.
    whole: [usize; 2],
    /// A thread is at that.
    letting_go: bool,
    /// What may be locked on the host although nobody holds it: in order, let go of from the back.
    pending: Vec<Range>,
}

impl Inode {
    /// No locks yet, on `file`.
    pub(crate) fn new(file: LockFile) -> Inode {
        Inode {
            file,
            held: BTreeMap::new(),
            fids: BTreeSet::new(),
            coverage: Coverage::default(),
            whole: [0; 2],
            letting_go: false,
            pending: Vec::new(),
        }
    }

    /// Whether nobody holds anything.
    pub(crate) fn is_free(&self) -> bool {
        self.held.is_empty()
    }

    /// Ranges held.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether `owner` holds a part of `range`.
    pub(crate) fn holds(&self, owner: u64, range: Range) -> bool {
        self.last(owner, range.end)
            .is_some_and(|held| held.range.meets(range))
    }

    /// Puts a description that takes more kinds of locks in the place of the one that carries these. False when that must
    /// wait for somebody. EBADF when it cannot be done, ENOLCK when there are too many.
    pub(crate) fn move_to(&mut self, share: &Share, caller: Caller, better: LockFile) -> io::Result<bool> {
        if self.len() > MOVED {
            return Err(io::Error::from_raw_os_error(libc::ENOLCK));
        }
        let held = self
            .held
            .iter()
            .map(|(&(_, start), rest)| Range { start, end: rest.end });
        // What nobody holds any more stays behind.
        let ranges = joined(held.collect()).into_iter();
        let moved = share.move_locks(
            caller,
            &mut self.file,
            better,
            ranges.map(|range| (range.start, range.length())),
        )?;
        if moved {
            self.pending.clear();
        }
        Ok(moved)
    }

    /// Gives back on the host what flock(2) has and nobody holds any more.
    fn lower(&mut self) {
        let [shared, exclusive] = self.whole;
        self.file.lower(match (shared, exclusive) {
            (_, 1..) => Some(true),
            (1.., 0) => Some(false),
            (0, 0) => None,
        });
    }

    /// Whether there are too many ranges for one more.
    pub(crate) fn is_full(&self, range: Range) -> bool {
        let known = self.coverage.has(range.start) && self.coverage.has(range.end + 1);
        !known && self.coverage.len() + 2 > PLACES
    }

    /// Notes what was granted; it replaces what that process held there.
    pub(crate) fn take(&mut self, new: Held) {
        self.cut(new.owner, new.range);
        let mut new = new;
        // One record for neighbours of a kind: a process that locks a file byte by byte holds one range.
        let alike = |held: Option<Held>| held.filter(|old| (old.fid, old.write) == (new.fid, new.write));
        let before = new
            .range
            .start
            .checked_sub(1)
            .and_then(|at| alike(self.last(new.owner, at)));
        let after = alike(self.last(new.owner, new.range.end + 1));
        if let Some(old) = before.filter(|old| old.range.end + 1 == new.range.start) {
            self.remove(old);
            new.range.start = old.range.start;
        }
        if let Some(old) = after.filter(|old| old.range.start == new.range.end + 1) {
            self.remove(old);
            new.range.end = old.range.end;
        }
        self.insert(new);
    }

    /// The last range of `owner` that starts at `at` or before.
    fn last(&self, owner: u64, at: u64) -> Option<Held> {
        let mut before = self.held.range((owner, 0)..=(owner, at));
        let (&(owner, start), rest) = before.next_back()?;
        let range = Range { start, end: rest.end };
        Some(Held {
            range,
            owner,
            fid: rest.fid,
            write: rest.write,
        })
    }

    fn insert(&mut self, new: Held) {
        let Held {
            range,
            owner,
            fid,
            write,
        } = new;
        let end = range.end;
        self.held.insert((owner, range.start), Rest { end, fid, write });
        self.fids.insert((fid, owner, range.start));
        if range.is_whole() {
            self.whole[usize::from(write)] += 1;
        }
        self.coverage.add(range);
    }

    fn remove(&mut self, old: Held) {
        self.held.remove(&(old.owner, old.range.start));
        self.fids.remove(&(old.fid, old.owner, old.range.start));
        if old.range.is_whole() {
            self.whole[usize::from(old.write)] -= 1;
        }
        self.coverage.remove(old.range);
    }

    /// Takes `range` from `owner`; gives what it held of that.
    fn cut(&mut self, owner: u64, range: Range) -> Vec<Range> {
        let mut gone = Vec::new();
        while let Some(held) = self.last(owner, range.end).filter(|held| held.range.meets(range)) {
            self.remove(held);
            let Range { start, end } = held.range;
            let (first, last) = (start.max(range.start), end.min(range.end));
            gone.push(Range {
                start: first,
                end: last,
            });
            let before = (start < first).then(|| Range {
                start,
                end: first - 1,
            });
            let after = (end > last).then(|| Range { start: last + 1, end });
            for range in [before, after].into_iter().flatten() {
                self.insert(Held { range, ..held });
            }
        }
        gone
    }

    /// Whether to take `range` from `owner` would leave a range more than there were.
    pub(crate) fn splits(&self, owner: u64, range: Range) -> bool {
        self.last(owner, range.start)
            .is_some_and(|held| held.range.start < range.start && held.range.end > range.end)
    }

    /// Whether a request for `range` by `owner` concerns more than `most` ranges.
    pub(crate) fn concerns_more(&self, owner: u64, range: Range, most: usize) -> bool {
        self.len() > most
            && self
                .held
                .range((owner, range.start)..=(owner, range.end))
                .nth(most)
                .is_some()
    }

    /// Whether more than `most` ranges were taken through `fid`.
    pub(crate) fn has_more(&self, fid: u32, most: usize) -> bool {
        self.len() > most && self.of(fid).nth(most).is_some()
    }

    fn of(&self, fid: u32) -> impl Iterator<Item = (u64, u64)> {
        let all = self.fids.range((fid, 0, 0)..=(fid, u64::MAX, u64::MAX));
        all.map(|&(_, owner, start)| (owner, start))
    }

    /// Takes `range` from `owner`. [`Inode::next_free`] gives the parts of it that nobody holds any more.
    pub(crate) fn release(&mut self, owner: u64, range: Range) {
        let gone = self.cut(owner, range);
        self.note_free(gone);
    }

    /// Takes the locks of the whole file that were taken through `fid`, whoever did; none where that has more than `most`.
    pub(crate) fn release_whole(&mut self, fid: u32, most: usize) {
        if self.has_more(fid, most) {
            return;
        }
        let all = Range { start: 0, end: LAST };
        let owners: Vec<u64> = self.of(fid).filter(|at| at.1 == 0).map(|at| at.0).collect();
        for owner in owners {
            if self.last(owner, 0).is_some_and(|held| held.range == all) {
                self.release(owner, all);
            }
        }
    }

    /// Takes all that was taken through `fid`. [`Inode::next_free`] gives the parts that nobody holds any more.
    pub(crate) fn release_fid(&mut self, fid: u32) {
        let edges = (self.fids.first(), self.fids.last());
        if matches!(edges, (Some(first), Some(last)) if first.0 == fid && last.0 == fid) {
            // All there is. The description will be closed, and the host's locks go with it.
            self.held.clear();
            self.fids.clear();
            self.coverage = Coverage::default();
            self.whole = [0; 2];
            return;
        }
        let keys: Vec<(u64, u64)> = self.of(fid).collect();
        let mut gone = Vec::with_capacity(keys.len());
        for (owner, start) in keys {
            if let Some(held) = self.last(owner, start) {
                self.remove(held);
                gone.push(held.range);
            }
        }
        self.note_free(gone);
    }

    fn note_free(&mut self, gone: Vec<Range>) {
        if !gone.is_empty() {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend(gone);
            self.pending = joined(pending);
        }
    }

    /// A part of the file to be unlocked on the host, since nobody holds it any more; each is given once. From the
    /// back, because Linux begins its search at the front.
    pub(crate) fn next_free(&mut self) -> Option<Range> {
        while let Some(last) = self.pending.pop() {
            if let Some(free) = self.coverage.last_free(last) {
                if free.start > last.start {
                    let end = free.start - 1;
                    self.pending.push(Range { end, ..last });
                }
                return Some(free);
            }
        }
        None
    }

    /// Whether [`Inode::next_free`] has more to give, perhaps.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
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
    waiting: usize,
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
            before: inode.as_ref().map_or(0, |inode| inode.len()),
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
        let after = out.inode.as_ref().map_or(0, |inode| inode.len());
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

/// The locks of a session, with what is known of them from outside.
#[derive(Debug, Default)]
pub(crate) struct LockTable {
    locks: Mutex<Locks>,
    /// Signalled when an inode is put back for which a request waits.
    back: Condvar,
    /// Descriptors held, readable without the lock.
    files: AtomicUsize,
    /// Counts what was let go of.
    wakes: AtomicU64,
    /// Lets go on the host, file by file, of what is too much for one request.
    letting_go: Background,
}

impl LockTable {
    fn locks(&self) -> MutexGuard<'_, Locks> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Descriptors held, but for those taken out.
    pub(crate) fn files(&self) -> usize {
        self.files.load(Ordering::Relaxed)
    }

    /// Changes when something was let go of.
    pub(crate) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    /// Tells those who wait that it may be worth trying again.
    pub(crate) fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the locks of an inode out. `None` when another request has them and this thread must not `wait`.
    pub(crate) fn take_out(self: &Arc<Self>, same: Same, wait: bool) -> Option<TakenOut> {
        let mut locks = self.locks();
        loop {
            let count = locks.count();
            if let Some(out) = locks.take_out(same) {
                return Some(TakenOut {
                    table: Arc::clone(self),
                    count,
                    out,
                });
            }
            if !wait {
                return None;
            }
            locks.waiting += 1;
            locks = self.back.wait(locks).unwrap_or_else(PoisonError::into_inner);
            locks.waiting -= 1;
        }
    }

    /// Drops all locks. Those taken out go when they are put back; many, in the background.
    pub(crate) fn reset(&self) {
        let (dropped, count) = {
            let mut locks = self.locks();
            self.files.store(0, Ordering::Relaxed);
            let count = locks.count();
            (locks.reset(), count)
        };
        if dropped.is_empty() {
            return;
        }
        match count > MANY {
            true => self.letting_go.run(0, move || drop(dropped)),
            false => drop(dropped),
        }
        self.wake();
    }

    /// Goes on unlocking an inode that has more to unlock than a request could, until others want it, and again.
    fn let_go(self: &Arc<Self>, same: Same) {
        let table = Arc::clone(self);
        self.letting_go.run(0, move || {
            loop {
                let Some(mut out) = table.take_out(same, true) else {
                    return;
                };
                if !out.unlock(SLICE) {
                    // The description goes, or nothing is left to be done.
                    out.settled();
                    return;
                }
                drop(out);
                // Those who have been waiting come first.
                std::thread::sleep(Duration::from_micros(100));
            }
        });
    }
}

/// Ranges that a request may drop by itself.
const MANY: usize = 4096;

/// System calls made with an inode taken out, in the background.
const SLICE: usize = 64;

/// The locks of an inode, in this request's hands. Put back with the value.
pub(crate) struct TakenOut {
    table: Arc<LockTable>,
    /// Ranges that the session held when this was taken.
    pub(crate) count: usize,
    out: Out,
}

impl TakenOut {
    /// Its locks, if there are any.
    pub(crate) fn inode(&mut self) -> Option<&mut Inode> {
        self.out.inode.as_mut()
    }

    /// It has locks from now on.
    pub(crate) fn begin(&mut self, inode: Inode) {
        self.out.inode = Some(inode);
    }

    /// Unlocks on the host what nobody holds any more, with so many system calls at most; what is left is then done in
    /// the background.
    pub(crate) fn let_go(&mut self, most: usize) {
        let more = self.unlock(most);
        if let Some(inode) = self.out.inode.as_mut().filter(|_| more)
            && !std::mem::replace(&mut inode.letting_go, true)
        {
            self.table.let_go(self.out.same);
        }
        self.table.wake();
    }

    /// True when there is more to unlock. An error leaves a lock too many, until the description is closed.
    fn unlock(&mut self, most: usize) -> bool {
        // Closing the description frees whatever is left.
        if self.out.inode.as_ref().is_some_and(Inode::is_free) {
            self.out.inode = None;
        }
        let Some(inode) = &mut self.out.inode else {
            return false;
        };
        inode.lower();
        for _ in 0..most {
            let Some(range) = inode.next_free() else { break };
            inode.file.let_go(range.start, range.length());
        }
        inode.has_pending()
    }

    fn settled(&mut self) {
        if let Some(inode) = &mut self.out.inode {
            inode.letting_go = false;
        }
        self.table.wake();
    }
}

impl Drop for TakenOut {
    fn drop(&mut self) {
        let out = self.out.take();
        let dropped = {
            let mut locks = self.table.locks();
            let dropped = locks.put_back(out);
            self.table.files.store(locks.files(), Ordering::Relaxed);
            if locks.waiting > 0 {
                self.table.back.notify_all();
            }
            dropped
        };
        if dropped.is_some() {
            drop(dropped);
            self.table.wake();
        }
    }
}

#[cfg(test)]
mod tests;
