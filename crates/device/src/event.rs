//! The event descriptors: emptying the kick without ever waiting for it, and what their types cannot do.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::event::EventNotifier;

/// The call descriptor that came as `file`.
pub fn notifier(file: File) -> EventNotifier {
    // SAFETY: the descriptor was the file's alone and is given away here.
    unsafe { EventNotifier::from_raw_fd(file.into_raw_fd()) }
}

/// Waits until one of the two can be read; whether it is the first. An error when the first is no longer usable.
pub fn wait_for_either(first: &impl AsRawFd, second: &impl AsRawFd) -> Result<bool, Errno> {
    // SAFETY: both descriptors stay open while they are borrowed: their owners are borrowed for longer.
    let (first, second) = unsafe {
        (
            BorrowedFd::borrow_raw(first.as_raw_fd()),
            BorrowedFd::borrow_raw(second.as_raw_fd()),
        )
    };
    loop {
        let mut fds = [
            PollFd::new(first, PollFlags::POLLIN),
            PollFd::new(second, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        }
        let [first, second] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if second.contains(PollFlags::POLLIN) {
            return Ok(false);
        }
        if first.contains(PollFlags::POLLIN) {
            return Ok(true);
        }
        if !first.is_empty() {
            return Err(Errno::EBADF);
        }
    }
}

/// Resets the eventfd `kick`, if it is set. Never blocks, and nothing is an error: an event that epoll told of may be
/// stale (the front-end has replaced the descriptor meanwhile), and vhost-user-backend ends the queue's thread for
/// good when reading fails, or waits with the queue locked when the descriptor is a blocking one.
pub fn drain(kick: RawFd) {
    let mut count = 0u64;
    let mut iov = libc::iovec {
        iov_base: std::ptr::from_mut(&mut count).cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: `iov` describes `count`, which outlives the call; offset -1 means read at the file's position.
    let done = unsafe { libc::preadv2(kick, &raw mut iov, 1, -1, libc::RWF_NOWAIT) };
    if done >= 0 {
        return;
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::WouldBlock {
        return;
    }
    // A kind of descriptor (or a kernel before 5.8) without RWF_NOWAIT: ask first.
    let mut poll = libc::pollfd {
        fd: kick,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    if ready == 1 && poll.revents & libc::POLLIN != 0 {
        // SAFETY: `count` has room for the 8 bytes.
        let done = unsafe { libc::read(kick, (&raw mut count).cast(), size_of::<u64>()) };
        if done < 0 {
            log::debug!(
                "The kick descriptor cannot be read: {}",
                std::io::Error::last_os_error()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::event::{EventFlag, new_event_consumer_and_notifier};

    #[test]
    fn a_blocking_descriptor_that_is_not_set_does_not_hold_us() {
        let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::empty()).unwrap();
        drain(consumer.as_raw_fd());
        notifier.notify().unwrap();
        notifier.notify().unwrap();
        drain(consumer.as_raw_fd());
        // Would hang if the eventfd were still checked with a blocking read.
        drain(consumer.as_raw_fd());
        notifier.notify().unwrap();
        consumer.consume().unwrap();
    }

    #[test]
    fn a_pipe_and_a_closed_descriptor_are_survived() {
        let (reader, writer) = std::io::pipe().unwrap();
        drain(reader.as_raw_fd());
        std::io::Write::write_all(&mut &writer, &[0; 8]).unwrap();
        drain(reader.as_raw_fd());
        drain(reader.as_raw_fd());
        drain(-1);
    }
}
