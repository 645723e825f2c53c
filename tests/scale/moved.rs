//! What the host moves out of the shared directory while the guest holds it, with the program in its sandbox.

use std::fs;

use testkit::Errno;

use crate::program::Program;

fn walks_into_what_was_moved_out(more: &[&str]) -> Result<(), Errno> {
    let program = Program::start(more);
    let (inside, outside) = (
        program.share().join("dir"),
        program.share().with_file_name("outside"),
    );
    fs::create_dir_all(inside.join("below")).expect("mkdir");
    fs::write(inside.join("below/file"), "data").expect("write");
    let mut machine = program.boot(4096);
    let client = &mut machine.client;
    client.walk_all(0, 1, &["dir"]).expect("walk");
    client.walk_all(1, 2, &["below"]).expect("walk");
    fs::rename(&inside, &outside).expect("rename");
    let made = [1, 2].map(|fid| client.mkdir(fid, "new", 0o755, 0));
    let walked = client.walk_all(2, 3, &["file"]).map(drop);
    assert_eq!(made[0].is_ok(), outside.join("new").exists());
    assert_eq!(made[1].is_ok(), outside.join("below/new").exists());
    assert!(
        made.iter().all(|made| made.is_ok() == walked.is_ok()),
        "{made:?} {walked:?}"
    );
    // From the root it is not there in any case, nor is what is above it.
    assert_eq!(client.walk_all(0, 4, &["dir"]).map(drop), Err(Errno::ENOENT));
    assert!(client.walk_all(2, 4, &["..", ".."]).is_err());
    fs::rename(&outside, &inside).expect("rename");
    client.walk_all(2, 5, &["file"]).expect("it is back");
    walked
}

#[test]
fn in_the_namespace_sandbox_what_is_moved_out_is_not_reached() {
    if !nix::unistd::geteuid().is_root() {
        println!("left out: only root is sure to get namespaces");
        return;
    }
    let walked = walks_into_what_was_moved_out(&["--sandbox", "namespace"]);
    assert_eq!(walked, Err(Errno::ESTALE));
}

/// As docs/limits.md has it: nobody tells.
#[test]
fn without_a_sandbox_it_is_reached_by_the_fids_that_the_guest_holds() {
    assert_eq!(walks_into_what_was_moved_out(&["--sandbox", "none"]), Ok(()));
}
