//! Tversion.

use std::sync::atomic::Ordering;
use std::time::Duration;

use host::Shown;
use wire::{Rversion, Tversion, VERSION_9P2000_L, VERSION_UNKNOWN};

use crate::failure::Failure;
use crate::session::Session;

/// The smallest msize, as QEMU and Linux have it.
const LEAST_MSIZE: u32 = 4096;

/// How long a Tversion waits for what a former session has left to be freed.
const BEHIND: Duration = Duration::from_secs(10);

impl Session {
    /// Begins a session: all fids are gone, whatever the answer. Another dialect than 9P2000.L is answered
    /// "unknown"; EMSGSIZE for an msize below 4096; EAGAIN when a client begins one large session after the other faster
    /// than they can be freed.
    pub(crate) fn version(&self, m: &Tversion<'_>) -> Result<Rversion<'static>, Failure> {
        if self.is_behind() && !self.closing.wait(BEHIND) {
            return Err(Failure::new(libc::EAGAIN));
        }
        self.msize.store(0, Ordering::Relaxed);
        self.reset();
        if m.version != VERSION_9P2000_L {
            log::warn!(
                "The guest speaks \"{}\", and this server nothing but 9P2000.L: mount with -o version=9p2000.L.",
                Shown::end(m.version, 64)
            );
            return Ok(Rversion {
                msize: m.msize,
                version: VERSION_UNKNOWN,
            });
        }
        if m.msize < LEAST_MSIZE {
            return Err(Failure::new(libc::EMSGSIZE));
        }
        let msize = m.msize.min(self.limits.max_msize.max(LEAST_MSIZE));
        self.msize.store(msize, Ordering::Relaxed);
        Ok(Rversion {
            msize,
            version: VERSION_9P2000_L,
        })
    }
}
