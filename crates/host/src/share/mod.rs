//! What the server calls: takes on the caller's rights, translates ids, refuses what the options forbid, asks the
//! mode, explains a refusal.

mod attrs;
mod data;
mod dir;
mod handle;
mod lock;
mod make;
mod nodes;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use crate::attr::Caller;
use crate::context::Context;
use crate::creds::{self, Credentials};
use crate::explain::{self, Refusal};
use crate::idmap::IdMaps;
use crate::mapped_file::MappedFile;
use crate::mapped_xattr::MappedXattr;
use crate::mode::ShareMode;
use crate::mount_ids;
use crate::name::Name;
use crate::options::{CheckAccess, SecurityModel, ShareOptions};
use crate::passthrough::Passthrough;
use crate::squash::Squash;
use crate::surroundings::Surroundings;
use crate::sys;
use crate::users::Users;

use attrs::Told;
pub use data::Opened;
use data::ReadAhead;
pub use dir::Listing;
use dir::Positions;
pub use handle::Handle;
use handle::Mounts;
pub use lock::{Access, LockFile};

/// An object as the server holds it.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// An `O_PATH | O_NOFOLLOW` descriptor of it.
    pub path: BorrowedFd<'a>,
    /// A descriptor the guest opened, when the fid is open; works on unlinked files too.
    pub file: Option<BorrowedFd<'a>>,
    /// `S_IFMT` bits of the host object.
    pub host_type: u32,
    /// Where it has its name, for a mode that keeps something beside that.
    pub at: At<'a>,
}

/// What is known of an object's name. Only where [`Share::needs_names`] does it matter.
#[derive(Clone, Copy, Debug, Default)]
pub enum At<'a> {
    /// Nothing: the kernel is asked for the path of its descriptor, which it shows up to PATH_MAX. From there on the
    /// operation fails with ENAMETOOLONG, and is to be asked for again with the name.
    #[default]
    Unknown,
    /// It had this name in this directory. It is looked at whether that is still so; if not, as `Unknown`.
    In(BorrowedFd<'a>, &'a Name),
    /// It has no name that anybody knows.
    Nowhere,
}

impl<'a> Object<'a> {
    /// An object that is only known by an `O_PATH` descriptor.
    pub fn by_path(path: BorrowedFd<'a>, host_type: u32) -> Object<'a> {
        Object {
            path,
            file: None,
            host_type,
            at: At::Unknown,
        }
    }

    /// The same, at `name` in `dir`.
    pub fn at(self, dir: BorrowedFd<'a>, name: &'a Name) -> Object<'a> {
        let at = At::In(dir, name);
        Object { at, ..self }
    }

    /// The same, without a name.
    pub fn nowhere(self) -> Object<'a> {
        Object {
            at: At::Nowhere,
            ..self
        }
    }
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Name, without NUL. `.` and `..` are listed too.
    pub name: &'a [u8],
    /// As [`Identity::unique`](crate::Identity::unique), made from `d_ino` and the directory's device.
    pub unique: u64,
    /// Where the next read of this directory goes on; > 0, positive as `i64`.
    pub cookie: u64,
    /// `DT_*` as the guest shall see it.
    pub d_type: u8,
}

/// The shared directory: one per process, used by all threads. Errors are OS errors, EINTR is none of them.
pub struct Share {
    context: Arc<Context>,
    mode: Box<dyn ShareMode>,
    /// The mode maps nothing.
    plain: bool,
    /// With `--check-access host`.
    credentials: Option<Credentials>,
    read_ahead: ReadAhead,
    positions: Positions,
    mounts: Mounts,
    told: Told,
}

impl Share {
    /// Opens the directory and checks that the mode can work there; the error is one sentence. Sets the process's
    /// umask to 0 and takes CAP_FSETID out of the calling thread's effective capabilities, so call it before any
    /// other thread is made. Says in the log what the process lacks for the mode.
    pub fn open(options: &ShareOptions) -> Result<Share, String> {
        Share::open_in(&options.directory, options, Surroundings::here()?)
    }

    /// As [`Share::open`] for a process that sees the directory as `directory`, having changed its root.
    pub fn open_in(
        directory: &Path,
        options: &ShareOptions,
        mut surroundings: Surroundings,
    ) -> Result<Share, String> {
        options.check()?;
        let users = surroundings.users.take();
        let shown = options.directory.display();
        let root = std::fs::File::options();
        let root = {
            use std::os::unix::fs::OpenOptionsExt;
            let mut root = root;
            root.read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
                .open(directory)
        };
        let root = root.map_err(|e| match sys::errno(&e) {
            libc::ENOTDIR => format!("{shown} is not a directory"),
            _ => format!("cannot open the shared directory {shown}: {e}"),
        })?;
        // Before the context takes down whose this process is.
        mount_ids::adopt(directory, options);
        let context = Context::new(root.into(), surroundings, options.clone())
            .map_err(|e| format!("cannot use the shared directory {shown}: {e}"))?;
        let context = Arc::new(context);
        // Modes come complete from the guest, which has applied its own umask.
        sys::attr::umask(0);
        let mode: Box<dyn ShareMode> = match options.model {
            SecurityModel::Passthrough => {
                let missing = creds::missing(context.caps(), options.allow_devices);
                if !missing.is_empty() {
                    log::warn!(
                        "security model passthrough gives every object the owner that the guest asks for, \
                         and this process lacks {} for that: where it fails the guest sees \"permission \
                         denied\"; run it as root, or use --security-model squash or mapped-xattr",
                        missing.join(", ")
                    );
                }
                Box::new(Passthrough::new(context.clone()))
            }
            SecurityModel::Squash => Box::new(Squash::new(context.clone())),
            SecurityModel::MappedXattr => Box::new(MappedXattr::new(context.clone())?),
            SecurityModel::MappedFile => Box::new(MappedFile::new(context.clone())),
        };
        let mapped = matches!(
            options.model,
            SecurityModel::MappedXattr | SecurityModel::MappedFile
        );
        if mapped {
            warn_of_another_owner(&context);
        }
        mount_ids::warn(&context);
        let credentials = match options.check_access {
            CheckAccess::Guest => None,
            CheckAccess::Host if mapped => {
                return Err(
                    "--check-access host needs --security-model passthrough or squash: in the mapped models every \
                     file belongs to the process, whoever owns it in the guest"
                        .to_owned(),
                );
            }
            CheckAccess::Host => {
                let users = users
                    .or_else(|| Users::of(options))
                    .unwrap_or_else(|| Users::read(&[]));
                Some(Credentials::new(*context.caps(), users)?)
            }
        };
        Ok(Share {
            mode,
            plain: !mapped,
            credentials,
            read_ahead: ReadAhead::default(),
            positions: Positions::default(),
            mounts: Mounts::new(&context)?,
            told: Told::default(),
            context,
        })
    }

    /// Whether system calls on the share may hang: it is, or has below it, a file system whose calls somebody else
    /// answers. Becomes true when the first object of such a file system is seen, and stays so.
    pub fn may_hang(&self) -> bool {
        self.context.may_hang()
    }

    /// Whether the mode keeps something beside an object's name, so that operations on an object may fail for want of it:
    /// [`At::Unknown`].
    #[inline]
    pub fn needs_names(&self) -> bool {
        self.mode.needs_names()
    }

    fn ids(&self) -> &IdMaps {
        &self.context.options().ids
    }

    /// Does `work` with the rights that count for `caller`.
    #[inline]
    fn as_caller<T>(&self, caller: Caller, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.credentials {
            None => work(),
            Some(credentials) => {
                let host = self.ids().caller_to_host(caller)?;
                let _user = credentials.enter(host)?;
                work()
            }
        }
    }

    /// As [`Share::as_caller`], and explains a refusal in the log.
    fn run<T>(
        &self,
        op: &'static str,
        caller: Caller,
        object: &Object<'_>,
        name: Option<&Name>,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.as_caller(caller, work).inspect_err(|error| {
            let errno = sys::errno(error);
            if matches!(errno, libc::EACCES | libc::EPERM | libc::EROFS | libc::EOVERFLOW) {
                let refusal = Refusal {
                    op,
                    object,
                    name,
                    caller,
                    errno,
                };
                explain::denied(&self.context, &refusal);
            }
        })
    }

    /// As [`Share::run`] for an operation that changes something.
    fn change<T>(
        &self,
        op: &'static str,
        caller: Caller,
        object: &Object<'_>,
        name: Option<&Name>,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let readonly = self.context.options().readonly;
        self.run(op, caller, object, name, || {
            if readonly {
                return Err(sys::error(libc::EROFS));
            }
            work()
        })
    }

    /// The errno of a name that the guest may not use in this mode.
    fn allowed(&self, name: &Name) -> io::Result<()> {
        match self.mode.reserved(name.as_bytes()) {
            Some(errno) => Err(sys::error(errno)),
            None => Ok(()),
        }
    }
}

/// Says so where this process can make nothing in the shared directory: the mapped modes keep no capability, not as root
/// either.
fn warn_of_another_owner(context: &Context) {
    let Ok(stat) = sys::attr::stat(context.root()) else {
        return;
    };
    let (uid, gid) = sys::cred::fs_ids();
    let others = u32::from(stat.stx_mode) & (libc::S_IWGRP | libc::S_IWOTH) != 0;
    if stat.stx_uid == uid
        || others
        || context.caps().has(sys::cred::CAP_DAC_OVERRIDE)
        || context.hides_owners()
    {
        return;
    }
    log::warn!(
        "{} belongs to {}:{} with mode {:04o}, and in this mode the process works as {uid}:{gid} without any capability, so the \
         guest can make nothing there: run it as user {} (setpriv --reuid, or User= of a systemd unit), or give it the directory \
         (chown)",
        context.options().directory.display(),
        stat.stx_uid,
        stat.stx_gid,
        stat.stx_mode & 0o7777,
        stat.stx_uid
    );
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share")
            .field("options", self.context.options())
            .finish_non_exhaustive()
    }
}
