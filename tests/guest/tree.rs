//! A tree of a few thousand files of every kind, and the comparison of two such trees.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Files in the tree, besides its directories, links and special cases.
const FILES: usize = 2000;

/// A small generator of numbers that are always the same ones, so that a failure can be had again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        // Knuth's MMIX constants; the upper bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Makes the tree at `root`, which must not exist.
pub fn generate(root: &Path) {
    let mut numbers = Numbers(20);
    fs::create_dir(root).unwrap();
    let mut dirs = vec![root.to_owned()];
    for i in 0..150 {
        // Rather broad than deep: without a cache, the guest asks for each component of every path.
        let parent = numbers.next(dirs.len().min(20) as u64) as usize;
        let dir = dirs[parent].join(format!("dir {i}"));
        fs::create_dir(&dir).unwrap();
        dirs.push(dir);
    }
    for i in 0..FILES {
        let dir = &dirs[numbers.next(dirs.len() as u64) as usize];
        let path = dir.join(format!("file-{i}.{}", ["c", "h", "o", "txt"][i % 4]));
        // Many small ones and a few large, as source trees have them; some empty.
        let size = match numbers.next(20) {
            0 => 0,
            1 => numbers.next(300_000),
            _ => numbers.next(6_000),
        };
        let content: Vec<u8> = (0..size).map(|_| numbers.next(256) as u8).collect();
        fs::write(&path, content).unwrap();
        let mode = [0o644, 0o600, 0o755, 0o444, 0o4755, 0o2711][numbers.next(6) as usize];
        if numbers.next(10) == 0 {
            chown(&path, Some(numbers.next(5) as u32), Some(numbers.next(5) as u32)).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        set_time(&path, 1_000_000_000 + numbers.next(700_000_000));
        match numbers.next(15) {
            0 => fs::hard_link(&path, dir.join(format!("hard-{i}"))).unwrap(),
            1 => {
                let link = dir.join(format!("soft-{i}"));
                symlink(path.file_name().unwrap(), &link).unwrap();
                lchown(&link, Some(1), Some(2)).unwrap();
            }
            2 => symlink("/nowhere/at/all", dir.join(format!("broken-{i}"))).unwrap(),
            _ => {}
        }
    }
    special_cases(root);
    // After their contents, which changes them.
    for (i, dir) in dirs.iter().enumerate() {
        fs::set_permissions(dir, Permissions::from_mode([0o755, 0o700, 0o2775, 0o1777][i % 4])).unwrap();
        set_time(dir, 1_200_000_000 + i as u64);
    }
}

fn special_cases(root: &Path) {
    let special = root.join("special");
    fs::create_dir_all(special.join("empty directory")).unwrap();
    fs::write(special.join("n".repeat(255)), "a long name").unwrap();
    fs::write(
        special.join(OsStr::from_bytes(b"not \xff utf-8\nat all")),
        "bytes",
    )
    .unwrap();
    fs::write(special.join("ümläut ☃"), "utf-8").unwrap();
    let deep = special.join(["d"; 20].join("/"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    let holes = File::create(special.join("holes")).unwrap();
    holes.write_all_at(b"end", 1_000_000).unwrap();
    let fifo = Command::new("mkfifo").arg(special.join("fifo")).status().unwrap();
    assert!(fifo.success());
}

fn set_time(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let times = FileTimes::new().set_accessed(time).set_modified(time);
    File::open(path).unwrap().set_times(times).unwrap();
}

/// Packs a tree with the host's tar, in the format that busybox reads in full.
pub fn pack(tree: &Path, archive: &Path) {
    let status = Command::new("tar")
        .args(["--format=gnu", "--numeric-owner", "-C"])
        .arg(tree)
        .arg("-cf")
        .arg(archive)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success(), "tar cannot pack {}", tree.display());
}

/// Unpacks an archive with the host's tar, with all owners and modes.
pub fn unpack(archive: &Path, tree: &Path) {
    fs::create_dir(tree).unwrap();
    let status = Command::new("tar")
        .args(["--numeric-owner", "--same-owner", "-p", "-C"])
        .arg(tree)
        .arg("-xf")
        .arg(archive)
        .status()
        .unwrap();
    assert!(status.success(), "tar cannot unpack {}", archive.display());
}

/// All in which two trees differ: names, types, modes, owners, times (seconds, which is what an
/// archive of this format keeps), which names are links of one file, targets and contents. Without
/// the times of directories and the owners and times of symlinks, which busybox's tar, the
/// guest's, does not restore.
pub fn differences(a: &Path, b: &Path) -> Vec<String> {
    let (a, b) = (describe(a), describe(b));
    assert!(a.len() > FILES, "the tree is too small to compare");
    let mut differences = Vec::new();
    for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
        let (one, other) = (a.get(name), b.get(name));
        if one != other {
            differences.push(format!("{}: {one:?} and {other:?}", name.display()));
        }
    }
    differences.truncate(50);
    differences
}

#[derive(Debug, PartialEq)]
struct Entry {
    mode: u32,
    owner: Option<(u32, u32)>,
    mtime: Option<i64>,
    /// The first name of the file, by sorting, that this is a link to.
    first_link: PathBuf,
    target: Option<PathBuf>,
    /// Size and a hash of the bytes, so that a difference can be printed.
    content: Option<(u64, u64)>,
}

fn describe(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut names = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            names.push(entry.path());
        }
    }
    names.sort();
    let mut first_links = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for path in names {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let first_link = first_links
            .entry(meta.ino())
            .or_insert_with(|| name.clone())
            .clone();
        let entry = Entry {
            mode: meta.mode(),
            owner: (!meta.is_symlink()).then(|| (meta.uid(), meta.gid())),
            mtime: (!meta.is_symlink() && !meta.is_dir()).then(|| meta.mtime()),
            first_link,
            target: meta.is_symlink().then(|| fs::read_link(&path).unwrap()),
            content: meta
                .is_file()
                .then(|| (meta.len(), hash(&fs::read(&path).unwrap()))),
        };
        entries.insert(name, entry);
    }
    entries
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
