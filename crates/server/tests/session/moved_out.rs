//! A directory that the host moves out of the shared directory, while the guest has fids of it and of what is below it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use host::{SecurityModel, Share, ShareOptions};
use nix::mount::{MsFlags, mount};
use server::Limits;
use testkit::client::Errno;
use wire::P9_DOTL_AT_REMOVEDIR;

use crate::common::*;

/// `test` gets a directory of the host's and a share of its `share`, which in `own` is the root of a mount, as in a sandbox
/// with mounts of its own.
fn shared(own: bool, model: SecurityModel, test: impl FnOnce(&Path, Fixture) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let temp = tempfile::tempdir().unwrap();
            let (inside, outside) = (temp.path().join("share"), temp.path().join("mounted"));
            fs::create_dir(&inside).unwrap();
            fs::create_dir(&outside).unwrap();
            let none = None::<&str>;
            if own {
                // SAFETY: concerns this thread alone.
                let own = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
                let private = || mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
                let bind = || mount(Some(&inside), &outside, none, MsFlags::MS_BIND, none);
                if !own || private().and_then(|()| bind()).is_err() {
                    println!("left out: nothing can be mounted here");
                    return;
                }
            }
            let shown = if own { &outside } else { &inside };
            let share = Arc::new(Share::open(&ShareOptions::new(shown, model)).unwrap());
            let limits = Limits {
                fd_budget: 32,
                ..Limits::default()
            };
            test(
                temp.path(),
                Fixture::on(tempfile::tempdir().unwrap(), share, limits),
            );
        });
        thread.join().unwrap();
    });
}

fn plant(base: &Path) {
    fs::create_dir_all(base.join("share/a/b/c")).unwrap();
    fs::create_dir(base.join("share/other")).unwrap();
    for file in ["a/file", "a/b/file", "a/b/c/file", "other/file"] {
        fs::write(base.join("share").join(file), "as it was").unwrap();
    }
    for filler in 0..100 {
        fs::write(base.join(format!("share/filler{filler}")), "").unwrap();
    }
}

/// What is below `dir`, with contents.
fn tree(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = path.display().to_string();
        match path.is_dir() {
            true => {
                found.push((name, String::new()));
                found.extend(tree(&path));
            }
            false => found.push((name, fs::read_to_string(&path).unwrap())),
        }
    }
    found.sort();
    found
}

fn refused<T>(what: &str, result: Result<T, Errno>) {
    assert_eq!(result.map(drop), Err(Errno::ESTALE), "{what}");
}

fn evict_all(f: &mut Fixture) {
    for fid in 0..100 {
        f.client
            .walk_all(0, 1000 + fid, &[format!("filler{fid}")])
            .unwrap();
    }
    for fid in 0..100 {
        f.client.clunk(1000 + fid).unwrap();
    }
}

/// Everything that a name in the directory of `fid` can be used for.
fn try_all(f: &mut Fixture, fid: u32, listing: u32) {
    let client = &mut f.client;
    refused("walk", client.walk(fid, 50, &["file"]));
    refused("walk far", client.walk(fid, 50, &["c", "file"]));
    refused("walk up", client.walk(fid, 50, &[".."]));
    refused("walk about", client.walk(fid, 50, &[".", "file"]));
    refused("mkdir", client.mkdir(fid, "new", 0o755, gid()));
    refused(
        "mknod",
        client.mknod(fid, "new", libc::S_IFIFO | 0o644, (0, 0), gid()),
    );
    refused("symlink", client.symlink(fid, "new", "target", gid()));
    refused("link", client.link(fid, 9, "new"));
    refused("rename from", client.renameat(fid, "file", 0, "new"));
    refused("rename to", client.renameat(8, "file", fid, "new"));
    refused("rename within", client.renameat(fid, "file", fid, "new"));
    refused("rename a fid to", client.rename(9, fid, "new"));
    refused("unlink", client.unlinkat(fid, "file", 0));
    refused("rmdir", client.unlinkat(fid, "c", P9_DOTL_AT_REMOVEDIR));
    refused("readdir", client.readdir(listing, 0, 4096));
    client.clone_fid(fid, 50).unwrap();
    refused("create", client.lcreate(50, "new", O_RDWR, 0o644, gid()));
    refused(
        "create what is there",
        client.lcreate(50, "file", O_RDWR, 0o644, gid()),
    );
    client.clunk(50).unwrap();
}

/// With the namespace sandbox the shared directory is the root of a mount.
#[test]
fn what_is_moved_out_of_a_mount_is_not_reached_any_more() {
    for model in MODELS {
        shared(true, model, |base, mut f| {
            plant(base);
            // The directory itself, one below it, a file below that; others for renames; listings.
            f.client.walk_all(0, 1, &["a"]).unwrap();
            f.client.walk_all(1, 2, &["b"]).unwrap();
            f.client.walk_all(2, 3, &["file"]).unwrap();
            f.client.walk_all(0, 8, &["other"]).unwrap();
            f.client.walk_all(8, 9, &["file"]).unwrap();
            for (from, listing) in [(1, 11), (2, 12)] {
                f.client.clone_fid(from, listing).unwrap();
                f.client.lopen(listing, O_RDONLY).unwrap();
            }
            // One that nobody had used before.
            f.client.walk_all(0, 4, &["a", "b", "c"]).unwrap();
            let size = f.client.stat(3).unwrap().size;
            fs::rename(base.join("share/a"), base.join("a")).unwrap();
            let before = tree(&base.join("a"));
            try_all(&mut f, 1, 11);
            try_all(&mut f, 2, 12);
            refused("walk", f.client.walk(4, 50, &["file"]));
            refused("remove by fid", f.client.remove(3));
            assert_eq!(tree(&base.join("a")), before, "{model:?}");
            // From above it is simply not there.
            assert_eq!(f.client.walk(0, 50, &["a"]), Err(Errno::ENOENT));
            // When its descriptor is given up, it is not found again either.
            f.client.clunk(4).unwrap();
            evict_all(&mut f);
            refused("walk", f.client.walk(2, 50, &["file"]));
            // Back again.
            fs::rename(base.join("a"), base.join("share/a")).unwrap();
            f.client.walk_all(1, 3, &["b", "file"]).unwrap();
            assert_eq!(f.client.stat(3).unwrap().size, size);
            f.client.mkdir(2, "new", 0o755, gid()).unwrap();
            assert!(base.join("share/a/b/new").is_dir());
            f.client.readdir(12, 0, 4096).unwrap();
        });
    }
}

/// Without a mount of its own nobody can tell: documented in limits.md.
#[test]
fn what_is_moved_out_of_a_mere_directory_is_reached_by_fids_but_is_no_way_up() {
    shared(false, SecurityModel::Squash, |base, mut f| {
        plant(base);
        f.client.walk_all(0, 1, &["a"]).unwrap();
        fs::rename(base.join("share/a"), base.join("a")).unwrap();
        f.client.walk_all(1, 2, &["b", "file"]).unwrap();
        for names in [&[".."][..], &["..", "share"], &["b", "..", ".."]] {
            assert!(f.client.walk_all(1, 3, names).is_err(), "{names:?}");
        }
        assert_eq!(f.client.walk(0, 3, &["a"]), Err(Errno::ENOENT));
    });
}
