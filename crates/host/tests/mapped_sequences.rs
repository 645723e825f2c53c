//! Random sequences of operations in both mapped modes, against the simplest thing that could be right: a plain
//! directory in which the same names come and go, and a table from its inode numbers to what the guest asked for.

mod mapped;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use host::{Attr, SecurityModel};
use mapped::{Held, OWNER, Tree, of_attr, of_object};
use proptest::prelude::*;

/// What the guest asked for.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Create(String, u32),
    Mkdir(String, u32),
    Mknod(String, u32, u64),
    Symlink(String, String),
    Link(String, String),
    Rename(String, String),
    Unlink(String),
    Rmdir(String),
    Chmod(String, u32),
    Chown(String, Option<u32>, Option<u32>),
    Hold(String),
    ChmodHeld(u32),
    ChownHeld(u32),
}

fn path() -> impl Strategy<Value = String> {
    let top = prop::sample::select(vec!["a", "b", "c", "d"]);
    let deep = prop::option::of(prop::option::of(prop::sample::select(vec!["a", "b", "c"])));
    (top, deep.clone(), deep).prop_map(|(top, second, third)| {
        let parts = [Some(top), second.flatten(), third.flatten()];
        parts.into_iter().flatten().collect::<Vec<_>>().join("/")
    })
}

fn op() -> impl Strategy<Value = Op> {
    let mode = 0u32..0o10000;
    let id = prop::option::of(prop::sample::select(vec![0, 1, 99, 65534, 1 << 31, u32::MAX - 1]));
    let kind = prop::sample::select(vec![
        libc::S_IFCHR,
        libc::S_IFBLK,
        libc::S_IFIFO,
        libc::S_IFSOCK,
        0,
    ]);
    prop_oneof![
        3 => (path(), mode.clone()).prop_map(|(p, m)| Op::Create(p, m)),
        4 => (path(), mode.clone()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        2 => (path(), kind, mode.clone(), 0u64..1 << 31).prop_map(|(p, k, m, r)| Op::Mknod(p, k | m, r)),
        1 => (path(), "[a-z/]{1,30}").prop_map(|(p, t)| Op::Symlink(p, t)),
        3 => (path(), path()).prop_map(|(p, q)| Op::Link(p, q)),
        5 => (path(), path()).prop_map(|(p, q)| Op::Rename(p, q)),
        3 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        2 => (path(), mode.clone()).prop_map(|(p, m)| Op::Chmod(p, m)),
        2 => (path(), id.clone(), id).prop_map(|(p, u, g)| Op::Chown(p, u, g)),
        1 => path().prop_map(Op::Hold),
        1 => mode.prop_map(Op::ChmodHeld),
        1 => (0u32..5).prop_map(Op::ChownHeld),
    ]
}

struct Shadow {
    root: PathBuf,
    asked: HashMap<u64, Asked>,
    /// Keeps the inode number from being used again.
    held: Vec<std::fs::File>,
}

impl Shadow {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn ino(&self, path: &str) -> io::Result<u64> {
        Ok(std::fs::symlink_metadata(self.at(path))?.ino())
    }

    fn made(&mut self, path: &str, mode: u32, rdev: u64) -> io::Result<()> {
        let ino = self.ino(path)?;
        let asked = Asked {
            mode,
            uid: OWNER.uid,
            gid: OWNER.gid,
            rdev,
        };
        self.asked.insert(ino, asked);
        Ok(())
    }

    fn file(&mut self, path: &str, mode: u32, rdev: u64, content: &str) -> io::Result<()> {
        use std::io::Write;
        let mut file = std::fs::File::create_new(self.at(path))?;
        file.write_all(content.as_bytes())?;
        self.made(path, mode, rdev)
    }

    fn chmod(&mut self, ino: u64, mode: u32) {
        let asked = self.asked.get_mut(&ino).unwrap();
        asked.mode = (asked.mode & libc::S_IFMT) | mode;
    }

    fn chown(&mut self, ino: u64, uid: Option<u32>, gid: Option<u32>) {
        let asked = self.asked.get_mut(&ino).unwrap();
        asked.uid = uid.unwrap_or(asked.uid);
        asked.gid = gid.unwrap_or(asked.gid);
    }

    fn apply(&mut self, op: &Op) -> io::Result<()> {
        match op {
            Op::Create(path, mode) => self.file(path, libc::S_IFREG | mode, 0, ""),
            Op::Mknod(path, mode, rdev) => {
                let kind = if mode & libc::S_IFMT == 0 {
                    libc::S_IFREG
                } else {
                    0
                };
                self.file(path, kind | mode, *rdev, "")
            }
            Op::Symlink(path, target) => self.file(path, libc::S_IFLNK | 0o777, 0, target),
            Op::Mkdir(path, mode) => {
                std::fs::create_dir(self.at(path))?;
                self.made(path, libc::S_IFDIR | mode, 0)
            }
            Op::Link(old, new) => std::fs::hard_link(self.at(old), self.at(new)),
            Op::Rename(old, new) => std::fs::rename(self.at(old), self.at(new)),
            Op::Unlink(path) => std::fs::remove_file(self.at(path)),
            Op::Rmdir(path) => std::fs::remove_dir(self.at(path)),
            Op::Chmod(path, mode) => {
                let ino = self.ino(path)?;
                self.chmod(ino, *mode);
                Ok(())
            }
            Op::Chown(path, uid, gid) => {
                let ino = self.ino(path)?;
                self.chown(ino, *uid, *gid);
                Ok(())
            }
            Op::Hold(path) => {
                self.held.push(std::fs::File::open(self.at(path))?);
                Ok(())
            }
            Op::ChmodHeld(mode) => {
                for ino in self.held_inos() {
                    self.chmod(ino, *mode);
                }
                Ok(())
            }
            Op::ChownHeld(id) => {
                for ino in self.held_inos() {
                    self.chown(ino, Some(*id), None);
                }
                Ok(())
            }
        }
    }

    fn held_inos(&self) -> Vec<u64> {
        self.held
            .iter()
            .map(|file| file.metadata().unwrap().ino())
            .collect()
    }
}

fn apply(tree: &Tree, held: &mut Vec<Held>, op: &Op) -> io::Result<()> {
    // What a walk would find missing on the way.
    let parent = |path: &str| {
        let dir = tree.try_at(path.rsplit_once('/').map_or("", |(dir, _)| dir))?;
        match dir.host_type {
            libc::S_IFDIR => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        }
    };
    match op {
        Op::Create(path, mode) => parent(path).and_then(|()| tree.create(path, *mode).map(drop)),
        Op::Mknod(path, mode, rdev) => parent(path).and_then(|()| tree.mknod(path, *mode, *rdev)),
        Op::Symlink(path, target) => parent(path).and_then(|()| tree.symlink(path, target)),
        Op::Mkdir(path, mode) => parent(path).and_then(|()| tree.mkdir(path, *mode)),
        Op::Link(old, new) => {
            tree.try_at(old)?;
            parent(new)?;
            tree.link(old, new)
        }
        Op::Rename(old, new) => {
            parent(old)?;
            parent(new)?;
            tree.rename(old, new)
        }
        Op::Unlink(path) => parent(path).and_then(|()| tree.unlink(path)),
        Op::Rmdir(path) => parent(path).and_then(|()| tree.rmdir(path)),
        Op::Chmod(path, mode) => tree.try_at(path).and_then(|_| tree.chmod(path, *mode)),
        Op::Chown(path, uid, gid) => tree.try_at(path).and_then(|_| tree.chown(path, *uid, *gid)),
        Op::Hold(path) => {
            held.push(tree.try_at(path)?);
            Ok(())
        }
        Op::ChmodHeld(mode) => held
            .iter()
            .try_for_each(|h| tree.mode.set_mode(&h.object(), *mode)),
        Op::ChownHeld(id) => held
            .iter()
            .try_for_each(|h| tree.mode.set_owner(&h.object(), Some(*id), None)),
    }
}

/// All paths below `root` but our own, with what `look` says of each.
fn all<T>(root: &Path, look: &dyn Fn(&str) -> T) -> BTreeMap<String, T> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            if entry
                .file_name()
                .to_str()
                .unwrap()
                .starts_with(".virtfs_metadata")
            {
                continue;
            }
            let path = dir.join(entry.file_name());
            found.insert(path.to_str().unwrap().to_owned(), look(path.to_str().unwrap()));
            if entry.file_type().unwrap().is_dir() {
                todo.push(path);
            }
        }
    }
    found
}

fn asked(attr: &Attr) -> Asked {
    Asked {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
    }
}

/// Each object has its metadata file and each metadata file has its object.
fn check_metadata(tree: &Tree, paths: &BTreeSet<String>) {
    let mut described = BTreeSet::new();
    for dir in paths.iter().map(String::as_str).chain([""]) {
        let Ok(list) = std::fs::read_dir(tree.host(dir).join(".virtfs_metadata")) else {
            continue;
        };
        for entry in list {
            let path = Path::new(dir).join(entry.unwrap().file_name());
            described.insert(path.to_str().unwrap().to_owned());
        }
    }
    assert_eq!(&described, paths);
}

fn run(model: SecurityModel, ops: &[Op]) {
    let (ours, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = Tree::new(model, ours.path());
    let mut held = Vec::new();
    let mut shadow = Shadow {
        root: plain.path().to_owned(),
        asked: HashMap::new(),
        held: Vec::new(),
    };
    for op in ops {
        let expected = shadow.apply(op).map_err(|e| e.raw_os_error());
        let got = apply(&tree, &mut held, op).map_err(|e| e.raw_os_error());
        assert_eq!(got, expected, "{op:?}");
        let look = |path: &str| {
            let attr = tree.stat(path);
            assert_eq!(of_object(tree.identify(path)), of_attr(&attr), "{path}");
            assert_eq!(u32::from(tree.d_type(path)), attr.mode >> 12, "{path}");
            let target = tree.readlink(path).ok();
            assert_eq!(target.is_some(), attr.mode & libc::S_IFMT == libc::S_IFLNK);
            (asked(&attr), target.unwrap_or_default())
        };
        let expect = |path: &str| {
            let asked = shadow.asked[&shadow.ino(path).unwrap()].clone();
            let content = std::fs::read_to_string(shadow.at(path)).unwrap_or_default();
            (asked, content)
        };
        let found = all(&tree.directory, &look);
        assert_eq!(found, all(&shadow.root, &expect), "after {op:?}");
        for (held, ino) in held.iter().zip(shadow.held_inos()) {
            let attr = tree.of(&held.object());
            assert_eq!(asked(&attr), shadow.asked[&ino], "held, after {op:?}");
        }
        if model == SecurityModel::MappedFile {
            check_metadata(&tree, &found.into_keys().collect());
        }
    }
    // Everything can be removed, and nothing stays.
    for (path, directory) in all(&tree.directory, &|path| tree.host(path).is_dir())
        .into_iter()
        .rev()
    {
        if directory {
            tree.rmdir(&path)
        } else {
            tree.unlink(&path)
        }
        .unwrap();
    }
    check_metadata(&tree, &BTreeSet::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mapped_xattr_does_what_a_plain_directory_does(ops in prop::collection::vec(op(), 1..60)) {
        run(SecurityModel::MappedXattr, &ops);
    }

    #[test]
    fn mapped_file_does_what_a_plain_directory_does(ops in prop::collection::vec(op(), 1..60)) {
        run(SecurityModel::MappedFile, &ops);
    }
}
