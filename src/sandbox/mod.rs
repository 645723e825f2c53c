//! The second wall: what a program that a guest has taken over could do. The first is that none can; it is in every
//! other file.
//!
//! The program forks before it opens the share. The outer process (`outer`) makes the socket, waits, forwards signals and
//! gives the exit status; it reads nothing that a guest or a front-end has written. The worker serves. It is made in
//! namespaces of its own (`process`), has the share as its root directory (`root`) and the capabilities that the share
//! mode needs (`privileges`), and can make the system calls that it makes (`seccomp`).

mod outer;
pub mod privileges;
#[cfg(debug_assertions)]
mod probe;
mod process;
mod root;
pub mod seccomp;
mod users;

use std::path::Path;

use caps::{CapSet, Capability};
use device::Role;
use host::{FileHandles, ShareOptions, Surroundings};

pub use outer::{Answer, Outer, Start, Worker, start};
pub use users::users;

/// How much of the host the worker sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Namespaces of its own, and nothing but the share in them.
    Namespace,
    /// The share as its root directory.
    Chroot,
    /// The host's files, where Landlock is missing; else only the share's can be opened, made and removed.
    Landlock,
    /// The host's files.
    None,
}

impl Level {
    /// As `--sandbox` has it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Namespace => "namespace",
            Level::Chroot => "chroot",
            Level::Landlock => "landlock",
            Level::None => "none",
        }
    }

    /// In a sentence about the sandbox.
    pub fn describe(self) -> &'static str {
        match self {
            Level::Namespace => "namespaces",
            Level::Chroot => "chroot",
            Level::Landlock => "Landlock",
            Level::None => "no sandbox",
        }
    }
}

/// What is tried, in this order.
pub fn levels(asked: Option<Level>) -> Vec<Level> {
    match asked {
        Some(level) => vec![level],
        None => vec![Level::Namespace, Level::Chroot, Level::Landlock],
    }
}

/// To be called first on each thread that the device makes.
pub fn enter_thread(role: Role) {
    seccomp::filter_thread(role);
    #[cfg(debug_assertions)]
    probe::role(role);
}

/// To be called first on the threads that wait for signals and write the log, by their names.
pub fn enter_helper(name: &str) {
    seccomp::filter_helper();
    #[cfg(debug_assertions)]
    probe::named(name);
    let _ = name;
}

fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// The namespaces that a worker of this level is made in, `CLONE_NEW*`; why it cannot be had, if that is known already.
fn namespaces(level: Level, share: &ShareOptions) -> Result<i32, String> {
    match level {
        Level::Namespace => {}
        Level::Chroot if !has(Capability::CAP_SYS_CHROOT) => {
            return Err("it needs CAP_SYS_CHROOT".to_string());
        }
        Level::Chroot | Level::Landlock | Level::None => return Ok(0),
    }
    let flags =
        libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWPID;
    if has(Capability::CAP_SYS_ADMIN) {
        return Ok(flags);
    }
    // In a user namespace of its own the worker would have no right over other users' files.
    if let Some(lost) = privileges::wanted(share)?.into_iter().next() {
        return Err(format!(
            "it needs CAP_SYS_ADMIN, or a process without any capability: this one has {lost}"
        ));
    }
    Ok(flags | libc::CLONE_NEWUSER)
}

/// Confines this process, the worker, to `level`; gives what the share is to be opened with, and the share's directory as
/// this process sees it now.
fn confine(
    level: Level,
    namespaces: i32,
    ids: (u32, u32),
    share: &ShareOptions,
) -> Result<(Surroundings, &Path), String> {
    #[cfg(debug_assertions)]
    probe::prepare();
    let root = Path::new("/");
    match level {
        Level::Namespace => {
            let own_users = namespaces & libc::CLONE_NEWUSER != 0;
            if own_users {
                root::keep_ids(ids.0, ids.1)?;
            }
            let surroundings = root::pivot(&share.directory, share.readonly)?.without_proc()?;
            match own_users {
                true => Ok((surroundings.hiding_owners(), root)),
                false => Ok((surroundings, root)),
            }
        }
        Level::Chroot => {
            let surroundings = root::change_root(&share.directory)?.without_proc()?;
            // /proc can still be reached, and sysctls there that user 0 may write without any capability. A file that was
            // opened by handle is nowhere for Landlock.
            if share.file_handles == FileHandles::Open || !root::landlock(root)? {
                log::warn!("The kernel's Landlock is not used: the worker can open what is in /proc.");
            }
            Ok((surroundings, root))
        }
        Level::Landlock => {
            let surroundings = Surroundings::here()?;
            if !root::landlock(&share.directory)? {
                log::warn!(
                    "The kernel has no Landlock of Linux 5.19: the worker can open what its user can."
                );
            }
            Ok((surroundings, &share.directory))
        }
        Level::None => Ok((Surroundings::here()?, &share.directory)),
    }
}
