//! The device as the vhost crate wants it: one method for each message of the front-end.
//!
//! The crate reads and checks the messages' form; what they mean is here. An error ends the connection (and, with REPLY_ACK,
//! tells the front-end), so each says what is wrong in words for the log.

use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::event::EventFile;
use crate::handler::Handler;
use crate::memory::{Memory, Region};
use crate::pool::{Pool, PoolLimits};
use crate::queue::Worker;
use crate::vring::Vring;

/// virtio 1.2 has no 9P chapter; Linux and QEMU agree on bit 0: the configuration space has a tag.
const MOUNT_TAG: u64 = 1 << 0;
const FEATURES: u64 = MOUNT_TAG
    | 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// What virtio allows (2.7); the front-end chooses, no memory depends on it.
const MAX_QUEUE_SIZE: u32 = 32768;
/// Most regions of guest memory, as many as vhost in the kernel takes.
const MAX_REGIONS: usize = 509;
/// Longest tag that fits a configuration space of 256 bytes, which is what GET_CONFIG carries.
pub const MAX_TAG: usize = 254;

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

/// What a thread of the device does. What one may do, those that are started by it may do at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Answers the front-end, and starts the others.
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

/// One connection's device.
pub struct Backend {
    handler: Arc<dyn Handler>,
    config: Vec<u8>,
    vring: Vring,
    pool: Arc<Pool>,
    regions: Vec<Arc<Region>>,
    owned: bool,
    acked: u64,
    /// Nothing until SET_PROTOCOL_FEATURES has come.
    protocol: Option<VhostUserProtocolFeatures>,
    /// Whether nobody waits for an answer any more.
    given_up: Box<dyn Fn() -> bool + Send>,
}

fn refused(why: impl Into<String>) -> Error {
    Error::ReqHandlerError(io::Error::other(why.into()))
}

/// Of a message whose feature is not offered.
fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not supported"))
}

impl Backend {
    /// A device that answers with `handler`, and the state of its queue thread. Waits for requests at work on the host
    /// only for as long as `given_up` is false. Fails when no descriptor is left.
    pub fn new(
        handler: Arc<dyn Handler>,
        options: &DeviceOptions,
        given_up: impl Fn() -> bool + Send + 'static,
    ) -> io::Result<(Backend, Worker)> {
        let tag = &options.tag[..options.tag.len().min(MAX_TAG)];
        // struct virtio_9p_config: tag_len, tag (no NUL).
        let mut config = (tag.len() as u16).to_le_bytes().to_vec();
        config.extend(tag);
        let vring = Vring::new()?;
        vring.set_most(options.max_requests);
        let limits = PoolLimits {
            threads: options.io_threads,
            max_threads: options.max_io_threads,
            max_waiting: options.max_lock_waiters,
            on_thread: options.on_thread,
        };
        let pool = Pool::new(Arc::clone(&handler), vring.clone(), limits);
        let worker = Worker::new(
            Arc::clone(&handler),
            Arc::clone(&pool),
            vring.clone(),
            options.poll_max,
        );
        let backend = Backend {
            handler,
            config,
            vring,
            pool,
            regions: Vec::new(),
            owned: false,
            acked: 0,
            protocol: None,
            given_up: Box::new(given_up),
        };
        Ok((backend, worker))
    }

    /// The queue.
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// The connection is gone: nothing is taken or pushed any more, threads end.
    pub fn close(&self) {
        self.vring.close();
        self.pool.stop();
    }

    fn quiesce(&self) -> Result<()> {
        match self.pool.quiesce(&self.given_up) {
            true => Ok(()),
            false => Err(Error::Disconnected),
        }
    }

    /// Stops all that moves and forgets what the guest had.
    fn reset(&mut self) -> Result<()> {
        self.vring.set_enabled(false);
        self.quiesce()?;
        self.pool.reset();
        self.forget()?;
        self.acked = 0;
        Ok(())
    }

    /// Lets the session forget what the guest had, on a thread of its own: that closes files, which may hang on the host.
    fn forget(&self) -> Result<()> {
        let (running, ended) = mpsc::channel::<()>();
        let handler = Arc::clone(&self.handler);
        let reset = move || {
            handler.reset();
            drop(running);
        };
        if thread::Builder::new()
            .name("end".to_string())
            .spawn(reset)
            .is_err()
        {
            self.handler.reset();
            return Ok(());
        }
        while ended.recv_timeout(Duration::from_millis(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
            if (self.given_up)() {
                return Err(Error::Disconnected);
            }
        }
        Ok(())
    }

    fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol.is_none_or(|protocol| protocol.contains(feature))
    }

    /// Whether the guest can read the mount tag, as far as is known.
    pub fn has_tag(&self) -> bool {
        self.has(VhostUserProtocolFeatures::CONFIG)
    }

    /// Guest memory is these mappings from now on.
    #[cfg(feature = "fuzzing")]
    pub fn set_mappings(&mut self, mappings: Vec<vm_memory::GuestRegionMmap>) -> Result<()> {
        let region = |mapping| Arc::new(Region::new(Arc::new(mapping), 0));
        self.set_regions(mappings.into_iter().map(region).collect())
    }

    fn set_regions(&mut self, regions: Vec<Arc<Region>>) -> Result<()> {
        let memory = Memory::new(regions.clone()).map_err(Error::ReqHandlerError)?;
        log::debug!("Guest memory: {memory:?}");
        self.regions = regions;
        self.vring.set_memory(Some(Arc::new(memory)));
        Ok(())
    }

    /// Exactly `size` bytes: front-ends wait for the rest of a shorter answer, or give up. The message itself carries at
    /// most 4 KiB, which the crate has checked.
    fn config_space(&self, offset: u32, size: u32) -> Vec<u8> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let (from, size) = (self.config.iter().skip(offset), size as usize);
        let mut answer: Vec<u8> = from.copied().take(size).collect();
        answer.resize(size, 0);
        answer
    }

    fn guest_address(&self, user: u64) -> Result<u64> {
        let found = self.regions.iter().find_map(|region| region.guest_address(user));
        found.ok_or_else(|| {
            refused(match self.regions.is_empty() {
                true => {
                    "the queue is set up before any guest memory is shared; give the machine shared memory (QEMU: \
                     -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem; \
                     cloud-hypervisor: --memory shared=on)"
                }
                false => "the queue is not in guest memory",
            })
        })
    }
}

/// There is one queue.
fn check_queue(index: impl Into<u32>) -> Result<()> {
    match index.into() {
        0 => Ok(()),
        index => Err(refused(format!("there is no queue {index}, only queue 0"))),
    }
}

fn event(what: &str, file: Option<File>) -> Result<Option<EventFile>> {
    let file = file.map(EventFile::new).transpose();
    file.map_err(|error| refused(format!("the {what} descriptor cannot be used: {error}")))
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.owned, true) {
            // QEMU, when a device was unplugged and another is plugged in on the same connection.
            log::info!("The front-end begins a new session on its connection.");
            self.vring.set_ready(false);
            self.reset()?;
            self.vring.reset();
            self.regions.clear();
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // Deprecated; to be ignored, or used to disable all rings.
        self.vring.set_enabled(false);
        self.quiesce()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset()
    }

    fn get_features(&mut self) -> Result<u64> {
        if self.has_tag() {
            return Ok(FEATURES);
        }
        // Linux reads the tag where nothing answers, and crashes on what it gets.
        log::warn!(
            "The front-end has no configuration space for the device, so the guest cannot read the mount tag and finds \
             no share; with QEMU, add config_size=256 to the device's options."
        );
        Ok(FEATURES & !MOUNT_TAG)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !FEATURES;
        if unknown != 0 {
            return Err(refused(format!(
                "it takes features that are not offered ({unknown:#x})"
            )));
        }
        self.acked = features;
        self.vring
            .set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        // "Ring states": without protocol features there is no SET_VRING_ENABLE.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.vring.set_enabled(true);
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol = Some(VhostUserProtocolFeatures::from_bits_truncate(features));
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let map = |(region, file)| Region::map(region, file).map(Arc::new);
        let regions: io::Result<Vec<_>> = table.iter().zip(files).map(map).collect();
        self.set_regions(regions.map_err(Error::ReqHandlerError)?)?;
        Ok(None)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(refused(format!(
                "there are {MAX_REGIONS} regions of guest memory, and there may be no more"
            )));
        }
        let region = Region::map(region, file).map_err(Error::ReqHandlerError)?;
        let mut regions = self.regions.clone();
        regions.push(Arc::new(region));
        self.set_regions(regions)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (start, len) = (region.guest_phys_addr, region.memory_size);
        let mut regions = self.regions.clone();
        regions.retain(|there| (there.start(), there.len()) != (start, len));
        if regions.len() == self.regions.len() {
            return Err(refused(format!(
                "there is no region of {len} bytes of guest memory at {start:#x}"
            )));
        }
        self.set_regions(regions)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        check_queue(index)?;
        match u16::try_from(num) {
            Ok(size) if (1..=MAX_QUEUE_SIZE).contains(&num) => {
                if !size.is_power_of_two() {
                    log::error!("The front-end asks for {num} queue entries, which is not a power of two.");
                }
                self.vring.set_size(size);
                Ok(())
            }
            _ => Err(refused(format!(
                "it asks for {num} queue entries; there may be 1 to {MAX_QUEUE_SIZE}"
            ))),
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        check_queue(index)?;
        let descriptors = self.guest_address(descriptor)?;
        let avail = self.guest_address(available)?;
        let used = self.guest_address(used)?;
        self.vring.set_addresses(descriptors, avail, used);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        check_queue(index)?;
        if !self.vring.is_enabled() {
            // User-Mode Linux resets a queue with SET_VRING_ENABLE alone: what still waits is of a ring that is gone.
            self.quiesce()?;
            self.pool.reset();
        }
        self.vring.set_next_avail(base as u16);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        check_queue(index)?;
        self.vring.set_ready(false);
        if !self.pool.drain(&self.given_up) {
            return Err(Error::Disconnected);
        }
        let next = self.vring.next_avail();
        self.vring.set_kick(None);
        self.vring.set_call(None);
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        check_queue(index)?;
        match event("kick", file)? {
            Some(kick) => {
                self.vring.set_kick(Some(kick));
                self.vring.set_ready(true);
            }
            None => {
                log::warn!(
                    "The front-end has no kick descriptor and wants the queue polled, which is not done."
                );
                self.vring.set_kick(None);
            }
        }
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        check_queue(index)?;
        // The front-end may throw the old one away as soon as this is answered.
        match self.vring.set_call(event("call", file)?) {
            Some(old) if !self.vring.wait_told(&old, &self.given_up) => Err(Error::Disconnected),
            _ => Ok(()),
        }
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        // Nothing is ever told by it.
        check_queue(index)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        check_queue(index)?;
        self.vring.set_enabled(enable);
        match enable {
            true => Ok(()),
            false => self.quiesce(),
        }
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.config_space(offset, size))
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        // An error would end the connection.
        log::debug!(
            "The guest writes {} bytes at {offset} of a read-only configuration; ignored.",
            buf.len()
        );
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported()
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
        Backend::new(Arc::new(Nobody), &options, || false).unwrap().0
    }

    #[test]
    fn the_configuration_is_as_long_as_asked_for() {
        let backend = backend(b"hostshare");
        assert_eq!(backend.config_space(0, 256).len(), 256);
        assert_eq!(&backend.config_space(0, 12), b"\x09\0hostshare\0".as_slice());
        assert_eq!(backend.config_space(2, 4), b"host");
        assert_eq!(backend.config_space(1000, 4), [0; 4]);
        assert_eq!(backend.config_space(u32::MAX, 1), [0]);
        assert!(backend.config_space(0, 0).is_empty());
    }

    #[test]
    fn the_longest_tag_fills_the_space() {
        let backend = backend(&[b'x'; MAX_TAG]);
        let config = backend.config_space(0, 256);
        assert_eq!(config[..3], [254, 0, b'x']);
        assert_eq!(config[255], b'x');
    }
}
