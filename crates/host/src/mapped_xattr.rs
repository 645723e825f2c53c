//! Share mode `mapped-xattr` (also `mapped`): owner, group, mode and device number live in `user.virtfs.*` xattrs
//! of the host object, byte for byte as QEMU's virtio-9p keeps them.
//!
//! Where QEMU gives up, this goes on without storing anything QEMU would misread: a host-made symlink can be read,
//! a chmod never loses the type, listings have types, and the guest's `security.*` and `trusted.*` xattrs are kept
//! under `user.virtfs.`, whose unknown names QEMU hides from its guests.

mod cache;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::acl;
use crate::attr::{Attr, Caller, Identity};
use crate::context::Context;
use crate::mapped;
use crate::mode::ShareMode;
use crate::name::Name;
use crate::share::Object;
use crate::sys::attr::Record;
use crate::sys::xattr::Target;
use crate::sys::{self, errno, error};
use crate::types::Types;
use crate::version::stamps_changes;
use crate::virtfs::{Kept, some_id, xattr};
use cache::{Before, Cache};

/// The longest xattr name the kernel takes, bytes.
const NAME_MAX: usize = 255;

/// The longest list of names the kernel gives, bytes (XATTR_LIST_MAX).
const LIST_MAX: usize = 65536;

/// The share mode.
pub struct MappedXattr {
    context: Arc<Context>,
    warned: AtomicBool,
    cache: Option<Cache>,
    types: Types,
}

/// Room for an xattr's name and its NUL.
type Room = [u8; NAME_MAX + 1];

/// Whether an xattr of the host is this mode's own. SMB servers do not tell names by case.
fn is_ours(name: &[u8]) -> bool {
    name.get(..xattr::PREFIX.len())
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case(xattr::PREFIX))
}

/// The host's name for the xattr that the guest calls `name`; `None` for this mode's own bookkeeping. EOPNOTSUPP for
/// a name of no kind that is kept, ERANGE (the kernel's answer) for one that gets too long.
fn host_name<'a>(name: &'a CStr, room: &'a mut Room) -> io::Result<Option<&'a CStr>> {
    let bytes = name.to_bytes();
    if is_ours(bytes) {
        return Ok(None);
    }
    if bytes.starts_with(b"user.") {
        return Ok(Some(name));
    }
    if !acl::is_acl(name) && !bytes.starts_with(b"security.") && !bytes.starts_with(b"trusted.") {
        return Err(error(libc::EOPNOTSUPP));
    }
    let with_nul = name.to_bytes_with_nul();
    let len = xattr::PREFIX.len() + with_nul.len();
    let whole = room.get_mut(..len).ok_or_else(|| error(libc::ERANGE))?;
    let (prefix, rest) = whole.split_at_mut(xattr::PREFIX.len());
    prefix.copy_from_slice(xattr::PREFIX);
    rest.copy_from_slice(with_nul);
    Ok(Some(CStr::from_bytes_until_nul(whole).unwrap_or_default()))
}

/// The name that the guest sees for one of the host; `None` when it sees none.
fn guest_name(host: &[u8]) -> Option<&[u8]> {
    match host.strip_prefix(xattr::PREFIX) {
        Some(inner) => {
            let shown = inner == acl::ACCESS.to_bytes()
                || inner == acl::DEFAULT.to_bytes()
                || inner.starts_with(b"security.")
                || inner.starts_with(b"trusted.");
            shown.then_some(inner)
        }
        None => (host.starts_with(b"user.") && !is_ours(host)).then_some(host),
    }
}

/// `None` for whatever makes the host's value show through: it is not
/// there, too long, unreadable for this process, or xattrs are impossible.
fn absent_or<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) => match errno(&e) {
            libc::ENODATA | libc::ERANGE | libc::EOPNOTSUPP | libc::EACCES | libc::EPERM => Ok(None),
            _ => Err(e),
        },
    }
}

fn read<'b>(target: Target<'_>, name: &CStr, buf: &'b mut [u8; 9]) -> io::Result<Option<&'b [u8]>> {
    let len = absent_or(sys::xattr::get(target, name, buf))?;
    Ok(len.and_then(|len| buf.get(..len)))
}

fn read_mode(target: Target<'_>) -> io::Result<Kept> {
    Ok(Kept {
        mode: read(target, xattr::MODE, &mut [0; 9])?.and_then(xattr::id),
        ..Kept::NOTHING
    })
}

fn read_all(target: Target<'_>) -> io::Result<Kept> {
    // One call says which are there, most often none or three of the four.
    let mut names = [0; 512];
    let listed = sys::xattr::list(target, &mut names)
        .ok()
        .and_then(|len| names.get(..len));
    let has = |name: &CStr| listed.is_none_or(|l| l.split(|&b| b == 0).any(|n| n == name.to_bytes()));
    let mut buf = [0; 9];
    let mut kept = Kept::NOTHING;
    if has(xattr::UID) {
        kept.uid = read(target, xattr::UID, &mut buf)?.and_then(xattr::id);
    }
    if has(xattr::GID) {
        kept.gid = read(target, xattr::GID, &mut buf)?.and_then(xattr::id);
    }
    if has(xattr::MODE) {
        kept.mode = read(target, xattr::MODE, &mut buf)?.and_then(xattr::id);
    }
    if has(xattr::RDEV) {
        kept.rdev = read(target, xattr::RDEV, &mut buf)?.and_then(xattr::rdev);
    }
    Ok(kept)
}

/// Whether an object of this host type can have user xattrs at all (xattr(7)).
fn can_keep(host_type: u32) -> bool {
    matches!(host_type, libc::S_IFREG | libc::S_IFDIR)
}

impl MappedXattr {
    /// Checks that the shared directory takes user xattrs, unless the share is read-only; the error is one sentence
    /// for the administrator.
    pub fn new(context: Arc<Context>) -> Result<MappedXattr, String> {
        let root = Target::Path(context.proc(), context.root());
        let probe = sys::xattr::get(root, xattr::MODE, &mut [0; 9]);
        if let Err(e) = probe
            && errno(&e) == libc::EOPNOTSUPP
            && !context.options().readonly
        {
            return Err(format!(
                "the file system of {} takes no user xattrs, which security model mapped-xattr keeps owners and \
                 modes in: use mapped-file, or share a directory on another file system",
                context.options().directory.display()
            ));
        }
        // The file system's device number, if a ctime there tells of every change.
        let stamped = || {
            let kind = sys::attr::statfs(context.root()).ok()?.f_type;
            let stat = sys::attr::stat(context.root()).ok()?;
            stamps_changes(kind).then(|| stat.dev())
        };
        let stamped = stamped();
        Ok(MappedXattr {
            cache: stamped.map(Cache::new),
            types: Types::new(stamped),
            context,
            warned: AtomicBool::new(false),
        })
    }

    /// `before` is a moment before `stat` was made.
    fn kept(&self, object: &Object<'_>, before: Before, stat: &impl Record) -> io::Result<Kept> {
        if !can_keep(stat.mode() & libc::S_IFMT) {
            return Ok(Kept::NOTHING);
        }
        if let Some(kept) = self.cache.as_ref().and_then(|cache| cache.get(stat)) {
            return Ok(kept);
        }
        let kept = read_all(self.context.xattrs(object))?;
        if let Some(cache) = &self.cache {
            cache.put(before, stat, kept);
        }
        Ok(kept)
    }

    /// Only the mode, and only where it can make the type another one than the host's.
    fn kept_type(&self, object: &Object<'_>, host_type: u32) -> io::Result<Kept> {
        if host_type == libc::S_IFREG {
            read_mode(self.context.xattrs(object))
        } else {
            Ok(Kept::NOTHING)
        }
    }

    /// Says once why this share cannot keep what the guest wants; the errno for the guest.
    fn impossible(&self, e: io::Error) -> io::Error {
        if errno(&e) == libc::EOPNOTSUPP && !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "an object below {} takes no user xattrs, which security model mapped-xattr keeps owners and modes \
                 in: the guest gets \"operation not supported\" there; mapped-file needs no xattrs",
                self.context.options().directory.display()
            );
        }
        e
    }

    /// Keeps `kept` on an object that is there already. EOPNOTSUPP for an object that takes no xattrs, such as a
    /// host-made symlink or device.
    fn keep(&self, object: &Object<'_>, kept: &Kept) -> io::Result<()> {
        if !can_keep(object.host_type) {
            return Err(self.impossible(error(libc::EOPNOTSUPP)));
        }
        let target = self.context.xattrs(object);
        let set = || xattr::each(kept, |name, value| sys::xattr::set(target, name, value, 0));
        let result = match set() {
            // A file that its owner on the host cannot write takes no user xattrs (xattr(7)). If that owner is this
            // process, it can help itself; everybody else keeps the access that they have.
            Err(e) if errno(&e) == libc::EACCES => {
                let mode = u32::from(self.context.stat(object)?.stx_mode);
                let chmod = |mode| self.context.chmod(object.path, object.host_type, mode);
                if mode & 0o200 != 0 || chmod(mode | 0o200).is_err() {
                    return Err(e);
                }
                let again = set();
                chmod(mode)?;
                again
            }
            other => other,
        };
        result.map_err(|e| self.impossible(e))
    }

    /// Keeps `kept` on an object that was just made, or removes that object again.
    fn keep_new(
        &self,
        dir: &Object<'_>,
        name: &Name,
        made: BorrowedFd<'_>,
        target: Target<'_>,
        kept: &Kept,
    ) -> io::Result<()> {
        xattr::each(kept, |name, value| sys::xattr::set(target, name, value, 0)).map_err(|e| {
            let directory = kept.mode.is_some_and(|mode| mode & libc::S_IFMT == libc::S_IFDIR);
            self.context.undo(dir.path, name, made, directory);
            self.impossible(e)
        })
    }

    fn keep_file(&self, dir: &Object<'_>, name: &Name, file: OwnedFd, kept: &Kept) -> io::Result<OwnedFd> {
        self.keep_new(dir, name, file.as_fd(), Target::Open(file.as_fd()), kept)?;
        Ok(file)
    }
}

impl ShareMode for MappedXattr {
    fn stat(&self, object: &Object<'_>, attr: &mut Attr) -> io::Result<()> {
        let before = Before::now();
        let stat = self.context.stat_without_birth(object)?;
        let kept = self.kept(object, before, &stat)?;
        mapped::attr(&self.context, &stat, object.path, &kept, attr)
    }

    fn identify(&self, object: &Object<'_>) -> io::Result<Identity> {
        let stat = self.context.stat(object)?;
        let kept = match self.cache.as_ref().and_then(|cache| cache.get(&stat)) {
            Some(kept) => kept,
            None => self.kept_type(object, u32::from(stat.stx_mode) & libc::S_IFMT)?,
        };
        mapped::identity(&self.context, &stat, object.path, &kept)
    }

    fn create(
        &self,
        dir: &Object<'_>,
        name: &Name,
        flags: i32,
        mode: u32,
        owner: Caller,
    ) -> io::Result<OwnedFd> {
        let file = mapped::make_file(&self.context, dir, name, flags)?;
        self.keep_file(dir, name, file, &mapped::of_file(owner, mode))
    }

    fn mkdir(&self, dir: &Object<'_>, name: &Name, mode: u32, owner: Caller) -> io::Result<()> {
        let made = mapped::make_directory(&self.context, dir, name)?;
        let target = Target::Path(self.context.proc(), made.as_fd());
        self.keep_new(
            dir,
            name,
            made.as_fd(),
            target,
            &mapped::of_directory(owner, mode),
        )
    }

    fn mknod(&self, dir: &Object<'_>, name: &Name, mode: u32, rdev: u64, owner: Caller) -> io::Result<()> {
        let kept = mapped::of_node(owner, mode, rdev)?;
        let _making = self.types.making();
        let file = mapped::make_file(&self.context, dir, name, libc::O_WRONLY)?;
        self.keep_file(dir, name, file, &kept).map(drop)
    }

    fn symlink(&self, dir: &Object<'_>, name: &Name, target: &[u8], owner: Caller) -> io::Result<()> {
        let _making = self.types.making();
        let file = mapped::make_symlink(&self.context, dir, name, target)?;
        self.keep_file(dir, name, file, &mapped::of_symlink(owner))
            .map(drop)
    }

    fn readlink(&self, object: &Object<'_>, buf: &mut [u8]) -> io::Result<usize> {
        mapped::readlink(
            &self.context,
            object,
            &self.kept_type(object, object.host_type)?,
            buf,
        )
    }

    fn link(&self, object: &Object<'_>, dir: &Object<'_>, name: &Name) -> io::Result<()> {
        sys::path::link(self.context.proc(), object.path, dir.path, name.as_c_str())
    }

    fn rename(&self, from: &Object<'_>, old: &Name, to: &Object<'_>, new: &Name) -> io::Result<()> {
        sys::path::rename(from.path, old.as_c_str(), to.path, new.as_c_str(), 0)
    }

    fn unlink(&self, dir: &Object<'_>, name: &Name, directory: bool) -> io::Result<()> {
        sys::path::unlink(dir.path, name.as_c_str(), directory)
    }

    fn set_mode(&self, object: &Object<'_>, mode: u32) -> io::Result<()> {
        let kept = self.kept_type(object, object.host_type)?;
        let mode = Some(mapped::changed_mode(&kept, object.host_type, mode));
        self.keep(
            object,
            &Kept {
                mode,
                ..Kept::NOTHING
            },
        )
    }

    fn set_owner(&self, object: &Object<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.and_then(some_id), gid.and_then(some_id));
        if uid.is_none() && gid.is_none() {
            return mapped::touch(object);
        }
        let kept = Kept {
            uid,
            gid,
            ..Kept::NOTHING
        };
        self.keep(object, &kept)
    }

    fn get_xattr(&self, object: &Object<'_>, name: &CStr, buf: &mut [u8]) -> io::Result<usize> {
        match host_name(name, &mut [0; NAME_MAX + 1])? {
            Some(name) => sys::xattr::get(self.context.xattrs(object), name, buf),
            None => Err(error(libc::ENODATA)),
        }
    }

    fn set_xattr(&self, object: &Object<'_>, name: &CStr, value: &[u8], flags: i32) -> io::Result<()> {
        if value.is_empty() && acl::is_acl(name) {
            // An ACL without bytes is none: setting it is how Linux's client removes one that the mode can express.
            return self.remove_xattr(object, name);
        }
        if acl::is_acl(name) {
            // For an ACL of its own the host's kernel would look.
            acl::check(value)?;
        }
        match host_name(name, &mut [0; NAME_MAX + 1])? {
            Some(name) => sys::xattr::set(self.context.xattrs(object), name, value, flags),
            None => Err(error(libc::EACCES)),
        }
    }

    fn remove_xattr(&self, object: &Object<'_>, name: &CStr) -> io::Result<()> {
        let mut room = [0; NAME_MAX + 1];
        let Some(host) = host_name(name, &mut room)? else {
            return Err(error(libc::EACCES));
        };
        match sys::xattr::remove(self.context.xattrs(object), host) {
            // Removing an ACL that is not there succeeds, on the kernel's own file systems too.
            Err(e) if errno(&e) == libc::ENODATA && acl::is_acl(name) => Ok(()),
            other => other,
        }
    }

    fn list_xattr(&self, object: &Object<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let target = self.context.xattrs(object);
        out.clear();
        let mut few = [0; 1024];
        let mut many = Vec::new();
        let names = match sys::xattr::list(target, &mut few) {
            Ok(len) => few.get(..len),
            Err(e) if errno(&e) == libc::ERANGE => {
                many.resize(LIST_MAX, 0);
                let len = sys::xattr::list(target, &mut many)?;
                many.get(..len)
            }
            Err(e) => return Err(e),
        };
        for name in names.unwrap_or_default().split(|&b| b == 0) {
            if let Some(name) = guest_name(name) {
                out.extend_from_slice(name);
                out.push(0);
            }
        }
        Ok(())
    }

    fn entry_type(&self, dir: &Object<'_>, name: &[u8], host: u8) -> Result<u8, u8> {
        if host != libc::DT_REG {
            return Ok(host);
        }
        let Ok(name) = Name::new(name) else {
            return Ok(host);
        };
        let mut buf = [0; 9];
        let value = sys::xattr::get_at(dir.path, name.as_c_str(), xattr::MODE, &mut buf);
        // Not there, or never will be: only who makes the object sets it. Unlike the rights to read it.
        let lasting = match &value {
            Ok(_) => true,
            Err(e) => matches!(errno(e), libc::ENODATA | libc::EOPNOTSUPP),
        };
        let d_type = match absent_or(value) {
            Ok(Some(len)) => {
                let kept = Kept {
                    mode: buf.get(..len).and_then(xattr::id),
                    ..Kept::NOTHING
                };
                mapped::d_type(kept.guest_mode(libc::S_IFREG))
            }
            Ok(None) => host,
            Err(_) => libc::DT_UNKNOWN,
        };
        if lasting { Ok(d_type) } else { Err(d_type) }
    }

    fn types(&self) -> Option<&Types> {
        Some(&self.types)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Surroundings;
    use crate::options::{SecurityModel, ShareOptions};

    #[test]
    fn what_is_asked_while_a_symlink_or_device_is_made_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let surroundings = Surroundings::here().unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let root = crate::sys::ProcFd::open()
            .unwrap()
            .path_of_open(root.as_fd())
            .unwrap();
        let options = ShareOptions::new(dir.path(), SecurityModel::MappedXattr);
        let context = Arc::new(Context::new(root, surroundings, options).unwrap());
        let mode = MappedXattr::new(context.clone()).unwrap();
        let root = Object::by_path(context.root(), libc::S_IFDIR);
        let mut stat = sys::attr::stat(root.path).unwrap();
        let mut asks_again = |old: i64, make: &dyn Fn(&Name)| {
            stat.stx_ctime.tv_sec = old;
            let ask = |make: &dyn Fn(&Name)| {
                let mut asked = false;
                let mut listing = mode.types.begin(0);
                listing.read(&stat, true);
                listing.of(1, libc::DT_REG, || {
                    asked = true;
                    Ok(libc::DT_REG)
                });
                make(&Name::new(old.to_string().as_bytes()).unwrap());
                listing.keep();
                asked
            };
            assert!(ask(make));
            ask(&|_| ())
        };
        let owner = Caller { uid: 1, gid: 1 };
        assert!(!asks_again(1, &|_| ()));
        assert!(!asks_again(2, &|name| {
            mode.create(&root, name, libc::O_RDWR, 0o644, owner).unwrap();
        }));
        assert!(asks_again(3, &|name| mode
            .symlink(&root, name, b"x", owner)
            .unwrap()));
        assert!(asks_again(4, &|name| {
            mode.mknod(&root, name, libc::S_IFIFO | 0o600, 0, owner).unwrap();
        }));
    }

    #[test]
    fn names_go_where_qemu_looks_for_them_or_where_it_looks_away() {
        let host = |name: &CStr| {
            let mut room = [0; NAME_MAX + 1];
            let host = host_name(name, &mut room).map_err(|e| errno(&e))?;
            Ok(host.map(|name| name.to_str().unwrap().to_owned()))
        };
        let under = |name: &CStr| Ok(Some(format!("user.virtfs.{}", name.to_str().unwrap())));
        for kept in [
            acl::ACCESS,
            acl::DEFAULT,
            c"security.capability",
            c"trusted.overlay.opaque",
        ] {
            assert_eq!(host(kept), under(kept));
        }
        assert_eq!(host(c"user.comment"), Ok(Some("user.comment".to_owned())));
        assert_eq!(host(c"user.virtfs.uid"), Ok(None));
        assert_eq!(host(c"user.virtfs.anything"), Ok(None));
        for refused in [c"system.nfs4_acl", c"btrfs.compression", c"", c"users"] {
            assert_eq!(host(refused), Err(libc::EOPNOTSUPP));
        }
        let name = |x: usize| std::ffi::CString::new(format!("security.{}", "x".repeat(x))).unwrap();
        assert_eq!(host(&name(235)), Err(libc::ERANGE));
        assert_eq!(host(&name(234)), under(&name(234)));
    }

    #[test]
    fn the_guest_sees_its_own_names_only() {
        assert_eq!(guest_name(b"user.comment"), Some(&b"user.comment"[..]));
        assert_eq!(guest_name(b"user.virtfs.uid"), None);
        assert_eq!(
            guest_name(b"user.virtfs.system.posix_acl_access"),
            Some(&b"system.posix_acl_access"[..])
        );
        assert_eq!(
            guest_name(b"user.virtfs.security.capability"),
            Some(&b"security.capability"[..])
        );
        assert_eq!(guest_name(b"security.selinux"), None);
        assert_eq!(guest_name(b"system.posix_acl_access"), None);
        assert_eq!(guest_name(b""), None);
    }
}
