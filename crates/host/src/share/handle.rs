//! File handles: what an object is told from any other by after its descriptor was given up, and, with
//! `--file-handles open`, how it is found again.
//!
//! Inode numbers are used again, and the time of birth tells two objects apart only where there is one, and not within one
//! tick of the clock. A handle has the inode's generation in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::RwLock;

use super::{Object, Share};
use crate::context::Context;
use crate::options::FileHandles;
use crate::sys;
use crate::sys::cred::CAP_DAC_READ_SEARCH;

/// The most mounts in a share whose objects get handles that can be opened.
const MOUNTS: usize = 256;

/// Bytes before those of the kernel: the number of the mount, the type of handle.
const PREFIX: usize = 8;

/// In place of a mount's number: only to be compared.
const NO_MOUNT: u32 = u32::MAX;

/// `FILEID_INO64_GEN`: what the kernel makes for a file system that has no handles of its own: inode number[8]
/// generation[4], and the generation is 0 where the file system has none (`exportfs_encode_ino64_fid`).
const INO64_GEN: i32 = 0x81;

/// A file handle.
#[derive(Clone)]
pub struct Handle {
    bytes: [u8; PREFIX + sys::handle::MAX],
    len: usize,
}

impl Handle {
    fn new(mount: u32, kind: i32, data: &[u8]) -> Handle {
        let mut bytes = [0; PREFIX + sys::handle::MAX];
        let len = data.len().min(sys::handle::MAX);
        bytes[..4].copy_from_slice(&mount.to_le_bytes());
        bytes[4..PREFIX].copy_from_slice(&kind.to_le_bytes());
        bytes[PREFIX..PREFIX + len].copy_from_slice(&data[..len]);
        Handle {
            bytes,
            len: PREFIX + len,
        }
    }

    /// To be kept.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Whether `kept`, the bytes of a handle, is one of the same object.
    pub fn is(&self, kept: &[u8]) -> bool {
        // By whichever mount.
        matches!((kept.get(4..), self.as_bytes().get(4..)), (Some(a), Some(b)) if a == b && !a.is_empty())
    }

    /// Whether [`Share::open_handle`] takes `kept`, the bytes of a handle.
    pub fn opens(kept: &[u8]) -> bool {
        kept.first_chunk()
            .is_some_and(|mount| u32::from_le_bytes(*mount) != NO_MOUNT)
    }
}

/// One open descriptor on every mount that handles were made for: opening a handle needs one that is not `O_PATH`.
pub(super) struct Mounts {
    opens: bool,
    open: RwLock<Vec<(i32, OwnedFd)>>,
}

impl Mounts {
    /// With [`FileHandles::Open`], tries a handle of the root: the process needs CAP_DAC_READ_SEARCH (in the initial user
    /// namespace), the file system must have handles, and a sandbox must let the calls through. The error is one sentence.
    pub(super) fn new(context: &Context) -> Result<Mounts, String> {
        if context.options().file_handles == FileHandles::Verify {
            return Ok(Mounts {
                opens: false,
                open: RwLock::default(),
            });
        }
        let lacking = "--file-handles open needs CAP_DAC_READ_SEARCH in the initial user namespace";
        if !context.caps().has(CAP_DAC_READ_SEARCH) {
            return Err(format!("{lacking}, which this process lacks"));
        }
        let root = || -> io::Result<(i32, OwnedFd)> {
            let mut buf = [0; sys::handle::MAX];
            let handle = sys::handle::encode(context.root(), &mut buf)?;
            let root = context.reopen(context.root(), libc::O_RDONLY | libc::O_DIRECTORY)?;
            sys::handle::open(root.as_fd(), handle.kind, &buf[..handle.len], libc::O_PATH)?;
            Ok((handle.mount, root))
        };
        let root = root().map_err(|error| match sys::errno(&error) {
            libc::EPERM | libc::ENOSYS => format!("{lacking}, and no sandbox that refuses it ({error})"),
            libc::EOPNOTSUPP => format!(
                "--file-handles open: the file system of {} has no file handles that can be opened",
                context.options().directory.display()
            ),
            _ => format!(
                "--file-handles open: a file handle of {} cannot be opened: {error}",
                context.options().directory.display()
            ),
        })?;
        log::info!(
            "files whose descriptors were given up are opened by file handle (--file-handles open): they are found after \
             the host has renamed them, and also where it has moved them out of the shared directory; this process keeps \
             CAP_DAC_READ_SEARCH, which opens any file of these file systems"
        );
        Ok(Mounts {
            opens: true,
            open: RwLock::new(vec![root]),
        })
    }
}

impl Share {
    /// What tells the object that `fd` names from any other, now and later; `None` when the file system has nothing that
    /// does so. With [`FileHandles::Open`] it can be opened, if there is no reason against that.
    pub fn handle(&self, object: &Object<'_>) -> Option<Handle> {
        let mut buf = [0; sys::handle::MAX];
        if self.mounts.opens
            && let Ok(made) = sys::handle::encode(object.path, &mut buf)
        {
            let mount = self.mount_of(object, made.mount).unwrap_or(NO_MOUNT);
            return Some(Handle::new(mount, made.kind, buf.get(..made.len)?));
        }
        let made = sys::handle::identify(object.path, &mut buf).ok()?;
        let data = buf.get(..made.len)?;
        let says_nothing = made.kind == INO64_GEN && data.get(8..).is_none_or(|rest| rest == [0; 4]);
        (!says_nothing).then(|| Handle::new(NO_MOUNT, made.kind, data))
    }

    /// Whether `kept`, the bytes of a handle, is one of the object that `fd` names. Asks nobody but this host's kernel.
    pub fn is_of_handle(&self, fd: BorrowedFd<'_>, kept: &[u8]) -> bool {
        // No type is known, so that no mount is opened for it.
        self.handle(&Object::by_path(fd, 0))
            .is_some_and(|handle| handle.is(kept))
    }

    /// The number of the object's mount, where its handle may be opened.
    fn mount_of(&self, object: &Object<'_>, id: i32) -> Option<u32> {
        // Not of special files, of which there are few. And where a mode must know an object's name, not of files.
        let allowed = match object.host_type {
            libc::S_IFDIR => true,
            libc::S_IFREG => !self.mode.needs_names(),
            _ => false,
        };
        if !allowed {
            return None;
        }
        let find = |open: &[(i32, OwnedFd)]| open.iter().position(|(mount, _)| *mount == id);
        let known = find(&self.mounts.open.read().unwrap_or_else(|p| p.into_inner()));
        let tag = match known {
            Some(tag) => tag,
            // What is opened here stays open: a directory, because a file would keep its blocks when it is deleted.
            None if object.host_type != libc::S_IFDIR => return None,
            None => {
                let flags = libc::O_RDONLY | libc::O_DIRECTORY;
                let file = self.context.reopen(object.path, flags).ok()?;
                let mut open = self.mounts.open.write().unwrap_or_else(|p| p.into_inner());
                match find(&open) {
                    Some(tag) => tag,
                    None if open.len() >= MOUNTS => return None,
                    None => {
                        open.push((id, file));
                        open.len() - 1
                    }
                }
            }
        };
        u32::try_from(tag).ok()
    }

    /// The object behind a handle that [`Handle::opens`], as an `O_PATH` descriptor; ESTALE when it is gone.
    pub fn open_handle(&self, kept: &[u8]) -> io::Result<OwnedFd> {
        let stale = || sys::error(libc::ESTALE);
        let (mount, rest) = kept.split_first_chunk().ok_or_else(stale)?;
        let (kind, handle) = rest.split_first_chunk().ok_or_else(stale)?;
        let open = self.mounts.open.read().unwrap_or_else(|p| p.into_inner());
        let (_, file) = usize::try_from(u32::from_le_bytes(*mount))
            .ok()
            .and_then(|tag| open.get(tag))
            .ok_or_else(stale)?;
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        sys::handle::open(file.as_fd(), i32::from_le_bytes(*kind), handle, flags)
    }
}
