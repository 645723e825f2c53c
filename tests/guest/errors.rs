//! Errors of the host's file system, as programs in the guest meet them.

use std::fs;

use tempfile::TempDir;
use testkit::Fuse;

use crate::backend::{Backend, Setup};
use crate::vm::Vm;

/// A file system of this process that fails, and its backend.
struct Broken {
    fuse: (Fuse, TempDir),
    backend: Backend,
}

impl Broken {
    fn start(tag: &str) -> Option<Broken> {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("mount");
        fs::create_dir(&target).unwrap();
        let fuse = Fuse::mount(&target)?;
        {
            let mut script = fuse.script();
            match tag {
                "quota" => script.write = libc::EDQUOT,
                "disk" => {
                    script.data = b"there are bytes, but they cannot be read".to_vec();
                    (script.read, script.write) = (libc::EIO, libc::EIO);
                }
                _ => script.fsync = libc::EIO,
            }
        }
        let backend = Setup { tag, ..Setup::ROOT }.start_on(&target);
        Some(Broken {
            fuse: (fuse, dir),
            backend,
        })
    }
}

#[test]
fn errors_of_the_host_reach_the_guest() {
    errors("backports");
}

#[test]
fn errors_of_the_host_reach_an_older_guest() {
    errors("stable");
}

fn errors(kernel: &str) {
    let backends = [
        // A mount that nobody else sees and that ends with the program.
        Setup {
            tag: "small",
            through: &[
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                "mount -t tmpfs -o size=1m none \"$SHARE\" && exec \"$@\"",
                "sh",
            ],
            ..Setup::ROOT
        }
        .start(),
        Setup {
            tag: "short",
            through: &["prlimit", "--fsize=262144"],
            ..Setup::ROOT
        }
        .start(),
    ];
    // What no test machine has to offer: a quota that is used up and a disk that fails.
    let broken: Vec<_> = ["quota", "disk", "lost"]
        .into_iter()
        .filter_map(Broken::start)
        .collect();
    if broken.is_empty() {
        println!("left out: EDQUOT and EIO; this machine has no FUSE");
    }
    let (fuses, more): (Vec<_>, Vec<_>) = broken.into_iter().map(|b| (b.fuse, b.backend)).unzip();
    let backends: Vec<_> = backends.into_iter().chain(more).collect();

    Vm::with(&backends)
        .kernel(kernel)
        .no_mount()
        .run("errors.sh")
        .expect_success();
    // SIGXFSZ, which the kernel sends with EFBIG, has not ended it.
    backends.into_iter().for_each(Backend::stop);
    drop(fuses);
}
