//! What the harness knows between two steps: which path each fid was walked to, and which object that was.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ask::Answer;
use crate::step::{Bytes, Step};

/// The two servers of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left = 0,
    Right = 1,
}

pub const SIDES: [Side; 2] = [Side::Left, Side::Right];

/// A fid that both servers know.
#[derive(Clone, Debug)]
pub struct Fid {
    /// Where QEMU looks for it: renames through the servers are followed, as QEMU does.
    pub path: Vec<Bytes>,
    /// The host objects' numbers when the fid was made.
    pub inodes: [Option<u64>; 2],
    pub open: bool,
    /// Of Tlopen or Tlcreate.
    pub flags: u32,
    /// Reads or writes an xattr.
    pub xattr: bool,
    /// Bytes of the xattr written so far.
    pub written: u64,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    pub roots: [PathBuf; 2],
    pub fids: HashMap<u32, Fid>,
}

impl World {
    pub fn new(left: &Path, right: &Path) -> World {
        World {
            roots: [left.to_owned(), right.to_owned()],
            fids: HashMap::new(),
        }
    }

    /// Where a path of the share is on the host.
    pub fn host(&self, side: Side, path: &[Bytes]) -> PathBuf {
        let mut full = self.roots[side as usize].clone();
        full.extend(path.iter().map(|name| OsStr::from_bytes(&name.0)));
        full
    }

    pub fn meta(&self, side: Side, path: &[Bytes]) -> Option<fs::Metadata> {
        fs::symlink_metadata(self.host(side, path)).ok()
    }

    pub fn inodes(&self, path: &[Bytes]) -> [Option<u64>; 2] {
        SIDES.map(|side| self.meta(side, path).map(|meta| meta.ino()))
    }

    /// The path of an entry of the directory that a fid names.
    pub fn entry(&self, dfid: u32, name: &Bytes) -> Option<Vec<Bytes>> {
        let mut path = self.fids.get(&dfid)?.path.clone();
        path.push(name.clone());
        Some(path)
    }

    /// Whether a fid's path no longer leads to the object that the fid was made for.
    pub fn stale(&self, fid: u32) -> bool {
        self.fids
            .get(&fid)
            .is_some_and(|fid| !fid.xattr && self.inodes(&fid.path) != fid.inodes)
    }

    fn add(&mut self, fid: u32, path: Vec<Bytes>, open: bool, xattr: bool) {
        let inodes = self.inodes(&path);
        self.fids.insert(
            fid,
            Fid {
                path,
                inodes,
                open,
                flags: 0,
                xattr,
                written: 0,
            },
        );
    }

    fn moved(&mut self, from: &[Bytes], to: &[Bytes]) {
        for fid in self.fids.values_mut() {
            if let Some(rest) = fid.path.strip_prefix(from) {
                fid.path = [to, rest].concat();
            }
        }
    }

    /// After a step that both servers answered alike.
    pub fn update(&mut self, step: &Step, answer: &Answer) {
        match step {
            // The fid is gone whatever the answer.
            Step::Clunk { fid } | Step::Remove { fid } => {
                self.fids.remove(fid);
            }
            _ if matches!(answer, Answer::Error(_)) => {}
            Step::Attach { fid, .. } => self.add(*fid, Vec::new(), false, false),
            Step::Walk { fid, newfid, names } => {
                let Answer::Walk(qids) = answer else { return };
                let Some(start) = self.fids.get(fid).filter(|_| qids.len() == names.len()) else {
                    return;
                };
                let (mut path, inodes) = (start.path.clone(), start.inodes);
                for name in names {
                    if name.is("..") {
                        path.pop();
                    } else if !name.is(".") {
                        path.push(name.clone());
                    }
                }
                self.add(*newfid, path, false, false);
                if names.is_empty() {
                    // A clone of an open, unlinked file is the same object.
                    self.fids.entry(*newfid).and_modify(|new| new.inodes = inodes);
                }
            }
            Step::Lopen { fid, flags } => {
                self.fids
                    .entry(*fid)
                    .and_modify(|fid| (fid.open, fid.flags) = (true, *flags));
            }
            Step::Lcreate { fid, name, flags, .. } => {
                if let Some(path) = self.entry(*fid, name) {
                    self.add(*fid, path, true, false);
                    self.fids.entry(*fid).and_modify(|fid| fid.flags = *flags);
                }
            }
            Step::Rename { fid, dfid, name } => {
                let from = self.fids.get(fid).map(|fid| fid.path.clone());
                if let (Some(from), Some(to)) = (from, self.entry(*dfid, name)) {
                    self.moved(&from, &to);
                }
            }
            Step::Renameat {
                olddirfid,
                oldname,
                newdirfid,
                newname,
            } => {
                if let (Some(from), Some(to)) =
                    (self.entry(*olddirfid, oldname), self.entry(*newdirfid, newname))
                {
                    self.moved(&from, &to);
                }
            }
            Step::Xattrwalk { fid, newfid, .. } => {
                if let Some(path) = self.fids.get(fid).map(|fid| fid.path.clone()) {
                    self.add(*newfid, path, false, true);
                }
            }
            Step::Xattrcreate { fid, .. } => {
                self.fids.entry(*fid).and_modify(|fid| fid.xattr = true);
            }
            Step::Write { fid, .. } | Step::Fill { fid, .. } => {
                if let Answer::Count(count) = answer {
                    self.fids
                        .entry(*fid)
                        .and_modify(|fid| fid.written += u64::from(*count));
                }
            }
            _ => {}
        }
    }

    /// The fids that a step uses as they are (not those it makes).
    pub fn used(step: &Step) -> Vec<u32> {
        match step {
            Step::Attach { .. }
            | Step::HostFile { .. }
            | Step::HostDir { .. }
            | Step::HostSymlink { .. }
            | Step::HostRemove { .. }
            | Step::Flush { .. } => Vec::new(),
            Step::Walk { fid, .. }
            | Step::Clunk { fid }
            | Step::Remove { fid }
            | Step::Lopen { fid, .. }
            | Step::Lcreate { fid, .. }
            | Step::Getattr { fid }
            | Step::Setattr { fid, .. }
            | Step::Readlink { fid }
            | Step::Read { fid, .. }
            | Step::Write { fid, .. }
            | Step::Fill { fid, .. }
            | Step::Readdir { fid, .. }
            | Step::Readpage { fid, .. }
            | Step::Xattrwalk { fid, .. }
            | Step::Xattrcreate { fid, .. }
            | Step::Statfs { fid }
            | Step::Fsync { fid, .. }
            | Step::Lock { fid, .. }
            | Step::Getlock { fid, .. } => vec![*fid],
            Step::Mkdir { dfid, .. } | Step::Mknod { dfid, .. } | Step::Symlink { dfid, .. } => vec![*dfid],
            Step::Link { dfid, fid, .. } | Step::Rename { fid, dfid, .. } => vec![*dfid, *fid],
            Step::Renameat {
                olddirfid, newdirfid, ..
            } => vec![*olddirfid, *newdirfid],
            Step::Unlinkat { dirfd, .. } => vec![*dirfd],
        }
    }
}
