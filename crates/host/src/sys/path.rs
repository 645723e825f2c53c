//! Calls that take a directory and a name.

use std::ffi::CStr;
use std::io::Result;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{FdName, ProcFd, errno, error, retry, retry_fd, retry_size};
use crate::name::Name;

fn raw(dir: Option<BorrowedFd<'_>>) -> i32 {
    dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd())
}

/// openat(2), without any guard on symlinks: for names of our own choice.
pub fn open_at(dir: Option<BorrowedFd<'_>>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated and lives over the call.
    retry_fd(|| unsafe { libc::openat(raw(dir), name.as_ptr(), flags | libc::O_CLOEXEC, mode) })
}

static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// For the test of what an older kernel gets.
#[cfg(test)]
pub(super) fn pretend_old(old: bool) {
    NO_OPENAT2.store(old, Ordering::Relaxed);
}

/// Opens the single component `name` in `dir`, never through a symlink or a magic link, never above `dir`.
///
/// openat(2) with `O_NOFOLLOW` is all that takes for one component that is neither `..` nor contains a slash, which
/// the caller guarantees by passing a checked name: there is nothing to resolve on the way. openat2(2) with its
/// RESOLVE flags says the same thing once more and costs 55 ns of the 700 that a lookup takes.
pub fn open_beneath(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // Not by glibc's openat, see `close`.
    // SAFETY: `name` lives over the call.
    retry_fd(|| unsafe { libc::syscall(libc::SYS_openat, dir.as_raw_fd(), name.as_ptr(), flags, mode) })
}

/// Opens `path`, of any number of components, below `dir`: through no symlink and no magic link, never above it.
/// Where openat2(2) is missing, the components are opened one by one, with `O_NOFOLLOW` each.
pub fn open_below(dir: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<OwnedFd> {
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        // SAFETY: an open_how of zeros is a valid one (plain numbers).
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = u64::from((flags | libc::O_CLOEXEC | libc::O_NOFOLLOW).cast_unsigned());
        how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;
        // SAFETY: `path` and `how` live over the call, the size is that of `how`.
        let result = retry_fd(|| unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        });
        match result {
            // As in `open_beneath`.
            Err(e) if matches!(errno(&e), libc::ENOSYS | libc::EPERM) => {}
            other => return other,
        }
    }
    let mut at = dir.try_clone_to_owned()?;
    let mut components = path.to_bytes().split(|&b| b == b'/').peekable();
    while let Some(component) = components.next() {
        let name = Name::new(component).map_err(|_| error(libc::ENOENT))?;
        let flags = match components.peek() {
            Some(_) => libc::O_PATH | libc::O_DIRECTORY,
            None => flags,
        };
        at = open_beneath(at.as_fd(), name.as_c_str(), flags, 0)?;
    }
    Ok(at)
}

/// mkdirat(2).
pub fn mkdir(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` is NUL-terminated and lives over the call.
    retry(|| unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// mknodat(2); `mode` has type bits, `rdev` is a glibc `dev_t`.
pub fn mknod(dir: BorrowedFd<'_>, name: &CStr, mode: u32, rdev: u64) -> Result<()> {
    // SAFETY: `name` is NUL-terminated and lives over the call.
    retry(|| unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
}

/// symlinkat(2).
pub fn symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: both strings are NUL-terminated and live over the call.
    retry(|| unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// readlinkat(2); an empty `name` reads the symlink that `dir` itself is. The target is cut at `buf`'s length.
pub fn read_link(dir: BorrowedFd<'_>, name: &CStr, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: `name` lives over the call and `buf` is writable for its length.
    retry_size(|| unsafe {
        libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    })
}

/// Gives the object that `fd` names (`O_PATH` or not, a symlink itself) a further name. ENOENT when it has none
/// left. Goes through `/proc`, because `AT_EMPTY_PATH` would need CAP_DAC_READ_SEARCH before Linux 6.10.
pub fn link(proc: &ProcFd, fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let from = FdName::new(fd);
    // SAFETY: both names are NUL-terminated and live over the call.
    retry(|| unsafe {
        libc::linkat(
            proc.dir().as_raw_fd(),
            from.as_c_str().as_ptr(),
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    })
    .map(drop)
}

/// linkat(2) by name, without following a symlink.
pub fn link_name(from: BorrowedFd<'_>, old: &CStr, to: BorrowedFd<'_>, new: &CStr) -> Result<()> {
    // SAFETY: both names are NUL-terminated and live over the call.
    retry(|| unsafe { libc::linkat(from.as_raw_fd(), old.as_ptr(), to.as_raw_fd(), new.as_ptr(), 0) })
        .map(drop)
}

/// renameat2(2); `flags` are `RENAME_*`.
pub fn rename(from: BorrowedFd<'_>, old: &CStr, to: BorrowedFd<'_>, new: &CStr, flags: u32) -> Result<()> {
    // SAFETY: both names are NUL-terminated and live over the call.
    retry(|| unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from.as_raw_fd(),
            old.as_ptr(),
            to.as_raw_fd(),
            new.as_ptr(),
            flags,
        )
    })
    .map(drop)
}

/// unlinkat(2); `directory` is `AT_REMOVEDIR`.
pub fn unlink(dir: BorrowedFd<'_>, name: &CStr, directory: bool) -> Result<()> {
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: `name` is NUL-terminated and lives over the call.
    retry(|| unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}
