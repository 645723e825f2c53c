//! Plays the guest: guest memory and the driver's side of the ring, front-ends that bring a vhost-user device up as
//! QEMU, cloud-hypervisor and crosvm do, and a 9P client on top.
//!
//! ```no_run
//! # use testkit::*;
//! # use std::path::Path;
//! let memory = GuestMemory::new(&[(0, 64 << 20)])?;
//! let mut ring = Ring::new(&memory, RingOptions::default());
//! let mut frontend = Frontend::connect(Path::new("/run/share.sock"), Vmm::Qemu, &memory)?;
//! frontend.start(&mut ring)?;
//! let transport = RingTransport::new(&memory, ring, 128 << 10, Pages::Adjacent);
//! let mut client = Client::mount(transport, 131_096)?;
//! client.walk(0, 1, &["etc", "hostname"])?;
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod client;
pub mod frontend;
pub mod fuse;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod program;
pub mod qtest;
pub mod random;
pub mod ring;
pub mod scenario;
pub mod transport;
pub mod vhost_user;

pub use client::{Client, Entry, Errno, Lock};
pub use frontend::{Frontend, Vmm};
pub use fuse::Fuse;
pub use layout::{Pages, Slot};
pub use machine::{Machine, MachineOptions};
pub use memory::{Area, GuestMemory, Region};
pub use program::Program;
pub use qtest::{QtestDevice, QtestOptions, find_qemu};
pub use random::Random;
pub use ring::{Descriptor, Piece, Ring, RingOptions};
pub use transport::{Direct, RingTransport, Transport};
