//! Records under small numbers: what fids and nodes live in.
//!
//! Records never move and their numbers are plain integers, so the whole of a session's state is a few arrays
//! without pointers between them. Whoever uses a record outside the session's lock counts itself in the record's
//! `pins` first; a pinned record is not removed, so a number needs no generation.

use std::hash::{BuildHasher, RandomState};

/// "No record".
pub(crate) const NONE: u32 = u32::MAX;

const PAGE_BITS: u32 = 10;
const PAGE: usize = 1 << PAGE_BITS;

#[derive(Debug)]
enum Slot<T> {
    Free(u32),
    Used(T),
}

/// Records by number. A removed record's number is used again.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    /// Pages of fixed size: growing never moves a record nor copies a large table under the lock.
    pages: Vec<Vec<Slot<T>>>,
    free: u32,
    used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            pages: Vec::new(),
            free: NONE,
            used: 0,
        }
    }
}

impl<T> Slab<T> {
    fn slot(&self, number: u32) -> Option<&Slot<T>> {
        let number = usize::try_from(number).ok()?;
        self.pages.get(number >> PAGE_BITS)?.get(number & (PAGE - 1))
    }

    fn slot_mut(&mut self, number: u32) -> Option<&mut Slot<T>> {
        let number = usize::try_from(number).ok()?;
        self.pages
            .get_mut(number >> PAGE_BITS)?
            .get_mut(number & (PAGE - 1))
    }

    /// The record `number`.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        match self.slot(number)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// The record `number`, to be changed.
    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.slot_mut(number)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// Adds a record and gives its number.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.used += 1;
        let number = self.free;
        if let Some(slot) = self.slot_mut(number) {
            let next = match slot {
                Slot::Free(next) => *next,
                Slot::Used(_) => NONE,
            };
            *slot = Slot::Used(value);
            self.free = next;
            return number;
        }
        let last = match self.pages.last_mut() {
            Some(last) if last.len() < PAGE => last,
            _ => {
                self.pages.push(Vec::with_capacity(PAGE));
                let at = self.pages.len() - 1;
                &mut self.pages[at]
            }
        };
        last.push(Slot::Used(value));
        let number = (self.pages.len() - 1) * PAGE + self.pages.last().map_or(0, Vec::len) - 1;
        u32::try_from(number).unwrap_or(NONE)
    }

    /// Takes the record `number` out.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let free = self.free;
        let slot = self.slot_mut(number)?;
        if matches!(slot, Slot::Free(_)) {
            return None;
        }
        let Slot::Used(value) = std::mem::replace(slot, Slot::Free(free)) else {
            return None;
        };
        self.free = number;
        self.used -= 1;
        Some(value)
    }

    /// Records in use.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Records that take no more memory.
    pub(crate) fn spare(&self) -> usize {
        self.pages.len() * PAGE - self.used
    }

    /// Bytes of memory. Removed records' are kept for others.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.len() * PAGE * size_of::<Slot<T>>()
    }

    /// Numbers are below this.
    pub(crate) fn end(&self) -> u32 {
        let full = self.pages.len().saturating_sub(1) * PAGE;
        u32::try_from(full + self.pages.last().map_or(0, Vec::len)).unwrap_or(NONE)
    }
}

/// A record that is found by a key of its own.
pub(crate) trait Keyed {
    /// The key's place in an index that has these secrets.
    fn hash(&self, secret: &Secret) -> u64;
    /// Where the record keeps the number of the next one in its bucket.
    fn chain(&self) -> u32;
    /// As above, to be changed.
    fn set_chain(&mut self, next: u32);
}

/// What makes an index's order nobody's to know: a client chooses its fids, and which inodes it looks at, and if it
/// could choose them to meet in one bucket, each of its requests would search a long list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Secret([u64; 4]);

impl Secret {
    /// From the system's random numbers.
    pub(crate) fn new() -> Secret {
        let state = RandomState::new();
        Secret([0u8, 1, 2, 3].map(|which| state.hash_one(which)))
    }

    /// Spreads a number over 64 bits: the two halves of a product, folded, twice, as wyhash does it. Two multiplications,
    /// and without the secret nobody can tell which numbers meet.
    #[inline]
    pub(crate) fn spread(&self, key: u64) -> u64 {
        let [a, b, c, d] = self.0;
        let product = |x: u64, y: u64| {
            let product = u128::from(x) * u128::from(y);
            (product as u64, (product >> 64) as u64)
        };
        let (low, high) = product(key ^ a, b);
        let (low, high) = product(low ^ c, high ^ d);
        low ^ high
    }
}

/// A [`Slab`] with an index over its records' keys: chains through the records, 4 bytes of bucket each.
///
/// The index grows by a bucket with each record that finds none to spare, whose records are taken from one other bucket
/// (linear hashing): to make a new index of millions of records at once would hold up everything else.
#[derive(Debug)]
pub(crate) struct HashedSlab<T> {
    records: Slab<T>,
    /// More than half of `mask` + 1. Those that there are not yet are their halves' part.
    buckets: Vec<u32>,
    /// A power of two less one.
    mask: usize,
    secret: Secret,
}

/// Buckets to begin with, a power of two.
const BUCKETS: usize = 64;

impl<T> Default for HashedSlab<T> {
    fn default() -> Self {
        HashedSlab {
            records: Slab::default(),
            buckets: vec![NONE; BUCKETS],
            mask: BUCKETS - 1,
            secret: Secret::new(),
        }
    }
}

impl<T: Keyed> HashedSlab<T> {
    #[inline]
    fn bucket(&self, hash: u64) -> usize {
        let bucket = (hash >> 16) as usize & self.mask;
        match bucket < self.buckets.len() {
            true => bucket,
            false => bucket & (self.mask >> 1),
        }
    }

    /// The record that `is` the one of the key with this hash.
    #[inline]
    pub(crate) fn find(&self, hash: impl Fn(&Secret) -> u64, is: impl Fn(&T) -> bool) -> Option<u32> {
        let mut number = *self.buckets.get(self.bucket(hash(&self.secret)))?;
        while let Some(record) = self.records.get(number) {
            if is(record) {
                return Some(number);
            }
            number = record.chain();
        }
        None
    }

    /// Adds a record and gives its number; it comes before one with the same key.
    pub(crate) fn insert(&mut self, record: T) -> u32 {
        // Records that are in no chain take no bucket, but the more there are the better.
        if self.records.len() >= self.buckets.len() {
            self.grow();
        }
        let number = self.records.insert(record);
        self.index(number);
        number
    }

    fn index(&mut self, number: u32) {
        let Some(hash) = self.records.get(number).map(|record| record.hash(&self.secret)) else {
            return;
        };
        let bucket = self.bucket(hash);
        if let (Some(head), Some(record)) = (self.buckets.get_mut(bucket), self.records.get_mut(number)) {
            record.set_chain(*head);
            *head = number;
        }
    }

    /// One bucket more.
    fn grow(&mut self) {
        let new = self.buckets.len();
        if new > self.mask {
            self.mask = self.mask << 1 | 1;
        }
        self.buckets.push(NONE);
        let Some(old) = self.buckets.get_mut(new & (self.mask >> 1)) else {
            return;
        };
        // Records that were unindexed stay so: only this chain's are put anew, the last first, so that their order
        // remains.
        let mut reversed = NONE;
        let mut number = std::mem::replace(old, NONE);
        while let Some(record) = self.records.get_mut(number) {
            let next = record.chain();
            record.set_chain(reversed);
            (reversed, number) = (number, next);
        }
        while let Some(next) = self.records.get(reversed).map(Keyed::chain) {
            self.index(reversed);
            reversed = next;
        }
    }

    /// Takes all records out of the index but leaves them under their numbers: no work, however many there are.
    pub(crate) fn unindex_all(&mut self) {
        self.buckets = vec![NONE; BUCKETS];
        self.mask = BUCKETS - 1;
    }

    /// Records that take no more memory.
    pub(crate) fn spare(&self) -> usize {
        self.records.spare()
    }

    /// Bytes of memory, beyond those of an empty one.
    pub(crate) fn bytes(&self) -> usize {
        self.records.bytes() + (self.buckets.capacity() - BUCKETS) * size_of::<u32>()
    }

    /// Takes the record out of the index but leaves it under its number.
    pub(crate) fn unindex(&mut self, number: u32) {
        let Some((hash, next)) = self
            .records
            .get(number)
            .map(|r| (r.hash(&self.secret), r.chain()))
        else {
            return;
        };
        let bucket = self.bucket(hash);
        let Some(head) = self.buckets.get_mut(bucket) else {
            return;
        };
        if *head == number {
            *head = next;
            return;
        }
        let mut before = *head;
        while let Some(record) = self.records.get_mut(before) {
            if record.chain() == number {
                record.set_chain(next);
                return;
            }
            before = record.chain();
        }
    }

    /// Takes the record out.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        self.unindex(number);
        self.records.remove(number)
    }

    /// The record `number`.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.records.get(number)
    }

    /// The record `number`, to be changed (not its key).
    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.records.get_mut(number)
    }

    /// Records in use.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Numbers are below this.
    pub(crate) fn end(&self) -> u32 {
        self.records.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Debug)]
    struct Record {
        key: u64,
        chain: u32,
    }

    impl Keyed for Record {
        fn hash(&self, secret: &Secret) -> u64 {
            // Few buckets, so that chains are long.
            secret.spread(self.key % 7)
        }
        fn chain(&self) -> u32 {
            self.chain
        }
        fn set_chain(&mut self, next: u32) {
            self.chain = next;
        }
    }

    proptest! {
        #[test]
        fn an_index_finds_what_is_in_it(steps in prop::collection::vec((0u64..200, 0u8..4), 1..600)) {
            let mut slab = HashedSlab::default();
            let mut model = HashMap::new();
            for (key, step) in steps {
                let is = |r: &Record| r.key == key;
                let found = slab.find(|secret| secret.spread(key % 7), is);
                prop_assert_eq!(found, model.get(&key).copied());
                match (step, found) {
                    (0, Some(number)) => {
                        prop_assert_eq!(slab.remove(number).map(|r| r.key), Some(key));
                        prop_assert!(slab.get(number).is_none());
                        model.remove(&key);
                    }
                    (1, Some(number)) => {
                        slab.unindex(number);
                        prop_assert!(slab.get(number).is_some());
                        slab.remove(number);
                        model.remove(&key);
                    }
                    (_, None) => {
                        model.insert(key, slab.insert(Record { key, chain: NONE }));
                    }
                    _ => {}
                }
                prop_assert_eq!(slab.len(), model.len());
            }
        }
    }

    #[test]
    fn numbers_are_used_again() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..3000).map(|i| slab.insert(i)).collect();
        assert_eq!(slab.end(), 3000);
        assert_eq!(slab.remove(numbers[17]), Some(17));
        assert_eq!(slab.remove(numbers[17]), None);
        assert_eq!(slab.insert(-1), numbers[17]);
        assert_eq!(slab.get(numbers[2999]), Some(&2999));
        assert_eq!(slab.get(NONE), None);
        assert_eq!(slab.len(), 3000);
    }

    /// A record by its number, as fids are.
    struct Fid(u32, u32);

    impl Keyed for Fid {
        fn hash(&self, secret: &Secret) -> u64 {
            secret.spread(self.0.into())
        }
        fn chain(&self) -> u32 {
            self.1
        }
        fn set_chain(&mut self, next: u32) {
            self.1 = next;
        }
    }

    /// Numbers that met in one bucket when everybody knew how they were spread.
    fn met_once() -> Vec<u32> {
        let spread = |key: u64| {
            let x = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x ^ (x >> 29)
        };
        let meeting = (0u32..).filter(|number| (spread((*number).into()) >> 16) & 0x7fff == 0);
        meeting.take(2000).collect()
    }

    #[test]
    fn nobody_can_choose_numbers_that_meet() {
        let evenly = |numbers: &mut dyn Iterator<Item = u32>| {
            let mut slab = HashedSlab::default();
            for number in numbers {
                slab.insert(Fid(number, NONE));
            }
            let depth = |mut at: u32| {
                let mut depth = 0;
                while let Some(next) = slab.get(at).map(Keyed::chain) {
                    (at, depth) = (next, depth + 1);
                }
                depth
            };
            slab.buckets.iter().map(|bucket| depth(*bucket)).max().unwrap()
        };
        assert!(evenly(&mut met_once().into_iter()) < 20);
        // Numbers in order and at any distance, too.
        for shift in 0..20 {
            assert!(evenly(&mut (0..4000).map(|i| i << shift)) < 20, "{shift}");
        }
    }

    /// Each record that is added moves those of one bucket at most.
    #[test]
    fn an_index_grows_bit_by_bit() {
        let mut slab = HashedSlab::default();
        for number in 0..100_000 {
            let before = slab.buckets.len();
            slab.insert(Fid(number, NONE));
            assert!(slab.buckets.len() - before <= 1);
        }
        assert_eq!(slab.buckets.len(), 100_000);
        for number in 0..100_000u32 {
            let found = slab.find(|secret| secret.spread(number.into()), |fid| fid.0 == number);
            assert_eq!(found, Some(number));
        }
    }
}
