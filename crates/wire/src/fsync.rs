//! Tfsync.

use crate::codec::{DecodeErrorKind, Field, Message, Reader, Writer, empty_messages};
use crate::types::TFSYNC;

/// Flushes an open file to storage: `fid[4] datasync[4]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tfsync {
    /// The fid.
    pub fid: u32,
    /// Not 0: the data alone, as fdatasync(2). The protocol's text does not have this field, so a message may come
    /// without it, which is 0; Linux and QEMU have it.
    pub datasync: u32,
}

impl<'a> Message<'a> for Tfsync {
    const KIND: u8 = TFSYNC;

    #[inline]
    fn decode_body(body: &'a [u8]) -> Result<Self, DecodeErrorKind> {
        let mut from = Reader::new(body);
        let fid = u32::get(&mut from)?;
        let datasync = if from.rest().is_empty() {
            0
        } else {
            u32::get(&mut from)?
        };
        Ok(Tfsync { fid, datasync })
    }

    #[inline]
    fn body_len(&self) -> Option<usize> {
        Some(8)
    }

    #[inline]
    fn encode_body(&self, body: &mut [u8]) -> Option<()> {
        let mut to = Writer::new(body);
        self.fid.put(&mut to)?;
        self.datasync.put(&mut to)
    }
}

empty_messages! {
    /// It is on storage.
    Rfsync = RFSYNC;
}
