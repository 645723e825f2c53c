//! Treaddir, and what makes, moves and removes the entries of a directory: Tmkdir, Tmknod, Trename, Trenameat,
//! Tunlinkat.

use core::fmt;

use crate::Qid;
use crate::codec::{
    DecodeErrorKind, Field, Message, Payload, Reader, Text, Writer, empty_messages, messages,
};
use crate::io::{counted, counted_len, encode_counted_header, put_counted};
use crate::types::RREADDIR;

messages! { 'a:
    /// Reads entries of an open directory.
    Treaddir = TREADDIR {
        /// The directory's fid.
        fid: u32,
        /// 0 for the beginning, or the `offset` of the last entry that the client has.
        offset: u64,
        /// Bytes of entries at most.
        count: u32,
    }

    /// Creates a directory.
    Tmkdir<'a> = TMKDIR {
        /// The fid of the directory to create it in.
        dfid: u32,
        /// Its name.
        name: &'a [u8],
        /// Its mode, the client's umask already applied.
        mode: u32,
        /// Its group.
        gid: u32,
    }

    /// The directory exists.
    Rmkdir = RMKDIR {
        /// The directory.
        qid: Qid,
    }

    /// Creates a device, a FIFO, a socket or a regular file.
    Tmknod<'a> = TMKNOD {
        /// The directory's fid.
        dfid: u32,
        /// The file's name.
        name: &'a [u8],
        /// The file's type and mode, the client's umask already applied.
        mode: u32,
        /// A device's major number.
        major: u32,
        /// A device's minor number.
        minor: u32,
        /// The file's group.
        gid: u32,
    }

    /// The file exists.
    Rmknod = RMKNOD {
        /// The file.
        qid: Qid,
    }

    /// Renames the file of a fid.
    Trename<'a> = TRENAME {
        /// The file's fid.
        fid: u32,
        /// The fid of the directory to move it to.
        dfid: u32,
        /// Its new name.
        name: &'a [u8],
    }

    /// Renames an entry of a directory.
    Trenameat<'a> = TRENAMEAT {
        /// The fid of the directory it is in.
        olddirfid: u32,
        /// Its name there.
        oldname: &'a [u8],
        /// The fid of the directory it goes to.
        newdirfid: u32,
        /// Its name there.
        newname: &'a [u8],
    }

    /// Removes an entry of a directory.
    Tunlinkat<'a> = TUNLINKAT {
        /// The directory's fid.
        dirfd: u32,
        /// The entry's name.
        name: &'a [u8],
        /// [`P9_DOTL_AT_REMOVEDIR`](crate::P9_DOTL_AT_REMOVEDIR) or 0.
        flags: u32,
    }
}

empty_messages! {
    /// The file has its new name.
    Rrename = RRENAME;

    /// The entry has its new name.
    Rrenameat = RRENAMEAT;

    /// The entry is gone.
    Runlinkat = RUNLINKAT;
}

/// Directory entries: `count[4] data[count]`. None at the end of the directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rreaddir<'a> {
    /// [`Dirent`]s, one after the other.
    pub data: &'a [u8],
}

impl<'a> Rreaddir<'a> {
    /// Bytes of an Rreaddir before its entries.
    pub const HEADER_LEN: usize = 11;

    /// The entries.
    pub fn entries(&self) -> Dirents<'a> {
        Dirents::new(self.data)
    }
}

impl<'a> Message<'a> for Rreaddir<'a> {
    const KIND: u8 = RREADDIR;

    #[inline]
    fn decode_body(body: &'a [u8]) -> Result<Self, DecodeErrorKind> {
        counted(body).map(|data| Rreaddir { data })
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

impl fmt::Debug for Rreaddir<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rreaddir")
            .field("data", &Payload(self.data.len()))
            .finish()
    }
}

/// Writes the 11 bytes of an Rreaddir that stand before `count` bytes of entries, with the size of the whole, to the
/// front of `buf`, and says how many they are. `None` when they do not fit or the whole is larger than a size can be.
#[inline]
pub fn encode_rreaddir_header(buf: &mut [u8], tag: u16, count: u32) -> Option<usize> {
    encode_counted_header(buf, RREADDIR, tag, count)
}

/// A directory entry: `qid[13] offset[8] type[1] name[s]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// The file. Linux takes no more than its `path` as inode number from here.
    pub qid: Qid,
    /// Where the next entry is: what a Treaddir asks for to go on after this one.
    pub offset: u64,
    /// getdents64(2)'s `d_type` (`DT_*`).
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

impl<'a> Dirent<'a> {
    /// Bytes of an entry without its name.
    pub const FIXED_LEN: usize = 24;

    /// Bytes on the wire; `None` when the name is longer than 65,535 bytes.
    #[inline]
    pub fn encoded_len(&self) -> Option<usize> {
        self.name
            .len()
            .checked_add(Self::FIXED_LEN)
            .filter(|_| self.name.len() <= usize::from(u16::MAX))
    }

    /// Writes the entry to the front of `buf` and says how many bytes it took. `None`, and nothing is written,
    /// when it does not fit.
    #[inline]
    pub fn encode(&self, buf: &mut [u8]) -> Option<usize> {
        let len = self.encoded_len()?;
        let mut to = Writer::new(buf.get_mut(..len)?);
        self.qid.put(&mut to)?;
        self.offset.put(&mut to)?;
        self.kind.put(&mut to)?;
        self.name.put(&mut to)?;
        Some(len)
    }

    #[inline]
    fn get(from: &mut Reader<'a>) -> Result<Self, DecodeErrorKind> {
        Ok(Dirent {
            qid: Field::get(from)?,
            offset: Field::get(from)?,
            kind: Field::get(from)?,
            name: Field::get(from)?,
        })
    }
}

impl fmt::Debug for Dirent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dirent")
            .field("qid", &self.qid)
            .field("offset", &self.offset)
            .field("kind", &self.kind)
            .field("name", &Text(self.name))
            .finish()
    }
}

/// Iterator over the entries of an [`Rreaddir`]. An entry that is cut off is one error, and the last item.
#[derive(Clone, Debug)]
pub struct Dirents<'a> {
    rest: &'a [u8],
}

impl<'a> Dirents<'a> {
    /// The entries in `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Dirents { rest: data }
    }
}

impl<'a> Iterator for Dirents<'a> {
    type Item = Result<Dirent<'a>, DecodeErrorKind>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut from = Reader::new(self.rest);
        let entry = Dirent::get(&mut from);
        self.rest = if entry.is_ok() { from.rest() } else { &[] };
        Some(entry)
    }
}
