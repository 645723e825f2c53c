//! Runs inside the guest, on a mounted share: the system calls that no shell makes. One line per
//! check, exit status 1 if any failed. tests/guest.rs compiles this with rustc alone, statically,
//! so it has no dependency and declares the C functions that it needs.
//!
//! Usage: `probe DIR CACHE`, CACHE being the mount's cache mode.

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::Path;
use std::time::{Duration, SystemTime};

const EEXIST: i32 = 17;
const EAGAIN: i32 = 11;
const ENODATA: i32 = 61;
const ERANGE: i32 = 34;

const XATTR_CREATE: c_int = 1;
const XATTR_REPLACE: c_int = 2;

const LOCK_EX: c_int = 2;
const LOCK_NB: c_int = 4;
const LOCK_UN: c_int = 8;

const F_GETLK: c_int = 5;
const F_SETLK: c_int = 6;
const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;

/// `struct flock` of 64-bit machines.
#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    start: i64,
    len: i64,
    pid: i32,
}

const PROT_READ: c_int = 1;
const PROT_WRITE: c_int = 2;
const MAP_SHARED: c_int = 1;
const MAP_PRIVATE: c_int = 2;
const MS_SYNC: c_int = 4;

unsafe extern "C" {
    fn setxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn listxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn removexattr(path: *const c_char, name: *const c_char) -> c_int;
    fn fsetxattr(fd: c_int, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
    fn fgetxattr(fd: c_int, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn flock(fd: c_int, operation: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, lock: *mut Flock) -> c_int;
    fn mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: c_long) -> *mut c_void;
    fn munmap(addr: *mut c_void, len: usize) -> c_int;
    fn msync(addr: *mut c_void, len: usize, flags: c_int) -> c_int;
}

type Result<T = ()> = std::result::Result<T, String>;

/// Says where in the probe a call failed, which an `io::Error` alone does not.
trait At<T> {
    fn at(self, what: &str) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &str) -> Result<T> {
        self.map_err(|e| format!("{what}: {e}"))
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: T, should: T) -> Result {
    if is == should { Ok(()) } else { Err(format!("{what} is {is:?} and should be {should:?}")) }
}

fn fails<T>(what: &str, result: io::Result<T>, errno: i32) -> Result {
    match result {
        Ok(_) => Err(format!("{what} succeeded")),
        Err(e) => same(what, e.raw_os_error(), Some(errno)),
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL in the probe's own paths")
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("no NUL in the probe's own names")
}

fn done(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

fn xattr_set(path: &Path, name: &str, value: &[u8], flags: c_int) -> io::Result<()> {
    // SAFETY: both strings end in NUL and `value` is valid for its length.
    done(unsafe { setxattr(c_path(path).as_ptr(), c_name(name).as_ptr(), value.as_ptr().cast(), value.len(), flags) })
}

fn xattr_get(path: &Path, name: &str, room: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; room];
    // SAFETY: both strings end in NUL and `value` has room for as much as is asked for.
    let n = length(unsafe { getxattr(c_path(path).as_ptr(), c_name(name).as_ptr(), value.as_mut_ptr().cast(), room) })?;
    value.truncate(n);
    Ok(value)
}

fn xattr_names(path: &Path) -> io::Result<Vec<String>> {
    let mut list = vec![0u8; 65536];
    // SAFETY: the path ends in NUL and `list` has room for as much as is asked for.
    let n = length(unsafe { listxattr(c_path(path).as_ptr(), list.as_mut_ptr().cast(), list.len()) })?;
    let mut names: Vec<_> = list[..n]
        .split(|b| *b == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn xattr_remove(path: &Path, name: &str) -> io::Result<()> {
    // SAFETY: both strings end in NUL.
    done(unsafe { removexattr(c_path(path).as_ptr(), c_name(name).as_ptr()) })
}

fn read_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

/// A file goes on living, in all respects, as long as it is open.
fn unlinked(dir: &Path) -> Result {
    let path = dir.join("unlinked");
    let mut file = read_write(&path).at("create")?;
    file.write_all(b"still here").at("write before unlink")?;
    fs::remove_file(&path).at("unlink")?;
    file.write_all(b", and more").at("write")?;
    file.seek(SeekFrom::Start(0)).at("seek")?;
    let mut text = String::new();
    file.read_to_string(&mut text).at("read")?;
    same("the content", text.as_str(), "still here, and more")?;
    file.set_len(10).at("ftruncate")?;
    same("the size", file.metadata().at("fstat")?.len(), 10)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).at("fchmod")?;
    fchown(&file, Some(1), Some(2)).at("fchown")?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_modified(time).at("futimens")?;
    let meta = file.metadata().at("fstat")?;
    same("the mode", meta.mode() & 0o7777, 0o600)?;
    same("the owner", (meta.uid(), meta.gid()), (1, 2))?;
    same("mtime", meta.mtime(), 1_000_000_000)?;
    file.sync_all().at("fsync")
}

/// The same for extended attributes, through the descriptor.
fn unlinked_xattr(dir: &Path) -> Result {
    let path = dir.join("unlinked");
    let file = read_write(&path).at("create")?;
    fs::remove_file(&path).at("unlink")?;
    let name = c_name("user.late");
    // SAFETY: the name ends in NUL and the value is valid for its length.
    done(unsafe { fsetxattr(file.as_raw_fd(), name.as_ptr(), b"x".as_ptr().cast(), 1, 0) }).at("fsetxattr")?;
    let mut value = [0u8; 8];
    // SAFETY: the name ends in NUL and `value` has room for as much as is asked for.
    let n = length(unsafe { fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), 8) });
    same("the value", &value[..n.at("fgetxattr")?], b"x")
}

fn xattrs(path: &Path) -> Result {
    let big = vec![b'v'; 2000];
    xattr_set(path, "user.one", b"1", 0).at("set")?;
    xattr_set(path, "user.empty", b"", 0).at("set an empty value")?;
    xattr_set(path, "user.big", &big, 0).at("set 2000 bytes")?;
    same("user.one", xattr_get(path, "user.one", 100).at("get")?, b"1".to_vec())?;
    same("user.empty", xattr_get(path, "user.empty", 100).at("get an empty value")?, vec![])?;
    same("user.big", xattr_get(path, "user.big", 4000).at("get 2000 bytes")?, big)?;
    fails("a get with too little room", xattr_get(path, "user.big", 10), ERANGE)?;
    fails("a get of what is not there", xattr_get(path, "user.none", 10), ENODATA)?;
    fails("XATTR_CREATE of what is there", xattr_set(path, "user.one", b"2", XATTR_CREATE), EEXIST)?;
    fails("XATTR_REPLACE of what is not", xattr_set(path, "user.none", b"2", XATTR_REPLACE), ENODATA)?;
    xattr_set(path, "user.one", b"longer", XATTR_REPLACE).at("replace")?;
    same("user.one", xattr_get(path, "user.one", 100).at("get")?, b"longer".to_vec())?;
    let names = |path| xattr_names(path).at("list");
    same("the names", names(path)?, ["user.big", "user.empty", "user.one"].map(String::from).to_vec())?;
    for name in ["user.one", "user.empty", "user.big"] {
        xattr_remove(path, name).at("remove")?;
    }
    same("the names at the end", names(path)?, vec![])?;
    fails("a second remove", xattr_remove(path, "user.one"), ENODATA)
}

fn xattrs_of_file_and_directory(dir: &Path) -> Result {
    let (file, subdir) = (dir.join("xattr"), dir.join("xattr.d"));
    fs::write(&file, "").at("create")?;
    fs::create_dir(&subdir).at("mkdir")?;
    xattrs(&file).map_err(|e| format!("on a file: {e}"))?;
    xattrs(&subdir).map_err(|e| format!("on a directory: {e}"))?;
    fs::remove_file(&file).at("unlink")?;
    fs::remove_dir(&subdir).at("rmdir")
}

fn exclusive_create(dir: &Path) -> Result {
    let path = dir.join("exclusive");
    let open = || OpenOptions::new().write(true).create_new(true).mode(0o604).open(&path);
    open().at("the first O_EXCL")?.write_all(b"kept").at("write")?;
    fails("the second O_EXCL", open(), EEXIST)?;
    same("the content", fs::read(&path).at("read")?, b"kept".to_vec())?;
    same("the mode", fs::metadata(&path).at("stat")?.mode() & 0o7777, 0o604)?;
    fs::remove_file(&path).at("unlink")
}

fn two_appenders(dir: &Path) -> Result {
    let path = dir.join("append");
    let open = || OpenOptions::new().append(true).create(true).open(&path).at("open");
    let (mut a, mut b) = (open()?, open()?);
    for _ in 0..50 {
        a.write_all(b"a").at("append")?;
        b.write_all(b"b").at("append")?;
    }
    same("the content", fs::read_to_string(&path).at("read")?, "ab".repeat(50))?;
    fs::remove_file(&path).at("unlink")
}

/// Sizes around a page and around what one message carries, at offsets that fit neither.
fn large_transfers(dir: &Path) -> Result {
    let path = dir.join("large");
    let file = read_write(&path).at("create")?;
    let pattern = |n: usize, seed: usize| (0..n).map(|i| (i * 31 + seed) as u8).collect::<Vec<_>>();
    for (i, n) in [1, 4095, 4096, 4097, 65_536, 511_975, 511_976, 511_977, 512_000, 1_048_576, 3_000_001].into_iter().enumerate() {
        let (data, offset) = (pattern(n, i), (i * 1013) as u64);
        file.write_all_at(&data, offset).at("pwrite")?;
        let mut back = vec![0; n];
        file.read_exact_at(&mut back, offset).at("pread")?;
        if back != data {
            return Err(format!("{n} bytes at {offset} came back changed"));
        }
    }
    let size = file.metadata().at("fstat")?.len();
    same("a read at the end", file.read_at(&mut [0; 100], size).at("pread")?, 0)?;
    same("a read across the end", file.read_at(&mut [0; 100], size - 7).at("pread")?, 7)?;
    file.sync_data().at("fdatasync")?;
    fs::remove_file(&path).at("unlink")
}

fn sync_directory(dir: &Path) -> Result {
    File::open(dir).at("open")?.sync_all().at("fsync")
}

/// A file that is replaced lives on for those who have it open.
fn rename_over_open_file(dir: &Path) -> Result {
    let (old, new) = (dir.join("old"), dir.join("new"));
    fs::write(&old, "old").at("write")?;
    fs::write(&new, "new").at("write")?;
    let mut file = File::open(&old).at("open")?;
    fs::rename(&new, &old).at("rename")?;
    let mut text = String::new();
    file.read_to_string(&mut text).at("read")?;
    same("what was open", text.as_str(), "old")?;
    same("what is there", fs::read_to_string(&old).at("read")?.as_str(), "new")?;
    fs::remove_file(&old).at("unlink")
}

/// Entries that are removed while a listing is under way do not disturb the rest of it.
fn remove_while_listing(dir: &Path) -> Result {
    let sub = dir.join("listing");
    fs::create_dir(&sub).at("mkdir")?;
    for i in 0..300 {
        fs::write(sub.join(format!("entry-{i:03}")), "").at("create")?;
    }
    let mut seen = 0;
    for entry in fs::read_dir(&sub).at("opendir")? {
        fs::remove_file(entry.at("readdir")?.path()).at("unlink")?;
        seen += 1;
    }
    same("the number of entries seen", seen, 300)?;
    fs::remove_dir(&sub).at("rmdir")
}

fn locks(dir: &Path) -> Result {
    let path = dir.join("lock");
    let (a, b) = (read_write(&path).at("create")?, File::open(&path).at("open")?);
    // SAFETY: flock only looks at the descriptor, which is open.
    let lock = |file: &File, how| done(unsafe { flock(file.as_raw_fd(), how) });
    lock(&a, LOCK_EX | LOCK_NB).at("lock")?;
    fails("a second lock", lock(&b, LOCK_EX | LOCK_NB), EAGAIN)?;
    lock(&a, LOCK_UN).at("unlock")?;
    lock(&b, LOCK_EX | LOCK_NB).at("lock after unlock")?;
    drop(b);
    lock(&a, LOCK_EX | LOCK_NB).at("lock after close")?;
    fs::remove_file(&path).at("unlink")
}

/// tests/guest.rs holds an exclusive lock on the bytes 10 to 19 of this file.
fn locks_of_the_host(dir: &Path) -> Result {
    let file = OpenOptions::new().read(true).write(true).open(dir.join("../locked-by-the-host")).at("open")?;
    let lock = |command, kind, start, len| {
        let mut lock = Flock { kind, whence: 0, start, len, pid: 0 };
        // SAFETY: the descriptor is open, and the record is the caller's own.
        done(unsafe { fcntl(file.as_raw_fd(), command, &mut lock) })?;
        Ok::<_, Error>((lock.kind, lock.start, lock.len))
    };
    for kind in [F_RDLCK, F_WRLCK] {
        fails("locking what is locked", lock(F_SETLK, kind, 15, 1), EAGAIN)?;
        same("what is in the way", lock(F_GETLK, kind, 0, 0).at("F_GETLK")?, (F_WRLCK, 10, 10))?;
        same("what is elsewhere", lock(F_GETLK, kind, 20, 5).at("F_GETLK")?.0, F_UNLCK)?;
        lock(F_SETLK, kind, 20, 0).at("locking what is not")?;
    }
    Ok(())
}

/// A mapping of a file's first bytes, all of them there; unmapped at the end.
struct Mapped {
    start: *mut u8,
    len: usize,
}

impl Mapped {
    fn new(file: &File, len: usize, prot: c_int, flags: c_int) -> io::Result<Self> {
        // SAFETY: a new mapping of an open file; nothing else is known by its address.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        if start as isize == -1 { Err(Error::last_os_error()) } else { Ok(Mapped { start: start.cast(), len }) }
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: within the mapping, and the file is as long as that.
        unsafe { self.start.add(at).read_volatile() }
    }

    fn set(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: as in `get`; only a mapping made with PROT_WRITE is written to.
        unsafe { self.start.add(at).write_volatile(byte) }
    }

    fn sync(&self) -> io::Result<()> {
        // SAFETY: the whole of the mapping, and no more.
        done(unsafe { msync(self.start.cast(), self.len, MS_SYNC) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and not used from here on.
        unsafe { munmap(self.start.cast(), self.len) };
    }
}

/// Downloads, as apt does them: appended to in `partial`, then put in the place of what was there,
/// under a lock that another process must see.
fn downloads(dir: &Path) -> Result {
    let (lists, partial) = (dir.join("lists"), dir.join("lists/partial"));
    fs::create_dir_all(&partial).at("mkdir -p")?;
    let lock = read_write(&lists.join("lock")).at("create the lock")?;
    let record = |file: &File, command, kind| {
        let mut lock = Flock { kind, whence: 0, start: 0, len: 0, pid: 0 };
        // SAFETY: the descriptor is open and `lock` is the structure that these commands read or fill.
        let status = unsafe { fcntl(file.as_raw_fd(), command, &mut lock) };
        if status == -1 { Err(Error::last_os_error()) } else { Ok(lock.kind) }
    };
    record(&lock, F_SETLK, F_WRLCK).at("lock")?;

    let (index, arriving) = (lists.join("index"), partial.join("index"));
    for generation in 0..3u8 {
        // In pieces of odd sizes, each by an open of its own, as after an interruption.
        let mut whole = Vec::new();
        for piece in 0..7usize {
            let bytes: Vec<u8> = (0..piece * 3001 + 17).map(|n| (n + piece) as u8 ^ generation).collect();
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&arriving).at("open")?;
            same("the size to go on from", file.metadata().at("fstat")?.len(), whole.len() as u64)?;
            file.write_all(&bytes).at("append")?;
            whole.extend(bytes);
        }
        let file = OpenOptions::new().read(true).write(true).open(&arriving).at("open")?;
        file.set_permissions(fs::Permissions::from_mode(0o644)).at("fchmod")?;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_100_000_000 + u64::from(generation));
        file.set_modified(time).at("futimens")?;
        file.sync_all().at("fsync")?;
        // What was there keeps another name, and whoever has it open or mapped keeps that.
        let kept = lists.join(format!("index.{generation}"));
        let before = match File::open(&index) {
            Ok(before) => {
                fs::hard_link(&index, &kept).at("link")?;
                Some((Mapped::new(&before, 1000, PROT_READ, MAP_PRIVATE).at("mmap")?, before))
            }
            Err(_) => None,
        };
        fs::rename(&arriving, &index).at("rename")?;
        if let Some((map, before)) = before {
            let first = |generation: u8, n: usize| if n < 17 { n as u8 ^ generation } else { (n - 17 + 1) as u8 ^ generation };
            for n in [0, 16, 17, 999] {
                same("the old index, mapped", map.get(n), first(generation - 1, n))?;
            }
            same("links of the old index", before.metadata().at("fstat")?.nlink(), 1)?;
            same("the old index", before.metadata().at("fstat")?.ino(), fs::metadata(&kept).at("stat")?.ino())?;
        }
        let meta = fs::metadata(&index).at("stat")?;
        same("the index's mode and mtime", (meta.mode() & 0o7777, meta.mtime()), (0o644, 1_100_000_000 + i64::from(generation)))?;
        same("what is open is the index", file.metadata().at("fstat")?.ino(), meta.ino())?;
        let now = Mapped::new(&file, whole.len(), PROT_READ, MAP_PRIVATE).at("mmap")?;
        for n in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
            same("the new index, mapped", now.get(n), whole[n])?;
        }
        same("the new index", fs::read(&index).at("read")? == whole, true)?;
        fs::remove_file(&kept).or_else(|e| if generation == 0 { Ok(()) } else { Err(e) }).at("unlink")?;
    }
    // Of the same process, so it is in nobody's way.
    same("F_GETLK by the holder", record(&lock, F_GETLK, F_WRLCK).at("F_GETLK")?, F_UNLCK)?;
    record(&lock, F_SETLK, F_UNLCK).at("unlock")?;
    fs::remove_dir_all(&lists).at("rm -r")
}

/// A buffer in a file that has no name any more, as iperf3 and everybody with mkstemp(3) has it.
fn nameless_buffer(dir: &Path, shared: bool) -> Result {
    const SIZE: usize = 131_072;
    let path = dir.join("buffer.XyZ123");
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).at("mkstemp")?;
    fs::remove_file(&path).at("unlink")?;
    file.set_len(SIZE as u64).at("ftruncate")?;
    same("the size", file.metadata().at("fstat")?.len(), SIZE as u64)?;
    same("its links", file.metadata().at("fstat")?.nlink(), 0)?;
    let flags = if shared { MAP_SHARED } else { MAP_PRIVATE };
    let map = Mapped::new(&file, SIZE, PROT_READ | PROT_WRITE, flags).at("mmap")?;
    same("a byte of a hole", map.get(SIZE - 1), 0)?;
    for n in (0..SIZE).step_by(1021) {
        map.set(n, n as u8 | 1);
    }
    map.sync().at("msync")?;
    let mut back = vec![0; SIZE];
    file.read_exact_at(&mut back, 0).at("read")?;
    for n in (0..SIZE).step_by(1021) {
        same("what the file has of the mapping", back[n], if shared { n as u8 | 1 } else { 0 })?;
    }
    // The other way round, and past the old end.
    file.write_all_at(b"written", 5000).at("write")?;
    if shared {
        same("what the mapping has of the file", map.get(5000), b'w')?;
    }
    file.write_all_at(&[7; 10_000], SIZE as u64 - 5000).at("write beyond the end")?;
    same("the size", file.metadata().at("fstat")?.len(), SIZE as u64 + 5000)?;
    drop(map);
    file.set_len(0).at("ftruncate to nothing")?;
    same("a read of nothing", file.read_at(&mut [0; 10], 0).at("read")?, 0)?;
    file.sync_all().at("fsync")
}

fn mapping(dir: &Path, shared: bool) -> Result {
    let path = dir.join("mapped");
    let file = read_write(&path).at("create")?;
    file.write_all_at(&[b'm'; 8192], 0).at("write")?;
    file.sync_all().at("fsync")?;
    let flags = if shared { MAP_SHARED } else { MAP_PRIVATE };
    let map = Mapped::new(&file, 8192, PROT_READ | PROT_WRITE, flags).at("mmap")?;
    same("the mapped byte", map.get(0), b'm')?;
    map.set(5000, b'M');
    map.sync().at("msync")?;
    drop(map);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).at("read")?;
    same("the byte in the file", byte[0], if shared { b'M' } else { b'm' })?;
    fs::remove_file(&path).at("unlink")
}

/// A write by somebody who is not root takes the set-id bits off, and so does a change of owner.
fn set_id_bits_are_cleared(dir: &Path) -> Result {
    let path = dir.join("setid");
    fs::write(&path, "x").at("create")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).at("chmod")?;
    lchown(&path, Some(1), Some(1)).at("chown")?;
    same("the mode", fs::metadata(&path).at("stat")?.mode() & 0o7777, 0o755)?;
    fs::remove_file(&path).at("unlink")
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(cache)) = (args.next(), args.next()) else {
        eprintln!("usage: probe DIR CACHE");
        std::process::exit(2);
    };
    let dir = Path::new(&dir);
    let mapped = |dir: &Path| mapping(dir, cache != "none");
    let buffer = |dir: &Path| nameless_buffer(dir, cache != "none");
    let checks: [(&str, &dyn Fn(&Path) -> Result); 15] = [
        ("an unlinked open file", &unlinked),
        ("xattrs of an unlinked open file", &unlinked_xattr),
        ("xattrs", &xattrs_of_file_and_directory),
        ("O_EXCL", &exclusive_create),
        ("two appenders", &two_appenders),
        ("transfers of all sizes", &large_transfers),
        ("fsync of a directory", &sync_directory),
        ("rename over an open file", &rename_over_open_file),
        ("removing while listing", &remove_while_listing),
        ("locks", &locks),
        ("locks of the host", &locks_of_the_host),
        ("a memory mapping", &mapped),
        ("downloads", &downloads),
        ("a buffer without a name", &buffer),
        ("set-id bits", &set_id_bits_are_cleared),
    ];
    let mut failed = false;
    for (what, check) in checks {
        match check(dir) {
            Ok(()) => println!("ok - {cache}: {what}"),
            Err(why) => {
                failed = true;
                println!("FAILED - {cache}: {what}: {why}");
            }
        }
    }
    std::process::exit(failed.into());
}
