//! Requests that give much storage back. The file system frees blocks and drops pages before the call returns, 0.03 to
//! 0.3 ms for each MiB, and all that is small and ready would wait meanwhile: these are not for the queue thread.
//!
//! Linux's client holds a fid of what it removes, so it is not Tunlinkat that frees the blocks but the Tclunk after it.

use wire::{P9_DOTL_TRUNC, P9_SETATTR_SIZE, Tmessage};

use crate::session::Session;
use crate::table::Tables;

/// Bytes that are much: what takes longer than handing a request to another thread.
const MUCH: u64 = 1 << 20;

impl Session {
    /// Whether to answer `message` gives much back. One fstat, and only for those that might; a Tclunk sees to it
    /// itself, with [`Session::last_of_much`].
    #[inline]
    pub(crate) fn frees_much(&self, message: &Tmessage<'_>) -> bool {
        match message {
            Tmessage::Setattr(m) if m.valid & P9_SETATTR_SIZE != 0 => self.shrinks_much(m.fid, m.size),
            Tmessage::Lopen(m) if m.flags & P9_DOTL_TRUNC != 0 => self.shrinks_much(m.fid, 0),
            Tmessage::Remove(m) => self.stores(m.fid, |bytes, links| links <= 1 && bytes >= MUCH),
            _ => false,
        }
    }

    fn shrinks_much(&self, fid: u32, size: u64) -> bool {
        self.stores(fid, |bytes, _| bytes.saturating_sub(size) >= MUCH)
    }

    /// Whether `are` so the bytes and names of the fid's object; not of one that would have to be found first.
    fn stores(&self, fid: u32, are: impl FnOnce(u64, u64) -> bool) -> bool {
        let stored = self.at_once(fid, |caller, object| self.share.stored(caller, object));
        matches!(stored, Some(Ok((bytes, links))) if are(bytes, links))
    }

    /// Whether the fid `number` is all that keeps a large file without a name.
    #[inline]
    pub(crate) fn last_of_much(&self, tables: &mut Tables, number: u32) -> bool {
        let stored = tables
            .last_of_removed(number)
            .map(|(caller, object)| self.share.stored(caller, &object));
        matches!(stored, Some(Ok((bytes, 0))) if bytes >= MUCH)
    }
}
