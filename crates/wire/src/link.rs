//! Tlink, Tsymlink, Treadlink.

use crate::Qid;
use crate::codec::{empty_messages, messages};

messages! { 'a:
    /// Creates a hard link.
    Tlink<'a> = TLINK {
        /// The fid of the directory to create it in.
        dfid: u32,
        /// The file's fid.
        fid: u32,
        /// The link's name.
        name: &'a [u8],
    }

    /// Creates a symbolic link.
    Tsymlink<'a> = TSYMLINK {
        /// The fid of the directory to create it in (field `fid` in some texts).
        dfid: u32,
        /// The link's name.
        name: &'a [u8],
        /// What it says.
        target: &'a [u8],
        /// Its group.
        gid: u32,
    }

    /// The link exists.
    Rsymlink = RSYMLINK {
        /// The link.
        qid: Qid,
    }

    /// Reads a symbolic link.
    Treadlink = TREADLINK {
        /// The link's fid.
        fid: u32,
    }

    /// A symbolic link's content.
    Rreadlink<'a> = RREADLINK {
        /// What it says.
        target: &'a [u8],
    }
}

empty_messages! {
    /// The link exists.
    Rlink = RLINK;
}
