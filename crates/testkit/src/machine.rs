//! A virtual machine as far as the device is concerned: a front-end, memory, a ring and a mounted client.

use std::io;
use std::path::Path;

use crate::client::Client;
use crate::frontend::{Frontend, Vmm};
use crate::layout::Pages;
use crate::memory::GuestMemory;
use crate::ring::{Ring, RingOptions};
use crate::transport::RingTransport;

/// What kind of machine.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Whose front-end.
    pub vmm: Vmm,
    /// The ring.
    pub ring: RingOptions,
    /// Memory regions: guest address and bytes.
    pub memory: Vec<(u64, usize)>,
    /// Largest payload of a read or write.
    pub payload: usize,
    /// How payload pages lie.
    pub pages: Pages,
    /// What the mount asks for.
    pub msize: u32,
}

impl MachineOptions {
    /// A machine as Linux would set it up under `vmm`.
    pub fn new(vmm: Vmm) -> MachineOptions {
        MachineOptions {
            vmm,
            ring: RingOptions::default(),
            memory: vec![(0, 64 << 20), (1 << 32, 192 << 20)],
            payload: 512 << 10,
            pages: Pages::Scattered,
            msize: 512_000,
        }
    }
}

/// A running machine with the share mounted (fid 0 is the root).
#[derive(Debug)]
pub struct Machine {
    /// The connection to the back-end.
    pub frontend: Frontend,
    /// The mounted client.
    pub client: Client<RingTransport>,
}

impl Machine {
    /// Attaches to the back-end at `socket`, starts the queue and mounts.
    pub fn boot(socket: &Path, options: &MachineOptions) -> io::Result<Machine> {
        let (frontend, transport) = Machine::power_on(socket, options)?;
        let client = Client::mount(transport, options.msize)?;
        Ok(Machine { frontend, client })
    }

    /// As [`Machine::boot`], without a mount.
    pub fn power_on(socket: &Path, options: &MachineOptions) -> io::Result<(Frontend, RingTransport)> {
        let memory = GuestMemory::new(&options.memory)?;
        let mut ring = Ring::new(&memory, options.ring);
        let mut frontend = Frontend::connect(socket, options.vmm, &memory)?;
        frontend.start(&mut ring)?;
        let transport = RingTransport::new(&memory, ring, options.payload, options.pages);
        Ok((frontend, transport))
    }

    /// The ring.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.client.transport().ring
    }

    /// QEMU's `stop`; gives where the device stopped.
    pub fn stop(&mut self) -> io::Result<u16> {
        self.frontend.stop()
    }

    /// QEMU's `cont` after a stop at `base`. Nobody kicks: what was left in the ring the device must find by itself.
    pub fn cont(&mut self, base: u16) -> io::Result<()> {
        self.frontend.start_at(&mut self.client.transport().ring, base)
    }

    /// Unplugs the device and plugs another in on the same connection, as QEMU does with one chardev; the mount is not
    /// repeated.
    pub fn replug(&mut self) -> io::Result<()> {
        self.frontend.reset()?;
        self.frontend.replug()?;
        self.client.transport().restart();
        self.frontend.start(&mut self.client.transport().ring)
    }

    /// A reset by the guest: the queue is stopped and set up anew, empty; the mount is not repeated.
    pub fn reset_queue(&mut self) -> io::Result<()> {
        self.frontend.reset()?;
        self.client.transport().restart();
        self.frontend.start(&mut self.client.transport().ring)
    }
}
