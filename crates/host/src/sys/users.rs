//! The host's user database, through the C library (NSS). It keeps the record it hands out in a place of its own, so one
//! thread asks at a time, and what it says is copied at once.

use std::ffi::CStr;
use std::io::{Error, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `visit` with name, number and primary group of every user that the database lists, until it gives false.
pub fn each_user(visit: &mut dyn FnMut(&CStr, u32, u32) -> bool) {
    let _alone = alone();
    // SAFETY: no memory is passed, and nobody else in this program uses this place in the database.
    unsafe { libc::setpwent() };
    // SAFETY: as above; the result is null or a record that stays as it is until the next call.
    while let Some(record) = unsafe { libc::getpwent().as_ref() } {
        if record.pw_name.is_null() {
            continue;
        }
        // SAFETY: NUL-terminated, and as lasting as the record.
        let name = unsafe { CStr::from_ptr(record.pw_name) };
        if !visit(name, record.pw_uid, record.pw_gid) {
            break;
        }
    }
    // SAFETY: no memory is passed.
    unsafe { libc::endpwent() };
}

/// Calls `visit` with the number of every group that the database lists and the name of each of its members, until it
/// gives false.
pub fn each_member(visit: &mut dyn FnMut(u32, &CStr) -> bool) {
    let _alone = alone();
    // SAFETY: no memory is passed, and nobody else in this program uses this place in the database.
    unsafe { libc::setgrent() };
    // SAFETY: as above; the result is null or a record that stays as it is until the next call.
    'groups: while let Some(record) = unsafe { libc::getgrent().as_ref() } {
        let mut member = record.gr_mem;
        // SAFETY: an array of pointers that ends with a null one, each to a NUL-terminated name; all as lasting as the
        // record.
        while let Some(name) = unsafe { member.as_ref().filter(|name| !name.is_null()) } {
            // SAFETY: as above.
            if !visit(record.gr_gid, unsafe { CStr::from_ptr(*name) }) {
                break 'groups;
            }
            // SAFETY: not beyond the null pointer, which this one was not.
            member = unsafe { member.add(1) };
        }
    }
    // SAFETY: no memory is passed.
    unsafe { libc::endgrent() };
}

/// A user's primary group and all groups it is a member of, from the host's user database; `None` for a user the
/// host does not know.
pub fn groups_of(uid: u32) -> Result<Option<(u32, Vec<u32>)>> {
    let _alone = alone();
    // SAFETY: a passwd of zeros is a valid record to be filled.
    let mut record: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    let mut strings = vec![0 as libc::c_char; 16 * 1024];
    // SAFETY: all pointers live over the call and `strings` has the room it says.
    let status = unsafe {
        libc::getpwuid_r(
            uid,
            &raw mut record,
            strings.as_mut_ptr(),
            strings.len(),
            &raw mut found,
        )
    };
    if found.is_null() {
        return match status {
            // The manual lists these as "not found" of various databases.
            0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(None),
            number => Err(Error::from_raw_os_error(number)),
        };
    }
    let mut groups = vec![0 as libc::gid_t; 64];
    loop {
        let mut count = groups.len() as libc::c_int;
        // SAFETY: the name is NUL-terminated in `strings`; `groups` has room for `count`.
        let result =
            unsafe { libc::getgrouplist(record.pw_name, record.pw_gid, groups.as_mut_ptr(), &raw mut count) };
        let count = usize::try_from(count).unwrap_or(0);
        if result >= 0 {
            groups.truncate(count);
            return Ok(Some((record.pw_gid, groups)));
        }
        // NGROUPS_MAX; more cannot be set either.
        if groups.len() >= 65536 {
            return Err(error(libc::EINVAL));
        }
        let more = count.max(groups.len() * 2).min(65536);
        groups.resize(more, 0);
    }
}
