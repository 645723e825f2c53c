//! The calls that no crate has in a safe form: making the worker, and flags of a mount.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::unistd::Pid;

/// `struct clone_args` of clone3(2), its first version.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Makes a child process, in new namespaces where `flags` (`CLONE_NEW*`) says so. `None` in the child. Only while this
/// process has one thread: a lock that another one holds would stay locked in the child for ever.
///
/// clone3(2) and not unshare(2) with fork(2): a process that has made a PID namespace is not in it itself, and an
/// attempt that fails half-way must leave this process as it was, for the next one.
pub fn split(flags: i32) -> io::Result<Option<Pid>> {
    let pid = if flags == 0 {
        // SAFETY: there is one thread (see above), so the child finds no lock held and no memory half-written.
        i64::from(unsafe { libc::fork() })
    } else {
        let args = CloneArgs {
            flags: u64::from(flags.cast_unsigned()),
            exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
            ..CloneArgs::default()
        };
        // SAFETY: `args` has the kernel's layout and the size it says. Without CLONE_VM and without a stack the child goes
        // on with a copy of this one's memory, as after fork(2); there is one thread. What glibc's fork does besides is
        // for other threads, and for `pthread_atfork`, which nobody here uses.
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) }
    };
    match pid {
        0 => Ok(None),
        1.. => Ok(Some(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Sets `MOUNT_ATTR_*` flags of the mount that `tree` is the root of, and of all below it. ENOSYS before Linux 5.12.
pub fn set_mount_flags(tree: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    let attr = MountAttr {
        set: flags,
        ..MountAttr::default()
    };
    // SAFETY: the path is NUL-terminated, `attr` has the kernel's layout and the size it says, and both live over the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
