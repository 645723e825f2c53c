//! Directories very deep in the tree, where the kernel's own calls take long: these are not for the queue thread.
//!
//! To see that no directory becomes its own ancestor, the kernel goes up from both ends of a move to where they meet
//! (`lock_rename`); to see whether a directory still is below the root of its mount, all the way up (`path_connected`). That is
//! 30 ms from 50,000 levels, and a guest can make millions. How deep a directory is, it tells as quickly as a path is made, for
//! it makes none that is longer than PATH_MAX.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use host::Object;
use wire::{NOFID, Tmessage};

use crate::failure::Failure;
use crate::session::Session;

/// Longer than the kernel takes where a path has been made.
const SLOW: Duration = Duration::from_micros(200);

impl Session {
    /// Whether to answer `message` takes the kernel long because of where it is. One system call for a move between
    /// directories, and for other requests with names only when depths have been seen.
    #[inline]
    pub(crate) fn is_in_depth(&self, message: &Tmessage<'_>) -> bool {
        match message {
            Tmessage::Renameat(m) if m.olddirfid != m.newdirfid => {
                self.is_deep(m.olddirfid) || self.is_deep(m.newdirfid)
            }
            Tmessage::Rename(m) if m.dfid != NOFID => self.is_deep(m.fid) || self.is_deep(m.dfid),
            _ if self.deep.load(Ordering::Relaxed) => named_in(message).is_some_and(|fid| self.is_deep(fid)),
            _ => false,
        }
    }

    fn is_deep(&self, fid: u32) -> bool {
        let deep = self.at_once(fid, |_, object| self.share.is_deep(object));
        let deep = matches!(deep, Some(Ok(true)));
        if deep {
            self.deep.store(true, Ordering::Relaxed);
        }
        deep
    }

    /// As [`host::Share::still_inside`]; takes note when that takes long.
    #[inline]
    pub(crate) fn still_inside(&self, dir: &Object<'_>) -> Result<(), Failure> {
        if !self.share.can_be_left() {
            return Ok(());
        }
        let begun = Instant::now();
        let inside = self.share.still_inside(dir);
        if begun.elapsed() >= SLOW && matches!(self.share.is_deep(dir), Ok(true)) {
            self.deep.store(true, Ordering::Relaxed);
        }
        Ok(inside?)
    }
}

/// The fid of the directory in which a message has a name, or of what is found there by its name.
fn named_in(message: &Tmessage<'_>) -> Option<u32> {
    match message {
        Tmessage::Walk(m) if !m.names.is_empty() => Some(m.fid),
        Tmessage::Lcreate(m) => Some(m.fid),
        Tmessage::Mkdir(m) => Some(m.dfid),
        Tmessage::Mknod(m) => Some(m.dfid),
        Tmessage::Symlink(m) => Some(m.dfid),
        Tmessage::Link(m) => Some(m.dfid),
        Tmessage::Unlinkat(m) => Some(m.dirfd),
        Tmessage::Renameat(m) => Some(m.olddirfid),
        Tmessage::Rename(m) => Some(m.fid),
        Tmessage::Remove(m) => Some(m.fid),
        _ => None,
    }
}
