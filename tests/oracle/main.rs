//! Compatibility with QEMU's own virtio-9p, which is driven at its ring without a guest: the same random sequences
//! of requests go to both, each on a directory of its own; answers and host trees must be equal down to every
//! xattr and metadata byte, and then each server reads the other's tree.
//!
//! Needs root, and the QEMU that `scripts/setup` installs. `VHOST_USER_9P_SEED` repeats a sequence,
//! `VHOST_USER_9P_SEQUENCES` asks for so many new ones (otherwise: as many of the usual ones as ten seconds allow),
//! `VHOST_USER_9P_FAILURES` how many differing ones are collected before the test ends (otherwise: one).

mod ask;
mod compare;
mod differences;
mod generate;
mod ours;
mod pair;
mod qemu;
mod random;
mod rules;
mod step;
mod sys;
mod tree;
mod world;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use compare::Qids;
use differences::RULES;
use ours::Ours;
use pair::{Pair, Party};
use qemu::Qemu;
use rules::Mode;
use step::{Step, show};
use tempfile::TempDir;

macro_rules! kept {
    ($($name:literal),*) => {
        /// Sequences that once differed, and some written by hand: all are done in every mode.
        const KEPT: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("sequences/", $name, ".txt")))),*];
    };
}

kept!(
    "errors",
    "everything",
    "mapped",
    "no-bytes",
    "set-id-kept",
    "states",
    "unlinked"
);

/// Two QEMUs, to show that the comparison finds nothing where nothing differs.
fn qemu_with_itself(mode: Mode) -> (Pair, [TempDir; 2]) {
    sys::clear_umask();
    let homes = [directory(), directory()];
    let party = |own: usize| Party {
        server: Box::new(Qemu::start(homes[own].path(), mode)),
        directory: homes[own].path().to_owned(),
        reader: Box::new(Qemu::start(homes[1 - own].path(), mode)),
        qids: Qids::Qemu,
    };
    let pair = Pair {
        mode,
        parties: [party(0), party(1)],
        rules: &[],
        used: Default::default(),
        requests: 0,
    };
    (pair, homes)
}

/// QEMU, and what this project is about.
fn qemu_with_ours(mode: Mode) -> (Pair, [TempDir; 2]) {
    sys::clear_umask();
    let homes = [directory(), directory()];
    // QEMU first: opening a share takes CAP_FSETID from this thread, and with it from what it starts.
    let qemu = Party {
        server: Box::new(Qemu::start(homes[0].path(), mode)),
        directory: homes[0].path().to_owned(),
        reader: Box::new(Qemu::start(homes[1].path(), mode)),
        qids: Qids::Qemu,
    };
    let ours = Party {
        server: Box::new(Ours::start(homes[1].path(), mode)),
        directory: homes[1].path().to_owned(),
        reader: Box::new(Ours::start(homes[0].path(), mode)),
        qids: Qids::Ours,
    };
    let pair = Pair {
        mode,
        parties: [qemu, ours],
        rules: RULES,
        used: Default::default(),
        requests: 0,
    };
    (pair, homes)
}

fn directory() -> TempDir {
    let parent = std::env::var_os("VHOST_USER_9P_TMP").unwrap_or_else(|| std::env::temp_dir().into());
    TempDir::new_in(Path::new(&parent)).expect("a directory for the share")
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// The first seed of an ordinary run: always the same one, so that a run that turns red says something about the
/// change before it. Who asks for a number of sequences explores, and gets new ones.
const USUAL: u64 = 1;

fn random_sequences(pair: &mut Pair, limit: Duration) {
    let first = variable("VHOST_USER_9P_SEED");
    let count = variable("VHOST_USER_9P_SEQUENCES").or(first.map(|_| 1));
    let first = first.or(count.is_none().then_some(USUAL)).unwrap_or_else(|| {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        now.as_micros() as u64
    });
    let most = variable("VHOST_USER_9P_FAILURES").map_or(1, |most| most as usize);
    let (start, mut done, mut failures) = (Instant::now(), 0, Vec::new());
    while count.map_or_else(|| start.elapsed() < limit, |count| done < count) {
        let seed = first.wrapping_add(done);
        let steps = generate::sequence(seed);
        if variable("VHOST_USER_9P_SHOW").is_some() {
            println!("seed {seed}\n{}", show(&steps));
        }
        failures.extend(pair.check(&format!("VHOST_USER_9P_SEED={seed}"), &steps).err());
        done += 1;
        if failures.len() >= most {
            break;
        }
    }
    println!(
        "{:?}: {done} sequences from seed {first}, {} requests to each, {:.1} s; steps left out:",
        pair.mode,
        pair.requests,
        start.elapsed().as_secs_f32(),
    );
    for rule in pair.rules {
        if let Some(count) = pair.used.get(rule.name) {
            println!("{count:6} {}: {}", rule.name, rule.reason);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The sequences that once differed, then new ones.
fn compare_with_qemu(mode: Mode) {
    let (mut pair, _homes) = qemu_with_ours(mode);
    for (name, text) in KEPT {
        let steps = step::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Err(text) = pair.check(name, &steps) {
            panic!("{text}");
        }
    }
    random_sequences(&mut pair, Duration::from_secs(10));
}

#[test]
fn passthrough_is_qemus() {
    compare_with_qemu(Mode::Passthrough);
}

#[test]
fn squash_is_qemus_none() {
    compare_with_qemu(Mode::Squash);
}

#[test]
fn mapped_xattr_is_qemus() {
    compare_with_qemu(Mode::MappedXattr);
}

#[test]
fn mapped_file_is_qemus() {
    compare_with_qemu(Mode::MappedFile);
}

#[test]
fn qemu_agrees_with_itself() {
    for mode in [
        Mode::Passthrough,
        Mode::Squash,
        Mode::MappedXattr,
        Mode::MappedFile,
    ] {
        let (mut pair, _homes) = qemu_with_itself(mode);
        random_sequences(&mut pair, Duration::from_secs(3));
    }
}

/// Two security models differ in who may have an ACL: the comparison must say so, and with few steps.
#[test]
fn a_difference_is_found_and_made_short() {
    let (mut pair, homes) = qemu_with_itself(Mode::Passthrough);
    pair.parties[1].server = Box::new(Qemu::start(homes[1].path(), Mode::Squash));
    let mut steps = generate::sequence(1);
    steps.retain(|step| !step.to_string().contains("posix_acl"));
    assert_eq!(pair.run(&steps), Ok(()));
    steps.extend(step::parse(
        "walk fid=0 newfid=20 names=
         xattrcreate fid=20 name=system.posix_acl_access size=28 flags=0
         write fid=20 offset=0 data=%02%00%00%00%01%00%07%00%ff%ff%ff%ff%04%00%05%00%ff%ff%ff%ff%20%00%00%00%ff%ff%ff%ff
         clunk fid=20",
    ).expect("steps"));
    let found = pair.run(&steps).expect_err("models with and without ACLs differ");
    let (short, _) = pair.shrink(&steps, found);
    // Attach, clone, create, write and clunk.
    assert!(short.len() <= 5, "{}", show(&short));
}

#[test]
fn steps_are_printed_as_they_are_read() {
    for seed in 0..50 {
        let steps = generate::sequence(seed);
        let text = show(&steps);
        assert_eq!(step::parse(&text).as_deref(), Ok(&steps[..]), "{text}");
    }
    assert!("walk fid=1".parse::<Step>().is_err());
    assert!("dance fid=1".parse::<Step>().is_err());
}
