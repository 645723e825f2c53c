//! The clock that the kernel stamps files with.

use std::ffi::CStr;

use crate::attr::Time;

/// Nanoseconds of a second.
pub const SECOND: i64 = 1_000_000_000;

/// Nanoseconds since the epoch; a time that is too far off for the type wraps.
pub fn nanoseconds(time: Time) -> i64 {
    time.sec.wrapping_mul(SECOND).wrapping_add(time.nsec.into())
}

/// The time that a file gets which changes now, on a file system that stamps by the tick (1 to 10 ms). No system call:
/// the kernel keeps it in memory that every process may read.
pub fn tick() -> Time {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` lives over the call. The clock exists since Linux 2.6.32; without it the time stays 0, and no
    // file is that old.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    Time {
        sec: now.tv_sec,
        nsec: u32::try_from(now.tv_nsec).unwrap_or(0),
    }
}

/// That of now.
#[inline]
pub fn now() -> i64 {
    nanoseconds(tick())
}

/// A file that last changed at `ctime` had not changed for more than `quiet` nanoseconds at `now`, so a change that
/// comes after `now` gives it another ctime. A tick is 10 ms at most, or, where no fraction of a second is stored, one
/// or two seconds. A change in the future was somebody's wrong clock, which may show that time once more.
pub fn settled(ctime: Time, now: i64, quiet: i64) -> bool {
    let quiet = if ctime.nsec == 0 {
        quiet.max(3 * SECOND)
    } else {
        quiet
    };
    ctime
        .sec
        .checked_mul(SECOND)
        .and_then(|time| time.checked_add(i64::from(ctime.nsec) + quiet))
        .is_some_and(|settled| settled < now)
}

/// The kernel's version, as in 6.13; 0.0 when it does not say.
pub fn kernel() -> (u32, u32) {
    // SAFETY: a utsname of zeros is a valid one (plain bytes).
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `name` lives over the call.
    unsafe { libc::uname(&raw mut name) };
    let bytes = name.release.map(|c| c as u8);
    let release = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    parse(release.to_str().unwrap_or_default())
}

fn parse(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_settles_when_its_tick_is_over() {
        let at = |sec, nsec| Time { sec, nsec };
        let ctime = at(1000, 500_000_000);
        let tenth = SECOND / 10;
        for young in [at(0, 0), at(999, 0), ctime, at(1000, 600_000_000)] {
            assert!(!settled(ctime, nanoseconds(young), tenth), "{young:?}");
        }
        assert!(settled(ctime, nanoseconds(at(1000, 600_000_001)), tenth));
        // Seconds are all there is.
        assert!(!settled(at(1000, 0), 1003 * SECOND, tenth));
        assert!(settled(at(1000, 0), 1003 * SECOND + 1, tenth));
        assert!(!settled(at(1000, 0), 1005 * SECOND, 5 * SECOND));
        for sec in [i64::MAX, i64::MAX / SECOND, 2000] {
            assert!(!settled(at(sec, 1), 1003 * SECOND, tenth), "{sec}");
        }
        assert!(settled(at(-5, 1), 1003 * SECOND, tenth));
    }

    #[test]
    fn the_kernel_has_a_version_and_a_clock() {
        assert!(kernel() >= (4, 0));
        assert_eq!(parse("6.13.0-rc1+"), (6, 13));
        assert_eq!(parse("7.0-amd64"), (7, 0));
        assert_eq!(parse(""), (0, 0));
        assert!(tick().sec > 1_500_000_000);
    }
}
