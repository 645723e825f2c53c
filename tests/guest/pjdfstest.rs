//! pjdfstest's verdicts, on the host and in the guest, and which difference has another cause than
//! this program.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::vm::cache;

/// Tests that fail for one reason.
pub struct Known {
    pub cause: &'static str,
    pub tests: &'static [&'static str],
}

/// What fails on every share in a guest though it passes on the host's file system. It fails in the
/// same way on every other server that this client can mount.
const CLIENT: Known = Known {
    cause: "Linux's 9p client leaves its superblock's time granularity at the default of one second, \
            so the guest's kernel cuts the fraction off before it sends Tsetattr",
    tests: &["utimensat::subsecond"],
};

/// Not run in a guest, where it makes 32000 links only to fail: the C library derives LINK_MAX from
/// statfs's type, which ext2, ext3 and ext4 share; it cannot tell them apart on a 9p mount, so it
/// assumes ext2's 32000 where ext4 allows 65000.
const NOT_IN_GUESTS: &str = "link::link_count_max";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// The verdict of each test, by name, and for a failed one the lines that say why.
pub struct Results(BTreeMap<String, (Verdict, String)>);

impl Results {
    /// The verdicts of `tests/guest/pjdfstest.sh`, share by share.
    pub fn of_guest(text: &str) -> Vec<Self> {
        let mut shares = Vec::<String>::new();
        for line in text.lines() {
            match shares.last_mut() {
                _ if line.starts_with("@ ") => shares.push(String::new()),
                Some(share) => {
                    share.push_str(line);
                    share.push('\n');
                }
                None => {}
            }
        }
        shares.iter().map(|share| Results::parse(share)).collect()
    }

    /// Reads pjdfstest's output: "module::test    ok", and indented lines below a failed one.
    pub fn parse(text: &str) -> Self {
        let mut results = BTreeMap::<String, (Verdict, String)>::new();
        let mut last = None;
        let mut summary = None;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (name, verdict, rest) = (words.next(), words.next(), words.next());
            let verdict = match (verdict, rest) {
                (Some("ok"), None) => Some(Verdict::Passed),
                (Some("FAILED"), None) => Some(Verdict::Failed),
                (Some("skipped"), None) => Some(Verdict::Skipped),
                _ => None,
            };
            match (name, verdict) {
                (Some(name), Some(verdict)) if name.contains("::") => {
                    results.insert(name.to_owned(), (verdict, String::new()));
                    last = Some(name.to_owned());
                }
                (Some("Summary:"), _) => {
                    summary = line.split(", ").last().and_then(|all| all.split(' ').next());
                    last = None;
                }
                _ => {
                    if let Some((_, why)) = last.as_ref().and_then(|name| results.get_mut(name)) {
                        why.push_str(line);
                        why.push('\n');
                    }
                }
            }
        }
        // Whatever this reading misses must not pass for "no failure".
        assert_eq!(
            summary.and_then(|n| n.parse().ok()),
            Some(results.len()),
            "pjdfstest's output is not understood or not complete:\n{text}"
        );
        Results(results)
    }

    /// The same program, with the same configuration, on the file system that holds the shares.
    pub fn of_host() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(cache().join("bin/pjdfstest"))
            .arg("-c")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/pjdfstest.toml"))
            .arg("-p")
            .arg(dir.path())
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        Results::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// What the guest shall run, as pjdfstest's arguments.
    pub fn write_names(&self, path: &Path) {
        let names = self.0.keys().filter(|name| *name != NOT_IN_GUESTS);
        let lines: String = names.map(|name| format!("pjdfstest::tests::{name}\n")).collect();
        fs::write(path, lines).unwrap();
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.values().filter(|(v, _)| *v == verdict).count()
    }
}

/// Compares one share with the host's own file system: what is lost must be what is known to be lost,
/// no more and no less. Gives the differences, in words.
pub fn compare(share: &str, host: &Results, guest: &Results, known: &[Known]) -> String {
    let causes: BTreeMap<&str, &str> = known
        .iter()
        .chain([&CLIENT])
        .flat_map(|known| known.tests.iter().map(|test| (*test, known.cause)))
        .collect();
    let mut differences = String::new();
    for (name, (on_host, _)) in &host.0 {
        let in_guest = guest.0.get(name);
        let lost = *on_host == Verdict::Passed && in_guest.is_none_or(|(v, _)| *v != Verdict::Passed);
        match (lost && name != NOT_IN_GUESTS, causes.get(name.as_str()), in_guest) {
            (false, None, _) => {}
            (true, Some(cause), Some((verdict, _))) => {
                println!("{share}: {name}: {verdict:?} as expected: {cause}");
            }
            (false, Some(_), _) => {
                differences += &format!("{share}: {name} passes now: take it off the list\n");
            }
            (true, _, None) => differences += &format!("{share}: {name} did not run\n"),
            (true, None, Some((verdict, why))) => {
                differences +=
                    &format!("{share}: {name}: {verdict:?} in the guest, passed on the host\n{why}");
            }
        }
    }
    println!(
        "{share}: in the guest {} passed, {} failed, {} skipped; on the host {}, {}, {}",
        guest.count(Verdict::Passed),
        guest.count(Verdict::Failed),
        guest.count(Verdict::Skipped),
        host.count(Verdict::Passed),
        host.count(Verdict::Failed),
        host.count(Verdict::Skipped),
    );
    differences
}

/// What squash does not give.
pub const NO_DEVICES: Known = Known {
    cause: "squash lets the guest make no devices on the host, and does not pretend one",
    tests: &[
        "chmod::change_perm::block",
        "chmod::enotdir_component::block",
        "chmod::failed_chmod_unchanged_ctime::block",
        "chmod::update_ctime::block",
        "chown::enotdir_component::block",
        "chown::lchown::enotdir_component::block",
        "link::changed_ctime_success::block",
        "link::eexist_dest_exists::block",
        "link::enotdir_component_either::block",
        "link::remove_link::block",
        "link::share_metadata::block",
        "link::unchanged_ctime_fails::block",
        "mkdir::eexist_file_exists::block",
        "mkdir::enotdir_component::block",
        "mkfifo::eexist_file_exists::block",
        "mkfifo::enotdir_component::block",
        "mknod::changed_times_success::block",
        "mknod::changed_times_success::char",
        "mknod::device_files::block",
        "mknod::device_files::char",
        "mknod::eexist_file_exists::block",
        "mknod::enotdir_comp_char_block::block",
        "mknod::enotdir_component::block",
        "mknod::privileged::eexist_file_exists::block",
        "open::eexist_file_exists::block",
        "rename::changed_ctime_success::block",
        "rename::eexist_enotempty_to_non_empty::block",
        "rename::eisdir_to_dir_from_not_dir::block",
        "rename::enotdir_component_either::block",
        "rename::enotdir_from_dir_to_not_dir::block",
        "rename::preserve_metadata::block",
        "rename::to_multiply_linked::block",
        "rename::unchanged_ctime_failed::block",
        "rmdir::eexist_enotempty_non_empty_dir::block",
        "rmdir::enotdir_component::block",
        "symlink::create_symlink::block",
        "symlink::eexist_file_exists::block",
        "symlink::enotdir_component::block",
        "truncate::enotdir_component::block",
        "unlink::enotdir_component::block",
        "unlink::remove_type::block",
        "unlink::unchanged_ctime_failed::block",
        "unlink::update_ctime_success::block",
        "unlink::update_mtime_ctime_success_folder::block",
        "utimensat::changes_timestamps::block",
    ],
};

/// What squash cannot give without privileges; everything else is as with root.
pub const SQUASH_WITHOUT_PRIVILEGES: Known = Known {
    cause: "a file belongs to the process, whoever makes it or is given it",
    tests: &[
        "chmod::clear_isgid_bit",
        "mkdir::uid_gid_eq_euid_egid",
        "mkfifo::uid_gid_eq_euid_egid",
        "mknod::uid_gid_eq_euid_egid",
        "open::uid_gid_eq_euid_egid",
    ],
};
