//! When the host gives no more descriptors, and no longer files. A test binary of its own, because the limits are the
//! process's.

#[allow(dead_code)]
#[path = "session/common.rs"]
mod common;
#[allow(dead_code)]
#[path = "session/neighbours.rs"]
mod neighbours;

use common::*;
use neighbours::{Sent, call, one_by_one, together};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use testkit::client::Errno;

/// One test at a time.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn running_out_of_descriptors_is_no_error() {
    let _turn = TURN.lock();
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

#[test]
fn a_file_that_may_not_be_longer() {
    let _turn = TURN.lock();
    const MOST: u32 = 200_000;
    // As the program does: without, the kernel would end this process.
    SigSet::from(Signal::SIGXFSZ).thread_block().unwrap();
    let mut f = Fixture::new();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, MOST.into(), hard).unwrap();
    f.create(1, "file", O_RDWR);
    assert_eq!(f.client.write(1, 0, &[7; 300_000]), Err(Errno::EFBIG));
    assert_eq!(f.host("file").len(), MOST.into());
    assert_eq!(f.client.write(1, MOST.into(), b"more"), Err(Errno::EFBIG));
    assert_eq!(f.client.write(1, u64::from(MOST) - 2, b"more"), Err(Errno::EFBIG));
    assert_eq!(f.client.truncate(1, u64::from(MOST) + 1), Err(Errno::EFBIG));
    f.create(2, "log", O_WRONLY | O_APPEND);
    assert_eq!(f.client.write(2, 0, &[7; 300_000]), Err(Errno::EFBIG));
    assert_eq!(f.host("log").len(), MOST.into());
    assert_eq!(f.client.write(2, 0, b"more"), Err(Errno::EFBIG));
    assert_eq!(f.client.write(1, 0, b"still"), Ok(5));
    // A run of neighbours that comes to the limit half way: those before it are written, the others have the errno.
    let writes: Vec<Sent> = (0..8)
        .map(|at| {
            Sent::write(
                at,
                1,
                u64::from(MOST) - 4500 + u64::from(at) * 1000,
                1000,
                vec![8; 1000],
            )
        })
        .collect();
    assert_eq!(call(&f, &writes).len(), 4);
    let (replies, in_runs) = together(&mut f, &writes);
    assert_eq!(in_runs, 4);
    assert_eq!(replies, one_by_one(&mut f, &writes));
    let efbig = |reply: &Vec<u8>| reply[4] == wire::RLERROR && reply[7..11] == libc::EFBIG.to_le_bytes();
    assert_eq!(
        replies.iter().map(efbig).collect::<Vec<_>>(),
        [false, false, false, false, true, true, true, true]
    );
    assert_eq!(f.host("file").len(), MOST.into());
    assert!(call(&f, &writes[5..]).is_empty(), "all of it is beyond");
}
