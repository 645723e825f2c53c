//! Debian lives on a share: its own programs finish it, extend it and use it, and what is left is what ext4 has.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::ORDINARY;
use crate::backend::{Backend, Setup};
use crate::vm::{self, Vm};

/// The guest's own view of what is there: each path with its kind, mode, owners and the rest, and each file with its
/// sum, as `debian.sh` wrote them down.
struct Manifest<'a> {
    objects: BTreeMap<&'a str, Vec<&'a str>>,
    sums: BTreeMap<&'a str, &'a str>,
}

impl<'a> Manifest<'a> {
    fn new(text: &'a str) -> Manifest<'a> {
        let (mut objects, mut sums) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            match line.split_once("  ") {
                Some((sum, path)) if sum.len() == 64 => {
                    sums.insert(path, sum);
                }
                _ => {
                    let mut words = line.split(' ');
                    objects.insert(words.next().unwrap(), words.collect());
                }
            }
        }
        Manifest { objects, sums }
    }
}

/// Compares what a guest saw with what the host has; `native` where modes, owners and kinds are the host's own.
fn look_at(root: &Path, manifest: &Manifest<'_>, native: bool) {
    assert!(
        manifest.objects.len() > 2000,
        "{} objects",
        manifest.objects.len()
    );
    // A name with a line feed fills two lines, which are not looked at.
    let usual = |path: &str| {
        path.starts_with('/')
            && path != "/srv/tree"
            && !path.starts_with("/srv/tree/")
            && !path.contains([' ', '"', '\\', '?'])
            && path.is_ascii()
    };
    for (path, said) in manifest.objects.iter().filter(|(path, _)| usual(path)) {
        let host = root.join(path.trim_start_matches('/'));
        let meta = fs::symlink_metadata(&host).unwrap_or_else(|e| panic!("{path} on the host: {e}"));
        if native && said.len() >= 3 {
            let kind = match meta.mode() & libc::S_IFMT {
                libc::S_IFDIR => "d",
                libc::S_IFLNK => "l",
                libc::S_IFIFO => "p",
                _ => "f",
            };
            let owners = format!("{}:{}", meta.uid(), meta.gid());
            let mode = format!("{:o}", meta.mode() & 0o7777);
            assert_eq!(said[..3], [kind, &mode, &owners], "{path}");
        }
        if said.len() >= 5 && said[0] == "f" {
            assert_eq!(said[4], meta.len().to_string(), "the size of {path}");
        }
    }
    // What programs wrote last, by its content.
    for (path, sum) in manifest.sums.iter().filter(|(path, _)| usual(path)) {
        if ["/srv/", "/etc/", "/var/lib/dpkg/status"]
            .iter()
            .any(|place| path.starts_with(place))
        {
            let host = root.join(path.trim_start_matches('/'));
            assert_eq!(*sum, vm::sha256(&host), "{path}");
        }
    }
}

/// Each run is a share and a cache mode of the client.
fn debian_lives_on(shares: &[(Setup<'_>, &str)]) {
    let archive = vm::cache().join("debian.tar");
    assert!(
        archive.exists(),
        "run scripts/setup first: no {}",
        archive.display()
    );
    let lists = tempfile::tempdir().unwrap();
    let (runs, place) = (lists.path().join("runs"), lists.path().join("archive"));
    let text: String = shares
        .iter()
        .map(|(setup, cache)| format!("{} {cache}\n", setup.tag))
        .collect();
    fs::write(&runs, text).unwrap();
    fs::write(&place, format!("{}\n", archive.display())).unwrap();
    let backends: Vec<_> = shares.iter().map(|(setup, _)| setup.start()).collect();
    Vm::with(&backends)
        .no_mount()
        .memory("1G")
        .add("tests/guest/debian-inside.sh")
        .add(&runs)
        .add(&place)
        .run("debian.sh")
        .expect_success();
    for (backend, (setup, cache)) in backends.iter().zip(shares) {
        let text = fs::read(backend.share().join(format!("left-{cache}"))).unwrap();
        let text = String::from_utf8_lossy(&text);
        let native = setup.model == "passthrough";
        look_at(&backend.share().join(cache), &Manifest::new(&text), native);
    }
    backends.into_iter().for_each(Backend::stop);
}

/// A share of an ordinary user, who can give nothing away: owners, modes and devices are all the mode's own.
fn unprivileged(model: &str) -> Setup<'_> {
    Setup {
        model,
        tag: model,
        process: Some(ORDINARY),
        owner: ORDINARY,
        ..Setup::ROOT
    }
}

/// The one that takes part each time: no other asks as much of the program.
#[test]
fn debian_lives_on_a_share_of_an_ordinary_user() {
    debian_lives_on(&[(unprivileged("mapped-file"), "loose")]);
}

#[test]
#[ignore = "takes three minutes"]
fn debian_lives_on_further_shares() {
    let passthrough = |tag| Setup { tag, ..Setup::ROOT };
    debian_lives_on(&[
        (passthrough("uncached"), "none"),
        (passthrough("cached"), "loose"),
        (unprivileged("mapped-xattr"), "loose"),
    ]);
}
