//! Guest memory that goes away. The front-end may shorten the file behind it at any time, and a file on hugetlbfs or
//! tmpfs may find no room for a page; the processor's access then ends in SIGBUS. There is no going on from there:
//! whatever thread it was holds locks and half a ring entry. So the process ends at once, but says why and by its exit
//! status; its socket is for another process to remove.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The exit status of a process whose guest memory went away.
pub const MEMORY_LOST: i32 = 3;

const WHY: &str = "error: Guest memory is gone (SIGBUS): the front-end has shortened the file behind it, or the host \
has no huge page or no room in tmpfs left for it.\n";

/// One mapping of guest memory; 0 bytes: none.
struct Slot {
    begin: AtomicUsize,
    len: AtomicUsize,
}

/// Beyond these (twice what a front-end may map), a mapping is not watched: its loss ends the process without a word.
const SLOTS: usize = 1024;
static MAPPINGS: [Slot; SLOTS] = [const {
    Slot {
        begin: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; SLOTS];

/// While this lives, the mapping is known as guest memory.
#[derive(Debug)]
pub struct Watched(Option<usize>);

impl Watched {
    /// Makes the `len` bytes at `begin` known.
    pub fn new(begin: usize, len: usize) -> Watched {
        let free = |slot: &Slot| {
            slot.begin
                .compare_exchange(0, begin, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        let index = MAPPINGS.iter().position(free);
        if let Some(index) = index {
            MAPPINGS[index].len.store(len, Ordering::Release);
        }
        Watched(index)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(slot) = self.0.and_then(|index| MAPPINGS.get(index)) {
            slot.len.store(0, Ordering::Release);
            slot.begin.store(0, Ordering::Release);
        }
    }
}

fn is_guest_memory(address: usize) -> bool {
    MAPPINGS.iter().any(|slot| {
        let len = slot.len.load(Ordering::Acquire);
        address.wrapping_sub(slot.begin.load(Ordering::Relaxed)) < len
    })
}

static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// From now on the loss of guest memory ends the process with [`MEMORY_LOST`] and one line on stderr. Every other SIGBUS
/// goes where it went before. To be called once.
pub fn end_when_memory_is_lost() -> io::Result<()> {
    // SAFETY: zeroes are a valid sigaction; the handler has the type that SA_SIGINFO asks for, and does only what a
    // signal handler may. SA_ONSTACK as the runtime's own handler has it, which is called for the end of a stack.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        let _ = BEFORE.set(before);
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // A positive code is the kernel's own, not a kill.
    if code > 0 && is_guest_memory(address) {
        end();
    }
    // SAFETY: the values are those that sigaction gave; a handler among them is called as the kernel would have.
    unsafe {
        match BEFORE.get() {
            Some(before) if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(before.sa_sigaction);
                handler(signal, info, context);
            }
            _ => {
                // On return it happens again, and ends the process.
                libc::signal(signal, libc::SIG_DFL);
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
    }
}

/// Says why and ends. In a signal handler: no allocation, no lock, nothing but what POSIX allows there (2.4.3).
fn end() -> ! {
    // SAFETY: each call gets pointers to live values of the types it asks for.
    unsafe {
        // A reader of the log that stands still shall not keep the process.
        let mut stderr = libc::pollfd {
            fd: libc::STDERR_FILENO,
            events: libc::POLLOUT,
            revents: 0,
        };
        if libc::poll(&raw mut stderr, 1, 100) == 1 {
            libc::write(libc::STDERR_FILENO, WHY.as_ptr().cast(), WHY.len());
        }
        libc::_exit(MEMORY_LOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_known_for_as_long_as_they_are_there() {
        let watched = Watched::new(0x7000, 0x1000);
        assert!(is_guest_memory(0x7000) && is_guest_memory(0x7fff));
        assert!(!is_guest_memory(0x6fff) && !is_guest_memory(0x8000) && !is_guest_memory(0));
        drop(watched);
        assert!(!is_guest_memory(0x7000));
    }
}
