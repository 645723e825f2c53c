//! A guest plants programs, and a user of the host runs them. The program as it is built, in its sandbox, with a machine at
//! its socket.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use testkit::{Machine, MachineOptions, Program, Vmm};
use wire::{P9_DOTL_RDONLY, P9_DOTL_RDWR};

/// The user of the host.
const HELPER: u32 = 4321;

const NO_ID: u32 = u32::MAX;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A directory that everybody can reach, with a share that everybody can write to, and a program of root's in it.
fn place() -> TempDir {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    let share = base.path().join("share");
    fs::create_dir(&share).unwrap();
    for (path, mode) in [(base.path(), 0o755), (&*share, 0o1777)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    // As an administrator's script would be: root's, for everybody.
    testkit::program::copy(Path::new("/usr/bin/id"), &share.join("roots"));
    fs::set_permissions(share.join("roots"), Permissions::from_mode(0o755)).unwrap();
    base
}

fn start(options: &[&str]) -> (Program, Machine) {
    let command = Command::new(env!("CARGO_BIN_EXE_vhost-user-9p"));
    let program = Program::start(command, place(), options);
    let machine = program.boot(&MachineOptions::new(Vmm::Qemu));
    (program, machine)
}

/// What `program` says of the user and the group that it runs as, started by the helper.
fn runs_as(program: &Path) -> Option<(u32, u32)> {
    let ask = |which: &str| {
        let output = Command::new(program)
            .arg(which)
            .uid(HELPER)
            .gid(HELPER)
            .output()
            .ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    Some((ask("-u")?, ask("-g")?))
}

/// Everything that could make a program of root's, by every user that the guest may say it is. What fails, fails.
fn plant(machine: &mut Machine) -> Vec<String> {
    let program = fs::read("/usr/bin/id").unwrap();
    let c = &mut machine.client;
    let mut planted = vec!["roots".to_owned()];
    let callers = [0, 1000, NO_ID, 65534, NO_ID - 1];
    for (at, uid) in callers.into_iter().enumerate() {
        let root = 100 + at as u32 * 20;
        let [own, roots, xattr] = [root + 1, root + 2, root + 3];
        c.attach(root, uid).unwrap();
        for gid in [0, 1000, NO_ID] {
            let name = format!("planted-{uid}-{gid}");
            if c.clone_fid(root, own).is_ok() && c.lcreate(own, &name, P9_DOTL_RDWR, 0o6755, gid).is_ok() {
                for (chunk, bytes) in program.chunks(64 << 10).enumerate() {
                    let _ = c.write(own, chunk as u64 * (64 << 10), bytes);
                }
                let _ = c.chown(own, 0, 0);
                let _ = c.chmod(own, 0o106755);
                let _ = c.setxattr(own, xattr, "security.capability", &capability(), 0);
                planted.push(name);
            }
            let _ = c.clunk(own);
        }
        if c.walk_all(root, roots, &["roots"]).is_ok() {
            let _ = c.chmod(roots, 0o106755);
            let _ = c.setxattr(roots, xattr, "security.capability", &capability(), 0);
        }
        let _ = c.clunk(roots);
        c.clunk(root).unwrap();
    }
    planted
}

/// All capabilities permitted and effective, `VFS_CAP_REVISION_2`.
fn capability() -> [u8; 20] {
    let mut value = [0xff; 20];
    value[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
    value[12..].fill(0);
    value
}

/// A user who runs what was planted becomes nobody that the guest may not be, and has no capability. `nosuid` would hide it.
#[test]
fn no_planted_program_makes_root_of_a_user_of_the_host() {
    if !is_root() {
        return;
    }
    let squash_root = ["--squash-root", "6000:6000"];
    let maps = ["--uid-map", "0:100000:65536", "--gid-map", "0:100000:65536"];
    let host = ["--check-access", "host"];
    let configurations: [&[&str]; 8] = [
        &squash_root,
        &["--squash-all", "6000:6000"],
        &maps,
        &["--forbid-ids", "0"],
        &[&host[..], &squash_root].concat(),
        &[&host[..], &["--squash-all", "6000:6000"]].concat(),
        &["--security-model", "mapped-xattr", "--fmode", "0777"],
        &["--security-model", "mapped-file", "--fmode", "0777"],
    ];
    let (program, mut machine) = start(&["--security-model", "passthrough"]);
    let planted = plant(&mut machine);
    let roots = planted
        .iter()
        .filter(|name| runs_as(&program.share().join(name)) == Some((0, 0)));
    assert_ne!(roots.count(), 0, "nothing restricted: a test that can fail");
    for options in configurations {
        for model in ["passthrough", "squash"] {
            let options = match options.first() {
                Some(&"--security-model") => options.to_vec(),
                _ => [options, &["--security-model", model]].concat(),
            };
            let (program, mut machine) = start(&options);
            for name in plant(&mut machine) {
                let path = program.share().join(&name);
                let meta = fs::metadata(&path).unwrap();
                let what = format!(
                    "{options:?}: {name}: {}:{} {:o}",
                    meta.uid(),
                    meta.gid(),
                    meta.mode()
                );
                let bits = meta.mode() & 0o6000 != 0;
                assert!(!(bits && (meta.uid() == 0 || meta.gid() == 0)), "{what}");
                if let Some((uid, gid)) = runs_as(&path) {
                    assert!(uid != 0 && gid != 0, "{what}: runs as {uid}:{gid}");
                }
                let caps = Command::new("getcap").arg(&path).output();
                if let Ok(caps) = caps {
                    assert!(caps.stdout.is_empty(), "{what}: {caps:?}");
                }
            }
        }
    }
}

/// The user database is out of reach in the sandbox, and was read before.
#[test]
fn in_the_sandbox_a_user_of_the_guest_has_the_groups_of_the_hosts_user() {
    let Some((uid, gid)) = nix::unistd::User::from_name("daemon")
        .ok()
        .flatten()
        .map(|user| (user.uid.as_raw(), user.gid.as_raw()))
        .filter(|_| is_root())
    else {
        return;
    };
    let (program, mut machine) = start(&["--check-access", "host"]);
    let mut file = fs::File::create(program.share().join("of-the-group")).unwrap();
    file.write_all(b"content").unwrap();
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    chown(program.share().join("of-the-group"), Some(0), Some(gid)).unwrap();
    let c = &mut machine.client;
    for (user, opens) in [(uid, true), (61_000, false), (NO_ID, false), (0, true)] {
        c.attach(1, user).unwrap();
        c.walk_all(1, 2, &["of-the-group"]).unwrap();
        assert_eq!(c.lopen(2, P9_DOTL_RDONLY).is_ok(), opens, "{user}");
        c.clunk(2).unwrap();
        c.clunk(1).unwrap();
    }
    // What it makes belongs to its group.
    c.attach(1, uid).unwrap();
    c.lcreate(1, "new", P9_DOTL_RDWR, 0o644, gid).unwrap();
    let meta = fs::metadata(program.share().join("new")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (uid, gid));
}
