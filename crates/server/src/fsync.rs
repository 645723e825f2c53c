//! Tfsync.

use wire::{Rfsync, Tfsync};

use crate::failure::Failure;
use crate::pin::NOGID;
use crate::reply::Reply;
use crate::request::{How, Outcome};
use crate::session::Session;
use crate::table::State;

impl Session {
    /// Answers when the file or directory is on storage. EBADF for a fid that is not open.
    pub(crate) fn fsync(&self, m: &Tfsync, reply: &Reply<'_>, how: How) -> Result<Outcome, Failure> {
        let pin = self.pin(m.fid, libc::ENOENT)?;
        if !matches!(pin.state(), State::File | State::Dir) {
            return Err(Failure::new(libc::EBADF));
        }
        if how == How::Inline {
            return Ok(Outcome::Defer);
        }
        self.share
            .fsync(pin.caller(NOGID), pin.file()?, m.datasync != 0)?;
        Ok(reply.send(&Rfsync))
    }
}
