//! Front-ends: who attaches the device, in that one's own order of messages.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::memory::{GuestMemory, Region};
use crate::ring::Ring;
use crate::vhost_user::{Body, Code, Socket, protocol};

/// `VIRTIO_9P_MOUNT_TAG`
pub const MOUNT_TAG: u64 = 1;
/// `VIRTIO_F_INDIRECT_DESC`
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`
pub const EVENT_IDX: u64 = 1 << 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES`
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`
pub const VERSION_1: u64 = 1 << 32;

/// Whose habits to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU's generic vhost-user device: call and error descriptors before the features, NEED_REPLY on some
    /// messages, the base before the addresses, configuration read whole every time.
    Qemu,
    /// cloud-hypervisor's generic vhost-user device (with the mount tag's feature bit let through): NEED_REPLY on
    /// every message once negotiated, the addresses before the base.
    CloudHypervisor,
    /// crosvm: nothing is ever acknowledged.
    Crosvm,
    /// libkrun: nothing is ever acknowledged, SET_OWNER comes each time the driver starts the queue, and the queue is
    /// never asked where it stopped.
    Libkrun,
    /// User-Mode Linux, whose kernel is the front-end: everything is acknowledged, the call descriptor is a socket, the
    /// configuration is read from its beginning every time, and the queue is never asked where it stopped.
    Uml,
}

impl Vmm {
    /// All of them.
    pub const ALL: [Vmm; 5] = [
        Vmm::Qemu,
        Vmm::CloudHypervisor,
        Vmm::Crosvm,
        Vmm::Libkrun,
        Vmm::Uml,
    ];
    /// Those that stop a queue with GET_VRING_BASE and go on from there.
    pub const STOPPING: [Vmm; 3] = [Vmm::Qemu, Vmm::CloudHypervisor, Vmm::Crosvm];

    /// The protocol features it takes when the back-end offers them.
    pub fn protocol_mask(self) -> u64 {
        use protocol::*;
        match self {
            Vmm::Qemu => (1 << 20) - 1,
            Vmm::CloudHypervisor => {
                CONFIG
                    | MQ
                    | CONFIGURE_MEM_SLOTS
                    | REPLY_ACK
                    | INFLIGHT_SHMFD
                    | LOG_SHMFD
                    | DEVICE_STATE
                    | BACKEND_REQ
            }
            Vmm::Crosvm => CONFIG | MQ | BACKEND_REQ | DEVICE_STATE | REPLY_ACK,
            Vmm::Libkrun => CONFIG | MQ,
            Vmm::Uml => CONFIG | BACKEND_REQ | REPLY_ACK,
        }
    }
}

/// A connection to a back-end, and the guest's memory behind it.
#[derive(Debug)]
pub struct Frontend {
    socket: Socket,
    vmm: Vmm,
    memory: GuestMemory,
    features: u64,
    protocol: u64,
    /// The other end of the back-end's own channel, kept open.
    backend_channel: Option<UnixStream>,
    kick: Arc<EventFd>,
    call: EventFd,
    /// What is used in place of `call` by User-Mode Linux: its end and the back-end's.
    call_socket: Option<(UnixStream, UnixStream)>,
    err: EventFd,
    /// Whether the queue was set up since the connection began (QEMU then keeps its memory table).
    mapped: bool,
}

/// An eventfd as this front-end makes them: crosvm's and User-Mode Linux's block.
fn event(vmm: Vmm) -> io::Result<EventFd> {
    let flags = match vmm {
        Vmm::Qemu | Vmm::CloudHypervisor | Vmm::Libkrun => EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        Vmm::Crosvm | Vmm::Uml => EfdFlags::EFD_CLOEXEC,
    };
    Ok(EventFd::from_flags(flags)?)
}

impl Frontend {
    /// Connects and does all that the front-end does before the guest's driver shows up.
    pub fn connect(path: &Path, vmm: Vmm, memory: &GuestMemory) -> io::Result<Frontend> {
        Frontend::new(Socket::connect(path)?, vmm, memory)
    }

    /// As [`Frontend::connect`], over an open socket.
    pub fn new(socket: Socket, vmm: Vmm, memory: &GuestMemory) -> io::Result<Frontend> {
        let mut frontend = Frontend {
            socket,
            vmm,
            memory: memory.clone(),
            features: 0,
            protocol: 0,
            backend_channel: None,
            kick: Arc::new(event(vmm)?),
            call: event(vmm)?,
            err: event(vmm)?,
            call_socket: None,
            mapped: false,
        };
        frontend.realize()?;
        Ok(frontend)
    }

    fn realize(&mut self) -> io::Result<()> {
        match self.vmm {
            Vmm::Qemu => self.realize_qemu(),
            Vmm::CloudHypervisor | Vmm::Crosvm => self.realize_rust(),
            Vmm::Libkrun => {
                self.negotiate()?;
                self.queue_num().map(drop)
            }
            Vmm::Uml => {
                self.own()?;
                self.negotiate()?;
                match self.has(protocol::BACKEND_REQ) {
                    true => self.give_channel(true),
                    false => Ok(()),
                }
            }
        }
    }

    fn own(&self) -> io::Result<()> {
        self.socket.tell(Code::SetOwner, Body::new(), &[], false)
    }

    fn negotiate(&mut self) -> io::Result<()> {
        self.features = self.socket.ask_u64(Code::GetFeatures, false)?;
        if self.features & PROTOCOL_FEATURES == 0 {
            return Err(io::Error::other("the back-end has no protocol features"));
        }
        let offered = self.socket.ask_u64(Code::GetProtocolFeatures, false)?;
        self.protocol = offered & self.vmm.protocol_mask();
        let body = Body::new().u64(self.protocol);
        let reply_ack = self.has(protocol::REPLY_ACK) && self.vmm != Vmm::Crosvm;
        // User-Mode Linux has this very message acknowledged.
        let early = self.vmm == Vmm::Uml;
        self.socket.reply_ack = reply_ack && early;
        self.socket.tell(Code::SetProtocolFeatures, body, &[], early)?;
        self.socket.reply_ack = reply_ack;
        Ok(())
    }

    fn realize_qemu(&mut self) -> io::Result<()> {
        self.negotiate()?;
        if self.has(protocol::MQ) {
            self.queue_num()?;
        }
        if self.has(protocol::CONFIGURE_MEM_SLOTS) {
            self.socket.ask_u64(Code::GetMaxMemSlots, false)?;
        }
        if self.has(protocol::BACKEND_REQ) {
            self.give_channel(true)?;
        }
        self.own()?;
        self.features = self.socket.ask_u64(Code::GetFeatures, false)?;
        self.socket
            .vring_fd(Code::SetVringCall, Some(self.call.as_fd()), true)?;
        self.socket
            .vring_fd(Code::SetVringErr, Some(self.err.as_fd()), true)
    }

    fn realize_rust(&mut self) -> io::Result<()> {
        self.own()?;
        self.negotiate()?;
        if self.vmm == Vmm::Crosvm && self.has(protocol::BACKEND_REQ) {
            self.give_channel(false)?;
        }
        if self.has(protocol::MQ) {
            self.queue_num()?;
        }
        Ok(())
    }

    fn queue_num(&self) -> io::Result<u64> {
        self.socket.ask_u64(Code::GetQueueNum, self.flagged())
    }

    fn give_channel(&mut self, ack: bool) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        self.socket
            .tell(Code::SetBackendReqFd, Body::new(), &[theirs.as_fd()], ack)?;
        self.backend_channel = Some(ours);
        Ok(())
    }

    /// cloud-hypervisor sets NEED_REPLY even on messages that have a reply of their own.
    fn flagged(&self) -> bool {
        self.vmm == Vmm::CloudHypervisor
    }

    /// Whether this protocol feature is negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    /// What the back-end offers (virtio and vhost-user features).
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The connection, for messages of the caller's own making.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Drives this queue instead of the first one (virtio-fs has its requests in queue 1).
    pub fn use_queue(&mut self, index: u32) {
        self.socket.queue = index;
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The features a Linux guest takes for this ring, and the transport's own.
    fn acked(&self, ring: &Ring) -> u64 {
        let options = ring.options();
        let mut wanted = MOUNT_TAG | VERSION_1 | PROTOCOL_FEATURES;
        if options.indirect > 0 {
            wanted |= INDIRECT_DESC;
        }
        if options.event_idx {
            wanted |= EVENT_IDX;
        }
        self.features & wanted
    }

    /// What the front-end does when the guest's driver sets DRIVER_OK, or when a stopped machine goes on: the
    /// whole queue set-up from `base` on. Binds the ring's kick to this device.
    pub fn start_at(&mut self, ring: &mut Ring, base: u16) -> io::Result<()> {
        let features = self.acked(ring);
        let missing = (ring.options().indirect > 0 && features & INDIRECT_DESC == 0)
            || (ring.options().event_idx && features & EVENT_IDX == 0);
        if missing {
            return Err(io::Error::other("the back-end lacks a feature of this ring"));
        }
        let ack = matches!(self.vmm, Vmm::CloudHypervisor | Vmm::Uml);
        let body = Body::new().u64(features);
        if self.vmm == Vmm::Libkrun {
            self.own()?;
            self.send_memory()?;
            self.socket.tell(Code::SetFeatures, body, &[], ack)?;
        } else {
            self.socket.tell(Code::SetFeatures, body, &[], ack)?;
            self.send_memory()?;
        }
        // As in a guest that polls: the device may signal, nobody has to listen.
        match self.vmm {
            Vmm::Qemu => self.start_qemu(ring, base)?,
            Vmm::CloudHypervisor | Vmm::Crosvm => self.start_rust(ring, base, ack)?,
            Vmm::Libkrun => self.start_libkrun(ring, base)?,
            Vmm::Uml => self.start_uml(ring, base)?,
        }
        let kick = Arc::clone(&self.kick);
        ring.set_kick(Box::new(move || {
            // A full counter is as good a kick as any.
            let _ = kick.write(1);
        }));
        Ok(())
    }

    /// [`Frontend::start_at`] for a fresh ring.
    pub fn start(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.start_at(ring, 0)
    }

    fn send_memory(&mut self) -> io::Result<()> {
        let regions = self.memory.regions();
        if self.vmm == Vmm::Qemu && self.has(protocol::CONFIGURE_MEM_SLOTS) {
            if !self.mapped {
                for region in &regions {
                    self.socket
                        .region(Code::AddMemReg, region, Some(region.file()), true)?;
                }
            }
        } else {
            self.send_table()?;
        }
        self.mapped = true;
        Ok(())
    }

    /// SET_MEM_TABLE with all regions, at any time: how memory is plugged in without CONFIGURE_MEM_SLOTS.
    pub fn send_table(&self) -> io::Result<()> {
        let regions = self.memory.regions();
        let mut body = Body::new().u32(regions.len() as u32).u32(0);
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        for region in &regions {
            body = body.region(region);
            fds.push(region.file().as_fd());
        }
        let ack = self.vmm != Vmm::Crosvm;
        self.socket.tell(Code::SetMemTable, body, &fds, ack)
    }

    fn vring_addr(&self, ring: &Ring) -> Body {
        let [descriptors, available, used] = ring.parts();
        Body::new()
            .u32(self.socket.queue)
            .u32(0)
            .u64(descriptors.user_addr())
            .u64(used.user_addr())
            .u64(available.user_addr())
            .u64(0)
    }

    fn start_qemu(&self, ring: &Ring, base: u16) -> io::Result<()> {
        let socket = &self.socket;
        let size = u32::from(ring.options().size);
        socket.vring_state(Code::SetVringNum, size, false)?;
        socket.vring_state(Code::SetVringBase, u32::from(base), false)?;
        socket.tell(Code::SetVringAddr, self.vring_addr(ring), &[], false)?;
        socket.vring_fd(Code::SetVringKick, Some(self.kick.as_fd()), true)?;
        socket.vring_fd(Code::SetVringCall, Some(self.call.as_fd()), true)?;
        socket.vring_state(Code::SetVringEnable, 1, true)?;
        socket.vring_fd(Code::SetVringCall, Some(self.call.as_fd()), true)
    }

    fn start_rust(&mut self, ring: &Ring, base: u16, ack: bool) -> io::Result<()> {
        let socket = &self.socket;
        let size = u32::from(ring.options().size);
        socket.vring_state(Code::SetVringNum, size, ack)?;
        socket.tell(Code::SetVringAddr, self.vring_addr(ring), &[], ack)?;
        socket.vring_state(Code::SetVringBase, u32::from(base), ack)?;
        socket.vring_fd(Code::SetVringCall, Some(self.call.as_fd()), ack)?;
        socket.vring_fd(Code::SetVringKick, Some(self.kick.as_fd()), ack)?;
        socket.vring_state(Code::SetVringEnable, 1, ack)?;
        if self.vmm == Vmm::CloudHypervisor
            && self.has(protocol::BACKEND_REQ)
            && self.backend_channel.is_none()
        {
            self.give_channel(ack)?;
        }
        Ok(())
    }

    fn start_libkrun(&mut self, ring: &Ring, base: u16) -> io::Result<()> {
        self.call = event(self.vmm)?;
        let socket = &self.socket;
        let size = u32::from(ring.options().size);
        socket.vring_state(Code::SetVringNum, size, false)?;
        socket.vring_state(Code::SetVringBase, u32::from(base), false)?;
        socket.tell(Code::SetVringAddr, self.vring_addr(ring), &[], false)?;
        socket.vring_fd(Code::SetVringKick, Some(self.kick.as_fd()), false)?;
        socket.vring_fd(Code::SetVringCall, Some(self.call.as_fd()), false)?;
        socket.vring_state(Code::SetVringEnable, 1, false)
    }

    fn start_uml(&mut self, ring: &Ring, base: u16) -> io::Result<()> {
        self.kick = Arc::new(event(self.vmm)?);
        self.replace_call()?;
        let socket = &self.socket;
        let size = u32::from(ring.options().size);
        socket.vring_state(Code::SetVringNum, size, true)?;
        socket.vring_state(Code::SetVringBase, u32::from(base), true)?;
        socket.tell(Code::SetVringAddr, self.vring_addr(ring), &[], true)?;
        socket.vring_fd(Code::SetVringKick, Some(self.kick.as_fd()), true)?;
        socket.vring_state(Code::SetVringEnable, 1, true)
    }

    /// A reset of the device by the guest's driver: its ring may be anything afterwards.
    pub fn reset(&mut self) -> io::Result<()> {
        match self.vmm {
            Vmm::Qemu | Vmm::CloudHypervisor | Vmm::Crosvm => self.stop().map(drop),
            // Nothing says when it is done; the next message that is answered comes with the new ring.
            Vmm::Libkrun => self.pause(),
            Vmm::Uml => {
                self.pause()?;
                self.fence()?;
                self.call_socket = None;
                Ok(())
            }
        }
    }

    /// Stops the queue as QEMU's `stop` does; gives the index at which the device stopped. For [`Vmm::STOPPING`].
    pub fn stop(&mut self) -> io::Result<u16> {
        self.pause()?;
        let body = self.socket.ask(
            Code::GetVringBase,
            Body::new().u32(self.socket.queue).u32(0),
            self.flagged(),
        )?;
        if self.vmm == Vmm::Qemu {
            // It cleans its notifiers up and makes new ones: what comes by the old ones from now on is lost.
            self.kick = Arc::new(event(self.vmm)?);
            self.call = event(self.vmm)?;
        }
        let state: [u8; 8] = body.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        let base = u32::from_ne_bytes([state[4], state[5], state[6], state[7]]);
        u16::try_from(base).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Disables the queue (cloud-hypervisor's pause).
    pub fn pause(&mut self) -> io::Result<()> {
        let ack = self.vmm != Vmm::Crosvm;
        self.socket.vring_state(Code::SetVringEnable, 0, ack)
    }

    /// Enables the queue again (cloud-hypervisor's resume). Nobody kicks.
    pub fn resume(&mut self) -> io::Result<()> {
        let ack = self.vmm != Vmm::Crosvm;
        self.socket.vring_state(Code::SetVringEnable, 1, ack)
    }

    /// All that comes before the guest's driver once more: QEMU's `device_add` with a chardev that is connected already.
    pub fn replug(&mut self) -> io::Result<()> {
        self.mapped = false;
        self.socket.reply_ack = false;
        self.realize()
    }

    /// The queue's call descriptor, for tests that spoil it.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Hands over this call descriptor instead; the connection's own is kept.
    pub fn give_call(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let ack = self.vmm != Vmm::Crosvm;
        self.socket.vring_fd(Code::SetVringCall, Some(fd), ack)
    }

    /// Hands over this kick descriptor instead, while the queue runs.
    pub fn give_kick(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let ack = self.vmm != Vmm::Crosvm;
        self.socket.vring_fd(Code::SetVringKick, Some(fd), ack)
    }

    /// Kicks the device out of turn.
    pub fn kick(&self) {
        let _ = self.kick.write(1);
    }

    /// The kick descriptor, for a kick with something else to it: [`Ring::set_kick`].
    pub fn kick_handle(&self) -> Arc<EventFd> {
        Arc::clone(&self.kick)
    }

    /// `len` bytes of the configuration space from `offset` on.
    pub fn config(&self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        if self.vmm == Vmm::Uml && offset > 0 {
            let all = self.config(0, offset + len)?;
            return Ok(all[offset as usize..].to_vec());
        }
        let body = Body::new()
            .u32(offset)
            .u32(len)
            .u32(0)
            .bytes(&vec![0; len as usize]);
        let reply = self.socket.ask(Code::GetConfig, body, self.flagged())?;
        let head = Body::new().u32(offset).u32(len);
        let expected = 12 + len as usize;
        if reply.len() != expected || !reply.starts_with(head.as_bytes()) {
            let what = format!(
                "GET_CONFIG of {len} bytes at {offset}: {} bytes came",
                reply.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(reply[12..].to_vec())
    }

    /// The mount tag, read as QEMU or as the others read it.
    pub fn tag(&self) -> io::Result<Vec<u8>> {
        let (len, bytes) = if self.vmm == Vmm::Qemu {
            let all = self.config(0, 256)?;
            (
                usize::from(u16::from_le_bytes([all[0], all[1]])),
                all[2..].to_vec(),
            )
        } else {
            let head = self.config(0, 2)?;
            let len = u16::from_le_bytes([head[0], head[1]]);
            let mut tag = Vec::new();
            // Linux reads a byte at a time.
            for at in 0..u32::from(len) {
                tag.extend(self.config(2 + at, 1)?);
            }
            (usize::from(len), tag)
        };
        bytes
            .get(..len)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// RESET_DEVICE, when negotiated.
    pub fn reset_device(&self) -> io::Result<()> {
        self.socket.tell(Code::ResetDevice, Body::new(), &[], true)
    }

    /// Adds a region while the device runs.
    pub fn add_region(&self, gpa: u64, len: usize) -> io::Result<Arc<Region>> {
        let region = self.memory.add_region(gpa, len)?;
        self.socket
            .region(Code::AddMemReg, &region, Some(region.file()), true)?;
        Ok(region)
    }

    /// Takes a region away while the device runs.
    pub fn remove_region(&self, gpa: u64) -> io::Result<()> {
        let region = self.memory.remove_region(gpa).ok_or(io::ErrorKind::NotFound)?;
        self.socket.region(Code::RemMemReg, &region, None, true)
    }

    /// Waits until every message so far is worked off: a round trip.
    pub fn fence(&self) -> io::Result<()> {
        self.socket.ask_u64(Code::GetFeatures, self.flagged()).map(|_| ())
    }

    /// Hands over another call descriptor, as QEMU does while the guest masks and unmasks its interrupt.
    pub fn replace_call(&mut self) -> io::Result<()> {
        let ack = self.vmm != Vmm::Crosvm;
        if self.vmm == Vmm::Uml {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            let told = self
                .socket
                .vring_fd(Code::SetVringCall, Some(theirs.as_fd()), ack);
            self.call_socket = Some((ours, theirs));
            return told;
        }
        self.call = event(self.vmm)?;
        self.socket
            .vring_fd(Code::SetVringCall, Some(self.call.as_fd()), ack)
    }

    /// Waits for the device to signal the driver, up to `limit`; takes the signal. Whether there was one.
    pub fn wait_call(&self, limit: Duration) -> bool {
        let call = match &self.call_socket {
            Some((ours, _)) => ours.as_fd(),
            None => self.call.as_fd(),
        };
        let mut fds = [PollFd::new(call, PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut fds, limit).is_ok_and(|ready| ready == 1);
        ready
            && match &self.call_socket {
                Some((ours, _)) => {
                    let mut ours: &UnixStream = ours;
                    ours.read_exact(&mut [0; 8]).is_ok()
                }
                None => self.call.read().is_ok(),
            }
    }
}
