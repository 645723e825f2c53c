//! What a share needs of the host besides its directory: gathered while the process still sees the host's files.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::{ProcFd, path};
use crate::users::Users;

/// See the module's text.
#[derive(Debug)]
pub struct Surroundings {
    pub(crate) proc: ProcFd,
    /// The text of mountinfo, with paths as this process sees them.
    pub(crate) mounts: String,
    /// The host's users, where they have been asked for already.
    pub(crate) users: Option<Users>,
    /// Owners other than this process's user show as nobody.
    pub(crate) hides_owners: bool,
}

impl Surroundings {
    /// `descriptors` is `/proc/self/fd`, and `mounts` the text of `/proc/self/mountinfo` as the process sees it when it opens
    /// the share.
    pub fn new(descriptors: OwnedFd, mounts: String) -> Surroundings {
        Surroundings {
            proc: ProcFd::from(descriptors),
            mounts,
            users: None,
            hides_owners: false,
        }
    }

    /// The same with what [`Users::of`] has given while the host's user database could be reached.
    #[must_use]
    pub fn with_users(self, users: Option<Users>) -> Surroundings {
        Surroundings { users, ..self }
    }

    /// The same in a user namespace that knows this process's user alone.
    #[must_use]
    pub fn hiding_owners(self) -> Surroundings {
        Surroundings {
            hides_owners: true,
            ..self
        }
    }

    /// The same of a process that has a root directory without /proc. Its working directory becomes `/proc/self/fd`: before
    /// Linux 6.13 the extended attributes of an object that is not open are reached by path alone.
    pub fn without_proc(self) -> Result<Surroundings, String> {
        self.proc
            .enter()
            .map_err(|e| format!("/proc/self/fd cannot be the working directory: {e}"))?;
        Ok(self)
    }

    /// Of a process that keeps its root directory.
    pub fn here() -> Result<Surroundings, String> {
        Surroundings::across(|| Ok(()))
    }

    /// Of a process that `changes` its root directory to one without /proc.
    pub fn across(changes: impl FnOnce() -> Result<(), String>) -> Result<Surroundings, String> {
        let proc =
            ProcFd::open().map_err(|e| format!("cannot open /proc/self/fd: {e}; is /proc mounted?"))?;
        let mounts = MountList::prepare();
        changes()?;
        Ok(Surroundings {
            proc,
            mounts: mounts.read(),
            users: None,
            hides_owners: false,
        })
    }
}

/// A way to read mountinfo after a change of root to a directory without /proc: the kernel lists what is below the root
/// directory that the reader has when it opens the file.
#[derive(Debug)]
pub struct MountList(Option<OwnedFd>);

impl MountList {
    /// To be called while /proc is there.
    pub fn prepare() -> MountList {
        MountList(path::open_at(None, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0).ok())
    }

    /// The text. Empty where it cannot be read: then a network file system below the directory is noticed when one of its
    /// objects is.
    pub fn read(self) -> String {
        let mut text = String::new();
        // Of this thread: "self" is the process's first one, and each may see other mounts.
        let name = c"thread-self/mountinfo";
        let open = |proc: OwnedFd| path::open_at(Some(proc.as_fd()), name, libc::O_RDONLY, 0).ok();
        if let Some(file) = self.0.and_then(open) {
            let _ = File::from(file).read_to_string(&mut text);
        }
        text
    }
}
