//! The 9P2000.L messages: decode from a byte slice by reference, encode into one, T and R alike.
//!
//! ```text
//! size[4] type[1] tag[2] body      all integers little-endian; size counts itself
//! ```
//!
//! Each message is a struct whose fields stand in the order of the wire, one file per message family.
//! [`Tmessage`] and [`Rmessage`] tell them apart by type; [`Message`] encodes or decodes one that is known.
//!
//! What holds for all of it: no input makes it panic, nothing is allocated (the crate has no allocator to call),
//! and no length is believed before the bytes are seen to be there. What a field means, and whether a name, a flag
//! or a fid is acceptable, is for the caller to say.

#![no_std]
#![forbid(unsafe_code)]

mod codec;
mod message;
mod types;

mod attach;
mod attr;
mod dir;
mod flush;
mod fsync;
mod io;
mod link;
mod lock;
mod open;
mod statfs;
mod version;
mod walk;
mod xattr;

pub use attach::*;
pub use attr::*;
pub use codec::{DecodeError, DecodeErrorKind, Header, Message};
pub use dir::*;
pub use flush::*;
pub use fsync::*;
pub use io::*;
pub use link::*;
pub use lock::*;
pub use message::*;
pub use open::*;
pub use statfs::*;
pub use types::*;
pub use version::*;
pub use walk::*;
pub use xattr::*;
