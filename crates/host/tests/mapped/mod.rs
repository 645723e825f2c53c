//! A directory with a share mode on it, and short words for what the tests do there.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::Surroundings;
use host::mapped_file::MappedFile;
use host::mapped_xattr::MappedXattr;
use host::sys::{self, ProcFd, xattr::Target};
use host::{Attr, Caller, Context, FileType, Identity, Name, Object, SecurityModel, ShareMode, ShareOptions};

/// Who creates in most tests.
pub const OWNER: Caller = Caller { uid: 1000, gid: 100 };

/// The errno of a failure.
pub fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

pub fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

/// A held object, as a fid would hold it.
pub struct Held {
    pub path: OwnedFd,
    pub file: Option<OwnedFd>,
    pub host_type: u32,
}

impl Held {
    pub fn object(&self) -> Object<'_> {
        Object {
            at: host::At::Unknown,
            path: self.path.as_fd(),
            file: self.file.as_ref().map(AsFd::as_fd),
            host_type: self.host_type,
        }
    }
}

pub struct Tree {
    pub directory: PathBuf,
    pub mode: Box<dyn ShareMode>,
    context: Arc<Context>,
}

impl Tree {
    /// A server in this mode on `directory`.
    pub fn new(model: SecurityModel, directory: &Path) -> Tree {
        Tree::with(ShareOptions::new(directory, model))
    }

    pub fn with(options: ShareOptions) -> Tree {
        sys::attr::umask(0);
        let directory = options.directory.clone();
        let root = std::fs::File::open(&directory).unwrap();
        let surroundings = Surroundings::here().unwrap();
        let root = ProcFd::open()
            .unwrap()
            .reopen(root.as_fd(), libc::O_PATH | libc::O_DIRECTORY)
            .unwrap();
        let model = options.model;
        let context = Arc::new(Context::new(root, surroundings, options).unwrap());
        let mode: Box<dyn ShareMode> = match model {
            SecurityModel::MappedXattr => Box::new(MappedXattr::new(context.clone()).unwrap()),
            SecurityModel::MappedFile => Box::new(MappedFile::new(context.clone())),
            _ => panic!("not a mapped mode"),
        };
        Tree {
            directory,
            mode,
            context,
        }
    }

    pub fn host(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }

    /// Holds the object at `path` as a walk does.
    pub fn at(&self, path: &str) -> Held {
        self.try_at(path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub fn try_at(&self, path: &str) -> io::Result<Held> {
        let mut at = self.context.root().try_clone_to_owned()?;
        for component in path.split('/').filter(|c| !c.is_empty()) {
            at = self.context.lookup(at.as_fd(), name(component).as_c_str())?;
        }
        let host_type = u32::from(sys::attr::stat(at.as_fd())?.stx_mode) & libc::S_IFMT;
        Ok(Held {
            path: at,
            file: None,
            host_type,
        })
    }

    /// The same, and opened.
    pub fn open(&self, path: &str) -> Held {
        let mut held = self.at(path);
        held.file = Some(self.context.reopen(held.path.as_fd(), libc::O_RDWR).unwrap());
        held
    }

    fn split<'p>(&self, path: &'p str) -> (Held, Name, &'p str) {
        let (dir, last) = path.rsplit_once('/').unwrap_or(("", path));
        (self.at(dir), name(last), last)
    }

    pub fn create(&self, path: &str, mode: u32) -> io::Result<OwnedFd> {
        let (dir, name, _) = self.split(path);
        self.mode.create(&dir.object(), &name, libc::O_RDWR, mode, OWNER)
    }

    pub fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        let (dir, name, _) = self.split(path);
        self.mode.mkdir(&dir.object(), &name, mode, OWNER)
    }

    pub fn mknod(&self, path: &str, mode: u32, rdev: u64) -> io::Result<()> {
        let (dir, name, _) = self.split(path);
        self.mode.mknod(&dir.object(), &name, mode, rdev, OWNER)
    }

    pub fn symlink(&self, path: &str, target: &str) -> io::Result<()> {
        let (dir, name, _) = self.split(path);
        self.mode.symlink(&dir.object(), &name, target.as_bytes(), OWNER)
    }

    pub fn readlink(&self, path: &str) -> io::Result<String> {
        let mut buf = [0; 4096];
        let len = self.mode.readlink(&self.at(path).object(), &mut buf)?;
        Ok(String::from_utf8(buf[..len].to_vec()).unwrap())
    }

    pub fn link(&self, old: &str, new: &str) -> io::Result<()> {
        let (dir, name, _) = self.split(new);
        self.mode.link(&self.at(old).object(), &dir.object(), &name)
    }

    pub fn rename(&self, old: &str, new: &str) -> io::Result<()> {
        let (from, old, _) = self.split(old);
        let (to, new, _) = self.split(new);
        self.mode.rename(&from.object(), &old, &to.object(), &new)
    }

    pub fn unlink(&self, path: &str) -> io::Result<()> {
        let (dir, name, _) = self.split(path);
        self.mode.unlink(&dir.object(), &name, false)
    }

    pub fn rmdir(&self, path: &str) -> io::Result<()> {
        let (dir, name, _) = self.split(path);
        self.mode.unlink(&dir.object(), &name, true)
    }

    pub fn chmod(&self, path: &str, mode: u32) -> io::Result<()> {
        self.mode.set_mode(&self.at(path).object(), mode)
    }

    pub fn chown(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.mode.set_owner(&self.at(path).object(), uid, gid)
    }

    pub fn stat(&self, path: &str) -> Attr {
        self.of(&self.at(path).object())
    }

    /// What a walk learns; it does not know the host's type yet.
    /// An object's attributes.
    pub fn of(&self, object: &Object<'_>) -> Attr {
        let mut attr = Attr::default();
        self.mode.stat(object, &mut attr).unwrap();
        attr
    }

    pub fn identify(&self, path: &str) -> Identity {
        let held = Held {
            host_type: 0,
            ..self.at(path)
        };
        self.mode.identify(&held.object()).unwrap()
    }

    /// Mode, owner and group that the guest sees.
    pub fn seen(&self, path: &str) -> (u32, u32, u32) {
        seen(&self.stat(path))
    }

    /// The `DT_*` that a listing shows.
    pub fn d_type(&self, path: &str) -> u8 {
        let (dir, _, last) = self.split(path);
        let host = (self.at(path).host_type >> 12) as u8;
        let shown = self.mode.entry_type(&dir.object(), last.as_bytes(), host);
        shown.unwrap_or_else(|for_now| for_now)
    }

    pub fn get_xattr(&self, path: &str, name: &CStr) -> io::Result<Vec<u8>> {
        let mut buf = vec![0; 1024];
        let len = self.mode.get_xattr(&self.at(path).object(), name, &mut buf)?;
        buf.truncate(len);
        Ok(buf)
    }

    pub fn set_xattr(&self, path: &str, name: &CStr, value: &[u8]) -> io::Result<()> {
        self.mode.set_xattr(&self.at(path).object(), name, value, 0)
    }

    pub fn remove_xattr(&self, path: &str, name: &CStr) -> io::Result<()> {
        self.mode.remove_xattr(&self.at(path).object(), name)
    }

    pub fn list_xattr(&self, path: &str) -> Vec<String> {
        let mut out = Vec::new();
        self.mode.list_xattr(&self.at(path).object(), &mut out).unwrap();
        names(&out)
    }

    /// One xattr of the host object, hexadecimal as getfattr shows it.
    pub fn host_xattr(&self, path: &str, name: &CStr) -> Option<String> {
        let mut buf = [0; 256];
        let held = self.at(path);
        let len = sys::xattr::get(
            Target::Path(self.context.proc(), held.path.as_fd()),
            name,
            &mut buf,
        )
        .ok()?;
        Some(buf[..len].iter().map(|b| format!("{b:02x}")).collect())
    }

    pub fn set_host_xattr(&self, path: &str, name: &CStr, value: &[u8]) {
        let held = self.at(path);
        sys::xattr::set(
            Target::Path(self.context.proc(), held.path.as_fd()),
            name,
            value,
            0,
        )
        .unwrap();
    }

    pub fn host_xattrs(&self, path: &str) -> Vec<String> {
        let mut buf = vec![0; 65536];
        let held = self.at(path);
        let len = sys::xattr::list(Target::Path(self.context.proc(), held.path.as_fd()), &mut buf).unwrap();
        names(&buf[..len])
    }

    /// Permission bits of the host object.
    pub fn host_mode(&self, path: &str) -> u32 {
        use std::os::unix::fs::MetadataExt;
        std::fs::symlink_metadata(self.host(path)).unwrap().mode()
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.host(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub fn write(&self, path: &str, text: &str) {
        std::fs::create_dir_all(self.host(path).parent().unwrap()).unwrap();
        std::fs::write(self.host(path), text).unwrap();
    }
}

pub fn seen(attr: &Attr) -> (u32, u32, u32) {
    (attr.mode, attr.uid, attr.gid)
}

/// Which object and what the guest sees of an identity. Not the version: that of a file changed this very moment may be
/// another one for every look.
pub fn of_object(id: Identity) -> (u64, FileType) {
    (id.unique, id.file_type)
}

/// The same of attributes.
pub fn of_attr(attr: &Attr) -> (u64, FileType) {
    (attr.unique, attr.file_type)
}

fn names(list: &[u8]) -> Vec<String> {
    let mut names: Vec<_> = list
        .split_inclusive(|&b| b == 0)
        .map(|name| {
            CString::from_vec_with_nul(name.to_vec())
                .unwrap()
                .into_string()
                .unwrap()
        })
        .collect();
    names.sort();
    names
}

/// Runs `work` without any privilege, as a user who owns `directory` and nothing else.
pub fn unprivileged<T: Send>(directory: &Path, work: impl FnOnce() -> T + Send) -> T {
    const USER: u32 = 54321;
    let root = sys::cred::fs_ids().0 == 0;
    if root {
        std::os::unix::fs::chown(directory, Some(USER), Some(USER)).unwrap();
    }
    // Credentials and capabilities are a thread's own.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if root {
                sys::cred::set_groups(&[]).unwrap();
                sys::cred::set_fsgid(USER).unwrap();
                sys::cred::set_fsuid(USER).unwrap();
            }
            sys::cred::Caps::default().apply().unwrap();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// All that only root may do on the host, and what belongs to it; `meanwhile`, `d/f` is a file of the guest's root.
pub fn what_needs_no_privilege(tree: &Tree, meanwhile: impl FnOnce()) {
    tree.mkdir("d", 0o755).unwrap();
    tree.create("d/f", 0o6755).unwrap();
    tree.symlink("d/l", "x").unwrap();
    tree.mknod("d/b", libc::S_IFBLK | 0o600, libc::makedev(7, 7))
        .unwrap();
    tree.chown("d/f", Some(0), Some(0)).unwrap();
    tree.chown("", Some(0), Some(0)).unwrap();
    tree.chmod("", 0o41777).unwrap();
    tree.chmod("d/f", 0o104000).unwrap();
    assert_eq!(tree.seen("d/f"), (0o104000, 0, 0));
    assert_eq!(tree.seen(""), (0o41777, 0, 0));
    assert_eq!(tree.seen("d/b").0, 0o60600);
    meanwhile();
    tree.link("d/f", "g").unwrap();
    tree.rename("g", "d/f2").unwrap();
    for path in ["d/f", "d/f2", "d/l", "d/b"] {
        tree.unlink(path).unwrap();
    }
    tree.rmdir("d").unwrap();
}
