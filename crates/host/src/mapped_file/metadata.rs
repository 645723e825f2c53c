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

/// Whether a name belongs to this format and not to the guest, or is another spelling of one that does: this mode is made
/// for file systems on which there are such. Case counts for nothing on FAT, in directories with chattr +F and on SMB
/// servers; some of these take characters beyond ASCII for letters, or for nothing; FAT drops dots and spaces at the end,
/// and has a short name for every long one.
pub fn reserved(name: &[u8]) -> bool {
    // Nearly every other name ends here.
    if !matches!(name.first(), Some(b'.' | b'v' | b'V' | 0x80..)) {
        return false;
    }
    let end = name.iter().rposition(|b| !matches!(b, b'.' | b' '));
    let name = name.get(..end.map_or(0, |end| end + 1)).unwrap_or_default();
    // What is no text is compared byte by byte everywhere.
    let text = str::from_utf8(name).unwrap_or_default();
    let spells = |ours: &CStr| folded(text).eq(ours.to_bytes().iter().copied().map(char::from));
    short(name) || spells(DIRECTORY) || spells(ROOT)
}

/// The letters that some file system takes the characters of `text` for; those that fold to others than ours are left as
/// they are.
fn folded(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|&c| !ignorable(c)).map(|c| match c {
        '\u{17f}' => 's',
        '\u{130}' | '\u{131}' => 'i',
        c => c.to_ascii_lowercase(),
    })
}

/// Unicode's `Default_Ignorable_Code_Point`, which directories with chattr +F leave out of names.
fn ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Whether this is FAT's short name of one of ours (`vfat_create_shortname`): six letters, or two and a number of four
/// digits.
fn short(name: &[u8]) -> bool {
    let [base @ .., b'~', digit] = name else {
        return false;
    };
    let spelt = base.len() == 6 && base[..2].eq_ignore_ascii_case(b"vi");
    let number = |letters: &[u8]| letters.iter().all(u8::is_ascii_hexdigit);
    spelt && digit.is_ascii_digit() && (base[2..].eq_ignore_ascii_case(b"rtfs") || number(&base[2..]))
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
            match sys::io::lock_whole(file, Some(true)) {
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
        let _ = sys::io::lock_whole(self.0, None);
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

#[cfg(test)]
mod tests {
    use super::reserved;

    #[test]
    fn no_spelling_of_our_names_is_the_guests() {
        for ours in [
            ".virtfs_metadata",
            ".virtfs_metadata_root",
            ".VIRTFS_METADATA",
            ".Virtfs_Metadata_ROOT",
            ".virtfs_metadata.",
            ".virtfs_metadata. . ",
            ".virtf\u{17f}_metadata",
            ".virtfs_metadata_root\u{ad}",
            ".v\u{200b}irtfs_metadata",
            "\u{feff}.V\u{131}RTFS_metadata",
            "VIRTFS~1",
            "virtfs~9.",
            "VI03AF~1",
        ] {
            assert!(reserved(ours.as_bytes()), "{ours}");
        }
        for theirs in [
            "",
            ".",
            "..",
            "...",
            "virtfs_metadata",
            ".virtfs_metadat",
            ".virtfs_metadata_",
            ".virtfs_metadata_roots",
            ".virtfs_metadata.x",
            ".virtfs_metadata_root.x",
            "x.virtfs_metadata",
            ".virtfs metadata",
            "virtfs~",
            "virtfs~10",
            "virtfx~1",
            "vi03ag~1",
            "\u{e4}\u{f6}\u{fc}",
            "\u{6587}\u{4ef6}\u{6587}\u{4ef6}\u{6587}\u{4ef6}\u{6587}\u{4ef6}",
            ".virtfs_m\u{e9}tadata",
            "notes~",
            ".m\u{e9}tadata",
        ] {
            assert!(!reserved(theirs.as_bytes()), "{theirs}");
        }
    }
}
