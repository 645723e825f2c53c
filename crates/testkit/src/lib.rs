//! Plays the guest: guest memory and the driver's side of the ring, front-ends that bring a vhost-user device up as
//! QEMU, cloud-hypervisor and crosvm do, and a 9P client on top.

pub mod frontend;
pub mod layout;
pub mod memory;
pub mod qtest;
pub mod ring;
pub mod vhost_user;

pub use frontend::{Frontend, Vmm};
pub use layout::{Pages, Slot};
pub use memory::{Area, GuestMemory, Region};
pub use qtest::{QtestDevice, QtestOptions, find_qemu};
pub use ring::{Descriptor, Piece, Ring, RingOptions};
