//! One front-end after the other on one listening socket.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::backend::{Backend, CONTROL, DeviceOptions};
use crate::event::wait_for_either;
use crate::handler::Handler;
use crate::vring::lock;

/// How another thread ends [`serve`].
pub struct Stop {
    requested: AtomicBool,
    event: EventConsumer,
    notifier: EventNotifier,
    connection: Mutex<Option<ShutdownHandle>>,
}

impl Stop {
    /// A stop that is not requested. Fails when no descriptor is left.
    pub fn new() -> io::Result<Stop> {
        let (event, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Stop {
            requested: AtomicBool::new(false),
            event,
            notifier,
            connection: Mutex::default(),
        })
    }

    /// Ends the connection that is being served, if any, and then [`serve`].
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        if let Err(error) = self.notifier.notify() {
            log::debug!("Cannot signal the end: {error}");
        }
        if let Some(connection) = lock(&self.connection).as_ref() {
            connection.shutdown();
        }
    }

    /// Whether the end was requested.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    fn set_connection(&self, connection: Option<ShutdownHandle>) {
        let mut current = lock(&self.connection);
        *current = connection;
        // A request that came before this must not be lost.
        if self.requested()
            && let Some(connection) = current.as_ref()
        {
            connection.shutdown();
        }
    }

    /// Waits for a front-end; false when the end was requested.
    fn wait_for(&self, listener: &Listener) -> Result<bool, String> {
        Ok(!self.requested()
            && wait_for_either(listener, &self.event)
                .map_err(|error| format!("The listening socket cannot be used: {error}"))?
            && !self.requested())
    }
}

/// Serves one front-end after the other, each with a session of its own, until `stop` is requested.
pub fn serve<H: Handler + 'static>(
    mut listener: Listener,
    new_session: impl Fn() -> H,
    options: &DeviceOptions,
    stop: &Stop,
) -> Result<(), String> {
    while stop.wait_for(&listener)? {
        let handler: Arc<dyn Handler> = Arc::new(new_session());
        let backend = Arc::new(Backend::new(handler, options.clone()));
        if let Err(error) = serve_one(&mut listener, &backend, stop) {
            log::error!("A front-end could not be served: {error}");
            // Most likely descriptors or threads are short; the front-end stays in the listener's queue.
            thread::sleep(Duration::from_millis(100));
        }
        if let Some(exit) = backend.take_exit_descriptor() {
            // The thread that waited on it has ended with the daemon.
            let _ = nix::unistd::close(exit);
        }
    }
    Ok(())
}

/// Serves the front-end that waits in `listener`'s queue until it goes away.
fn serve_one(listener: &mut Listener, backend: &Arc<Backend>, stop: &Stop) -> Result<(), DaemonError> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new(CONTROL.to_string(), Arc::clone(backend), memory)?;
    daemon.start(listener)?;
    log::info!("A front-end has connected.");
    stop.set_connection(daemon.shutdown_handle());
    let result = daemon.wait();
    stop.set_connection(None);
    match result {
        // A front-end that ends just closes its socket.
        Ok(())
        | Err(DaemonError::HandleRequest(VhostUserError::Disconnected | VhostUserError::PartialMessage)) => {
            log::info!("The front-end has gone.");
        }
        Err(error) => log::warn!("The front-end's connection was ended: {error}"),
    }
    backend.close();
    Ok(())
}
