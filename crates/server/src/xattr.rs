//! Txattrwalk and Txattrcreate: extended attributes are read and written through fids of their own.

use std::ffi::CString;
use std::time::Instant;

use wire::{P9_XATTR_CREATE, P9_XATTR_REPLACE, Rxattrcreate, Rxattrwalk, Txattrcreate, Txattrwalk};

use crate::capability;
use crate::failure::Failure;
use crate::pin::{NOGID, Pin};
use crate::request::Scratch;
use crate::session::Session;
use crate::table::Xattr;

/// The longest value and the longest list of names that Linux has (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LARGEST: usize = 65536;

/// The longest name (`XATTR_NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// The names of POSIX ACLs. Linux removes one by setting it to nothing.
const ACL: &[u8] = b"system.posix_acl_";

const EINVAL: Failure = Failure::new(libc::EINVAL);

fn c_name(name: &[u8]) -> Result<CString, Failure> {
    if name.len() > LONGEST_NAME {
        return Err(Failure::new(libc::ERANGE));
    }
    CString::new(name).map_err(|_| EINVAL)
}

impl Session {
    /// Makes `newfid` one from which the value of an xattr is read, or the list of names when `name` is empty. The
    /// value is fetched here and now, in one call, so its size is exact whatever happens to it meanwhile.
    pub(crate) fn xattrwalk(&self, m: &Txattrwalk<'_>, scratch: &mut Scratch) -> Result<Rxattrwalk, Failure> {
        let pin = self.pin_if(m.fid, libc::ENOENT, |tables, _| tables.vacant(m.newfid))?;
        pin.is_object()?;
        let bytes = &mut scratch.bytes;
        let len = if m.name.is_empty() {
            bytes.clear();
            self.share.list_xattr(pin.caller(NOGID), &pin.object()?, bytes)?;
            bytes.len()
        } else if m.name == capability::NAME {
            self.get_capability(&pin, bytes)?
        } else {
            self.get_xattr(&pin, m.name, bytes)?
        };
        let value = bytes.get(..len).unwrap_or_default().to_vec();
        let xattr = Xattr {
            size: value.len(),
            value,
            ..Xattr::default()
        };
        self.with(|tables| tables.add_xattr(m.newfid, pin.view(), xattr, pin.epoch()))?;
        Ok(Rxattrwalk { size: len as u64 })
    }

    fn get_xattr(&self, pin: &Pin<'_>, name: &[u8], bytes: &mut Vec<u8>) -> Result<usize, Failure> {
        bytes.resize(bytes.len().max(LARGEST), 0);
        let name = c_name(name)?;
        Ok(self
            .share
            .get_xattr(pin.caller(NOGID), &pin.object()?, &name, bytes)?)
    }

    fn get_capability(&self, pin: &Pin<'_>, bytes: &mut Vec<u8>) -> Result<usize, Failure> {
        let (node, now) = (pin.view().node, Instant::now());
        let asked = match self.with(|tables| tables.capabilities.ask(node, now)) {
            Ok(errno) => return Err(Failure::new(errno)),
            Err(asked) => asked,
        };
        self.get_xattr(pin, capability::NAME, bytes)
            .inspect_err(|failure| {
                let errno = failure.errno().cast_signed();
                self.with(|tables| tables.capabilities.answered(node, errno, asked));
            })
    }

    /// Makes of `fid`, which must not be open, one to which `size` bytes of a value are written; Tclunk sets it.
    /// E2BIG above 64 KiB.
    pub(crate) fn xattrcreate(&self, m: &Txattrcreate<'_>) -> Result<Rxattrcreate, Failure> {
        let pin = self.pin(m.fid, libc::EINVAL)?;
        pin.is_unopened()?;
        if m.flags & !(P9_XATTR_CREATE | P9_XATTR_REPLACE) != 0 {
            return Err(EINVAL);
        }
        let size = usize::try_from(m.size).unwrap_or(usize::MAX);
        if size > LARGEST {
            return Err(Failure::new(libc::E2BIG));
        }
        if m.name.is_empty() {
            return Err(EINVAL);
        }
        let name = c_name(m.name)?.into_bytes();
        let xattr = Xattr {
            name,
            value: Vec::new(),
            size,
            flags: m.flags.cast_signed(),
        };
        self.with(|tables| tables.turn_xattr(pin.view(), xattr))?;
        Ok(Rxattrcreate)
    }

    /// Applies what was written to an xattr fid. EINVAL when less was written than announced.
    ///
    /// Linux removes an xattr by announcing 0 bytes with XATTR_REPLACE, and an ACL by 0 bytes whatever the flags;
    /// any other 0 bytes are an empty value.
    pub(crate) fn set_xattr(&self, pin: &Pin<'_>) -> Result<(), Failure> {
        // What is left still counts against the limit until the fid is gone.
        let xattr = self
            .with(|tables| {
                tables.xattr(pin.view()).map(|xattr| Xattr {
                    name: std::mem::take(&mut xattr.name),
                    value: std::mem::take(&mut xattr.value),
                    ..*xattr
                })
            })
            .ok_or(EINVAL)?;
        if xattr.value.len() != xattr.size {
            return Err(EINVAL);
        }
        let result = self.set_now(pin, &xattr);
        if xattr.name == capability::NAME {
            self.with(|tables| tables.capabilities.changed());
        }
        result
    }

    fn set_now(&self, pin: &Pin<'_>, xattr: &Xattr) -> Result<(), Failure> {
        let acl = xattr.name.starts_with(ACL);
        let name = c_name(&xattr.name)?;
        let caller = pin.caller(NOGID);
        if xattr.size == 0 && (acl || xattr.flags == libc::XATTR_REPLACE) {
            let removed = self.share.remove_xattr(caller, &pin.object()?, &name);
            return match removed {
                // There was no ACL to remove: it is as it shall be.
                Err(error) if acl && error.raw_os_error() == Some(libc::ENODATA) => Ok(()),
                other => Ok(other?),
            };
        }
        self.share
            .set_xattr(caller, &pin.object()?, &name, &xattr.value, xattr.flags)?;
        Ok(())
    }
}
