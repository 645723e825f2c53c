//! Which id of the guest is which id of the host, and which ids a guest may not use at all.
//!
//! The rules, in the order in which an id of the guest meets them on its way to the host (creation, chown,
//! the entries of an ACL):
//!
//! 1. `u32::MAX` is no id. Where an owner is to be found ("nobody was named": an attach without a user, a creation
//!    without a group), it is whom `--squash-all` names, else whom `--squash-root` names, else the host's overflow id,
//!    and never left open, because then it would be this process. Only without any of the options below it stays what
//!    it is. Nothing can be given to it.
//! 2. `--squash-root UID:GID`: guest user 0 becomes host user UID, guest group 0 becomes host group GID.
//! 3. `--squash-all UID:GID`: every other guest id becomes UID or GID.
//! 4. `--uid-map` / `--gid-map GUEST:HOST:COUNT`: with at least one range for users (or groups), an id
//!    outside of all of them is refused with EPERM; without any, ids are the same on both sides.
//! 5. `--forbid-ids FIRST-LAST`: when the host id that results lies in the range, EPERM.
//!
//! On the way back (attributes, ACLs) only the ranges count: squashing is many to one and has no inverse, so
//! a squashed id is shown as the host has it. A host id outside of all ranges is shown as [`OVERFLOW_ID`], as
//! Linux does for id-mapped mounts and user namespaces.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::attr::{Attr, Caller};

/// What the guest sees in place of a host id that no range maps: Linux's default overflow uid and gid.
pub const OVERFLOW_ID: u32 = 65534;

/// No id: what a mount that names nobody sends, what chown(2) takes for "leave it".
pub const NO_ID: u32 = u32::MAX;

/// The host's overflow user and group, which own nothing: what the kernel shows for ids that it cannot name. Reads
/// `/proc/sys`; [`OVERFLOW_ID`] where that says nothing of use.
pub fn overflow_ids() -> (u32, u32) {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let id = text.trim().parse().ok()?;
        (id != 0 && id != NO_ID).then_some(id)
    };
    (
        read("/proc/sys/kernel/overflowuid").unwrap_or(OVERFLOW_ID),
        read("/proc/sys/kernel/overflowgid").unwrap_or(OVERFLOW_ID),
    )
}

/// As many ranges as Linux takes in a user namespace's `uid_map`.
const MAX_RANGES: usize = 340;

fn number(text: &str, what: &str, whole: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(id) if digits && id != NO_ID => Ok(id),
        _ => Err(format!(
            "{what} in \"{whole}\" must be a number from 0 to 4294967294"
        )),
    }
}

/// `GUEST:HOST:COUNT`: the guest's ids `guest ..` are the host's ids `host ..`, `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id of the guest.
    pub guest: u32,
    /// First id of the host.
    pub host: u32,
    /// How many, at least 1; neither side reaches `u32::MAX`.
    pub count: u32,
}

impl IdRange {
    /// Whether neither side reaches [`NO_ID`].
    fn is_sound(&self) -> bool {
        // The last id may be at most one below `NO_ID`, which then is the first behind it.
        self.guest.checked_add(self.count).is_some() && self.host.checked_add(self.count).is_some()
    }
}

impl FromStr for IdRange {
    type Err = String;
    fn from_str(text: &str) -> Result<IdRange, String> {
        let mut parts = text.split(':');
        let (Some(guest), Some(host), Some(count), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!(
                "\"{text}\" is not GUEST:HOST:COUNT, as in 0:100000:65536"
            ));
        };
        let range = IdRange {
            guest: number(guest, "the guest's first id", text)?,
            host: number(host, "the host's first id", text)?,
            count: number(count, "the count", text)?,
        };
        if range.count == 0 {
            return Err(format!("the count in \"{text}\" must not be 0"));
        }
        if !range.is_sound() {
            return Err(format!("the ids in \"{text}\" go beyond 4294967294"));
        }
        Ok(range)
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.guest, self.host, self.count)
    }
}

/// `UID:GID`, both of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPair {
    /// The host's user.
    pub uid: u32,
    /// The host's group.
    pub gid: u32,
}

impl FromStr for IdPair {
    type Err = String;
    fn from_str(text: &str) -> Result<IdPair, String> {
        let Some((uid, gid)) = text.split_once(':') else {
            return Err(format!("\"{text}\" is not UID:GID, as in 1000:1000"));
        };
        Ok(IdPair {
            uid: number(uid, "the user", text)?,
            gid: number(gid, "the group", text)?,
        })
    }
}

/// `FIRST-LAST`, or one id: host ids that no object may get from the guest, users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdSpan {
    /// First forbidden id.
    pub first: u32,
    /// Last forbidden id.
    pub last: u32,
}

impl FromStr for IdSpan {
    type Err = String;
    fn from_str(text: &str) -> Result<IdSpan, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let span = IdSpan {
            first: number(first, "the first id", text)?,
            last: number(last, "the last id", text)?,
        };
        if span.first > span.last {
            return Err(format!("the range \"{text}\" ends before it begins"));
        }
        Ok(span)
    }
}

/// What the administrator asked for; [`IdMaps::new`] checks it as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdOptions {
    /// `--uid-map`, repeated.
    pub uid_map: Vec<IdRange>,
    /// `--gid-map`, repeated.
    pub gid_map: Vec<IdRange>,
    /// `--squash-root`.
    pub squash_root: Option<IdPair>,
    /// `--squash-all`.
    pub squash_all: Option<IdPair>,
    /// `--forbid-ids`, repeated.
    pub forbid: Vec<IdSpan>,
}

/// One kind of ids (users or groups).
#[derive(Clone, Debug)]
struct Map {
    /// Ordered by the guest's ids; empty: the same ids on both sides.
    by_guest: Vec<IdRange>,
    /// The same, ordered by the host's ids.
    by_host: Vec<IdRange>,
    squash_root: Option<u32>,
    squash_all: Option<u32>,
    /// The host's id for [`NO_ID`]; that itself where nothing is restricted.
    nobody: u32,
}

impl Map {
    /// The same ids on both sides.
    const IDENTITY: Map = Map {
        by_guest: Vec::new(),
        by_host: Vec::new(),
        squash_root: None,
        squash_all: None,
        nobody: NO_ID,
    };

    fn new(
        option: &str,
        ranges: &[IdRange],
        root: Option<u32>,
        all: Option<u32>,
        overflow: u32,
    ) -> Result<Map, String> {
        if let Some(range) = ranges.iter().find(|range| !range.is_sound()) {
            return Err(format!("the ids in \"{range}\" go beyond 4294967294"));
        }
        if ranges.len() > MAX_RANGES {
            return Err(format!(
                "{option} is given {} times; the most is {MAX_RANGES}",
                ranges.len()
            ));
        }
        let mut by_guest = ranges.to_vec();
        by_guest.sort_by_key(|r| r.guest);
        let mut by_host = ranges.to_vec();
        by_host.sort_by_key(|r| r.host);
        let overlap = |side: &str, a: &IdRange, b: &IdRange| {
            Err(format!(
                "{option} {a} and {option} {b} overlap in the {side}'s ids"
            ))
        };
        for pair in by_guest.windows(2) {
            if let [a, b] = pair
                && b.guest - a.guest < a.count
            {
                return overlap("guest", a, b);
            }
        }
        for pair in by_host.windows(2) {
            if let [a, b] = pair
                && b.host - a.host < a.count
            {
                return overlap("host", a, b);
            }
        }
        Ok(Map {
            by_guest,
            by_host,
            squash_root: root,
            squash_all: all,
            nobody: all.or(root).unwrap_or(overflow),
        })
    }

    fn is_identity(&self) -> bool {
        self.by_guest.is_empty() && self.squash_root.is_none() && self.squash_all.is_none()
    }

    /// `None`: the guest has no such id.
    fn to_host(&self, id: u32) -> Option<u32> {
        if id == NO_ID {
            return None;
        }
        if id == 0
            && let Some(host) = self.squash_root
        {
            return Some(host);
        }
        if let Some(host) = self.squash_all {
            return Some(host);
        }
        if self.by_guest.is_empty() {
            return Some(id);
        }
        let at = self.by_guest.partition_point(|r| r.guest <= id).checked_sub(1)?;
        let range = self.by_guest.get(at)?;
        let offset = id - range.guest;
        (offset < range.count).then(|| range.host + offset)
    }

    /// As `to_host`, of an owner that may be nobody.
    fn owner_to_host(&self, id: u32) -> Option<u32> {
        match id {
            NO_ID => Some(self.nobody),
            id => self.to_host(id),
        }
    }

    /// Whether some id of the guest, or none, is this one of the host.
    fn reaches(&self, host: u32) -> bool {
        if host == self.nobody || Some(host) == self.squash_all || Some(host) == self.squash_root {
            return true;
        }
        if self.squash_all.is_some() {
            return false;
        }
        let guest = match self.by_host.is_empty() {
            true => Some(host),
            false => self.mapped_to(host),
        };
        guest.is_some_and(|guest| guest != 0 || self.squash_root.is_none())
    }

    fn to_guest(&self, id: u32) -> u32 {
        if self.by_host.is_empty() {
            return id;
        }
        self.mapped_to(id).unwrap_or(OVERFLOW_ID)
    }

    /// The guest's id that a range maps to this one of the host.
    fn mapped_to(&self, host: u32) -> Option<u32> {
        let at = self.by_host.partition_point(|r| r.host <= host).checked_sub(1)?;
        let range = self.by_host.get(at)?;
        let offset = host - range.host;
        (offset < range.count).then(|| range.guest + offset)
    }
}

/// The id rules of a share; [`IdMaps::default`] changes nothing and refuses nothing.
#[derive(Clone, Debug)]
pub struct IdMaps {
    users: Map,
    groups: Map,
    forbid: Vec<IdSpan>,
}

impl Default for IdMaps {
    fn default() -> IdMaps {
        IdMaps {
            users: Map::IDENTITY,
            groups: Map::IDENTITY,
            forbid: Vec::new(),
        }
    }
}

impl IdMaps {
    /// Checks the options together, and reads the host's overflow ids; the error is one sentence for the
    /// administrator.
    pub fn new(options: &IdOptions) -> Result<IdMaps, String> {
        if *options == IdOptions::default() {
            return Ok(IdMaps::default());
        }
        let (root, all) = (options.squash_root, options.squash_all);
        let (nobody, nogroup) = overflow_ids();
        Ok(IdMaps {
            users: Map::new(
                "--uid-map",
                &options.uid_map,
                root.map(|p| p.uid),
                all.map(|p| p.uid),
                nobody,
            )?,
            groups: Map::new(
                "--gid-map",
                &options.gid_map,
                root.map(|p| p.gid),
                all.map(|p| p.gid),
                nogroup,
            )?,
            forbid: options.forbid.clone(),
        })
    }

    /// Whether ids are the same on both sides and none is refused: none of the options was given.
    pub fn is_identity(&self) -> bool {
        self.users.is_identity() && self.groups.is_identity() && self.forbid.is_empty()
    }

    fn is_forbidden(&self, host: u32) -> bool {
        self.forbid.iter().any(|s| (s.first..=s.last).contains(&host))
    }

    fn allowed(&self, host: Option<u32>) -> io::Result<u32> {
        match host {
            Some(id) if !self.is_forbidden(id) => Ok(id),
            _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
        }
    }

    /// The host's user for the guest's; EPERM when there is none ([`NO_ID`] included) or it is forbidden.
    pub fn uid_to_host(&self, uid: u32) -> io::Result<u32> {
        self.allowed(self.users.to_host(uid))
    }

    /// The host's group for the guest's; EPERM when there is none ([`NO_ID`] included) or it is forbidden.
    pub fn gid_to_host(&self, gid: u32) -> io::Result<u32> {
        self.allowed(self.groups.to_host(gid))
    }

    /// Whether the guest could give an object to this user of the host.
    pub fn gives_uid(&self, host: u32) -> bool {
        self.users.reaches(host) && !self.is_forbidden(host)
    }

    /// Whether the guest could give an object to this group of the host.
    pub fn gives_gid(&self, host: u32) -> bool {
        self.groups.reaches(host) && !self.is_forbidden(host)
    }

    /// Users of the host and their groups that `--squash-root` and `--squash-all` name.
    pub fn squashed(&self) -> impl Iterator<Item = (u32, u32)> {
        let root = self.users.squash_root.zip(self.groups.squash_root);
        let all = self.users.squash_all.zip(self.groups.squash_all);
        [root, all].into_iter().flatten()
    }

    /// Users of the host that the options name: whom files are squashed to, and those of ranges as far as these are
    /// few, `most` in all.
    pub fn named_users(&self, most: usize) -> Vec<u32> {
        let squashed = [self.users.squash_root, self.users.squash_all]
            .into_iter()
            .flatten();
        let mapped = self
            .users
            .by_host
            .iter()
            .flat_map(|range| range.host..range.host + range.count);
        squashed.chain(mapped).take(most).collect()
    }

    /// The user that the guest sees.
    pub fn uid_to_guest(&self, uid: u32) -> u32 {
        self.users.to_guest(uid)
    }

    /// The group that the guest sees.
    pub fn gid_to_guest(&self, gid: u32) -> u32 {
        self.groups.to_guest(gid)
    }

    /// The owner of a new object in the host's ids, from who asks in the guest's; EPERM. Neither is [`NO_ID`], unless
    /// nothing is restricted.
    pub fn owner_to_host(&self, caller: Caller) -> io::Result<Caller> {
        Ok(Caller {
            uid: self.allowed(self.users.owner_to_host(caller.uid))?,
            gid: self.allowed(self.groups.owner_to_host(caller.gid))?,
        })
    }

    /// As whom an operation is done on the host; EPERM. Most operations name no group, and that is not made one here.
    /// Nobody works as nobody even where nothing may belong to that user: Linux names nobody when it mounts.
    pub fn caller_to_host(&self, caller: Caller) -> io::Result<Caller> {
        Ok(Caller {
            uid: match caller.uid {
                NO_ID => self.users.nobody,
                uid => self.uid_to_host(uid)?,
            },
            gid: match caller.gid {
                NO_ID => NO_ID,
                gid => self.gid_to_host(gid)?,
            },
        })
    }

    /// Turns the host's ids in `attr` into the guest's.
    pub fn attr_to_guest(&self, attr: &mut Attr) {
        attr.uid = self.uid_to_guest(attr.uid);
        attr.gid = self.gid_to_guest(attr.gid);
    }
}

#[cfg(test)]
mod tests;
