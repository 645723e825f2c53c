//! The program on an idmapped mount that has no id for the user it runs as, in each sandbox.

#[path = "../crates/host/tests/idmapped/mount.rs"]
mod mount;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount as mount_fs};
use tempfile::TempDir;
use testkit::{Errno, MachineOptions, Program, Vmm};
use wire::P9_DOTL_RDWR;

/// What 0 on the disk shows as on the mount, which has 2000 ids from there on.
const FIRST: u32 = 100_000;
const USER: u32 = FIRST + 1000;

/// Gives this thread a mount namespace of its own.
fn own_mounts() -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::unshare(libc::CLONE_NEWNS) == 0 }
}

/// A directory of the disk's user 1000 on such a mount, of this thread's own mount namespace.
fn place() -> Option<TempDir> {
    if !nix::unistd::geteuid().is_root() || !own_mounts() {
        eprintln!("NOT TESTED: this takes root");
        return None;
    }
    let none: Option<&str> = None;
    mount_fs(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let share = base.path().join("share");
    fs::create_dir(&share).unwrap();
    chown(&share, Some(1000), Some(1000)).unwrap();
    mount::bind_idmapped(&share, &share, 0, FIRST, 2000).then_some(base)
}

/// Makes, names and removes as `user` of the guest; the owner on the mount of what it has made.
fn work(program: &Program, user: u32) -> Result<(u32, u32), Errno> {
    let mut machine = program.boot(&MachineOptions::new(Vmm::Qemu));
    let client = &mut machine.client;
    client.attach(10, user)?;
    client.clone_fid(10, 1)?;
    client.lcreate(1, "file", P9_DOTL_RDWR, 0o600, user)?;
    client.write(1, 0, b"content")?;
    client.mkdir(10, "dir", 0o700, user)?;
    client.symlink(10, "symlink", "target", user)?;
    client.mknod(10, "fifo", libc::S_IFIFO | 0o600, (0, 0), user)?;
    client.link(10, 1, "link")?;
    client.renameat(10, "link", 10, "renamed")?;
    let made = fs::symlink_metadata(program.share().join("file")).unwrap();
    for name in ["file", "renamed", "symlink", "fifo"] {
        client.unlinkat(10, name, 0)?;
    }
    client.unlinkat(10, "dir", 0x200)?;
    Ok((made.uid(), made.gid()))
}

#[test]
fn files_are_made_for_whom_the_mount_has_an_id_in_every_sandbox() {
    for sandbox in ["namespace", "chroot", "landlock", "none"] {
        for (options, owner) in [
            (&["--security-model", "passthrough"][..], (USER, USER)),
            (&["--security-model", "squash"], (USER, USER)),
            (&["--security-model", "mapped-xattr"], (USER, USER)),
            (&["--security-model", "mapped-file"], (USER, USER)),
            (&["--check-access", "host"], (USER, USER)),
        ] {
            let Some(base) = place() else { return };
            let options = [&["--sandbox", sandbox], options].concat();
            let program = Program::start(Command::new(env!("CARGO_BIN_EXE_vhost-user-9p")), base, &options);
            let made = work(&program, USER);
            assert_eq!(made, Ok(owner), "{options:?} {}", program.log());
            // Nobody there: an error, unless owners are notes or forgiven.
            let other = work(&program, 5);
            match options.contains(&"passthrough") || options.contains(&"host") {
                true => {
                    assert_eq!(other, Err(Errno::EOVERFLOW), "{options:?}");
                    // The log has a thread of its own.
                    let end = Instant::now() + Duration::from_secs(60);
                    while !program.log().contains("the mount has no id for") {
                        assert!(Instant::now() < end, "{}", program.log());
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
                false => assert!(other.is_ok(), "{options:?} {other:?} {}", program.log()),
            }
        }
    }
}

#[test]
fn an_ordinary_user_works_as_itself_or_is_told_at_start() {
    for sandbox in ["namespace", "landlock", "none"] {
        for model in ["squash", "mapped-xattr", "mapped-file"] {
            for (user, works) in [(USER, true), (5, false)] {
                let Some(base) = place() else { return };
                let copy = base.path().join("program");
                testkit::program::copy(env!("CARGO_BIN_EXE_vhost-user-9p").as_ref(), &copy);
                // For the socket.
                chown(base.path(), Some(user), Some(user)).unwrap();
                let id = user.to_string();
                let mut command = Command::new("setpriv");
                command.args([
                    "--reuid",
                    &id,
                    "--regid",
                    &id,
                    "--clear-groups",
                    "--bounding-set=-all",
                    "--",
                ]);
                command.arg(copy);
                let program =
                    Program::start(command, base, &["--sandbox", sandbox, "--security-model", model]);
                let made = work(&program, USER);
                let told = program
                    .log()
                    .contains("has no id for 5:5, as which this process works");
                assert_eq!(
                    (made.is_ok(), told),
                    (works, !works),
                    "{sandbox} {model} {made:?} {}",
                    program.log()
                );
            }
        }
    }
}
