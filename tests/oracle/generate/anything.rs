//! Requests on fids in whatever state they are, which no real client sends: of what was removed or renamed, of an
//! xattr that is being read or written, of a directory in the middle of a listing.

use super::{Generator, Kind, NAMES, ROOT_USER, State};
use crate::step::{Bytes, Step};

/// Kinds of locks: the three there are, and one that is none.
const LOCKS: [u32; 5] = [0, 1, 1, 2, 3];

impl Generator {
    fn range(&mut self) -> (u64, u64) {
        let start = *self.random.pick(&[0, 0, 5, 100, i64::MAX as u64, u64::MAX]);
        (
            start,
            *self.random.pick(&[0, 0, 1, 10, i64::MAX as u64, u64::MAX]),
        )
    }

    fn lock_of(&mut self, fid: u32) -> Step {
        let kind = *self.random.pick(&LOCKS);
        let (start, length) = self.range();
        let proc_id = self.random.below(3) as u32;
        if self.random.chance(30) {
            return Step::Getlock {
                fid,
                kind,
                start,
                length,
                proc_id,
            };
        }
        Step::Lock {
            fid,
            kind,
            flags: *self.random.pick(&[0, 0, 1, 2, 4]),
            start,
            length,
            proc_id,
        }
    }

    pub(super) fn lock(&mut self) {
        let fid = self.fid(|this, fid, state| state == State::Open && this.kind(fid) == Some(Kind::File));
        let step = self.lock_of(fid);
        self.steps.push(step);
    }

    fn page_of(&mut self, fid: u32) -> Step {
        let odd = [
            1,
            2,
            17,
            1 << 31,
            (1 << 32) + 1,
            1 << 62,
            i64::MAX as u64,
            1 << 63,
            u64::MAX,
        ];
        let offset = match self.random.below(3) {
            0 => *self.random.pick(&odd),
            _ => 0,
        };
        Step::Readpage {
            fid,
            offset,
            count: *self.random.pick(&[0, 1, 24, 30, 60, 280, 1000]),
        }
    }

    pub(super) fn page(&mut self) {
        let fid = self.fid(|this, fid, state| state == State::Open && this.kind(fid) == Some(Kind::Dir));
        let step = self.page_of(fid);
        self.steps.push(step);
    }

    /// One of the fids there are, whatever it is.
    fn some_fid(&mut self) -> u32 {
        self.fid(|_, _, _| true)
    }

    fn plain(&mut self) -> Bytes {
        Bytes::from(*self.random.pick(&NAMES))
    }

    /// A request that leaves the model of the fids as it is, if it fails as it mostly does.
    pub(super) fn anything(&mut self) {
        let (fid, other) = (self.some_fid(), self.some_fid());
        let (name, another) = (self.plain(), self.plain());
        let gid = 0;
        let step = match self.random.below(25) {
            0 => Step::Getattr { fid },
            1 => Step::Readlink { fid },
            2 => Step::Statfs { fid },
            3 => Step::Fsync { fid, datasync: 1 },
            4 => self.lock_of(fid),
            5 => self.page_of(fid),
            6 => Step::Readdir { fid, count: 1000 },
            7 => {
                let (offset, count) = (self.offset(), *self.random.pick(&[0, 1, 10, 8000, 32_000]));
                Step::Read { fid, offset, count }
            }
            8 => {
                let (offset, count) = (self.offset(), *self.random.pick(&[0, 1, 10, 4096]));
                Step::Fill {
                    fid,
                    offset,
                    byte: 120,
                    count,
                }
            }
            9 => Step::Setattr {
                fid,
                valid: *self.random.pick(&[0, 0x08, 0x40, 0x30, 0x1b0]),
                mode: 0,
                uid: 0,
                gid: 0,
                size: 7,
                atime_sec: 5,
                atime_nsec: 6,
                mtime_sec: 7,
                mtime_nsec: 8,
            },
            10 => Step::Mkdir {
                dfid: fid,
                name,
                mode: 0o755,
                gid,
            },
            11 => Step::Mknod {
                dfid: fid,
                name,
                mode: libc::S_IFREG | 0o644,
                major: 0,
                minor: 0,
                gid,
            },
            12 => Step::Symlink {
                dfid: fid,
                name,
                target: another,
                gid,
            },
            13 => Step::Link {
                dfid: fid,
                fid: other,
                name,
            },
            14 => Step::Rename {
                fid,
                dfid: *self.random.pick(&[other, wire::NOFID]),
                name,
            },
            15 => Step::Renameat {
                olddirfid: fid,
                oldname: name,
                newdirfid: other,
                newname: another,
            },
            16 => Step::Unlinkat {
                dirfd: fid,
                name,
                flags: *self.random.pick(&[0, 0x200, 0x100, u32::MAX]),
            },
            17 => Step::Lopen {
                fid,
                flags: self.random.below(4) as u32,
            },
            18 => Step::Lcreate {
                fid,
                name,
                flags: (libc::O_RDWR | libc::O_EXCL) as u32,
                mode: 0o600,
                gid,
            },
            19 => Step::Walk {
                fid,
                newfid: other,
                names: vec![name],
            },
            20 => Step::Walk {
                fid,
                newfid: other,
                names: Vec::new(),
            },
            21 => Step::Xattrwalk {
                fid,
                newfid: other,
                name: self.xattr_name(),
            },
            22 => Step::Xattrcreate {
                fid,
                name: self.xattr_name(),
                size: *self.random.pick(&[0, 1, 65536, 65537, u64::MAX]),
                flags: self.random.below(4) as u32,
            },
            23 => Step::Flush {
                oldtag: *self.random.pick(&[0, 1, 999, 0xfffe, 0xffff]),
            },
            _ => {
                if fid > ROOT_USER {
                    self.clunk(fid);
                }
                return;
            }
        };
        // The two fids of the root stay what they are, or nothing would work from then on.
        let turned = match &step {
            Step::Lopen { fid, .. } | Step::Lcreate { fid, .. } | Step::Xattrcreate { fid, .. } => *fid,
            Step::Walk { fid, newfid, .. } if fid == newfid => *fid,
            _ => u32::MAX,
        };
        if turned <= ROOT_USER {
            return;
        }
        self.steps.push(step);
    }
}
