//! The kinds of steps, one function each. What a real client would send is what mostly comes out.

use super::{ACLS, Generator, Kind, NAMES, ROOT_USER, State, TYPES, XATTRS, join};
use crate::step::{Bytes, Step};

impl Generator {
    pub(super) fn walk(&mut self) {
        if self.random.chance(60) {
            if let Some(path) = self.path(|_| true) {
                self.walk_to(path);
            }
            return;
        }
        // From anywhere (an open fid too), with any names, sometimes onto itself.
        let fid = self.fid(|_, _, state| state != State::Xattr);
        let newfid = if self.random.chance(10) {
            fid
        } else {
            self.new_fid()
        };
        let count = self.random.below(4);
        let names: Vec<Bytes> = (0..count)
            .map(|_| {
                if self.random.chance(15) {
                    Bytes::from("..")
                } else {
                    self.name()
                }
            })
            .collect();
        let mut path = self
            .fids
            .get(&fid)
            .map(|(path, _)| path.clone())
            .unwrap_or_default();
        for name in &names {
            if name.is("..") {
                path.pop();
            } else {
                path.push(name.clone());
            }
        }
        self.steps.push(Step::Walk { fid, newfid, names });
        if self.tree.contains_key(&path) && newfid > ROOT_USER {
            self.fids.insert(newfid, (path, State::Walked));
        }
    }

    pub(super) fn create(&mut self) {
        let (dfid, name, path) = self.place();
        let access = *self
            .random
            .pick(&[libc::O_RDWR, libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY]);
        let mut flags = access as u32;
        if self.random.chance(40) {
            flags |= libc::O_EXCL as u32;
        }
        if self.random.chance(10) {
            flags |= libc::O_TRUNC as u32;
        }
        if self.random.chance(15) {
            flags |= libc::O_APPEND as u32;
        }
        let (mode, gid) = (self.mode(), self.id());
        // Linux clones the directory's fid and creates through the clone.
        let fid = if self.random.chance(95) {
            let newfid = self.new_fid();
            self.steps.push(Step::Walk {
                fid: dfid,
                newfid,
                names: Vec::new(),
            });
            newfid
        } else {
            dfid
        };
        if fid <= ROOT_USER {
            return;
        }
        // Linux sends the bare permission bits here, other clients the type too.
        let mode = if self.random.chance(50) {
            mode | libc::S_IFREG
        } else {
            mode
        };
        self.steps.push(Step::Lcreate {
            fid,
            name,
            flags,
            mode,
            gid,
        });
        self.tree.entry(path.clone()).or_insert(Kind::File);
        self.fids.insert(fid, (path, State::Open));
    }

    pub(super) fn mkdir(&mut self) {
        let (dfid, name, path) = self.place();
        let (mode, gid) = (self.mode(), self.id());
        self.steps.push(Step::Mkdir {
            dfid,
            name,
            mode,
            gid,
        });
        if path.len() < 4 {
            self.tree.entry(path).or_insert(Kind::Dir);
        }
    }

    pub(super) fn mknod(&mut self) {
        let (dfid, name, path) = self.place();
        let kind = *self.random.pick(&TYPES);
        let mode = kind | self.mode();
        let device = kind == libc::S_IFCHR || kind == libc::S_IFBLK;
        let (major, minor) = if device {
            (*self.random.pick(&[1, 8, 300]), *self.random.pick(&[0, 3, 300]))
        } else {
            (0, 0)
        };
        let gid = self.id();
        self.steps.push(Step::Mknod {
            dfid,
            name,
            mode,
            major,
            minor,
            gid,
        });
        let kind = if kind == libc::S_IFREG {
            Kind::File
        } else {
            Kind::Special
        };
        self.tree.entry(path).or_insert(kind);
    }

    pub(super) fn symlink(&mut self) {
        let (dfid, name, path) = self.place();
        let target = match self.random.below(5) {
            0 => Bytes::from("a"),
            1 => Bytes::from("../b"),
            2 => Bytes::from("/etc/passwd"),
            3 => Bytes(b"nowhere \xfe".to_vec()),
            _ => Bytes(vec![b't'; 200]),
        };
        let gid = self.id();
        self.steps.push(Step::Symlink {
            dfid,
            name,
            target,
            gid,
        });
        self.tree.entry(path).or_insert(Kind::Link);
    }

    pub(super) fn link(&mut self) {
        let fid = self.fid(|this, fid, state| {
            state != State::Xattr && this.kind(fid).is_some_and(|kind| kind != Kind::Dir)
        });
        let kind = self.kind(fid);
        let (dfid, name, path) = self.place();
        self.steps.push(Step::Link { dfid, fid, name });
        if let Some(kind) = kind.filter(|kind| *kind != Kind::Dir) {
            self.tree.entry(path).or_insert(kind);
        }
    }

    pub(super) fn rename(&mut self) {
        let (olddirfid, oldname, from) = self.entry();
        let (newdirfid, newname, to) = self.place();
        if self.random.chance(30) {
            let fid = self.fid(|_, fid, state| fid > ROOT_USER && state == State::Walked);
            let from = self
                .fids
                .get(&fid)
                .map(|(path, _)| path.clone())
                .unwrap_or_default();
            self.steps.push(Step::Rename {
                fid,
                dfid: newdirfid,
                name: newname,
            });
            self.moved(&from, &to);
        } else {
            self.steps.push(Step::Renameat {
                olddirfid,
                oldname,
                newdirfid,
                newname,
            });
            self.moved(&from, &to);
        }
    }

    pub(super) fn unlink(&mut self) {
        if self.random.chance(15) {
            let fid = self.fid(|_, fid, state| fid > ROOT_USER && state != State::Xattr);
            if fid > ROOT_USER {
                self.steps.push(Step::Remove { fid });
                if let Some((path, _)) = self.fids.remove(&fid) {
                    self.tree.remove(&path);
                }
            }
            return;
        }
        let (dirfd, name, path) = self.entry();
        let directory = self.tree.get(&path) == Some(&Kind::Dir);
        let honest = self.random.chance(90);
        let flags = if directory == honest { 0x200 } else { 0 };
        self.steps.push(Step::Unlinkat { dirfd, name, flags });
        let children = self
            .tree
            .keys()
            .any(|other| other.len() > path.len() && other.starts_with(&path));
        if !path.is_empty() && honest && !children {
            self.tree.remove(&path);
        }
    }

    pub(super) fn setattr(&mut self) {
        let fid = if self.random.chance(70) {
            self.fid(|_, _, state| state != State::Xattr)
        } else {
            self.aim(|_| true)
        };
        let kind = match self.kind(fid) {
            Some(Kind::Dir) => libc::S_IFDIR,
            Some(Kind::Link) => libc::S_IFLNK,
            _ => libc::S_IFREG,
        };
        let mut mode = self.mode();
        // Linux sends the type bits; the oracle loses the type in the mapped modes without them.
        if self.random.chance(90) {
            mode |= kind;
        }
        const CTIME: u32 = 0x40;
        let valid = match self.random.below(12) {
            0..3 => 0x01 | CTIME,
            3 => 0x02 | CTIME,
            4 => 0x04 | CTIME,
            5 => 0x06 | CTIME,
            6 => 0x08 | 0x20 | CTIME,
            7 => 0x08,
            8 => 0x10 | 0x80 | 0x20 | 0x100 | CTIME,
            9 => *self.random.pick(&[0x20 | 0x100, 0x10 | 0x80, 0x30, 0x10, 0x20]),
            10 => CTIME,
            _ => self.random.below(0x200) as u32,
        };
        let (uid, gid) = (self.id(), self.id());
        let size = *self.random.pick(&[0, 1, 10, 5000]);
        // Long ago, so that the comparison can tell a time that was set from the present.
        let mut time = || {
            let sec = *self.random.pick(&[0, 1, 1_000_000_000, 1_111_111_111]);
            (sec, *self.random.pick(&[0, 1, 123_456_789, 999_999_999]))
        };
        let ((atime_sec, atime_nsec), (mtime_sec, mtime_nsec)) = (time(), time());
        self.steps.push(Step::Setattr {
            fid,
            valid,
            mode,
            uid,
            gid,
            size,
            atime_sec,
            atime_nsec,
            mtime_sec,
            mtime_nsec,
        });
    }

    pub(super) fn open(&mut self) {
        let fid = self.aim(|kind| kind == Kind::File || kind == Kind::Dir);
        if fid <= ROOT_USER {
            return;
        }
        let mut flags = if self.kind(fid) == Some(Kind::Dir) {
            libc::O_RDONLY as u32
        } else {
            *self.random.pick(&[libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY]) as u32
        };
        for (flag, percent) in [
            (libc::O_TRUNC, 5),
            (libc::O_APPEND, 15),
            (libc::O_DIRECTORY, 4),
            (libc::O_NONBLOCK, 5),
        ] {
            if self.random.chance(percent) {
                flags |= flag as u32;
            }
        }
        self.steps.push(Step::Lopen { fid, flags });
        if let Some((_, state)) = self.fids.get_mut(&fid) {
            *state = State::Open;
        }
    }

    pub(super) fn offset(&mut self) -> u64 {
        *self.random.pick(&[0, 0, 0, 1, 5, 9, 100, 4096, 5000])
    }

    pub(super) fn read(&mut self) {
        let fid = self.fid(|this, fid, state| state == State::Open && this.kind(fid) != Some(Kind::Dir));
        let offset = self.offset();
        let count = *self.random.pick(&[0, 1, 10, 1000, 8000]);
        self.steps.push(Step::Read { fid, offset, count });
    }

    pub(super) fn write(&mut self) {
        let fid = self.fid(|this, fid, state| state == State::Open && this.kind(fid) != Some(Kind::Dir));
        let offset = self.offset();
        let byte = u32::from(b'a') + self.random.below(26) as u32;
        let count = *self.random.pick(&[0, 1, 3, 10, 100, 4096, 6000]);
        self.steps.push(Step::Fill {
            fid,
            offset,
            byte,
            count,
        });
    }

    pub(super) fn readdir(&mut self) {
        let mut fid = self.fid(|this, fid, state| state == State::Open && this.kind(fid) == Some(Kind::Dir));
        if self.random.chance(60) {
            let Some(path) = self.path(|kind| kind == Kind::Dir) else {
                return;
            };
            fid = self.walk_to(path);
            if fid <= ROOT_USER {
                return;
            }
            self.steps.push(Step::Lopen { fid, flags: 0 });
            if let Some((_, state)) = self.fids.get_mut(&fid) {
                *state = State::Open;
            }
        }
        let count = *self.random.pick(&[300, 1000, 8000]);
        self.steps.push(Step::Readdir { fid, count });
    }

    pub(super) fn xattr_name(&mut self) -> Bytes {
        match self.random.below(20) {
            0 => Bytes::from("user.virtfs.uid"),
            1 => Bytes::from("user.virtfs.system.posix_acl_access"),
            2 => Bytes::from("security.capability"),
            3 => Bytes::from("trusted.x"),
            4 => Bytes::from("nonsense"),
            5..10 => Bytes::from(*self.random.pick(&ACLS)),
            _ => Bytes::from(*self.random.pick(&XATTRS)),
        }
    }

    pub(super) fn get_xattr(&mut self) {
        let fid = self.fid(|_, _, state| state != State::Xattr);
        let newfid = self.new_fid();
        if newfid <= ROOT_USER {
            return;
        }
        let name = if self.random.chance(30) {
            Bytes::default()
        } else {
            self.xattr_name()
        };
        self.steps.push(Step::Xattrwalk { fid, newfid, name });
        let offset = *self.random.pick(&[0, 0, 0, 1, 1000]);
        self.steps.push(Step::Read {
            fid: newfid,
            offset,
            count: 4000,
        });
        if self.random.chance(85) {
            self.clunk(newfid);
        } else {
            // It stays, for others to come upon.
            let path = self
                .fids
                .get(&fid)
                .map(|(path, _)| path.clone())
                .unwrap_or_default();
            self.fids.insert(newfid, (path, State::Xattr));
        }
    }

    pub(super) fn set_xattr(&mut self) {
        let base = self.fid(|_, _, state| state != State::Xattr);
        let fid = if self.random.chance(95) {
            let newfid = self.new_fid();
            self.steps.push(Step::Walk {
                fid: base,
                newfid,
                names: Vec::new(),
            });
            newfid
        } else {
            base
        };
        if fid <= ROOT_USER {
            return;
        }
        let name = self.xattr_name();
        let remove = self.random.chance(25);
        let data = match () {
            () if remove => Vec::new(),
            () if name.0.starts_with(b"system.") => self.acl(),
            () => vec![b'v'; *self.random.pick(&[1, 4, 8, 100, 0])],
        };
        let flags = if remove {
            2
        } else {
            *self.random.pick(&[0, 0, 0, 1, 2, 4])
        };
        let size = data.len() as u64 + u64::from(self.random.chance(4));
        self.steps.push(Step::Xattrcreate {
            fid,
            name,
            size,
            flags,
        });
        self.fids.insert(
            fid,
            (
                self.fids
                    .get(&base)
                    .map(|(path, _)| path.clone())
                    .unwrap_or_default(),
                State::Xattr,
            ),
        );
        if data.len() > 4 && self.random.chance(20) {
            let second = data[4..].to_vec();
            self.steps.push(Step::Write {
                fid,
                offset: 0,
                data: Bytes(data[..4].to_vec()),
            });
            self.steps.push(Step::Write {
                fid,
                offset: 4,
                data: Bytes(second),
            });
        } else if !data.is_empty() {
            self.steps.push(Step::Write {
                fid,
                offset: 0,
                data: Bytes(data),
            });
        }
        if self.random.chance(90) {
            self.clunk(fid);
        }
    }

    /// The kernel's `posix_acl_xattr` form: version 2, then entries of tag, permissions, id.
    pub(super) fn acl(&mut self) -> Vec<u8> {
        let (tag_user, tag_group) = (0x02u16, 0x08u16);
        let none = u32::MAX;
        let mut entries = vec![(0x01u16, 6u16, none)];
        let named = self.random.chance(70);
        if named {
            entries.push((tag_user, 4, 1000));
        }
        entries.push((0x04, 4, none));
        if named && self.random.chance(50) {
            entries.push((tag_group, 5, 1001));
        }
        if named {
            entries.push((0x10, *self.random.pick(&[4u16, 7]), none));
        }
        entries.push((0x20, *self.random.pick(&[0u16, 4]), none));
        let mut out = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        // Sometimes one that the kernel refuses.
        if self.random.chance(10) {
            out.truncate(out.len() - 3);
        }
        out
    }

    pub(super) fn by_host(&mut self) {
        let Some(mut path) = self.path(|kind| kind == Kind::Dir) else {
            return;
        };
        let name = Bytes::from(*self.random.pick(&NAMES));
        path.push(name);
        // The host's paths are the host's: only names that cannot lead out of the share.
        let plain = |name: &Bytes| NAMES.iter().any(|known| name.is(known));
        if path.len() > 4 || !path.iter().all(plain) {
            return;
        }
        let text = join(&path);
        let mode = *self.random.pick(&[0o644, 0o755, 0o600]);
        match self.random.below(5) {
            0 | 1 => {
                self.steps.push(Step::HostFile {
                    path: text,
                    mode,
                    data: Bytes::from("by-the-host"),
                });
                self.tree.entry(path).or_insert(Kind::File);
            }
            2 => {
                self.steps.push(Step::HostDir { path: text, mode });
                self.tree.entry(path).or_insert(Kind::Dir);
            }
            3 => {
                self.steps.push(Step::HostSymlink {
                    path: text,
                    target: Bytes::from("a"),
                });
                self.tree.entry(path).or_insert(Kind::Link);
            }
            _ => {
                self.steps.push(Step::HostRemove { path: text });
            }
        }
    }
}
