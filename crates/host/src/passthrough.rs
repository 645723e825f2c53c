//! `passthrough` (also `default`): owner, group, mode, set-id bits, devices, FIFOs, sockets, symlinks, xattrs and ACLs
//! are the host's own. A process that may not give an object its owner refuses to make it.

use std::io;

use crate::host_objects::{HostObjects, OwnerRule};

/// The rule of passthrough.
pub struct Exact;

impl OwnerRule for Exact {
    fn refused(error: io::Error) -> io::Result<()> {
        Err(error)
    }
}

/// The mode.
pub type Passthrough = HostObjects<Exact>;
