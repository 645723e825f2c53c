//! Tstatfs.

use wire::{Rstatfs, Tstatfs};

use crate::failure::Failure;
use crate::pin::NOGID;
use crate::session::Session;

impl Session {
    /// The figures of the file system that the fid's object is on.
    pub(crate) fn statfs(&self, m: &Tstatfs) -> Result<Rstatfs, Failure> {
        let pin = self.pin(m.fid, libc::ENOENT)?;
        pin.is_object()?;
        let fs = self.share.statfs(pin.caller(NOGID), &pin.object()?)?;
        Ok(Rstatfs {
            kind: fs.kind,
            bsize: fs.bsize,
            blocks: fs.blocks,
            bfree: fs.bfree,
            bavail: fs.bavail,
            files: fs.files,
            ffree: fs.ffree,
            fsid: fs.fsid,
            namelen: fs.namelen,
        })
    }
}
