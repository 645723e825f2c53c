//! The device as vhost-user-backend wants it.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::handler::Handler;
use crate::memory::Memory;
use crate::pool::{Pool, PoolLimits};
use crate::queue::Worker;
use crate::vring::{GuestMemory, Vring, lock};

/// virtio 1.2 has no 9P chapter; Linux and QEMU agree on bit 0: the configuration space has a tag.
const VIRTIO_9P_MOUNT_TAG: u32 = 0;
/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// What virtio allows (2.7); the front-end chooses, no memory depends on it.
const MAX_QUEUE_SIZE: usize = 32768;
/// Longest tag that fits a configuration space of 256 bytes, which is what GET_CONFIG carries.
pub const MAX_TAG: usize = 254;

/// Name of the thread that answers the front-end.
pub const CONTROL: &str = "vhost-user";

/// What the device is made with.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// The mount tag, 1..=[`MAX_TAG`] bytes.
    pub tag: Vec<u8>,
    /// Threads for requests that block; at least 1.
    pub io_threads: usize,
    /// Most of them: further ones are started when a request has blocked for long.
    pub max_io_threads: usize,
    /// Most requests taken and not yet answered; at least 1. Others stay in the ring.
    pub max_requests: u32,
    /// Most requests that wait for a lock, and never more than half of what the ring or `max_requests` lets be in
    /// flight, so that there is room for those that let go. Others are answered as blocked.
    pub max_lock_waiters: usize,
    /// Longest look at the ring before sleeping; zero: none.
    pub poll_max: Duration,
    /// Called once on each thread that comes near what the guest or the front-end sends, before it does.
    pub on_thread: fn(Role),
}

/// What a thread of the device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Answers the front-end.
    Control,
    /// Answers the guest.
    Queue,
    /// Does the guest's requests that block.
    Pool,
}

impl Default for DeviceOptions {
    fn default() -> DeviceOptions {
        DeviceOptions {
            tag: b"share".to_vec(),
            io_threads: 4,
            // As many as QEMU's own device lets a guest have in flight.
            max_io_threads: 128,
            max_requests: 4096,
            max_lock_waiters: 1024,
            poll_max: Duration::from_micros(50),
            on_thread: |_| {},
        }
    }
}

/// What exists once the queue has been seen.
struct Queue {
    vring: Vring,
    pool: Arc<Pool>,
}

/// One connection's device.
pub struct Backend {
    handler: Arc<dyn Handler>,
    options: DeviceOptions,
    config: Vec<u8>,
    /// The queue, told of memory changes from its first event on; and the memory until then.
    queue: Mutex<(Option<Queue>, Option<Arc<Memory>>)>,
    worker: Mutex<Option<Worker>>,
    exit: AtomicI32,
}

impl Backend {
    /// A device that answers with `handler`.
    pub fn new(handler: Arc<dyn Handler>, options: DeviceOptions) -> Backend {
        let tag = &options.tag[..options.tag.len().min(MAX_TAG)];
        // struct virtio_9p_config: tag_len, tag (no NUL).
        let mut config = (tag.len() as u16).to_le_bytes().to_vec();
        config.extend(tag);
        Backend {
            handler,
            config,
            options,
            queue: Mutex::default(),
            worker: Mutex::default(),
            exit: AtomicI32::new(-1),
        }
    }

    /// To be called first in whatever the front-end asks for.
    fn enter_control(&self) {
        thread_local! {
            static KNOWN: Cell<bool> = const { Cell::new(false) };
        }
        // vhost-user-backend asks the thread that makes the device for some of it, too.
        if thread::current().name() == Some(CONTROL) && !KNOWN.replace(true) {
            (self.options.on_thread)(Role::Control);
        }
    }

    fn with_queue(&self, act: impl FnOnce(&Vring, &Arc<Pool>)) {
        let (vring, pool) = match &lock(&self.queue).0 {
            Some(queue) => (queue.vring.clone(), Arc::clone(&queue.pool)),
            None => return,
        };
        act(&vring, &pool);
    }

    /// Makes the worker when the queue is first seen.
    fn worker(&self, vring: &Vring) -> Worker {
        (self.options.on_thread)(Role::Queue);
        let mut known = lock(&self.queue);
        vring.set_most(self.options.max_requests);
        let limits = PoolLimits {
            threads: self.options.io_threads,
            max_threads: self.options.max_io_threads,
            max_waiting: self.options.max_lock_waiters,
            on_thread: self.options.on_thread,
        };
        let pool = Pool::new(Arc::clone(&self.handler), vring.clone(), limits);
        if let Some(memory) = &known.1 {
            vring.set_memory(Arc::clone(memory));
        }
        known.0 = Some(Queue {
            vring: vring.clone(),
            pool: Arc::clone(&pool),
        });
        Worker::new(
            Arc::clone(&self.handler),
            pool,
            vring.clone(),
            self.options.poll_max,
        )
    }

    /// The connection is gone: nothing is taken or pushed any more, threads end.
    pub fn close(&self) {
        self.with_queue(|vring, pool| {
            vring.close();
            pool.stop();
        });
    }

    /// The descriptor of the exit event, which vhost-user-backend lets go of without closing it. To be closed once
    /// its thread has ended.
    pub fn take_exit_descriptor(&self) -> Option<RawFd> {
        let exit = self.exit.swap(-1, Ordering::Relaxed);
        (exit >= 0).then_some(exit)
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.enter_control();
        1 << VIRTIO_9P_MOUNT_TAG
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.enter_control();
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The queue is told by vhost-user-backend itself.
    }

    fn reset_device(&self) {
        self.with_queue(|_, pool| pool.reset());
        self.handler.reset();
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // Exactly `size` bytes: front-ends wait for the rest of a shorter answer, or give up. The message itself
        // carries at most 4 KiB, which the crate has checked.
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut answer: Vec<u8> = self
            .config
            .iter()
            .copied()
            .skip(offset)
            .take(size as usize)
            .collect();
        answer.resize(size as usize, 0);
        answer
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        // An error would end the connection.
        log::debug!(
            "The guest writes {} bytes at {offset} of a read-only configuration; ignored.",
            buf.len()
        );
        Ok(())
    }

    fn update_memory(&self, mem: GuestMemory) -> io::Result<()> {
        self.enter_control();
        let memory = Arc::new(Memory::new(mem.memory().into_inner()));
        log::debug!("Guest memory: {memory:?}");
        let mut known = lock(&self.queue);
        if let Some(queue) = &known.0 {
            queue.vring.set_memory(Arc::clone(&memory));
        }
        known.1 = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok((consumer, notifier)) => {
                self.exit.store(consumer.as_raw_fd(), Ordering::Relaxed);
                Some((consumer, notifier))
            }
            Err(error) => {
                log::error!("Cannot make an eventfd: {error}");
                None
            }
        }
    }

    fn stop_vring(&self, _queue_index: u32) -> io::Result<()> {
        self.with_queue(|_, pool| pool.drain());
        Ok(())
    }

    fn handle_event(
        &self,
        device_event: u16,
        _evset: EventSet,
        vrings: &[Vring],
        _thread_id: usize,
    ) -> io::Result<()> {
        // An error would end the queue's thread for good, so there is none.
        if let (0, Some(vring)) = (device_event, vrings.first()) {
            lock(&self.worker)
                .get_or_insert_with(|| self.worker(vring))
                .serve();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::{How, Outcome, Request, Scratch};

    struct Nobody;
    impl Handler for Nobody {
        fn handle(&self, _: &mut Request<'_>, _: &mut Scratch, _: How) -> Outcome {
            Outcome::Done(0)
        }
        fn reset(&self) {}
        fn wake_count(&self) -> u64 {
            0
        }
    }

    fn backend(tag: &[u8]) -> Backend {
        let options = DeviceOptions {
            tag: tag.to_vec(),
            ..DeviceOptions::default()
        };
        Backend::new(Arc::new(Nobody), options)
    }

    #[test]
    fn the_configuration_is_as_long_as_asked_for() {
        let backend = backend(b"hostshare");
        assert_eq!(backend.get_config(0, 256).len(), 256);
        assert_eq!(&backend.get_config(0, 12), b"\x09\0hostshare\0".as_slice());
        assert_eq!(backend.get_config(2, 4), b"host");
        assert_eq!(backend.get_config(1000, 4), [0; 4]);
        assert_eq!(backend.get_config(u32::MAX, 1), [0]);
        assert!(backend.get_config(0, 0).is_empty());
        assert!(backend.set_config(0, b"x").is_ok());
    }

    #[test]
    fn the_longest_tag_fills_the_space() {
        let backend = backend(&[b'x'; MAX_TAG]);
        let config = backend.get_config(0, 256);
        assert_eq!(config[..3], [254, 0, b'x']);
        assert_eq!(config[255], b'x');
    }
}
