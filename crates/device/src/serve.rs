//! One front-end after the other on one listening socket.
//!
//! The calling thread reads and answers the front-end's messages; each connection has a queue thread and a pool of its
//! own, which end with it. Nothing here waits for ever on what the front-end or the host may never do.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError, Listener};

use crate::backend::{Backend, DeviceOptions, Role};
use crate::event::{hung_up, listening, readable};
use crate::handler::Handler;
use crate::vring::{Progress, Vring, lock};

/// How long the queue thread may take to end once its front-end has left: it may be at work on the host. Then it is left
/// behind; it holds what it uses and ends when its system call does.
const PATIENCE: Duration = Duration::from_secs(2);

/// How another thread ends [`serve`].
pub struct Stop {
    requested: AtomicBool,
    event: EventFd,
    connection: Mutex<Option<Arc<UnixStream>>>,
}

impl Stop {
    /// A stop that is not requested. Fails when no descriptor is left.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop {
            requested: AtomicBool::new(false),
            event: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            connection: Mutex::default(),
        })
    }

    /// Ends the connection that is being served, if any, and then [`serve`].
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        if let Err(error) = self.event.write(1) {
            log::debug!("Cannot signal the end: {error}");
        }
        if let Some(connection) = lock(&self.connection).as_ref() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Whether the end was requested.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    fn set_connection(&self, connection: Option<Arc<UnixStream>>) {
        let mut current = lock(&self.connection);
        *current = connection;
        // A request that came before this must not be lost.
        if self.requested()
            && let Some(connection) = current.as_ref()
        {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Serves one front-end after the other, each with a session of its own, until `stop` is requested.
pub fn serve<H: Handler + 'static>(
    listener: Listener,
    new_session: impl Fn() -> H,
    options: &DeviceOptions,
    stop: &Arc<Stop>,
) -> Result<(), String> {
    let mut role = Some(Role::Control);
    let unusable = |error: &dyn std::fmt::Display| format!("The listening socket cannot be used: {error}");
    loop {
        let [_, stopped] = readable([listening(&listener), stop.event.as_fd()], PollTimeout::NONE)
            .map_err(|error| unusable(&error))?;
        if stopped || stop.requested() {
            return Ok(());
        }
        if let Some(role) = role.take() {
            (options.on_thread)(role);
        }
        let served = match listener.accept() {
            Ok(Some(stream)) => serve_one(stream, Arc::new(new_session()), options, &listener, stop),
            // It has left already.
            Ok(None) => Ok(()),
            Err(VhostUserError::SocketError(error)) => Err(error),
            Err(error) => return Err(unusable(&error)),
        };
        if let Err(error) = served {
            log::error!("A front-end could not be served: {error}");
            // Most likely descriptors or threads are short.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Serves the front-end behind `stream` until it goes away.
fn serve_one(
    stream: UnixStream,
    handler: Arc<dyn Handler>,
    options: &DeviceOptions,
    listener: &Listener,
    stop: &Arc<Stop>,
) -> io::Result<()> {
    let connection = Arc::new(stream.try_clone()?);
    let (theirs, stopping) = (Arc::clone(&connection), Arc::clone(stop));
    let given_up = move || stopping.requested() || hung_up(&theirs);
    let (backend, worker) = Backend::new(handler, options, given_up)?;
    let vring = backend.vring().clone();
    let waiter = vring.waiter()?;
    let on_thread = options.on_thread;
    // Dropped when the thread ends.
    let (running, ended) = mpsc::channel::<()>();
    let queue = thread::Builder::new().name("queue".to_string()).spawn(move || {
        on_thread(Role::Queue);
        worker.run(waiter);
        drop(running);
    })?;
    log::info!("A front-end has connected.");
    stop.set_connection(Some(Arc::clone(&connection)));
    let backend = Arc::new(Mutex::new(backend));
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&backend));
    match answer(&mut requests, &connection, listener, stop) {
        // A front-end that ends just closes its socket.
        VhostUserError::Disconnected | VhostUserError::PartialMessage | VhostUserError::SocketBroken(_) => {
            let unused = match lock(&backend).has_tag() {
                true => unused(&vring, &options.tag),
                // That has been said, and is the cause of the rest.
                false => String::new(),
            };
            log::info!("The front-end has gone.{unused}");
        }
        _ if stop.requested() => {}
        VhostUserError::ReqHandlerError(error) => {
            log::warn!("The front-end's connection was ended: {error}.");
        }
        error => log::warn!("The front-end's connection was ended: {error}."),
    }
    stop.set_connection(None);
    lock(&backend).close();
    if has_ended(&ended, &vring) {
        // Not a wait: it has dropped all that it had.
        let _ = queue.join();
    } else {
        log::warn!("Requests that are still at work on the host are left to themselves.");
    }
    let_go((requests, backend));
    Ok(())
}

/// What a guest that has left without having used the share may lack, as a second sentence.
fn unused(vring: &Vring, tag: &[u8]) -> String {
    match vring.progress() {
        Progress::None => {
            " The guest never started the device; it needs the driver 9pnet_virtio.".to_string()
        }
        Progress::Started => format!(
            " The guest never mounted the share: mount -t 9p -o trans=virtio,version=9p2000.L {} DIRECTORY",
            tag.escape_ascii()
        ),
        Progress::Used => String::new(),
    }
}

/// Drops `what` on a thread of its own and waits for that, but not for ever: the end of a session closes files, which may
/// hang on the host.
fn let_go(what: impl Send + 'static) {
    let (running, ended) = mpsc::channel::<()>();
    let drop_it = move || {
        drop(what);
        drop(running);
    };
    // Where no thread can be started it is dropped here.
    if thread::Builder::new()
        .name("end".to_string())
        .spawn(drop_it)
        .is_ok()
        && ended.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout)
    {
        log::warn!("Files of the session that has ended are still being closed on the host.");
    }
}

/// Answers messages until there is an error, the end of the connection included.
fn answer(
    requests: &mut BackendReqHandler<Mutex<Backend>>,
    connection: &UnixStream,
    listener: &Listener,
    stop: &Stop,
) -> VhostUserError {
    let mut alone = true;
    loop {
        // What comes in pieces is waited for in the middle of a message; a stop then shuts the connection down.
        let waiting = match alone {
            true => readable(
                [connection.as_fd(), stop.event.as_fd(), listening(listener)],
                PollTimeout::NONE,
            ),
            false => readable([connection.as_fd(), stop.event.as_fd()], PollTimeout::NONE)
                .map(|[message, stopped]| [message, stopped, false]),
        };
        match waiting {
            Ok([_, true, _]) => return VhostUserError::Disconnected,
            Ok([true, ..]) => {
                if let Err(error) = requests.handle_request() {
                    return error;
                }
            }
            Ok([.., another]) if another => {
                alone = false;
                log::warn!(
                    "Another front-end waits on the socket until this one has gone: a process serves one machine at a \
                     time; start one for each."
                );
            }
            Ok(_) => {}
            Err(error) => return VhostUserError::SocketError(error.into()),
        }
    }
}

/// Waits for the queue thread's end, but not for ever.
fn has_ended(ended: &mpsc::Receiver<()>, vring: &Vring) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if ended.recv_timeout(Duration::from_millis(20)) == Err(mpsc::RecvTimeoutError::Disconnected) {
            return true;
        }
        // It may be stuck in the writing of an interrupt.
        vring.make_room();
    }
    false
}
