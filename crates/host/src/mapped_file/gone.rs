//! What is kept of objects that have lost the name under which it was kept: a file that the guest has open and has
//! unlinked still has an owner and a mode.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use super::metadata;
use crate::sys::attr::{Record, Statx};
use crate::virtfs::Kept;

/// So many objects are remembered; the oldest are forgotten first and then show the host's values.
const OBJECTS: usize = 16384;

/// For so many of them the metadata file itself is held open.
const FILES: usize = 64;

/// Which object: device and inode number, and as file systems use inode numbers again, the time of birth (seconds and
/// nanoseconds; zero where the file system does not know).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    dev: u64,
    ino: u64,
    birth: (i64, u32),
}

impl Key {
    /// Of the object of this record.
    pub fn of(stat: &Statx) -> Key {
        Key {
            dev: stat.dev(),
            ino: stat.stx_ino,
            birth: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        }
    }
}

struct Entry {
    kept: Kept,
    /// The metadata file, when the object has further names that share it.
    file: Option<OwnedFd>,
    serial: u64,
}

/// The memory. Nothing tells it when the last descriptor of an object closes, so it is bounded instead.
#[derive(Default)]
pub struct Gone {
    entries: HashMap<Key, Entry>,
    /// Every key in the order of coming; one whose serial is not its entry's has come again since.
    order: VecDeque<(Key, u64)>,
    files: VecDeque<(Key, u64)>,
    serial: u64,
}

impl Gone {
    /// Remembers `kept` for an object, and its metadata file when other names of the object share that.
    pub fn put(&mut self, key: Key, kept: Kept, file: Option<OwnedFd>) {
        self.serial += 1;
        let serial = self.serial;
        self.order.push_back((key, serial));
        if file.is_some() {
            self.files.push_back((key, serial));
        }
        self.entries.insert(key, Entry { kept, file, serial });
        while self.order.len() > OBJECTS {
            if let Some((key, serial)) = self.order.pop_front()
                && self.entries.get(&key).is_some_and(|e| e.serial == serial)
            {
                self.entries.remove(&key);
            }
        }
        while self.files.len() > FILES {
            if let Some((key, serial)) = self.files.pop_front()
                && let Some(entry) = self.entries.get_mut(&key).filter(|e| e.serial == serial)
                && let Some(file) = entry.file.take()
            {
                entry.kept = metadata::read(file.as_fd());
            }
        }
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets an object that is gone for good, because a new one has its inode number.
    pub fn forget(&mut self, key: Key) {
        self.entries.remove(&key);
    }

    /// What is kept of an object without a name.
    pub fn get(&self, key: Key) -> Kept {
        match self.entries.get(&key) {
            Some(Entry { file: Some(file), .. }) => metadata::read(file.as_fd()),
            Some(entry) => entry.kept,
            None => Kept::NOTHING,
        }
    }

    /// Changes what is kept of an object without a name.
    pub fn change(&mut self, key: Key, change: &dyn Fn(&Kept) -> Kept) -> std::io::Result<()> {
        match self.entries.get_mut(&key) {
            Some(Entry { file: Some(file), .. }) => metadata::rewrite(file.as_fd(), change),
            Some(entry) => {
                entry.kept = change(&entry.kept);
                Ok(())
            }
            None => {
                self.put(key, change(&Kept::NOTHING), None);
                Ok(())
            }
        }
    }

    /// The metadata file that other names of the object share.
    pub fn file(&self, key: Key) -> Option<&OwnedFd> {
        self.entries.get(&key)?.file.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64) -> Key {
        Key {
            dev: 1,
            ino,
            birth: (0, 0),
        }
    }

    fn owned_by(uid: u32) -> Kept {
        Kept {
            uid: Some(uid),
            ..Kept::NOTHING
        }
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest() {
        let mut gone = Gone::default();
        for ino in 0..3 * OBJECTS as u64 {
            gone.put(key(ino), owned_by(7), None);
            gone.put(key(0), owned_by(8), None);
        }
        assert!(gone.entries.len() <= OBJECTS && gone.order.len() <= OBJECTS);
        assert_eq!(gone.get(key(1)), Kept::NOTHING);
        assert_eq!(gone.get(key(0)), owned_by(8));
        assert_eq!(gone.get(key(3 * OBJECTS as u64 - 1)), owned_by(7));
    }

    #[test]
    fn an_inode_number_that_is_used_again_is_another_object() {
        let file = tempfile::tempfile().unwrap();
        let mut stat = crate::sys::attr::stat(file.as_fd()).unwrap();
        let old = Key::of(&stat);
        let mut gone = Gone::default();
        gone.put(old, owned_by(7), None);
        assert_eq!(gone.get(Key::of(&stat)), owned_by(7));
        stat.stx_btime.tv_nsec += 1;
        assert_eq!(gone.get(Key::of(&stat)), Kept::NOTHING);
        stat.stx_btime.tv_nsec -= 1;
        stat.stx_btime.tv_sec += 1;
        assert_eq!(gone.get(Key::of(&stat)), Kept::NOTHING);
    }

    #[test]
    fn shared_metadata_files_are_read_anew_and_bounded() {
        let mut gone = Gone::default();
        for ino in 0..200u64 {
            let file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut &file, b"virtfs.uid=5\n").unwrap();
            gone.put(key(ino), owned_by(1), Some(file.into()));
        }
        assert!(gone.file(key(0)).is_none() && gone.file(key(199)).is_some());
        assert_eq!(gone.files.len(), FILES);
        // What was forgotten of the file was read at that moment.
        assert_eq!(gone.get(key(0)), owned_by(5));
        assert_eq!(gone.get(key(199)), owned_by(5));
        gone.change(key(199), &|_| owned_by(6)).unwrap();
        assert_eq!(gone.get(key(199)), owned_by(6));
        gone.change(key(0), &|_| owned_by(9)).unwrap();
        assert_eq!(gone.get(key(0)), owned_by(9));
    }
}
