//! What was read of an object's xattrs, for as long as its ctime says that it is still so: reading them takes four or
//! five system calls, looking at the ctime takes the one that is needed anyway.
//!
//! A change of an xattr sets ctime to the time of the change, on the file systems that `version` lists. That makes "same ctime,
//! same xattrs" true except within one tick of the clock, so nothing is remembered of an object whose ctime is
//! younger than several ticks. Changes by anybody are seen, also by QEMU or a user of the host.

use std::sync::{Mutex, PoisonError};

use crate::attr::Time;
use crate::sys::attr::Record;
use crate::sys::clock::{self, SECOND};
use crate::virtfs::Kept;

const STRIPES: usize = 64;
const SLOTS: usize = 128;

/// What changed so little ago is not remembered, nanoseconds: several ticks.
const YOUNG: i64 = SECOND / 10;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Key {
    ino: u64,
    ctime: Time,
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    kept: Kept,
}

/// A table of fixed size; an object takes the place of another one with the same hash.
pub struct Cache {
    dev: u64,
    stripes: Box<[Mutex<Vec<Slot>>]>,
}

/// A moment before an object was looked at, by the clock that stamps files.
#[derive(Clone, Copy)]
pub struct Before(i64);

impl Before {
    /// This one.
    pub fn now() -> Before {
        Before(clock::now())
    }
}

impl Cache {
    /// For the file system of device `dev`, whose ctime tells of every change.
    pub fn new(dev: u64) -> Cache {
        Cache {
            dev,
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
        }
    }

    fn place(&self, stat: &impl Record) -> Option<(Key, &Mutex<Vec<Slot>>, usize)> {
        let key = Key {
            ino: stat.ino(),
            ctime: stat.ctime(),
        };
        // Neighbouring inodes are looked at together, so the plain low bits spread best.
        let hash = key.ino as usize;
        let stripe = self.stripes.get(hash % STRIPES)?;
        (stat.dev() == self.dev && key.ino != 0).then_some((key, stripe, hash / STRIPES % SLOTS))
    }

    /// What is known of the object of `stat`.
    pub fn get(&self, stat: &impl Record) -> Option<Kept> {
        let (key, stripe, slot) = self.place(stat)?;
        let slots = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .get(slot)
            .filter(|slot| slot.key == key)
            .map(|slot| slot.kept)
    }

    /// Remembers what was read of the object after `stat` was, which was after `before`.
    pub fn put(&self, before: Before, stat: &impl Record, kept: Kept) {
        let Some((key, stripe, slot)) = self.place(stat) else {
            return;
        };
        if !clock::settled(key.ctime, before.0, YOUNG) {
            return;
        }
        let mut slots = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.is_empty() {
            let empty = Slot {
                key: Key::default(),
                kept: Kept::NOTHING,
            };
            slots.resize(SLOTS, empty);
        }
        if let Some(place) = slots.get_mut(slot) {
            *place = Slot { key, kept };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn kept(uid: u32) -> Kept {
        Kept {
            uid: Some(uid),
            ..Kept::NOTHING
        }
    }

    #[test]
    fn only_what_cannot_have_changed_unseen_is_remembered() {
        let mut stat = crate::sys::attr::stat(tempfile::tempfile().unwrap().as_fd()).unwrap();
        let cache = Cache::new(stat.dev());
        let settled = 1000 * SECOND + 500_000_000 + YOUNG;
        (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec) = (1000, 500_000_000);
        for young in [0, 999 * SECOND, settled - YOUNG, settled] {
            cache.put(Before(young), &stat, kept(1));
            assert_eq!(cache.get(&stat), None);
        }
        cache.put(Before(settled + 1), &stat, kept(1));
        assert_eq!(cache.get(&stat), Some(kept(1)));
        stat.stx_ctime.tv_nsec += 1;
        assert_eq!(cache.get(&stat), None);
    }

    #[test]
    fn objects_with_one_place_do_not_get_mixed_up() {
        let mut stat = crate::sys::attr::stat(tempfile::tempfile().unwrap().as_fd()).unwrap();
        let cache = Cache::new(stat.dev());
        stat.stx_ctime.tv_sec = 1000;
        for ino in 1..100_000u64 {
            stat.stx_ino = ino;
            cache.put(Before(5000 * SECOND), &stat, kept(ino as u32));
            assert_eq!(cache.get(&stat), Some(kept(ino as u32)));
        }
        let mut known = 0;
        for ino in 1..100_000u64 {
            stat.stx_ino = ino;
            match cache.get(&stat) {
                Some(found) => assert_eq!(found, kept(ino as u32)),
                None => continue,
            }
            known += 1;
        }
        assert_eq!(known, STRIPES * SLOTS);
        stat.stx_dev_minor += 1;
        assert_eq!(cache.get(&stat), None);
    }
}
