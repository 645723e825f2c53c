//! Tattach.

use host::Caller;
use wire::{Rattach, Tattach};

use crate::failure::Failure;
use crate::pin::NOGID;
use crate::session::Session;
use crate::table::Tables;
use crate::walk::qid;

impl Session {
    /// A fid of the root for `n_uname`. There is one tree and no authentication: `aname`, `uname` and `afid` are
    /// not looked at, as in QEMU. EINVAL when the fid is in use.
    pub(crate) fn attach(&self, m: &Tattach<'_>) -> Result<Rattach, Failure> {
        let epoch = self.with(|tables| tables.vacant(m.fid).map(|()| tables.epoch()))?;
        let caller = Caller {
            uid: m.n_uname,
            gid: NOGID,
        };
        let (fd, id) = self.share.root(caller)?;
        self.with(|tables| {
            let Tables { nodes, dead, .. } = tables;
            let node = nodes.adopt(
                fd,
                &id,
                None,
                &|fd, handle| self.share.is_of_handle(fd, handle),
                dead,
            );
            nodes.set_root(node);
            tables.add(m.fid, m.n_uname, node, epoch)
        })?;
        Ok(Rattach { qid: qid(&id) })
    }
}
