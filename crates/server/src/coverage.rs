//! How many hold each byte of a file: what says, in O(log n), which bytes nobody holds any more.
//!
//! A tree over the places where the number changes (a treap, so that no order of requests makes it deep: the priorities
//! are nobody's to know). Each subtree keeps the least and the greatest sum of its changes, so that the next byte that
//! is free, or held, is found without a look at those between.

use std::hash::{BuildHasher, RandomState};

use crate::locks::Range;
use crate::slab::NONE;

/// A place where the number of holders may change.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    change: i32,
    /// Ranges that begin here, or end before.
    ranges: u32,
    priority: u32,
    left: u32,
    right: u32,
    /// Of the changes in this subtree: all of them, and the least and greatest sum of the first few.
    sum: i32,
    least: i32,
    greatest: i32,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Coverage {
    /// Those that are not in use are chained by `left`, from `unused` on.
    places: Vec<Place>,
    root: u32,
    unused: u32,
    len: usize,
    dice: u64,
}

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage {
            places: Vec::new(),
            root: NONE,
            unused: NONE,
            len: 0,
            dice: RandomState::new().hash_one(0u8) | 1,
        }
    }
}

impl Coverage {
    /// Places where a range begins or ends.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether a range begins at `at` or ends before it.
    pub(crate) fn has(&self, at: u64) -> bool {
        let mut next = self.root;
        while let Some(place) = self.get(next) {
            match at.cmp(&place.at) {
                std::cmp::Ordering::Equal => return true,
                std::cmp::Ordering::Less => next = place.left,
                std::cmp::Ordering::Greater => next = place.right,
            }
        }
        false
    }

    /// One holder more for `range`.
    pub(crate) fn add(&mut self, range: Range) {
        self.root = self.change(self.root, range.start, 1, true);
        self.root = self.change(self.root, range.end + 1, -1, true);
    }

    /// One holder less for `range`, which was added.
    pub(crate) fn remove(&mut self, range: Range) {
        self.root = self.change(self.root, range.start, -1, false);
        self.root = self.change(self.root, range.end + 1, 1, false);
    }

    /// The last part of `range` that nobody holds.
    pub(crate) fn last_free(&self, range: Range) -> Option<Range> {
        let mut end = range.end;
        if self.holders(end) > 0 {
            // Up to the first place there is, nobody holds anything.
            let held = match self.before(self.root, 0, end, true) {
                Some(free) => self.next(|at| at > free),
                None => self.next(|_| true),
            };
            end = held?.checked_sub(1)?;
        }
        let start = match self.before(self.root, 0, end, false) {
            Some(held) => self.next(|at| at > held)?,
            None => 0,
        };
        let start = start.max(range.start);
        (start <= end).then_some(Range { start, end })
    }

    fn get(&self, place: u32) -> Option<&Place> {
        self.places.get(usize::try_from(place).ok()?)
    }

    fn get_mut(&mut self, place: u32) -> Option<&mut Place> {
        self.places.get_mut(usize::try_from(place).ok()?)
    }

    fn sum(&self, place: u32) -> i32 {
        self.get(place).map_or(0, |place| place.sum)
    }

    fn holders(&self, at: u64) -> i32 {
        let (mut next, mut holders) = (self.root, 0);
        while let Some(place) = self.get(next) {
            if place.at <= at {
                holders += self.sum(place.left) + place.change;
                next = place.right;
            } else {
                next = place.left;
            }
        }
        holders
    }

    /// The last place of the subtree, not behind `at`, from which on there is nobody (`free`) or somebody, where `before`
    /// is the number of holders before the subtree.
    fn before(&self, subtree: u32, before: i32, at: u64, free: bool) -> Option<u64> {
        let place = self.get(subtree)?;
        let is = |holders: i32| (holders <= 0) == free;
        if !is(before + if free { place.least } else { place.greatest }) {
            return None;
        }
        if place.at <= at {
            let here = before + self.sum(place.left) + place.change;
            if let Some(found) = self.before(place.right, here, at, free) {
                return Some(found);
            }
            if is(here) {
                return Some(place.at);
            }
        }
        self.before(place.left, before, at, free)
    }

    /// The first place that `is` so, which all behind it are too.
    fn next(&self, is: impl Fn(u64) -> bool) -> Option<u64> {
        let (mut next, mut found) = (self.root, None);
        while let Some(place) = self.get(next) {
            if is(place.at) {
                found = Some(place.at);
                next = place.left;
            } else {
                next = place.right;
            }
        }
        found
    }

    fn change(&mut self, subtree: u32, at: u64, change: i32, more: bool) -> u32 {
        let Some(&place) = self.get(subtree) else {
            return if more { self.insert(at, change) } else { NONE };
        };
        let top = match at.cmp(&place.at) {
            std::cmp::Ordering::Equal => {
                let ranges = if more { place.ranges + 1 } else { place.ranges - 1 };
                if ranges == 0 {
                    self.forget(subtree);
                    return self.merge(place.left, place.right);
                }
                if let Some(place) = self.get_mut(subtree) {
                    place.ranges = ranges;
                    place.change += change;
                }
                subtree
            }
            std::cmp::Ordering::Less => {
                let left = self.change(place.left, at, change, more);
                self.set_left(subtree, left);
                match self.is_above(left, subtree) {
                    true => {
                        self.set_left(subtree, self.get(left).map_or(NONE, |left| left.right));
                        self.add_up(subtree);
                        self.set_right(left, subtree);
                        left
                    }
                    false => subtree,
                }
            }
            std::cmp::Ordering::Greater => {
                let right = self.change(place.right, at, change, more);
                self.set_right(subtree, right);
                match self.is_above(right, subtree) {
                    true => {
                        self.set_right(subtree, self.get(right).map_or(NONE, |right| right.left));
                        self.add_up(subtree);
                        self.set_left(right, subtree);
                        right
                    }
                    false => subtree,
                }
            }
        };
        self.add_up(top);
        top
    }

    /// One tree of two, the first of which is before the second.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        let (Some(&before), Some(&behind)) = (self.get(left), self.get(right)) else {
            return if left == NONE { right } else { left };
        };
        let top = match before.priority > behind.priority {
            true => {
                let right = self.merge(before.right, right);
                self.set_right(left, right);
                left
            }
            false => {
                let left = self.merge(left, behind.left);
                self.set_left(right, left);
                right
            }
        };
        self.add_up(top);
        top
    }

    fn is_above(&self, child: u32, parent: u32) -> bool {
        let priority = |place| self.get(place).map_or(0, |place| place.priority);
        child != NONE && priority(child) > priority(parent)
    }

    fn set_left(&mut self, place: u32, left: u32) {
        if let Some(place) = self.get_mut(place) {
            place.left = left;
        }
    }

    fn set_right(&mut self, place: u32, right: u32) {
        if let Some(place) = self.get_mut(place) {
            place.right = right;
        }
    }

    /// Sums a subtree up, whose two below have been.
    fn add_up(&mut self, subtree: u32) {
        let Some(&place) = self.get(subtree) else { return };
        let here = self.sum(place.left) + place.change;
        let (mut sum, mut least, mut greatest) = (here, here, here);
        if let Some(left) = self.get(place.left) {
            least = least.min(left.least);
            greatest = greatest.max(left.greatest);
        }
        if let Some(right) = self.get(place.right) {
            least = least.min(here + right.least);
            greatest = greatest.max(here + right.greatest);
            sum += right.sum;
        }
        if let Some(place) = self.get_mut(subtree) {
            (place.sum, place.least, place.greatest) = (sum, least, greatest);
        }
    }

    fn insert(&mut self, at: u64, change: i32) -> u32 {
        // xorshift64
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let new = Place {
            at,
            change,
            ranges: 1,
            priority: (self.dice >> 32) as u32,
            left: NONE,
            right: NONE,
            sum: change,
            least: change,
            greatest: change,
        };
        self.len += 1;
        let number = self.unused;
        if let Some(place) = self.get_mut(number) {
            let next = std::mem::replace(place, new).left;
            self.unused = next;
            return number;
        }
        self.places.push(new);
        u32::try_from(self.places.len() - 1).unwrap_or(NONE)
    }

    fn forget(&mut self, number: u32) {
        let unused = self.unused;
        self.set_left(number, unused);
        self.unused = number;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::LAST;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    proptest! {
        /// Against a count for each byte.
        #[test]
        fn what_nobody_holds_is_free(
            steps in prop::collection::vec((0u64..64, 0u64..16, any::<bool>(), 0usize..100), 1..200),
        ) {
            let (mut coverage, mut added) = (Coverage::default(), Vec::new());
            for (start, more, add, which) in steps {
                if add || added.is_empty() {
                    let new = range(start, start + more);
                    coverage.add(new);
                    added.push(new);
                } else {
                    coverage.remove(added.swap_remove(which % added.len()));
                }
                let holders = |at: u64| added.iter().filter(|r| (r.start..=r.end).contains(&at)).count();
                let free = |at: &u64| holders(*at) == 0;
                let last = (start..=start + more).rev().find(free);
                let first = last.and_then(|last| (start..=last).rev().take_while(free).last());
                prop_assert_eq!(
                    coverage.last_free(range(start, start + more)),
                    first.zip(last).map(|(first, last)| range(first, last))
                );
                let ends: std::collections::HashSet<u64> =
                    added.iter().flat_map(|r| [r.start, r.end + 1]).collect();
                prop_assert_eq!(coverage.len(), ends.len());
                prop_assert!((0..90).all(|at| coverage.has(at) == ends.contains(&at)));
            }
            for range in added {
                coverage.remove(range);
            }
            prop_assert_eq!(coverage.len(), 0);
            prop_assert_eq!(coverage.root, NONE);
        }
    }

    #[test]
    fn a_range_may_go_to_the_end() {
        let mut coverage = Coverage::default();
        coverage.add(range(5, LAST));
        assert_eq!(coverage.last_free(range(0, LAST)), Some(range(0, 4)));
        assert_eq!(coverage.last_free(range(5, LAST)), None);
        coverage.remove(range(5, LAST));
        assert_eq!(coverage.last_free(range(7, LAST)), Some(range(7, LAST)));
    }

    /// The order in which ranges come does not make the tree deep.
    #[test]
    fn the_tree_stays_flat() {
        fn depth(coverage: &Coverage, place: u32) -> usize {
            let below = |place: &Place| [place.left, place.right].map(|next| depth(coverage, next));
            coverage
                .get(place)
                .map_or(0, |place| 1 + below(place).into_iter().max().unwrap())
        }
        let mut coverage = Coverage::default();
        for at in 0..20_000 {
            coverage.add(range(2 * at, 2 * at));
        }
        assert!(depth(&coverage, coverage.root) < 100);
    }
}
