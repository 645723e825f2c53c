//! Which nodes give their descriptors up, and how they are found again.
//!
//! Those that may are on a list, in the order in which they were used: a node that is open, is the root, or has no
//! descriptor is not on it, and one without a way to find it again leaves it when that is noticed.

use std::os::fd::{OwnedFd, RawFd};

use super::{Node, Nodes, Same};
use crate::slab::NONE;

/// How many nodes in use are passed over in search of an idle one: more than there are requests at a time.
const IN_USE: usize = 4096;

/// How to find a node again: from `start` along the paths, each of which must lead to its object.
#[derive(Debug)]
pub(crate) struct Way {
    /// Where to start.
    pub(crate) start: Start,
    /// Paths, the last step first.
    pub(crate) steps: Vec<(Same, Vec<u8>)>,
}

/// Where a [`Way`] starts.
#[derive(Debug)]
pub(crate) enum Start {
    /// At this node, which has a descriptor and is pinned.
    Node(u32),
    /// At the object behind a handle: mount[4] kind[4] bytes.
    Handle(Vec<u8>),
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

    /// Pins the node that has gone unused for longest and may lose its descriptor. Those in use right now are moved
    /// out of the way.
    pub(crate) fn victim(&mut self) -> Option<u32> {
        for _ in 0..IN_USE {
            let number = self.oldest;
            let node = self.nodes.get_mut(number)?;
            if node.pins == 0 {
                node.pins += 1;
                return Some(number);
            }
            self.touch(number);
        }
        None
    }

    /// Ends [`Nodes::victim`]: the descriptor goes to `dead` if the object can be found again and nobody has begun
    /// to use it. `handle` is what was learned meanwhile.
    pub(crate) fn evict(&mut self, number: u32, handle: Option<&[u8]>, dead: &mut Vec<OwnedFd>) -> bool {
        if let (Some(handle), Some(false)) = (handle, self.nodes.get(number).map(Node::has_handle)) {
            let handle = self.bytes.put(handle);
            if let Some(node) = self.nodes.get_mut(number) {
                node.handle = handle;
            }
        }
        let (lasting, idle) = self.nodes.get(number).map_or((false, false), |node| {
            let lasting = node.has_handle() || node.parent != NONE;
            (lasting, node.pins == 1 && node.opens == 0 && node.refs > 0)
        });
        if !lasting || idle {
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

    /// How to find the node again. The node to start from is pinned.
    pub(crate) fn way(&mut self, number: u32, most: usize) -> Option<Way> {
        let mut steps = Vec::new();
        let mut at = number;
        while steps.len() < most {
            let node = self.nodes.get(at)?;
            if node.fd.is_some() {
                self.pin(at);
                let start = Start::Node(at);
                return Some(Way { start, steps });
            }
            let mut bytes = Vec::new();
            if node.has_handle() {
                self.bytes.get(node.handle, &mut bytes);
                let start = Start::Handle(bytes);
                return Some(Way { start, steps });
            }
            self.bytes.get(node.path, &mut bytes);
            steps.push((node.same, bytes));
            at = node.parent;
        }
        None
    }

    /// Gives an evicted node its new descriptor; one too many (somebody else was faster) goes to `dead`.
    pub(crate) fn restore(&mut self, number: u32, fd: OwnedFd, dead: &mut Vec<OwnedFd>) -> Option<RawFd> {
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
    use super::super::tests::{evict, fd, id};
    use super::*;

    #[test]
    fn without_a_birth_an_evicted_node_is_not_believed() {
        let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
        let a = nodes.adopt(fd(), &id(1, 0), None, &mut dead);
        assert_eq!(evict(&mut nodes, &mut dead), Some(a));
        let b = nodes.adopt(fd(), &id(1, 0), None, &mut dead);
        assert_ne!(a, b);
        nodes.release(a, &mut dead);
        assert_eq!(nodes.find(&id(1, 0)), Some(b));
        nodes.release(b, &mut dead);
        assert_eq!((nodes.len(), nodes.open(), nodes.bytes.len()), (0, 0, 0));
    }

    #[test]
    fn what_is_in_use_is_not_evicted() {
        let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
        let [root, open, used, idle] =
            [1, 2, 3, 4].map(|ino| nodes.adopt(fd(), &id(ino, 1), None, &mut dead));
        nodes.set_root(root);
        nodes.opened(open);
        nodes.pin(used);
        assert_eq!(evict(&mut nodes, &mut dead), Some(idle));
        assert_eq!(evict(&mut nodes, &mut dead), None);
        // Begun to be used after it was chosen.
        nodes.closed(open);
        let victim = nodes.victim().unwrap();
        assert_eq!(victim, open);
        nodes.pin(open);
        assert!(!nodes.evict(victim, Some(b"handle"), &mut dead));
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
        let top = nodes.adopt(fd(), &id(1, 1), None, &mut dead);
        nodes.set_root(top);
        let node = nodes.adopt(fd(), &id(2, 1), None, &mut dead);
        let victim = nodes.victim().unwrap();
        assert!(!nodes.evict(victim, None, &mut dead));
        assert_eq!(nodes.victim(), None);
        // Its name is learned later.
        nodes.name(node, top, b"name", &mut dead);
        let victim = nodes.victim().unwrap();
        assert!(nodes.evict(victim, None, &mut dead));
    }
}
