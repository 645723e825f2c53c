//! Any T-message, any R-message.

use crate::codec::{DecodeError, HEADER_LEN, Header, Message, split_frame};
use crate::*;

macro_rules! any_message {
    ($(#[$meta:meta])* $any:ident<$frame:lifetime>: $($variant:ident($message:ident $(<$lt:lifetime>)?),)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $any<$frame> {
            $(#[doc = concat!("[`", stringify!($message), "`]")] $variant($message $(<$lt>)?),)*
            /// A type that is none of these; the body is not looked at.
            Unknown {
                /// The type on the wire.
                kind: u8,
            },
        }

        impl<$frame> $any<$frame> {
            /// Reads the message at the front of `frame`, and its tag. Bytes after it, or left over in it, are
            /// ignored.
            #[inline]
            pub fn decode(frame: &$frame [u8]) -> Result<(u16, Self), DecodeError> {
                let (header, body) = split_frame(frame)?;
                let message = match header.kind {
                    $($message::KIND => $message::decode_body(body).map($any::$variant),)*
                    kind => Ok($any::Unknown { kind }),
                };
                match message {
                    Ok(message) => Ok((header.tag, message)),
                    Err(kind) => Err(DecodeError { tag: Some(header.tag), kind }),
                }
            }

            /// Writes the message to the front of `buf` and says how many bytes it took. `None` when it does not
            /// fit, or has a string, data or a list longer than its count can say.
            pub fn encode(&self, tag: u16, buf: &mut [u8]) -> Option<usize> {
                match self {
                    $($any::$variant(message) => message.encode(tag, buf),)*
                    &$any::Unknown { kind } => {
                        let header = Header { size: 7, kind, tag };
                        buf.first_chunk_mut().map(|front| *front = header.to_bytes()).map(|()| HEADER_LEN)
                    }
                }
            }

            /// The type on the wire.
            pub fn kind(&self) -> u8 {
                match self {
                    $($any::$variant(_) => $message::KIND,)*
                    &$any::Unknown { kind } => kind,
                }
            }
        }

        $(
            impl<$frame> From<$message $(<$lt>)?> for $any<$frame> {
                fn from(message: $message $(<$lt>)?) -> Self {
                    $any::$variant(message)
                }
            }
        )*
    };
}

any_message! {
    /// A request. A Twrite decodes without its payload as well: see [`Twrite::data`].
    Tmessage<'a>:
    Version(Tversion<'a>),
    Attach(Tattach<'a>),
    Flush(Tflush),
    Walk(Twalk<'a>),
    Clunk(Tclunk),
    Remove(Tremove),
    Lopen(Tlopen),
    Lcreate(Tlcreate<'a>),
    Read(Tread),
    Write(Twrite<'a>),
    Readdir(Treaddir),
    Mkdir(Tmkdir<'a>),
    Mknod(Tmknod<'a>),
    Rename(Trename<'a>),
    Renameat(Trenameat<'a>),
    Unlinkat(Tunlinkat<'a>),
    Getattr(Tgetattr),
    Setattr(Tsetattr),
    Xattrwalk(Txattrwalk<'a>),
    Xattrcreate(Txattrcreate<'a>),
    Lock(Tlock<'a>),
    Getlock(Tgetlock<'a>),
    Link(Tlink<'a>),
    Symlink(Tsymlink<'a>),
    Readlink(Treadlink),
    Fsync(Tfsync),
    Statfs(Tstatfs),
}

any_message! {
    /// An answer.
    Rmessage<'a>:
    Version(Rversion<'a>),
    Lerror(Rlerror),
    Attach(Rattach),
    Flush(Rflush),
    Walk(Rwalk<'a>),
    Clunk(Rclunk),
    Remove(Rremove),
    Lopen(Rlopen),
    Lcreate(Rlcreate),
    Read(Rread<'a>),
    Write(Rwrite),
    Readdir(Rreaddir<'a>),
    Mkdir(Rmkdir),
    Mknod(Rmknod),
    Rename(Rrename),
    Renameat(Rrenameat),
    Unlinkat(Runlinkat),
    Getattr(Rgetattr),
    Setattr(Rsetattr),
    Xattrwalk(Rxattrwalk),
    Xattrcreate(Rxattrcreate),
    Lock(Rlock),
    Getlock(Rgetlock<'a>),
    Link(Rlink),
    Symlink(Rsymlink),
    Readlink(Rreadlink<'a>),
    Fsync(Rfsync),
    Statfs(Rstatfs),
}
