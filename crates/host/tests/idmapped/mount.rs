//! An idmapped mount. Also of the tests of the program.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// A user namespace in which `count` ids from `inside` are those from `outside` on here.
fn user_namespace(inside: u32, outside: u32, count: u32) -> std::fs::File {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("sleep");
    command.arg("600");
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::unshare(libc::CLONE_NEWUSER) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().unwrap();
    let of = |name: &str| format!("/proc/{}/{name}", child.id());
    for map in ["uid_map", "gid_map"] {
        std::fs::write(of(map), format!("{inside} {outside} {count}")).unwrap();
    }
    let namespace = std::fs::File::open(of("ns/user")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    namespace
}

/// Shows the directory `from` at `at` too, on a mount on which `count` ids from `disk` show as those from `host` on. Says
/// so and gives false where the kernel or the file system has no such mounts.
pub fn bind_idmapped(from: &Path, at: &Path, disk: u32, host: u32, count: u32) -> bool {
    let (path, at) = (
        CString::new(from.as_os_str().as_bytes()).unwrap(),
        CString::new(at.as_os_str().as_bytes()).unwrap(),
    );
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: a NUL-terminated string that lives over the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    assert!(tree >= 0, "{}", io::Error::last_os_error());
    // SAFETY: nobody else has this descriptor.
    let tree = unsafe { OwnedFd::from_raw_fd(i32::try_from(tree).unwrap()) };
    let namespace = user_namespace(disk, host, count);
    let attr = MountAttr {
        set: 0x0010_0000, // MOUNT_ATTR_IDMAP
        userns: namespace.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    // SAFETY: the strings and `attr`, of the kernel's layout and the size said, live over the calls.
    let (set, moved) = unsafe {
        (
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attr,
                size_of::<MountAttr>(),
            ),
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                at.as_ptr(),
                4, // MOVE_MOUNT_F_EMPTY_PATH
            ),
        )
    };
    assert_eq!(moved, 0);
    if set != 0 {
        eprintln!(
            "NOT TESTED: no idmapped mounts here: {}",
            io::Error::last_os_error()
        );
        return false;
    }
    true
}
