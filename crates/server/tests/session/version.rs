//! Tversion, and what comes before it.

use std::sync::Arc;

use server::Session;
use testkit::client::{Client, Errno};

use crate::common::*;

#[test]
fn only_the_linux_dialect_is_spoken() {
    let mut f = Fixture::new();
    for other in [
        &b"9P2000"[..],
        b"9P2000.u",
        b"9P2000.L.x",
        b"",
        b"unknown",
        &[0xff; 3000],
    ] {
        let answer = f.client.version_of(8192, other).unwrap();
        assert_eq!(answer, (8192, b"unknown".to_vec()));
        // The session is over all the same.
        assert_eq!(f.client.stat(0), Err(Errno::EPROTO));
        f.client.version(8192).unwrap();
        assert_eq!(f.client.stat(0), Err(Errno::ENOENT));
        f.client.attach(0, 0).unwrap();
    }
}

#[test]
fn msize_has_bounds() {
    let mut f = Fixture::new();
    assert_eq!(f.client.version(4095), Err(Errno::EMSGSIZE));
    assert_eq!(f.client.version(0), Err(Errno::EMSGSIZE));
    assert_eq!(f.client.attach(0, 0), Err(Errno::EPROTO));
    assert_eq!(f.client.version(4096), Ok(4096));
    assert_eq!(f.client.version(512_000), Ok(512_000));
    assert_eq!(f.client.version(u32::MAX), Ok(4 << 20));
}

#[test]
fn nothing_is_answered_before_it() {
    let f = Fixture::new();
    let session = Arc::new(Session::new(f.share.clone(), server::Limits::default()));
    let mut client = Client::new(Backend::new(session));
    assert_eq!(client.attach(0, 0), Err(Errno::EPROTO));
    assert_eq!(client.clunk(0), Err(Errno::EPROTO));
    client.version(8192).unwrap();
    client.attach(0, 0).unwrap();
}

#[test]
fn it_drops_everything() {
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    f.client.clone_fid(0, 2).unwrap();
    f.client.xattrcreate(2, "user.test", 3, 0).unwrap();
    f.client.write(2, 0, b"abc").unwrap();
    f.client.version(8192).unwrap();
    assert_eq!(f.session.usage(), server::Usage::default());
    // A value that was not clunked is not set.
    f.client.attach(0, 0).unwrap();
    assert_eq!(f.client.xattrwalk(0, 1, "user.test"), Err(Errno::ENODATA));
}

#[test]
fn what_is_not_spoken_is_not_supported() {
    let mut f = Fixture::new();
    let lerror = |errno: i32, tag: u16| {
        let mut frame = vec![11, 0, 0, 0, 7];
        frame.extend_from_slice(&tag.to_le_bytes());
        frame.extend_from_slice(&errno.to_le_bytes());
        frame
    };
    // Tauth, Topen, Tcreate, Tstat, Twstat, R-messages, nonsense.
    for kind in [102, 112, 114, 124, 126, 7, 13, 107, 0, 255] {
        let answer = f.client.raw(&[7, 0, 0, 0, kind, 3, 1], 100);
        assert_eq!(answer, lerror(libc::EOPNOTSUPP, 0x103));
    }
}
