//! Extended attributes of a file that is open, or of anything that an `O_PATH` descriptor names.
//!
//! The kernel refuses xattr calls on an `O_PATH` descriptor (EBADF), with `AT_EMPTY_PATH` as without. So such an
//! object is named by its magic link: with getxattrat(2) and its kin (Linux 6.13) relative to the open
//! `/proc/self/fd`, before that by the path string, which needs /proc to be mounted in the process's root.

use std::ffi::CStr;
use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{FdName, ProcFd, errno, retry, retry_size};

// Not in libc yet; the same numbers on every architecture but alpha.
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// `struct xattr_args` of the kernel.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

static NO_XATTRAT: AtomicBool = AtomicBool::new(false);

/// For the test of what an older kernel gets.
#[cfg(test)]
pub(super) fn pretend_old(old: bool) {
    NO_XATTRAT.store(old, Ordering::Relaxed);
}

/// Which object.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A descriptor that is open for reading, writing or listing.
    Open(BorrowedFd<'a>),
    /// An `O_PATH` descriptor.
    Path(&'a ProcFd, BorrowedFd<'a>),
}

/// Tries `new`; gives `None` when the kernel has no such call.
fn try_new(new: impl FnOnce() -> Result<i64>) -> Option<Result<usize>> {
    if NO_XATTRAT.load(Ordering::Relaxed) {
        return None;
    }
    match new() {
        Err(e) if errno(&e) == libc::ENOSYS => {
            NO_XATTRAT.store(true, Ordering::Relaxed);
            None
        }
        other => Some(other.map(|count| usize::try_from(count).unwrap_or(0))),
    }
}

/// getxattrat(2) or setxattrat(2), whichever `number` says, of the object called `entry` in `dir`; `None` when the kernel
/// has no such call.
///
/// # Safety
/// `args` must describe memory that the call may write (getxattrat) or read (setxattrat).
unsafe fn value_at(
    number: libc::c_long,
    (dir, entry, flags): (BorrowedFd<'_>, &CStr, libc::c_int),
    name: &CStr,
    args: &XattrArgs,
) -> Option<Result<usize>> {
    try_new(|| {
        // SAFETY: both strings and `args` live over the call; the caller vouches for what `args` describes.
        retry(|| unsafe {
            libc::syscall(
                number,
                dir.as_raw_fd(),
                entry.as_ptr(),
                flags,
                name.as_ptr(),
                std::ptr::from_ref(args),
                size_of::<XattrArgs>(),
            )
        })
    })
}

/// getxattr(2): the value's length; an empty `buf` asks for that alone. ENODATA, ERANGE.
pub fn get(target: Target<'_>, name: &CStr, buf: &mut [u8]) -> Result<usize> {
    let (value, size) = (buf.as_mut_ptr(), buf.len());
    match target {
        Target::Open(fd) => {
            // SAFETY: `name` lives over the call and `buf` is writable for its length.
            retry_size(|| unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.cast(), size) })
        }
        Target::Path(proc, fd) => {
            let link = FdName::new(fd);
            let args = XattrArgs {
                value: value as u64,
                size: u32::try_from(size).unwrap_or(u32::MAX),
                flags: 0,
            };
            let place = (proc.dir(), link.as_c_str(), 0);
            // SAFETY: `args` describes `buf`.
            let new = unsafe { value_at(SYS_GETXATTRAT, place, name, &args) };
            new.unwrap_or_else(|| {
                // SAFETY: both strings live over the call and `buf` is writable for its length.
                retry_size(|| unsafe {
                    libc::getxattr(link.absolute().as_ptr(), name.as_ptr(), value.cast(), size)
                })
            })
        }
    }
}

/// As [`get`] for the object called `entry` in `dir` (`O_PATH` or not), a symlink itself.
pub fn get_at(dir: BorrowedFd<'_>, entry: &CStr, name: &CStr, buf: &mut [u8]) -> Result<usize> {
    let (value, size) = (buf.as_mut_ptr(), buf.len());
    let args = XattrArgs {
        value: value as u64,
        size: u32::try_from(size).unwrap_or(u32::MAX),
        flags: 0,
    };
    let place = (dir, entry, libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: `args` describes `buf`.
    let new = unsafe { value_at(SYS_GETXATTRAT, place, name, &args) };
    new.unwrap_or_else(|| {
        let mut path = FdName::new(dir).absolute().to_bytes().to_vec();
        path.push(b'/');
        path.extend_from_slice(entry.to_bytes_with_nul());
        let path = CStr::from_bytes_until_nul(&path).unwrap_or_default();
        // SAFETY: both strings live over the call and `buf` is writable for its length.
        retry_size(|| unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.cast(), size) })
    })
}

/// setxattr(2); `flags` are XATTR_CREATE / XATTR_REPLACE.
pub fn set(target: Target<'_>, name: &CStr, value: &[u8], flags: i32) -> Result<()> {
    let (bytes, size) = (value.as_ptr(), value.len());
    match target {
        Target::Open(fd) => {
            // SAFETY: `name` lives over the call and `value` is readable for its length.
            retry(|| unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), bytes.cast(), size, flags) })
                .map(drop)
        }
        Target::Path(proc, fd) => {
            let link = FdName::new(fd);
            let args = XattrArgs {
                value: bytes as u64,
                size: u32::try_from(size).unwrap_or(u32::MAX),
                flags: flags.cast_unsigned(),
            };
            let place = (proc.dir(), link.as_c_str(), 0);
            // SAFETY: `args` describes `value`.
            let new = unsafe { value_at(SYS_SETXATTRAT, place, name, &args) };
            new.unwrap_or_else(|| {
                // SAFETY: both strings live over the call and `value` is readable for its length.
                retry(|| unsafe {
                    libc::setxattr(link.absolute().as_ptr(), name.as_ptr(), bytes.cast(), size, flags)
                })
                .map(|_| 0)
            })
            .map(drop)
        }
    }
}

/// removexattr(2).
pub fn remove(target: Target<'_>, name: &CStr) -> Result<()> {
    match target {
        // SAFETY: `name` lives over the call.
        Target::Open(fd) => retry(|| unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }).map(drop),
        Target::Path(proc, fd) => {
            let link = FdName::new(fd);
            try_new(|| {
                // SAFETY: all strings live over the call.
                retry(|| unsafe {
                    libc::syscall(
                        SYS_REMOVEXATTRAT,
                        proc.dir().as_raw_fd(),
                        link.as_c_str().as_ptr(),
                        0,
                        name.as_ptr(),
                    )
                })
            })
            .unwrap_or_else(|| {
                // SAFETY: both strings live over the call.
                retry(|| unsafe { libc::removexattr(link.absolute().as_ptr(), name.as_ptr()) }).map(|_| 0)
            })
            .map(drop)
        }
    }
}

/// listxattr(2): NUL-terminated names; an empty `buf` asks for the length. ERANGE.
pub fn list(target: Target<'_>, buf: &mut [u8]) -> Result<usize> {
    let (names, size) = (buf.as_mut_ptr(), buf.len());
    match target {
        // SAFETY: `buf` is writable for its length.
        Target::Open(fd) => retry_size(|| unsafe { libc::flistxattr(fd.as_raw_fd(), names.cast(), size) }),
        Target::Path(proc, fd) => {
            let link = FdName::new(fd);
            try_new(|| {
                // SAFETY: the string lives over the call and `buf` is writable for its length.
                retry(|| unsafe {
                    libc::syscall(
                        SYS_LISTXATTRAT,
                        proc.dir().as_raw_fd(),
                        link.as_c_str().as_ptr(),
                        0,
                        names,
                        size,
                    )
                })
            })
            .unwrap_or_else(|| {
                // SAFETY: as above.
                retry_size(|| unsafe { libc::listxattr(link.absolute().as_ptr(), names.cast(), size) })
            })
        }
    }
}
