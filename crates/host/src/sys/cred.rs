//! Credentials and capabilities of the calling THREAD: the raw calls, because libc's setgroups and its kin change
//! every thread of the process.

use std::io::Result;

use super::{error, retry};

/// `CAP_CHOWN`
pub const CAP_CHOWN: u32 = 0;
/// `CAP_DAC_OVERRIDE`
pub const CAP_DAC_OVERRIDE: u32 = 1;
/// `CAP_DAC_READ_SEARCH`
pub const CAP_DAC_READ_SEARCH: u32 = 2;
/// `CAP_FOWNER`
pub const CAP_FOWNER: u32 = 3;
/// `CAP_FSETID`
pub const CAP_FSETID: u32 = 4;
/// `CAP_SETGID`
pub const CAP_SETGID: u32 = 6;
/// `CAP_SETUID`
pub const CAP_SETUID: u32 = 7;
/// `CAP_MKNOD`
pub const CAP_MKNOD: u32 = 27;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// A thread's capability sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps([Data; 2]);

fn header() -> Header {
    Header {
        version: 0x2008_0522, // _LINUX_CAPABILITY_VERSION_3: two records
        pid: 0,
    }
}

impl Caps {
    /// Those of the calling thread.
    pub fn current() -> Result<Caps> {
        let mut header = header();
        let mut data = [Data::default(); 2];
        // SAFETY: both records have the kernel's layout and live over the call.
        retry(|| unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
        Ok(Caps(data))
    }

    /// Whether `cap` is effective.
    pub fn has(&self, cap: u32) -> bool {
        self.0[(cap / 32) as usize & 1].effective & (1 << (cap % 32)) != 0
    }

    /// Whether `cap` is permitted: it can be made effective.
    pub fn may(&self, cap: u32) -> bool {
        self.0[(cap / 32) as usize & 1].permitted & (1 << (cap % 32)) != 0
    }

    /// The same with `cap` made effective or not.
    #[must_use]
    pub fn with(mut self, cap: u32, effective: bool) -> Caps {
        let word = &mut self.0[(cap / 32) as usize & 1].effective;
        if effective {
            *word |= 1 << (cap % 32);
        } else {
            *word &= !(1 << (cap % 32));
        }
        self
    }

    /// The same with none effective but those of `keep` that are so now.
    #[must_use]
    pub fn reduced_to(self, keep: &[u32]) -> Caps {
        let mut reduced = self;
        for word in &mut reduced.0 {
            word.effective = 0;
        }
        keep.iter()
            .fold(reduced, |caps, &cap| caps.with(cap, self.has(cap)))
    }

    /// Makes them those of the calling thread. EPERM when one is not permitted.
    pub fn apply(&self) -> Result<()> {
        let mut header = header();
        // SAFETY: both records have the kernel's layout and live over the call.
        retry(|| unsafe { libc::syscall(libc::SYS_capset, &raw mut header, self.0.as_ptr()) }).map(drop)
    }
}

/// Sets the file system user id of this thread and makes sure of it: setfsuid(2) itself cannot report failure.
/// Leaving 0 takes the thread's file system capabilities out of its effective set, coming back restores them.
pub fn set_fsuid(uid: u32) -> Result<()> {
    // SAFETY: no memory is passed. -1 is no id, so the second call only asks.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsuid, uid);
        libc::syscall(libc::SYS_setfsuid, u32::MAX)
    };
    if now == i64::from(uid) {
        Ok(())
    } else {
        Err(error(libc::EPERM))
    }
}

/// As [`set_fsuid`] for the group.
pub fn set_fsgid(gid: u32) -> Result<()> {
    // SAFETY: as in `set_fsuid`.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsgid, u32::MAX)
    };
    if now == i64::from(gid) {
        Ok(())
    } else {
        Err(error(libc::EPERM))
    }
}

/// This thread's file system user and group.
pub fn fs_ids() -> (u32, u32) {
    // SAFETY: no memory is passed, and -1 is no id: the calls only ask.
    let (uid, gid) = unsafe {
        (
            libc::syscall(libc::SYS_setfsuid, u32::MAX),
            libc::syscall(libc::SYS_setfsgid, u32::MAX),
        )
    };
    (uid as u32, gid as u32)
}

/// Sets the supplementary groups of this thread. Needs CAP_SETGID.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: `groups` is readable for its length.
    retry(|| unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// The supplementary groups of this thread.
pub fn groups() -> Result<Vec<u32>> {
    // SAFETY: with a size of 0 nothing is written.
    let count = retry(|| unsafe { libc::getgroups(0, std::ptr::null_mut()) })?;
    let mut groups = vec![0u32; usize::try_from(count).unwrap_or(0)];
    // SAFETY: `groups` has room for as many as it says.
    let count = retry(|| unsafe { libc::getgroups(groups.len() as i32, groups.as_mut_ptr()) })?;
    groups.truncate(usize::try_from(count).unwrap_or(0));
    Ok(groups)
}
