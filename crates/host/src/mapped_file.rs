//! Share mode `mapped-file`: owner, group, mode and device number of `dir/name` are lines of text in
//! `dir/.virtfs_metadata/name`, those of the shared directory in its `.virtfs_metadata_root`, byte for byte as
//! QEMU's virtio-9p keeps them. For file systems without xattrs.
//!
//! Every operation here is two on the host, on the object and on its metadata, in an order in which neither a failure
//! nor a crash between the two loses what is kept of an object that is still there. What can be left over are
//! metadata of objects that are gone; they are replaced when the name is used again and never keep a directory from
//! being removed.
//!
//! Metadata are kept by name, so one lock covers the share: looking at an object takes it together with others, a
//! change of names or metadata takes it alone.

mod gone;
mod metadata;
mod place;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::acl;
use crate::attr::{Attr, Caller, Identity};
use crate::context::Context;
use crate::mapped;
use crate::mode::ShareMode;
use crate::name::Name;
use crate::share::Object;
use crate::sys::attr::Statx;
use crate::sys::{self, ProcFd, errno, error};
use crate::virtfs::{Kept, some_id};
use gone::{Gone, Key};
use metadata::there;
use place::Place;

/// The longest list of names the kernel gives, bytes (XATTR_LIST_MAX).
const LIST_MAX: usize = 65536;

/// The share mode.
pub struct MappedFile {
    context: Arc<Context>,
    names: RwLock<Gone>,
}

fn is_directory(stat: &Statx) -> bool {
    u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR
}

impl MappedFile {
    /// Nothing is asked of the file system.
    pub fn new(context: Arc<Context>) -> MappedFile {
        MappedFile {
            context,
            names: RwLock::default(),
        }
    }

    // Each operation leaves the memory consistent, so a panic elsewhere does not spoil it.
    fn look(&self) -> RwLockReadGuard<'_, Gone> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Gone> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self, gone: &Gone, object: &Object<'_>, stat: &Statx) -> io::Result<Kept> {
        Ok(match place::load(&self.context, object, stat)? {
            Some(kept) => kept,
            None => gone.get(Key::of(stat)),
        })
    }

    /// As `kept`, but only where it can make the type another one than the host's.
    fn kept_type(&self, object: &Object<'_>, stat: &Statx) -> io::Result<Kept> {
        if u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG {
            self.kept(&self.look(), object, stat)
        } else {
            Ok(Kept::NOTHING)
        }
    }

    /// Changes what is kept of `object`, then moves its ctime, which a change of the metadata file does not.
    fn change(&self, object: &Object<'_>, change: &dyn Fn(&Kept) -> Kept) -> io::Result<()> {
        let mut gone = self.alone();
        let proc = self.context.proc();
        let stat = self.context.stat(object)?;
        match place::find(&self.context, object, &stat)? {
            Place::Root => metadata::update(proc, self.context.root(), metadata::ROOT, change)?,
            Place::Named(dir, name) => {
                let (directory, _) = metadata::make_directory(dir.as_fd())?;
                metadata::update(proc, directory.as_fd(), name.as_c_str(), change)?;
            }
            Place::Nameless => gone.change(Key::of(&stat), change)?,
        }
        mapped::touch(object)
    }

    /// Keeps `kept` of an object that was just made, or removes that object again.
    fn keep_new(
        &self,
        gone: &mut Gone,
        dir: &Object<'_>,
        name: &Name,
        made: BorrowedFd<'_>,
        directory: bool,
        kept: &Kept,
    ) -> io::Result<()> {
        // File systems use the inode numbers of removed objects again, and some have no time of birth to tell by.
        let mut forget = || {
            if !gone.is_empty() {
                gone.forget(Key::of(&sys::attr::stat(made)?));
            }
            Ok(())
        };
        forget()
            .and_then(|()| metadata::make_directory(dir.path))
            .and_then(|(metadata, _)| metadata::store(metadata.as_fd(), name.as_c_str(), kept))
            .inspect_err(|_| self.context.undo(dir.path, name, made, directory))
    }

    fn keep_file(
        &self,
        gone: &mut Gone,
        dir: &Object<'_>,
        name: &Name,
        file: OwnedFd,
        kept: &Kept,
    ) -> io::Result<OwnedFd> {
        self.keep_new(gone, dir, name, file.as_fd(), false, kept)?;
        Ok(file)
    }

    /// Takes our own names out of the directory `name`, when it has no others, so that it can be removed. ENOTEMPTY
    /// when it has.
    fn empty(&self, dir: BorrowedFd<'_>, name: &Name) -> io::Result<()> {
        // By its name all the same: with O_DIRECTORY the kernel looks at the type before it opens (`do_open`).
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        // What cannot be looked into is left to rmdir(2) to judge.
        let Ok(inner) = sys::path::open_beneath(dir, name.as_c_str(), flags, 0) else {
            return Ok(());
        };
        let mut ours = Vec::new();
        each_name(inner.as_fd(), &mut |name| {
            if metadata::reserved(name) {
                ours.push(name == metadata::DIRECTORY.to_bytes());
                Ok(())
            } else {
                Err(error(libc::ENOTEMPTY))
            }
        })?;
        for is_directory in ours {
            if !is_directory {
                // The root's metadata of a share that this directory once was.
                metadata::remove(inner.as_fd(), metadata::ROOT)?;
                continue;
            }
            if sys::path::unlink(inner.as_fd(), metadata::DIRECTORY, true).is_ok() {
                continue;
            }
            // What is in there describes nothing that exists.
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let Some(stale) = there(sys::path::open_beneath(
                inner.as_fd(),
                metadata::DIRECTORY,
                flags,
                0,
            ))?
            else {
                continue;
            };
            let mut names = Vec::new();
            each_name(stale.as_fd(), &mut |name| {
                names.extend(Name::new(name));
                Ok(())
            })?;
            for name in names {
                // Another process may be making an object this very moment; its metadata are not stale.
                if there(sys::attr::stat_at(inner.as_fd(), name.as_c_str()))?.is_none() {
                    metadata::remove(stale.as_fd(), name.as_c_str())?;
                }
            }
            sys::path::unlink(inner.as_fd(), metadata::DIRECTORY, true)?;
        }
        Ok(())
    }

    /// What has to be remembered of the object of `stat`, whose metadata are `file`, when it loses its name.
    fn remember(&self, gone: &mut Gone, stat: &Statx, file: Option<OwnedFd>) {
        let kept = file
            .as_ref()
            .map_or(Kept::NOTHING, |file| metadata::read(file.as_fd()));
        let shared = !is_directory(stat) && stat.stx_nlink > 1;
        if kept != Kept::NOTHING || shared {
            gone.put(Key::of(stat), kept, file.filter(|_| shared));
        }
    }
}

/// Whether a directory has a metadata directory. What cannot be looked at is as good as not there.
fn has_directory(dir: BorrowedFd<'_>) -> bool {
    sys::attr::stat_at(dir, metadata::DIRECTORY).is_ok_and(|stat| is_directory(&stat))
}

/// Calls `visit` with each name in the open directory but `.` and `..`, until it fails.
fn each_name(dir: BorrowedFd<'_>, visit: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buf = vec![0; 32 * 1024];
    loop {
        let len = sys::io::list(dir, &mut buf)?;
        if len == 0 {
            return Ok(());
        }
        let mut bytes = buf.get(..len).unwrap_or_default();
        while let Some((entry, rest)) = sys::io::entry(bytes) {
            if entry.name != b"." && entry.name != b".." {
                visit(entry.name)?;
            }
            bytes = rest;
        }
    }
}

/// Opens the metadata of an object that is about to lose its name. Other names may go on sharing the file, so it is
/// opened for changes. Not being able to is no reason to keep the object.
fn to_remember(proc: &ProcFd, directory: BorrowedFd<'_>, name: &CStr) -> Option<OwnedFd> {
    metadata::open_to_write(proc, directory, name).unwrap_or_default()
}

/// As QEMU's table for this mode: user xattrs and ACLs are the host's own, the rest is refused and not listed.
fn shown(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == acl::ACCESS.to_bytes() || name == acl::DEFAULT.to_bytes()
}

fn check_shown(name: &CStr) -> io::Result<()> {
    if shown(name.to_bytes()) {
        Ok(())
    } else {
        Err(error(libc::EOPNOTSUPP))
    }
}

impl ShareMode for MappedFile {
    fn stat(&self, object: &Object<'_>, attr: &mut Attr) -> io::Result<()> {
        let gone = self.look();
        let stat = self.context.stat(object)?;
        let kept = self.kept(&gone, object, &stat)?;
        mapped::attr(&self.context, &stat, object.path, &kept, attr)?;
        // Where file systems count sub-directories, the guest counts those that it sees.
        if is_directory(&stat) && stat.stx_nlink > 2 && has_directory(object.path) {
            attr.nlink -= 1;
        }
        Ok(())
    }

    fn identify(&self, object: &Object<'_>) -> io::Result<Identity> {
        let stat = self.context.stat(object)?;
        let kept = self.kept_type(object, &stat)?;
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
        let mut gone = self.alone();
        let file = mapped::make_file(&self.context, dir, name, flags)?;
        self.keep_file(&mut gone, dir, name, file, &mapped::of_file(owner, mode))
    }

    fn mkdir(&self, dir: &Object<'_>, name: &Name, mode: u32, owner: Caller) -> io::Result<()> {
        let mut gone = self.alone();
        let made = mapped::make_directory(&self.context, dir, name)?;
        let kept = mapped::of_directory(owner, mode);
        self.keep_new(&mut gone, dir, name, made.as_fd(), true, &kept)
    }

    fn mknod(&self, dir: &Object<'_>, name: &Name, mode: u32, rdev: u64, owner: Caller) -> io::Result<()> {
        let kept = mapped::of_node(owner, mode, rdev)?;
        let mut gone = self.alone();
        let file = mapped::make_file(&self.context, dir, name, libc::O_WRONLY)?;
        self.keep_file(&mut gone, dir, name, file, &kept).map(drop)
    }

    fn symlink(&self, dir: &Object<'_>, name: &Name, target: &[u8], owner: Caller) -> io::Result<()> {
        let mut gone = self.alone();
        let file = mapped::make_symlink(&self.context, dir, name, target)?;
        self.keep_file(&mut gone, dir, name, file, &mapped::of_symlink(owner))
            .map(drop)
    }

    fn readlink(&self, object: &Object<'_>, buf: &mut [u8]) -> io::Result<usize> {
        let stat = self.context.stat(object)?;
        let kept = self.kept_type(object, &stat)?;
        mapped::readlink(&self.context, object, &kept, buf)
    }

    fn link(&self, object: &Object<'_>, dir: &Object<'_>, name: &Name) -> io::Result<()> {
        let gone = self.alone();
        let stat = self.context.stat(object)?;
        let place = place::find(&self.context, object, &stat)?;
        sys::path::link(self.context.proc(), object.path, dir.path, name.as_c_str())?;
        let share = || {
            let (to, _) = metadata::make_directory(dir.path)?;
            let to = to.as_fd();
            // One may be left over from an object of this name that is gone.
            metadata::remove(to, name.as_c_str())?;
            match &place {
                Place::Named(from, old) => {
                    let (from, _) = metadata::make_directory(from.as_fd())?;
                    let from = from.as_fd();
                    // A host-made object has no file yet; an empty one says nothing, and from now on both names
                    // share it.
                    if metadata::open(self.context.proc(), from, old.as_c_str())?.is_none() {
                        metadata::store(from, old.as_c_str(), &Kept::NOTHING)?;
                    }
                    match sys::path::link_name(from, old.as_c_str(), to, name.as_c_str()) {
                        // No hard links for this file though the object has them: two copies are the next best.
                        Err(e) if matches!(errno(&e), libc::EPERM | libc::EMLINK | libc::EXDEV) => {
                            metadata::store(
                                to,
                                name.as_c_str(),
                                &metadata::load(self.context.proc(), from, old.as_c_str())?,
                            )
                        }
                        other => other,
                    }
                }
                _ => match gone.file(Key::of(&stat)) {
                    Some(file) => sys::path::link(self.context.proc(), file.as_fd(), to, name.as_c_str()),
                    None => metadata::store(to, name.as_c_str(), &gone.get(Key::of(&stat))),
                },
            }
        };
        share().inspect_err(|_| self.context.undo(dir.path, name, object.path, false))
    }

    fn rename(&self, from: &Object<'_>, old: &Name, to: &Object<'_>, new: &Name) -> io::Result<()> {
        let mut gone = self.alone();
        let source = sys::attr::stat_at(from.path, old.as_c_str())?;
        let target = there(sys::attr::stat_at(to.path, new.as_c_str()))?;
        let rename = || sys::path::rename(from.path, old.as_c_str(), to.path, new.as_c_str(), 0);
        if target.is_some_and(|target| Key::of(&target) == Key::of(&source)) {
            // Two names of one object, or one name: rename(2) does nothing, so the metadata stay as they are, too.
            return rename();
        }
        if is_directory(&source) && target.is_some_and(|target| is_directory(&target)) {
            // One that is not empty for the guest either makes rename(2) fail; with which error is for it to say.
            let _ = self.empty(to.path, new);
        }
        let (old_name, new_name) = (old.as_c_str(), new.as_c_str());
        let source_metadata = metadata::directory(from.path)?;
        let described = match &source_metadata {
            Some(directory) => there(sys::attr::stat_at(directory.as_fd(), old_name))?.is_some(),
            None => false,
        };
        let (Some(source_metadata), true) = (source_metadata, described) else {
            // A host-made object: what describes the target must not describe it.
            let directory = metadata::directory(to.path)?;
            let file = match &directory {
                Some(directory) => to_remember(self.context.proc(), directory.as_fd(), new_name),
                None => None,
            };
            rename()?;
            if let Some(target) = &target {
                self.remember(&mut gone, target, file);
            }
            return directory.map_or(Ok(()), |d| metadata::remove(d.as_fd(), new_name));
        };
        let source_metadata = source_metadata.as_fd();
        let (target_metadata, made) = metadata::make_directory(to.path)?;
        let target_metadata = target_metadata.as_fd();
        let file = to_remember(self.context.proc(), target_metadata, new_name);
        // With the new name free, both names are described before the object moves, so that a crash finds it
        // described wherever it is.
        let ahead = target.is_none()
            && metadata::remove(target_metadata, new_name).is_ok()
            && sys::path::link_name(source_metadata, old_name, target_metadata, new_name).is_ok();
        if let Err(e) = rename() {
            if ahead {
                let _ = metadata::remove(target_metadata, new_name);
            }
            if made {
                // Only when still empty.
                let _ = sys::path::unlink(to.path, metadata::DIRECTORY, true);
            }
            return Err(e);
        }
        if let Some(target) = &target {
            self.remember(&mut gone, target, file);
        }
        if ahead {
            return metadata::remove(source_metadata, old_name);
        }
        if sys::path::rename(source_metadata, old_name, target_metadata, new_name, 0).is_err() {
            // The object has moved; a copy describes it as well.
            let kept = metadata::load(self.context.proc(), source_metadata, old_name)?;
            metadata::store(target_metadata, new_name, &kept)?;
        }
        // Still there if both were names of one file.
        metadata::remove(source_metadata, old_name)
    }

    fn unlink(&self, dir: &Object<'_>, name: &Name, directory: bool) -> io::Result<()> {
        let mut gone = self.alone();
        let stat = sys::attr::stat_at(dir.path, name.as_c_str())?;
        if directory && is_directory(&stat) {
            self.empty(dir.path, name)?;
        }
        let metadata = metadata::directory(dir.path)?;
        let file = match &metadata {
            Some(directory) => to_remember(self.context.proc(), directory.as_fd(), name.as_c_str()),
            None => None,
        };
        // The object first: when that fails, it is still described.
        sys::path::unlink(dir.path, name.as_c_str(), directory)?;
        self.remember(&mut gone, &stat, file);
        if let Some(metadata) = metadata
            && let Err(e) = metadata::remove(metadata.as_fd(), name.as_c_str())
        {
            // The object is gone, which is what was asked for; the next one of this name replaces the rest.
            log::debug!("the metadata of {name:?} could not be removed: {e}");
        }
        Ok(())
    }

    fn set_mode(&self, object: &Object<'_>, mode: u32) -> io::Result<()> {
        self.change(object, &|kept| Kept {
            mode: Some(mapped::changed_mode(kept, object.host_type, mode)),
            ..*kept
        })
    }

    fn set_owner(&self, object: &Object<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.and_then(some_id), gid.and_then(some_id));
        if uid.is_none() && gid.is_none() {
            return mapped::touch(object);
        }
        let newer = Kept {
            uid,
            gid,
            ..Kept::NOTHING
        };
        self.change(object, &|kept| kept.merged(newer))
    }

    fn get_xattr(&self, object: &Object<'_>, name: &CStr, buf: &mut [u8]) -> io::Result<usize> {
        check_shown(name)?;
        sys::xattr::get(self.context.xattrs(object), name, buf)
    }

    fn set_xattr(&self, object: &Object<'_>, name: &CStr, value: &[u8], flags: i32) -> io::Result<()> {
        check_shown(name)?;
        sys::xattr::set(self.context.xattrs(object), name, value, flags)
    }

    fn remove_xattr(&self, object: &Object<'_>, name: &CStr) -> io::Result<()> {
        check_shown(name)?;
        sys::xattr::remove(self.context.xattrs(object), name)
    }

    fn list_xattr(&self, object: &Object<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let target = self.context.xattrs(object);
        out.clear();
        let mut names = vec![0; LIST_MAX];
        let len = sys::xattr::list(target, &mut names)?;
        for name in names.get(..len).unwrap_or_default().split(|&b| b == 0) {
            if shown(name) {
                out.extend_from_slice(name);
                out.push(0);
            }
        }
        Ok(())
    }

    fn reserves_names(&self) -> bool {
        true
    }

    fn reserved(&self, name: &[u8]) -> Option<i32> {
        metadata::reserved(name).then_some(libc::EINVAL)
    }

    fn entry_type(&self, dir: &Object<'_>, name: &[u8], host: u8) -> Result<u8, u8> {
        if host != libc::DT_REG {
            return Ok(host);
        }
        let load = || {
            let Some(directory) = metadata::directory(dir.path)? else {
                return Ok(Kept::NOTHING);
            };
            match Name::new(name) {
                Ok(name) => metadata::load(self.context.proc(), directory.as_fd(), name.as_c_str()),
                Err(_) => Ok(Kept::NOTHING),
            }
        };
        match load() {
            Ok(kept) => Ok(mapped::d_type(kept.guest_mode(libc::S_IFREG))),
            Err::<_, io::Error>(_) => Err(libc::DT_UNKNOWN),
        }
    }

    fn needs_names(&self) -> bool {
        true
    }
}
