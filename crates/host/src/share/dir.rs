//! Listing directories.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;

use super::{DirEntry, Object, Share};
use crate::attr::Caller;
use crate::sys;
use crate::sys::attr::Record;
use crate::types::Asked;

/// Keeps two listings of one open directory apart: setting its position and reading on from there are two system
/// calls, and two threads may serve two requests on one fid. Striped by descriptor number, so that different
/// directories hardly ever meet. Setting the position is never left out: nobody knows it for sure (a restart, an
/// earlier listing that stopped inside a buffer), it costs one call per listing, and a file system that is there
/// already (ext4's hash tree) notices.
#[derive(Debug, Default)]
pub(super) struct Positions([Mutex<()>; 32]);

impl Positions {
    fn of(&self, file: BorrowedFd<'_>) -> &Mutex<()> {
        &self.0[file.as_raw_fd().unsigned_abs() as usize % self.0.len()]
    }
}

/// The longest record of getdents64(2): 19 bytes, a name of 255, its NUL, padding.
const ENTRY_MAX: usize = 280;

/// Entries of one listing whose type may have to be looked at, by some system calls each; it goes on with the next request.
const ASKED: usize = 512;

/// Its length is a multiple of this.
const ALIGN: usize = 8;

/// Takes the entries of a listing one by one.
pub trait Listing {
    /// So many bytes of getdents64(2) records have room for sure. Asking the kernel for no more leaves the
    /// directory's position where the listing ends: some file systems (tmpfs before Linux 6.6, ramfs) count entries
    /// for a position, so that going back to one after a removal would miss an entry, and going anywhere walks all
    /// the way.
    fn room(&self) -> usize;
    /// Takes an entry; false when there is no room for it.
    fn entry(&mut self, entry: &DirEntry<'_>) -> bool;
}

/// Whatever comes has room.
impl<F: FnMut(&DirEntry<'_>) -> bool> Listing for F {
    fn room(&self) -> usize {
        usize::MAX
    }
    fn entry(&mut self, entry: &DirEntry<'_>) -> bool {
        self(entry)
    }
}

impl Share {
    /// Lists `dir` (its `file` must be an open directory: EBADF, ENOTDIR) from `cookie` (0: start) until `to` is full,
    /// the end, or a place before it that the kernel chose; only the end shows nothing. `buf` is the caller's
    /// getdents64 buffer (EINVAL when an entry does not fit; 280 bytes always hold one). An entry that `to` refused
    /// comes again when the listing goes on at the cookie of the one before. Entries that vanish meanwhile are
    /// skipped; reserved names are hidden. No system call per entry where the mode maps no types or knows them.
    pub fn read_dir(
        &self,
        caller: Caller,
        dir: &Object<'_>,
        cookie: u64,
        buf: &mut [u8],
        to: &mut dyn Listing,
    ) -> io::Result<()> {
        self.run("readdir", caller, dir, None, || {
            let mut types = self.mode.types().map(|types| types.begin(cookie));
            let listed = self.list(dir, cookie, buf, to, types.as_mut());
            if let Some(types) = types {
                types.keep();
            }
            listed
        })
    }

    fn list(
        &self,
        dir: &Object<'_>,
        cookie: u64,
        buf: &mut [u8],
        to: &mut dyn Listing,
        mut types: Option<&mut Asked<'_>>,
    ) -> io::Result<()> {
        let file = dir.file.ok_or_else(|| sys::error(libc::EBADF))?;
        let _kept = self
            .positions
            .of(file)
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        sys::io::seek(file, cookie)?;
        let reserves = self.mode.reserves_names();
        let mut looked = None;
        let mut shown = false;
        let asked = Cell::new(0);
        loop {
            let mut ask = to.room().min(buf.len());
            if shown && ask < ENTRY_MAX {
                return Ok(());
            }
            let len = loop {
                match sys::io::list(file, buf.get_mut(..ask).unwrap_or_default()) {
                    // Not even the next entry is sure to have room, but it may have, and no other.
                    Err(e) if sys::errno(&e) == libc::EINVAL && ask < buf.len().min(ENTRY_MAX) => {
                        ask = (ask / ALIGN + 1) * ALIGN;
                    }
                    other => break other?,
                }
            };
            if len == 0 {
                return Ok(());
            }
            // After the entries were read, so that it tells whether the types that are known are theirs.
            let stat = match (looked, &mut types) {
                (Some(stat), None) => stat,
                (_, types) => {
                    let stat = sys::attr::stat(dir.path)?;
                    if let Some(types) = types {
                        types.read(&stat, self.context.devices().apart(stat.dev()));
                    }
                    *looked.insert(stat)
                }
            };
            let dev = stat.dev();
            let is_root = self.context.is_root(&stat);
            let mut rest = &buf[..len];
            while let Some((entry, after)) = sys::io::entry(rest) {
                rest = after;
                // Neither is asked of the mode for each entry where the answer is known.
                let hidden = |name: &[u8]| reserves && self.mode.reserved(name).is_some();
                if hidden(entry.name) {
                    continue;
                }
                // What is hidden behind an entry is passed over with it, so that the listing goes on where the
                // directory's position is already.
                let mut next = entry.next;
                while reserves
                    && let Some((behind, after)) = sys::io::entry(rest)
                    && hidden(behind.name)
                {
                    (next, rest) = (behind.next, after);
                }
                // The guest's readdir takes a position as a signed number, and 0 as the start.
                let cookie = u64::try_from(next)
                    .ok()
                    .filter(|&next| next > 0)
                    .ok_or_else(|| sys::error(libc::EOVERFLOW))?;
                let ask = || match self.plain {
                    true => Ok(entry.kind),
                    false => {
                        asked.set(asked.get() + 1);
                        self.mode.entry_type(dir, entry.name, entry.kind)
                    }
                };
                let d_type = match &mut types {
                    Some(types) => types.of(entry.ino, entry.kind, ask),
                    None => ask().unwrap_or_else(|for_now| for_now),
                };
                let above = is_root && entry.name == b"..";
                let entry = DirEntry {
                    name: entry.name,
                    // What lies above the root is nothing the guest can see.
                    unique: self.context.devices().unique(
                        dev,
                        if above { stat.stx_ino } else { entry.ino },
                        dir.path,
                    )?,
                    cookie,
                    d_type,
                };
                if !to.entry(&entry) || asked.get() >= ASKED {
                    return Ok(());
                }
                shown = true;
            }
            // The kernel stopped though there was room: most likely the end. The reader will ask once more in any
            // case and learns it then, so asking the kernel twice helps nobody.
            if shown && len + ENTRY_MAX <= ask {
                return Ok(());
            }
        }
    }
}
