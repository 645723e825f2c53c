//! Random sequences. A rough model of the tree and of the fids steers them towards steps that do something; it
//! assumes that every step succeeds, which is wrong often enough to meet the errors too.

mod anything;
mod requests;

use std::collections::BTreeMap;

use crate::random::Random;
use crate::step::{Bytes, Step};

/// Fid of the root, attached as uid 0.
pub const ROOT: u32 = 0;
/// Fid of the root, attached as uid 1000.
pub const ROOT_USER: u32 = 1;
/// Working fids are `FIRST..FIRST + COUNT`; the next one is never made.
const FIRST: u32 = 2;
const COUNT: u32 = 8;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const IDS: [u32; 4] = [0, 1000, 1001, 4_000_000_000];
const MODES: [u32; 8] = [0o644, 0o600, 0o755, 0o700, 0o000, 0o777, 0o444, 0o1777];
const SET_ID: [u32; 4] = [0o4755, 0o2755, 0o6711, 0o2644];
const XATTRS: [&str; 3] = ["user.one", "user.two", "user.x%y z"];
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
const TYPES: [u32; 5] = [
    libc::S_IFREG,
    libc::S_IFCHR,
    libc::S_IFBLK,
    libc::S_IFIFO,
    libc::S_IFSOCK,
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Dir,
    Link,
    Special,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Walked,
    Open,
    Xattr,
}

type Path = Vec<Bytes>;

struct Generator {
    random: Random,
    tree: BTreeMap<Path, Kind>,
    fids: BTreeMap<u32, (Path, State)>,
    steps: Vec<Step>,
    /// Set-id bits only in some sequences.
    set_id: bool,
    host: bool,
}

/// The sequence of a seed.
pub fn sequence(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let set_id = random.chance(20);
    let host = random.chance(25);
    let length = 10 + random.below(50);
    let root = BTreeMap::from([(Path::new(), Kind::Dir)]);
    let mut generator = Generator {
        random,
        tree: root,
        fids: BTreeMap::new(),
        steps: Vec::new(),
        set_id,
        host,
    };
    generator.attach();
    while generator.steps.len() < length {
        generator.step();
    }
    generator.steps
}

impl Generator {
    fn attach(&mut self) {
        for (fid, uid) in [(ROOT, 0), (ROOT_USER, 1000)] {
            self.steps.push(Step::Attach { fid, uid });
            self.fids.insert(fid, (Path::new(), State::Walked));
        }
    }

    fn id(&mut self) -> u32 {
        *self.random.pick(&IDS)
    }

    fn mode(&mut self) -> u32 {
        if self.set_id && self.random.chance(40) {
            *self.random.pick(&SET_ID)
        } else {
            *self.random.pick(&MODES)
        }
    }

    /// A name, mostly one that is likely to be met again.
    fn name(&mut self) -> Bytes {
        if self.random.chance(96) {
            return Bytes::from(*self.random.pick(&NAMES));
        }
        match self.random.below(9) {
            0 => Bytes::from("."),
            1 => Bytes::from(".."),
            2 => Bytes::from(""),
            3 => Bytes::from("a/b"),
            4 => Bytes(vec![b'n'; 255]),
            5 => Bytes(vec![b'n'; 256]),
            6 => Bytes::from(".virtfs_metadata"),
            7 => Bytes::from(".virtfs_metadata_root"),
            _ => Bytes(b"\xff b\n".to_vec()),
        }
    }

    /// A path in the tree of a kind that `wanted` likes.
    fn path(&mut self, wanted: impl Fn(Kind) -> bool) -> Option<Path> {
        let all: Vec<&Path> = self
            .tree
            .iter()
            .filter(|(_, kind)| wanted(**kind))
            .map(|(path, _)| path)
            .collect();
        if all.is_empty() {
            return None;
        }
        Some((*self.random.pick(&all)).clone())
    }

    fn kind(&self, fid: u32) -> Option<Kind> {
        self.tree.get(&self.fids.get(&fid)?.0).copied()
    }

    /// Any fid at all, existing or not.
    fn any_fid(&mut self) -> u32 {
        self.random.below((FIRST + COUNT + 1) as usize) as u32
    }

    /// A fid in a state that `wanted` likes; any fid when there is none, and sometimes anyway.
    fn fid(&mut self, wanted: impl Fn(&Generator, u32, State) -> bool) -> u32 {
        if self.random.chance(4) {
            return self.any_fid();
        }
        let all: Vec<u32> = self
            .fids
            .iter()
            .filter(|(fid, (_, state))| wanted(self, **fid, *state))
            .map(|(fid, _)| *fid)
            .collect();
        if all.is_empty() {
            return self.any_fid();
        }
        *self.random.pick(&all)
    }

    /// A fid that is free, or is made free.
    fn new_fid(&mut self) -> u32 {
        if self.random.chance(2) {
            return self.any_fid();
        }
        let free: Vec<u32> = (FIRST..FIRST + COUNT)
            .filter(|fid| !self.fids.contains_key(fid))
            .collect();
        if !free.is_empty() {
            return *self.random.pick(&free);
        }
        let fid = FIRST + self.random.below(COUNT as usize) as u32;
        self.clunk(fid);
        fid
    }

    fn clunk(&mut self, fid: u32) {
        self.steps.push(Step::Clunk { fid });
        self.fids.remove(&fid);
    }

    /// A walked fid of something that `wanted` likes, walking there if need be.
    fn aim(&mut self, wanted: impl Fn(Kind) -> bool + Copy) -> u32 {
        if self.random.chance(60) {
            return self.fid(|this, fid, state| state == State::Walked && this.kind(fid).is_some_and(wanted));
        }
        match self.path(wanted) {
            Some(path) => self.walk_to(path),
            None => self.any_fid(),
        }
    }

    fn walk_to(&mut self, path: Path) -> u32 {
        let newfid = self.new_fid();
        let fid = if self.random.chance(50) { ROOT } else { ROOT_USER };
        self.steps.push(Step::Walk {
            fid,
            newfid,
            names: path.clone(),
        });
        self.fids.insert(newfid, (path, State::Walked));
        newfid
    }

    /// A directory to make something in, and the path of what is made.
    fn place(&mut self) -> (u32, Bytes, Path) {
        let dfid = self.aim(|kind| kind == Kind::Dir);
        let mut name = self.name();
        let mut path = self
            .fids
            .get(&dfid)
            .map(|(path, _)| path.clone())
            .unwrap_or_default();
        path.push(name.clone());
        // Most things are made where nothing is.
        if self.tree.contains_key(&path) && self.random.chance(70) {
            name = self.name();
            path.pop();
            path.push(name.clone());
        }
        (dfid, name, path)
    }

    /// A directory and the name of something in it.
    fn entry(&mut self) -> (u32, Bytes, Path) {
        let Some(path) = self
            .path(|_| true)
            .filter(|path| !path.is_empty() && self.random.chance(90))
        else {
            return self.place();
        };
        let parent = path[..path.len() - 1].to_vec();
        let name = path[path.len() - 1].clone();
        let known: Vec<u32> = self
            .fids
            .iter()
            .filter(|(_, (at, state))| *at == parent && *state == State::Walked)
            .map(|(fid, _)| *fid)
            .collect();
        let dfid = if known.is_empty() {
            self.walk_to(parent)
        } else {
            *self.random.pick(&known)
        };
        (dfid, name, path)
    }

    fn moved(&mut self, from: &Path, to: &Path) {
        let part = |path: &Path| -> Option<Path> {
            let rest = path.strip_prefix(from.as_slice())?;
            Some([to.as_slice(), rest].concat())
        };
        if from.is_empty() || to.starts_with(from) {
            return;
        }
        self.tree = self
            .tree
            .iter()
            .map(|(path, kind)| (part(path).unwrap_or_else(|| path.clone()), *kind))
            .collect();
        for (path, _) in self.fids.values_mut() {
            if let Some(new) = part(path) {
                *path = new;
            }
        }
    }

    fn step(&mut self) {
        let weights = [
            12, // walk
            14, // create
            8,  // mkdir
            5,  // mknod
            5,  // symlink
            5,  // link
            7,  // rename
            7,  // unlink
            12, // getattr
            14, // setattr
            8,  // open
            10, // read
            12, // write
            8,  // readdir
            8,  // xattr get
            10, // xattr set
            4,  // readlink
            2,  // statfs
            1,  // fsync
            6,  // clunk
            1,  // attach
            if self.host { 6 } else { 0 },
            4,  // lock
            3,  // a page of a directory
            12, // anything, of any fid
        ];
        match self.random.weighted(&weights) {
            0 => self.walk(),
            1 => self.create(),
            2 => self.mkdir(),
            3 => self.mknod(),
            4 => self.symlink(),
            5 => self.link(),
            6 => self.rename(),
            7 => self.unlink(),
            8 => {
                let fid = self.fid(|_, _, state| state != State::Xattr);
                self.steps.push(Step::Getattr { fid });
            }
            9 => self.setattr(),
            10 => self.open(),
            11 => self.read(),
            12 => self.write(),
            13 => self.readdir(),
            14 => self.get_xattr(),
            15 => self.set_xattr(),
            16 => {
                let fid = self.aim(|kind| kind == Kind::Link);
                self.steps.push(Step::Readlink { fid });
            }
            17 => {
                let fid = self.fid(|_, _, _| true);
                self.steps.push(Step::Statfs { fid });
            }
            18 => {
                let fid = self.fid(|_, _, state| state == State::Open);
                let datasync = self.random.below(2) as u32;
                self.steps.push(Step::Fsync { fid, datasync });
            }
            19 => {
                let fid = self.fid(|_, fid, _| fid > ROOT_USER);
                if fid > ROOT_USER {
                    self.clunk(fid);
                }
            }
            20 => {
                let (fid, uid) = (self.new_fid(), self.id());
                self.steps.push(Step::Attach { fid, uid });
                self.fids.entry(fid).or_insert((Path::new(), State::Walked));
            }
            21 => self.by_host(),
            22 => self.lock(),
            23 => self.page(),
            _ => self.anything(),
        }
    }
}

/// A path as the text of a host step.
pub fn join(path: &[Bytes]) -> Bytes {
    let parts: Vec<&[u8]> = path.iter().map(|name| name.0.as_slice()).collect();
    Bytes(parts.join(&b'/'))
}
