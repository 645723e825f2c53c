//! From what was typed to what is done: everything checked before anything is created.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use device::{DeviceOptions, MAX_TAG};
use host::{
    CheckAccess, FileHandles, IdMaps, IdOptions, KernelXattrs, MayHang, MultiDevs, SecurityModel,
    ShareOptions,
};
use nix::errno::Errno;
use nix::unistd::{Gid, Group};
use server::Limits;

use crate::args::{Args, Checks, Devices, Handles, Hangs, Model, Sandbox, Seccomp, Xattrs};
use crate::sandbox::Level;
use crate::sandbox::seccomp::Verdict;

/// Longest path that fits `sockaddr_un`, without its NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Why the program does not start.
#[derive(Debug)]
pub enum Failure {
    /// The command line cannot be meant: exit status 2.
    Usage(String),
    /// The command line is fine, the host is not as it should be: exit status 1.
    Environment(String),
}

/// Who can connect to a socket that is made.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Its group, if not what it would have anyway.
    pub group: Option<Gid>,
    /// Its permissions.
    pub mode: u32,
}

/// Where to listen.
#[derive(Debug)]
pub enum Socket {
    /// `--socket-path`, with `--socket-group` and `--socket-mode`
    Path(PathBuf, Access),
    /// `--fd`
    Fd(i32),
}

/// A configuration that makes sense by itself.
#[derive(Debug)]
pub struct Config {
    /// Where to listen.
    pub socket: Socket,
    /// The directory and how it is shared.
    pub share: ShareOptions,
    /// The device.
    pub device: DeviceOptions,
    /// What a guest may make grow; the descriptors are set when the process's limit is known.
    pub limits: Limits,
    /// `--rlimit-nofile`
    pub rlimit_nofile: Option<u64>,
    /// `--sandbox`; `None`: the best there is.
    pub sandbox: Option<Level>,
    /// `--seccomp`; `None`: calls are not looked at.
    pub seccomp: Option<Verdict>,
}

impl Config {
    /// Checks `args` against each other and against the host, touching nothing.
    pub fn new(args: &Args) -> Result<Config, Failure> {
        let socket = match (&args.socket_path, args.fd) {
            (Some(path), _) => {
                check_socket_path(path)?;
                Socket::Path(path.clone(), access(args)?)
            }
            (None, Some(fd)) if fd >= 0 => Socket::Fd(fd),
            (None, Some(fd)) => return Err(Failure::Usage(format!("--fd {fd} is no descriptor."))),
            (None, None) => return Err(Failure::Usage("--socket-path is missing.".to_string())),
        };
        if args.tag.is_empty() || args.tag.len() > MAX_TAG {
            return Err(Failure::Usage(format!(
                "The tag has {} bytes; the device's configuration space has room for 1 to {MAX_TAG}.",
                args.tag.len()
            )));
        }
        let Some(directory) = &args.shared_dir else {
            return Err(Failure::Usage("--shared-dir is missing.".to_string()));
        };
        let directory = directory_of(directory)?;
        let mut share = ShareOptions::new(directory, model(args.security_model));
        share.readonly = args.readonly;
        share.fmode = args.fmode;
        share.dmode = args.dmode;
        share.ids = ids(args)?;
        share.multidevs = match args.multidevs {
            Devices::Remap => MultiDevs::Remap,
            Devices::Forbid => MultiDevs::Forbid,
            Devices::Warn => MultiDevs::Warn,
        };
        share.check_access = match args.check_access {
            Checks::Guest => CheckAccess::Guest,
            Checks::Host => CheckAccess::Host,
        };
        share.allow_devices = args.allow_devices;
        share.allow_xattrs = KernelXattrs {
            security: args.allow_xattrs.contains(&Xattrs::Security),
            trusted: args.allow_xattrs.contains(&Xattrs::Trusted),
        };
        share.may_hang = match args.may_hang {
            Hangs::Auto => MayHang::Auto,
            Hangs::Always => MayHang::Always,
            Hangs::Never => MayHang::Never,
        };
        share.file_handles = match args.file_handles {
            Handles::Verify => FileHandles::Verify,
            Handles::Open => FileHandles::Open,
        };
        share.check().map_err(Failure::Usage)?;
        Ok(Config {
            socket,
            share,
            device: DeviceOptions {
                tag: args.tag.clone().into_bytes(),
                io_threads: usize::from(args.io_threads),
                poll_max: Duration::from_micros(args.poll_us),
                max_requests: args.max_requests,
                max_lock_waiters: args.max_lock_waiters,
                ..DeviceOptions::default()
            },
            limits: Limits {
                max_fids: args.max_fids,
                max_state_bytes: args.max_state_bytes,
                max_xattr_fids: args.max_xattr_fids,
                max_xattr_bytes: args.max_xattr_bytes,
                max_locks: args.max_locks,
                ..Limits::default()
            },
            rlimit_nofile: args.rlimit_nofile,
            sandbox: args.sandbox.map(|asked| match asked {
                Sandbox::Namespace => Level::Namespace,
                Sandbox::Chroot => Level::Chroot,
                Sandbox::Landlock => Level::Landlock,
                Sandbox::None => Level::None,
            }),
            seccomp: match args.seccomp {
                Seccomp::Kill => Some(Verdict::Kill),
                Seccomp::Log => Some(Verdict::Log),
                Seccomp::None => None,
            },
        })
    }
}

/// What `--socket-group` and `--socket-mode` mean. Groups are looked up here, before anything is open or confined: who
/// knows them may be a service at the other end of a socket.
fn access(args: &Args) -> Result<Access, Failure> {
    let group = args.socket_group.as_deref().map(group).transpose()?;
    let mode = args.socket_mode.unwrap_or(match group {
        Some(_) => 0o660,
        None => 0o600,
    });
    if group.is_some() && mode & 0o020 == 0 {
        return Err(Failure::Usage(format!(
            "With --socket-mode {mode:04o} the group of --socket-group cannot connect; that takes write permission, as \
             in 0660."
        )));
    }
    Ok(Access { group, mode })
}

/// The group of this name, or else number, as chgrp has it.
fn group(name: &str) -> Result<Gid, Failure> {
    match Group::from_name(name) {
        Ok(Some(group)) => return Ok(group.gid),
        Ok(None) | Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => {}
        Err(error) => {
            return Err(Failure::Environment(format!(
                "The group of --socket-group cannot be looked up: {}.",
                error.desc()
            )));
        }
    }
    match name.parse() {
        // The last number means "no group".
        Ok(number) if number != u32::MAX && !name.starts_with('+') => Ok(Gid::from_raw(number)),
        _ => Err(Failure::Usage(format!(
            "There is no group \"{name}\" for --socket-group."
        ))),
    }
}

fn ids(args: &Args) -> Result<IdMaps, Failure> {
    IdMaps::new(&IdOptions {
        uid_map: args.uid_map.clone(),
        gid_map: args.gid_map.clone(),
        squash_root: args.squash_root,
        squash_all: args.squash_all,
        forbid: args.forbid_ids.clone(),
    })
    .map_err(Failure::Usage)
}

fn model(model: Model) -> SecurityModel {
    match model {
        Model::Passthrough => SecurityModel::Passthrough,
        Model::MappedXattr => SecurityModel::MappedXattr,
        Model::MappedFile => SecurityModel::MappedFile,
        Model::Squash => SecurityModel::Squash,
    }
}

/// The model's name on the command line.
pub fn model_name(model: SecurityModel) -> &'static str {
    match model {
        SecurityModel::Passthrough => "passthrough",
        SecurityModel::MappedXattr => "mapped-xattr",
        SecurityModel::MappedFile => "mapped-file",
        SecurityModel::Squash => "squash",
    }
}

/// The directory's path without symlinks, which is what the kernel and the log call it.
fn directory_of(directory: &Path) -> Result<PathBuf, Failure> {
    let shown = directory.display();
    let found = fs::canonicalize(directory).and_then(|path| Ok((fs::metadata(&path)?.is_dir(), path)));
    match found {
        Ok((true, path)) => Ok(path),
        Ok((false, _)) => Err(Failure::Environment(format!(
            "{shown} is not a directory, so it cannot be shared."
        ))),
        Err(error) => Err(Failure::Environment(format!(
            "The directory to share cannot be used: {shown}: {}.",
            reason(&error)
        ))),
    }
}

fn check_socket_path(path: &Path) -> Result<(), Failure> {
    let len = path.as_os_str().as_bytes().len();
    if len == 0 {
        return Err(Failure::Usage("--socket-path is empty.".to_string()));
    }
    if len > MAX_SOCKET_PATH {
        return Err(Failure::Usage(format!(
            "The socket path has {len} bytes; Unix sockets allow {MAX_SOCKET_PATH}."
        )));
    }
    Ok(())
}

/// The error in words, without Rust's "(os error N)".
pub fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}
