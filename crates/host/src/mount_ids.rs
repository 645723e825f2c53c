//! Mounts that have no id for this process's user, or for a caller's group.
//!
//! The kernel makes no object and no name for a thread whose file system user or group has no id on the mount, whatever
//! its capabilities: EOVERFLOW (`fsuidgid_has_mapping`, asked by `may_create` and `may_o_create` in fs/namei.c). That is so
//! on an idmapped mount whose map leaves this user out, and on a file system that was mounted in another user namespace.
//! The way out is to make it as somebody whom the mount has an id for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::attr::Caller;
use crate::context::Context;
use crate::creds::{self, Making};
use crate::options::{SecurityModel, ShareOptions};
use crate::remote::unescape;
use crate::surroundings::MountList;
use crate::sys::attr::Statx;
use crate::sys::cred::{self, CAP_MKNOD, CAP_SETGID, CAP_SETUID, Caps};
use crate::sys::{self, errno};

fn mapped(options: &ShareOptions) -> bool {
    matches!(
        options.model,
        SecurityModel::MappedXattr | SecurityModel::MappedFile
    )
}

/// Whether nothing can be made in `dir` because its mount has no id for this thread's user or group. Makes nothing: what it
/// asks for, a device by somebody without CAP_MKNOD, is refused after that has been looked at (`vfs_mknod`).
fn has_no_id(dir: BorrowedFd<'_>) -> bool {
    let Ok(caps) = Caps::current() else { return false };
    let lowered = caps.with(CAP_MKNOD, false);
    if lowered != caps && lowered.apply().is_err() {
        return false;
    }
    let mode = libc::S_IFBLK | 0o600;
    let made = sys::path::mknod(dir, c".vhost-user-9p asks whether it could", mode, 0);
    if lowered != caps
        && let Err(error) = caps.apply()
    {
        log::warn!("CAP_MKNOD cannot be had back: {error}");
    }
    matches!(made, Err(e) if errno(&e) == libc::EOVERFLOW)
}

/// Whether one of the mounts at or below `directory` is idmapped, by the text of /proc/thread-self/mountinfo.
fn idmapped_below(directory: &[u8], id: Option<u64>, mounts: &str) -> bool {
    mounts.lines().any(|line| {
        // Identity, parent, device, root, mount point, options.
        let mut fields = line.split(' ');
        let own = id.is_some() && fields.next().and_then(|field| field.parse().ok()) == id;
        let point = unescape(fields.nth(3).unwrap_or_default());
        let below = point
            .strip_prefix(directory.strip_suffix(b"/").unwrap_or(directory))
            .is_some_and(|rest| rest.first() == Some(&b'/'));
        (own || below)
            && fields
                .next()
                .is_some_and(|options| options.split(',').any(|option| option == "idmapped"))
    })
}

fn open(directory: &Path) -> Option<std::fs::File> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    std::fs::File::options()
        .read(true)
        .custom_flags(flags)
        .open(directory)
        .ok()
}

/// Whether a share with these options has use for CAP_SETUID and CAP_SETGID to make what belongs to the guest's users: a
/// mount at or below it is idmapped, or has no id for this process. Of mounts that come later nothing is known. The mapped
/// modes need them once, before they start ([`adopt`]).
pub fn takes_ids(options: &ShareOptions) -> bool {
    use std::os::unix::ffi::OsStrExt;
    if mapped(options) || options.readonly {
        return false;
    }
    let Some(dir) = open(&options.directory) else {
        return false;
    };
    let id = sys::attr::stat(dir.as_fd()).ok().map(|stat| stat.stx_mnt_id);
    let path = options.directory.as_os_str().as_bytes();
    idmapped_below(path, id, &MountList::prepare().read()) || has_no_id(dir.as_fd())
}

/// In the mapped modes, where everything belongs to this process: if the mount of `directory` has no id for its user, this
/// thread, and those that it makes, go on as the file system user and group that own the directory. Needs CAP_SETUID and
/// CAP_SETGID. Before any other thread is made.
pub fn adopt(directory: &Path, options: &ShareOptions) {
    if !mapped(options) || options.readonly {
        return;
    }
    let (Some(dir), Ok(caps)) = (open(directory), Caps::current()) else {
        return;
    };
    if !caps.has(CAP_SETUID) || !caps.has(CAP_SETGID) || !has_no_id(dir.as_fd()) {
        return;
    }
    let Ok(owner) = sys::attr::stat(dir.as_fd()) else {
        return;
    };
    let before = cred::fs_ids();
    let set = |uid, gid| cred::set_fsgid(gid).and_then(|()| cred::set_fsuid(uid));
    let adopted = set(owner.stx_uid, owner.stx_gid).is_ok() && !has_no_id(dir.as_fd());
    if !adopted {
        // What is not possible is said when the share is open.
        let _ = set(before.0, before.1);
    } else {
        log::info!(
            "The mount of {} has no id for user {}: files are made as its owner, {}:{}.",
            options.directory.display(),
            before.0,
            owner.stx_uid,
            owner.stx_gid
        );
    }
    // Leaving user 0 has taken those that count for files.
    let _ = caps.apply();
}

/// Says so where nothing can be made in the shared directory for want of an id.
pub fn warn(context: &Context) {
    let options = context.options();
    if options.readonly || !has_no_id(context.root()) || (!mapped(options) && context.takes_ids()) {
        return;
    }
    let Ok(stat) = sys::attr::stat(context.root()) else {
        return;
    };
    let (uid, gid) = cred::fs_ids();
    log::warn!(
        "the mount of {} has no id for {uid}:{gid}, as which this process works (it is idmapped, or of another user \
         namespace), so the guest can make nothing there (\"value too large for defined data type\"): {}",
        options.directory.display(),
        remedy(context, &stat)
    );
}

/// What helps where a mount lacks an id; `stat` is of the directory.
pub fn remedy(context: &Context, stat: &Statx) -> String {
    if context.takes_ids() {
        return "extend the mount's id map, or give the guest's users ids that are in it (--uid-map and --gid-map)".to_owned();
    }
    let (user, group) = crate::idmap::overflow_ids();
    match (stat.stx_uid, stat.stx_gid) {
        (uid, gid) if uid != user && gid != group => format!(
            "run it as {uid}:{gid}, who owns the directory (setpriv --reuid --regid, or User= of a systemd unit), or as root \
             with CAP_SETUID and CAP_SETGID, or extend the mount's id map"
        ),
        _ => "extend the mount's id map: the directory's own owner is not in it".to_owned(),
    }
}

/// Whether a member of any group may do more to the object than others who do not own it. With an ACL the group's bits are
/// the most that it gives to any user or group that it names.
fn favours_groups(stat: &Statx, uid: u32) -> bool {
    let mode = u32::from(stat.stx_mode);
    stat.stx_uid != uid && (mode >> 3) & !mode & 0o7 != 0
}

/// As whom to make something in the directory of `stat` that shall belong to `owner`, best first.
fn candidates(stat: &Statx, owner: Caller) -> [(u32, u32); 4] {
    let or = |id, there| if id == u32::MAX { there } else { id };
    let (uid, gid) = (or(owner.uid, stat.stx_uid), or(owner.gid, stat.stx_gid));
    [
        (uid, gid),
        (uid, stat.stx_gid),
        (stat.stx_uid, gid),
        (stat.stx_uid, stat.stx_gid),
    ]
}

impl Context {
    /// Does `make`, which makes an object or a name in `dir`. Where the mount has no id for this thread's user or group, again
    /// as `owner`, whom the object shall belong to, or as the owner of `dir`; an id of `u32::MAX` is anybody's. A thread that
    /// works as a guest's user takes another group only, and none that gives it a right that counts, in `dir` or for
    /// `others`, the other objects that `make` is about. EOVERFLOW where that does not help.
    #[inline]
    pub fn making<T>(
        &self,
        dir: BorrowedFd<'_>,
        owner: Caller,
        others: &[BorrowedFd<'_>],
        make: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        match make() {
            Err(e) if errno(&e) == libc::EOVERFLOW => self.making_as(dir, owner, others, &make),
            other => other,
        }
    }

    #[cold]
    fn making_as<T>(
        &self,
        dir: BorrowedFd<'_>,
        owner: Caller,
        others: &[BorrowedFd<'_>],
        make: &dyn Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        let unmapped = |e: &io::Error| errno(e) == libc::EOVERFLOW;
        let stat = sys::attr::stat(dir)?;
        if !creds::switched() {
            if !self.takes_ids() {
                return Err(sys::error(libc::EOVERFLOW));
            }
            for (uid, gid) in candidates(&stat, owner) {
                let _as = Making::of(self.caps(), uid, gid)?;
                match make() {
                    Err(e) if unmapped(&e) => {}
                    other => return other,
                }
            }
            return Err(sys::error(libc::EOVERFLOW));
        }
        // The groups that the user is in anyway, then the directory's.
        for gid in cred::groups()? {
            let _as = Making::of_group(gid)?;
            match make() {
                Err(e) if unmapped(&e) => {}
                other => return other,
            }
        }
        let (uid, _) = cred::fs_ids();
        let mut favoured = favours_groups(&stat, uid);
        for other in others {
            favoured |= favours_groups(&sys::attr::stat(*other)?, uid);
        }
        if favoured {
            return Err(sys::error(libc::EOVERFLOW));
        }
        let _as = Making::of_group(stat.stx_gid)?;
        make()
    }

    /// Whether this thread may take on any user and group.
    fn takes_ids(&self) -> bool {
        self.caps().has(CAP_SETUID) && self.caps().has(CAP_SETGID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idmapped_mount_at_or_below_the_directory_is_told_from_one_beside() {
        let mounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                      30 22 8:1 / /srv/a\\040b/far rw,relatime,idmapped shared:2 - ext4 /dev/sda1 rw\n\
                      31 22 8:1 / /srv/near rw - tmpfs tmpfs rw\n\
                      torn line\n";
        for (directory, id, is) in [
            ("/", 22, true),
            ("/srv/a b", 22, true),
            ("/srv/a b/far", 30, true),
            ("/srv/a b/far/below", 30, true),
            ("/srv/near", 31, false),
            ("/srv/a", 22, false),
        ] {
            assert_eq!(
                idmapped_below(directory.as_bytes(), Some(id), mounts),
                is,
                "{directory}"
            );
        }
        assert!(!idmapped_below(b"/", Some(22), ""));
    }
}
