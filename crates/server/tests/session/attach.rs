//! Tattach.

use testkit::client::Errno;

use crate::common::*;

#[test]
fn it_gives_the_root() {
    each(|mut f| {
        let qid = f.client.attach(1, 1000).unwrap();
        assert_eq!(qid.kind, 0x80);
        assert_eq!(qid, f.client.stat(0).unwrap().qid);
        // One tree, whatever the client calls it.
        assert_eq!(f.client.attach_at(2, "/some/where", 0).unwrap(), qid);
    });
}

#[test]
fn a_fid_in_use_is_refused() {
    let mut f = Fixture::new();
    assert_eq!(f.client.attach(0, 0), Err(Errno::EINVAL));
}
