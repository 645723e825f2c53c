//! Which nodes give their descriptors up, and how they are found again.
//!
//! Those that may are on a list, in the order in which they were used: a node that is open, is the root, or has no
//! descriptor is not on it, and one without a way to find it again leaves it when that is noticed.

use std::os::fd::OwnedFd;

use host::Handle;

use super::{Node, Nodes, Same};
use crate::pin::Raw;
use crate::slab::NONE;

/// How many nodes in use are passed over in search of an idle one: more than there are requests at a time.
const IN_USE: usize = 4096;

/// How to find a node again: from `start` along the paths, each of which must lead to its object.
#[derive(Debug)]
pub(crate) struct Way {
    /// Where to start.
    pub(crate) start: Start,
    /// What comes below, the last step first.
    pub(crate) steps: Vec<Step>,
}

/// Where a [`Way`] starts.
#[derive(Debug)]
pub(crate) enum Start {
    /// At this node, which has a descriptor.
    Node(u32),
    /// At the object behind the handle of this evicted node.
    Handle(Known),
}

/// A step of a [`Way`].
#[derive(Debug)]
pub(crate) struct Step {
    /// From the object of the step before.
    pub(crate) path: Vec<u8>,
    /// Where it leads.
    pub(crate) to: Known,
}

/// What an evicted node's object is told by.
#[derive(Debug)]
pub(crate) struct Known {
    /// The node, if that number still is this object's.
    pub(crate) node: u32,
    /// Which object.
    pub(crate) same: Same,
    /// Its file handle, if it has one.
    pub(crate) handle: Option<Vec<u8>>,
}

impl Nodes {
    /// Makes `number` the most recently used of those that may be evicted, if it is one.
    #[inline]
    pub(crate) fn touch(&mut self, number: u32) {
        if self.newest != number && self.nodes.get(number).is_some_and(|node| node.listed) {
            self.unlink(number);
            self.link(number);
        }
    }

    /// Puts a node that may be evicted on the list of these, as the most recently used; one that may not, or is
    /// there already, is left alone.
    pub(super) fn link(&mut self, number: u32) {
        let old = self.newest;
        let Some(node) = self.nodes.get_mut(number) else {
            return;
        };
        if node.listed || node.fd.is_none() || node.opens > 0 || node.root {
            return;
        }
        (node.newer, node.older, node.listed) = (NONE, old, true);
        match self.nodes.get_mut(old) {
            Some(node) => node.newer = number,
            None => self.oldest = number,
        }
        self.newest = number;
    }

    /// Takes a node off the list, if it is on it.
    pub(super) fn unlink(&mut self, number: u32) {
        let Some(node) = self.nodes.get_mut(number).filter(|node| node.listed) else {
            return;
        };
        let (newer, older) = (node.newer, node.older);
        (node.newer, node.older, node.listed) = (NONE, NONE, false);
        match self.nodes.get_mut(newer) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// The node that has gone unused for longest and may lose its descriptor, to be pinned. Those in use right now are
    /// moved out of the way.
    pub(crate) fn victim(&mut self) -> Option<u32> {
        for _ in 0..IN_USE {
            let number = self.oldest;
            if self.nodes.get(number)?.pins == 0 {
                return Some(number);
            }
            self.touch(number);
        }
        None
    }

    /// Ends the pin of a [`Nodes::victim`]: the descriptor goes to `dead` if the object can be found again and nobody has begun
    /// to use it. `handle` is what was learned meanwhile.
    pub(crate) fn evict(&mut self, number: u32, handle: Option<&[u8]>, dead: &mut Vec<OwnedFd>) -> bool {
        if let (Some(handle), Some(false)) = (handle, self.nodes.get(number).map(Node::has_handle)) {
            let handle = self.bytes.put(handle);
            if let Some(node) = self.nodes.get_mut(number) {
                node.handle = handle;
            }
        }
        let opens = self.handle(number).is_some_and(|handle| Handle::opens(&handle));
        let (lasting, young, idle) = self.nodes.get(number).map_or((false, false, false), |node| {
            let found = node.parent != NONE && node.same.birth != 0;
            // What could be taken for another object later is not let go.
            let lasting = opens || (node.parent != NONE && node.can_be_told());
            let idle = node.pins == 1 && node.opens == 0 && node.refs > 0;
            (lasting, found && !lasting, idle)
        });
        if young {
            // No handle, or no memory for it: a new object could still have its time of birth. Not for long.
            self.touch(number);
        } else if !lasting || idle {
            // Without a way to find it again it is on no list, until it gets a name.
            self.unlink(number);
        }
        let evicted = lasting && idle;
        if evicted && let Some(fd) = self.nodes.get_mut(number).and_then(|node| node.fd.take()) {
            self.open -= 1;
            dead.push(fd);
        }
        self.unpin(number, dead);
        evicted
    }

    /// How to find the node again, if it takes no more than `most` names. When it starts from a node, the caller pins that
    /// under the same lock.
    pub(crate) fn way(&self, number: u32, most: usize) -> Option<Way> {
        let mut steps = Vec::new();
        let mut at = number;
        let mut names = 0;
        while names <= most {
            let node = self.nodes.get(at)?;
            if node.fd.is_some() {
                let start = Start::Node(at);
                return Some(Way { start, steps });
            }
            let to = self.known(at)?;
            if to.handle.as_ref().is_some_and(|handle| Handle::opens(handle)) {
                let start = Start::Handle(to);
                return Some(Way { start, steps });
            }
            let mut path = Vec::new();
            self.bytes.get(node.path, &mut path);
            names += path.split(|&b| b == b'/').count();
            steps.push(Step { path, to });
            at = node.parent;
        }
        None
    }

    /// What the node's object is told by.
    pub(crate) fn known(&self, number: u32) -> Option<Known> {
        let node = self.nodes.get(number)?;
        Some(Known {
            node: number,
            same: node.same,
            handle: self.handle(number),
        })
    }

    /// Gives a directory on a way its descriptor back, if the node still is that evicted one.
    pub(crate) fn restore_known(&mut self, known: &Known, fd: OwnedFd, dead: &mut Vec<OwnedFd>) {
        let is = self
            .nodes
            .get(known.node)
            .is_some_and(|node| node.same == known.same)
            && self.handle(known.node) == known.handle;
        match is {
            true => drop(self.restore(known.node, fd, dead)),
            false => dead.push(fd),
        }
    }

    /// Gives an evicted node its new descriptor; one too many (somebody else was faster) goes to `dead`.
    pub(crate) fn restore(&mut self, number: u32, fd: OwnedFd, dead: &mut Vec<OwnedFd>) -> Option<Raw> {
        let node = self.nodes.get_mut(number)?;
        if node.fd.is_some() {
            dead.push(fd);
        } else {
            node.fd = Some(fd);
            self.open += 1;
            self.link(number);
        }
        self.nodes.get(number)?.raw()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HANDLE, OTHER, SAME, evict, fd, id};
    use super::*;
    use host::Identity;

    /// A new object has the number of one that nobody holds, and was made within the same tick of the clock.
    #[test]
    fn an_evicted_node_is_told_by_its_handle() {
        for birth in [0, 1] {
            let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
            let a = nodes.adopt(fd(), &id(1, birth), None, SAME, &mut dead);
            assert_eq!(evict(&mut nodes, &mut dead), Some(a));
            assert_eq!(nodes.adopt(fd(), &id(1, birth), None, SAME, &mut dead), a);
            assert_eq!(evict(&mut nodes, &mut dead), Some(a));
            let b = nodes.adopt(fd(), &id(1, birth), None, OTHER, &mut dead);
            assert_ne!(a, b);
            nodes.release(a, &mut dead);
            nodes.release(a, &mut dead);
            assert_eq!(nodes.find(&id(1, birth)), Some(b));
            nodes.release(b, &mut dead);
            assert_eq!((nodes.len(), nodes.open(), nodes.bytes.len()), (0, 0, 0));
        }
    }

    #[test]
    fn another_type_is_another_object() {
        let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
        let types = [
            libc::S_IFREG,
            libc::S_IFIFO,
            libc::S_IFCHR,
            libc::S_IFBLK,
            libc::S_IFSOCK,
            libc::S_IFLNK,
        ];
        let mut seen = Vec::new();
        for host_type in types {
            let id = Identity {
                host_type,
                ..id(1, 1)
            };
            let node = nodes.adopt(fd(), &id, None, SAME, &mut dead);
            assert!(!seen.contains(&node));
            assert_eq!(nodes.get(node).map(Node::host_type), Some(host_type));
            assert!(evict(&mut nodes, &mut dead).is_some());
            seen.push(node);
        }
    }

    /// Neither a time of birth nor a handle: whatever has its number later might be taken for it.
    #[test]
    fn what_cannot_be_told_keeps_its_descriptor() {
        let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
        let top = nodes.adopt(fd(), &id(1, 1), None, SAME, &mut dead);
        nodes.set_root(top);
        for (birth, handle, evicted) in [
            (0, None, false),
            (0, Some(HANDLE), true),
            (7, None, true),
            (7, Some(HANDLE), true),
        ] {
            let node = nodes.adopt(fd(), &id(2, birth), Some((top, b"name")), SAME, &mut dead);
            let victim = nodes.victim().unwrap();
            nodes.pin(victim);
            assert_eq!(
                nodes.evict(victim, handle, &mut dead),
                evicted,
                "{birth} {handle:?}"
            );
            nodes.release(node, &mut dead);
        }
    }

    /// Its number may be used again within the same tick. A guest that has used up all memory for handles can have that, too.
    #[test]
    fn without_a_handle_what_was_just_made_keeps_its_descriptor() {
        let just_now = i64::try_from(
            std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .unwrap_or_default()
                .as_secs(),
        )
        .unwrap();
        for full in [false, true] {
            let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
            let top = nodes.adopt(fd(), &id(1, 1), None, SAME, &mut dead);
            nodes.set_root(top);
            let old = nodes.adopt(fd(), &id(2, just_now - 10), Some((top, b"old")), SAME, &mut dead);
            let young = nodes.adopt(fd(), &id(3, just_now), Some((top, b"young")), SAME, &mut dead);
            nodes.touch(old);
            nodes.set_full(full);
            // No room for this one.
            let long = vec![b'h'; 1 << 20];
            let handle = full.then_some(&long[..]);
            for (victim, evicted) in [(young, false), (old, true), (young, false)] {
                assert_eq!(nodes.victim(), Some(victim));
                nodes.pin(victim);
                assert_eq!(nodes.evict(victim, handle, &mut dead), evicted, "{victim} {full}");
            }
            assert!(nodes.get(young).and_then(Node::raw).is_some());
            // With a handle it goes at once.
            nodes.set_full(false);
            nodes.pin(young);
            assert!(nodes.evict(young, Some(HANDLE), &mut dead));
        }
    }

    /// A walk on another mount leaves a node for sixteen names.
    #[test]
    fn a_way_has_so_many_names_at_most() {
        let (mut nodes, mut dead) = (Nodes::new(usize::MAX), Vec::new());
        let top = nodes.adopt(fd(), &id(0, 1), None, SAME, &mut dead);
        nodes.set_root(top);
        let mut chain = vec![top];
        for ino in 1..=6 {
            let above = *chain.last().unwrap();
            chain.push(nodes.adopt(fd(), &id(ino, 1), Some((above, b"a/b/c")), SAME, &mut dead));
        }
        while let Some(victim) = nodes.victim() {
            nodes.pin(victim);
            assert!(nodes.evict(victim, None, &mut dead));
        }
        let last = chain[6];
        assert!(nodes.way(last, 17).is_none());
        assert_eq!(nodes.way(last, 18).map(|way| way.steps.len()), Some(6));
        assert_eq!(nodes.way(chain[5], 15).map(|way| way.steps.len()), Some(5));
    }

    #[test]
    fn what_is_in_use_is_not_evicted() {
        let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
        let [root, open, used, idle] =
            [1, 2, 3, 4].map(|ino| nodes.adopt(fd(), &id(ino, 1), None, SAME, &mut dead));
        nodes.set_root(root);
        nodes.opened(open);
        nodes.pin(used);
        assert_eq!(evict(&mut nodes, &mut dead), Some(idle));
        assert_eq!(evict(&mut nodes, &mut dead), None);
        // Begun to be used after it was chosen.
        nodes.closed(open);
        let victim = nodes.victim().unwrap();
        nodes.pin(victim);
        assert_eq!(victim, open);
        nodes.pin(open);
        assert!(!nodes.evict(victim, Some(HANDLE), &mut dead));
        assert!(nodes.get(open).and_then(Node::raw).is_some());
        nodes.unpin(open, &mut dead);
        nodes.unpin(used, &mut dead);
        assert_eq!(nodes.open(), 3);
        for node in [root, open, used, idle] {
            nodes.release(node, &mut dead);
        }
        assert_eq!((nodes.len(), nodes.open()), (0, 0));
    }

    #[test]
    fn a_node_without_a_way_back_keeps_its_descriptor() {
        let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
        let top = nodes.adopt(fd(), &id(1, 1), None, SAME, &mut dead);
        nodes.set_root(top);
        let node = nodes.adopt(fd(), &id(2, 1), None, SAME, &mut dead);
        let victim = nodes.victim().unwrap();
        nodes.pin(victim);
        assert!(!nodes.evict(victim, None, &mut dead));
        assert_eq!(nodes.victim(), None);
        // Its name is learned later.
        nodes.name(node, top, b"name", &mut dead);
        let victim = nodes.victim().unwrap();
        nodes.pin(victim);
        assert!(nodes.evict(victim, None, &mut dead));
    }
}
