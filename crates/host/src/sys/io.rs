//! Data, directory listings, locks.

use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{error, retry, retry_size};
use crate::iovec::IoVec;

/// The most pieces one call takes (`IOV_MAX`).
const PIECES: usize = 1024;

fn pieces(list: &[IoVec]) -> (*const libc::iovec, i32) {
    // An IoVec is laid out as the kernel's record; 1024 fits. The rest of a longer list makes a short count.
    (list.as_ptr().cast(), list.len().min(PIECES) as i32)
}

fn offset(offset: u64) -> Result<i64> {
    i64::try_from(offset).map_err(|_| error(libc::EINVAL))
}

/// A file position as preadv2 and pwritev2 take it: the low word, and the high one, which the kernel shifts away
/// where the low one is the whole.
fn halves(at: i64) -> (libc::c_long, libc::c_long) {
    (at as libc::c_long, (at >> 32) as libc::c_long)
}

/// preadv2(2); `flags` are `RWF_*`. The count may be short.
pub fn read(fd: BorrowedFd<'_>, to: &[IoVec], at: u64, flags: i32) -> Result<usize> {
    let (list, count) = pieces(to);
    let (low, high) = halves(offset(at)?);
    // Not by glibc's preadv2, see `sys::close`.
    // SAFETY: whoever made the IoVecs vouched for their memory.
    retry_size(|| unsafe {
        libc::syscall(libc::SYS_preadv2, fd.as_raw_fd(), list, count, low, high, flags) as isize
    })
}

/// pwritev2(2); `flags` are `RWF_*`. The count may be short.
pub fn write(fd: BorrowedFd<'_>, from: &[IoVec], at: u64, flags: i32) -> Result<usize> {
    let (list, count) = pieces(from);
    let (low, high) = halves(offset(at)?);
    // SAFETY: whoever made the IoVecs vouched for their memory.
    retry_size(|| unsafe {
        libc::syscall(libc::SYS_pwritev2, fd.as_raw_fd(), list, count, low, high, flags) as isize
    })
}

/// pread(2) into private memory.
pub fn read_bytes(fd: BorrowedFd<'_>, buf: &mut [u8], at: u64) -> Result<usize> {
    let at = offset(at)?;
    // SAFETY: `buf` is writable for its length.
    retry_size(|| unsafe { libc::pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), at) })
}

/// pwrite(2) from private memory.
pub fn write_bytes(fd: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize> {
    let at = offset(at)?;
    // SAFETY: `bytes` is readable for its length.
    retry_size(|| unsafe { libc::pwrite(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), at) })
}

/// fsync(2) or fdatasync(2).
pub fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    retry(|| {
        if data_only {
            // SAFETY: no memory is passed.
            unsafe { libc::fdatasync(fd.as_raw_fd()) }
        } else {
            // SAFETY: no memory is passed.
            unsafe { libc::fsync(fd.as_raw_fd()) }
        }
    })
    .map(drop)
}

/// lseek(2) to an absolute position, of a directory to a cookie.
pub fn seek(fd: BorrowedFd<'_>, to: u64) -> Result<()> {
    let to = offset(to)?;
    // SAFETY: no memory is passed.
    retry(|| unsafe { libc::lseek(fd.as_raw_fd(), to, libc::SEEK_SET) }).map(drop)
}

/// getdents64(2): bytes of entries put into `buf`, 0 at the end. EINVAL when not even one entry fits.
/// [`entry`] takes them apart.
pub fn list(fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: `buf` is writable for its length.
    let count = retry(|| unsafe {
        libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buf.as_mut_ptr(), buf.len())
    })?;
    Ok(usize::try_from(count).unwrap_or(0).min(buf.len()))
}

/// One record of getdents64(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// The directory position after this entry.
    pub next: i64,
    /// `DT_*`.
    pub kind: u8,
    /// Name without NUL.
    pub name: &'a [u8],
}

/// The first record in `bytes` and the bytes after it; `None` when `bytes` is empty or makes no sense.
#[inline]
pub fn entry(bytes: &[u8]) -> Option<(RawEntry<'_>, &[u8])> {
    // struct linux_dirent64: u64 d_ino, s64 d_off, u16 d_reclen, u8 d_type, name with NUL.
    let (head, _) = bytes.split_first_chunk::<19>()?;
    let number = |at: usize| head.get(at..at + 8)?.try_into().ok();
    let ino = u64::from_ne_bytes(number(0)?);
    let next = i64::from_ne_bytes(number(8)?);
    let len = usize::from(u16::from_ne_bytes([head[16], head[17]]));
    let (record, rest) = bytes.split_at_checked(len)?;
    let name = record.get(19..)?;
    let end = name.iter().position(|&b| b == 0)?;
    let entry = RawEntry {
        ino,
        next,
        kind: head[18],
        name: &name[..end],
    };
    Some((entry, rest))
}

/// A byte-range lock of an open file description (`F_OFD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: i32,
    /// First byte.
    pub start: u64,
    /// Bytes; 0: to the end.
    pub length: u64,
}

fn flock(lock: Lock) -> Result<libc::flock> {
    // SAFETY: a flock of zeros is a valid one, and the OFD calls demand l_pid to be 0.
    let mut raw: libc::flock = unsafe { std::mem::zeroed() };
    raw.l_type = i16::try_from(lock.kind).map_err(|_| error(libc::EINVAL))?;
    raw.l_whence = libc::SEEK_SET as i16;
    raw.l_start = offset(lock.start)?;
    raw.l_len = offset(lock.length)?;
    Ok(raw)
}

/// `F_OFD_SETLK`: sets or clears a lock without waiting; EAGAIN when another description's lock is in the way.
pub fn set_lock(fd: BorrowedFd<'_>, lock: Lock) -> Result<()> {
    let raw = flock(lock)?;
    // SAFETY: `raw` lives over the call.
    let result = retry(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const raw) });
    match result {
        // POSIX allows either for a lock in the way.
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => Err(error(libc::EAGAIN)),
        other => other.map(drop),
    }
}

/// flock(2) without waiting: locks the whole file, exclusively with `true`, or gives that back. EWOULDBLOCK when somebody
/// has it; a lock that was to be converted is gone then.
pub fn lock_whole(fd: BorrowedFd<'_>, kind: Option<bool>) -> Result<()> {
    let operation = match kind {
        Some(true) => libc::LOCK_EX,
        Some(false) => libc::LOCK_SH,
        None => libc::LOCK_UN,
    };
    // SAFETY: no memory is passed.
    retry(|| unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) }).map(drop)
}

/// `F_OFD_GETLK`: the first lock that is in the way of `lock`, and the process that holds it (-1 for one of an
/// open file description).
pub fn get_lock(fd: BorrowedFd<'_>, lock: Lock) -> Result<Option<(Lock, i32)>> {
    let mut raw = flock(lock)?;
    // SAFETY: `raw` lives over the call, which writes it.
    retry(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut raw) })?;
    if i32::from(raw.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let found = Lock {
        kind: raw.l_type.into(),
        start: u64::try_from(raw.l_start).unwrap_or(0),
        length: u64::try_from(raw.l_len).unwrap_or(0),
    };
    Ok(Some((found, raw.l_pid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_lies_about_its_length_is_refused() {
        let mut record = [0u8; 24];
        record[16..18].copy_from_slice(&24u16.to_ne_bytes());
        record[19] = b'a';
        assert_eq!(entry(&record).unwrap().0.name, b"a");
        for len in [0u16, 1, 18, 19, 25, u16::MAX] {
            record[16..18].copy_from_slice(&len.to_ne_bytes());
            assert!(entry(&record).is_none(), "{len}");
        }
        assert!(entry(&record[..18]).is_none());
    }
}
