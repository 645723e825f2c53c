//! How fields become bytes and back, and the macro that writes a message's codec from its fields.

use core::fmt;
use core::mem;

/// Bytes before a message's body: `size[4] type[1] tag[2]`.
pub const HEADER_LEN: usize = 7;

/// Why a frame is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The tag to answer to; `None` when not even the 7 bytes of a header were there.
    pub tag: Option<u16>,
    /// What is wrong.
    pub kind: DecodeErrorKind,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// The bytes end before the size field, or a count or string in the body, says they do.
    Short,
    /// The size field is less than the 7 bytes of a header.
    BadSize,
    /// A walk of more than [`MAXWELEM`](crate::MAXWELEM) names, or its answer of more qids.
    TooManyNames,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            DecodeErrorKind::Short => "message is shorter than it says",
            DecodeErrorKind::BadSize => "message size is less than its header",
            DecodeErrorKind::TooManyNames => "walk of more than 16 names",
        })?;
        match self.tag {
            Some(tag) => write!(f, " (tag {tag})"),
            None => Ok(()),
        }
    }
}

impl core::error::Error for DecodeError {}

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole message, this field included. Not validated.
    pub size: u32,
    /// Message type, e.g. [`TWALK`](crate::TWALK).
    pub kind: u8,
    /// The client's name for the request.
    pub tag: u16,
}

impl Header {
    /// Bytes of a header on the wire.
    pub const LEN: usize = HEADER_LEN;

    /// Reads the first 7 bytes; `None` if there are fewer.
    #[inline]
    pub fn decode(frame: &[u8]) -> Option<Header> {
        let &[s0, s1, s2, s3, kind, t0, t1] = frame.first_chunk::<HEADER_LEN>()?;
        Some(Header {
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            kind,
            tag: u16::from_le_bytes([t0, t1]),
        })
    }

    /// The 7 bytes on the wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [s0, s1, s2, s3] = self.size.to_le_bytes();
        let [t0, t1] = self.tag.to_le_bytes();
        [s0, s1, s2, s3, self.kind, t0, t1]
    }
}

/// Splits a frame into its header and the bytes of its body: what the size field covers, and, for a frame that
/// stops early, what there is of it.
#[inline]
pub(crate) fn split_frame(frame: &[u8]) -> Result<(Header, &[u8]), DecodeError> {
    let Some((header, rest)) = Header::decode(frame).zip(frame.get(HEADER_LEN..)) else {
        return Err(DecodeError {
            tag: None,
            kind: DecodeErrorKind::Short,
        });
    };
    let fail = |kind| {
        Err(DecodeError {
            tag: Some(header.tag),
            kind,
        })
    };
    let Ok(size) = usize::try_from(header.size) else {
        return fail(DecodeErrorKind::Short);
    };
    let Some(body_len) = size.checked_sub(HEADER_LEN) else {
        return fail(DecodeErrorKind::BadSize);
    };
    match rest.get(..body_len) {
        Some(body) => Ok((header, body)),
        // Who decodes a Twrite may have left its payload where it is.
        None if header.kind == crate::TWRITE => Ok((header, rest)),
        None => fail(DecodeErrorKind::Short),
    }
}

/// One message of a known type.
pub trait Message<'a>: Sized {
    /// The message type on the wire.
    const KIND: u8;

    /// Reads the message from its body, the bytes after the header. What follows the last field is ignored, as
    /// Linux and QEMU do.
    fn decode_body(body: &'a [u8]) -> Result<Self, DecodeErrorKind>;

    /// Bytes of the body on the wire. `None` when a string is longer than 65,535 bytes, data longer than 2^32 - 1,
    /// or a walk longer than 16 names: such a message does not exist.
    fn body_len(&self) -> Option<usize>;

    /// Writes the body to the front of `body`, which has at least [`body_len`](Message::body_len) bytes.
    fn encode_body(&self, body: &mut [u8]) -> Option<()>;

    /// Bytes that belong to the message, come after [`body_len`](Message::body_len), and are for the caller to send:
    /// the rest of a [`Twrite`](crate::Twrite)'s payload, 0 for all others.
    #[inline]
    fn unsent(&self) -> Option<u32> {
        Some(0)
    }

    /// Writes the message to the front of `buf` and says how many bytes it took. `None` when it does not fit or does
    /// not exist; `buf` then holds nothing of use.
    #[inline]
    fn encode(&self, tag: u16, buf: &mut [u8]) -> Option<usize> {
        let len = self.body_len()?.checked_add(HEADER_LEN)?;
        let size = u32::try_from(len).ok()?.checked_add(self.unsent()?)?;
        let (head, body) = buf.get_mut(..len)?.split_first_chunk_mut()?;
        *head = Header {
            size,
            kind: Self::KIND,
            tag,
        }
        .to_bytes();
        self.encode_body(body)?;
        Some(len)
    }
}

/// Takes fields from the front of a body.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline(always)]
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Reader { rest: body }
    }

    #[inline(always)]
    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeErrorKind> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(DecodeErrorKind::Short)?;
        self.rest = tail;
        Ok(*head)
    }

    #[inline(always)]
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeErrorKind> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(DecodeErrorKind::Short)?;
        self.rest = tail;
        Ok(head)
    }

    /// What is not read yet.
    #[inline(always)]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Puts fields at the front of a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'b> {
    rest: &'b mut [u8],
}

impl<'b> Writer<'b> {
    #[inline(always)]
    pub(crate) fn new(body: &'b mut [u8]) -> Self {
        Writer { rest: body }
    }

    #[inline(always)]
    pub(crate) fn put<const N: usize>(&mut self, bytes: [u8; N]) -> Option<()> {
        let (head, tail) = mem::take(&mut self.rest).split_first_chunk_mut()?;
        *head = bytes;
        self.rest = tail;
        Some(())
    }

    /// The next `len` bytes as a writer of their own: what is put there needs no further check.
    #[inline(always)]
    pub(crate) fn part(&mut self, len: usize) -> Option<Writer<'b>> {
        let (head, tail) = mem::take(&mut self.rest).split_at_mut_checked(len)?;
        self.rest = tail;
        Some(Writer { rest: head })
    }

    #[inline(always)]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let (head, tail) = mem::take(&mut self.rest).split_at_mut_checked(bytes.len())?;
        head.copy_from_slice(bytes);
        self.rest = tail;
        Some(())
    }
}

/// A type that stands in a message.
pub(crate) trait Field<'a>: Sized {
    /// The fewest bytes it takes.
    const LEAST: usize;
    /// Whether it always takes as many.
    const FIXED: bool;

    /// Bytes it takes; `None` when its length field cannot say so.
    fn len(&self) -> Option<usize>;
    fn get(from: &mut Reader<'a>) -> Result<Self, DecodeErrorKind>;
    fn put(&self, to: &mut Writer<'_>) -> Option<()>;
    fn show(&self) -> impl fmt::Debug;
}

macro_rules! integer_field {
    ($($int:ty),*) => {$(
        impl Field<'_> for $int {
            const LEAST: usize = size_of::<$int>();
            const FIXED: bool = true;

            #[inline(always)]
            fn len(&self) -> Option<usize> {
                Some(Self::LEAST)
            }

            #[inline(always)]
            fn get(from: &mut Reader<'_>) -> Result<Self, DecodeErrorKind> {
                from.take().map(<$int>::from_le_bytes)
            }

            #[inline(always)]
            fn put(&self, to: &mut Writer<'_>) -> Option<()> {
                to.put(self.to_le_bytes())
            }

            fn show(&self) -> impl fmt::Debug {
                *self
            }
        }
    )*};
}

integer_field!(u8, u16, u32, u64);

/// A string: `len[2]` and that many bytes, no terminator, no encoding implied.
impl<'a> Field<'a> for &'a [u8] {
    const LEAST: usize = 2;
    const FIXED: bool = false;

    #[inline(always)]
    fn len(&self) -> Option<usize> {
        let bytes = <[u8]>::len(self);
        (bytes <= usize::from(u16::MAX)).then(|| bytes + 2)
    }

    #[inline(always)]
    fn get(from: &mut Reader<'a>) -> Result<Self, DecodeErrorKind> {
        let len = u16::get(from)?;
        from.bytes(usize::from(len))
    }

    #[inline(always)]
    fn put(&self, to: &mut Writer<'_>) -> Option<()> {
        u16::try_from(<[u8]>::len(self)).ok()?.put(to)?;
        to.bytes(self)
    }

    fn show(&self) -> impl fmt::Debug {
        Text(self)
    }
}

/// Bytes as a log shows them: in quotes, what is not printable ASCII escaped.
pub(crate) struct Text<'a>(pub(crate) &'a [u8]);

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A payload as a log shows it: only how much there is.
pub(crate) struct Payload(pub(crate) usize);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0)
    }
}

/// Declares messages as the protocol does, fields in the order of the wire, and derives the rest. The lifetime in
/// front is that of the frame.
///
/// A body is checked once against the sum of its fields' least lengths; for a message of integers alone that is
/// the only check, and the field accesses become plain loads and stores.
macro_rules! messages {
    ($frame:lifetime: $(
        $(#[$meta:meta])*
        $name:ident $(<$lt:lifetime>)? = $kind:ident {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name $(<$lt>)? {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl<$frame> $crate::codec::Message<$frame> for $name $(<$lt>)? {
            const KIND: u8 = $crate::types::$kind;

            #[inline]
            fn decode_body(body: &$frame [u8]) -> Result<Self, $crate::codec::DecodeErrorKind> {
                use $crate::codec::{DecodeErrorKind, Field, Reader};
                let least = const { 0 $(+ <$type as Field>::LEAST)* };
                let fixed = const { true $(&& <$type as Field>::FIXED)* };
                let front = body.get(..least).ok_or(DecodeErrorKind::Short)?;
                let mut from = Reader::new(if fixed { front } else { body });
                Ok(Self { $($field: Field::get(&mut from)?,)* })
            }

            #[inline]
            fn body_len(&self) -> Option<usize> {
                use $crate::codec::Field;
                let len = 0usize;
                $(let len = len.checked_add(Field::len(&self.$field)?)?;)*
                Some(len)
            }

            #[inline]
            fn encode_body(&self, body: &mut [u8]) -> Option<()> {
                use $crate::codec::{Field, Writer};
                let mut to = Writer::new(body);
                $(Field::put(&self.$field, &mut to)?;)*
                Some(())
            }
        }

        impl $(<$lt>)? core::fmt::Debug for $name $(<$lt>)? {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($name))
                    $(.field(stringify!($field), &$crate::codec::Field::show(&self.$field)))*
                    .finish()
            }
        }
    )*};
}

/// Declares messages that are all header.
macro_rules! empty_messages {
    ($($(#[$meta:meta])* $name:ident = $kind:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name;

        impl $crate::codec::Message<'_> for $name {
            const KIND: u8 = $crate::types::$kind;

            #[inline]
            fn decode_body(_: &[u8]) -> Result<Self, $crate::codec::DecodeErrorKind> {
                Ok($name)
            }

            #[inline]
            fn body_len(&self) -> Option<usize> {
                Some(0)
            }

            #[inline]
            fn encode_body(&self, _: &mut [u8]) -> Option<()> {
                Some(())
            }
        }
    )*};
}

pub(crate) use {empty_messages, messages};
