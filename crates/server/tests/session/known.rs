//! Walks through directories that earlier walks have made known: the host's word counts, not what was known.

use std::os::unix::fs::symlink;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use server::Limits;
use testkit::client::Errno;

use crate::common::*;

fn all(test: impl Fn(Fixture)) {
    for model in MODELS {
        test(Fixture::with(model, Limits::default()));
    }
}

#[test]
fn what_the_host_puts_in_a_known_directorys_place_is_found() {
    all(|mut f| {
        std::fs::create_dir_all(f.path("a/b")).unwrap();
        f.write("a/b/file", "old");
        let way = ["a", "b", "file"];
        let old = f.client.walk(0, 1, &way).unwrap();
        f.client.clunk(1).unwrap();
        assert_eq!(f.client.walk(0, 1, &way).unwrap()[..2], old[..2]);
        f.client.clunk(1).unwrap();
        // Another directory, which has the name now.
        std::fs::rename(f.path("a/b"), f.path("a/moved")).unwrap();
        std::fs::create_dir(f.path("a/b")).unwrap();
        f.write("a/b/file", "longer");
        for _ in 0..2 {
            let new = f.client.walk(0, 1, &way).unwrap();
            assert_eq!(new[0].path, old[0].path);
            assert_ne!(new[1].path, old[1].path);
            assert_eq!(f.client.stat(1).unwrap().size, 6);
            f.client.clunk(1).unwrap();
        }
        // The first one again, by its new name.
        let moved = f.client.walk(0, 1, &["a", "moved", "file"]).unwrap();
        assert_eq!(moved[1].path, old[1].path);
        f.client.clunk(1).unwrap();
        // A symlink to it is no way there.
        std::fs::remove_dir_all(f.path("a/b")).unwrap();
        symlink("moved", f.path("a/b")).unwrap();
        let link = f.client.walk(0, 1, &way).unwrap();
        assert_eq!(link.len(), 2);
        assert_eq!(link[1].kind, 2);
        // Neither is a file.
        std::fs::remove_file(f.path("a/b")).unwrap();
        f.write("a/b", "");
        let file = f.client.walk(0, 1, &way).unwrap();
        assert_eq!((file.len(), file[1].kind), (2, 0));
        std::fs::remove_file(f.path("a/b")).unwrap();
        assert_eq!(f.client.walk(0, 1, &way).unwrap().len(), 1);
        std::fs::remove_dir_all(f.path("a")).unwrap();
        assert_eq!(f.client.walk(0, 1, &way), Err(Errno::ENOENT));
        assert_eq!(f.client.stat(1), Err(Errno::ENOENT));
    });
}

#[test]
fn a_known_directory_that_the_guest_removes_is_given_up() {
    all(|mut f| {
        let before = f.session.usage().descriptors;
        std::fs::create_dir_all(f.path("a/b")).unwrap();
        for _ in 0..2 {
            f.client.walk_all(0, 1, &["a", "b"]).unwrap();
            f.client.clunk(1).unwrap();
        }
        assert_eq!(f.session.usage().descriptors, before + 2, "both are known");
        f.client.walk_all(0, 1, &["a"]).unwrap();
        f.client.unlinkat(1, "b", 0x200).unwrap();
        assert_eq!(f.client.walk(1, 2, &["b"]), Err(Errno::ENOENT));
        f.client.remove(1).unwrap();
        assert_eq!(f.session.usage().descriptors, before);
        assert_eq!(f.session.usage().nodes, 1);
    });
}

/// Nothing is held of what the host has removed, once a walk has noticed.
#[test]
fn a_known_directory_that_the_host_removes_is_given_up() {
    all(|mut f| {
        let before = f.session.usage().descriptors;
        for what in ["nothing", "a file"] {
            std::fs::create_dir(f.path("a")).unwrap();
            f.client.walk_all(0, 1, &["a"]).unwrap();
            f.client.clunk(1).unwrap();
            assert_eq!(f.session.usage().descriptors, before + 1);
            std::fs::remove_dir(f.path("a")).unwrap();
            if what == "nothing" {
                assert_eq!(f.client.walk(0, 1, &["a"]), Err(Errno::ENOENT));
            } else {
                f.write("a", "");
                f.client.walk_all(0, 1, &["a"]).unwrap();
                f.client.clunk(1).unwrap();
            }
            assert_eq!(f.session.usage().descriptors, before, "{what}");
        }
    });
}

/// Bits of a small generator; the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % sides
    }

    fn name(&mut self) -> &'static str {
        ["a", "b", "c"][self.roll(3) as usize]
    }

    fn path(&mut self) -> Vec<&'static str> {
        (0..=self.roll(3)).map(|_| self.name()).collect()
    }
}

/// Host and guest move things about; a session that knows much and one that knows nothing find the same.
#[test]
fn what_is_known_changes_no_answer() {
    let mut dice = Dice(7);
    for model in MODELS {
        let mut f = Fixture::with(model, Limits::default());
        let mut found = [0; 4];
        for step in 0..1500 {
            let (old, new) = (dice.path(), dice.path());
            let (from, to) = (f.path(old.join("/")), f.path(new.join("/")));
            // Many of these are impossible, and then nothing happens.
            let _ = match dice.roll(10) {
                0..=4 => std::fs::create_dir(&to),
                5 => std::fs::write(&to, "x"),
                6 => symlink("a", &to),
                7 => std::fs::rename(&from, &to),
                8 => std::fs::remove_dir_all(&from).or_else(|_| std::fs::remove_file(&from)),
                _ => {
                    let (name, above) = new.split_last().unwrap();
                    if above.is_empty() || f.client.walk_all(0, 1, above).is_ok() {
                        if above.is_empty() {
                            f.client.clone_fid(0, 1).unwrap();
                        }
                        let _ = f.client.mkdir(1, name, 0o755, gid());
                        f.client.clunk(1).unwrap();
                    }
                    Ok(())
                }
            };
            let mut fresh = f.another();
            for _ in 0..3 {
                let way = dice.path();
                let which = |qids: Vec<wire::Qid>| qids.iter().map(|q| (q.kind, q.path)).collect::<Vec<_>>();
                let known = f.client.walk(0, 1, &way).map(which);
                assert_eq!(
                    known,
                    fresh.walk(0, 1, &way).map(which),
                    "{model:?} {step} {way:?}"
                );
                if let Ok(qids) = known {
                    found[qids.len()] += 1;
                    if qids.len() == way.len() {
                        assert_eq!(f.client.stat(1).unwrap(), fresh.stat(1).unwrap());
                        f.client.clunk(1).unwrap();
                        fresh.clunk(1).unwrap();
                    }
                }
            }
        }
        assert!(found[1..].iter().all(|count| *count > 100), "{found:?}");
    }
}

/// What is mounted on a known directory is seen at once, and can be unmounted when the guest has done with it.
#[test]
fn mounts_on_known_directories_are_seen_and_not_held() {
    let Ok(()) = std::thread::spawn(|| {
        let mut f = Fixture::new();
        std::fs::create_dir_all(f.path("a/b/c")).unwrap();
        f.client.walk_all(0, 1, &["a", "b", "c"]).unwrap();
        f.client.clunk(1).unwrap();
        let target = f.path("a/b");
        // SAFETY: concerns this thread alone.
        let own = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
        let private = || {
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
        };
        let tmpfs = || {
            mount(
                Some("tmpfs"),
                &target,
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
        };
        if !own || private().and_then(|()| tmpfs()).is_err() {
            println!("left out: nothing can be mounted here");
            return;
        }
        // The share was opened before the namespace was copied: its root is in the first one. So share it again.
        let share = host::Share::open(&host::ShareOptions::new(
            f.dir.path(),
            host::SecurityModel::Passthrough,
        ));
        let session = std::sync::Arc::new(server::Session::new(share.unwrap().into(), Limits::default()));
        let mut client = testkit::client::Client::mount(Backend::new(session), 8192).unwrap();
        std::fs::create_dir_all(target.join("c/d")).unwrap();
        umount2(&target, MntFlags::empty()).unwrap();
        for _ in 0..2 {
            assert_eq!(client.walk(0, 1, &["a", "b", "c", "d"]).unwrap().len(), 3);
            tmpfs().unwrap();
            std::fs::create_dir_all(target.join("c/d")).unwrap();
            for _ in 0..2 {
                client.walk_all(0, 1, &["a", "b", "c", "d"]).unwrap();
                client.clunk(1).unwrap();
            }
            umount2(&target, MntFlags::empty()).unwrap();
        }
    })
    .join() else {
        panic!("in the thread");
    };
}
