//! Two guests, each with a QEMU and a backend of its own, on one directory.

use std::fs;
use std::process::{Child, Command};

use crate::backend::{Backend, Setup};
use crate::vm::{self, Running, Vm, wait_until};

/// What locks and appends promise holds between guests and processes of the host.
#[test]
fn two_guests_and_the_host_share_a_directory() {
    let one = Setup {
        tag: "one",
        ..Setup::ROOT
    }
    .start();
    let two = Setup {
        tag: "two",
        ..Setup::ROOT
    }
    .start_on(one.share());
    let stress = vm::compile("stress");
    let boot = |backend: &Backend| {
        Vm::on(backend)
            .no_mount()
            .programs()
            .add(&stress.path)
            .start("two.sh")
    };
    let share = one.share();
    let (guest_one, guest_two) = (boot(&one), boot(&two));
    let ended = || guest_one.is_finished() || guest_two.is_finished();

    // The host waits until both are there, and joins in.
    let join = |place: &str, args: &[&str]| {
        let there = |guest: &str| share.join(format!("{place}-{guest}")).exists();
        wait_until(vm::TIMEOUT, || (there("one") && there("two")) || ended());
        if ended() {
            return false;
        }
        let mut child = Command::new(&stress.path)
            .args(args)
            .current_dir(share)
            .spawn()
            .unwrap();
        // It may wait for the turns of a guest that has failed.
        let done = |child: &mut Child| child.try_wait().unwrap();
        wait_until(vm::TIMEOUT, || {
            done(&mut child).is_some() || guest_one.has_failed() || guest_two.has_failed()
        });
        let _ = child.kill();
        child.wait().unwrap().success()
    };
    let counted = join(
        "locks",
        &["count", "counted-by-fcntl", "host", "fcntl", "60", "one,two,host"],
    );
    let appended = join("writes", &["append", "appended", "host", "300"]);

    let outputs = Running::expect_success_of([guest_one, guest_two]);
    assert!(counted && appended, "the host did not do its part");

    let verified = |args: &[&str]| {
        let output = Command::new(&stress.path).args(args).current_dir(share).output();
        let output = output.unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    verified(&["appended", "appended", "300", "one,two,host"]);
    verified(&["verify", "written", "2", "owned"]);

    // The sum of the odd numbers below 120, once for each guest.
    let should = [
        "rows: integrity ok",
        "rows: journal delete",
        "rows: one 124 124 0 123",
        "rows: two 124 124 0 123",
        "rows: total 7200",
    ];
    for output in &outputs {
        let rows: Vec<_> = output
            .text
            .lines()
            .filter(|line| line.starts_with("rows: "))
            .collect();
        assert_eq!(rows, should, "{}", output.text);
    }
    let journals = fs::read_dir(share).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with("-journal")
    });
    assert_eq!(journals.count(), 0, "a transaction was left open");
    one.stop();
    two.stop();
}
