//! The types that a listing has shown, for as long as the directory's ctime says that they are still so: in a mode
//! that keeps an object's type beside it, each entry costs a system call, looking at the ctime takes the one that a
//! listing needs anyway.
//!
//! An object gets its type when it is made and keeps it, so what type a name has changes only where a name is made
//! or moved, and both set the directory's ctime, whoever does it. That makes "same ctime, same types" true, with two
//! exceptions, and because of them nothing is remembered of a directory that changed in the last second:
//!
//! - A second change in the same tick of the clock may leave no trace (see `version`).
//! - A symlink or device appears as a regular file and gets its type microseconds later. Who makes it in this
//!   process says so ([`Types::making`]), but it may be another server of the same directory.
//!
//! Whoever rewrites the xattr of an object by hand is seen as soon as its directory changes, and after a minute in
//! any case.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::attr::Time;
use crate::identity::mix;
use crate::sys::attr::{Record, Statx};
use crate::sys::clock::{self, SECOND};

const STRIPES: usize = 64;
const SLOTS: usize = 16;

/// How many entries of another type than the host's a place has room for; what follows the last of them is asked for.
const FEW: usize = 64;

/// A directory that changed so little ago is not remembered; nanoseconds.
const YOUNG: i64 = SECOND;
/// Nothing is believed for longer, nanoseconds: one asking in so long a time costs nothing that could be noticed.
const LASTS: i64 = 60 * SECOND;

/// An inode number and a `DT_*`, which has four bits, in one word; `None` for a number that leaves no room.
fn pack(ino: u64, d_type: u8) -> Option<u64> {
    (ino >> 60 == 0 && d_type < 16).then(|| ino << 4 | u64::from(d_type))
}

/// A state of a directory, and where in it a listing began.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Key {
    dev: u64,
    ino: u64,
    ctime: Time,
    cookie: u64,
}

impl Key {
    fn new(stat: &Statx, cookie: u64) -> Key {
        Key {
            dev: stat.dev(),
            ino: stat.stx_ino,
            ctime: stat.ctime(),
            cookie,
        }
    }
}

#[derive(Clone, Default)]
struct Slot {
    key: Key,
    /// When the first of the entries was asked for.
    since: i64,
    /// So many entries from the key's cookie on are known.
    known: u32,
    /// Those of them that are not what the host says, in order.
    few: Vec<u64>,
}

/// A table of fixed size; a listing takes the place of another one with the same hash.
pub struct Types {
    /// The device number of a file system on which ctime tells of every change.
    stamped: Option<u64>,
    stripes: Box<[Mutex<Vec<Slot>>]>,
    started: AtomicU64,
    finished: AtomicU64,
}

/// Something is being made that is not yet of the type that it will have.
pub struct Making<'t>(&'t Types);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::SeqCst);
    }
}

impl Types {
    /// For a share on the file system of this device, if its ctime tells of every change.
    pub fn new(stamped: Option<u64>) -> Types {
        Types {
            stamped,
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
        }
    }

    /// To be held from before a name appears until its object has its type, when that is not the host's.
    pub fn making(&self) -> Making<'_> {
        self.started.fetch_add(1, Ordering::SeqCst);
        Making(self)
    }

    /// Begins a listing at `cookie`, before any entry is read.
    pub fn begin(&self, cookie: u64) -> Asked<'_> {
        self.begin_at(cookie, clock::now())
    }

    fn begin_at(&self, cookie: u64, now: i64) -> Asked<'_> {
        Asked {
            types: self,
            cookie,
            now,
            finished: self.finished.load(Ordering::SeqCst),
            key: None,
            begun: false,
            since: now,
            known: 0,
            sorted: 0,
            seen: 0,
            learned: 0,
            learning: false,
            few: [0; FEW],
            len: 0,
        }
    }

    fn place(&self, key: &Key) -> Option<(&Mutex<Vec<Slot>>, usize)> {
        let hash = mix(key.ino, key.cookie) as usize;
        let stripe = self.stripes.get(hash % STRIPES)?;
        Some((stripe, hash / STRIPES % SLOTS))
    }
}

/// One listing, from one request.
pub struct Asked<'t> {
    types: &'t Types,
    cookie: u64,
    /// A moment before the first entry was read, by the clock that stamps files.
    now: i64,
    /// So much of what was being made was finished then.
    finished: u64,
    /// The directory's state, the same as far as the listing has come.
    key: Option<Key>,
    begun: bool,
    since: i64,
    /// So many entries were known before this listing.
    known: u32,
    /// So many of `few` are from then.
    sorted: usize,
    seen: u32,
    /// So many entries can be remembered after it.
    learned: u32,
    learning: bool,
    few: [u64; FEW],
    len: usize,
}

impl Asked<'_> {
    /// Entries were read, and `stat` of the directory was made after that. `apart` says that its file system, if it is
    /// not the share's first, tells changes apart.
    pub fn read(&mut self, stat: &Statx, apart: bool) {
        let key = Key::new(stat, self.cookie);
        let key = (apart || self.types.stamped == Some(key.dev)).then_some(key);
        if self.begun {
            if key != self.key {
                // What was shown was right when it was read; of what comes nothing is known.
                (self.key, self.known, self.learning) = (None, 0, false);
            }
            return;
        }
        (self.begun, self.key) = (true, key);
        let Some(key) = key else { return };
        self.learning = clock::settled(key.ctime, self.now, YOUNG);
        let Some((stripe, slot)) = self.types.place(&key) else {
            return;
        };
        let slots = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get(slot).filter(|slot| slot.key == key) else {
            return;
        };
        if !(0..LASTS).contains(&self.now.wrapping_sub(slot.since)) {
            return;
        }
        if let Some(few) = self.few.get_mut(..slot.few.len()) {
            few.copy_from_slice(&slot.few);
            (self.since, self.known, self.learned) = (slot.since, slot.known, slot.known);
            (self.sorted, self.len) = (few.len(), few.len());
        }
    }

    /// The type of the next entry. `ask` finds it out: `Err` when it may be another the next time.
    pub fn of(&mut self, ino: u64, host: u8, ask: impl FnOnce() -> Result<u8, u8>) -> u8 {
        let place = self.seen;
        self.seen = place.saturating_add(1);
        if place < self.known {
            if host != libc::DT_REG || self.sorted == 0 {
                return host;
            }
            let few = self.few.get(..self.sorted).unwrap_or_default();
            // Four bits of zeros come before any type.
            let at = few.partition_point(|&one| one < ino << 4);
            return match few.get(at) {
                Some(&one) if one >> 4 == ino => (one & 15) as u8,
                _ => host,
            };
        }
        let answer = ask();
        if self.learning {
            self.learning = answer.is_ok_and(|d_type| d_type == host || self.note(ino, d_type));
            self.learned = if self.learning { self.seen } else { place };
        }
        answer.unwrap_or_else(|for_now| for_now)
    }

    fn note(&mut self, ino: u64, d_type: u8) -> bool {
        match (pack(ino, d_type), self.few.get_mut(self.len)) {
            (Some(one), Some(free)) => {
                *free = one;
                self.len += 1;
                true
            }
            _ => false,
        }
    }

    /// Remembers what was asked.
    pub fn keep(mut self) {
        let Some(key) = self.key.filter(|_| self.learned > self.known) else {
            return;
        };
        // All that was started by now was finished before the first was asked for.
        if self.types.started.load(Ordering::SeqCst) != self.finished {
            return;
        }
        let Some((stripe, slot)) = self.types.place(&key) else {
            return;
        };
        let few = self.few.get_mut(..self.len).unwrap_or_default();
        few.sort_unstable();
        let mut slots = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.is_empty() {
            slots.resize(SLOTS, Slot::default());
        }
        if let Some(slot) = slots.get_mut(slot) {
            (slot.key, slot.since, slot.known) = (key, self.since, self.learned);
            slot.few.clear();
            slot.few.reserve_exact(few.len());
            slot.few.extend_from_slice(few);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::{DT_DIR, DT_FIFO, DT_LNK, DT_REG};
    use std::os::fd::AsFd;

    /// Its ctime, seconds.
    const CHANGED: i64 = 1000;
    /// By now it has settled.
    const NOW: i64 = 1002 * SECOND;

    fn directory() -> Statx {
        let dir = std::fs::File::open("/").unwrap();
        let mut stat = crate::sys::attr::stat(dir.as_fd()).unwrap();
        stat.stx_ino = 7;
        (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec) = (CHANGED, 1);
        stat
    }

    fn types(stat: &Statx) -> Types {
        Types::new(Some(stat.dev()))
    }

    /// Inode number, the host's type, the answer.
    type Entry = (u64, u8, Result<u8, u8>);

    fn file(ino: u64) -> Entry {
        (ino, DT_REG, Ok(DT_REG))
    }

    fn link(ino: u64) -> Entry {
        (ino, DT_REG, Ok(DT_LNK))
    }

    /// Goes on with a listing; what was asked for. What is shown must be right.
    fn go_on(asked: &mut Asked<'_>, entries: &[Entry]) -> Vec<u64> {
        let mut inos = Vec::new();
        for &(ino, host, answer) in entries {
            let ask = || {
                inos.push(ino);
                answer
            };
            let shown = asked.of(ino, host, ask);
            assert_eq!(shown, answer.unwrap_or_else(|for_now| for_now), "{ino}");
        }
        inos
    }

    fn list_at(types: &Types, stat: &Statx, cookie: u64, now: i64, entries: &[Entry]) -> Vec<u64> {
        let mut asked = types.begin_at(cookie, now);
        asked.read(stat, false);
        let inos = go_on(&mut asked, entries);
        asked.keep();
        inos
    }

    fn list(types: &Types, stat: &Statx, entries: &[Entry]) -> Vec<u64> {
        list_at(types, stat, 0, NOW, entries)
    }

    #[test]
    fn an_unchanged_directory_is_asked_about_once() {
        let stat = directory();
        let types = types(&stat);
        // Two hard links, and not in the order of the numbers.
        let entries = [
            (7, DT_DIR, Ok(DT_DIR)),
            link(90),
            file(12),
            (11, DT_REG, Ok(DT_FIFO)),
            link(90),
            file(u64::MAX),
            (10, DT_LNK, Ok(DT_LNK)),
        ];
        assert_eq!(list(&types, &stat, &entries).len(), entries.len());
        for _ in 0..3 {
            assert_eq!(list(&types, &stat, &entries), [0; 0]);
        }
        // Elsewhere in it nothing is known, nor of another one.
        assert_eq!(list_at(&types, &stat, 5, NOW, &entries).len(), entries.len());
        let mut other = stat;
        other.stx_ino += 1;
        assert_eq!(list(&types, &other, &entries).len(), entries.len());
        other = stat;
        other.stx_dev_minor += 1;
        assert_eq!(list(&types, &other, &entries).len(), entries.len());
        assert_eq!(list(&types, &stat, &entries), [0; 0]);
    }

    #[test]
    fn listings_of_different_lengths_help_each_other() {
        let stat = directory();
        let types = types(&stat);
        let entries = [file(1), link(2), file(3), link(4), file(5), link(6)];
        assert_eq!(list(&types, &stat, &entries[..2]), [1, 2]);
        assert_eq!(list(&types, &stat, &entries[..5]), [3, 4, 5]);
        assert_eq!(list(&types, &stat, &entries[..1]), [0; 0]);
        assert_eq!(list(&types, &stat, &entries[..4]), [0; 0]);
        assert_eq!(list(&types, &stat, &entries), [6]);
        assert_eq!(list(&types, &stat, &entries), [0; 0]);
    }

    #[test]
    fn a_change_is_seen_between_two_listings_and_within_one() {
        let stat = directory();
        let types = types(&stat);
        assert_eq!(list(&types, &stat, &[file(1), file(2), file(3)]), [1, 2, 3]);
        let mut changed = stat;
        changed.stx_ctime.tv_nsec += 1;
        // The same numbers are other objects now.
        let after = [link(1), file(2), link(3)];
        let mut asked = types.begin_at(0, NOW);
        asked.read(&stat, false);
        assert_eq!(go_on(&mut asked, &[file(1)]), [0; 0]);
        asked.read(&changed, false);
        assert_eq!(go_on(&mut asked, &after[1..]), [2, 3]);
        asked.keep();
        let mut asked = types.begin_at(0, NOW);
        asked.read(&changed, false);
        assert_eq!(go_on(&mut asked, &after), [1, 2, 3]);
        // What follows may be of a state that is over.
        asked.read(&stat, false);
        asked.keep();
        assert_eq!(list(&types, &changed, &after), [1, 2, 3]);
        assert_eq!(list(&types, &changed, &after), [0; 0]);
    }

    #[test]
    fn a_directory_that_changed_just_now_is_not_remembered() {
        let entries = [file(1), link(2)];
        for (sec, nsec, settled) in [
            (CHANGED, 1, CHANGED * SECOND + 1 + YOUNG),
            (CHANGED, 999_999_999, CHANGED * SECOND + 999_999_999 + YOUNG),
            // Seconds are all there is.
            (CHANGED, 0, CHANGED * SECOND + 3 * SECOND),
        ] {
            let mut stat = directory();
            (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec) = (sec, nsec);
            let types = types(&stat);
            for now in [0, CHANGED * SECOND, settled - SECOND, settled] {
                assert_eq!(list_at(&types, &stat, 0, now, &entries), [1, 2], "{now}");
            }
            assert_eq!(list_at(&types, &stat, 0, settled + 1, &entries), [1, 2]);
            assert_eq!(list_at(&types, &stat, 0, settled + 1, &entries), [0; 0]);
        }
        let mut stat = directory();
        let types = types(&stat);
        for sec in [i64::MAX, i64::MAX / SECOND, 2 * CHANGED] {
            stat.stx_ctime.tv_sec = sec;
            for _ in 0..2 {
                assert_eq!(list(&types, &stat, &entries), [1, 2]);
            }
        }
    }

    #[test]
    fn what_is_being_made_is_not_remembered() {
        let stat = directory();
        let types = types(&stat);
        let not_yet = [file(1)];
        let making = types.making();
        for _ in 0..2 {
            assert_eq!(list(&types, &stat, &not_yet), [1]);
        }
        let mut asked = types.begin_at(0, NOW);
        asked.read(&stat, false);
        assert_eq!(go_on(&mut asked, &not_yet), [1]);
        drop(making);
        // It was not of its type when it was asked for.
        asked.keep();
        let mut asked = types.begin_at(0, NOW);
        asked.read(&stat, false);
        assert_eq!(go_on(&mut asked, &[link(1)]), [1]);
        drop(types.making());
        asked.keep();
        assert_eq!(list(&types, &stat, &[link(1)]), [1]);
        let _making = types.making();
        assert_eq!(list(&types, &stat, &[link(1)]), [0; 0]);
    }

    #[test]
    fn nothing_is_believed_for_long() {
        let stat = directory();
        let types = types(&stat);
        let entries = [file(1), file(2)];
        assert_eq!(list(&types, &stat, &entries[..1]), [1]);
        // More that is learned does not make it younger.
        assert_eq!(list_at(&types, &stat, 0, NOW + LASTS - 1, &entries), [2]);
        assert_eq!(list_at(&types, &stat, 0, NOW + LASTS - 1, &entries), [0; 0]);
        assert_eq!(
            list_at(&types, &stat, 0, NOW + LASTS, &[link(1), file(2)]),
            [1, 2]
        );
        assert_eq!(
            list_at(&types, &stat, 0, NOW + LASTS, &[link(1), file(2)]),
            [0; 0]
        );
        // The clock was set back.
        assert_eq!(list(&types, &stat, &entries), [1, 2]);
    }

    #[test]
    fn what_cannot_be_remembered_ends_what_is() {
        let stat = directory();
        let types = types(&stat);
        let many: Vec<Entry> = (0..200)
            .map(|ino| if ino % 2 == 0 { file(ino) } else { link(ino) })
            .collect();
        assert_eq!(list(&types, &stat, &many).len(), 200);
        let known = 2 * FEW as u64 + 1;
        for _ in 0..2 {
            assert_eq!(
                list(&types, &stat, &many),
                (known..200).collect::<Vec<_>>(),
                "the first {FEW} and the files before the next"
            );
        }
        for unlasting in [
            (9, DT_REG, Err(DT_REG)),
            (9, DT_REG, Err(libc::DT_UNKNOWN)),
            link(1 << 60),
            link(u64::MAX),
        ] {
            let types = Types::new(Some(stat.dev()));
            let entries = [file(1), link(2), unlasting, file(3)];
            assert_eq!(list(&types, &stat, &entries), [1, 2, unlasting.0, 3]);
            assert_eq!(list(&types, &stat, &entries), [unlasting.0, 3]);
        }
    }

    #[test]
    fn only_where_ctime_tells() {
        let stat = directory();
        let types = Types::new(None);
        for _ in 0..2 {
            assert_eq!(list(&types, &stat, &[file(1)]), [1]);
        }
        for asks in [vec![1], vec![]] {
            let mut asked = types.begin_at(0, NOW);
            asked.read(&stat, true);
            assert_eq!(go_on(&mut asked, &[file(1)]), asks);
            asked.keep();
        }
    }

    #[test]
    fn listings_with_one_place_do_not_get_mixed_up() {
        let mut stat = directory();
        let types = types(&stat);
        let entry = |ino: u64| [if ino.is_multiple_of(3) { link(5) } else { file(5) }];
        let places = 20 * STRIPES * SLOTS;
        for ino in 0..places as u64 {
            stat.stx_ino = ino;
            assert_eq!(list(&types, &stat, &entry(ino)), [5]);
            assert_eq!(list(&types, &stat, &entry(ino)), [0; 0]);
        }
        let mut known = 0;
        for ino in 0..places as u64 {
            stat.stx_ino = ino;
            let mut asked = types.begin_at(0, NOW);
            asked.read(&stat, false);
            known += usize::from(go_on(&mut asked, &entry(ino)).is_empty());
        }
        assert_eq!(known, STRIPES * SLOTS);
    }
}
