//! Giving descriptors back when there are too many, and finding objects again.
//!
//! An evicted node's object is found by its file handle, which is exact. Where the process may not use handles, or
//! the file system has none, it is found by its name below its parent, and counts only if it has the same identity:
//! ESTALE otherwise, never another object.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use host::{Attr, Caller, Name, Object};

use crate::failure::Failure;
use crate::nodes::{Same, Start};
use crate::pin::{NOGID, NodePin};
use crate::session::Session;

/// Most parents above an evicted node until one with a descriptor or a handle.
const DEEPEST: usize = 4096;

/// Most nodes evicted at once.
const BATCH: usize = 32;

/// How far beyond a small budget open files may go: nodes in use count for a moment.
const SLACK: usize = 16;

const STALE: Failure = Failure::new(libc::ESTALE);

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
        let budget = self.limits.fd_budget;
        let most = budget.saturating_add((budget / 8).max(SLACK));
        let held = held.saturating_add(self.locks.files());
        if held >= most && self.evict() == 0 {
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
            let victim = self.with(|tables| {
                let number = tables.nodes.victim()?;
                let node = tables.nodes.get(number)?;
                Some((
                    NodePin::taken(self, number, node.raw()?),
                    node.has_handle(),
                    node.host_type,
                ))
            });
            let (pin, known, host_type) = victim?;
            let mut buf = [0; 128];
            let handle = if known {
                None
            } else {
                self.share
                    .handle(&Object::by_path(pin.path(), host_type), &mut buf)
            };
            let handle = handle.and_then(|(mount, kind, len)| {
                let mut bytes = Vec::with_capacity(8 + len);
                bytes.extend_from_slice(&mount.to_le_bytes());
                bytes.extend_from_slice(&kind.to_le_bytes());
                bytes.extend_from_slice(buf.get(..len)?);
                Some(bytes)
            });
            let number = pin.give();
            let evicted = self.with(|tables| tables.nodes.evict(number, handle.as_deref(), &mut tables.dead));
            if evicted {
                return Some(());
            }
        }
        None
    }

    /// A descriptor for the pinned node `node`, which was evicted.
    pub(crate) fn find_again(&self, node: u32, caller: Caller) -> Result<RawFd, Failure> {
        let found = match self.look(node, caller) {
            Err(failure) if failure.is_exhaustion() && self.evict() > 0 => self.look(node, caller),
            other => other,
        };
        let fd = found?;
        let raw = self.with(|tables| tables.nodes.restore(node, fd, &mut tables.dead));
        self.keep_budget();
        raw.ok_or(STALE)
    }

    fn look(&self, node: u32, caller: Caller) -> Result<OwnedFd, Failure> {
        let (way, base) = self
            .with(|tables| {
                let way = tables.nodes.way(node, DEEPEST)?;
                let base = match way.start {
                    Start::Node(number) => {
                        let raw = tables.nodes.get(number)?.raw()?;
                        Some(NodePin::taken(self, number, raw))
                    }
                    Start::Handle(_) => None,
                };
                Some((way, base))
            })
            .ok_or(STALE)?;
        let mut here = match &way.start {
            Start::Node(_) => None,
            Start::Handle(bytes) => Some(self.open_handle(bytes)?),
        };
        for (same, path) in way.steps.iter().rev() {
            let start = match (&here, &base) {
                (Some(fd), _) => fd.as_fd(),
                (None, Some(base)) => base.path(),
                (None, None) => return Err(STALE),
            };
            let (fd, found) = self.descend(caller, start, path)?;
            if found != *same {
                return Err(STALE);
            }
            here = Some(fd);
        }
        match (here, base) {
            (Some(fd), _) => Ok(fd),
            // Somebody else has just found it: one descriptor more, which `restore` closes again.
            (None, Some(base)) => base.path().try_clone_to_owned().map_err(Failure::from),
            (None, None) => Err(STALE),
        }
    }

    fn open_handle(&self, bytes: &[u8]) -> Result<OwnedFd, Failure> {
        let (mount, rest) = bytes.split_first_chunk::<4>().ok_or(STALE)?;
        let (kind, handle) = rest.split_first_chunk::<4>().ok_or(STALE)?;
        let (mount, kind) = (u32::from_le_bytes(*mount), i32::from_le_bytes(*kind));
        Ok(self.share.open_handle(mount, kind, handle)?)
    }

    /// Goes down `path`; what is not there any more is stale.
    fn descend(
        &self,
        caller: Caller,
        start: std::os::fd::BorrowedFd<'_>,
        path: &[u8],
    ) -> Result<(OwnedFd, Same), Failure> {
        let mut here: Option<(OwnedFd, Same)> = None;
        for name in path.split(|&b| b == b'/') {
            let name = Name::new(name).map_err(|_| STALE)?;
            let dir = here.as_ref().map_or(start, |(fd, _)| fd.as_fd());
            let dir = Object::by_path(dir, libc::S_IFDIR);
            let (fd, id) =
                self.share
                    .lookup(caller, &dir, &name)
                    .map_err(|error| match error.raw_os_error() {
                        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => STALE,
                        _ => error.into(),
                    })?;
            here = Some((fd, Same::of(&id)));
        }
        here.ok_or(STALE)
    }

    /// Where the object of a pinned node is: its directory and its name there, checked to lead to this object.
    /// EBUSY for the root, ESTALE when it is not there any more. EOPNOTSUPP for an object with hard links that was
    /// walked to by several names: which of them this fid came by is not kept, and another one's must not be taken.
    /// (Linux names what it removes and renames, and comes here only where that is not supported.)
    pub(crate) fn place(&self, node: u32, uid: u32) -> Result<Place<'_>, Failure> {
        let caller = Caller { uid, gid: NOGID };
        let (place, same, several) = self.with(|tables| {
            let known = tables.nodes.get(node);
            let (same, several) = (
                known.map(|node| node.same),
                known.is_some_and(|node| node.several),
            );
            (tables.nodes.place(node), same, several)
        });
        let (parent, path) = place.ok_or(Failure::new(libc::EBUSY))?;
        let base = self.pin_node(parent, caller)?;
        let (above, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (Some(&path[..at]), &path[at + 1..]),
            None => (None, &path[..]),
        };
        let dir = match above {
            Some(above) => Some(self.descend(caller, base.path(), above)?.0),
            None => None,
        };
        let name = Name::new(name).map_err(|_| STALE)?;
        let place = Place { base, dir, name };
        let (found, id) = self.share.lookup(caller, &place.object(), &name)?;
        if Some(Same::of(&id)) != same {
            return Err(STALE);
        }
        if several && id.host_type != libc::S_IFDIR {
            let object = Object::by_path(found.as_fd(), id.host_type);
            let mut attr = Attr::default();
            self.share.stat(caller, &object, &mut attr)?;
            if attr.nlink > 1 {
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
}
