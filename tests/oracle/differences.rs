//! The table of deliberate differences from QEMU. A rule is as narrow as it can be told from the step, the state of
//! the tree and the two answers.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::ask::Answer;
use crate::rules::{Allow, Mode, Rule};
use crate::step::{Bytes, Step};
use crate::world::{Fid, Side, World};

/// `Tsetattr.valid`
const MODE: u32 = 1;
const OWNER: u32 = 2 | 4;
const SIZE: u32 = 8;
const TIMES: u32 = 0x10 | 0x20;
const TIMES_SET: u32 = 0x80 | 0x100;

/// The rule that allows most.
pub const FID: &str = "a fid is an object";

/// See the module.
pub const RULES: &[Rule] = &[
    Rule {
        name: FID,
        reason: "QEMU's fid is a path: after an unlink or a replacement it names nothing or a stranger; \
                 ours stays with its object",
        allow: Allow::Answers(|context, _, _| {
            World::used(context.step)
                .iter()
                .any(|fid| context.world.stale(*fid))
        }),
    },
    Rule {
        name: "Tlcreate leaves an existing file as it is",
        reason: "without O_EXCL QEMU gives a file that is there already a new owner and mode, and unlinks it when \
                 that fails",
        allow: Allow::Leave(|context| match context.step {
            Step::Lcreate { fid, name, flags, .. } if flags & libc::O_EXCL as u32 == 0 => {
                let path = context.world.entry(*fid, name);
                path.is_some_and(|path| context.world.meta(Side::Right, &path).is_some())
            }
            _ => false,
        }),
    },
    Rule {
        name: "a file keeps its type",
        reason: "in the mapped modes QEMU stores the type bits of a chmod as they come, absent or wrong, and the \
                 file is of another type from then on, or of none",
        allow: Allow::Leave(|context| match context.step {
            Step::Setattr { valid, mode, .. } if context.mode.mapped() && valid & MODE != 0 => context
                .guest_mode
                .is_some_and(|old| (old ^ mode) & libc::S_IFMT != 0),
            _ => false,
        }),
    },
    Rule {
        name: "an xattr may be empty",
        reason: "QEMU removes an xattr that is set to nothing",
        allow: Allow::Leave(|context| match context.step {
            Step::Xattrcreate {
                name, size: 0, flags, ..
            } => flags & libc::XATTR_REPLACE as u32 == 0 && !name.0.starts_with(b"system.posix_acl_"),
            _ => false,
        }),
    },
    Rule {
        name: "devices with squash",
        reason: "QEMU makes them as far as the process may; here the guest makes devices on the host with passthrough only",
        allow: Allow::Leave(|context| match context.step {
            Step::Mknod { mode, .. } => {
                context.mode == Mode::Squash && matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
            }
            _ => false,
        }),
    },
    Rule {
        name: "security.* and trusted.* are kept",
        reason: "QEMU refuses them with EOPNOTSUPP",
        allow: Allow::Leave(|context| match context.step {
            Step::Xattrcreate { name, .. } | Step::Xattrwalk { name, .. } => {
                name.0.starts_with(b"security.") || name.0.starts_with(b"trusted.")
            }
            _ => false,
        }),
    },
    Rule {
        name: "a fid of an xattr is nothing else",
        reason: "QEMU goes on to answer what is asked of the file; no client asks, and an illegal state is an error",
        allow: Allow::Answers(|context, _, ours| {
            let xattr = |fid: &u32| context.world.fids.get(fid).is_some_and(|fid| fid.xattr);
            World::used(context.step).iter().any(xattr) && ours.error() == Some(libc::EINVAL)
        }),
    },
    Rule {
        name: "Tremove of a fid of an xattr",
        reason: "QEMU tries to remove the file, and sets the xattr when it gives the fid back, whatever came of that; an \
                 illegal state is an error, and Tclunk is what sets an xattr",
        allow: Allow::Leave(|context| match context.step {
            Step::Remove { fid } => context.world.fids.get(fid).is_some_and(|fid| fid.xattr),
            _ => false,
        }),
    },
    Rule {
        name: "a newfid in use is said first",
        reason: "of two errors QEMU reports the file's, we the client's, before the host is asked",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Walk { fid, newfid, .. } | Step::Xattrwalk { fid, newfid, .. } => {
                let used = context
                    .world
                    .fids
                    .get(newfid)
                    .is_some_and(|known| fid != newfid || known.open);
                used && ours.error() == Some(libc::EINVAL) && !matches!(theirs, Answer::Size(_))
            }
            _ => false,
        }),
    },
    Rule {
        name: "only a regular file has a size",
        reason: "to truncate anything else fails in both; truncate(2) says EINVAL, and EISDIR of a directory, QEMU \
                 what opening it gives (ELOOP, ENXIO) or ftruncate(2) of a directory (EINVAL)",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Setattr { valid, .. } if valid & SIZE != 0 => {
                let opened = matches!(theirs.error(), Some(libc::ELOOP | libc::ENXIO | libc::EINVAL));
                opened && matches!(ours.error(), Some(libc::EINVAL | libc::EISDIR))
            }
            _ => false,
        }),
    },
    Rule {
        name: "a symlink's mode cannot change",
        reason: "chmod of a host symlink fails in both; the kernel says EOPNOTSUPP, QEMU ELOOP",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Setattr { valid, .. } if valid & MODE != 0 => {
                theirs.error() == Some(libc::ELOOP) && ours.error() == Some(libc::EOPNOTSUPP)
            }
            _ => false,
        }),
    },
    Rule {
        name: "a directory is not written",
        reason: "QEMU does not look at the flags that a directory is opened with; open(2) says EISDIR",
        allow: Allow::Answers(|context, _, ours| match context.step {
            Step::Lopen { .. } => ours.error() == Some(libc::EISDIR),
            _ => false,
        }),
    },
    Rule {
        name: "a write-back to an appending fid is positioned",
        reason: "QEMU appends whatever the offset, also a page that the guest's cache sends back",
        allow: Allow::Leave(|context| match context.step {
            Step::Write { fid, offset, .. } | Step::Fill { fid, offset, .. } => {
                context.world.fids.get(fid).is_some_and(|fid| {
                    let flags = (libc::O_RDWR | libc::O_APPEND) as u32;
                    let size = context.world.meta(Side::Right, &fid.path).map(|meta| meta.len());
                    fid.flags & flags == flags && size != Some(*offset)
                })
            }
            _ => false,
        }),
    },
    Rule {
        name: "a name too long is said first",
        reason: "of two errors QEMU reports the fid's, we the name's, which is checked before anything is looked up",
        allow: Allow::Answers(|_, theirs, ours| {
            ours.error() == Some(libc::ENAMETOOLONG) && theirs.error().is_some()
        }),
    },
    Rule {
        name: "statfs opens nothing",
        reason: "QEMU opens the object, and so fails at symlinks and special files",
        allow: Allow::Answers(|context, theirs, ours| {
            matches!(context.step, Step::Statfs { .. })
                && matches!(ours, Answer::Statfs(_))
                && matches!(theirs.error(), Some(libc::ELOOP | libc::ENXIO))
        }),
    },
    Rule {
        name: "Tremove and Trename of an object with several names",
        reason: "a fid is an object, and which of its names it was walked to by is not kept: EOPNOTSUPP rather than the \
                 wrong one. Linux names what it removes and renames (Tunlinkat, Trenameat)",
        allow: Allow::Leave(|context| match context.step {
            Step::Remove { fid } | Step::Rename { fid, .. } => {
                context.world.fids.get(fid).is_some_and(|fid| {
                    let meta = context.world.meta(Side::Right, &fid.path);
                    meta.is_some_and(|meta| !meta.is_dir() && meta.nlink() > 1)
                })
            }
            _ => false,
        }),
    },
    Rule {
        name: "a fid is an object, and no other is changed",
        reason: "as above; where a stranger has the name, QEMU changes or shows the stranger",
        allow: Allow::Effect(|context, theirs, _| {
            let by_descriptor = matches!(
                context.step,
                Step::Read { .. }
                    | Step::Write { .. }
                    | Step::Fill { .. }
                    | Step::Fsync { .. }
                    | Step::Getattr { .. }
                    | Step::Readdir { .. }
                    | Step::Clunk { .. }
            );
            let stale = World::used(context.step)
                .iter()
                .any(|fid| context.world.stale(*fid));
            !by_descriptor && stale && theirs.error().is_none()
        }),
    },
    Rule {
        name: "an xattr's bytes may come in any order",
        reason: "QEMU adds the lengths up and refuses the value when one byte was written twice",
        allow: Allow::Leave(|context| match context.step {
            Step::Write { fid, offset, .. } | Step::Fill { fid, offset, .. } => {
                let fid = context.world.fids.get(fid);
                fid.is_some_and(|fid| fid.xattr && fid.written != *offset)
            }
            _ => false,
        }),
    },
    Rule {
        name: "a file is truncated whatever its fid was opened for",
        reason: "QEMU passes a fid open for reading to ftruncate(2), which says EINVAL; the guest has checked, and \
                 Linux may choose any fid of the file",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Setattr { fid, valid, .. } if valid & SIZE != 0 => {
                let reading =
                    |fid: &Fid| fid.open && fid.flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
                let reading = context.world.fids.get(fid).is_some_and(reading);
                reading && theirs.error() == Some(libc::EINVAL) && *ours == Answer::Done
            }
            _ => false,
        }),
    },
    Rule {
        name: "an open fid's file can be renamed",
        reason: "QEMU refuses it with EINVAL before it looks at the rest",
        allow: Allow::Answers(|context, theirs, _| match context.step {
            Step::Rename { fid, .. } => {
                let open = context.world.fids.get(fid).is_some_and(|fid| fid.open);
                open && theirs.error() == Some(libc::EINVAL)
            }
            _ => false,
        }),
    },
    Rule {
        name: "only a directory has . and ..",
        reason: "QEMU cuts the last name off its path for \"..\", whatever it names, and none for \".\"; POSIX says \
                 ENOTDIR",
        allow: Allow::Answers(|context, _, _| match context.step {
            Step::Walk { fid, names, .. } => up_from_file(context.world, *fid, names),
            _ => false,
        }),
    },
    Rule {
        name: "the root is busy",
        reason: "to remove or rename the root fails in both; rmdir(2) and rename(2) say EBUSY of a root, QEMU EINVAL \
                 or ENOTEMPTY, which it gets for the name \".\"",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Remove { fid } | Step::Rename { fid, .. } => {
                let root = context.world.fids.get(fid).is_some_and(|fid| fid.path.is_empty());
                root && theirs.error().is_some() && ours.error() == Some(libc::EBUSY)
            }
            _ => false,
        }),
    },
    Rule {
        name: "squash has ACLs",
        reason: "QEMU has none in its mode none; a guest without the mount option posixacl does not ask for them",
        allow: Allow::Leave(|context| match context.step {
            Step::Xattrcreate { name, .. } | Step::Xattrwalk { name, .. } => {
                context.mode == Mode::Squash && name.0.starts_with(b"system.posix_acl_")
            }
            _ => false,
        }),
    },
    Rule {
        name: "a write clears set-id bits",
        reason: "QEMU writes with CAP_FSETID, so that a guest's user keeps them on a file that he changes \
                 (CVE-2023-1386)",
        allow: Allow::Leave(|context| match context.step {
            Step::Write { .. } | Step::Fill { .. } => context.set_id(),
            Step::Setattr { valid, .. } => valid & SIZE != 0 && context.set_id(),
            Step::Lopen { flags, .. } => flags & libc::O_TRUNC as u32 != 0 && context.set_id(),
            _ => false,
        }),
    },
    Rule {
        name: "the mode that Tsetattr asks for is the mode after it",
        reason: "QEMU sets it before the owner, and chown(2) then drops set-id bits that the request has",
        allow: Allow::Leave(|context| match context.step {
            Step::Setattr { valid, mode, .. } => {
                valid & MODE != 0 && valid & OWNER != 0 && mode & 0o6000 != 0 && !context.mode.mapped()
            }
            _ => false,
        }),
    },
    Rule {
        name: "Tsetattr sets times last",
        reason: "a new size moves mtime, and in mapped-file the root's first metadata moves the root's; QEMU sets \
                 times before both and so loses the time that the same request sets",
        allow: Allow::Leave(|context| match context.step {
            Step::Setattr { fid, valid, .. } => {
                let root = context.world.fids.get(fid).is_some_and(|fid| fid.path.is_empty());
                let kept = context.mode == Mode::MappedFile && root && valid & (MODE | OWNER) != 0;
                valid & TIMES_SET != 0 && (valid & SIZE != 0 || kept)
            }
            _ => false,
        }),
    },
    Rule {
        name: "a failing Tsetattr of several attributes",
        reason: "QEMU changes mode, times, owner, size in this order and stops at an error; we begin with the size, \
                 which fails most often",
        allow: Allow::Effect(|context, _, ours| match context.step {
            Step::Setattr { valid, .. } if ours.error().is_some() => {
                [MODE, OWNER, SIZE, TIMES]
                    .iter()
                    .filter(|group| valid & **group != 0)
                    .count()
                    > 1
            }
            _ => false,
        }),
    },
    Rule {
        name: "the host's symlinks can be read",
        reason: "in the mapped modes QEMU reads a symlink's target from a file, and fails with ELOOP at a real one",
        allow: Allow::Answers(|context, theirs, _| {
            context.mode.mapped()
                && matches!(context.step, Step::Readlink { .. })
                && theirs.error() == Some(libc::ELOOP)
        }),
    },
    Rule {
        name: "only a symlink has a target",
        reason: "in the mapped modes QEMU reads any file as if it were one, and its device is dead when the content \
                 is longer than the reply; readlink(2) says EINVAL",
        allow: Allow::Leave(|context| {
            let link = context
                .guest_mode
                .is_none_or(|mode| mode & libc::S_IFMT == libc::S_IFLNK);
            context.mode.mapped() && matches!(context.step, Step::Readlink { .. }) && !link
        }),
    },
    Rule {
        name: "the content of symlinks and special files is the server's",
        reason: "the mapped modes keep them in regular files, which QEMU lets a client open, change and truncate",
        allow: Allow::Leave(|context| {
            let kind = context
                .guest_mode
                .map_or(libc::S_IFREG, |mode| mode & libc::S_IFMT);
            let plain = matches!(kind, libc::S_IFREG | libc::S_IFDIR);
            let opens = match context.step {
                Step::Lopen { .. } => true,
                Step::Setattr { valid, .. } => valid & SIZE != 0,
                _ => false,
            };
            context.mode.mapped() && opens && !plain
        }),
    },
    Rule {
        name: "a directory does not count its metadata directory",
        reason: "in mapped-file QEMU's count of a directory's links is one more than what the guest can see",
        allow: Allow::Field("nlink", |context| match context.step {
            Step::Getattr { fid } if context.mode == Mode::MappedFile => {
                let path = context.world.fids.get(fid).map(|fid| fid.path.clone());
                path.and_then(|mut path| {
                    path.push(Bytes::from(".virtfs_metadata"));
                    context.world.meta(Side::Right, &path)
                })
                .is_some_and(|meta| meta.is_dir())
            }
            _ => false,
        }),
    },
    Rule {
        name: "a failing unlink loses no metadata",
        reason: "in mapped-file QEMU removes the metadata first, and does not put it back",
        allow: Allow::Effect(|context, theirs, ours| {
            let unlink = matches!(context.step, Step::Unlinkat { .. } | Step::Remove { .. });
            context.mode == Mode::MappedFile && unlink && theirs.error().is_some() && ours.error().is_some()
        }),
    },
    Rule {
        name: "an ACL is one",
        reason: "in mapped-xattr QEMU stores any bytes under an ACL's name, which a guest's kernel then fails at",
        allow: Allow::Leave(|context| match context.step {
            Step::Xattrcreate { name, size, .. } if context.mode == Mode::MappedXattr => {
                name.0.starts_with(b"system.posix_acl_") && *size != 0 && size % 8 != 4
            }
            _ => false,
        }),
    },
    Rule {
        name: "metadata left behind is not taken over",
        reason: "in mapped-file, where the host removed a file, QEMU writes a new file's metadata into what is left: \
                 a device number stays, and what another name of the old file shares changes with it",
        allow: Allow::Leave(|context| {
            let new = match context.step {
                Step::Lcreate { fid: dfid, name, .. }
                | Step::Mkdir { dfid, name, .. }
                | Step::Mknod { dfid, name, .. }
                | Step::Symlink { dfid, name, .. } => context.world.entry(*dfid, name),
                _ => None,
            };
            let left = |path| metadata(context.world, path).is_some();
            context.mode == Mode::MappedFile && new.is_some_and(left)
        }),
    },
    Rule {
        name: "what the host made can be renamed and linked",
        reason: "in mapped-file QEMU fails with ENOENT where a directory has no metadata yet, else leaves an empty \
                 directory for it, or the metadata of a file that was replaced; and two names of a file without \
                 metadata would part as soon as one gets some",
        allow: Allow::Leave(|context| {
            let source = match context.step {
                Step::Rename { fid, .. } | Step::Link { fid, .. } => {
                    context.world.fids.get(fid).map(|fid| fid.path.clone())
                }
                Step::Renameat {
                    olddirfid, oldname, ..
                } => context.world.entry(*olddirfid, oldname),
                _ => None,
            };
            context.mode == Mode::MappedFile
                && source.is_some_and(|path| metadata(context.world, path).is_none())
        }),
    },
    Rule {
        name: "a failing rename may touch the directories",
        reason: "in mapped-file the metadata is moved before the file, so that no moment is without; QEMU moves the \
                 file first",
        allow: Allow::Effect(|context, theirs, ours| {
            let rename = matches!(context.step, Step::Rename { .. } | Step::Renameat { .. });
            context.mode == Mode::MappedFile && rename && theirs.error().is_some() && ours.error().is_some()
        }),
    },
    Rule {
        name: "a reserved name is said last",
        reason: "of two errors in mapped-file QEMU reports the reserved name, we that of the fid or of an earlier name",
        allow: Allow::Answers(|context, theirs, ours| {
            let reserved = context.step.to_string().contains(".virtfs_metadata");
            let errors = theirs.error() == Some(libc::EINVAL) && ours.error().is_some();
            context.mode == Mode::MappedFile && reserved && errors
        }),
    },
    Rule {
        name: "a host object that can keep nothing says so",
        reason: "a real symlink takes no user.* xattrs, for which the kernel says EPERM, and so does QEMU; EOPNOTSUPP \
                 is not taken for a missing right",
        allow: Allow::Answers(|context, theirs, ours| {
            let setattr = matches!(context.step, Step::Setattr { .. });
            context.mode == Mode::MappedXattr
                && setattr
                && theirs.error() == Some(libc::EPERM)
                && ours.error() == Some(libc::EOPNOTSUPP)
        }),
    },
    Rule {
        name: "locks are real",
        reason: "QEMU takes and finds none, and lets anything be locked that is open; ours are the host's, so a directory, \
                 an unknown kind and a range beyond any file are errors, and so is write-locking what is open for reading",
        allow: Allow::Answers(|context, theirs, ours| {
            matches!(context.step, Step::Lock { .. } | Step::Getlock { .. })
                && matches!(
                    theirs,
                    Answer::Status(wire::P9_LOCK_SUCCESS) | Answer::Lock(wire::P9_LOCK_TYPE_UNLCK, ..)
                )
                && matches!(ours.error(), Some(libc::EBADF | libc::EINVAL))
        }),
    },
    Rule {
        name: "of two errors in a lock the fid's is said first",
        reason: "QEMU looks at the flags before",
        allow: Allow::Answers(|context, theirs, ours| {
            matches!(context.step, Step::Lock { .. })
                && theirs.error() == Some(libc::EINVAL)
                && ours.error() == Some(libc::ENOENT)
        }),
    },
    Rule {
        name: "an entry that does not fit is no end",
        reason: "QEMU answers with nothing where not even one entry has room, which a client takes for the directory's \
                 end; getdents(2) says EINVAL",
        allow: Allow::Answers(|context, theirs, ours| {
            matches!(context.step, Step::Readpage { .. } | Step::Readdir { .. })
                && *theirs == Answer::Listing(Vec::new())
                && ours.error() == Some(libc::EINVAL)
        }),
    },
    Rule {
        name: "a directory has no position beyond 2^63",
        reason: "QEMU takes the failure to go there for errno 1; lseek(2) says EINVAL",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Readpage { offset, .. } if i64::try_from(*offset).is_err() => {
                theirs.error() == Some(libc::EPERM) && ours.error() == Some(libc::EINVAL)
            }
            _ => false,
        }),
    },
    Rule {
        name: "of two errors in an Txattrcreate the fid's is said first",
        reason: "QEMU looks at the size before",
        allow: Allow::Answers(|context, theirs, ours| {
            matches!(context.step, Step::Xattrcreate { .. })
                && theirs.error() == Some(libc::E2BIG)
                && ours.error() == Some(libc::EINVAL)
        }),
    },
    Rule {
        name: "an xattr's bytes beyond those announced have no place",
        reason: "QEMU takes what has room, which may be none, and says so little that a client tries for ever; we say \
                 ENOSPC at once, as both do when the first byte is beyond",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Write { fid, .. } | Step::Fill { fid, .. } => {
                let xattr = context.world.fids.get(fid).is_some_and(|fid| fid.xattr);
                xattr && matches!(theirs, Answer::Count(_)) && ours.error() == Some(libc::ENOSPC)
            }
            _ => false,
        }),
    },
    Rule {
        name: "the access mode 3 opens nothing",
        reason: "QEMU passes it on where it opens at all, to a descriptor that can neither be read nor written; Linux keeps \
                 it for ioctls on devices",
        allow: Allow::Answers(|context, theirs, ours| match context.step {
            Step::Lopen { flags, .. } if flags & 3 == 3 => {
                let refused = matches!(ours.error(), Some(libc::EINVAL | libc::ENXIO));
                refused && matches!(theirs, Answer::Open { .. } | Answer::Error(libc::EINVAL))
            }
            _ => false,
        }),
    },
    Rule {
        name: "a listing tells types",
        reason: "QEMU says DT_UNKNOWN in the mapped modes",
        allow: Allow::Field("d_type", |context| context.mode.mapped()),
    },
    Rule {
        name: "st_blksize is the host's",
        reason: "QEMU gives the iounit",
        allow: Allow::Field("blksize", |_| true),
    },
    Rule {
        name: "f_bsize is the host's",
        reason: "QEMU gives a multiple near msize, and rounds the block counts",
        allow: Allow::Field("bsize", |_| true),
    },
];

/// Whether `names` lead over `.` or `..` of something that is there and is no directory.
fn up_from_file(world: &World, fid: u32, names: &[Bytes]) -> bool {
    let Some(mut path) = world.fids.get(&fid).map(|fid| fid.path.clone()) else {
        return false;
    };
    for name in names {
        if name.is("..") || name.is(".") {
            if world.meta(Side::Right, &path).is_some_and(|meta| !meta.is_dir()) {
                return true;
            }
            if name.is("..") {
                path.pop();
            }
        } else {
            path.push(name.clone());
        }
    }
    false
}

/// The file in which mapped-file keeps what it knows about `path`.
fn metadata(world: &World, mut path: Vec<Bytes>) -> Option<Metadata> {
    let name = path.pop()?;
    path.extend([Bytes::from(".virtfs_metadata"), name]);
    world.meta(Side::Right, &path)
}
