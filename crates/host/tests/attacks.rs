//! The table of `docs/security.md`, "Options and attacks": every cell is tried, and says what came of it.
//!
//! The guest is hostile: it says that it is whoever helps it most, and the worst that comes of it counts. Only in the
//! columns "as a user" its kernel is honest and the attacker is one of its ordinary users.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use common::*;
use host::sys::xattr::Target;
use host::{Caller, CheckAccess, IdMaps, IdOptions, SecurityModel, SetAttr, ShareOptions};

const PAGE: &str = include_str!("../../../docs/security.md");

const NO_ID: u32 = u32::MAX;

/// A user of the host who helps the guest.
const HELPER: u32 = 1234;

/// An ordinary user of the guest.
const USER: u32 = 1000;

/// One column of the table.
struct Column {
    title: &'static str,
    model: SecurityModel,
    change: fn(&mut ShareOptions),
    as_user: bool,
}

fn ids(change: impl FnOnce(&mut IdOptions)) -> IdMaps {
    let mut options = IdOptions::default();
    change(&mut options);
    IdMaps::new(&options).unwrap()
}

fn squash_root(share: &mut ShareOptions) {
    share.ids = ids(|o| o.squash_root = "6000:6000".parse().ok());
}

const COLUMNS: [Column; 10] = [
    Column::of("`passthrough`", SecurityModel::Passthrough, |_| ()),
    Column::of("`squash`", SecurityModel::Squash, |_| ()),
    Column::of("`mapped-xattr`", SecurityModel::MappedXattr, |_| ()),
    Column::of("`mapped-file`", SecurityModel::MappedFile, |_| ()),
    Column::of("`--squash-root`", SecurityModel::Passthrough, squash_root),
    Column::of("`--squash-all`", SecurityModel::Passthrough, |share| {
        share.ids = ids(|o| o.squash_all = "6000:6000".parse().ok());
    }),
    Column::of("`--uid-map`, `--gid-map`", SecurityModel::Passthrough, |share| {
        share.ids = ids(|o| {
            o.uid_map.extend("0:100000:65536".parse::<host::IdRange>().ok());
            o.gid_map.extend("0:100000:65536".parse::<host::IdRange>().ok());
        });
    }),
    Column::of("`--forbid-ids 0-999`", SecurityModel::Passthrough, |share| {
        share.ids = ids(|o| o.forbid.extend("0-999".parse::<host::IdSpan>().ok()));
    }),
    Column {
        as_user: true,
        ..Column::of(
            "`--check-access host`, as a user",
            SecurityModel::Passthrough,
            |share| {
                share.check_access = CheckAccess::Host;
            },
        )
    },
    Column::of(
        "`--check-access host` and `--squash-root`",
        SecurityModel::Passthrough,
        |share| {
            squash_root(share);
            share.check_access = CheckAccess::Host;
        },
    ),
];

impl Column {
    const fn of(title: &'static str, model: SecurityModel, change: fn(&mut ShareOptions)) -> Column {
        Column {
            title,
            model,
            change,
            as_user: false,
        }
    }

    /// Whom the guest says it is.
    fn callers(&self) -> Vec<Caller> {
        let uids: &[u32] = if self.as_user { &[USER] } else { &[0, USER, NO_ID] };
        let with = |&uid: &u32| [uid, NO_ID].map(|gid| Caller { uid, gid });
        uids.iter().flat_map(with).collect()
    }
}

/// A share on which an attack is tried, as one caller.
struct Try<'a> {
    f: Fixture,
    who: Caller,
    column: &'a Column,
}

impl Try<'_> {
    fn mapped(&self) -> bool {
        matches!(
            self.column.model,
            SecurityModel::MappedXattr | SecurityModel::MappedFile
        )
    }

    /// Makes a file of the guest's own.
    fn own(&self, mode: u32) -> io::Result<Node> {
        self.f.try_create(self.who, "own", libc::O_RDWR, mode)
    }

    fn set(&self, file: &str, set: SetAttr) -> io::Result<()> {
        self.f.share.setattr(self.who, &self.f.walk(file).object(), &set)
    }

    fn chmod(&self, file: &str, mode: u32) -> io::Result<()> {
        let mode = Some(libc::S_IFREG | mode);
        self.set(
            file,
            SetAttr {
                mode,
                ..SetAttr::default()
            },
        )
    }

    fn set_xattr(&self, file: &str, xattr: &str, value: &[u8]) -> io::Result<()> {
        let object = self.f.walk(file);
        self.f
            .share
            .set_xattr(self.who, &object.object(), &c(xattr), value, 0)
    }

    fn meta(&self, file: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.f.dir.join(file)).unwrap()
    }

    /// An xattr as the host has it.
    fn on_host(&self, file: &str, xattr: &str) -> Option<Vec<u8>> {
        let file = std::fs::File::open(self.f.dir.join(file)).unwrap();
        let mut value = vec![0; 1000];
        let len = host::sys::xattr::get(Target::Open(file.as_fd()), &c(xattr), &mut value).ok()?;
        value.truncate(len);
        Some(value)
    }

    /// What a program is on the host.
    fn program(&self, file: &str) -> &'static str {
        let meta = self.meta(file);
        match (meta.mode() & libc::S_ISUID != 0, meta.uid()) {
            (false, _) => "no bit on the host",
            (true, 0) => "**set-uid root**",
            (true, _) => "not root's",
        }
    }
}

/// What came of one try: a word, or an errno.
type Tried = io::Result<&'static str>;

fn set_uid_program(t: &Try<'_>) -> Tried {
    t.own(0o4755)?;
    t.chmod("own", 0o4755)?;
    let root = t.f.root();
    t.f.share
        .mknod(t.who, &root.object(), &name("node"), libc::S_IFREG | 0o6755, 0)?;
    assert_eq!(t.program("own"), t.program("node"));
    Ok(t.program("own"))
}

/// `disk`, whose programs get at the host's disks, or another group of the system's.
const SYSTEM_GROUP: u32 = 6;

fn set_gid_program(t: &Try<'_>) -> Tried {
    let who = Caller {
        gid: SYSTEM_GROUP,
        ..t.who
    };
    t.f.try_create(who, "own", libc::O_RDWR, 0o2755)?;
    let meta = t.meta("own");
    Ok(match (meta.mode() & libc::S_ISGID != 0, meta.gid()) {
        (false, _) => "no bit on the host",
        (true, SYSTEM_GROUP) => "**of that group**",
        (true, _) => "not of that group",
    })
}

fn set_uid_on_roots_program(t: &Try<'_>) -> Tried {
    let file =
        t.f.share
            .open_object(t.who, &t.f.walk("roots").object(), libc::O_RDWR)?;
    drop(file);
    t.chmod("roots", 0o4755)?;
    Ok(t.program("roots"))
}

fn kernel_xattr(t: &Try<'_>, xattr: &str, value: &[u8]) -> Tried {
    let own = t.own(0o755).is_ok();
    for file in ["own", "roots"]
        .into_iter()
        .filter(|&file| own || file == "roots")
    {
        let set = t.set_xattr(file, xattr, value);
        assert_eq!(t.on_host(file, xattr), None, "{file}");
        set?;
    }
    Ok("a note")
}

fn capability(t: &Try<'_>) -> Tried {
    let mut value = [0; 20];
    (value[0], value[3], value[4]) = (1, 2, 1 << 7);
    kernel_xattr(t, "security.capability", &value)
}

fn trusted(t: &Try<'_>) -> Tried {
    kernel_xattr(t, "trusted.overlay.opaque", b"y")
}

fn device(t: &Try<'_>) -> Tried {
    let root = t.f.root();
    for (node, kind) in [("char", libc::S_IFCHR), ("block", libc::S_IFBLK)] {
        t.f.share.mknod(
            t.who,
            &root.object(),
            &name(node),
            kind | 0o666,
            libc::makedev(1, 5),
        )?;
        assert!(t.meta(node).is_file(), "{node}");
    }
    Ok("a plain file")
}

fn hard_link(t: &Try<'_>) -> Tried {
    let root = t.f.root();
    t.f.share
        .link(t.who, &t.f.walk("secret").object(), &root.object(), &name("link"))?;
    assert_eq!(t.meta("link").ino(), t.meta("secret").ino());
    Ok("made")
}

fn chown_to_root(t: &Try<'_>) -> Tried {
    t.own(0o755)?;
    let set = SetAttr {
        uid: Some(0),
        gid: Some(0),
        ..SetAttr::default()
    };
    t.set("own", set)?;
    if t.mapped() {
        return Ok("a note");
    }
    let meta = t.meta("own");
    Ok(match meta.uid() == 0 || meta.gid() == 0 {
        true => "**root's**",
        false => "not root's",
    })
}

fn chown_of_roots(t: &Try<'_>) -> Tried {
    let set = SetAttr {
        uid: Some(USER),
        ..SetAttr::default()
    };
    t.set("roots", set)?;
    Ok(match t.meta("roots").uid() {
        0 => "a note",
        _ => "taken",
    })
}

fn acl_entry(t: &Try<'_>) -> Tried {
    // u::rw-, u:HELPER:rwx, g::---, m::rwx, o::---
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in [
        (1u16, 6u16, NO_ID),
        (2, 7, HELPER),
        (4, 0, NO_ID),
        (16, 7, NO_ID),
        (32, 0, NO_ID),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    t.set_xattr("secret", "system.posix_acl_access", &acl)?;
    let Some(there) = t.on_host("secret", "system.posix_acl_access") else {
        return Ok("a note");
    };
    let id = u32::from_le_bytes(there[16..20].try_into().unwrap());
    Ok(match id {
        HELPER => "made",
        6000 => "names 6000",
        101_234 => "names a mapped user",
        other => panic!("{other}"),
    })
}

fn noted_xattr(t: &Try<'_>) -> Tried {
    t.own(0o644)?;
    t.set_xattr("own", "user.virtfs.uid", &[0; 4])?;
    Ok("made")
}

fn noted_file(t: &Try<'_>) -> Tried {
    let root = t.f.root();
    let made =
        t.f.share
            .mkdir(t.who, &root.object(), &name(".virtfs_metadata"), 0o755);
    made.map(|_| "made")
}

const HARD_LINK: &str = "a hard link to a file of the host's root";

type Attack = fn(&Try<'_>) -> Tried;

const ROWS: [(&str, Attack); 12] = [
    ("a set-uid program of the guest's", set_uid_program),
    (
        "a set-gid program of a group of the host's system",
        set_gid_program,
    ),
    (
        "the set-uid bit on a program of the host's root",
        set_uid_on_roots_program,
    ),
    ("file capabilities (`security.capability`)", capability),
    ("`trusted.*`", trusted),
    ("a block or character device", device),
    (HARD_LINK, hard_link),
    ("chown of its own file to root", chown_to_root),
    ("chown of a file of the host's root", chown_of_roots),
    (
        "an ACL entry for a user of the host, on a file of root's",
        acl_entry,
    ),
    ("mapped-xattr's notes by hand", noted_xattr),
    ("mapped-file's notes by hand", noted_file),
];

/// What comes of `attack`: the worst of what comes of it as each caller.
fn outcome(column: &Column, attack: Attack) -> String {
    let (mut words, mut refusals) = (BTreeSet::new(), BTreeSet::new());
    for who in column.callers() {
        let f = Fixture::with(column.model, column.change);
        // Anybody may make things there, and nobody may take away another's.
        std::fs::set_permissions(&f.dir, PermissionsExt::from_mode(0o1777)).unwrap();
        for (file, mode) in [("roots", 0o755), ("secret", 0o600)] {
            std::fs::write(f.dir.join(file), "the host's").unwrap();
            chown(f.dir.join(file), Some(0), Some(0)).unwrap();
            std::fs::set_permissions(f.dir.join(file), PermissionsExt::from_mode(mode)).unwrap();
        }
        match attack(&Try { f, who, column }) {
            Ok(word) => _ = words.insert(word),
            Err(e) => {
                refusals.insert(match e.raw_os_error().unwrap() {
                    libc::EPERM => "EPERM",
                    libc::EACCES => "EACCES",
                    libc::EINVAL => "EINVAL",
                    libc::EOPNOTSUPP => "EOPNOTSUPP",
                    other => panic!("errno {other}"),
                });
            }
        }
    }
    // What is bold is worst, and comes first in this order.
    match words.first() {
        Some(word) => (*word).to_owned(),
        None => Vec::from_iter(refusals).join(", "),
    }
}

fn cells(line: &str) -> Vec<&str> {
    let line = line.trim().trim_matches('|');
    line.split('|').map(str::trim).collect()
}

#[test]
fn every_cell_of_the_table_is_what_happens() {
    if !is_root() {
        return;
    }
    let section = PAGE.split("\n## Options and attacks").nth(1).unwrap();
    let mut lines = section.lines().skip_while(|line| !line.starts_with('|'));
    let header = cells(lines.next().unwrap());
    let titles: Vec<_> = COLUMNS.iter().map(|column| column.title).collect();
    assert_eq!(header[1..], titles);
    let rows: Vec<_> = lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    let attacks: Vec<_> = ROWS.iter().map(|(title, _)| *title).collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), attacks);
    let protected = std::fs::read_to_string("/proc/sys/fs/protected_hardlinks");
    let protected = protected.is_ok_and(|text| text.trim() != "0");
    let mut wrong = Vec::new();
    for ((title, attack), row) in ROWS.iter().zip(&rows) {
        for (column, said) in COLUMNS.iter().zip(&row[1..]) {
            let happens = outcome(column, *attack);
            // Without that, any user of the host may.
            let linked = *title == HARD_LINK && !protected;
            if happens != *said && !linked {
                wrong.push(format!("{title}, {}: {happens:?}, not {said:?}", column.title));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Squash and passthrough differ in what they say of a refused chown only; as root, where none is refused, in nothing.
#[test]
fn restricted_columns_are_the_same_for_squash() {
    if !is_root() {
        return;
    }
    for column in COLUMNS.iter().skip(4).filter(|column| !column.as_user) {
        for (title, attack) in ROWS {
            let squash = Column {
                model: SecurityModel::Squash,
                ..*column
            };
            let (here, there) = (outcome(column, attack), outcome(&squash, attack));
            let forgiven = (title.starts_with("chown") || title.starts_with("a set-gid"))
                && here == "EPERM"
                && ["not root's", "a note", "not of that group"].contains(&&*there);
            assert!(
                here == there || forgiven,
                "{title}, {}: {here} and {there}",
                column.title
            );
        }
    }
}
