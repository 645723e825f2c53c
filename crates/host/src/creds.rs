//! Whose rights a thread works with: the process's, or for the time of one operation a guest user's.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, RwLock};

use crate::attr::Caller;
use crate::sys::cred::{self, Caps};

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

/// What overrides permissions on files.
const FILE_SYSTEM: [u32; 6] = [
    cred::CAP_CHOWN,
    cred::CAP_DAC_OVERRIDE,
    cred::CAP_DAC_READ_SEARCH,
    cred::CAP_FOWNER,
    cred::CAP_FSETID,
    cred::CAP_MKNOD,
];

/// The most users whose groups are remembered.
const USERS: usize = 4096;

/// What the host knows of a user.
#[derive(Debug)]
struct User {
    primary: u32,
    groups: Vec<u32>,
}

/// The process's own rights, and the host's users as far as they have been asked for.
pub struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    caps: Caps,
    nobody: u32,
    users: RwLock<HashMap<u32, Arc<User>>>,
}

/// This thread works as a guest's user until this is dropped.
pub struct AsUser<'a>(&'a Credentials);

impl Credentials {
    /// Takes down the calling thread's own; `caps` is what it has between two operations. Fails with a sentence
    /// when the process may not take on others.
    pub fn new(caps: Caps) -> Result<Credentials, String> {
        for (cap, name) in [(cred::CAP_SETUID, "CAP_SETUID"), (cred::CAP_SETGID, "CAP_SETGID")] {
            if !caps.has(cap) {
                return Err(format!(
                    "--check-access host needs a process that may work as other users: run it as root or \
                     give it {name}, or use --check-access guest"
                ));
            }
        }
        let (uid, gid) = cred::fs_ids();
        Ok(Credentials {
            uid,
            gid,
            groups: cred::groups().map_err(|e| format!("cannot read the process's groups: {e}"))?,
            caps,
            nobody: overflow_id(),
            users: RwLock::new(HashMap::new()),
        })
    }

    fn user(&self, uid: u32) -> io::Result<Arc<User>> {
        let users = self.users.read().unwrap_or_else(|p| p.into_inner());
        if let Some(user) = users.get(&uid) {
            return Ok(user.clone());
        }
        drop(users);
        let user = match cred::host_groups(uid)? {
            Some((primary, groups)) => User { primary, groups },
            // The host's root need not be in its database; a number the host does not know belongs to no group.
            None if uid == 0 => User {
                primary: 0,
                groups: Vec::new(),
            },
            None => User {
                primary: self.nobody,
                groups: Vec::new(),
            },
        };
        let user = Arc::new(user);
        let mut users = self.users.write().unwrap_or_else(|p| p.into_inner());
        if users.len() >= USERS {
            // A guest can ask for any number; forgetting costs only another look-up.
            users.clear();
        }
        users.insert(uid, user.clone());
        Ok(user)
    }

    /// Makes this thread work as `caller` (in the host's numbers): its file system user, its primary group, or
    /// the group it names if it is a member, and its supplementary groups. A caller who named nobody works as
    /// the host's overflow user, who owns nothing.
    pub fn enter(&self, caller: Caller) -> io::Result<AsUser<'_>> {
        let uid = if caller.uid == u32::MAX {
            self.nobody
        } else {
            caller.uid
        };
        let user = self.user(uid)?;
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
        if self.uid != 0 && uid != self.uid {
            // Only a change away from user 0 makes the kernel take the file system capabilities away.
            let caps = FILE_SYSTEM
                .iter()
                .fold(self.caps, |caps, &cap| caps.with(cap, false));
            caps.apply()?;
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

/// The number the host gives to whom it cannot name.
fn overflow_id() -> u32 {
    let read = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    read.ok().and_then(|id| id.trim().parse().ok()).unwrap_or(65534)
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
