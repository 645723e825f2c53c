//! A file system that does not answer: a FUSE mount whose process, this test, keeps look-ups waiting.

use std::fs;

use testkit::vhost_user::PATIENCE;
use testkit::{Fuse, Machine, scenario};
use wire::*;

use crate::program::{Program, answer, frame};

/// Requests that hang at a time: more than there are threads for what may block.
const HUNG: u16 = 12;

/// A program whose share has such a file system in it; `None` where none can be mounted.
fn hung(program: &Program) -> Option<(Machine, Fuse)> {
    let target = program.share().join("hung");
    fs::create_dir(&target).expect("mkdir");
    let Some(fuse) = Fuse::mount(&target) else {
        println!("left out: no FUSE file system can be mounted here");
        return None;
    };
    let mut machine = program.boot(512 << 10);
    machine.client.walk_all(0, 1, &["hung"]).expect("walk");
    Some((machine, fuse))
}

/// Looks up a name that hangs.
fn look(machine: &mut Machine, tag: u16) -> u16 {
    let name = format!("hang{tag}");
    let names: [&[u8]; 1] = [name.as_bytes()];
    let look = Twalk {
        fid: 1,
        newfid: u32::from(tag),
        names: Names::new(&names),
    };
    machine.client.transport().send(&frame(look, tag), &[], 4096)
}

#[test]
fn a_file_system_that_hangs_holds_up_its_own_requests_only() {
    let program = Program::start(&[]);
    let Some((mut machine, fuse)) = hung(&program) else {
        return;
    };
    let token = look(&mut machine, 40_000);
    let unique = fuse
        .hanging
        .recv_timeout(PATIENCE)
        .expect("the look-up is under way");
    scenario::end_to_end(&mut machine.client, &program.share());
    assert!(machine.client.transport().try_reply(token).is_none());
    fuse.fail(unique, libc::EIO);
    let answered = machine.client.transport().wait(token);
    let Rmessage::Lerror(error) = answer(&answered, 40_000) else {
        panic!("{answered:?}");
    };
    assert_eq!(error.ecode, libc::EIO as u32);
}

#[test]
fn more_of_them_than_there_are_threads_do_so_too() {
    let program = Program::start(&["--io-threads", "2"]);
    let Some((mut machine, fuse)) = hung(&program) else {
        return;
    };
    let tokens: Vec<u16> = (0..HUNG).map(|at| look(&mut machine, 40_000 + at)).collect();
    // Every request on this share is for threads that may block: these get some, and fsyncs and reads theirs.
    scenario::end_to_end(&mut machine.client, &program.share());
    let transport = machine.client.transport();
    for &token in &tokens {
        assert!(transport.try_reply(token).is_none());
    }
    drop(fuse);
    for (at, token) in (0u16..).zip(tokens) {
        let answered = machine.client.transport().wait(token);
        assert!(matches!(answer(&answered, 40_000 + at), Rmessage::Lerror(_)));
    }
    scenario::end_to_end(&mut machine.client, &program.share());
}

#[test]
fn everything_works_where_every_call_may_hang() {
    let program = Program::start(&["--may-hang", "always"]);
    let mut machine = program.boot(512 << 10);
    scenario::end_to_end(&mut machine.client, &program.share());
}
