//! Two answers to one step: what differs, field by field.

use wire::{Qid, Rgetattr};

use crate::ask::Answer;
use crate::step::{Bytes, Step};
use crate::tree::{Octal, When};
use crate::world::{SIDES, World};

/// A field in which two answers differ.
#[derive(Clone, Debug)]
pub struct Difference {
    pub field: &'static str,
    pub text: String,
}

/// What is found, collected.
struct Found {
    list: Vec<Difference>,
    qids: [Qids; 2],
    /// The step's fid is no longer at its path.
    stale: bool,
}

impl Found {
    /// Each server's number must be that of its own host's object. `kept`: the object is that of the step's fid
    /// itself, which a server that keeps objects finds again when its path is gone.
    fn identity(&mut self, paths: [u64; 2], inodes: [Option<u64>; 2], kept: bool) {
        for side in SIDES {
            let at = side as usize;
            if self.stale && !(kept && self.qids[at] == Qids::Ours) {
                continue;
            }
            let field = ["qid.path of the first", "qid.path of the second"][at];
            let inode = self.qids[at].inode(paths[at]);
            self.field(field, Some(inode), inodes[at]);
        }
    }

    fn field(&mut self, field: &'static str, left: impl std::fmt::Debug, right: impl std::fmt::Debug) {
        let (left, right) = (format!("{left:?}"), format!("{right:?}"));
        if left != right {
            self.list.push(Difference {
                field,
                text: format!("{field}: {left} / {right}"),
            });
        }
    }
}

/// How a server makes a qid's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qids {
    /// QEMU with multidevs=remap and one device: the inode number with a 1 bit behind it. Of whatever is at the
    /// fid's path now.
    Qemu,
    /// The inode number, of the object that the fid was made for.
    Ours,
}

impl Qids {
    fn inode(self, path: u64) -> u64 {
        match self {
            Qids::Qemu => path >> 1,
            Qids::Ours => path,
        }
    }
}

/// Compares the answers to `step`, after it was done and before `world` is told.
pub fn answers(
    step: &Step,
    left: &Answer,
    right: &Answer,
    world: &World,
    qids: [Qids; 2],
) -> Vec<Difference> {
    let mut found = Found {
        list: Vec::new(),
        qids,
        stale: World::used(step).iter().any(|fid| world.stale(*fid)),
    };
    match (left, right) {
        (Answer::Qid(l), Answer::Qid(r)) => {
            found.field("qid.type", l.kind, r.kind);
            let path = match step {
                Step::Attach { .. } => Some(Vec::new()),
                Step::Mkdir { dfid, name, .. }
                | Step::Mknod { dfid, name, .. }
                | Step::Symlink { dfid, name, .. } => world.entry(*dfid, name),
                _ => None,
            };
            if let Some(path) = path {
                found.identity([l.path, r.path], world.inodes(&path), false);
            }
        }
        (Answer::Walk(l), Answer::Walk(r)) => {
            let kinds = |qids: &[Qid]| qids.iter().map(|qid| qid.kind).collect::<Vec<_>>();
            found.field("qids", kinds(l), kinds(r));
            if let Step::Walk { fid, names, .. } = step {
                walk(&mut found, *fid, names, [l, r], world);
            }
        }
        (Answer::Open { qid: l, iounit: a }, Answer::Open { qid: r, iounit: b }) => {
            found.field("qid.type", l.kind, r.kind);
            let field = if l.kind & wire::QTDIR != 0 {
                "iounit of a directory"
            } else {
                "iounit"
            };
            found.field(field, a, b);
            let inodes = match step {
                Step::Lcreate { fid, name, .. } => world.entry(*fid, name).map(|path| world.inodes(&path)),
                Step::Lopen { fid, .. } => world.fids.get(fid).map(|fid| fid.inodes),
                _ => None,
            };
            if let Some(inodes) = inodes {
                found.identity([l.path, r.path], inodes, matches!(step, Step::Lopen { .. }));
            }
        }
        (Answer::Attr(l), Answer::Attr(r)) => {
            attributes(&mut found, l, r);
            if let Step::Getattr { fid } = step
                && let Some(fid) = world.fids.get(fid)
            {
                found.identity([l.qid.path, r.qid.path], fid.inodes, true);
            }
        }
        (Answer::Listing(l), Answer::Listing(r)) => {
            let names = |list: &[crate::ask::Entry]| -> Vec<(Bytes, u8)> {
                list.iter()
                    .map(|entry| (entry.name.clone(), entry.qid_kind))
                    .collect()
            };
            // How many entries a page holds is the server's affair, if only it holds some.
            let page = matches!(step, Step::Readpage { .. }) && !l.is_empty() && !r.is_empty();
            let len = if page { l.len().min(r.len()) } else { usize::MAX };
            let (l, r) = (&l[..l.len().min(len)], &r[..r.len().min(len)]);
            found.field("entries", names(l), names(r));
            for (l, r) in l.iter().zip(r) {
                found.field("d_type", l.kind, r.kind);
                let plain = !l.name.is(".") && !l.name.is("..");
                if let Step::Readdir { fid, .. } | Step::Readpage { fid, .. } = step
                    && let Some(path) = world.entry(*fid, &l.name).filter(|_| plain)
                {
                    found.identity([l.path, r.path], world.inodes(&path), false);
                }
            }
        }
        (Answer::Statfs(l), Answer::Statfs(r)) => {
            found.field("f_type", l.kind, r.kind);
            found.field("namelen", l.namelen, r.namelen);
            found.field("fsid", l.fsid, r.fsid);
            found.field("bsize", l.bsize, r.bsize);
        }
        _ => found.field("answer", left, right),
    }
    if let (Answer::Broken(_), _) | (_, Answer::Broken(_)) = (left, right) {
        found.list.push(Difference {
            field: "broken",
            text: format!("{left:?} / {right:?}"),
        });
    }
    found.list
}

fn walk(found: &mut Found, fid: u32, names: &[Bytes], qids: [&[Qid]; 2], world: &World) {
    let Some(mut path) = world.fids.get(&fid).map(|fid| fid.path.clone()) else {
        return;
    };
    for ((name, l), r) in names.iter().zip(qids[0]).zip(qids[1]) {
        if name.is("..") {
            path.pop();
        } else if !name.is(".") {
            path.push(name.clone());
        }
        found.identity([l.path, r.path], world.inodes(&path), false);
    }
}

fn attributes(found: &mut Found, l: &Rgetattr, r: &Rgetattr) {
    found.field("qid.type", l.qid.kind, r.qid.kind);
    found.field("mode", Octal(l.mode), Octal(r.mode));
    found.field("uid", l.uid, r.uid);
    found.field("gid", l.gid, r.gid);
    found.field("nlink", l.nlink, r.nlink);
    found.field("rdev", l.rdev, r.rdev);
    found.field("size", l.size, r.size);
    let when = |sec: u64, nsec: u64| When::new(sec as i64, nsec as i64);
    found.field(
        "atime",
        when(l.atime_sec, l.atime_nsec),
        when(r.atime_sec, r.atime_nsec),
    );
    found.field(
        "mtime",
        when(l.mtime_sec, l.mtime_nsec),
        when(r.mtime_sec, r.mtime_nsec),
    );
    found.field(
        "ctime",
        when(l.ctime_sec, l.ctime_nsec),
        when(r.ctime_sec, r.ctime_nsec),
    );
    found.field("valid", l.valid & 0x7ff, r.valid & 0x7ff);
    found.field("blksize", l.blksize, r.blksize);
}
