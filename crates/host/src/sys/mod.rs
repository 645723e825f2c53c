//! Every system call of this crate, as thin safe wrappers: `BorrowedFd` in, `OwnedFd` out (always close-on-exec),
//! `io::Result` with an OS error. EINTR is retried here and nowhere else. Nothing in here knows a policy.
//!
//! An `O_PATH` descriptor takes most calls with `AT_EMPTY_PATH`. Where the kernel refuses one (open, link,
//! xattrs), the object is reached through its magic link in `/proc/self/fd`, see [`ProcFd`]: that names the very
//! object, whatever became of its name, and never follows a symlink any further.

pub mod attr;
pub mod clock;
pub mod cred;
pub mod handle;
pub mod io;
pub mod path;
pub mod users;
pub mod xattr;

use std::ffi::CStr;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// An error of this number.
pub fn error(errno: i32) -> Error {
    Error::from_raw_os_error(errno)
}

/// The error's number; EIO for one that has none, which none of ours lacks.
pub fn errno(error: &Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Runs `call` until it is not interrupted; -1 becomes the error.
fn retry<T: Copy + Into<i64>>(mut call: impl FnMut() -> T) -> Result<i64> {
    loop {
        let result: i64 = call().into();
        if result >= 0 {
            return Ok(result);
        }
        let error = Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// As [`retry`] for a call that gives a byte count.
fn retry_size(call: impl FnMut() -> isize) -> Result<usize> {
    let mut call = call;
    let count = retry(|| call() as i64)?;
    // Not negative, and no count exceeds the address space.
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// As [`retry`] for a call that gives a new descriptor.
fn retry_fd<T: Copy + Into<i64>>(call: impl FnMut() -> T) -> Result<OwnedFd> {
    let fd = retry(call)?;
    let fd = i32::try_from(fd).map_err(|_| error(libc::EBADF))?;
    // SAFETY: the kernel has just given this descriptor to us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// close(2). EINTR is no error: Linux has closed the descriptor then.
///
/// glibc's close, openat and preadv2 are cancellation points: in a process with several threads each call turns
/// cancellation on and off, 10 ns that nobody needs. What happens for every request is called by number.
pub fn close(fd: OwnedFd) -> Result<()> {
    // SAFETY: the descriptor is given up, so it is closed once; no memory is passed.
    match unsafe { libc::syscall(libc::SYS_close, fd.into_raw_fd()) } {
        0 => Ok(()),
        _ => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINTR) => Ok(()),
            error => Err(error),
        },
    }
}

/// The directory `/proc/self/fd`, opened once at start, so that it works after a change of root, too.
#[derive(Debug)]
pub struct ProcFd(OwnedFd);

impl From<OwnedFd> for ProcFd {
    /// `fd` is `/proc/self/fd`, opened with `O_PATH`.
    fn from(fd: OwnedFd) -> ProcFd {
        ProcFd(fd)
    }
}

impl ProcFd {
    /// Opens it; ENOENT when /proc is not mounted.
    pub fn open() -> Result<ProcFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        Ok(ProcFd(path::open_at(None, c"/proc/self/fd", flags, 0)?))
    }

    /// The directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }

    /// A new description of the regular file or directory that `fd` names, `O_PATH` or not: opens the object itself, not
    /// a name. ELOOP for a symlink, ENXIO for a FIFO, socket or device: opening one of these waits, or acts.
    ///
    /// The type is asked of `fd` itself, whatever the caller knows of it. An inode never changes its type, so nothing can
    /// come between the question and the open.
    pub fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
        self.reopen_and_tell(fd, flags).map(|(file, _)| file)
    }

    /// As [`ProcFd::reopen`], and what fstat(2) said just before.
    pub fn reopen_and_tell(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<(OwnedFd, attr::Stat)> {
        let stat = attr::stat_without_birth(fd)?;
        match attr::Record::mode(&stat) & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFDIR => {}
            libc::S_IFLNK => return Err(error(libc::ELOOP)),
            _ => return Err(error(libc::ENXIO)),
        }
        // The link itself is no symlink to refuse, and O_CREAT must never reach a magic link.
        let flags = flags & !(libc::O_NOFOLLOW | libc::O_CREAT | libc::O_EXCL) | libc::O_NOCTTY;
        let file = path::open_at(Some(self.dir()), FdName::new(fd).as_c_str(), flags, 0)?;
        Ok((file, stat))
    }

    /// An `O_PATH` descriptor of the object that `fd` names, whatever it is: nothing is opened.
    pub fn path_of_open(&self, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
        path::open_at(Some(self.dir()), FdName::new(fd).as_c_str(), libc::O_PATH, 0)
    }

    /// Opens the regular file `name` in `dir`, never through a symlink; ENOENT for anything else that has the name.
    ///
    /// By way of an `O_PATH` descriptor: to open a FIFO or a device by its name is to have opened it, also with
    /// O_NONBLOCK, before anybody can look at what it is.
    pub fn open_file(&self, dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<OwnedFd> {
        self.open_only_file(path::open_beneath(dir, name, libc::O_PATH, 0)?, flags)
    }

    /// As [`ProcFd::open_file`] of `path`, of any number of components, below `dir`.
    pub fn open_file_below(&self, dir: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<OwnedFd> {
        self.open_only_file(path::open_below(dir, path, libc::O_PATH)?, flags)
    }

    fn open_only_file(&self, found: OwnedFd, flags: i32) -> Result<OwnedFd> {
        use std::os::fd::AsFd;
        match attr::file_type(found.as_fd())? {
            libc::S_IFREG => path::open_at(Some(self.dir()), FdName::new(found.as_fd()).as_c_str(), flags, 0),
            _ => Err(error(libc::ENOENT)),
        }
    }

    /// The path the kernel shows for `fd`; for messages only, it may be out of date at once.
    pub fn path_of(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
        let mut buf = vec![0; 4096];
        let len = path::read_link(self.dir(), FdName::new(fd).as_c_str(), &mut buf)?;
        buf.truncate(len);
        Ok(buf)
    }

    /// Makes it the working directory of this process, which no longer sees /proc: calls that take no directory find
    /// descriptors from there.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: no memory is passed, and the descriptor is open over the call.
        retry(|| unsafe { libc::fchdir(self.dir().as_raw_fd()) })?;
        WORKING_DIRECTORY.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the kernel has a path for `fd` that is longer than it ever shows.
    pub fn is_too_long(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        // The error comes before a byte is copied.
        let result = path::read_link(self.dir(), FdName::new(fd).as_c_str(), &mut [0; 1]);
        match result {
            Ok(_) => Ok(false),
            Err(error) if errno(&error) == libc::ENAMETOOLONG => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Whether the working directory is `/proc/self/fd`, for good.
static WORKING_DIRECTORY: AtomicBool = AtomicBool::new(false);

/// A descriptor's number as a file name, without allocation.
pub struct FdName([u8; 32], u8);

const PROC: &[u8] = b"/proc/self/fd/";

impl FdName {
    /// The name of `fd` in `/proc/self/fd`.
    pub fn new(fd: BorrowedFd<'_>) -> FdName {
        let mut buf = [0u8; 32];
        buf[..PROC.len()].copy_from_slice(PROC);
        // A descriptor is 0..=i32::MAX: at most 10 digits, so 14 + 10 bytes and the NUL always fit.
        let mut number = fd.as_raw_fd().unsigned_abs();
        let mut digits = [0u8; 10];
        let mut count = 0;
        loop {
            digits[count] = b'0' + (number % 10) as u8;
            count += 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        for (place, digit) in buf[PROC.len()..].iter_mut().zip(digits[..count].iter().rev()) {
            *place = *digit;
        }
        FdName(buf, PROC.len() as u8)
    }

    /// Relative to `/proc/self/fd`.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0[usize::from(self.1)..]).unwrap_or_default()
    }

    /// As a path: from the root of the file system, or from the working directory where that is `/proc/self/fd`.
    pub fn absolute(&self) -> &CStr {
        if WORKING_DIRECTORY.load(Ordering::Relaxed) {
            return self.as_c_str();
        }
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_number_is_a_name() {
        for number in [0, 7, 10, 1024, i32::MAX] {
            // SAFETY: only the number is used, no call is made on it.
            let name = FdName::new(unsafe { BorrowedFd::borrow_raw(number) });
            assert_eq!(name.as_c_str().to_str().unwrap(), number.to_string());
            assert_eq!(
                name.absolute().to_str().unwrap(),
                format!("/proc/self/fd/{number}")
            );
        }
    }

    /// What an older kernel gets does the same as the newest call. (Other tests that run meanwhile get the
    /// fall-backs too, which must not matter to them.)
    #[test]
    fn fallbacks_for_older_kernels_do_the_same() {
        use std::os::fd::AsFd;
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::write(temp.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link")).unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        let proc = ProcFd::open().unwrap();
        for old in [false, true] {
            path::pretend_old(old);
            attr::pretend_old(old);
            xattr::pretend_old(old);
            let open = |name: &CStr, flags| path::open_beneath(dir.as_fd(), name, flags, 0o600);
            let file = open(c"file", libc::O_PATH).unwrap();
            let link = open(c"link", libc::O_PATH).unwrap();
            assert_eq!(errno(&open(c"link", libc::O_RDONLY).unwrap_err()), libc::ELOOP);
            open(c"new", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap();
            path::unlink(dir.as_fd(), c"new", false).unwrap();
            let mode = if old { 0o640 } else { 0o604 };
            attr::chmod(&proc, file.as_fd(), mode).unwrap();
            let meta = std::fs::metadata(temp.path().join("file")).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, mode);
            let target = xattr::Target::Path(&proc, file.as_fd());
            xattr::set(target, c"user.a", b"12345", libc::XATTR_CREATE).unwrap();
            let again = xattr::set(target, c"user.a", b"1", libc::XATTR_CREATE);
            assert_eq!(errno(&again.unwrap_err()), libc::EEXIST);
            let mut buf = [0; 100];
            assert_eq!(xattr::get(target, c"user.a", &mut buf).unwrap(), 5);
            assert_eq!(&buf[..5], b"12345");
            assert_eq!(xattr::get(target, c"user.a", &mut []).unwrap(), 5);
            let len = xattr::list(target, &mut buf).unwrap();
            assert_eq!(&buf[..len], b"user.a\0");
            let target_of_link = xattr::Target::Path(&proc, link.as_fd());
            let none = xattr::get(target_of_link, c"user.a", &mut buf);
            assert_ne!(errno(&none.unwrap_err()), 0);
            xattr::remove(target, c"user.a").unwrap();
        }
        path::pretend_old(false);
        attr::pretend_old(false);
        xattr::pretend_old(false);
    }
}
