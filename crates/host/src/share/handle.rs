//! File handles: what an object is remembered by when its descriptor is given up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::RwLock;

use super::{Object, Share};
use crate::context::Context;
use crate::sys;
use crate::sys::cred::CAP_DAC_READ_SEARCH;

/// The most mounts in a share whose objects get handles.
const MOUNTS: usize = 256;

/// One open descriptor on every mount that handles were made for: opening a handle needs one that is not `O_PATH`.
pub(super) struct Mounts {
    usable: bool,
    open: RwLock<Vec<(i32, OwnedFd)>>,
}

impl Mounts {
    /// Tries a handle of the root: the process needs CAP_DAC_READ_SEARCH (in the initial user namespace), the file
    /// system must have handles, and a sandbox must let the calls through.
    pub(super) fn new(context: &Context) -> Mounts {
        let root = || -> io::Result<(i32, OwnedFd)> {
            let mut buf = [0; sys::handle::MAX];
            let handle = sys::handle::encode(context.root(), &mut buf)?;
            let root = context.reopen(context.root(), libc::O_RDONLY | libc::O_DIRECTORY)?;
            sys::handle::open(root.as_fd(), handle.kind, &buf[..handle.len], libc::O_PATH)?;
            Ok((handle.mount, root))
        };
        let root = match context.caps().has(CAP_DAC_READ_SEARCH) {
            true => root().ok(),
            false => None,
        };
        Mounts {
            usable: root.is_some(),
            open: RwLock::new(root.into_iter().collect()),
        }
    }
}

impl Share {
    /// A file handle that [`Share::open_handle`] can turn into the object again, when the file system has such and
    /// the process may use them. `buf` takes at most 128 bytes; gives (mount tag, handle type, length).
    pub fn handle(&self, object: &Object<'_>, buf: &mut [u8; 128]) -> Option<(u32, i32, usize)> {
        // A handle of a special file would need another object of its mount to open: such are rare, they keep
        // their descriptor.
        if !self.mounts.usable
            || !matches!(object.host_type, libc::S_IFREG | libc::S_IFDIR)
            || (self.mode.needs_names() && object.host_type != libc::S_IFDIR)
        {
            return None;
        }
        let handle = sys::handle::encode(object.path, buf).ok()?;
        let known = {
            let open = self.mounts.open.read().unwrap_or_else(|p| p.into_inner());
            open.iter().position(|(mount, _)| *mount == handle.mount)
        };
        let tag = match known {
            Some(tag) => tag,
            // What is opened here stays open: a directory, because a file would keep its blocks when it is deleted.
            None if object.host_type != libc::S_IFDIR => return None,
            None => {
                let file = self.context.reopen(object.path, libc::O_RDONLY).ok()?;
                let mut open = self.mounts.open.write().unwrap_or_else(|p| p.into_inner());
                match open.iter().position(|(mount, _)| *mount == handle.mount) {
                    Some(tag) => tag,
                    None if open.len() >= MOUNTS => return None,
                    None => {
                        open.push((handle.mount, file));
                        open.len() - 1
                    }
                }
            }
        };
        Some((u32::try_from(tag).ok()?, handle.kind, handle.len))
    }

    /// The object behind a handle as an `O_PATH` descriptor; ESTALE when it is gone.
    pub fn open_handle(&self, mount: u32, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
        let open = self.mounts.open.read().unwrap_or_else(|p| p.into_inner());
        let (_, file) = usize::try_from(mount)
            .ok()
            .and_then(|tag| open.get(tag))
            .ok_or_else(|| sys::error(libc::ESTALE))?;
        sys::handle::open(file.as_fd(), kind, handle, libc::O_PATH | libc::O_NOFOLLOW)
    }
}
