//! Whose rights a thread works with: the process's, or for the time of one operation a guest user's.

use std::cell::Cell;
use std::io;

use crate::attr::Caller;
use crate::sys::cred::{self, Caps};
use crate::users::{User, Users};

thread_local! {
    static SWITCHED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread works as a guest's user right now.
pub fn switched() -> bool {
    SWITCHED.get()
}

/// Ends the process: going on would run the next request with somebody else's rights.
fn give_up(what: &str, error: &io::Error) -> ! {
    log::error!(
        target: "host::give_up",
        "cannot {what} ({error}): stopping, rather than work on with the wrong rights"
    );
    log::logger().flush();
    std::process::abort()
}

/// A capability made effective on this thread until dropped.
pub struct Raised<'a>(&'a Caps);

impl<'a> Raised<'a> {
    /// `base` is what the thread has now and gets back.
    pub fn new(base: &'a Caps, cap: u32) -> io::Result<Raised<'a>> {
        base.with(cap, true).apply()?;
        Ok(Raised(base))
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.apply() {
            give_up("drop a capability", &error);
        }
    }
}

/// This thread makes objects of another user and group until this is dropped, with the capabilities that it has anyway.
///
/// The kernel makes nothing for a user or group that the mount has no id for, whatever the capabilities (EOVERFLOW, from
/// `fsuidgid_has_mapping`): an idmapped mount may have none for this process's.
pub struct Making<'a> {
    own: (u32, u32),
    /// Those of this thread. `None` while it works as a guest's user: that one has none that a change could take away.
    caps: Option<&'a Caps>,
}

impl<'a> Making<'a> {
    /// `base` is what the thread has now. Needs CAP_SETUID and CAP_SETGID.
    pub fn of(base: &'a Caps, uid: u32, gid: u32) -> io::Result<Making<'a>> {
        let making = Making {
            own: cred::fs_ids(),
            caps: Some(base),
        };
        cred::set_fsgid(gid)?;
        cred::set_fsuid(uid)?;
        // Leaving user 0 has taken those that count for files.
        base.apply()?;
        Ok(making)
    }

    /// Another group only, for a thread that works as a guest's user.
    pub fn of_group(gid: u32) -> io::Result<Making<'a>> {
        let making = Making {
            own: cred::fs_ids(),
            caps: None,
        };
        cred::set_fsgid(gid)?;
        Ok(making)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let (uid, gid) = self.own;
        let result = cred::set_fsgid(gid).and_then(|()| match self.caps {
            // Coming back to user 0 makes every permitted capability of these effective.
            Some(caps) => cred::set_fsuid(uid).and_then(|()| caps.apply()),
            None => Ok(()),
        });
        if let Err(error) = result {
            give_up("restore this thread's own user", &error);
        }
    }
}

/// What a thread keeps while it works as another user: the way back, and nothing that acts on files.
const WAY_BACK: [u32; 2] = [cred::CAP_SETUID, cred::CAP_SETGID];

/// What it keeps as the host's root: what root is expected to do to files, and no more. No devices, no xattrs of the
/// kernel's, no file handles, and set-id bits go with a write.
const AS_ROOT: [u32; 5] = [
    cred::CAP_SETUID,
    cred::CAP_SETGID,
    cred::CAP_CHOWN,
    cred::CAP_DAC_OVERRIDE,
    cred::CAP_FOWNER,
];

/// The process's own rights, and the host's users.
pub struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    caps: Caps,
    as_user: Caps,
    as_root: Caps,
    nobody: User,
    overflow: u32,
    users: Users,
}

/// This thread works as a guest's user until this is dropped.
pub struct AsUser<'a>(&'a Credentials);

impl Credentials {
    /// Takes down the calling thread's own; `caps` is what it has between two operations. Fails with a sentence
    /// when the process may not take on others.
    pub fn new(caps: Caps, users: Users) -> Result<Credentials, String> {
        for (cap, name) in [(cred::CAP_SETUID, "CAP_SETUID"), (cred::CAP_SETGID, "CAP_SETGID")] {
            if !caps.has(cap) {
                return Err(format!(
                    "--check-access host needs a process that may work as other users: run it as root or \
                     give it {name}, or use --check-access guest"
                ));
            }
        }
        let (uid, gid) = cred::fs_ids();
        let (overflow, nogroup) = users.overflow;
        log::info!(
            "The host's user database has {} users. Their groups are read at the start only.",
            users.len()
        );
        Ok(Credentials {
            uid,
            gid,
            groups: cred::groups().map_err(|e| format!("cannot read the process's groups: {e}"))?,
            caps,
            as_user: caps.reduced_to(&WAY_BACK),
            as_root: caps.reduced_to(&AS_ROOT),
            // A number that the host does not know belongs to no group.
            nobody: User {
                primary: nogroup,
                groups: Vec::new(),
            },
            overflow,
            users,
        })
    }

    /// Makes this thread work as `caller` (in the host's numbers): its file system user, its primary group, or
    /// the group it names if it is a member, its supplementary groups, and without the process's capabilities. A caller
    /// who named nobody works as the host's overflow user, who owns nothing.
    pub fn enter(&self, caller: Caller) -> io::Result<AsUser<'_>> {
        let uid = match caller.uid {
            u32::MAX => self.overflow,
            uid => uid,
        };
        let user = self.users.get(uid).unwrap_or(&self.nobody);
        // Which group a new object gets is for the mode to set, as this user; naming a group gives no right to it.
        let gid = if user.groups.contains(&caller.gid) {
            caller.gid
        } else {
            user.primary
        };
        SWITCHED.set(true);
        let guard = AsUser(self);
        // Groups first: once the user is another one, the rights to change them are still there (they are no file
        // system capabilities), but the order of a login is the one that is understood best.
        cred::set_groups(&user.groups)?;
        cred::set_fsgid(gid)?;
        cred::set_fsuid(uid)?;
        // By itself the kernel only takes the file system's own away, and only on a change away from user 0.
        match uid {
            0 => self.as_root.apply()?,
            _ => self.as_user.apply()?,
        }
        Ok(guard)
    }
}

impl Drop for AsUser<'_> {
    fn drop(&mut self) {
        let own = self.0;
        let result = cred::set_fsuid(own.uid)
            .and_then(|()| cred::set_fsgid(own.gid))
            .and_then(|()| cred::set_groups(&own.groups))
            // Coming back to user 0 makes every permitted file system capability effective, CAP_FSETID too.
            .and_then(|()| own.caps.apply());
        if let Err(error) = result {
            give_up("restore this thread's own credentials", &error);
        }
        SWITCHED.set(false);
    }
}

/// Names of the capabilities that a share whose owners are the host's needs and this process lacks; `devices`: the
/// guest makes devices, too.
pub fn missing(caps: &Caps, devices: bool) -> Vec<&'static str> {
    [
        (cred::CAP_CHOWN, "CAP_CHOWN"),
        (cred::CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
        (cred::CAP_FOWNER, "CAP_FOWNER"),
        (cred::CAP_MKNOD, "CAP_MKNOD"),
    ]
    .into_iter()
    .filter(|(cap, _)| !caps.has(*cap) && (devices || *cap != cred::CAP_MKNOD))
    .map(|(_, name)| name)
    .collect()
}
