//! File handles: an object's name that survives its descriptor.

use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{errno, error, retry, retry_fd};

/// The longest handle the kernel gives, bytes (`MAX_HANDLE_SZ`).
pub const MAX: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; MAX],
}

/// What a handle is besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Id of the mount the object was found on.
    pub mount: i32,
    /// The file system's type of handle.
    pub kind: i32,
    /// Bytes.
    pub len: usize,
}

/// Not in libc yet (linux/fcntl.h, Linux 6.5).
const AT_HANDLE_FID: i32 = 0x200;

static NO_FID: AtomicBool = AtomicBool::new(false);

/// name_to_handle_at(2) of the object that `fd` names, `O_PATH` or not: no privilege, and no question to a server. A
/// handle that can be opened; EOPNOTSUPP when the file system has none.
pub fn encode(fd: BorrowedFd<'_>, buf: &mut [u8; MAX]) -> Result<Made> {
    encode_with(fd, buf, 0)
}

/// As [`encode`], but the handle need only tell the object from any other: since Linux 6.5 more file systems have such
/// (overlayfs, FUSE). Which of the two it is does not change while the kernel runs.
pub fn identify(fd: BorrowedFd<'_>, buf: &mut [u8; MAX]) -> Result<Made> {
    if !NO_FID.load(Ordering::Relaxed) {
        match encode_with(fd, buf, AT_HANDLE_FID) {
            Err(e) if errno(&e) == libc::EINVAL => NO_FID.store(true, Ordering::Relaxed),
            other => return other,
        }
    }
    encode_with(fd, buf, 0)
}

fn encode_with(fd: BorrowedFd<'_>, buf: &mut [u8; MAX], flags: i32) -> Result<Made> {
    let mut handle = Handle {
        bytes: MAX as u32,
        kind: 0,
        data: [0; MAX],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: `handle` has the kernel's layout with as much room as it says; all pointers live over the call.
    retry(|| unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH | flags,
        )
    })?;
    let len = (handle.bytes as usize).min(MAX);
    buf[..len].copy_from_slice(&handle.data[..len]);
    Ok(Made {
        mount,
        kind: handle.kind,
        len,
    })
}

/// How often a handle is tried again before lack of memory is believed.
const ATTEMPTS: u32 = 100;

/// open_by_handle_at(2); `mount` is any open (not `O_PATH`) descriptor on the file system. Needs
/// CAP_DAC_READ_SEARCH. ESTALE when the object is gone.
pub fn open(mount: BorrowedFd<'_>, kind: i32, data: &[u8], flags: i32) -> Result<OwnedFd> {
    let mut handle = Handle {
        bytes: u32::try_from(data.len()).map_err(|_| error(libc::EINVAL))?,
        kind,
        data: [0; MAX],
    };
    handle
        .data
        .get_mut(..data.len())
        .ok_or_else(|| error(libc::EINVAL))?
        .copy_from_slice(data);
    let mut attempt = 0;
    loop {
        // SAFETY: `handle` has the kernel's layout and lives over the call.
        let opened = retry_fd(|| unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw mut handle,
                flags | libc::O_CLOEXEC,
            )
        });
        // ext4 says ENOMEM as long as another object is being made with the inode number of one that is gone
        // (`iget_locked` of an inode that is I_CREATING).
        match opened {
            Err(e) if errno(&e) == libc::ENOMEM && attempt < ATTEMPTS => std::thread::yield_now(),
            other => return other,
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Whatever becomes of an inode number meanwhile.
    #[test]
    fn what_is_gone_is_stale() {
        let temp = tempfile::tempdir_in("/var/tmp").unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        let path = temp.path().join("gone");
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for name in ["a", "b", "c"] {
                let (path, end) = (temp.path().join(name), &end);
                scope.spawn(move || {
                    while !end.load(Ordering::Relaxed) {
                        std::fs::write(&path, "").unwrap();
                        std::fs::remove_file(&path).unwrap();
                    }
                });
            }
            let mut seen = std::collections::BTreeMap::new();
            for _ in 0..300 {
                std::fs::write(&path, "").unwrap();
                let file = std::fs::File::open(&path).unwrap();
                let mut buf = [0; MAX];
                let Ok(made) = encode(file.as_fd(), &mut buf) else {
                    println!("left out: no handles here");
                    break;
                };
                drop(file);
                std::fs::remove_file(&path).unwrap();
                for _ in 0..50 {
                    let opened = open(dir.as_fd(), made.kind, &buf[..made.len], libc::O_PATH);
                    let errno = super::super::errno(&opened.unwrap_err());
                    *seen.entry(errno).or_insert(0) += 1;
                }
            }
            end.store(true, Ordering::Relaxed);
            assert!(
                seen.keys()
                    .all(|errno| [libc::ESTALE, libc::EPERM].contains(errno)),
                "{seen:?}"
            );
        });
    }
}
