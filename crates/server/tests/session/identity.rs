//! An inode number that is used again is another object, whatever it becomes: a fid never goes over to it, and a special
//! file is never opened.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use host::{FileHandles, SecurityModel, Share, ShareOptions};
use nix::mount::{MsFlags, mount};
use server::Limits;
use testkit::client::Errno;
use wire::P9_DOTL_AT_REMOVEDIR;

use crate::common::*;

/// What an inode number is used for next.
const SUCCESSORS: [u32; 7] = [
    libc::S_IFREG,
    libc::S_IFDIR,
    libc::S_IFLNK,
    libc::S_IFIFO,
    libc::S_IFCHR,
    libc::S_IFBLK,
    libc::S_IFSOCK,
];

const BUDGET: usize = 24;

/// Every file system to try on, mounted at `at`, in this thread's own mounts; `test` gets what it is called.
fn on_each_file_system(test: impl Fn(&Path, &str) + Send + Sync + 'static) {
    std::thread::spawn(move || {
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
        let temp = tempfile::tempdir().unwrap();
        // What is used again, and with which time of birth, differs: none in ext4's small inodes.
        test(&dir_in(temp.path()), "whatever /tmp is");
        if !own || private().is_err() {
            println!("left out: nothing can be mounted here");
            return;
        }
        let at = temp.path().join("mounted");
        fs::create_dir(&at).unwrap();
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        test(&dir_in(&at), "tmpfs");
        for inode in [128, 256] {
            let at = temp.path().join(inode.to_string());
            fs::create_dir(&at).unwrap();
            if ext4(&temp.path().join("image"), &at, inode) {
                test(&dir_in(&at), &format!("ext4 with inodes of {inode} bytes"));
            } else {
                println!("left out: ext4 with inodes of {inode} bytes");
            }
            let _ = nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH);
        }
    })
    .join()
    .unwrap();
}

fn dir_in(at: &Path) -> std::path::PathBuf {
    let dir = at.join("share");
    fs::create_dir(&dir).unwrap();
    dir
}

fn ext4(image: &Path, at: &Path, inode: u32) -> bool {
    let file = fs::File::create(image).unwrap();
    file.set_len(16 << 20).unwrap();
    let quiet = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let inode = inode.to_string();
    quiet(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-I", &inode])
            .arg(image),
    ) && quiet(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))
}

fn options(dir: &Path, file_handles: FileHandles) -> ShareOptions {
    ShareOptions {
        file_handles,
        ..ShareOptions::new(dir, SecurityModel::Squash)
    }
}

/// A share with few descriptors; `None` where file handles cannot be opened.
fn fixture(dir: &Path, file_handles: FileHandles) -> Option<Fixture> {
    let share = match Share::open(&options(dir, file_handles)) {
        Ok(share) => Arc::new(share),
        Err(error) => {
            println!("left out: {error}");
            return None;
        }
    };
    let limits = Limits {
        fd_budget: BUDGET,
        ..Limits::default()
    };
    Some(Fixture::on(tempfile::tempdir().unwrap(), share, limits))
}

fn make(path: &Path, kind: u32) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // /dev/null, and the first loop device.
    let device = match kind {
        libc::S_IFCHR => libc::makedev(1, 3),
        _ => libc::makedev(7, 0),
    };
    match kind {
        libc::S_IFDIR => fs::create_dir(path).unwrap(),
        libc::S_IFLNK => std::os::unix::fs::symlink("/etc/passwd", path).unwrap(),
        kind => {
            // SAFETY: a NUL-terminated path.
            let made = unsafe { libc::mknod(name.as_ptr(), kind | 0o666, device) };
            assert_eq!(made, 0);
        }
    }
}

/// Walks to enough files that all else gives its descriptor up.
fn evict_all(f: &mut Fixture, fillers: u32) {
    for fid in 0..fillers {
        f.client
            .walk_all(0, 1000 + fid, &[format!("filler{fid}")])
            .unwrap();
        f.client.clunk(1000 + fid).unwrap_or_default();
    }
    for fid in 0..fillers {
        f.client
            .walk_all(0, 1000 + fid, &[format!("filler{fid}")])
            .unwrap();
    }
    for fid in 0..fillers {
        f.client.clunk(1000 + fid).unwrap();
    }
}

const FILLERS: u32 = BUDGET as u32 * 2;

/// `stale`: the object is gone. None of what a fid does reaches its successor.
fn is_stale(f: &mut Fixture, fid: u32, what: &str) {
    for flags in [O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC] {
        let opened = f.client.lopen(fid, flags).map(drop);
        assert_eq!(opened, Err(Errno::ESTALE), "{what}: open {flags:#o}");
    }
    assert_eq!(f.client.clone_fid(fid, 50), Err(Errno::ESTALE), "{what}");
    assert_eq!(f.client.stat(fid).map(drop), Err(Errno::ESTALE), "{what}");
    assert_eq!(f.client.truncate(fid, 0), Err(Errno::ESTALE), "{what}");
    assert_eq!(f.client.chmod(fid, 0o777), Err(Errno::ESTALE), "{what}");
    assert_eq!(f.client.walk(fid, 50, &["x"]), Err(Errno::ESTALE), "{what}");
    assert_eq!(f.client.link(0, fid, "linked"), Err(Errno::ESTALE), "{what}");
    f.client
        .remove(fid)
        .map_err(|errno| assert_eq!(errno, Errno::ESTALE, "{what}"))
        .unwrap_err();
}

/// The first fault of its kind: the fid of a file opened the device that had got its inode number.
#[test]
fn a_fid_never_goes_over_to_what_gets_its_inode_number() {
    on_each_file_system(|dir, what| {
        for handles in [FileHandles::Verify, FileHandles::Open] {
            let Some(mut f) = fixture(dir, handles) else {
                continue;
            };
            for at in 0..FILLERS {
                fs::write(dir.join(format!("filler{at}")), "").unwrap();
            }
            let mut again = 0;
            for first in [libc::S_IFREG, libc::S_IFDIR] {
                for kind in SUCCESSORS {
                    // Several, because not every number is used again at once.
                    for round in 0..4 {
                        let case = format!("{what}, {handles:?}: {first:o} to {kind:o}");
                        let path = dir.join("victim");
                        make(&path, first);
                        let before = fs::symlink_metadata(&path).unwrap();
                        f.client.walk_all(0, 1, &["victim"]).unwrap();
                        f.client.walk_all(0, 2, &["victim"]).unwrap();
                        evict_all(&mut f, FILLERS);
                        match first {
                            libc::S_IFDIR => fs::remove_dir(&path).unwrap(),
                            _ => fs::remove_file(&path).unwrap(),
                        }
                        make(&path, kind);
                        let after = fs::symlink_metadata(&path).unwrap();
                        again += u32::from(before.ino() == after.ino());
                        if round % 2 == 0 {
                            // The successor is found while the node of the number has no descriptor.
                            f.client.walk_all(0, 3, &["victim"]).unwrap();
                            let attr = f.client.stat(3).unwrap();
                            assert_eq!(attr.mode & libc::S_IFMT, kind, "{case}");
                            is_stale(&mut f, 1, &case);
                            evict_all(&mut f, FILLERS);
                            assert_eq!(f.client.stat(3).unwrap().mode & libc::S_IFMT, kind, "{case}");
                            f.client.clunk(3).unwrap();
                        } else {
                            is_stale(&mut f, 1, &case);
                        }
                        assert_eq!(f.client.stat(2).map(drop), Err(Errno::ESTALE), "{case}");
                        f.client.clunk(2).unwrap();
                        assert!(path.symlink_metadata().is_ok(), "{case}");
                        f.client
                            .unlinkat(
                                0,
                                "victim",
                                if kind == libc::S_IFDIR {
                                    P9_DOTL_AT_REMOVEDIR
                                } else {
                                    0
                                },
                            )
                            .unwrap();
                    }
                }
            }
            println!("{what}, {handles:?}: the number was used again {again} times");
            if what.contains("ext4") {
                assert!(again > 0, "{what}");
            }
        }
    });
}

/// Special files have fids, and none of what a fid can do opens them.
#[test]
fn special_files_are_never_opened() {
    on_each_file_system(|dir, what| {
        let Some(mut f) = fixture(dir, FileHandles::Verify) else {
            return;
        };
        for at in 0..FILLERS {
            fs::write(dir.join(format!("filler{at}")), "").unwrap();
        }
        for kind in [libc::S_IFIFO, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFSOCK] {
            let path = dir.join("special");
            make(&path, kind);
            f.client.walk_all(0, 1, &["special"]).unwrap();
            for _ in 0..2 {
                for flags in [O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC | O_APPEND] {
                    f.client.clone_fid(1, 2).unwrap();
                    assert_eq!(
                        f.client.lopen(2, flags).map(drop),
                        Err(Errno::ENXIO),
                        "{what} {kind:o}"
                    );
                    f.client.clunk(2).unwrap();
                    f.client.clone_fid(0, 2).unwrap();
                    let created = f.client.lcreate(2, "special", flags, 0o600, gid()).map(drop);
                    assert_eq!(created, Err(Errno::ENXIO), "{what} {kind:o}");
                    f.client.clunk(2).unwrap();
                }
                assert!(f.client.truncate(1, 0).is_err());
                evict_all(&mut f, FILLERS);
            }
            if kind == libc::S_IFIFO {
                // Nobody has it open: a writer that does not wait is refused.
                let writer = fs::File::options()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path);
                assert_eq!(writer.unwrap_err().raw_os_error(), Some(libc::ENXIO));
            }
            f.client.remove(1).unwrap();
        }
    });
}
