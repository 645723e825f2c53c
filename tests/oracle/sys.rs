//! The few system calls that the standard library lacks, on paths.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::step::Bytes;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("paths of tests have no NUL")
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// All xattrs of an object, symlinks not followed.
pub fn xattrs(path: &Path) -> io::Result<BTreeMap<Bytes, Bytes>> {
    let path = c_path(path);
    let mut names = vec![0u8; 65536];
    // SAFETY: a C string and a buffer of the given length.
    let len = check(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) });
    let len = match len {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
        other => other?,
    };
    let mut all = BTreeMap::new();
    for name in names[..len].split_inclusive(|&byte| byte == 0) {
        let name = CString::from_vec_with_nul(name.to_vec()).map_err(io::Error::other)?;
        let mut value = vec![0u8; 65536];
        // SAFETY: two C strings and a buffer of the given length.
        let result = unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        value.truncate(check(result)?);
        all.insert(Bytes(name.into_bytes()), Bytes(value));
    }
    Ok(all)
}

/// lremovexattr(2)
pub fn remove_xattr(path: &Path, name: &Bytes) -> io::Result<()> {
    let (path, name) = (
        c_path(path),
        CString::new(name.0.clone()).map_err(io::Error::other)?,
    );
    // SAFETY: two C strings.
    check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) } as isize).map(drop)
}

/// Sets both times to the epoch.
pub fn reset_times(path: &Path) -> io::Result<()> {
    let path = c_path(path);
    let times = [libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    }; 2];
    // SAFETY: a C string and two timespecs.
    let result = unsafe {
        libc::utimensat(
            libc::AT_FDCWD,
            path.as_ptr(),
            times.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    check(result as isize).map(drop)
}

/// The calling process's file creation mask becomes 0.
pub fn clear_umask() {
    // SAFETY: umask cannot fail and touches no memory.
    unsafe { libc::umask(0) };
}
