//! Which object is which: one 64-bit number per object over all file systems in the share.
//!
//! | object | `unique` |
//! |---|---|
//! | on the root's file system, inode number below 2^48 | the inode number |
//! | on another one, inode number below 2^48 | bits 48..=62: the file system's tag (1..=32767), below: the inode number |
//! | inode number of 2^48 or more | bit 63 and 63 bits of hash over tag and inode number |
//!
//! A tag comes from the file system's id (statfs `f_fsid`), which unlike its device number outlives a reboot, so
//! the numbers are the same after a restart of this process or of the host. Two file systems with one tag (cloned
//! images) get neighbouring tags in the order in which they are first seen.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::options::MultiDevs;
use crate::remote::is_remote;
use crate::sys;
use crate::version::tells_changes_apart;

const INO_BITS: u32 = 48;
const TAG_MASK: u64 = 0x7fff;
/// Kept with the tag: the file system tells changes apart.
const APART: u64 = 1 << 32;

/// More file systems than this below one share do not get tags of their own: EOVERFLOW.
const DEVICES: usize = 1024;

/// The file systems seen so far. Read without a lock: entries are only ever added.
pub struct Devices {
    root: u64,
    policy: MultiDevs,
    warned: AtomicBool,
    /// One of them is a file system of the network's.
    remote: AtomicBool,
    /// The root's tells changes apart.
    apart: AtomicBool,
    count: AtomicUsize,
    /// (device number, tag and [`APART`]), valid below `count`.
    known: Box<[(AtomicU64, AtomicU64)]>,
    adding: Mutex<()>,
}

/// A good mix of two numbers (the finalizer of MurmurHash3, twice), the same on every host and in every release.
pub fn mix(a: u64, b: u64) -> u64 {
    let step = |mut x: u64| {
        x ^= x >> 33;
        x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
        x ^= x >> 33;
        x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    };
    step(step(a).wrapping_add(b))
}

fn number(tag: u64, ino: u64) -> u64 {
    if ino >> INO_BITS == 0 {
        tag << INO_BITS | ino
    } else {
        1 << 63 | mix(tag, ino) >> 1
    }
}

impl Devices {
    /// A table in which `root` is the root's device number.
    pub fn new(root: u64, policy: MultiDevs) -> Devices {
        Devices {
            root,
            policy,
            warned: AtomicBool::new(false),
            remote: AtomicBool::new(false),
            apart: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            known: (0..DEVICES).map(|_| Default::default()).collect(),
            adding: Mutex::new(()),
        }
    }

    /// Whether only the root's file system has been seen.
    pub fn single(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0 && !self.warned.load(Ordering::Relaxed)
    }

    /// Whether any of them is a file system on which calls may hang. It is looked at when it is first seen.
    pub fn remote(&self) -> bool {
        self.remote.load(Ordering::Relaxed)
    }

    /// Takes note of the `f_type` of the root's file system.
    pub fn note_root(&self, f_type: libc::c_long) {
        self.note(f_type);
        self.apart.store(tells_changes_apart(f_type), Ordering::Relaxed);
    }

    /// Takes note of a file system's `f_type`.
    pub fn note(&self, f_type: libc::c_long) {
        if is_remote(f_type) {
            self.note_remote();
        }
    }

    /// Takes note of a file system on which calls may hang.
    pub fn note_remote(&self) {
        if !self.remote.swap(true, Ordering::Relaxed) {
            log::info!(
                "the share has a network, cluster or FUSE file system in it: with --may-hang auto every request \
                 goes to another thread, so that a hung one stops no other, and takes longer for it; \
                 --may-hang never is for those that never hang"
            );
        }
    }

    /// Whether the file system of device `dev`, which has been seen, tells changes apart.
    pub fn apart(&self, dev: u64) -> bool {
        match dev == self.root {
            true => self.apart.load(Ordering::Relaxed),
            false => self.find(dev).is_some_and(|tag| tag & APART != 0),
        }
    }

    /// The number of inode `ino` on device `dev`; `any` is a descriptor on that file system. ENODEV for another
    /// device than the root's under [`MultiDevs::Forbid`].
    #[inline]
    pub fn unique(&self, dev: u64, ino: u64, any: BorrowedFd<'_>) -> io::Result<u64> {
        if dev == self.root {
            return Ok(number(0, ino));
        }
        match self.policy {
            MultiDevs::Forbid => Err(sys::error(libc::ENODEV)),
            MultiDevs::Warn => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "the shared directory spans several file systems: the guest may take two files for \
                         one (multidevs=remap keeps them apart)"
                    );
                }
                // For its type's sake; without a tag all is as well as it can be.
                let _ = self.tag(dev, any);
                Ok(ino)
            }
            MultiDevs::Remap => Ok(number(self.tag(dev, any)? & TAG_MASK, ino)),
        }
    }

    fn find(&self, dev: u64) -> Option<u64> {
        let count = self.count.load(Ordering::Acquire);
        let known = &self.known[..count.min(DEVICES)];
        known
            .iter()
            .find(|entry| entry.0.load(Ordering::Relaxed) == dev)
            .map(|entry| entry.1.load(Ordering::Relaxed))
    }

    fn tag(&self, dev: u64, any: BorrowedFd<'_>) -> io::Result<u64> {
        if let Some(tag) = self.find(dev) {
            return Ok(tag);
        }
        let statfs = sys::attr::statfs(any)?;
        self.note(statfs.f_type);
        let mut tag = first_tag(sys::attr::fsid(&statfs), dev);
        let _adding = self
            .adding
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(tag) = self.find(dev) {
            return Ok(tag);
        }
        let count = self.count.load(Ordering::Relaxed);
        let (known, free) = self.known.split_at(count.min(DEVICES));
        let slot = free.first().ok_or_else(|| sys::error(libc::EOVERFLOW))?;
        let taken = |tag| {
            let mut tags = known
                .iter()
                .map(|entry| entry.1.load(Ordering::Relaxed) & TAG_MASK);
            tags.any(|other| other == tag)
        };
        while taken(tag) {
            tag = tag % TAG_MASK + 1;
        }
        if tells_changes_apart(statfs.f_type) {
            tag |= APART;
        }
        slot.0.store(dev, Ordering::Relaxed);
        slot.1.store(tag, Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Release);
        Ok(tag)
    }
}

/// 1..=32767. A file system without an id (0) goes by its device number.
fn first_tag(fsid: u64, dev: u64) -> u64 {
    let seed = if fsid == 0 { dev } else { fsid };
    mix(seed, 0) % TAG_MASK + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn devices_never_share_a_number() {
        let here = std::fs::File::open("/").unwrap();
        let table = Devices::new(1, MultiDevs::Remap);
        assert!(table.single());
        assert_eq!(table.unique(1, 77, here.as_fd()).unwrap(), 77);
        let mut seen = std::collections::HashSet::new();
        // All of them have the id of `/`, so the tags collide and must move on.
        for dev in 1..=500 {
            for ino in [1, 2, (1 << 48) - 1, 1 << 48, u64::MAX] {
                assert!(seen.insert(table.unique(dev, ino, here.as_fd()).unwrap()));
            }
        }
        assert!(!table.single());
        let again = table.unique(300, 2, here.as_fd()).unwrap();
        assert!(seen.contains(&again));
        for dev in 501..=1025 {
            table.unique(dev, 1, here.as_fd()).unwrap();
        }
        let full = table.unique(1026, 1, here.as_fd()).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::EOVERFLOW));
        // One that is known still works.
        assert_eq!(table.unique(300, 2, here.as_fd()).unwrap(), again);
    }

    #[test]
    fn forbidden_devices_are_refused_and_warned_ones_raw() {
        let here = std::fs::File::open("/").unwrap();
        let table = Devices::new(1, MultiDevs::Forbid);
        let refused = table.unique(2, 5, here.as_fd()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(table.unique(1, 5, here.as_fd()).unwrap(), 5);
        let table = Devices::new(1, MultiDevs::Warn);
        assert_eq!(table.unique(2, 5, here.as_fd()).unwrap(), 5);
    }
}
