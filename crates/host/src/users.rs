//! The host's users and their groups, as the user database had them at the start.
//!
//! The database is not asked again: that opens sockets and files which a process that has shut itself in cannot reach,
//! and a directory service that hangs would hang the share. So a change takes a new start. Of whom nothing is known, and
//! that may be a user whom the database only knows by number, belongs to no group.

use std::collections::HashMap;
use std::fmt::Write;

use crate::idmap::overflow_ids;
use crate::options::{CheckAccess, ShareOptions};
use crate::sys::users;

/// So many users that the options name are looked up one by one, which takes time with some databases.
const NAMED: usize = 64;

/// The most users that are remembered, and so many memberships for each of them on average.
const USERS: usize = 65536;
const MEMBERSHIPS: usize = 16 * USERS;

/// The most groups of a user (`NGROUPS_MAX`).
const GROUPS: usize = 65536;

/// What the host knows of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The group of what this user makes.
    pub primary: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
}

/// See the module's text.
#[derive(Debug, PartialEq, Eq)]
pub struct Users {
    known: HashMap<u32, User>,
    /// Whom and which group the host makes of those that it cannot name.
    pub overflow: (u32, u32),
}

impl Users {
    /// Those that a share with these options needs, if any. To be called while the process can reach the database and
    /// /proc.
    pub fn of(options: &ShareOptions) -> Option<Users> {
        let needed = options.check_access == CheckAccess::Host;
        needed.then(|| {
            let mut users = Users::read(&options.ids.named_users(NAMED));
            options.ids.squashed().for_each(|(uid, gid)| users.join(uid, gid));
            users
        })
    }

    /// Makes this user a member of the group, and the group its first if it has none: who is squashed to both works with
    /// both.
    fn join(&mut self, uid: u32, gid: u32) {
        let user = self.known.entry(uid).or_insert(User {
            primary: gid,
            groups: Vec::new(),
        });
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }

    /// Reads what the database lists, and asks it for each of `named` as well: some databases list nobody.
    pub fn read(named: &[u32]) -> Users {
        let mut known = HashMap::new();
        let mut numbers = HashMap::new();
        users::each_user(&mut |name, uid, primary| {
            // Of several names of one number the first one counts, as for getpwuid(3).
            known.entry(uid).or_insert_with(|| {
                numbers.insert(name.to_owned(), uid);
                User {
                    primary,
                    groups: vec![primary],
                }
            });
            known.len() < USERS
        });
        let mut left = MEMBERSHIPS;
        users::each_member(&mut |gid, name| {
            if let Some(user) = numbers.get(name).and_then(|uid| known.get_mut(uid))
                && user.groups.len() < GROUPS
                && !user.groups.contains(&gid)
            {
                user.groups.push(gid);
                left -= 1;
            }
            left > 0
        });
        if known.len() >= USERS || left == 0 {
            log::warn!("the host has more users than are remembered; some will count as members of no group");
        }
        for &uid in named {
            // Not known is no failure.
            if let Ok(Some((primary, groups))) = users::groups_of(uid) {
                known.insert(uid, User { primary, groups });
            }
        }
        // The host's root need not be in its database.
        known.entry(0).or_insert(User {
            primary: 0,
            groups: Vec::new(),
        });
        Users {
            known,
            overflow: overflow_ids(),
        }
    }

    /// For another process: the overflow ids, then each user with its groups, the primary one first; a line each.
    pub fn to_text(&self) -> String {
        let (user, group) = self.overflow;
        let mut text = format!("{user} {group}\n");
        for (uid, user) in &self.known {
            // Writing to a string does not fail.
            let _ = write!(text, "{uid} {}", user.primary);
            for group in &user.groups {
                let _ = write!(text, " {group}");
            }
            text.push('\n');
        }
        text
    }

    /// What [`Users::to_text`] has made; `None` for anything else.
    pub fn from_text(text: &str) -> Option<Users> {
        let mut lines = text.lines().map(|line| {
            let numbers: Result<Vec<u32>, _> = line.split(' ').map(str::parse).collect();
            numbers.ok()
        });
        let &[user, group] = &*lines.next()?? else {
            return None;
        };
        let known = lines.map(|numbers| {
            let numbers = numbers?;
            let (&[uid, primary], groups) = numbers.split_first_chunk()?;
            let groups = groups.to_vec();
            Some((uid, User { primary, groups }))
        });
        Some(Users {
            known: known.collect::<Option<_>>()?,
            overflow: (user, group),
        })
    }

    /// `None` for whom the host does not know.
    pub fn get(&self, uid: u32) -> Option<&User> {
        self.known.get(&uid)
    }

    /// How many the host knows.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Never: root is always known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_gets_the_same() {
        let mut users = Users::read(&[]);
        users.join(4_000_000_000, 7);
        assert_eq!(Users::from_text(&users.to_text()), Some(users));
        for wrong in [
            "",
            "1\n",
            "1 2 3\n",
            "1 2\n3\n",
            "1 2\n3 x\n",
            "1 2\n\n",
            "-1 2\n",
        ] {
            assert_eq!(Users::from_text(wrong), None, "{wrong:?}");
        }
    }

    /// Whatever this machine's database has: listing it gives what asking for each one gives.
    #[test]
    fn listed_users_have_the_groups_that_the_c_library_finds() {
        let listed = Users::read(&[]);
        assert!(listed.get(0).is_some());
        let sorted = |mut groups: Vec<u32>| {
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        for (&uid, user) in listed.known.iter().take(100) {
            let Some((primary, groups)) = users::groups_of(uid).unwrap() else {
                continue;
            };
            assert_eq!(user.primary, primary, "{uid}");
            assert_eq!(sorted(user.groups.clone()), sorted(groups), "{uid}");
        }
        assert!(listed.get(4_000_000_000).is_none());
        let mut named = Users::read(&[0, 4_000_000_000]);
        assert_eq!(named.len(), listed.len());
        named.join(4_000_000_000, 7);
        named.join(4_000_000_000, 8);
        assert_eq!(
            named.get(4_000_000_000),
            Some(&User {
                primary: 7,
                groups: vec![7, 8]
            })
        );
    }
}
