//! When the host has no more descriptors to give. A test binary of its own, because the limit is the process's.

#[allow(dead_code)]
#[path = "session/common.rs"]
mod common;

use common::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn running_out_of_descriptors_is_no_error() {
    let mut f = Fixture::new();
    for at in 0..300 {
        f.write(&at.to_string(), "data");
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The budget says 768; the host says less.
    setrlimit(Resource::RLIMIT_NOFILE, descriptors() as u64 + 40, hard).unwrap();
    for fid in 0..300u32 {
        f.client.walk_all(0, 1 + fid, &[fid.to_string()]).unwrap();
    }
    for fid in (0..300u32).rev() {
        assert_eq!(f.client.stat(1 + fid).unwrap().size, 4);
        f.client.clone_fid(1 + fid, 1000).unwrap();
        f.client.lopen(1000, O_RDWR).unwrap();
        assert_eq!(f.client.read(1000, 0, 10).unwrap(), b"data");
        f.client.truncate(1 + fid, 3).unwrap();
        f.client.clunk(1000).unwrap();
        f.client.clone_fid(0, 1000).unwrap();
        f.client
            .lcreate(1000, format!("new{fid}"), O_RDWR | O_EXCL, 0o644, gid())
            .unwrap();
        f.client.clunk(1000).unwrap();
    }
}
