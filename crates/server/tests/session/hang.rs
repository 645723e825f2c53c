//! Shares whose system calls may hang.

use std::sync::Arc;

use host::{MayHang, SecurityModel, Share, ShareOptions};
use server::{How, Limits};
use testkit::Errno;
use wire::*;

use crate::common::Fixture;

fn fixture(may_hang: MayHang) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let mut options = ShareOptions::new(dir.path(), SecurityModel::Passthrough);
    options.may_hang = may_hang;
    let share = Arc::new(Share::open(&options).unwrap());
    Fixture::on(dir, share, Limits::default())
}

#[test]
fn what_may_hang_is_left_to_threads_that_may_wait() {
    let mut f = fixture(MayHang::Always);
    f.client
        .mkdir(0, "made", 0o755, 0)
        .expect("done once, though called twice");
    assert!(f.deferred());
    assert_eq!(f.client.mkdir(0, "made", 0o755, 0), Err(Errno::EEXIST));
    f.client.clone_fid(0, 1).expect("clone");
    assert!(f.deferred());
    f.client.stat(1).expect("getattr");
    assert!(f.deferred());
    f.client.flush(7).expect("flush");
    assert!(!f.deferred(), "a flush must not queue behind what it flushes");
    f.client.clunk(1).expect("clunk");
    assert!(!f.deferred(), "nothing is closed that was written to");
    f.client.clone_fid(0, 1).expect("clone");
    f.client
        .lcreate(1, "file", P9_DOTL_RDWR, 0o600, 0)
        .expect("create");
    f.client.clunk(1).expect("clunk");
    assert!(f.deferred(), "closing may write");
    // When the queue stops there is no other thread.
    f.client.transport().how = How::Last;
    f.client.stat(0).expect("getattr");
    f.client.transport().how = How::Inline;
    f.client.version(8192).expect("version");
    assert!(!f.deferred());
}

#[test]
fn what_does_not_hang_is_answered_at_once() {
    for may_hang in [MayHang::Auto, MayHang::Never] {
        let mut f = fixture(may_hang);
        f.client.stat(0).expect("getattr");
        assert!(!f.deferred(), "{may_hang:?}: a temporary directory is local");
    }
}
