//! Txattrwalk and Txattrcreate: extended attributes are read and written through fids of their own.

use crate::codec::{empty_messages, messages};

messages! { 'a:
    /// Makes `newfid` one from which Tread reads an extended attribute, or the list of their names.
    Txattrwalk<'a> = TXATTRWALK {
        /// The file's fid.
        fid: u32,
        /// The new fid.
        newfid: u32,
        /// The attribute's name; empty for the list.
        name: &'a [u8],
    }

    /// The new fid is there.
    Rxattrwalk = RXATTRWALK {
        /// Bytes of the value, or of the list.
        size: u64,
    }

    /// Makes of `fid` one to which Twrite writes an extended attribute. Tclunk sets it.
    Txattrcreate<'a> = TXATTRCREATE {
        /// The file's fid, then the attribute's.
        fid: u32,
        /// The attribute's name.
        name: &'a [u8],
        /// Bytes that will be written; Linux removes an attribute with 0 and
        /// [`P9_XATTR_REPLACE`](crate::P9_XATTR_REPLACE).
        size: u64,
        /// `P9_XATTR_*` or 0.
        flags: u32,
    }
}

empty_messages! {
    /// The fid takes the value.
    Rxattrcreate = RXATTRCREATE;
}
