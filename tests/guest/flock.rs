//! flock(2) as scripts use it, between guests and with the host.

use std::fs;
use std::process::Command;

use crate::backend::{Backend, Setup};
use crate::vm::{self, Running, Vm, wait_until};

#[test]
fn what_a_script_has_locked_stays_locked_for_others() {
    let one = Setup {
        tag: "one",
        ..Setup::ROOT
    }
    .start();
    let share = one.share().to_owned();
    fs::write(share.join("file"), "data").unwrap();
    let readonly = Setup {
        tag: "readonly",
        options: &["--readonly"],
        ..Setup::ROOT
    };
    let two = Setup {
        tag: "two",
        ..Setup::ROOT
    };
    let others = [two.start_on(&share), readonly.start_on(&share)];
    let stress = vm::compile("stress");
    let boot = |backends: &[Backend]| Vm::with(backends).no_mount().add(&stress.path).start("flock.sh");
    let first = std::slice::from_ref(&one);
    let (guest_one, guest_two) = (boot(first), boot(&others));
    let mut excluded = Vec::new();
    for step in ["read", "write", "unlock"] {
        let held = share.join(format!("{step}-held"));
        wait_until(vm::TIMEOUT, || {
            held.exists() || guest_one.has_failed() || guest_two.has_failed()
        });
        let status = Command::new("flock")
            .args(["-n", "-x"])
            .arg(share.join("file"))
            .arg("true")
            .status();
        excluded.push(status.unwrap().code());
        fs::write(share.join(format!("{step}-host")), "").unwrap();
    }
    Running::expect_success_of([guest_one, guest_two]);
    assert_eq!(excluded, [Some(1); 3], "flock(1) on the host");
    one.stop();
    others.into_iter().for_each(Backend::stop);
}
