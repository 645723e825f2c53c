//! The process that was started: it makes the worker, and waits for it.
//!
//! It hands the worker the listening socket when that has opened the share: the socket appears when it can be served, and
//! whatever is wrong with the directory is said before. From then on it reads nothing that the worker, the guest or a
//! front-end has written; it has one thread, and asks for no memory while it waits.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use device::Listener;
use host::{ShareOptions, Surroundings};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Level, confine, namespaces, process};
use crate::config::reason;
use crate::signals;
use crate::socket::SocketFile;

/// How long the worker may take to end after a signal. It gives up hanging requests itself before.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after it was killed.
const LAST: Duration = Duration::from_millis(500);

/// What the worker says first on the channel: the share is open.
const READY: u8 = b'+';
/// Or this, and then why it cannot be confined.
const CANNOT: u8 = b'-';
/// Most of that text, bytes.
const REASON: u64 = 1024;

/// Which of the two processes this is.
pub enum Start {
    /// The one that was started.
    Outer(Outer),
    /// The one that serves.
    Worker(Worker),
}

/// The worker's end.
pub struct Worker {
    level: Level,
    namespaces: i32,
    ids: (u32, u32),
    channel: UnixStream,
}

/// The outer process's end.
pub struct Outer {
    worker: Pid,
    channel: UnixStream,
    signals: SignalFd,
    /// Set by the signal that ends the program, and when the worker was killed after it.
    ending: Option<(Instant, bool)>,
}

/// What has become of the worker.
pub enum Answer {
    /// It has opened the share, and waits for the socket.
    Ready,
    /// It cannot be confined to its level, which is why it has ended.
    Cannot(String),
    /// It has ended with this exit status.
    Ended(u8),
}

/// Makes a worker of this level. Only with one thread, with [`signals::block`] called before. An error says why there can be
/// none.
pub fn start(level: Level, share: &ShareOptions) -> Result<Start, String> {
    let namespaces = namespaces(level, share)?;
    let (ours, theirs) = UnixStream::pair().map_err(|error| reason(&error))?;
    let signals = SignalFd::with_flags(
        &signals::of_outer(),
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )
    .map_err(|error| reason(&error.into()))?;
    let ids = (geteuid().as_raw(), getegid().as_raw());
    let made = process::split(namespaces);
    let made = made.map_err(|error| format!("no worker can be made: {}", reason(&error)))?;
    Ok(match made {
        None => Start::Worker(Worker {
            level,
            namespaces,
            ids,
            channel: theirs,
        }),
        Some(worker) => Start::Outer(Outer {
            worker,
            channel: ours,
            signals,
            ending: None,
        }),
    })
}

impl Worker {
    /// Confines this process. `None`, and the outer process is told why, where that is not possible: it may try another
    /// level.
    pub fn confine<'d>(&mut self, share: &'d ShareOptions) -> Option<(Surroundings, &'d Path)> {
        match confine(self.level, self.namespaces, self.ids, share) {
            Ok(confined) => Some(confined),
            Err(reason) => {
                let text = [&[CANNOT], reason.as_bytes()].concat();
                // If nobody reads it nobody waits for it.
                let _ = self.channel.write_all(&text);
                None
            }
        }
    }

    /// Says that the share is open; gives the socket to listen on. `None` when the outer process has ended, or has no
    /// socket, which it has said.
    pub fn ready(mut self) -> Option<Listener> {
        self.channel.write_all(&[READY]).ok()?;
        let (_, file) = self.channel.recv_with_fd(&mut [0]).ok()?;
        Some(Listener::from(UnixListener::from(OwnedFd::from(file?))))
    }
}

impl Outer {
    /// Waits until the worker has opened the share, or has ended.
    pub fn answer(&mut self) -> Answer {
        loop {
            if self.wait(true) {
                let mut kind = [0];
                let text = match self.channel.read(&mut kind) {
                    Ok(1) if kind == [READY] => return Answer::Ready,
                    Ok(1) if kind == [CANNOT] => {
                        let mut text = String::new();
                        let read = Read::by_ref(&mut self.channel)
                            .take(REASON)
                            .read_to_string(&mut text);
                        Some(read.map_or_else(|error| reason(&error), |_| text))
                    }
                    // It has ended without a word here: it has told its reason on stderr.
                    _ => None,
                };
                let status = self.wait_for_end();
                return text.map_or(Answer::Ended(status), Answer::Cannot);
            }
            if let Some(status) = self.ended() {
                return Answer::Ended(status);
            }
        }
    }

    /// Gives the worker its socket.
    pub fn send(&self, listener: &Listener) {
        // A worker that has gone meanwhile is what `supervise` finds out next.
        if let Err(error) = self.channel.send_with_fd(&[READY][..], listener.as_raw_fd()) {
            log::debug!("The worker cannot be given its socket: {error}.");
        }
    }

    /// Waits for the worker's end, with signals forwarded, and removes the socket; gives the exit status.
    pub fn supervise(mut self, socket: Option<&SocketFile>) -> u8 {
        let status = self.wait_for_end();
        if let Some(socket) = socket {
            socket.remove();
        }
        status
    }

    fn wait_for_end(&mut self) -> u8 {
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            self.wait(false);
        }
    }

    /// The exit status that the worker's end makes, if it has ended, or may not be waited for any longer.
    fn ended(&mut self) -> Option<u8> {
        match waitpid(self.worker, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => Some(u8::try_from(status).unwrap_or(1)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(self.killed(signal)),
            Ok(_) => match self.ending {
                Some((since, true)) if since.elapsed() > LAST => {
                    log::warn!("The worker hangs on the host and cannot be ended.");
                    Some(0)
                }
                _ => None,
            },
            // Nothing to wait for: somebody else has.
            Err(_) => Some(1),
        }
    }

    fn killed(&self, signal: Signal) -> u8 {
        if signal == Signal::SIGKILL && self.ending.is_some() {
            return 0;
        }
        match signal {
            Signal::SIGSYS => log::error!(
                "The worker was killed for a system call that its filter does not allow. If nobody has attacked it, that is a \
                 fault of this program; with --seccomp log the kernel's audit log says which call (type=1326)."
            ),
            signal => log::error!("The worker was ended by {signal}."),
        }
        1
    }

    /// Waits for a signal, or with `channel` for a word of the worker's, which it gives true for. Forwards signals that end
    /// the program; a worker that takes too long then is killed.
    fn wait(&mut self, channel: bool) -> bool {
        let timeout = match self.ending {
            None => PollTimeout::NONE,
            Some(_) => PollTimeout::from(100u8),
        };
        let mut fds = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
        ];
        let count = if channel { 2 } else { 1 };
        let polled = poll(&mut fds[..count], timeout);
        let heard = polled.is_ok() && channel && fds[1].any() == Some(true);
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|n| Signal::try_from(n).ok());
            if let Some(signal) = signal.filter(|&signal| signal != Signal::SIGCHLD) {
                let _ = kill(self.worker, signal);
                self.ending.get_or_insert((Instant::now(), false));
            }
        }
        if let Some((since, false)) = self.ending
            && since.elapsed() > PATIENCE
        {
            let _ = kill(self.worker, Signal::SIGKILL);
            self.ending = Some((Instant::now(), true));
        }
        heard
    }
}
