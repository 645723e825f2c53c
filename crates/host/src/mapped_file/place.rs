//! From a descriptor to a name: metadata are kept by name, and most often all we have of an object is a descriptor.
//!
//! The kernel knows the name: the magic link of the descriptor shows the path, that of the shared directory shows
//! how much of it to take away. Both follow renames by anybody. What they show may be out of date a moment later
//! (this mode's lock excludes that for renames by its own guest) and ends in " (deleted)" when the name is gone.
//!
//! No path is shown that is longer than PATH_MAX, though names lead there one by one as anywhere. Then it takes the name
//! that the object was walked to by ([`At::In`]), which is looked at first where it is known anyway.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::metadata;
use crate::context::Context;
use crate::name::Name;
use crate::share::{At, Object};
use crate::sys::attr::{Record, Statx};
use crate::sys::{self, FdName, error};
use crate::virtfs::Kept;

const PATH_MAX: usize = libc::PATH_MAX as usize;
const DELETED: &[u8] = b" (deleted)";

/// Room for a path.
pub type Room = [u8; PATH_MAX];

/// Where an object is kept. Lives on the stack for the length of one operation.
#[expect(clippy::large_enum_variant, reason = "never stored, never moved far")]
pub enum Place {
    /// It is the shared directory.
    Root,
    /// It has a name: the directory (`O_PATH`) and the name.
    Named(OwnedFd, Name),
    /// It has no name, or none that can be found.
    Nameless,
}

/// The path of the object below the shared directory, empty for that directory itself; `None` when the kernel shows
/// none there: the object was moved out of the share. ENAMETOOLONG when it is longer than what is shown.
fn below<'r>(context: &Context, fd: BorrowedFd<'_>, room: &'r mut Room) -> io::Result<Option<&'r [u8]>> {
    let mut root = [0; PATH_MAX];
    let link = |fd, room: &mut Room| {
        let len = sys::path::read_link(context.proc().dir(), FdName::new(fd).as_c_str(), room)?;
        match len {
            // It may have been cut.
            PATH_MAX.. => Err(error(libc::ENAMETOOLONG)),
            len => Ok(len),
        }
    };
    let (root_len, len) = (link(context.root(), &mut root)?, link(fd, room)?);
    let mut root = root.get(..root_len).unwrap_or_default();
    if root == b"/" {
        root = b"";
    }
    let path: &'r [u8] = room.get(..len).unwrap_or_default();
    Ok(match path.strip_prefix(root) {
        Some(b"" | b"/") => Some(b""),
        Some([b'/', rest @ ..]) => Some(rest),
        _ => None,
    })
}

/// Directory part and last name of a relative path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A NUL-terminated path made of pieces; `None` when it is longer than any path the kernel takes.
fn join<'r>(room: &'r mut Room, pieces: &[&[u8]]) -> Option<&'r CStr> {
    let mut len = 0;
    for piece in pieces {
        room.get_mut(len..len + piece.len())?.copy_from_slice(piece);
        len += piece.len();
    }
    *room.get_mut(len)? = 0;
    CStr::from_bytes_with_nul(room.get(..=len)?).ok()
}

/// Opens the directory `path` below the shared directory.
fn open_directory(context: &Context, path: &[u8]) -> io::Result<Option<OwnedFd>> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    if path.is_empty() {
        return context.root().try_clone_to_owned().map(Some);
    }
    match join(&mut [0; PATH_MAX], &[path]) {
        Some(path) => metadata::there(sys::path::open_below(context.root(), path, flags)),
        None => Ok(None),
    }
}

/// Whether `name` in `dir` is the object of `stat`.
fn is_there(dir: BorrowedFd<'_>, name: &Name, stat: &Statx) -> io::Result<bool> {
    let there = metadata::there(sys::attr::stat_at(dir, name.as_c_str()))?;
    Ok(there.is_some_and(|there| (there.dev(), there.stx_ino) == (stat.dev(), stat.stx_ino)))
}

/// Directory and name of `path`, if that is the object of `stat` indeed.
fn named(context: &Context, stat: &Statx, path: &[u8]) -> io::Result<Option<Place>> {
    let (dir, name) = split(path);
    let Ok(name) = Name::new(name) else {
        return Ok(None);
    };
    let Some(dir) = open_directory(context, dir)? else {
        return Ok(None);
    };
    Ok(is_there(dir.as_fd(), &name, stat)?.then_some(Place::Named(dir, name)))
}

/// Finds the name of the object of `stat`. ENAMETOOLONG: see [`At::Unknown`].
pub fn find(context: &Context, object: &Object<'_>, stat: &Statx) -> io::Result<Place> {
    if context.is_root(stat) {
        return Ok(Place::Root);
    }
    if stat.stx_nlink == 0 {
        return Ok(Place::Nameless);
    }
    match object.at {
        At::In(dir, name) if is_there(dir, name, stat)? => {
            return Ok(Place::Named(dir.try_clone_to_owned()?, *name));
        }
        At::Nowhere => return Ok(Place::Nameless),
        _ => {}
    }
    let mut room = [0; PATH_MAX];
    // Somebody else may be renaming just now: the next look sees the new name.
    for _ in 0..4 {
        let Some(path) = below(context, object.path, &mut room)?.filter(|path| !path.is_empty()) else {
            break;
        };
        if let Some(place) = named(context, stat, path)? {
            return Ok(place);
        }
        // A network file system may have dropped the name from its cache only.
        if let Some(path) = path.strip_suffix(DELETED) {
            return Ok(named(context, stat, path)?.unwrap_or(Place::Nameless));
        }
    }
    Ok(Place::Nameless)
}

/// What the metadata file `path` below `dir` says.
fn load_below(context: &Context, dir: BorrowedFd<'_>, path: &CStr) -> io::Result<Kept> {
    let file = metadata::there(context.proc().open_file_below(dir, path, libc::O_RDONLY))?;
    Ok(file.map_or(Kept::NOTHING, |file| metadata::read(file.as_fd())))
}

/// What is kept of the object of `stat`; `None` when it has no name. The short way for reading: one open instead of two,
/// and a name that the kernel shows is trusted unless it looks deleted. ENAMETOOLONG: see [`At::Unknown`].
pub fn load(context: &Context, object: &Object<'_>, stat: &Statx) -> io::Result<Option<Kept>> {
    if context.is_root(stat) {
        return metadata::load(context.proc(), context.root(), metadata::ROOT).map(Some);
    }
    if stat.stx_nlink == 0 {
        return Ok(None);
    }
    let mut room = [0; PATH_MAX];
    match object.at {
        At::In(dir, name) if is_there(dir, name, stat)? => {
            let pieces = [metadata::DIRECTORY.to_bytes(), b"/", name.as_bytes()];
            let path = join(&mut room, &pieces).unwrap_or_default();
            return load_below(context, dir, path).map(Some);
        }
        At::Nowhere => return Ok(None),
        _ => {}
    }
    let Some(path) = below(context, object.path, &mut room)?.filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let (dir, name) = split(path);
    let mut whole = [0; PATH_MAX];
    let between: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    let pieces = [dir, between, metadata::DIRECTORY.to_bytes(), b"/", name];
    if let Some(whole) = join(&mut whole, &pieces)
        && !path.ends_with(DELETED)
    {
        return load_below(context, context.root(), whole).map(Some);
    }
    match find(context, object, stat)? {
        Place::Named(dir, name) => match metadata::directory(dir.as_fd())? {
            Some(directory) => metadata::load(context.proc(), directory.as_fd(), name.as_c_str()).map(Some),
            None => Ok(Some(Kept::NOTHING)),
        },
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_and_put_together() {
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        let mut room = [1; PATH_MAX];
        assert_eq!(join(&mut room, &[b"a", b"/", b"b"]), Some(c"a/b"));
        assert_eq!(
            join(&mut room, &[&[b'x'; PATH_MAX - 1]]).map(|p| p.count_bytes()),
            Some(PATH_MAX - 1)
        );
        assert_eq!(join(&mut room, &[&[b'x'; PATH_MAX]]), None);
        assert_eq!(join(&mut room, &[&[b'x'; PATH_MAX], b"y"]), None);
    }
}
