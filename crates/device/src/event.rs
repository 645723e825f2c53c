//! The event descriptors that the front-end hands over. They may be of any kind and in any state (a counter that is full,
//! a pipe that nobody reads), and the front-end still has them too: nothing here ever waits for one, and nothing changes
//! the flags of the open file that both sides share.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::stat::{SFlag, fstat};
use vhost::vhost_user::Listener;

/// What an event descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An eventfd. Whether reading and writing block is a flag of the open file, and was so when it came.
    Counter { blocks: bool },
    /// A pipe or a socket (User-Mode Linux takes its interrupts from one).
    Stream,
}

/// A kick or call descriptor.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    kind: Kind,
}

impl EventFile {
    /// The descriptor that came as `file`; an error for what is neither an eventfd nor a pipe nor a socket: polling or
    /// writing another file may wait for whoever serves its file system.
    pub fn new(file: File) -> io::Result<EventFile> {
        let kind = match SFlag::from_bits_truncate(fstat(&file)?.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFIFO | SFlag::S_IFSOCK => Kind::Stream,
            // Anonymous inodes have no type.
            none if none.is_empty() => {
                let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
                Kind::Counter {
                    blocks: !flags.contains(OFlag::O_NONBLOCK),
                }
            }
            _ => return Err(io::Error::other("it is no eventfd, pipe or socket")),
        };
        Ok(EventFile { file, kind })
    }

    /// Signals whoever waits at the other end, who may be gone. Does not wait, unless the front-end takes O_NONBLOCK
    /// away or fills the counter at the very moment: then [`EventFile::make_room`] helps.
    pub fn notify(&self) {
        let one = 1u64.to_ne_bytes();
        let done = match self.kind {
            Kind::Counter { blocks: false } => nix::unistd::write(&self.file, &one),
            Kind::Counter { blocks: true } if self.is_full() => return,
            Kind::Counter { blocks: true } => nix::unistd::write(&self.file, &one),
            Kind::Stream => self.write_now(&one),
        };
        match done {
            // What is full is as set as it can be.
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => log::debug!("The call descriptor cannot be written: {error}"),
        }
    }

    fn is_full(&self) -> bool {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }

    /// Writes without waiting. (An eventfd knows no RWF_NOWAIT for writing.)
    fn write_now(&self, bytes: &[u8]) -> nix::Result<usize> {
        let iov = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: `iov` describes `bytes`, which the kernel only reads; offset -1 means the file's position.
        let done = unsafe { libc::pwritev2(self.file.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
        Errno::result(done).map(isize::unsigned_abs)
    }

    fn read_now(&self, bytes: &mut [u8]) -> nix::Result<usize> {
        let iov = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: `iov` describes `bytes`, borrowed mutably; offset -1 means the file's position.
        let done = unsafe { libc::preadv2(self.file.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
        Errno::result(done).map(isize::unsigned_abs)
    }

    /// Lets a thread that is stuck in [`EventFile::notify`] go on, which then sets the counter again. Never waits.
    pub fn make_room(&self) {
        if matches!(self.kind, Kind::Counter { .. }) {
            let _ = self.read_now(&mut [0; 8]);
        }
    }

    /// Takes from a stream what has come. A counter is left as it is: its reader is told of changes
    /// ([`Waiter`]), and reading it would cost each wake-up a system call.
    fn take(&self) {
        if self.kind == Kind::Stream {
            let _ = self.read_now(&mut [0; 4096]);
        }
    }
}

const WAKE: u64 = 0;
const KICK: u64 = 1;

/// What the queue thread sleeps on: the device's own wake event, and the kick.
///
/// Edge-triggered: each write wakes the thread once, whatever is or is not read, so that no state of a descriptor can
/// make it spin.
#[derive(Debug)]
pub struct Waiter {
    epoll: Epoll,
    kick: Option<Arc<EventFile>>,
}

impl Waiter {
    /// Sleeps on `wake`, and on no kick yet.
    pub fn new(wake: &EventFd) -> nix::Result<Waiter> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(
            wake,
            EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE),
        )?;
        Ok(Waiter { epoll, kick: None })
    }

    /// Waits for `kick` from now on, and for no other. One that is set already wakes once.
    pub fn watch(&mut self, kick: Option<Arc<EventFile>>) {
        let same = match (&self.kick, &kick) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        if same {
            return;
        }
        // While it is still open: closing our descriptor of a file that the front-end has too ends nothing.
        if let Some(old) = self.kick.take() {
            let _ = self.epoll.delete(&old.file);
        }
        if let Some(new) = kick {
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, KICK);
            match self.epoll.add(&new.file, event) {
                Ok(()) => self.kick = Some(new),
                Err(error) => log::warn!("The front-end's kick descriptor cannot be waited for: {error}."),
            }
        }
    }

    /// Sleeps until something comes; true when that is the wake event.
    pub fn wait(&self) -> bool {
        let mut events = [EpollEvent::empty(); 2];
        loop {
            match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => {
                    let events = &events[..count.min(2)];
                    if let Some(kick) = self
                        .kick
                        .as_ref()
                        .filter(|_| events.iter().any(|e| e.data() == KICK))
                    {
                        kick.take();
                    }
                    return events.iter().any(|event| event.data() == WAKE);
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    // There is no such error; should there be one, nothing may spin on it.
                    log::error!("The queue cannot be waited for: {error}.");
                    std::thread::sleep(Duration::from_millis(100));
                    return true;
                }
            }
        }
    }
}

/// The listening socket, to be waited for.
pub fn listening(listener: &Listener) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as its owner, which is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) }
}

/// Which of several descriptors can be read (or are at their end), waiting for one at most `limit`.
pub fn readable<const N: usize>(fds: [BorrowedFd<'_>; N], limit: PollTimeout) -> nix::Result<[bool; N]> {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match poll(&mut fds, limit) {
            Ok(_) => return Ok(fds.map(|fd| fd.any().unwrap_or(true))),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether whoever is at the other end of `connection` has left.
pub fn hung_up(connection: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLHUP)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::EfdFlags;
    use std::io::{Read, Write};
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    const MOST: u64 = u64::MAX - 1;

    /// An eventfd for both sides.
    fn counter(flags: EfdFlags, value: u64) -> (EventFile, EventFd) {
        let event = EventFd::from_flags(flags).unwrap();
        if value > 0 {
            event.write(value).unwrap();
        }
        let theirs = event.as_fd().try_clone_to_owned().unwrap();
        let ours = event.as_fd().try_clone_to_owned().unwrap();
        // SAFETY: the descriptor is given away here.
        let theirs = unsafe { EventFd::from_owned_fd(OwnedFd::from_raw_fd(theirs.into_raw_fd())) };
        (EventFile::new(File::from(ours)).unwrap(), theirs)
    }

    #[test]
    fn a_call_is_a_count_of_one() {
        for flags in [EfdFlags::empty(), EfdFlags::EFD_NONBLOCK] {
            let (ours, theirs) = counter(flags, 0);
            ours.notify();
            assert_eq!(theirs.read(), Ok(1));
        }
    }

    #[test]
    fn a_full_counter_holds_nobody() {
        for flags in [EfdFlags::empty(), EfdFlags::EFD_NONBLOCK] {
            let (ours, theirs) = counter(flags, MOST);
            // Would hang with a plain write.
            ours.notify();
            assert_eq!(theirs.read(), Ok(MOST));
        }
    }

    #[test]
    fn a_thread_that_is_stuck_is_let_go_and_its_signal_is_not_lost() {
        let (ours, theirs) = counter(EfdFlags::EFD_NONBLOCK, MOST);
        // A hostile front-end: the flag was there when the descriptor came.
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let ours = Arc::new(ours);
        let (done, ended) = mpsc::channel();
        let stuck = Arc::clone(&ours);
        std::thread::spawn(move || {
            stuck.notify();
            done.send(()).unwrap();
        });
        assert!(
            ended.recv_timeout(Duration::from_millis(50)).is_err(),
            "it is stuck"
        );
        ours.make_room();
        ended.recv_timeout(Duration::from_secs(30)).expect("it goes on");
        assert_eq!(theirs.read(), Ok(1));
        ours.make_room();
    }

    #[test]
    fn pipes_and_sockets_are_events_too_and_full_ones_hold_nobody() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let pipe = EventFile::new(File::from(OwnedFd::from(writer))).unwrap();
        let socket = EventFile::new(File::from(OwnedFd::from(ours))).unwrap();
        for _ in 0..200_000 {
            pipe.notify();
            socket.notify();
        }
        let mut eight = [0; 8];
        reader.read_exact(&mut eight).unwrap();
        assert_eq!(u64::from_ne_bytes(eight), 1);
        theirs.read_exact(&mut eight).unwrap();
        assert_eq!(u64::from_ne_bytes(eight), 1);
        drop((reader, theirs));
        pipe.notify();
        socket.notify();
    }

    #[test]
    fn what_may_block_when_written_is_refused() {
        assert!(EventFile::new(tempfile::tempfile().unwrap()).is_err());
        assert!(EventFile::new(File::open("/dev/null").unwrap()).is_err());
        assert!(EventFile::new(File::open("/").unwrap()).is_err());
    }

    #[test]
    fn a_kick_that_stays_set_wakes_once_each_time_it_is_written() {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let mut waiter = Waiter::new(&wake).unwrap();
        let (kick, theirs) = counter(EfdFlags::EFD_SEMAPHORE, 1000);
        let (other, _theirs) = counter(EfdFlags::empty(), 0);
        let (kick, other) = (Arc::new(kick), Arc::new(other));
        let idle = |waiter: &Waiter| {
            let mut events = [EpollEvent::empty(); 2];
            waiter.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap() == 0
        };
        assert!(idle(&waiter));
        waiter.watch(Some(Arc::clone(&kick)));
        assert!(!waiter.wait());
        assert!(idle(&waiter), "it is still set");
        for _ in 0..3 {
            theirs.write(1).unwrap();
            assert!(!waiter.wait());
            assert!(idle(&waiter));
        }
        // Replaced while set; the front-end keeps its own descriptor of it.
        waiter.watch(Some(other));
        theirs.write(1).unwrap();
        assert!(idle(&waiter));
        wake.write(1).unwrap();
        assert!(waiter.wait());
        waiter.watch(None);
        waiter.watch(Some(kick));
        assert!(!waiter.wait());
    }

    #[test]
    fn a_stream_as_a_kick_is_emptied() {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let mut waiter = Waiter::new(&wake).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        waiter.watch(Some(Arc::new(
            EventFile::new(File::from(OwnedFd::from(ours))).unwrap(),
        )));
        for _ in 0..100_000 {
            theirs.write_all(&1u64.to_ne_bytes()).unwrap();
            assert!(!waiter.wait());
        }
        drop(theirs);
        assert!(!waiter.wait());
    }
}
