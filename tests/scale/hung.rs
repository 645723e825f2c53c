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
    let program = Program::start_with_mounts(&[]);
    let Some((mut machine, fuse)) = hung(&program) else {
        return;
    };
    let token = look(&mut machine, 40_000);
    let unique = fuse
        .hanging
        .recv_timeout(PATIENCE)
        .expect("the look-up is under way");
    scenario::end_to_end(&mut machine.client, &program.share());
    let log = program.log();
    let (_, said) = log
        .split_once("the share has a network, cluster or FUSE")
        .expect("it says so");
    let said = said.lines().next().unwrap_or_default();
    assert!(
        said.contains("--may-hang never is for") && !said.contains("  "),
        "{said}"
    );
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
    let program = Program::start_with_mounts(&["--io-threads", "2"]);
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
fn a_lock_that_hangs_holds_up_those_of_its_file_only() {
    let program = Program::start_with_mounts(&["--io-threads", "1"]);
    let Some((mut machine, fuse)) = hung(&program) else {
        return;
    };
    fs::write(program.share().join("local"), "content").expect("write");
    let client = &mut machine.client;
    client.walk_all(1, 2, &["file"]).expect("walk");
    client.lopen(2, P9_DOTL_RDWR).expect("open");
    client.walk_all(0, 3, &["local"]).expect("walk");
    client.lopen(3, P9_DOTL_RDWR).expect("open");
    let lock = |fid, kind| Tlock {
        fid,
        kind,
        flags: 0,
        start: 0,
        length: 0,
        proc_id: 1,
        client_id: b"guest",
    };
    fuse.script().hang_locks = true;
    let message = frame(lock(2, P9_LOCK_TYPE_WRLCK), 40_000);
    let token = client.transport().send(&message, &[], 4096);
    let unique = fuse
        .hanging
        .recv_timeout(PATIENCE)
        .expect("the lock is under way");
    for kind in [P9_LOCK_TYPE_WRLCK, P9_LOCK_TYPE_UNLCK, P9_LOCK_TYPE_RDLCK] {
        assert_eq!(client.lock(&lock(3, kind)), Ok(P9_LOCK_SUCCESS));
    }
    let ask = Tgetlock {
        fid: 3,
        kind: P9_LOCK_TYPE_WRLCK,
        start: 0,
        length: 0,
        proc_id: 2,
        client_id: b"guest",
    };
    assert_eq!(client.getlock(&ask).expect("getlock").kind, P9_LOCK_TYPE_UNLCK);
    client.clunk(3).expect("clunk");
    assert!(client.transport().try_reply(token).is_none());
    fuse.fail(unique, libc::ENOLCK);
    let answered = client.transport().wait(token);
    let Rmessage::Lerror(error) = answer(&answered, 40_000) else {
        panic!("{answered:?}");
    };
    assert_eq!(error.ecode, libc::ENOLCK as u32);
    fuse.script().hang_locks = false;
    assert_eq!(client.lock(&lock(2, P9_LOCK_TYPE_WRLCK)), Ok(P9_LOCK_SUCCESS));
    client.clunk(2).expect("clunk");
}

#[test]
fn everything_works_where_every_call_may_hang() {
    let program = Program::start(&["--may-hang", "always"]);
    let mut machine = program.boot(512 << 10);
    scenario::end_to_end(&mut machine.client, &program.share());
}
