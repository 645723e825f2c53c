//! A share that shows `vagrant vagrant` and says "Permission denied" to everybody: how that comes,
//! what the program says about it, and the modes in which the same work is done.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::ORDINARY;
use crate::backend::{Backend, Setup};
use crate::vm::Vm;

/// The host's user of this number is the guest's user `vagrant`.
const VAGRANT: u32 = 1000;

/// A directory of `setup.owner` with one file, of modes that let nobody else write.
fn start(setup: &Setup) -> Backend {
    let backend = setup.start();
    let notes = backend.share().join("notes");
    fs::write(&notes, "from the host\n").unwrap();
    chown(&notes, Some(setup.owner), Some(setup.owner)).unwrap();
    fs::set_permissions(&notes, Permissions::from_mode(0o644)).unwrap();
    backend
}

/// What the guest printed about one share and one of its users.
fn lines<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(start)).collect()
}

/// All of a tree belongs to one user, and nothing in it is open to others for writing.
fn assert_closed(dir: &Path, owner: u32) {
    let meta = fs::symlink_metadata(dir).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (owner, owner), "{}", dir.display());
    assert!(
        meta.is_symlink() || meta.mode() & 0o022 == 0,
        "{}: {:o}",
        dir.display(),
        meta.mode()
    );
    if meta.is_dir() {
        for entry in fs::read_dir(dir).unwrap() {
            assert_closed(&entry.unwrap().path(), owner);
        }
    }
}

#[test]
fn access_denied_is_explained_and_other_modes_mend_it() {
    let ordinary = |model, tag| Setup {
        model,
        tag,
        process: Some(ORDINARY),
        owner: ORDINARY,
        options: &[],
        through: &[],
    };
    let backends = [
        // The directory is vagrant's, the process somebody else.
        start(&Setup {
            owner: VAGRANT,
            // A user namespace would show whatever is not the process's as nobody's.
            options: &["--sandbox=landlock"],
            ..ordinary("passthrough", "passthrough")
        }),
        start(&ordinary("squash", "squash")),
        // Shown as vagrant's: he and the guest's root can both work.
        start(&Setup {
            options: &[
                "--uid-map=1000:1234:1",
                "--gid-map=1000:1234:1",
                "--squash-root=1234:1234",
            ],
            ..ordinary("squash", "squash-to-vagrant")
        }),
        start(&ordinary("mapped-xattr", "mapped-xattr")),
        start(&ordinary("mapped-file", "mapped-file")),
    ];
    let output = Vm::with(&backends).no_mount().run("access.sh");
    output.expect_success();
    let said = |share: &str, user: &str| lines(&output.text, &format!("{share} {user}: "));

    // The listing promises vagrant what he does not get, and root what root always gets.
    let shown = "vagrant vagrant 755, notes vagrant vagrant 644";
    assert_eq!(lines(&output.text, "passthrough shows "), [shown]);
    for user in ["vagrant", "root", "other"] {
        let expected = [
            "can't create notes: Permission denied".to_owned(),
            "does not append".to_owned(),
            format!("can't create new-{user}: Permission denied"),
        ];
        let said = said("passthrough", user);
        assert_eq!(said.len(), expected.len(), "{user}: {said:?}");
        for (said, expected) in said.iter().zip(&expected) {
            assert!(said.ends_with(expected.as_str()), "{user}: {said:?}");
        }
    }
    let notes = backends[0].share().join("notes");
    assert_eq!(fs::read_to_string(notes).unwrap(), "from the host\n");
    // Who runs the program is told, at start in general and then for each file.
    let log = backends[0].log();
    let share = backends[0].share().display();
    let rule = "belongs to 1000:1000 with mode";
    let remedy = "this process runs as 1234:1234; give that user access on the host \
                  (chown, or setfacl -m u:1234:rwX), or run the process as the owner or as root";
    for (asked, rule) in [
        (format!("open \"{share}/notes\""), format!("it {rule} 0644")),
        (
            format!("create \"{share}/new-vagrant\""),
            format!("its directory {rule} 0755"),
        ),
        (
            format!("create \"{share}/new-root\""),
            format!("its directory {rule} 0755"),
        ),
    ] {
        let sentence = format!("{asked} was refused (Permission denied (os error 13)): {rule}, and {remedy}");
        assert!(log.contains(&sentence), "no {sentence:?} in\n{log}");
    }

    // Squash: the guest is shown the process's user, so its root can work, and only it.
    let shown_of_process = "UNKNOWN UNKNOWN 755, notes UNKNOWN UNKNOWN 644";
    assert_eq!(lines(&output.text, "squash shows "), [shown_of_process]);
    assert_eq!(said("squash", "root"), ["appends", "works"]);
    assert_closed(backends[1].share(), ORDINARY);

    // The others show vagrant what is vagrant's, and keep the guest's other users out as he says.
    for (backend, share) in backends[2..]
        .iter()
        .zip(["squash-to-vagrant", "mapped-xattr", "mapped-file"])
    {
        assert_eq!(lines(&output.text, &format!("{share} shows ")), [shown]);
        assert_eq!(said(share, "vagrant"), ["appends", "works"], "{share}");
        assert_eq!(said(share, "root"), ["appends", "works"], "{share}");
        assert!(
            said(share, "other").iter().all(|line| !line.ends_with("works")),
            "{share}"
        );
        assert_closed(backend.share(), ORDINARY);
        assert_eq!(
            fs::read_to_string(backend.share().join("notes")).unwrap(),
            "from the host\nand more\nand more\n"
        );
    }
    for backend in &backends[1..] {
        let log = backend.log();
        assert!(!log.contains("was refused"), "{log}");
    }
    backends.into_iter().for_each(Backend::stop);
}
