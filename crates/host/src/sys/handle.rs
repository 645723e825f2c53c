//! File handles: an object's name that survives its descriptor.

use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{error, retry, retry_fd};

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

/// name_to_handle_at(2) of the object that `fd` names, `O_PATH` or not. EOPNOTSUPP when the file system has no
/// handles.
pub fn encode(fd: BorrowedFd<'_>, buf: &mut [u8; MAX]) -> Result<Made> {
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
            libc::AT_EMPTY_PATH,
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
    // SAFETY: `handle` has the kernel's layout and lives over the call.
    retry_fd(|| unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            flags | libc::O_CLOEXEC,
        )
    })
}
