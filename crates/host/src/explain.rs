//! Why the host refused something, in one sentence for whoever runs the program: the file, the rule, the way out.
//! Only the path of an error comes here, so it may ask the host again; what it says is what it finds then.

use std::fmt::Write;
use std::io;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::attr::Caller;
use crate::context::Context;
use crate::name::Name;
use crate::options::{CheckAccess, SecurityModel};
use crate::share::Object;
use crate::sys;
use crate::sys::attr::Statx;
use crate::sys::cred::{self, CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_MKNOD};

/// At most this many sentences in [`PERIOD`]: a guest can cause as many refusals as it likes.
const SENTENCES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Spent {
    since: Option<Instant>,
    said: u32,
    missed: u64,
}

/// Says it, now and then.
#[derive(Debug, Default)]
pub struct Explainer {
    spent: Mutex<Spent>,
}

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

impl Explainer {
    /// Whether a sentence may be said at `now`; how many were not since the last.
    fn may_speak(&self, now: Instant) -> Option<u64> {
        let mut spent = self.spent.lock().unwrap_or_else(|p| p.into_inner());
        if spent
            .since
            .is_none_or(|since| now.duration_since(since) >= PERIOD)
        {
            spent.since = Some(now);
            spent.said = 0;
        }
        if spent.said >= SENTENCES {
            spent.missed = spent.missed.saturating_add(1);
            return None;
        }
        spent.said += 1;
        Some(std::mem::take(&mut spent.missed))
    }

    /// Logs one sentence about `refusal`.
    pub fn denied(&self, context: &Context, refusal: &Refusal<'_>) {
        if !log::log_enabled!(log::Level::Warn) {
            return;
        }
        let Some(missed) = self.may_speak(Instant::now()) else {
            return;
        };
        let sentence = sentence(context, refusal);
        if missed > 0 {
            log::warn!("{sentence} ({missed} refusals before this one are not shown)");
        } else {
            log::warn!("{sentence}");
        }
    }
}

/// `op "path": error: rule; remedy`.
fn sentence(context: &Context, refusal: &Refusal<'_>) -> String {
    let path = context.proc().path_of(refusal.object.path).unwrap_or_default();
    let mut text = format!("{} \"{}", refusal.op, path.escape_ascii());
    if let Some(name) = refusal.name {
        let _ = write!(text, "/{}", name.as_bytes().escape_ascii());
    }
    let _ = write!(
        text,
        "\" was refused ({}): {}",
        io::Error::from_raw_os_error(refusal.errno),
        rule(context, refusal)
    );
    text
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
            owned(subject)
        );
    }
    if options.check_access == CheckAccess::Host {
        return format!(
            "{}, and --check-access host gives guest user {} no more than the host's user of that number has; \
             change the owner or mode on the host",
            owned(subject),
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
            owned(subject)
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
                owned(&object)
            )
        }
        _ if lacks(CAP_DAC_OVERRIDE) => {
            // Of something that is not there yet, it is the directory that refuses.
            let of_the_directory =
                refusal.name.is_some() && (named.is_none() || needs_the_directory(refusal));
            let belongs = if of_the_directory {
                format!("its directory {}", belongs(&object))
            } else {
                owned(subject)
            };
            format!(
                "{belongs}, and {process}; give that user access on the host (chown, or setfacl -m u:{uid}:rwX), or \
                 run the process as the owner or as root"
            )
        }
        _ => format!(
            "{}, {process}, and the host's own rules (a security module, a lock-down of the mount) refuse it",
            owned(subject)
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

fn owned(stat: &Statx) -> String {
    format!("it {}", belongs(stat))
}

fn belongs(stat: &Statx) -> String {
    format!(
        "belongs to {}:{} with mode {:04o}",
        stat.stx_uid,
        stat.stx_gid,
        stat.stx_mode & 0o7777
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_flood_the_log() {
        let explainer = Explainer::default();
        let start = Instant::now();
        let said = (0..1000).filter(|_| explainer.may_speak(start).is_some()).count();
        assert_eq!(said, SENTENCES as usize);
        assert_eq!(
            explainer.may_speak(start + PERIOD),
            Some(1000 - u64::from(SENTENCES))
        );
        assert_eq!(explainer.may_speak(start + PERIOD), Some(0));
    }
}
