//! What the worker may do: the capabilities that the share mode needs, and no way to more.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use host::{CheckAccess, FileHandles, SecurityModel, ShareOptions};
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Capabilities of this process that a worker for this share has use for.
///
/// CAP_DAC_READ_SEARCH is one only with `--file-handles open`: open_by_handle_at(2) reaches every inode of the file system
/// with it. What it permits besides, CAP_DAC_OVERRIDE does too.
pub fn wanted(share: &ShareOptions) -> Result<CapsHashSet, String> {
    let mut wanted = CapsHashSet::new();
    match share.model {
        SecurityModel::Passthrough | SecurityModel::Squash => wanted.extend([
            Capability::CAP_CHOWN,
            Capability::CAP_DAC_OVERRIDE,
            Capability::CAP_FOWNER,
            Capability::CAP_FSETID,
        ]),
        // Owners and devices are notes there, and every file is the process's own.
        SecurityModel::MappedXattr | SecurityModel::MappedFile => {}
    }
    if share.allow_devices {
        wanted.insert(Capability::CAP_MKNOD);
    }
    if share.allow_xattrs.security {
        wanted.insert(Capability::CAP_SETFCAP);
    }
    // Of security.* the kernel itself only knows capabilities; whatever else is there needs what trusted.* needs.
    if share.allow_xattrs.security || share.allow_xattrs.trusted {
        wanted.insert(Capability::CAP_SYS_ADMIN);
    }
    if share.file_handles == FileHandles::Open {
        wanted.insert(Capability::CAP_DAC_READ_SEARCH);
    }
    // A mount without an id for this process's user makes nothing for it, whatever else it may.
    if share.check_access == CheckAccess::Host || host::takes_ids(share) {
        wanted.extend([Capability::CAP_SETUID, Capability::CAP_SETGID]);
    }
    // Those of a user namespace, which a worker has all of at first, are of no use.
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    Ok(permitted.intersection(&wanted).copied().collect())
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("The capabilities cannot be given up: {error}.")
}

/// Gives up all capabilities but `keep`, for good, in this thread and those that it makes.
pub fn drop_capabilities(keep: &CapsHashSet) -> Result<(), String> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        // What the kernel does not know is not in its bounding set either.
        for cap in caps::read(None, CapSet::Bounding)
            .map_err(failed)?
            .difference(keep)
        {
            caps::drop(None, CapSet::Bounding, *cap).map_err(failed)?;
        }
    }
    // A kernel without ambient capabilities has none to clear.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(failed)?;
    caps::set(None, CapSet::Effective, keep).map_err(failed)?;
    caps::set(None, CapSet::Permitted, keep).map_err(failed)
}

/// No program that this process could start gets more rights, nobody of its user can trace it, its memory is in no core
/// dump, and it ends when its parent does.
///
/// After the capabilities were given up: a change of credentials makes the kernel forget the last of these.
pub fn bind_to_parent() -> Result<(), String> {
    prctl::set_no_new_privs()
        .and_then(|()| prctl::set_dumpable(false))
        .and_then(|()| prctl::set_pdeathsig(Signal::SIGKILL))
        .map_err(|error| format!("prctl: {}.", io::Error::from(error)))
}
