//! Why the host refused something, in one sentence for whoever runs the program: the file, the rule, the way out.
//! Only the path of an error comes here, so it may ask the host again; what it says is what it finds then.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use crate::attr::Caller;
use crate::context::Context;
use crate::mount_ids;
use crate::name::Name;
use crate::options::{CheckAccess, SecurityModel};
use crate::share::Object;
use crate::shown::{self, Shown};
use crate::sys;
use crate::sys::attr::Statx;
use crate::sys::cred::{self, CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_MKNOD};

/// The operation of making a device where that is not allowed.
pub const DEVICE: &str = "mknod of a device";

/// One refusal.
pub struct Refusal<'a> {
    /// The operation, as a verb.
    pub op: &'static str,
    /// The object, or the directory of `name`.
    pub object: &'a Object<'a>,
    /// The name in it that the operation is about.
    pub name: Option<&'a Name>,
    /// Who asked, in the guest's numbers.
    pub caller: Caller,
    /// What the host said.
    pub errno: i32,
}

/// Logs one sentence about `refusal`. It is put together only if the log takes it: a guest can cause as many
/// refusals as it likes.
pub fn denied(context: &Context, refusal: &Refusal<'_>) {
    log::warn!("{}", Sentence { context, refusal });
}

struct Sentence<'a> {
    context: &'a Context,
    refusal: &'a Refusal<'a>,
}

/// `op "path": error: rule; remedy`.
impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sentence { context, refusal } = self;
        let path = context.shown_path(refusal.object.path);
        write!(f, "{} \"{}", refusal.op, Shown::end(&path, shown::PATH))?;
        if let Some(name) = refusal.name {
            write!(f, "/{}", Shown::all(name.as_bytes()))?;
        }
        let error = io::Error::from_raw_os_error(refusal.errno);
        write!(f, "\" was refused ({error}): {}", rule(context, refusal))
    }
}

fn rule(context: &Context, refusal: &Refusal<'_>) -> String {
    let options = context.options();
    if refusal.errno == libc::EROFS {
        return if options.readonly {
            "the share is read-only; leave out --readonly to let the guest change it".to_owned()
        } else {
            "the file system is mounted read-only on the host; remount it read-write".to_owned()
        };
    }
    if refusal.op == DEVICE {
        return match options.model {
            SecurityModel::Passthrough if !options.restricts_ids() => {
                "it would be a device of the host's; --allow-devices lets the guest make such, and --security-model \
                 mapped-xattr keeps the guest's devices in plain files"
            }
            _ => {
                "it would be a device of the host's, which only --security-model passthrough without restricted users \
                 can let the guest make (--allow-devices); mapped-xattr keeps the guest's devices in plain files"
            }
        }
        .to_owned();
    }
    let Ok(object) = sys::attr::stat(refusal.object.path) else {
        return "the object cannot be looked at".to_owned();
    };
    let named = refusal
        .name
        .and_then(|name| context.lookup(refusal.object.path, name.as_c_str()).ok())
        .and_then(|fd| sys::attr::stat(fd.as_fd()).ok());
    let subject = named.as_ref().unwrap_or(&object);
    if let Some(flag) = [&object, subject].into_iter().find_map(flagged) {
        return flag;
    }
    if refusal.errno == libc::EOVERFLOW {
        return format!(
            "the mount has no id for the user or group of the guest's that shall own it, for its own owner or for this \
             process (it is idmapped, or of another user namespace); {}",
            mount_ids::remedy(context, &object)
        );
    }
    let ids = &options.ids;
    let lacks = |cap| !context.caps().has(cap);
    if !ids.is_identity() && ids.owner_to_host(refusal.caller).is_err() {
        return format!(
            "guest user {} (group {}) has no id on the host by --uid-map and --gid-map, or a forbidden one; \
             extend the map",
            refusal.caller.uid, refusal.caller.gid
        );
    }
    if refusal.op == "setattr" && refusal.errno == libc::EPERM && !ids.is_identity() && !lacks(CAP_FOWNER) {
        return format!(
            "{}; the options for users and groups say which owners the guest can give, and only files of such owners \
             can get set-id bits",
            owned(context, subject)
        );
    }
    if options.check_access == CheckAccess::Host {
        return format!(
            "{}, and --check-access host gives guest user {} no more than the host's user of that number has; \
             change the owner or mode on the host",
            owned(context, subject),
            refusal.caller.uid
        );
    }
    let (uid, gid) = cred::fs_ids();
    let process = format!("this process runs as {uid}:{gid}");
    match refusal.op {
        "mknod" if refusal.errno == libc::EPERM && lacks(CAP_MKNOD) => format!(
            "{process} without CAP_MKNOD; run it as root, or use --security-model mapped-xattr, which keeps \
             devices in plain files"
        ),
        "create" | "mkdir" | "mknod" | "symlink"
            if refusal.errno == libc::EPERM
                && lacks(CAP_CHOWN)
                && options.model == SecurityModel::Passthrough =>
        {
            format!(
                "guest user {} shall own it, and {process} without CAP_CHOWN; run it as root, or use \
                 --security-model squash (everything belongs to the process) or mapped-xattr (owners are kept \
                 beside the files)",
                refusal.caller.uid
            )
        }
        "setattr" | "setxattr" | "removexattr" if lacks(CAP_FOWNER) && subject.stx_uid != uid => format!(
            "{}, only its owner may do that, and {process} without CAP_FOWNER; run it as that user or as root",
            owned(context, subject)
        ),
        "setattr"
            if refusal.errno == libc::EPERM
                && lacks(CAP_CHOWN)
                && options.model == SecurityModel::Passthrough =>
        {
            format!(
                "the owner cannot be changed because {process} without CAP_CHOWN; run it as root, or use \
                 --security-model squash or mapped-xattr"
            )
        }
        "unlink" | "rmdir" | "rename"
            if u32::from(object.stx_mode) & libc::S_ISVTX != 0 && lacks(CAP_FOWNER) =>
        {
            format!(
                "the directory is sticky ({}), so only the owner removes or renames, and {process}",
                owned(context, &object)
            )
        }
        _ if lacks(CAP_DAC_OVERRIDE) => {
            // Of something that is not there yet, it is the directory that refuses.
            let of_the_directory =
                refusal.name.is_some() && (named.is_none() || needs_the_directory(refusal));
            let belongs = if of_the_directory {
                format!("its directory {}", belongs(context, &object))
            } else {
                owned(context, subject)
            };
            format!(
                "{belongs}, and {process}; give that user access on the host (chown, or setfacl -m u:{uid}:rwX), or \
                 run the process as the owner or as root"
            )
        }
        _ => format!(
            "{}, {process}, and the host's own rules (a security module, a lock-down of the mount) refuse it",
            owned(context, subject)
        ),
    }
}

/// Whether the permissions that count are those of the directory.
fn needs_the_directory(refusal: &Refusal<'_>) -> bool {
    refusal.name.is_some() && !matches!(refusal.op, "open" | "create")
}

fn flagged(stat: &Statx) -> Option<String> {
    let flags = [
        (libc::STATX_ATTR_IMMUTABLE, "immutable", "i"),
        (libc::STATX_ATTR_APPEND, "append-only", "a"),
    ];
    flags.into_iter().find_map(|(bit, word, letter)| {
        let set = stat.stx_attributes & u64::from(bit.cast_unsigned()) != 0;
        set.then(|| format!("it is marked {word} on the host; chattr -{letter} lifts that"))
    })
}

fn owned(context: &Context, stat: &Statx) -> String {
    format!("it {}", belongs(context, stat))
}

fn belongs(context: &Context, stat: &Statx) -> String {
    let mode = stat.stx_mode & 0o7777;
    if context.hides_owners() && stat.stx_uid != cred::fs_ids().0 {
        return format!(
            "belongs to another user (whom the sandbox's user namespace hides; --sandbox landlock shows owners) with mode \
             {mode:04o}"
        );
    }
    format!(
        "belongs to {}:{} with mode {mode:04o}",
        stat.stx_uid, stat.stx_gid
    )
}
