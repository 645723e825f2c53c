//! Attributes, xattrs and statfs.

use std::ffi::CStr;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Object, Share};
use crate::acl;
use crate::attr::{Caller, SetAttr, SetTime, StatFs};
use crate::idmap::NO_ID;
use crate::sys;

const TRUSTED: &[u8] = b"trusted.";

/// What has been told once.
#[derive(Debug, Default)]
pub(super) struct Told {
    security: AtomicBool,
    trusted: AtomicBool,
}

/// Whether this is an id at all.
fn named(id: &u32) -> bool {
    *id != NO_ID
}

impl Share {
    /// Applies `set`, with or without a name left for the object. The order is size, owner, mode, times: a size
    /// change moves mtime, chown clears set-id bits, and both move what comes later to what was asked. The first
    /// error ends it; what came before stays, as when a program does the same with four calls.
    pub fn setattr(&self, caller: Caller, object: &Object<'_>, set: &SetAttr) -> io::Result<()> {
        self.change("setattr", caller, object, None, || self.apply(object, set))
    }

    fn apply(&self, object: &Object<'_>, set: &SetAttr) -> io::Result<()> {
        let (atime, mut mtime) = (set.atime, set.mtime);
        if let Some(size) = set.size {
            self.context.truncate(object, size)?;
            // ftruncate has just set mtime and ctime, even when the size is the same. Doing it again by itself
            // would need ownership, which somebody who may only write to the file does not have: this is what
            // open(O_TRUNC) of a Linux guest sends.
            if mtime == SetTime::Now && atime == SetTime::Omit {
                mtime = SetTime::Omit;
            }
        }
        if set.uid.is_some() || set.gid.is_some() {
            // chown(2) takes -1 for "leave it", and QEMU passes it on.
            let (uid, gid) = (set.uid.filter(named), set.gid.filter(named));
            let uid = uid.map(|uid| self.ids().uid_to_host(uid)).transpose()?;
            let gid = gid.map(|gid| self.ids().gid_to_host(gid)).transpose()?;
            self.mode.set_owner(object, uid, gid)?;
        }
        if let Some(mode) = set.mode {
            self.may_set_id(object, mode)?;
            self.mode.set_mode(object, mode)?;
        }
        if atime != SetTime::Omit || mtime != SetTime::Omit {
            sys::attr::set_times(object.path, atime, mtime)?;
        }
        let only_ctime = SetAttr {
            ctime: true,
            ..SetAttr::default()
        };
        if *set == only_ctime {
            self.mode.set_owner(object, None, None)?;
        }
        Ok(())
    }

    /// EPERM for a set-id bit on a program whose owner is none that the guest could give: it may write to such a file
    /// as far as this process may, and would have a program of its own run as that owner. (A write takes the bit away;
    /// this keeps it from coming back.) Where operations run as the caller, the host's kernel sees to it.
    fn may_set_id(&self, object: &Object<'_>, mode: u32) -> io::Result<()> {
        let ids = self.ids();
        let (user, group) = (mode & libc::S_ISUID != 0, mode & libc::S_ISGID != 0);
        if !self.plain || ids.is_identity() || !(user || group) {
            return Ok(());
        }
        // Of what the descriptor names, whatever it was taken for. Nothing else can be executed.
        let stat = self.context.stat(object)?;
        if u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFREG {
            return Ok(());
        }
        if (user && !ids.gives_uid(stat.stx_uid)) || (group && !ids.gives_gid(stat.stx_gid)) {
            return Err(sys::error(libc::EPERM));
        }
        Ok(())
    }

    /// EOPNOTSUPP for an xattr that the guest may not set or remove where xattrs are the host's own. Programs take that
    /// for a file system without such (cp, tar, rpm), and so does Linux when it takes a file's capabilities away before
    /// a write (`cap_inode_killpriv`), which the host's kernel does by itself; EPERM would make that write fail.
    fn may_set_xattr(&self, name: &CStr) -> io::Result<()> {
        let bytes = name.to_bytes();
        let allowed = self.context.options().allow_xattrs;
        let which = match bytes {
            _ if !self.plain || bytes.starts_with(b"user.") || acl::is_acl(name) => return Ok(()),
            _ if bytes.starts_with(b"security.") => Some((allowed.security, "security", &self.told.security)),
            _ if bytes.starts_with(TRUSTED) => Some((allowed.trusted, "trusted", &self.told.trusted)),
            _ => None,
        };
        if let Some((allowed, kind, told)) = which {
            if allowed {
                return Ok(());
            }
            // A guest with SELinux tries with every file that it makes.
            if !told.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "the guest's {kind}.* xattrs are refused (operation not supported): they would act on the host; \
                     --allow-xattrs {kind} lets the guest set them, where users are not restricted, and --security-model \
                     mapped-xattr keeps them where they act in the guest only. This is said once."
                );
            }
        }
        Err(sys::error(libc::EOPNOTSUPP))
    }

    /// Whether the guest does not see an xattr of this name: what is kept for administrators of the host.
    fn hides_xattr(&self, name: &[u8]) -> bool {
        self.plain && !self.context.options().allow_xattrs.trusted && name.starts_with(TRUSTED)
    }

    /// An xattr's value; an empty `buf` asks for the size; ERANGE when `buf` is too small, ENODATA.
    pub fn get_xattr(
        &self,
        caller: Caller,
        object: &Object<'_>,
        name: &CStr,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        self.run("getxattr", caller, object, None, || {
            if self.hides_xattr(name.to_bytes()) {
                // The kernel's answer to whoever has no CAP_SYS_ADMIN.
                return Err(sys::error(libc::ENODATA));
            }
            let len = self.mode.get_xattr(object, name, buf)?;
            if acl::is_acl(name)
                && !self.ids().is_identity()
                && let Some(blob) = buf.get_mut(..len)
                && !blob.is_empty()
            {
                acl::to_guest(blob, self.ids())?;
            }
            Ok(len)
        })
    }

    /// Sets an xattr; `flags` are XATTR_CREATE / XATTR_REPLACE. EOPNOTSUPP for one that the options do not allow.
    pub fn set_xattr(
        &self,
        caller: Caller,
        object: &Object<'_>,
        name: &CStr,
        value: &[u8],
        flags: i32,
    ) -> io::Result<()> {
        self.change("setxattr", caller, object, None, || {
            self.may_set_xattr(name)?;
            if acl::is_acl(name) && !self.ids().is_identity() && !value.is_empty() {
                let mut blob = value.to_vec();
                acl::to_host(&mut blob, self.ids())?;
                return self.mode.set_xattr(object, name, &blob, flags);
            }
            self.mode.set_xattr(object, name, value, flags)
        })
    }

    /// Removes an xattr.
    pub fn remove_xattr(&self, caller: Caller, object: &Object<'_>, name: &CStr) -> io::Result<()> {
        self.change("removexattr", caller, object, None, || {
            self.may_set_xattr(name)?;
            self.mode.remove_xattr(object, name)
        })
    }

    /// The visible names, NUL-terminated one after another; `out` is overwritten.
    pub fn list_xattr(&self, caller: Caller, object: &Object<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        self.run("listxattr", caller, object, None, || {
            self.mode.list_xattr(object, out)?;
            if out.split(|&b| b == 0).any(|name| self.hides_xattr(name)) {
                let shown = out
                    .split_inclusive(|&b| b == 0)
                    .filter(|name| !self.hides_xattr(name));
                *out = shown.flatten().copied().collect();
            }
            Ok(())
        })
    }

    /// statfs, without opening the object.
    pub fn statfs(&self, caller: Caller, object: &Object<'_>) -> io::Result<StatFs> {
        let raw = self.run("statfs", caller, object, None, || sys::attr::statfs(object.path))?;
        // The types of these fields differ between architectures.
        #[allow(clippy::unnecessary_cast)]
        let stat = StatFs {
            kind: raw.f_type as u32,
            // 9P has one block size, and the counts are in fragments.
            bsize: if raw.f_frsize > 0 {
                raw.f_frsize as u32
            } else {
                raw.f_bsize as u32
            },
            blocks: raw.f_blocks as u64,
            bfree: raw.f_bfree as u64,
            bavail: raw.f_bavail as u64,
            files: raw.f_files as u64,
            ffree: raw.f_ffree as u64,
            fsid: sys::attr::fsid(&raw),
            namelen: raw.f_namelen as u32,
        };
        Ok(stat)
    }
}
