//! The command line, as typed.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, ValueEnum};
use device::DeviceOptions;
use host::idmap::{IdPair, IdRange, IdSpan};
use server::Limits;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold());

const BEFORE: &str = "\
Shares one directory of this host with one virtual machine. The machine sees a virtio-9p device, which every Linux \
kernel can mount; this process is the device, outside of QEMU, cloud-hypervisor or crosvm (vhost-user).

Start it first, then the virtual machine. It serves one virtual machine at a time, goes on listening when that one \
ends, and ends itself on SIGTERM, SIGINT or SIGHUP.";

const AFTER: &str = "\
QEMU (10.2 or later; the memory must be shared, or nothing works):
  vhost-user-9p --socket-path /run/vm1.sock --shared-dir /srv/data
  qemu-system-x86_64 ... -m 2G \\
    -object memory-backend-memfd,id=mem,size=2G,share=on -machine memory-backend=mem \\
    -chardev socket,id=c,path=/run/vm1.sock \\
    -device vhost-user-test-device-pci,chardev=c,virtio-id=9,num_vqs=1,vq_size=256,config_size=256

In the guest, as root:
  mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /mnt";

/// All options.
#[derive(Debug, Parser)]
#[command(
    name = "vhost-user-9p",
    version,
    about = "Shares a host directory with a virtual machine (vhost-user virtio-9p device)",
    override_usage = "vhost-user-9p --socket-path <PATH> --shared-dir <DIR> [OPTIONS]",
    before_long_help = BEFORE,
    after_long_help = AFTER,
    styles = STYLES,
    max_term_width = 100,
    arg_required_else_help = true,
    // The same option twice: the last one counts, as management layers expect that append to a configured line.
    args_override_self = true,
    next_line_help = true
)]
pub struct Args {
    /// Listen on this socket
    ///
    /// The virtual machine monitor connects to it. Only this user can, unless --socket-group or --socket-mode says
    /// otherwise. It is removed when the program ends; one that a killed program left behind is replaced.
    #[arg(long, value_name = "PATH", required_unless_present_any = ["fd", "print_capabilities"], help_heading = SHARE)]
    pub socket_path: Option<PathBuf>,

    /// Group of the socket, for a virtual machine monitor that runs as another user
    ///
    /// A name or a number. This user must be a member of it, or root. Its members can connect (mode 0660).
    #[arg(long, value_name = "GROUP", conflicts_with = "fd", help_heading = SHARE)]
    pub socket_group: Option<String>,

    /// Permissions of the socket, octal [default: 0600, with --socket-group 0660]
    ///
    /// Who may write to it can connect. The owner must be able to read and write, and nothing can be executed.
    #[arg(long, value_name = "MODE", value_parser = socket_mode, conflicts_with = "fd", help_heading = SHARE)]
    pub socket_mode: Option<u32>,

    /// Listen on this inherited descriptor instead
    ///
    /// A Unix stream socket on which listen() was called, as libvirt and systemd hand it over.
    #[arg(long, value_name = "N", conflicts_with = "socket_path", help_heading = SHARE)]
    pub fd: Option<i32>,

    /// Share this directory
    #[arg(long, value_name = "DIR", required_unless_present = "print_capabilities", help_heading = SHARE)]
    pub shared_dir: Option<PathBuf>,

    /// Name of the share in the guest
    ///
    /// What the guest gives to mount; 1 to 254 bytes.
    #[arg(long, value_name = "NAME", default_value = "share", help_heading = SHARE)]
    pub tag: String,

    /// Where owner, group, mode and device numbers live
    ///
    /// They can be the host's own, or be kept beside the files so that neither side needs privileges, byte for byte
    /// as QEMU's virtio-9p keeps them.
    #[arg(long, visible_alias = "accessmode", value_name = "MODEL", default_value = "passthrough",
          help_heading = FILES)]
    pub security_model: Model,

    /// Refuse every change by the guest
    #[arg(long, help_heading = FILES)]
    pub readonly: bool,

    /// Host permissions of new files in the mapped models, octal
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = permissions, help_heading = FILES)]
    pub fmode: u32,

    /// Host permissions of new directories in the mapped models, octal
    #[arg(long, value_name = "MODE", default_value = "0700", value_parser = permissions, help_heading = FILES)]
    pub dmode: u32,

    /// Let the guest make block and character devices on the host
    ///
    /// With --security-model passthrough only, and not together with an option that restricts users or groups. Whoever
    /// can reach the directory on the host and is let by their permissions can open them: mount it nodev if you can.
    #[arg(long, help_heading = FILES)]
    pub allow_devices: bool,

    /// Let the guest set extended attributes that act on the host (repeatable, or with commas)
    ///
    /// With --security-model passthrough and squash only, and not together with an option that restricts users or
    /// groups. Without it, setting and removing them is "operation not supported" for the guest; mapped-xattr keeps
    /// the guest's own where they do nothing on the host.
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',', help_heading = FILES)]
    pub allow_xattrs: Vec<Xattrs>,

    /// Several file systems below the directory
    #[arg(long, value_name = "HOW", default_value = "remap", help_heading = FILES)]
    pub multidevs: Devices,

    /// Whose permissions count
    #[arg(long, value_name = "WHO", default_value = "guest", help_heading = FILES)]
    pub check_access: Checks,

    /// These users of the guest are those of the host (repeatable)
    ///
    /// GUEST and HOST are the first of COUNT numbers each, as in 0:100000:65536. The guest's other users cannot own
    /// anything then; the host's other users show as nobody (65534). Without this option numbers are the same on
    /// both sides.
    #[arg(long, value_name = "GUEST:HOST:COUNT", help_heading = IDS)]
    pub uid_map: Vec<IdRange>,

    /// As --uid-map, for groups (repeatable)
    #[arg(long, value_name = "GUEST:HOST:COUNT", help_heading = IDS)]
    pub gid_map: Vec<IdRange>,

    /// What the guest's root makes belongs to this user and group of the host
    #[arg(long, value_name = "UID:GID", help_heading = IDS)]
    pub squash_root: Option<IdPair>,

    /// Whatever the guest makes belongs to this user and group of the host
    #[arg(long, value_name = "UID:GID", help_heading = IDS)]
    pub squash_all: Option<IdPair>,

    /// The guest can give nothing to these users and groups of the host (repeatable)
    ///
    /// One number or a range, as in 0-999.
    #[arg(long, value_name = "FIRST-LAST", help_heading = IDS)]
    pub forbid_ids: Vec<IdSpan>,

    /// Look for the next request for up to this many microseconds before sleeping
    ///
    /// Makes small requests several times faster while the guest is busy; adapts itself, and costs nothing while it
    /// is not. 0 turns it off.
    #[arg(long, value_name = "MAX", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=100_000),
          help_heading = WORK)]
    pub poll_us: u64,

    /// Threads for requests that wait for the disk
    ///
    /// Started when needed: for fsync, for reads that are not in the page cache, for slow file systems. A request that
    /// takes longer than 100 ms is not counted, and another thread takes its place, up to 128 in all, so that what
    /// hangs does not hold up the rest.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256),
          help_heading = WORK)]
    pub io_threads: u16,

    /// Whether system calls on the directory may hang
    ///
    /// As on network file systems and FUSE. Then every request that needs one goes to --io-threads, so that one that
    /// hangs does not hold up the others; costs some time for each.
    #[arg(long, value_name = "WHETHER", default_value = "auto", help_heading = WORK)]
    pub may_hang: Hangs,

    /// How files are found again whose descriptors were given up
    ///
    /// Beyond --rlimit-nofile descriptors, those of files that the guest only knows by name are closed. By default the file
    /// is found again by its name, and its file handle says whether it is the same. Opening the handle itself also finds
    /// what the host has renamed meanwhile, but needs CAP_DAC_READ_SEARCH, which reaches every file of the file system.
    #[arg(long, value_name = "HOW", default_value = "verify", help_heading = FILES)]
    pub file_handles: Handles,

    /// Most open descriptors, at most the hard limit [default: the hard limit]
    ///
    /// A file that the guest has open takes two; names beyond the limit are found again when they are used.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(256..), help_heading = WORK)]
    pub rlimit_nofile: Option<u64>,

    /// Most fids of the guest, ENFILE beyond
    ///
    /// One per open file and, with cache=loose, one per file name in the guest's cache.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_fids, value_parser = at_least::<1>,
          help_heading = LIMITS)]
    pub max_fids: usize,

    /// Most bytes of memory for fids and the names of files, ENFILE beyond
    ///
    /// A fid takes some 200 bytes, and more when its name is longer than 26.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_state_bytes,
          value_parser = at_least::<1048576>, help_heading = LIMITS)]
    pub max_state_bytes: usize,

    /// Most extended attributes being read or written, ENOSPC beyond; 0: any number
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_xattr_fids, help_heading = LIMITS)]
    pub max_xattr_fids: usize,

    /// Most bytes of values of these, ENOSPC beyond
    ///
    /// At least 65536, the largest value that Linux allows.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_xattr_bytes,
          value_parser = at_least::<65536>, help_heading = LIMITS)]
    pub max_xattr_bytes: usize,

    /// Most byte ranges that the guest has locked, ENOLCK beyond
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_locks, value_parser = at_least::<2>,
          help_heading = LIMITS)]
    pub max_locks: usize,

    /// Most requests that wait for a lock; others are answered as blocked, and Linux asks again after 30 s
    ///
    /// Never more than half of the queue, or of --max-requests: there must be room for the request that unlocks.
    #[arg(long, value_name = "N", default_value_t = DeviceOptions::default().max_lock_waiters, help_heading = LIMITS)]
    pub max_lock_waiters: usize,

    /// Most requests at work at a time; others wait in the queue
    ///
    /// There are never more than the queue has entries: vq_size in QEMU's line.
    #[arg(long, value_name = "N", default_value_t = DeviceOptions::default().max_requests,
          value_parser = clap::value_parser!(u32).range(2..), help_heading = LIMITS)]
    pub max_requests: u32,

    /// How much of the host the program sees while it serves [default: the first of them that is possible]
    ///
    /// When the option is not given and the first cannot be had, the next one is tried, with a line in the log. The
    /// program takes itself into it; it needs no container around it.
    #[arg(long, value_name = "HOW", help_heading = SAFETY)]
    pub sandbox: Option<Sandbox>,

    /// What becomes of a system call that the program has no use for
    #[arg(long, value_name = "ACTION", default_value = "kill", help_heading = SAFETY)]
    pub seccomp: Seccomp,

    /// What to tell on stderr
    ///
    /// The environment variable RUST_LOG has precedence.
    #[arg(long, value_name = "LEVEL", default_value = "info", help_heading = WORK)]
    pub log_level: Level,

    /// Print what this program supports as JSON, for management layers, and exit
    #[arg(long, help_heading = WORK)]
    pub print_capabilities: bool,
}

const SHARE: &str = "The share";
const FILES: &str = "Files";
const IDS: &str = "Users and groups";
const LIMITS: &str = "Limits, which no honest guest meets";
const SAFETY: &str = "Sandbox";
const WORK: &str = "Operation";

/// `--security-model`, QEMU's names and libvirt's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// They are the host's own. Needs root, or the capabilities for what the guest's root does [also: default]
    #[value(alias = "default")]
    Passthrough,
    /// They live in user.virtfs.* extended attributes [also: mapped]
    #[value(alias = "mapped")]
    MappedXattr,
    /// They live in files below .virtfs_metadata, for file systems without extended attributes
    MappedFile,
    /// As passthrough, but a chown that is not permitted is reported as done [also: none]
    #[value(alias = "none")]
    Squash,
}

/// `--multidevs`, QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Devices {
    /// Each file keeps a number of its own in the guest
    Remap,
    /// What is mounted below the directory cannot be entered
    Forbid,
    /// Two files may have the same number in the guest; say so once
    Warn,
}

/// `--check-access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Checks {
    /// The guest's kernel has checked; this process does what it may do itself
    Guest,
    /// Each request is also done as the host's user with that number and that user's groups, so that the guest can do
    /// no more than that user could. The groups are read at the start. Needs CAP_SETUID and CAP_SETGID
    Host,
}

/// `--allow-xattrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Xattrs {
    /// security.*: file capabilities, labels of SELinux and its like, hashes
    Security,
    /// trusted.*: what programs of the host's root keep, such as overlays; the guest does not see them otherwise
    Trusted,
}

/// `--file-handles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Handles {
    /// By name; what is there now counts only if it is the same file
    Verify,
    /// By file handle, wherever the host has moved the file, out of the directory included
    Open,
}

/// `--may-hang`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hangs {
    /// Yes, if a network, cluster or FUSE file system is mounted there, or once a file of one was seen
    Auto,
    /// Yes
    Always,
    /// No
    Never,
}

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// Namespaces of its own, in which there is nothing but the share: no other files, no network, no processes. Needs
    /// CAP_SYS_ADMIN, or an ordinary user who may make user namespaces
    Namespace,
    /// The share as its root directory, with Landlock on top where the kernel has it. Needs CAP_SYS_CHROOT
    Chroot,
    /// What its user sees, of which Landlock lets it open, make and remove the share's alone
    Landlock,
    /// Everything that its user sees
    None,
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// The program is killed
    Kill,
    /// The call is made, and the kernel's audit log has it: to find out what is missing
    Log,
    /// Calls are not looked at
    None,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Nothing
    Off,
    /// What makes the share fail
    Error,
    /// What somebody should look at, refused requests included
    Warn,
    /// Start, connections, end
    Info,
    /// Details of a connection
    Debug,
    /// Everything
    Trace,
}

/// Octal permission bits: `644` or `0644`.
fn permissions(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 && !digits.starts_with('+') => Ok(mode),
        _ => Err("it takes octal permissions such as 644 or 0644".to_string()),
    }
}

/// Permissions of a socket: [`permissions`] that mean something there.
fn socket_mode(text: &str) -> Result<u32, String> {
    match permissions(text) {
        Ok(mode) if mode & 0o600 == 0o600 && mode & 0o111 == 0 => Ok(mode),
        _ => Err(
            "it takes octal permissions such as 0660, the owner's read and write among them and no execute"
                .into(),
        ),
    }
}

/// A number that is not too small to work with.
fn at_least<const LEAST: usize>(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= LEAST => Ok(number),
        _ => Err(format!("it takes a number of at least {LEAST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(
            ["vhost-user-9p", "--socket-path", "/s", "--shared-dir", "/d"]
                .iter()
                .chain(args),
        )
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn all_names_of_the_models_are_known() {
        for (name, model) in [
            ("passthrough", Model::Passthrough),
            ("default", Model::Passthrough),
            ("mapped-xattr", Model::MappedXattr),
            ("mapped", Model::MappedXattr),
            ("mapped-file", Model::MappedFile),
            ("squash", Model::Squash),
            ("none", Model::Squash),
        ] {
            for option in ["--security-model", "--accessmode"] {
                assert_eq!(parse(&[option, name]).unwrap().security_model, model);
            }
        }
        assert!(parse(&["--security-model", "mapped_xattr"]).is_err());
        assert_eq!(parse(&[]).unwrap().security_model, Model::Passthrough);
    }

    #[test]
    fn permissions_are_octal_with_or_without_a_zero() {
        for text in ["644", "0644", "0o644"] {
            assert_eq!(permissions(text), Ok(0o644));
        }
        for text in ["", "9", "1777", "-1", "+644", "rw", "0x1ff"] {
            assert!(permissions(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_is_at_least_its_owners_and_is_not_executed() {
        for (text, mode) in [("600", 0o600), ("0660", 0o660), ("0o666", 0o666), ("0620", 0o620)] {
            assert_eq!(socket_mode(text), Ok(mode));
        }
        for text in [
            "0", "0060", "0400", "0200", "0700", "0770", "0661", "04660", "1660", "660 ", "",
        ] {
            assert!(socket_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn id_options_are_repeated() {
        let args = parse(&[
            "--uid-map",
            "0:1000:1",
            "--uid-map",
            "1:2000:10",
            "--forbid-ids",
            "0-9",
        ])
        .unwrap();
        assert_eq!(args.uid_map.len(), 2);
        assert_eq!(args.forbid_ids, [IdSpan { first: 0, last: 9 }]);
        assert!(parse(&["--gid-map", "1:2"]).is_err());
        assert!(parse(&["--squash-all", "root"]).is_err());
    }

    #[test]
    fn the_readme_has_every_option_with_its_default_and_no_other() {
        let rows: Vec<_> = include_str!("../README.md")
            .lines()
            .filter(|line| line.starts_with("| `--"))
            .map(|line| line.split(" | ").collect::<Vec<_>>())
            .collect();
        let mut listed: Vec<_> = rows
            .iter()
            .flat_map(|row| row[0].split('`'))
            .filter_map(|words| words.split(' ').next()?.strip_prefix("--"))
            .collect();
        let command = Args::command();
        let mut options: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
        listed.sort_unstable();
        options.sort_unstable();
        assert_eq!(listed, options);
        for arg in command
            .get_arguments()
            .filter(|arg| arg.get_action().takes_values())
        {
            let long = arg.get_long().unwrap();
            let row = rows.iter().find(|row| row[0].contains(&format!("`--{long} ")));
            for default in arg.get_default_values() {
                let default = default.to_str().unwrap();
                // A row of several options has their defaults in the same order.
                let said =
                    row.is_some_and(|row| row[1].split(", ").any(|said| said.trim_matches('`') == default));
                assert!(said, "--{long} {default}: {row:?}");
            }
        }
    }

    #[test]
    fn the_last_of_two_counts() {
        assert_eq!(parse(&["--tag", "a", "--tag", "b"]).unwrap().tag, "b");
    }
}
