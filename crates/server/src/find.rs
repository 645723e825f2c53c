//! Giving descriptors back when there are too many, and finding objects again.
//!
//! An evicted node's object is found by its name below its parent, and counts only if it is the same: type, numbers, time
//! of birth and file handle; ESTALE otherwise, never another object. (With `--file-handles open` the handle itself is
//! opened.) The guest's own renames are noted, so it is found after these; see [`Moves`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use host::{Caller, Identity, Name, Object};

use crate::failure::Failure;
use crate::nodes::{Known, Same, Start};
use crate::pin::{NOGID, NodePin, Pin, Raw};
use crate::session::Session;

/// Most names from a directory with a descriptor or a handle to an evicted node. Each takes the thread some microseconds, and
/// it may be the queue's.
const DEEPEST: usize = 4096;

/// So many of the directories right above what is found keep their descriptors whatever the budget says: what else is in
/// them will be looked for next. To keep all would let one request go thousands beyond the budget.
const NEAR: usize = 16;

/// Most nodes evicted at once.
const BATCH: usize = 32;

/// How far beyond the budget open files may go: nodes in use count for a moment.
const SLACK: std::ops::RangeInclusive<usize> = 16..=96;

const STALE: Failure = Failure::new(libc::ESTALE);

/// How long what is not where it was is looked for again, while the guest's renames are under way. Most are noted within
/// microseconds, but a thread may lose its processor in between.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long, once that was in vain: a guest that renames all the time, and asks for what is gone, would hold up the queue's
/// thread with every request.
const IMPATIENCE: Duration = Duration::from_millis(1);

/// For so many of the next. Counted and not timed, so that a machine that stands still for a while changes nothing.
const IMPATIENT: u32 = 64;

/// How long to wait for descriptors that are being closed.
const CLOSING: Duration = Duration::from_millis(50);

/// Between the first two looks; twice as long each time, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// The guest's renames. An object that one of them is moving has the new name on the host before that is noted here, so
/// who does not find it meanwhile looks again.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Who looks for something and has not found it while renames were under way: further renames wait. Without that
    /// a guest that renames all the time would leave no moment to look in.
    looking: AtomicU32,
    /// How many of the next looks are not worth much patience.
    impatient: AtomicU32,
}

impl Moves {
    /// A rename begins; it ends, and has been noted, when the guard is dropped.
    pub(crate) fn begin(&self) -> Move<'_> {
        if self.looking.load(Ordering::SeqCst) > 0 {
            self.wait_for_lookers();
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        Move(self)
    }

    /// No longer than anybody looks.
    #[cold]
    fn wait_for_lookers(&self) {
        let end = Instant::now() + PATIENCE;
        while self.looking.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
    }

    /// Holds back the renames that are yet to begin.
    fn look(&self) -> Looking<'_> {
        self.looking.fetch_add(1, Ordering::SeqCst);
        Looking(self)
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// How long to look for what is not there while renames are under way.
    fn patience(&self) -> Duration {
        let left = self.impatient.load(Ordering::Relaxed);
        // Two threads may count one; it does not matter.
        self.impatient.store(left.saturating_sub(1), Ordering::Relaxed);
        if left > 0 { IMPATIENCE } else { PATIENCE }
    }

    /// Notes that all patience was in vain.
    fn was_in_vain(&self) {
        self.impatient.fetch_max(IMPATIENT, Ordering::Relaxed);
    }

    /// Whether none has been under way since `ended` was asked.
    fn none_since(&self, ended: u64) -> bool {
        self.begun.load(Ordering::SeqCst) == ended
    }
}

/// A rename under way.
pub(crate) struct Move<'m>(&'m Moves);

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// A look for what was not found at once.
struct Looking<'m>(&'m Moves);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.looking.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Session {
    /// Evicts a few nodes when fids and nodes hold more descriptors than the budget says.
    pub(crate) fn keep_budget(&self) {
        if self.with(|tables| tables.descriptors()) > self.limits.fd_budget {
            self.evict();
        }
    }

    /// Whether one descriptor more may be held for good, by an open file or a lock, where fids and nodes hold `held`:
    /// else the failure `errno`. Those cannot be evicted, and if they took what the front-end's own descriptors
    /// need, the guest would lose its device.
    pub(crate) fn has_room(&self, held: usize, errno: i32) -> Result<(), Failure> {
        self.has_slack(held, 1, errno)
    }

    /// As [`Session::has_room`] for the descriptor of a walk, EMFILE. It is evicted like any other, but for what has no name
    /// that is known, or nothing to tell it by.
    pub(crate) fn may_walk(&self, held: usize) -> Result<(), Failure> {
        self.has_slack(held, 2, libc::EMFILE)
    }

    fn has_slack(&self, held: usize, times: usize, errno: i32) -> Result<(), Failure> {
        let budget = self.limits.fd_budget;
        let most = budget.saturating_add(times * (budget / 8).clamp(*SLACK.start(), *SLACK.end()));
        let held = held.saturating_add(self.locks.files());
        if held.saturating_add(self.closing.held()) < most {
            return Ok(());
        }
        let waited = held < most && self.closing.wait(CLOSING);
        if !waited && self.evict() == 0 {
            return Err(Failure::new(errno));
        }
        Ok(())
    }

    /// Takes the descriptors of some nodes that have gone unused for longest; gives how many.
    pub(crate) fn evict(&self) -> usize {
        let batch = (self.limits.fd_budget / 8).clamp(1, BATCH);
        (0..batch).take_while(|_| self.evict_one().is_some()).count()
    }

    /// `None` when no node can be evicted.
    fn evict_one(&self) -> Option<()> {
        for _ in 0..BATCH {
            let (pin, known, host_type) = self.with(|tables| {
                let number = tables.nodes.victim()?;
                let pin = NodePin::new(self, &mut tables.nodes, number)?;
                let node = tables.nodes.get(number)?;
                Some((pin, node.has_handle(), node.host_type()))
            })?;
            let handle = match known {
                true => None,
                false => self.share.handle(&Object::by_path(pin.path(), host_type)),
            };
            let number = pin.give();
            let evicted = self.with(|tables| {
                let handle = handle.as_ref().map(host::Handle::as_bytes);
                tables.nodes.evict(number, handle, &mut tables.dead)
            });
            if evicted {
                return Some(());
            }
        }
        None
    }

    /// A descriptor for the pinned node `node`, which was evicted.
    pub(crate) fn find_again(&self, node: u32) -> Result<Raw, Failure> {
        let found = match self.look(node) {
            Err(failure) if failure.is_exhaustion() && self.evict() > 0 => self.look(node),
            other => other,
        };
        let fd = found?;
        let raw = self.with(|tables| tables.nodes.restore(node, fd, &mut tables.dead));
        self.keep_budget();
        raw.ok_or(STALE)
    }

    fn look(&self, node: u32) -> Result<OwnedFd, Failure> {
        self.patiently(|| self.look_once(node))
    }

    /// Tries `work` again for a while that finds nothing where it looks (ESTALE) while the guest's renames are under way.
    fn patiently<R>(&self, mut work: impl FnMut() -> Result<R, Failure>) -> Result<R, Failure> {
        let (mut until, mut pause, mut looking) = (None, PAUSE, None);
        loop {
            let ended = self.moves.ended();
            match work() {
                // The looks count as well: a way of thousands of names takes milliseconds.
                Err(STALE) if !self.moves.none_since(ended) => {
                    let now = Instant::now();
                    let (end, patience) = *until.get_or_insert_with(|| {
                        let patience = self.moves.patience();
                        (now + patience, patience)
                    });
                    if now >= end {
                        if patience == PATIENCE {
                            self.moves.was_in_vain();
                        }
                        return Err(STALE);
                    }
                    looking.get_or_insert_with(|| self.moves.look());
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                other => return other,
            }
        }
    }

    fn look_once(&self, node: u32) -> Result<OwnedFd, Failure> {
        let (way, base) = self
            .with(|tables| {
                let way = tables.nodes.way(node, DEEPEST)?;
                let base = match way.start {
                    Start::Node(number) => Some(NodePin::new(self, &mut tables.nodes, number)?),
                    Start::Handle(_) => None,
                };
                Some((way, base))
            })
            .ok_or(STALE)?;
        // Where it is by now, and what is known of that.
        let mut here: Option<(OwnedFd, &Known)> = None;
        if let Start::Handle(known) = &way.start {
            let fd = self
                .share
                .open_handle(known.handle.as_deref().unwrap_or_default())?;
            let id = self.share.identify_host(fd.as_fd())?;
            if Same::of(&id) != known.same {
                return Err(STALE);
            }
            here = Some((fd, known));
        }
        for (below, step) in way.steps.iter().enumerate().rev() {
            let start = match (&here, &base) {
                (Some((fd, _)), _) => fd.as_fd(),
                (None, Some(base)) => {
                    self.still_inside(&Object::by_path(base.path(), libc::S_IFDIR))?;
                    base.path()
                }
                (None, None) => return Err(STALE),
            };
            let (fd, id) = self.descend(start, &step.path)?;
            if !self.is(&step.to, fd.as_fd(), &id) {
                return Err(STALE);
            }
            if let Some((passed, known)) = here.replace((fd, &step.to)) {
                self.with(
                    |tables| match below < NEAR || tables.descriptors() < self.limits.fd_budget {
                        true => tables.nodes.restore_known(known, passed, &mut tables.dead),
                        false => tables.dead.push(passed),
                    },
                );
            }
        }
        match (here, base) {
            (Some((fd, _)), _) => Ok(fd),
            // Somebody else has just found it: one descriptor more, which `restore` closes again.
            (None, Some(base)) => base.path().try_clone_to_owned().map_err(Failure::from),
            (None, None) => Err(STALE),
        }
    }

    /// Whether the object of `fd` is the one that is known.
    fn is(&self, known: &Known, fd: BorrowedFd<'_>, id: &Identity) -> bool {
        Same::of(id) == known.same
            && match &known.handle {
                Some(handle) => self.share.is_of_handle(fd, handle),
                None => true,
            }
    }

    /// Goes down `path`, with the rights of this process: it was the guest's to go when it was walked. What is not there
    /// any more is stale.
    fn descend(&self, start: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, Identity), Failure> {
        let mut here: Option<(OwnedFd, Identity)> = None;
        for name in path.split(|&b| b == b'/') {
            let name = Name::new(name).map_err(|_| STALE)?;
            let dir = here.as_ref().map_or(start, |(fd, _)| fd.as_fd());
            let found = self.share.revisit(dir, &name);
            here = Some(found.map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => STALE,
                _ => error.into(),
            })?);
        }
        here.ok_or(STALE)
    }

    /// Does `work` on the pinned fid's object, in a mode that keeps something beside its name too: where the kernel shows no
    /// path for want of room (PATH_MAX), `work` is done once more with the name that is known here. Where that is not the
    /// object's any more it has none that could be found, and what was kept beside it does not count.
    ///
    /// `work` that fails in this way has had no effect that it has not again.
    #[inline]
    pub(crate) fn named<R>(
        &self,
        pin: &Pin<'_>,
        mut work: impl FnMut(&Object<'_>) -> io::Result<R>,
    ) -> Result<R, Failure> {
        match work(&pin.object()?) {
            Err(error) if self.share.lacks_name(&error) => self.named_here(pin, &mut work),
            other => Ok(other?),
        }
    }

    #[cold]
    fn named_here<R>(
        &self,
        pin: &Pin<'_>,
        work: &mut dyn FnMut(&Object<'_>) -> io::Result<R>,
    ) -> Result<R, Failure> {
        let object = pin.object()?;
        let worked = self.patiently(|| {
            let place = self.known_place(pin.view().node)?;
            match work(&object.at(place.object().path, &place.name)) {
                Err(error) if self.share.lacks_name(&error) => Err(STALE),
                other => Ok(other?),
            }
        });
        match worked {
            Err(STALE) => Ok(work(&object.nowhere())?),
            other => other,
        }
    }

    /// Where the object of a pinned node was when that was last heard of. ESTALE when its directory is not there any more,
    /// ENFILE when there was no memory to note it.
    fn known_place(&self, node: u32) -> Result<Place<'_>, Failure> {
        let place = self.with(|tables| tables.nodes.place(node));
        let (parent, path) = place.ok_or(Failure::new(libc::ENFILE))?;
        self.place_of(parent, &path)
    }

    /// The directory that all names but the last of `path` lead to from the node `parent`, and that name.
    fn place_of(&self, parent: u32, path: &[u8]) -> Result<Place<'_>, Failure> {
        let base = self.pin_node(parent)?;
        let (above, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (Some(&path[..at]), &path[at + 1..]),
            None => (None, path),
        };
        let dir = match above {
            Some(above) => Some(self.descend(base.path(), above)?.0),
            None => None,
        };
        let name = Name::new(name).map_err(|_| STALE)?;
        let above = above.unwrap_or_default().to_vec();
        Ok(Place {
            base,
            dir,
            above,
            name,
        })
    }

    /// Where the object of a pinned node is: its directory and its name there, checked to lead to this object.
    /// EBUSY for the root, ESTALE when it is not there any more. EOPNOTSUPP for an object with hard links that was
    /// walked to by several names: which of them this fid came by is not kept, and another one's must not be taken.
    /// (Linux names what it removes and renames, and comes here only where that is not supported.)
    pub(crate) fn place(&self, node: u32, uid: u32) -> Result<Place<'_>, Failure> {
        let caller = Caller { uid, gid: NOGID };
        let (place, known, several) = self.with(|tables| {
            let several = tables.nodes.get(node).is_some_and(|node| node.several);
            (tables.nodes.place(node), tables.nodes.known(node), several)
        });
        let (parent, path) = place.ok_or(Failure::new(libc::EBUSY))?;
        let place = self.place_of(parent, &path)?;
        self.still_inside(&place.object())?;
        let (found, id) = self.share.lookup(caller, &place.object(), &place.name)?;
        if !known.is_some_and(|known| self.is(&known, found.as_fd(), &id)) {
            return Err(STALE);
        }
        if several && id.host_type != libc::S_IFDIR {
            let object = Object::by_path(found.as_fd(), id.host_type);
            let (_, names) = self.share.stored(caller, &object)?;
            if names > 1 {
                return Err(Failure::new(libc::EOPNOTSUPP));
            }
        }
        Ok(place)
    }
}

/// A name in a directory.
pub(crate) struct Place<'s> {
    base: NodePin<'s>,
    dir: Option<OwnedFd>,
    /// The names between the node and the directory, with `/` between.
    above: Vec<u8>,
    /// The name.
    pub(crate) name: Name,
}

impl Place<'_> {
    /// The directory.
    pub(crate) fn object(&self) -> Object<'_> {
        let path = self.dir.as_ref().map_or(self.base.path(), AsFd::as_fd);
        Object::by_path(path, libc::S_IFDIR)
    }

    /// The directory's node, when it is one.
    pub(crate) fn node(&self) -> Option<u32> {
        self.dir.is_none().then(|| self.base.node())
    }

    /// The node from which, and the path by which another `name` in the directory is reached.
    pub(crate) fn sibling(&self, name: &Name) -> (u32, Vec<u8>) {
        let mut path = self.above.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        (self.base.node(), path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_in_vain_is_not_had_again_soon() {
        let moves = Moves::default();
        let _rename = moves.begin();
        assert!(!moves.none_since(moves.ended()));
        for _ in 0..2 {
            assert_eq!((moves.patience(), moves.patience()), (PATIENCE, PATIENCE));
            moves.was_in_vain();
            let short = (0..200).filter(|_| moves.patience() == IMPATIENCE).count();
            assert_eq!(short, IMPATIENT as usize);
        }
    }
}
