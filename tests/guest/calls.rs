//! Runs inside the guest: single system calls that no shell makes. tests/guest.rs compiles it as it does probe.rs.
//!
//! - `calls flock FD` locks an inherited descriptor for as long as it is open anywhere; status 1 if another holds the lock
//! - `calls kexec KERNEL INITRAMFS` starts another kernel in place of this one, with this one's command line

use std::env;
use std::ffi::{CString, c_int, c_long, c_ulong};
use std::fs::{self, File};
use std::io::Error;
use std::os::fd::AsRawFd;

/// `kexec_file_load` on x86-64.
const SYS_KEXEC_FILE_LOAD: c_long = 320;
const RB_KEXEC: c_int = 0x4558_4543;

const LOCK_EX: c_int = 2;
const LOCK_NB: c_int = 4;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(how: c_int) -> c_int;
    fn flock(fd: c_int, operation: c_int) -> c_int;
}

fn lock(fd: &str) {
    let fd = fd.parse().expect("a descriptor");
    // SAFETY: no memory is involved.
    let locked = unsafe { flock(fd, LOCK_EX | LOCK_NB) };
    assert!(locked == 0, "flock: {}", Error::last_os_error());
}

fn kexec(kernel: &str, initramfs: &str) {
    let [kernel, initramfs] =
        [kernel, initramfs].map(|path| File::open(path).unwrap_or_else(|e| panic!("{path}: {e}")));
    let line = fs::read_to_string("/proc/cmdline").expect("the command line");
    let line = CString::new(line.trim_end()).expect("no NUL in it");
    let length = line.as_bytes_with_nul().len() as c_ulong;
    let none: c_ulong = 0;
    // SAFETY: the line is valid for its length, which counts the NUL; the descriptors are open.
    let loaded = unsafe {
        syscall(SYS_KEXEC_FILE_LOAD, kernel.as_raw_fd(), initramfs.as_raw_fd(), length, line.as_ptr(), none)
    };
    assert!(loaded == 0, "kexec_file_load: {}", Error::last_os_error());
    // SAFETY: no memory is involved.
    unsafe { reboot(RB_KEXEC) };
    panic!("reboot: {}", Error::last_os_error());
}

fn main() {
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["flock", fd] => lock(fd),
        ["kexec", kernel, initramfs] => kexec(kernel, initramfs),
        _ => panic!("see the top of calls.rs"),
    }
}
