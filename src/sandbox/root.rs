//! What the worker sees of the host's files: the share as its root directory, and nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use host::{MountList, Surroundings};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::process::set_mount_flags;
use crate::config::reason;

/// `MOUNT_ATTR_RDONLY` and its kin of linux/mount.h.
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;

/// A step that failed, in words.
fn failed(step: &str) -> impl Fn(io::Error) -> String + '_ {
    move |error| format!("{step}: {}", reason(&error))
}

/// The ids of this process in a user namespace that it has just been made in: the same numbers, its own and no other.
pub fn keep_ids(uid: u32, gid: u32) -> Result<(), String> {
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| format!("{file}: {}", reason(&error)))
    };
    // Without "deny" an ordinary user may not map groups (user_namespaces(7)).
    write("setgroups", "deny".to_string())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}

/// `/proc/self/fd` as the root of a mount of its own, which is attached nowhere: nothing above it can be reached through
/// it. (From the directory itself `..` leads to all of /proc, and there to sysctls that user 0 may write without any
/// capability.)
fn own_descriptors() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(rustix::fs::CWD, c"/proc/self/fd", flags)?)
}

/// Makes `directory` the root of this process's mount namespace, which is new, and lets go of everything else. Mounts that
/// the host makes below `directory` later appear.
pub fn pivot(directory: &Path, readonly: bool) -> Result<Surroundings, String> {
    let none: Option<&str> = None;
    // Nothing that happens here may happen on the host; what the host mounts may appear here.
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
        .map_err(io::Error::from)
        .map_err(failed("propagation of mounts"))?;
    let descriptors = own_descriptors().map_err(failed("/proc/self/fd"))?;
    let mounts = MountList::prepare();
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, directory, flags)
        .map_err(io::Error::from)
        .map_err(failed("open_tree of the directory"))?;
    // A wall behind the program's own: the kernel opens no device there. Before Linux 5.12 there is no such call, and a
    // mount whose flags are locked may refuse.
    let flags = NOSUID | NODEV | NOEXEC | if readonly { RDONLY } else { 0 };
    if let Err(error) = set_mount_flags(tree.as_fd(), flags) {
        log::debug!("The share is mounted without nodev and nosuid: {error}");
    }
    move_mount(
        tree.as_fd(),
        c"",
        rustix::fs::CWD,
        directory,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(io::Error::from)
    .map_err(failed("move_mount of the directory"))?;
    let enter = || -> nix::Result<()> {
        fchdir(&tree)?;
        // Puts the old root on top of the new one, from where it is taken away: pivot_root(2), "pivot_root(".", ".")".
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")
    };
    enter().map_err(io::Error::from).map_err(failed("pivot_root"))?;
    Ok(Surroundings::new(descriptors, mounts.read()))
}

/// Makes `directory` the root directory of this process: what can be had with CAP_SYS_CHROOT alone. `/proc/self/fd` cannot
/// be had without the rest of /proc then; Landlock keeps that from being opened.
pub fn change_root(directory: &Path) -> Result<Surroundings, String> {
    Surroundings::across(|| {
        chdir(directory)
            .and_then(|()| chroot("."))
            .and_then(|()| chdir("/"))
            .map_err(io::Error::from)
            .map_err(failed("chroot"))
    })
}

/// Lets this process, which keeps the host's root, open, make and remove files below `directory` alone, where the kernel
/// has Landlock; false where it has not, or one before Linux 5.19: that forbids to move a file to another directory.
pub fn landlock(directory: &Path) -> Result<bool, String> {
    let restrict = || -> Result<bool, Box<dyn std::error::Error>> {
        let all = AccessFs::from_all(ABI::V5);
        let root = File::open(directory)?;
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let Ok(ruleset) = ruleset.handle_access(AccessFs::Refer) else {
            return Ok(false);
        };
        let status = ruleset
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .create()?
            .add_rule(PathBeneath::new(root, all))?
            .restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    };
    restrict().map_err(|error| format!("Landlock: {error}"))
}
