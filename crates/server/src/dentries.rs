//! Which directory a name led to last: what lets a walk look at a directory instead of opening it again.
//!
//! An entry is a hint and nothing more: before it is used, the host is asked whether the name still leads there. So
//! entries need no care when host or guest move things about, and only a digest of the name is kept.

use crate::slab::Secret;

/// Most entries. Each keeps a directory's node, and with that a descriptor, which can be evicted like any other.
const MOST: usize = 128;

#[derive(Clone, Copy, Debug, Default)]
struct Dentry {
    /// Of the name and the directory it is in; 0: nothing here.
    digest: u64,
    node: u32,
}

/// A small table, a place for each digest; whoever comes later takes the place.
#[derive(Debug)]
pub(crate) struct Dentries {
    places: Box<[Dentry]>,
    secret: Secret,
}

impl Dentries {
    /// No entries yet, and never more than an eighth of the `descriptors` there are.
    pub(crate) fn new(descriptors: usize) -> Dentries {
        let count = (descriptors / 8).clamp(1, MOST);
        // A power of two, so that a place is found without a division.
        Dentries {
            places: vec![Dentry::default(); 1 << count.ilog2()].into(),
            secret: Secret::new(),
        }
    }

    fn place(&mut self, digest: u64) -> Option<&mut Dentry> {
        let at = (digest >> 32) as usize & (self.places.len() - 1);
        self.places.get_mut(at)
    }

    /// The node that `name` in the directory `parent` led to.
    #[inline]
    pub(crate) fn find(&mut self, parent: u32, name: &[u8]) -> Option<u32> {
        let digest = digest(&self.secret, parent, name);
        let place = self.place(digest)?;
        (place.digest == digest).then_some(place.node)
    }

    /// Notes that `name` in `parent` leads to `node`, of which the caller gives a reference. Gives the node whose
    /// reference is to be released instead.
    #[must_use]
    pub(crate) fn put(&mut self, parent: u32, name: &[u8], node: u32) -> Option<u32> {
        let digest = digest(&self.secret, parent, name);
        let Some(place) = self.place(digest) else {
            return Some(node);
        };
        let old = std::mem::replace(place, Dentry { digest, node });
        (old.digest != 0).then_some(old.node)
    }

    /// Forgets where `name` in `parent` led; gives the node to be released.
    #[must_use]
    pub(crate) fn forget(&mut self, parent: u32, name: &[u8]) -> Option<u32> {
        let digest = digest(&self.secret, parent, name);
        let place = self.place(digest).filter(|place| place.digest == digest)?;
        Some(std::mem::take(place).node)
    }

    /// Forgets everything; gives the nodes to be released.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = u32> {
        let taken = self.places.iter_mut().map(std::mem::take);
        taken
            .filter(|dentry| dentry.digest != 0)
            .map(|dentry| dentry.node)
    }
}

/// Two names with one digest cost a look in vain.
#[inline]
fn digest(secret: &Secret, parent: u32, name: &[u8]) -> u64 {
    let mut digest = secret.spread(u64::from(parent) << 32 | name.len() as u64);
    let (words, rest) = name.as_chunks::<8>();
    for word in words {
        digest = secret.spread(digest ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    secret.spread(digest ^ u64::from_le_bytes(last)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn what_is_put_is_found_until_its_place_is_taken() {
        let mut dentries = Dentries::new(1024);
        assert_eq!(dentries.find(1, b"name"), None);
        assert_eq!(dentries.put(1, b"name", 7), None);
        assert_eq!(dentries.find(1, b"name"), Some(7));
        assert_eq!(dentries.find(2, b"name"), None);
        assert_eq!(dentries.find(1, b"nam"), None);
        assert_eq!(dentries.find(1, b"name\0"), None);
        assert_eq!(dentries.put(1, b"name", 8), Some(7));
        assert_eq!(dentries.forget(2, b"name"), None);
        assert_eq!(dentries.forget(1, b"name"), Some(8));
        assert_eq!(dentries.find(1, b"name"), None);
    }

    #[test]
    fn each_reference_comes_back_once() {
        let mut dentries = Dentries::new(80);
        assert_eq!(dentries.places.len(), 8);
        let mut back = HashSet::new();
        for node in 0..1000 {
            let name = format!("directory-{node}");
            if let Some(old) = dentries.put(node % 3, name.as_bytes(), node) {
                assert!(back.insert(old));
            }
            assert_eq!(dentries.find(node % 3, name.as_bytes()), Some(node));
        }
        let left: Vec<u32> = dentries.drain().collect();
        assert!(left.len() <= 8 && left.iter().all(|node| back.insert(*node)));
        assert_eq!(back.len(), 1000);
        assert_eq!(dentries.drain().count(), 0);
    }
}
