//! Tread and Twrite.
//!
//! Payloads are the one thing that a server does not have at hand as bytes: it reads and writes them where they are.
//! So a Twrite may be decoded or encoded without its payload, and an Rread's header written on its own.

use core::fmt;

use crate::codec::{DecodeErrorKind, Field, Header, Message, Payload, Reader, Writer, messages};
use crate::types::{RREAD, TWRITE};

messages! { 'a:
    /// Reads from an open file, or from the fid of a Txattrwalk.
    Tread = TREAD {
        /// The fid.
        fid: u32,
        /// Where to begin, in bytes.
        offset: u64,
        /// Bytes to read at most.
        count: u32,
    }

    /// How much of a Twrite is done.
    Rwrite = RWRITE {
        /// Bytes written.
        count: u32,
    }
}

/// What was read: `count[4] data[count]`. Nothing at the end of the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rread<'a> {
    /// The bytes.
    pub data: &'a [u8],
}

impl Rread<'_> {
    /// Bytes of an Rread before its data.
    pub const HEADER_LEN: usize = 11;
}

impl<'a> Message<'a> for Rread<'a> {
    const KIND: u8 = RREAD;

    #[inline]
    fn decode_body(body: &'a [u8]) -> Result<Self, DecodeErrorKind> {
        counted(body).map(|data| Rread { data })
    }

    #[inline]
    fn body_len(&self) -> Option<usize> {
        counted_len(self.data)
    }

    #[inline]
    fn encode_body(&self, body: &mut [u8]) -> Option<()> {
        put_counted(self.data, body)
    }
}

impl fmt::Debug for Rread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rread")
            .field("data", &Payload(self.data.len()))
            .finish()
    }
}

/// Writes the 11 bytes of an Rread that stand before `count` bytes of data, with the size of the whole, to the front
/// of `buf`, and says how many they are. `None` when they do not fit or the whole is larger than a size can be.
#[inline]
pub fn encode_rread_header(buf: &mut [u8], tag: u16, count: u32) -> Option<usize> {
    encode_counted_header(buf, RREAD, tag, count)
}

/// Writes to an open file, or to the fid of a Txattrcreate: `fid[4] offset[8] count[4] data[count]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Twrite<'a> {
    /// The fid.
    pub fid: u32,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// Bytes to write.
    pub count: u32,
    /// What there is of them, at most `count`. Decoded from a frame that stops early, or whose size field leaves the
    /// payload out (old Linux clients' zero-copy writes), it is less. Encoded with less, the size field still
    /// counts the whole payload, which is then for the caller to send.
    pub data: &'a [u8],
}

impl Twrite<'_> {
    /// Bytes of a Twrite before its data.
    pub const HEADER_LEN: usize = 23;
    const FIXED: usize = Self::HEADER_LEN - Header::LEN;

    fn missing(&self) -> Option<u32> {
        self.count.checked_sub(u32::try_from(self.data.len()).ok()?)
    }
}

impl<'a> Message<'a> for Twrite<'a> {
    const KIND: u8 = TWRITE;

    #[inline]
    fn decode_body(body: &'a [u8]) -> Result<Self, DecodeErrorKind> {
        let (fixed, rest) = body.split_at_checked(Self::FIXED).ok_or(DecodeErrorKind::Short)?;
        let mut from = Reader::new(fixed);
        let fid = Field::get(&mut from)?;
        let offset = Field::get(&mut from)?;
        let count = Field::get(&mut from)?;
        let whole = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        Ok(Twrite {
            fid,
            offset,
            count,
            data: whole.unwrap_or(rest),
        })
    }

    /// Also `None` when there is more data than `count`.
    #[inline]
    fn body_len(&self) -> Option<usize> {
        self.missing()?;
        self.data.len().checked_add(Self::FIXED)
    }

    #[inline]
    fn encode_body(&self, body: &mut [u8]) -> Option<()> {
        let mut to = Writer::new(body);
        self.fid.put(&mut to)?;
        self.offset.put(&mut to)?;
        self.count.put(&mut to)?;
        to.bytes(self.data)
    }

    #[inline]
    fn unsent(&self) -> Option<u32> {
        self.missing()
    }
}

impl fmt::Debug for Twrite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Twrite")
            .field("fid", &self.fid)
            .field("offset", &self.offset)
            .field("count", &self.count)
            .field("data", &Payload(self.data.len()))
            .finish()
    }
}

/// The data of a body `count[4] data[count]`.
#[inline]
pub(crate) fn counted(body: &[u8]) -> Result<&[u8], DecodeErrorKind> {
    let mut from = Reader::new(body);
    let count = u32::get(&mut from)?;
    from.bytes(usize::try_from(count).map_err(|_| DecodeErrorKind::Short)?)
}

#[inline]
pub(crate) fn counted_len(data: &[u8]) -> Option<usize> {
    u32::try_from(data.len()).ok()?;
    data.len().checked_add(4)
}

#[inline]
pub(crate) fn put_counted(data: &[u8], body: &mut [u8]) -> Option<()> {
    let mut to = Writer::new(body);
    u32::try_from(data.len()).ok()?.put(&mut to)?;
    to.bytes(data)
}

#[inline]
pub(crate) fn encode_counted_header(buf: &mut [u8], kind: u8, tag: u16, count: u32) -> Option<usize> {
    let mut to = Writer::new(buf.get_mut(..Rread::HEADER_LEN)?);
    let size = count.checked_add(11)?;
    to.put(Header { size, kind, tag }.to_bytes())?;
    to.put(count.to_le_bytes())?;
    Some(Rread::HEADER_LEN)
}
