//! What the administrator chose for the share, already checked.

use std::path::PathBuf;

use crate::idmap::IdMaps;

/// The four share modes, in QEMU's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecurityModel {
    /// Owner, group, mode and special files are the host's own. Also `default`.
    Passthrough,
    /// They live in `user.virtfs.*` xattrs. Also `mapped`.
    MappedXattr,
    /// They live in `.virtfs_metadata`.
    MappedFile,
    /// As passthrough, but a privileged operation that fails is reported as done. Also `none`.
    Squash,
}

/// What to do about a share that spans several file systems, in QEMU's spelling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MultiDevs {
    /// Give every object a number of its own.
    #[default]
    Remap,
    /// Refuse objects of another file system than the shared directory's with ENODEV.
    Forbid,
    /// Pass the host's inode numbers on, and warn once.
    Warn,
}

/// Whose permissions count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckAccess {
    /// The guest kernel has checked; operations run with the process's own rights.
    #[default]
    Guest,
    /// Every operation runs as the host's user with the guest user's number, with that user's groups.
    Host,
}

/// Whether a system call on the share may take forever, as on a network file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MayHang {
    /// As the file systems' types say.
    #[default]
    Auto,
    /// Yes.
    Always,
    /// No.
    Never,
}

const RESTRICTIONS: &str =
    "--uid-map, --gid-map, --squash-root, --squash-all, --forbid-ids or --check-access host";

/// The kernel's own kinds of xattrs, which act on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelXattrs {
    /// `security.*`: file capabilities, labels, hashes.
    pub security: bool,
    /// `trusted.*`: what programs with CAP_SYS_ADMIN keep for themselves, such as overlays.
    pub trusted: bool,
}

/// How an object is found again whose descriptor was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileHandles {
    /// By its name below its directory; its handle only says whether it is the same object.
    #[default]
    Verify,
    /// Its handle is opened, which needs CAP_DAC_READ_SEARCH: wherever the host has moved the object meanwhile, out of the
    /// shared directory included.
    Open,
}

/// Everything a [`crate::Share`] needs to know.
#[derive(Clone, Debug)]
pub struct ShareOptions {
    /// The shared directory.
    pub directory: PathBuf,
    /// The share mode.
    pub model: SecurityModel,
    /// Refuse every change with EROFS.
    pub readonly: bool,
    /// Host permission bits of new files in the mapped modes.
    pub fmode: u32,
    /// Host permission bits of new directories in the mapped modes.
    pub dmode: u32,
    /// Which id of the guest is which of the host; applied by [`crate::Share`], outside of the modes.
    pub ids: IdMaps,
    /// Several file systems in the share.
    pub multidevs: MultiDevs,
    /// Whose permissions count.
    pub check_access: CheckAccess,
    /// Whether system calls may hang.
    pub may_hang: MayHang,
    /// Where special files are the host's own: whether the guest may make block and character devices.
    pub allow_devices: bool,
    /// Where xattrs are the host's own: which of the kernel's kinds the guest may set and remove.
    pub allow_xattrs: KernelXattrs,
    /// How objects are found again.
    pub file_handles: FileHandles,
}

impl ShareOptions {
    /// Whether the guest is kept from being some of the host's users: any of `--uid-map`, `--gid-map`, `--squash-root`,
    /// `--squash-all`, `--forbid-ids`, or `--check-access host`. What would go round that, devices and the kernel's
    /// own xattrs, cannot be allowed at the same time.
    pub fn restricts_ids(&self) -> bool {
        !self.ids.is_identity() || self.check_access == CheckAccess::Host
    }

    /// Whether the options go together; the error is one sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.allow_devices && self.model != SecurityModel::Passthrough {
            return Err(
                "--allow-devices needs --security-model passthrough: the mapped models keep devices in plain files \
                 anyway, and with squash files belong to somebody else than who makes them"
                    .to_owned(),
            );
        }
        if self.allow_devices && self.restricts_ids() {
            return Err(format!(
                "--allow-devices cannot be used together with {RESTRICTIONS}: whoever may open a device node on the \
                 host is not held by these"
            ));
        }
        let xattrs = self.allow_xattrs != KernelXattrs::default();
        if xattrs && !matches!(self.model, SecurityModel::Passthrough | SecurityModel::Squash) {
            return Err(
                "--allow-xattrs needs --security-model passthrough or squash: mapped-xattr keeps the guest's security.* \
                 and trusted.* beside the file, where they do nothing on the host, and mapped-file keeps none"
                    .to_owned(),
            );
        }
        if xattrs && self.restricts_ids() {
            return Err(format!(
                "--allow-xattrs cannot be used together with {RESTRICTIONS}: whoever may give a program file \
                 capabilities is not held by these"
            ));
        }
        Ok(())
    }

    /// The defaults for `directory`: QEMU's, in `model`.
    pub fn new(directory: impl Into<PathBuf>, model: SecurityModel) -> ShareOptions {
        ShareOptions {
            directory: directory.into(),
            model,
            readonly: false,
            fmode: 0o600,
            dmode: 0o700,
            ids: IdMaps::default(),
            multidevs: MultiDevs::default(),
            check_access: CheckAccess::default(),
            may_hang: MayHang::default(),
            allow_devices: false,
            allow_xattrs: KernelXattrs::default(),
            file_handles: FileHandles::default(),
        }
    }
}
