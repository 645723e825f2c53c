//! Treaddir of a directory that changes meanwhile: what is there all the time comes exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use host::{SecurityModel, Share, ShareOptions};
use server::{Limits, Session};
use testkit::client::Client;
use testkit::scenario::Random;

use crate::common::*;

/// A share in this mode on a new directory in `parent`; `None` where the mode cannot work.
fn fixture(parent: &Path, model: SecurityModel) -> Option<Fixture> {
    let dir = tempfile::tempdir_in(parent).unwrap();
    let share = Share::open(&ShareOptions::new(dir.path(), model)).ok()?;
    Some(Fixture::on(dir, Arc::new(share), Limits::default()))
}

/// The names that stay. The longest one is no answer of few bytes.
fn stay(f: &mut Fixture, model: SecurityModel, longest: bool) -> BTreeSet<Vec<u8>> {
    fs::create_dir(f.path("dir")).unwrap();
    f.client.walk_all(0, 1, &["dir"]).unwrap();
    let mut names: BTreeSet<Vec<u8>> = (0..200).map(|at| format!("stays{at}").into_bytes()).collect();
    names.extend([
        b"...".to_vec(),
        b".x".to_vec(),
        b" \n\t".to_vec(),
        b"\xff\xfe".to_vec(),
    ]);
    if longest {
        names.insert(vec![0xfe; 255]);
    }
    if model != SecurityModel::MappedFile {
        names.insert(b".virtfs_metadata".to_vec());
        names.insert(b".virtfs_metadata_root".to_vec());
    }
    for (at, name) in names.iter().enumerate() {
        // By the guest and by the host; in mapped-file the first one makes the metadata directory.
        match at % 2 {
            0 => {
                let mode = libc::S_IFREG | 0o600;
                f.client.mknod(1, name, mode, (0, 0), gid()).unwrap();
            }
            _ => fs::write(f.path("dir").join(OsStr::from_bytes(name)), "").unwrap(),
        }
    }
    names.extend([b".".to_vec(), b"..".to_vec()]);
    names
}

/// Entries that come and go, each name once only.
struct Others {
    made: Vec<String>,
    count: usize,
}

impl Others {
    fn change(&mut self, f: &mut Fixture, random: &mut Random) {
        for _ in 0..random.below(4) {
            // Names of all lengths, so that removals leave gaps of all sizes.
            let name = format!("other{}{}", self.count, "o".repeat(random.below(30)));
            if self.count < 600 {
                self.count += 1;
                match random.below(2) {
                    0 => fs::write(f.path("dir").join(&name), "").unwrap(),
                    _ => drop(f.client.mkdir(1, &name, 0o700, gid()).unwrap()),
                }
                self.made.push(name);
            }
            if self.made.len() > 50 {
                let name = self.made.swap_remove(random.below(self.made.len()));
                let flags = match f.path("dir").join(&name).is_dir() {
                    true => wire::P9_DOTL_AT_REMOVEDIR,
                    false => 0,
                };
                f.client.unlinkat(1, &name, flags).unwrap();
            }
        }
    }
}

/// What becomes of the open directory between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    /// It is closed and opened again.
    Reopen,
    /// Everything ends, and another process goes on.
    Restart,
}

fn open(f: &mut Fixture) {
    f.client.clone_fid(1, 2).unwrap();
    f.client.lopen(2, O_RDONLY).unwrap();
}

fn restart(f: &mut Fixture, model: SecurityModel) {
    f.share = Arc::new(Share::open(&ShareOptions::new(f.dir.path(), model)).unwrap());
    f.session = Arc::new(Session::new(f.share.clone(), Limits::default()));
    f.client = Client::mount(Backend::new(f.session.clone()), 512_000).unwrap();
    f.client.walk_all(0, 1, &["dir"]).unwrap();
}

/// A listing by requests for `counts` bytes in turn.
fn list(parent: &Path, model: SecurityModel, counts: &[u32], between: Between) {
    let what = format!(
        "{model:?} in {} by {counts:?} bytes, {between:?}",
        parent.display()
    );
    let Some(mut f) = fixture(parent, model) else {
        println!("left out: {what}");
        return;
    };
    let least = counts.iter().copied().min().unwrap_or(0);
    let stays = stay(&mut f, model, least >= 24 + 255);
    let mut random = Random::new(u64::from(least));
    let mut others = Others {
        made: Vec::new(),
        count: 0,
    };
    for _ in 0..30 {
        others.change(&mut f, &mut random);
    }
    open(&mut f);
    let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let mut cookie = 0;
    for at in 0.. {
        // Fewer than there are entries of both kinds, even at one a request.
        assert!(at < 2000, "{what}: no end");
        match between {
            Between::Reopen if at % 3 == 2 => {
                f.client.clunk(2).unwrap();
                open(&mut f);
            }
            Between::Restart if at % 3 == 2 => {
                restart(&mut f, model);
                open(&mut f);
            }
            _ => {}
        }
        let entries = f.client.readdir(2, cookie, counts[at % counts.len()]).unwrap();
        let Some(last) = entries.last() else { break };
        cookie = last.offset;
        for entry in entries {
            *seen.entry(entry.name).or_default() += 1;
        }
        others.change(&mut f, &mut random);
    }
    for (name, times) in &seen {
        let text = String::from_utf8_lossy(name);
        assert_eq!(*times, 1, "{what}: {text} came more than once");
        assert!(
            stays.contains(name) || name.starts_with(b"other"),
            "{what}: {text}"
        );
    }
    for name in stays {
        let text = String::from_utf8_lossy(&name);
        assert!(seen.contains_key(&name), "{what}: {text} did not come");
    }
}

const COUNTS: [&[u32]; 8] = [
    // The longest of the short names, and just more.
    &[24 + 40],
    &[24 + 41, 100, 77],
    &[24 + 255],
    &[300, 24 + 255, 1000],
    &[512],
    &[4096],
    &[1024, 8192, 300, 511_989],
    &[511_989],
];

fn parents() -> Vec<std::path::PathBuf> {
    let memory = std::path::PathBuf::from("/dev/shm");
    let mut parents = vec![std::env::temp_dir()];
    parents.extend(memory.is_dir().then_some(memory));
    parents
}

#[test]
fn what_stays_comes_once() {
    for parent in parents() {
        for model in MODELS {
            for counts in COUNTS {
                list(&parent, model, counts, Between::Nothing);
            }
        }
    }
}

/// A cookie is the file system's own, so it is good for whoever opens the directory.
#[test]
fn cookies_survive_clunk_reopen_and_restart() {
    for parent in parents() {
        for model in MODELS {
            list(&parent, model, &[300], Between::Reopen);
            list(&parent, model, &[1024, 300], Between::Restart);
        }
    }
}

/// Here a position is a count of entries, so it is only good for as long as nobody moves away from it.
#[test]
fn what_stays_comes_once_where_positions_are_counted() {
    std::thread::spawn(|| {
        let temp = tempfile::tempdir().unwrap();
        if !mount_ramfs(temp.path()) {
            println!("left out: nothing can be mounted here");
            return;
        }
        for model in MODELS {
            for counts in COUNTS {
                list(temp.path(), model, counts, Between::Nothing);
            }
        }
    })
    .join()
    .unwrap();
}

/// In a mount namespace of this thread's own; false where that is not allowed.
fn mount_ramfs(at: &Path) -> bool {
    let at = std::ffi::CString::new(at.as_os_str().as_bytes()).unwrap();
    let none = std::ptr::null();
    // SAFETY: strings that end with NUL, and null pointers, which the call takes.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                none.cast(),
            ) == 0
            && libc::mount(c"ram".as_ptr(), at.as_ptr(), c"ramfs".as_ptr(), 0, none.cast()) == 0
    }
}
