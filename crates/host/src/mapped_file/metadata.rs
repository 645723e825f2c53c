//! The files in `.virtfs_metadata`: finding, reading, making and rewriting them.
//!
//! A file is rewritten in place, never replaced: two names of one object share it as two names of one file, and
//! that is part of the format. So that a crash or a reader in mid-rewrite finds either the old or the new text, one
//! write puts the new text and blank lines over all of the old text, and only then the blank lines are cut off.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::mapped::{read_start, write_all};
use crate::sys::{self, ProcFd, errno};
use crate::virtfs::{Kept, text};

/// The directory beside the objects it describes.
pub const DIRECTORY: &CStr = c".virtfs_metadata";
/// The file that describes the shared directory itself, in it.
pub const ROOT: &CStr = c".virtfs_metadata_root";

/// Whether a name belongs to this format and not to the guest.
pub fn reserved(name: &[u8]) -> bool {
    name == DIRECTORY.to_bytes() || name == ROOT.to_bytes()
}

/// `None` in place of "not there", which a path with a file in its middle or a symlink in our place is, too.
pub fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) => match errno(&e) {
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP => Ok(None),
            _ => Err(e),
        },
    }
}

/// The metadata directory of `dir`, as `O_PATH`, when it has one.
pub fn directory(dir: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    there(sys::path::open_beneath(
        dir,
        DIRECTORY,
        libc::O_PATH | libc::O_DIRECTORY,
        0,
    ))
}

/// The metadata directory of `dir`, made when it has none; and whether it was made.
pub fn make_directory(dir: BorrowedFd<'_>) -> io::Result<(OwnedFd, bool)> {
    if let Some(found) = directory(dir)? {
        return Ok((found, false));
    }
    let made = match sys::path::mkdir(dir, DIRECTORY, 0o700) {
        Ok(()) => true,
        Err(e) if errno(&e) == libc::EEXIST => false,
        Err(e) => return Err(e),
    };
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    Ok((sys::path::open_beneath(dir, DIRECTORY, flags, 0)?, made))
}

/// Opens the file `name` in the metadata directory for reading; whatever else somebody put there is as good as nothing.
pub fn open(proc: &ProcFd, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    there(proc.open_file(directory, name, libc::O_RDONLY))
}

/// As [`open`], for rewriting.
pub fn open_to_write(proc: &ProcFd, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    there(proc.open_file(directory, name, libc::O_RDWR))
}

/// What an open metadata file says; nothing when it cannot be read as one.
pub fn read(file: BorrowedFd<'_>) -> Kept {
    let mut bytes = [0; text::READ];
    match read_start(file, &mut bytes) {
        Ok(len) => text::parse(bytes.get(..len).unwrap_or_default()),
        Err(_) => Kept::NOTHING,
    }
}

/// What the metadata directory says about `name`.
pub fn load(proc: &ProcFd, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Kept> {
    Ok(open(proc, directory, name)?.map_or(Kept::NOTHING, |file| read(file.as_fd())))
}

/// Removes `name` from the metadata directory; one that is not there is as good.
pub fn remove(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    there(sys::path::unlink(directory, name, false)).map(drop)
}

/// Writes the metadata of a new object. A file left over from an object that is gone is removed, not rewritten: it
/// may be shared with another name of that object.
pub fn store(directory: BorrowedFd<'_>, name: &CStr, kept: &Kept) -> io::Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY;
    let create = || sys::path::open_beneath(directory, name, flags, 0o600);
    let file = match create() {
        Err(e) if errno(&e) == libc::EEXIST => {
            remove(directory, name)?;
            create()?
        }
        other => other?,
    };
    write_all(file.as_fd(), text::Text::new(kept).as_bytes(), 0).inspect_err(|_| {
        // An empty file would only say that the host's values count, which is true, but tidy is better.
        let _ = remove(directory, name);
    })
}

/// Keeps other servers on the same tree from rewriting the same file. Best effort: neither a file system without locks
/// nor a process that sits on one may stop a chmod.
struct Lock<'a>(BorrowedFd<'a>);

impl<'a> Lock<'a> {
    fn new(file: BorrowedFd<'a>) -> Lock<'a> {
        // A rewrite takes microseconds; this waits some 50 ms in all.
        for _ in 0..50 {
            match sys::io::lock_whole(file) {
                Err(e) if errno(&e) == libc::EWOULDBLOCK => std::thread::sleep(Duration::from_millis(1)),
                _ => break,
            }
        }
        Lock(file)
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // The description may live on, so its closing is not enough. If there was no lock, this does nothing.
        let _ = sys::io::unlock_whole(self.0);
    }
}

/// Rewrites an open metadata file in place.
pub fn rewrite(file: BorrowedFd<'_>, change: &dyn Fn(&Kept) -> Kept) -> io::Result<()> {
    let _lock = Lock::new(file);
    let mut bytes = [b'\n'; text::READ];
    let old = read_start(file, &mut bytes)?;
    let kept = change(&text::parse(bytes.get(..old).unwrap_or_default()));
    let new = text::Text::new(&kept);
    let new = new.as_bytes();
    bytes.fill(b'\n');
    if let Some(place) = bytes.get_mut(..new.len()) {
        place.copy_from_slice(new);
    }
    write_all(file, bytes.get(..old.max(new.len())).unwrap_or_default(), 0)?;
    if old > new.len() {
        sys::attr::truncate(file, new.len() as u64)?;
    }
    Ok(())
}

/// Changes what the metadata directory says about `name`, which gets a file if it has none.
pub fn update(
    proc: &ProcFd,
    directory: BorrowedFd<'_>,
    name: &CStr,
    change: &dyn Fn(&Kept) -> Kept,
) -> io::Result<()> {
    match open_to_write(proc, directory, name)? {
        Some(file) => rewrite(file.as_fd(), change),
        None => store(directory, name, &change(&Kept::NOTHING)),
    }
}
