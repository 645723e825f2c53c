//! `squash` (also `none`): as passthrough, but an owner or group that the process may not give an object is
//! reported as given; the object keeps the owner it has. Everything else is honest. Made for a process without
//! privileges, and the same as passthrough for one that has them all.

use std::io;

use crate::host_objects::{HostObjects, OwnerRule};

/// The rule of squash.
pub struct Forgiven;

impl OwnerRule for Forgiven {
    fn refused(_error: io::Error) -> io::Result<()> {
        Ok(())
    }
}

/// The mode.
pub type Squash = HostObjects<Forgiven>;
