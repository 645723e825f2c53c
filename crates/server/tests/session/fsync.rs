//! Tfsync.

use server::{How, Outcome};
use testkit::client::Errno;

use crate::common::*;

#[test]
fn it_is_for_a_thread_that_may_wait() {
    each(|mut f| {
        f.create(1, "file", O_RDWR);
        f.client.fsync(1, 0).unwrap();
        assert_eq!(f.client.transport().outcomes, [Outcome::Defer, Outcome::Done(7)]);
        f.client.transport().how = How::Blocking;
        f.client.fsync(1, 1).unwrap();
        assert_eq!(f.client.transport().outcomes, [Outcome::Done(7)]);
    });
}

#[test]
fn only_open_fids_are_synced() {
    let mut f = Fixture::new();
    assert_eq!(f.client.fsync(0, 0), Err(Errno::EBADF));
    assert_eq!(f.client.fsync(9, 0), Err(Errno::ENOENT));
    f.client.clone_fid(0, 1).unwrap();
    f.client.lopen(1, O_RDONLY).unwrap();
    f.client.fsync(1, 0).unwrap();
    // The protocol's text does not have the datasync field.
    assert_eq!(
        f.client.raw(&[11, 0, 0, 0, 50, 1, 0, 1, 0, 0, 0], 4096),
        [7, 0, 0, 0, 51, 1, 0]
    );
}
