//! The version of an object's content, which becomes `qid.version`: two answers with one version mean one content.
//!
//! It is made of ctime, which moves with every change of content and which nobody can set back, and the size. (The
//! kernel's own change counter, `STATX_CHANGE_COOKIE`, is not given to user space: statx(2) drops the bit.) Since Linux
//! 6.13 some file systems give a change that follows a look another ctime than the one looked at, however soon it
//! comes. Everywhere else ctime is the time of the clock's last tick, or of the last whole second where no more is
//! stored, so a second change in the same tick leaves no trace. While the tick of an object's ctime goes on, therefore,
//! every answer has a version of its own, which says "look again": whoever changes the file, no change is missed.
//! Only of files: Linux ties no content to the version of anything else.
//!
//! A file server stamps by its own clock, so what two of its clients change in one tick may be missed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::identity::mix;
use crate::sys::attr::Record;
use crate::sys::clock::{self, SECOND};

/// `XFS_SUPER_MAGIC` of linux/magic.h.
const XFS_MAGIC: libc::c_long = 0x5846_5342;

/// What a ctime ahead of the clock's last tick may be: file systems of both kinds share the clock, and the finer one's
/// time is never gone back behind.
const AHEAD: i64 = SECOND / 10;

/// Whether every change on a file system of this type (`f_type` of statfs) sets ctime by this kernel's clock.
pub fn stamps_changes(f_type: libc::c_long) -> bool {
    let kinds = [
        libc::EXT4_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
        libc::TMPFS_MAGIC,
        XFS_MAGIC,
    ];
    kinds.contains(&f_type)
}

/// Whether the file system of this type tells every change from the one before that was looked at (`FS_MGTIME` in the
/// kernel's source).
pub fn tells_changes_apart(f_type: libc::c_long) -> bool {
    stamps_changes(f_type) && clock::kernel() >= (6, 13)
}

/// The version of the object of this record; never 0, which would tell a Linux client not to use its page cache.
/// `apart` is what [`tells_changes_apart`] says of its file system. No system call.
#[inline]
pub fn version(stat: &impl Record, apart: bool) -> u32 {
    version_at(stat, apart, clock::now)
}

#[inline]
fn version_at(stat: &impl Record, apart: bool, tick: impl FnOnce() -> i64) -> u32 {
    let ctime = stat.ctime();
    let (time, nsec) = (clock::nanoseconds(ctime), ctime.nsec);
    let mut mixed = mix(time.cast_unsigned(), stat.size());
    // How long one ctime may be given: it may be rounded down to what the file system stores.
    let rounded = match nsec {
        0 => 2 * SECOND,
        _ if nsec.is_multiple_of(1_000_000) => SECOND / 10,
        _ => SECOND / 1000,
    };
    let file = stat.mode() & libc::S_IFMT == libc::S_IFREG;
    if file && (!apart || nsec == 0) {
        // The clock is read after the object, so what is found over is over.
        let age = tick().wrapping_sub(time);
        if (-AHEAD..rounded).contains(&age) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            mixed = mix(mixed, now.unwrap_or(Duration::ZERO).as_nanos() as u64);
        }
    }
    ((mixed >> 32) as u32 ^ mixed as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::attr::Statx;
    use std::collections::HashSet;
    use std::os::fd::AsFd;

    fn file(nsec: u32) -> Statx {
        let file = tempfile::tempfile().unwrap();
        let mut stat = crate::sys::attr::stat(file.as_fd()).unwrap();
        (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec) = (1_000_000_000, nsec);
        stat
    }

    #[test]
    fn a_file_server_stamps_by_its_own_clock() {
        for (f_type, stamps) in [
            (libc::TMPFS_MAGIC, true),
            (XFS_MAGIC, true),
            (libc::NFS_SUPER_MAGIC, false),
            (libc::FUSE_SUPER_MAGIC, false),
            (libc::OVERLAYFS_SUPER_MAGIC, false),
        ] {
            assert_eq!(stamps_changes(f_type), stamps);
            assert!(stamps || !tells_changes_apart(f_type));
        }
    }

    #[test]
    fn a_version_is_never_zero_and_moves_with_time_and_size() {
        let mut stat = file(0);
        let mut seen = HashSet::new();
        for nsec in 0..100 {
            for size in 0..100 {
                stat.stx_ctime.tv_nsec = nsec;
                stat.stx_size = size;
                assert_ne!(version(&stat, true), 0);
                seen.insert(version(&stat, true));
            }
        }
        assert!(seen.len() > 9990, "{}", seen.len());
    }

    /// Whether the file keeps its version at a time so many nanoseconds after its ctime.
    fn keeps(stat: &Statx, apart: bool, after: i64) -> bool {
        let tick = || clock::nanoseconds(stat.ctime()) + after;
        let seen: HashSet<u32> = (0..100).map(|_| version_at(stat, apart, tick)).collect();
        seen.len() < 10
    }

    #[test]
    fn no_version_lasts_while_its_ctime_may_be_given_again() {
        for (nsec, apart, lasts_from) in [
            (123_456_789, false, 1_000_000),
            (120_000_000, false, 100_000_000),
            (0, false, 2 * SECOND),
            // Seconds are all there is, whatever the kernel could do.
            (0, true, 2 * SECOND),
        ] {
            let stat = file(nsec);
            for after in [-1_000_000, 0, lasts_from - 1] {
                assert!(!keeps(&stat, apart, after), "{nsec} {apart} {after}");
            }
            // A day ahead was somebody's wrong clock.
            for after in [lasts_from, 3600 * SECOND, -86_400 * SECOND] {
                assert!(keeps(&stat, apart, after), "{nsec} {apart} {after}");
            }
        }
        assert!(keeps(&file(123_456_789), true, 0));
        let mut directory = file(123_456_789);
        directory.stx_mode = libc::S_IFDIR as u16 | 0o755;
        assert!(keeps(&directory, false, 0));
    }
}
