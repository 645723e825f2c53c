//! Tlink, Tsymlink, Treadlink.

use wire::{Message, Rlink, Rreadlink, Rsymlink, Tlink, Treadlink, Tsymlink};

use crate::failure::Failure;
use crate::pin::NOGID;
use crate::reply::Reply;
use crate::request::{Outcome, Scratch, room};
use crate::session::{Session, name};
use crate::walk::qid;

/// One more than the longest target (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// Bytes of an Rreadlink before the target.
const HEADER: usize = 9;

impl Session {
    /// A further name for the object of `fid`, open or not.
    pub(crate) fn link(&self, m: &Tlink<'_>) -> Result<Rlink, Failure> {
        let name = name(m.name, libc::EEXIST)?;
        let dir = self.pin(m.dfid, libc::ENOENT)?;
        let pin = self.pin(m.fid, libc::ENOENT)?;
        pin.is_object()?;
        let (caller, target) = (dir.caller(NOGID), dir.directory()?);
        self.named(&pin, |object| self.share.link(caller, object, &target, &name))?;
        Ok(Rlink)
    }

    /// Makes a symlink. ENOENT for an empty target, EINVAL for a NUL in it, ENAMETOOLONG from 4096 bytes on.
    pub(crate) fn symlink(&self, m: &Tsymlink<'_>) -> Result<Rsymlink, Failure> {
        let name = name(m.name, libc::EEXIST)?;
        let dir = self.pin(m.dfid, libc::EINVAL)?;
        let object = dir.directory()?;
        if m.target.is_empty() {
            return Err(Failure::new(libc::ENOENT));
        }
        if m.target.contains(&0) {
            return Err(Failure::new(libc::EINVAL));
        }
        if m.target.len() >= PATH_MAX {
            return Err(Failure::new(libc::ENAMETOOLONG));
        }
        let id = self.share.symlink(dir.caller(m.gid), &object, &name, m.target)?;
        Ok(Rsymlink { qid: qid(&id) })
    }

    /// A symlink's target, whole: EMSGSIZE when the reply has no room for it. EINVAL for anything but a symlink.
    pub(crate) fn readlink(
        &self,
        m: &Treadlink,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
    ) -> Result<Outcome, Failure> {
        let pin = self.pin(m.fid, libc::ENOENT)?;
        pin.is_object()?;
        let target = room(&mut scratch.entries, PATH_MAX);
        let caller = pin.caller(NOGID);
        let len = self.named(&pin, |object| self.share.readlink(caller, object, target))?;
        let message = Rreadlink {
            target: target.get(..len).unwrap_or_default(),
        };
        if self.reply_room(reply) < HEADER + len {
            return Err(Failure::new(libc::EMSGSIZE));
        }
        let out = room(&mut scratch.bytes, HEADER + PATH_MAX);
        let len = message
            .encode(reply.tag, out)
            .ok_or(Failure::new(libc::EMSGSIZE))?;
        Ok(reply.send_bytes(&out[..len]))
    }
}
