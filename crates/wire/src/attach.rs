//! Tattach: the first fid of a user.

use crate::Qid;
use crate::codec::messages;

messages! { 'a:
    /// Makes `fid` the root of the tree `aname`, for one user.
    Tattach<'a> = TATTACH {
        /// The new fid.
        fid: u32,
        /// The fid of an authentication, or [`NOFID`](crate::NOFID).
        afid: u32,
        /// The user by name; empty when Linux goes by number.
        uname: &'a [u8],
        /// The tree that is asked for; empty for the only one.
        aname: &'a [u8],
        /// The user by number, or [`NONUNAME`](crate::NONUNAME).
        n_uname: u32,
    }

    /// The fid is the root.
    Rattach = RATTACH {
        /// The root.
        qid: Qid,
    }
}
