//! Tlopen and Tlcreate: a fid becomes an open file.

use std::sync::atomic::Ordering;

use host::{FileType, Object};
use wire::{
    IOHDRSZ, P9_DOTL_ACCMODE, P9_DOTL_APPEND, P9_DOTL_DIRECTORY, P9_DOTL_DSYNC, P9_DOTL_EXCL,
    P9_DOTL_NOATIME, P9_DOTL_RDONLY, P9_DOTL_RDWR, P9_DOTL_SYNC, P9_DOTL_TRUNC, P9_DOTL_WRONLY, Rlcreate,
    Rlopen, Tlcreate, Tlopen,
};

use crate::failure::Failure;
use crate::nodes::HasHandle;
use crate::pin::{NOGID, Pin};
use crate::session::{Session, name};
use crate::table::{Opened, State, Tables};
use crate::walk::{qid, qid_of};

/// Pages are of this size or a multiple.
const PAGE: u32 = 4096;

/// The host's flags for the client's. What is not here is dropped: O_CREAT and O_APPEND are the server's own
/// business (see `io` for the latter), O_DIRECT would ask alignment of guest memory, O_NONBLOCK and O_NOCTTY mean
/// nothing for what is opened here.
fn flags(client: u32) -> Result<i32, Failure> {
    let mut host = match client & P9_DOTL_ACCMODE {
        P9_DOTL_RDONLY => libc::O_RDONLY,
        P9_DOTL_WRONLY => libc::O_WRONLY,
        P9_DOTL_RDWR => libc::O_RDWR,
        _ => return Err(Failure::new(libc::EINVAL)),
    };
    let each = [
        (P9_DOTL_TRUNC, libc::O_TRUNC),
        (P9_DOTL_DSYNC, libc::O_DSYNC),
        (P9_DOTL_SYNC | P9_DOTL_DSYNC, libc::O_SYNC),
        (P9_DOTL_NOATIME, libc::O_NOATIME),
    ];
    for (bits, flag) in each {
        if client & bits == bits {
            host |= flag;
        }
    }
    Ok(host)
}

/// `uncached`: the client is known to have no write-back cache.
fn how(client: u32, uncached: bool) -> Opened {
    let append = client & P9_DOTL_APPEND != 0;
    let write_only = client & P9_DOTL_ACCMODE == P9_DOTL_WRONLY;
    Opened {
        append,
        always: append && (write_only || uncached),
        write_only,
        writes: client & P9_DOTL_ACCMODE != P9_DOTL_RDONLY,
    }
}

/// O_APPEND for a descriptor on which every write appends.
fn append(how: Opened) -> i32 {
    if how.always { libc::O_APPEND } else { 0 }
}

impl Session {
    /// What a read or write should have at most: whole pages, so that the client's requests stay aligned. (Linux
    /// takes msize - 24 for 0 (`p9_client_write`), which is no multiple of a page for its largest msize.)
    pub(crate) fn iounit(&self) -> u32 {
        let most = self.msize.load(Ordering::Relaxed).saturating_sub(IOHDRSZ);
        match most / PAGE * PAGE {
            0 => most,
            whole => whole,
        }
    }

    /// A fid that is to be opened and is not open yet (EINVAL); whether the client is known to be one without a
    /// write-back cache; and how many descriptors fids and nodes hold.
    fn pin_unopened(&self, fid: u32) -> Result<(Pin<'_>, bool, usize), Failure> {
        let (mut uncached, mut held) = (false, 0);
        let pin = self.pin_if(fid, libc::ENOENT, |tables, _| {
            (uncached, held) = (tables.uncached, tables.descriptors());
            Ok(())
        })?;
        pin.is_unopened()?;
        Ok((pin, uncached, held))
    }

    /// Opens a fid that is not open yet (EINVAL). EMFILE when open files hold all the descriptors there are; EISDIR for
    /// a directory to be written, ELOOP for a symlink, ENXIO for a special file: those are the guest's own to open.
    pub(crate) fn lopen(&self, m: &Tlopen) -> Result<Rlopen, Failure> {
        let (pin, uncached, held) = self.pin_unopened(m.fid)?;
        let mut how = how(m.flags, uncached);
        let (flags, state, iounit) = match pin.file_type() {
            other if other != FileType::Directory && m.flags & P9_DOTL_DIRECTORY != 0 => {
                return Err(Failure::new(libc::ENOTDIR));
            }
            FileType::Regular => (flags(m.flags)?, State::File, self.iounit()),
            FileType::Directory if m.flags & P9_DOTL_ACCMODE != P9_DOTL_RDONLY => {
                return Err(Failure::new(libc::EISDIR));
            }
            FileType::Directory => (libc::O_RDONLY | libc::O_DIRECTORY, State::Dir, 0),
            FileType::Symlink => return Err(Failure::new(libc::ELOOP)),
            FileType::Special => return Err(Failure::new(libc::ENXIO)),
        };
        self.has_room(held, libc::EMFILE)?;
        let caller = pin.caller(NOGID);
        let flags = flags | append(how);
        let try_append = how.append && how.writes && !how.always;
        // Told of the open file, not of what has the name now. Version 0 would turn Linux's page cache off for this file
        // (`v9fs_fid_add_modes`); `host` never gives that.
        let open = |object: &Object<'_>| self.share.open_and_tell(caller, object, flags, try_append);
        let opened = match self.named(&pin, open) {
            Ok(opened) => opened,
            Err(failure) => {
                if m.flags & P9_DOTL_ACCMODE == P9_DOTL_RDWR {
                    self.with(|tables| tables.refuse(pin.view()));
                }
                return Err(failure);
            }
        };
        how.always = opened.appends;
        let qid = qid_of(opened.file_type, opened.version, opened.unique);
        let file = opened.file;
        self.with(|tables| tables.open(pin.view(), file, state, how))?;
        drop(pin);
        self.keep_budget();
        Ok(Rlopen { qid, iounit })
    }

    /// Creates a file in the fid's directory and makes the fid that open file. A file that is there already is
    /// opened unaltered, unless the client asks for O_EXCL (EEXIST) or O_TRUNC.
    pub(crate) fn lcreate(&self, m: &Tlcreate<'_>) -> Result<Rlcreate, Failure> {
        let name = name(m.name, libc::EEXIST)?;
        let (pin, uncached, held) = self.pin_unopened(m.fid)?;
        let dir = pin.directory()?;
        let how = how(m.flags, uncached);
        let exclusive = match m.flags & P9_DOTL_EXCL {
            0 => 0,
            _ => libc::O_EXCL,
        };
        self.has_room(held, libc::EMFILE)?;
        let (path, file, id) = self.share.create(
            pin.caller(m.gid),
            &dir,
            &name,
            flags(m.flags)? | append(how) | exclusive,
            m.mode & 0o7777,
        )?;
        let from = Some((pin.view().node, name.as_bytes()));
        let has_handle: HasHandle<'_> = &|fd, handle| self.share.is_of_handle(fd, handle);
        self.with(|tables| {
            let Tables { nodes, dead, .. } = tables;
            let node = nodes.adopt(path, &id, from, has_handle, dead);
            if let Err(failure) = tables.turn(pin.view(), node) {
                tables.dead.push(file);
                return Err(failure);
            }
            tables.open(&pin.view().of(node), file, State::File, how)
        })?;
        drop(pin);
        self.keep_budget();
        Ok(Rlcreate {
            qid: qid(&id),
            iounit: self.iounit(),
        })
    }
}
