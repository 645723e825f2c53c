//! A tree as a value: as it lies on the host, or as a server shows it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::ask::{Answer, Server, ask, version};
use crate::generate::join;
use crate::step::{Bytes, Step};
use crate::sys;

/// Times at or after this (in 2017) are the present; earlier ones were set by a request.
const PRESENT: i64 = 1_500_000_000;

/// A time that was set, or the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Set(i64, i64),
    Present,
}

impl When {
    pub fn new(sec: i64, nsec: i64) -> When {
        if sec >= PRESENT {
            When::Present
        } else {
            When::Set(sec, nsec)
        }
    }
}

/// All that is compared of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Type bits included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    pub rdev: u64,
    /// 0 for directories: theirs is the file system's affair.
    pub size: u64,
    /// Of a file, or a symlink's target.
    pub content: Bytes,
    pub xattrs: BTreeMap<Bytes, Bytes>,
    pub atime: When,
    pub mtime: When,
    /// The first path of the same object.
    pub first: Bytes,
}

/// The root is the empty path.
pub type Tree = BTreeMap<Bytes, Node>;

/// Reads a tree on the host.
pub fn on_host(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut paths = vec![PathBuf::new()];
    while let Some(path) = paths.pop() {
        let full = root.join(&path);
        let full = if path.as_os_str().is_empty() {
            root.to_owned()
        } else {
            full
        };
        let meta = fs::symlink_metadata(&full)?;
        let content = match meta.mode() & libc::S_IFMT {
            libc::S_IFREG => fs::read(&full)?,
            libc::S_IFLNK => fs::read_link(&full)?.into_os_string().into_vec(),
            libc::S_IFDIR => {
                for entry in fs::read_dir(&full)? {
                    paths.push(path.join(entry?.file_name()));
                }
                Vec::new()
            }
            _ => Vec::new(),
        };
        let node = Node {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            nlink: meta.nlink(),
            rdev: meta.rdev(),
            size: if meta.is_dir() { 0 } else { meta.size() },
            content: Bytes(content),
            xattrs: sys::xattrs(&full)?,
            atime: When::new(meta.atime(), meta.atime_nsec()),
            mtime: When::new(meta.mtime(), meta.mtime_nsec()),
            first: Bytes(meta.ino().to_le_bytes().to_vec()),
        };
        tree.insert(Bytes(path.as_os_str().as_bytes().to_vec()), node);
    }
    name_groups(&mut tree);
    Ok(tree)
}

/// Replaces the object numbers in [`Node::first`] by first paths, which two trees have in common.
fn name_groups(tree: &mut Tree) {
    let mut names: HashMap<Bytes, Bytes> = HashMap::new();
    for (path, node) in tree.iter_mut() {
        node.first = names
            .entry(node.first.clone())
            .or_insert_with(|| path.clone())
            .clone();
    }
}

/// Reads a tree through a server, in a session of its own.
pub fn through(server: &mut dyn Server) -> Result<Tree, String> {
    version(server);
    expect(server, Step::Attach { fid: 0, uid: 0 })?;
    let mut tree = Tree::new();
    let mut paths: Vec<Vec<Bytes>> = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        expect(
            server,
            Step::Walk {
                fid: 0,
                newfid: 1,
                names: path.clone(),
            },
        )?;
        let Answer::Attr(attr) = expect(server, Step::Getattr { fid: 1 })? else {
            return Err("no attributes".to_owned());
        };
        let xattrs = xattrs_through(server)?;
        // What cannot be read is what is compared then.
        let content = content_through(server, attr.mode, &path, &mut paths)
            .unwrap_or_else(|error| Bytes::from(&*error));
        expect(server, Step::Clunk { fid: 1 })?;
        let node = Node {
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            rdev: attr.rdev,
            size: if attr.mode & libc::S_IFMT == libc::S_IFDIR {
                0
            } else {
                attr.size
            },
            content,
            xattrs,
            atime: When::new(attr.atime_sec as i64, attr.atime_nsec as i64),
            mtime: When::new(attr.mtime_sec as i64, attr.mtime_nsec as i64),
            first: Bytes(attr.qid.path.to_le_bytes().to_vec()),
        };
        tree.insert(join(&path), node);
    }
    name_groups(&mut tree);
    Ok(tree)
}

fn expect(server: &mut dyn Server, step: Step) -> Result<Answer, String> {
    match ask(server, &step, 1) {
        answer @ (Answer::Error(_) | Answer::Broken(_)) => Err(format!("{answer:?} to {step}")),
        answer => Ok(answer),
    }
}

fn content_through(
    server: &mut dyn Server,
    mode: u32,
    path: &[Bytes],
    paths: &mut Vec<Vec<Bytes>>,
) -> Result<Bytes, String> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => {
            expect(server, Step::Lopen { fid: 1, flags: 0 })?;
            read_through(server)
        }
        libc::S_IFLNK => match expect(server, Step::Readlink { fid: 1 })? {
            Answer::Target(target) => Ok(target),
            other => Err(format!("{other:?}")),
        },
        libc::S_IFDIR => {
            expect(server, Step::Lopen { fid: 1, flags: 0 })?;
            if let Answer::Listing(entries) = expect(server, Step::Readdir { fid: 1, count: 8000 })? {
                for entry in entries
                    .into_iter()
                    .filter(|entry| !entry.name.is(".") && !entry.name.is(".."))
                {
                    paths.push([path, &[entry.name]].concat());
                }
            }
            Ok(Bytes::default())
        }
        _ => Ok(Bytes::default()),
    }
}

fn read_through(server: &mut dyn Server) -> Result<Bytes, String> {
    let mut all = Vec::new();
    loop {
        let step = Step::Read {
            fid: 1,
            offset: all.len() as u64,
            count: 8000,
        };
        match expect(server, step)? {
            Answer::Data(data) if data.0.is_empty() => return Ok(Bytes(all)),
            Answer::Data(data) => all.extend(data.0),
            other => return Err(format!("{} reads {other:?}", server.name())),
        }
    }
}

fn xattrs_through(server: &mut dyn Server) -> Result<BTreeMap<Bytes, Bytes>, String> {
    let mut get = |name: &Bytes| -> Result<Bytes, String> {
        expect(
            server,
            Step::Xattrwalk {
                fid: 1,
                newfid: 2,
                name: name.clone(),
            },
        )?;
        let answer = expect(
            server,
            Step::Read {
                fid: 2,
                offset: 0,
                count: 8000,
            },
        );
        expect(server, Step::Clunk { fid: 2 })?;
        match answer? {
            Answer::Data(data) => Ok(data),
            other => Err(format!("an xattr is {other:?}")),
        }
    };
    let names = get(&Bytes::default())?;
    let mut all = BTreeMap::new();
    for name in names.0.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = Bytes(name.to_vec());
        let value = get(&name)?;
        all.insert(name, value);
    }
    Ok(all)
}

/// Makes `root` an empty directory with no history.
pub fn clear(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    for name in sys::xattrs(root)?.keys() {
        sys::remove_xattr(root, name)?;
    }
    std::os::unix::fs::chown(root, Some(0), Some(0))?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    sys::reset_times(root)
}

/// What differs, one line each.
pub fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, node) in left {
        let Some(other) = right.get(path) else {
            lines.push(format!("/{path}: only in the first: {node:?}"));
            continue;
        };
        let mut field = |name: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
            let (a, b) = (format!("{a:?}"), format!("{b:?}"));
            if a != b {
                lines.push(format!("/{path}: {name}: {a} / {b}"));
            }
        };
        field("mode", &Octal(node.mode), &Octal(other.mode));
        field("uid", &node.uid, &other.uid);
        field("gid", &node.gid, &other.gid);
        field("nlink", &node.nlink, &other.nlink);
        field("rdev", &node.rdev, &other.rdev);
        field("size", &node.size, &other.size);
        field("content", &node.content, &other.content);
        field("xattrs", &node.xattrs, &other.xattrs);
        field("atime", &node.atime, &other.atime);
        field("mtime", &node.mtime, &other.mtime);
        field("same object as", &node.first, &other.first);
    }
    for (path, node) in right {
        if !left.contains_key(path) {
            lines.push(format!("/{path}: only in the second: {node:?}"));
        }
    }
    lines
}

/// A mode that prints as people write it.
pub struct Octal(pub u32);

impl std::fmt::Debug for Octal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#o}", self.0)
    }
}
