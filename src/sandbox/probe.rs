//! What a program that a guest has taken over would try, tried from inside the running process: for the tests, and only in
//! debug builds. The environment variable `VHOST_USER_9P_PROBE` is a role and an attempt, as in `queue:open-etc`, or
//! `queue:kill=1234` where the attempt needs a number.
//!
//! The attempt is made by the first thread of that role, as soon as it is what it will be while it serves. The log says
//! `probe: done`, or `probe: refused` and the errno; a call that the filter does not allow ends the process.

use std::ffi::CStr;
use std::io;
use std::sync::OnceLock;

use device::Role;

static ATTEMPT: OnceLock<(String, String, i64)> = OnceLock::new();

/// Takes the order from the environment. To be called while there is one thread.
pub fn prepare() {
    let Ok(order) = std::env::var("VHOST_USER_9P_PROBE") else {
        return;
    };
    let Some((role, attempt)) = order.split_once(':') else {
        return;
    };
    let (attempt, number) = attempt.split_once('=').unwrap_or((attempt, "0"));
    let _ = ATTEMPT.set((role.to_string(), attempt.to_string(), number.parse().unwrap_or(0)));
}

/// Whether the environment asks for a kernel older than Linux 6.13.
pub fn old_kernel() -> bool {
    std::env::var_os("VHOST_USER_9P_OLD_KERNEL").is_some()
}

/// Makes the attempt if it is for a thread of this role.
pub fn role(role: Role) {
    named(match role {
        Role::Control => "control",
        Role::Queue => "queue",
        Role::Pool => "pool",
    });
}

/// As [`role`] for threads that the device does not make.
pub fn named(name: &str) {
    let Some((role, attempt, number)) = ATTEMPT.get() else {
        return;
    };
    if role == name {
        match make(attempt, *number) {
            Ok(()) => log::warn!("probe: done"),
            Err(error) => log::warn!("probe: refused: {}", error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// The call's result; a descriptor that it gives is left open.
fn call(number: libc::c_long, args: [i64; 6]) -> io::Result<i64> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: only used with the arguments below, of which pointers are to C strings and records that live over the call.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn text(text: &CStr) -> i64 {
    text.as_ptr() as i64
}

fn open(dir: i64, path: &CStr, flags: i32) -> io::Result<i64> {
    call(libc::SYS_openat, [dir, text(path), flags.into(), 0, 0, 0])
}

fn make(attempt: &str, number: i64) -> io::Result<()> {
    let here = i64::from(libc::AT_FDCWD);
    let root_of_share = || open(here, c".", libc::O_PATH);
    let result = match attempt {
        "open-etc" => open(here, c"/etc/passwd", libc::O_RDONLY),
        "open-above" => {
            root_of_share().and_then(|dir| open(dir, c"../../../../../../../../etc/passwd", libc::O_RDONLY))
        }
        // The open descriptor of /proc/self/fd is no way to the rest of /proc.
        "proc" => (3..64)
            .map(|fd| open(fd, c"../../sys/kernel/core_pattern", libc::O_RDONLY))
            .find(Result::is_ok)
            .unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::ENOENT))),
        "handle" => {
            // A handle of the file system's root directory: with ext4 that is inode 2, of any generation.
            let handle: [u32; 4] = [8, 1, 2, 0];
            root_of_share()
                .and_then(|_| open(here, c".", libc::O_RDONLY))
                .and_then(|mount| {
                    let flags = i64::from(libc::O_PATH);
                    call(
                        libc::SYS_open_by_handle_at,
                        [mount, handle.as_ptr() as i64, flags, 0, 0, 0],
                    )
                })
        }
        "device" => {
            let mode = i64::from(libc::S_IFCHR | 0o666);
            let null = libc::makedev(1, 3).cast_signed();
            call(libc::SYS_mknodat, [here, text(c"probe-device"), mode, null, 0, 0])
        }
        "open-device" => open(here, c"/device", libc::O_RDONLY | libc::O_NONBLOCK),
        "kill" => call(libc::SYS_kill, [number, 0, 0, 0, 0, 0]),
        "tgkill" => call(libc::SYS_tgkill, [number, number, 0, 0, 0, 0]),
        // Signals from the kernel, on behalf of a descriptor.
        "own" => call(libc::SYS_fcntl, [2, libc::F_SETOWN.into(), number, 0, 0, 0]),
        // The lower half of the pointer to the new limit is 0.
        "limit" => {
            let (at, flags) = (
                1 << 32,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            );
            let prot = i64::from(libc::PROT_READ | libc::PROT_WRITE);
            let files = i64::from(libc::RLIMIT_MSGQUEUE);
            call(libc::SYS_mmap, [at, 4096, prot, flags.into(), -1, 0])
                .and_then(|at| call(libc::SYS_prlimit64, [number, files, 0, at, 0, 0]).map(|_| at))
                .and_then(|at| call(libc::SYS_prlimit64, [number, files, at, 0, 0, 0]))
        }
        // Whatever the program was started with.
        "stdin" => open(0, c"passwd", libc::O_RDONLY),
        "panic" => panic!("probe: a mistake"),
        "socket" => {
            let (family, kind) = (i64::from(libc::AF_UNIX), i64::from(libc::SOCK_STREAM));
            call(libc::SYS_socket, [family, kind, 0, 0, 0, 0])
        }
        "connect" => {
            // An abstract name: what only a network namespace keeps apart.
            let (family, kind) = (i64::from(libc::AF_UNIX), i64::from(libc::SOCK_STREAM));
            let mut address = [0u8; 16];
            address[0] = 1;
            address[3..].copy_from_slice(format!("{number:013}").as_bytes());
            call(libc::SYS_socket, [family, kind, 0, 0, 0, 0])
                .and_then(|fd| call(libc::SYS_connect, [fd, address.as_ptr() as i64, 16, 0, 0, 0]))
        }
        "exec" => {
            let args = [c"/bin/true".as_ptr(), std::ptr::null()];
            call(
                libc::SYS_execve,
                [text(c"/bin/true"), args.as_ptr() as i64, 0, 0, 0, 0],
            )
        }
        "fork" => call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0, 0]),
        "namespace" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0, 0]),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), number, 0, 0, 0, 0]),
        "mount" => {
            let flags = libc::MS_BIND.cast_signed();
            call(libc::SYS_mount, [text(c"/"), text(c"/"), 0, flags, 0, 0])
        }
        "code" => {
            let (read, exec) = (i64::from(libc::PROT_READ), i64::from(libc::PROT_EXEC));
            let flags = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            call(libc::SYS_mmap, [0, 4096, read | exec, flags, -1, 0])
        }
        "io-uring" => {
            let record = [0u64; 16];
            call(libc::SYS_io_uring_setup, [4, record.as_ptr() as i64, 0, 0, 0, 0])
        }
        "setuid" => call(libc::SYS_setuid, [number, 0, 0, 0, 0, 0]),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    result.map(drop)
}
