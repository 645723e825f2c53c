//! pjdfstest's verdicts, on the host and in the guest, and which difference has another cause than
//! this program.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::vm::cache;

/// Tests that may fail in a guest though they pass on the host's file system, each with its cause.
/// They fail in the same way on every other server that this client can mount.
const CLIENT: [(&str, &str); 2] = [
    (
        "utimensat::subsecond",
        "Linux's 9p client leaves its superblock's time granularity at the default of one second, \
         so the guest's kernel cuts the fraction off before it sends Tsetattr",
    ),
    (
        "link::link_count_max",
        "the guest's C library derives LINK_MAX from statfs's type; ext2, ext3 and ext4 share one, \
         and it cannot tell them apart on a 9p mount, so it assumes ext2's 32000 where ext4 allows 65000",
    ),
];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// The verdict of each test, by name, and for a failed one the lines that say why.
pub struct Results(BTreeMap<String, (Verdict, String)>);

impl Results {
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

    fn count(&self, verdict: Verdict) -> usize {
        self.0.values().filter(|(v, _)| *v == verdict).count()
    }
}

/// Fails when a test did not pass in the guest that passed on the host, unless its cause is known
/// to lie in the client.
pub fn compare(host: &Results, guest: &Results) {
    let mut worse = String::new();
    for (name, (verdict, why)) in &guest.0 {
        let on_host = host.0.get(name).map(|(verdict, _)| *verdict);
        if *verdict == Verdict::Passed || on_host != Some(Verdict::Passed) {
            continue;
        }
        match CLIENT.iter().find(|(known, _)| known == name) {
            Some((_, cause)) => println!("{name}: {verdict:?} as expected: {cause}"),
            None => worse += &format!("{name}: {verdict:?} in the guest, passed on the host\n{why}"),
        }
    }
    println!(
        "in the guest {} passed, {} failed, {} skipped; on the host {}, {}, {}",
        guest.count(Verdict::Passed),
        guest.count(Verdict::Failed),
        guest.count(Verdict::Skipped),
        host.count(Verdict::Passed),
        host.count(Verdict::Failed),
        host.count(Verdict::Skipped),
    );
    assert!(
        guest.count(Verdict::Passed) > 300,
        "too few tests ran to say anything"
    );
    assert!(worse.is_empty(), "{worse}");
}
