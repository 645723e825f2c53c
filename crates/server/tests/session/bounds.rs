//! What a client makes grow is counted in bytes, and what is much is freed without anybody's waiting.

use std::time::{Duration, Instant};

use server::Limits;
use testkit::client::Errno;

use crate::common::*;

/// Long names are as many bytes as they are, however few fids there may be.
#[test]
fn names_count_what_they_take() {
    const MOST: usize = 2 << 20;
    let limits = Limits {
        max_state_bytes: MOST,
        ..Limits::default()
    };
    let mut f = Fixture::with(host::SecurityModel::Passthrough, limits);
    let dir = "d".repeat(255);
    std::fs::create_dir(f.path(&dir)).unwrap();
    let name = |number: u32| format!("{number:0>255}");
    let files = 6_000;
    for number in 0..files {
        f.write(&format!("{dir}/{}", name(number)), "");
    }
    let walk_all = |f: &mut Fixture| {
        let refused = (1..=files).find_map(|fid| {
            let names = [dir.as_str(), &name(fid - 1)];
            f.client.walk_all(0, fid, &names).err().map(|errno| (fid, errno))
        });
        let usage = f.session.usage();
        // One page of each kind of record more at most.
        assert!(usage.bytes < MOST + (1 << 19), "{usage:?}");
        refused
    };
    f.client.clone_fid(0, files + 1).unwrap();
    let (fids, errno) = walk_all(&mut f).unwrap();
    assert_eq!(errno, Errno::ENFILE);
    // No more than a few hundred bytes each beside the name.
    assert!((2000..5500).contains(&fids), "{fids}");
    // A walk that goes on with its own fid takes memory as well.
    assert_eq!(
        f.client.walk_all(files + 1, files + 1, &[&dir, &name(files - 1)]),
        Err(Errno::ENFILE)
    );
    // What was given back can be had again.
    for fid in 1..fids {
        f.client.clunk(fid).unwrap();
    }
    let (again, errno) = walk_all(&mut f).unwrap();
    assert_eq!((again, errno), (fids, Errno::ENFILE));
    f.client.version(8192).unwrap();
    f.client.attach(0, 0).unwrap();
    assert!(f.session.usage().bytes < 1 << 20);
}

/// What a Tversion leaves is freed while the new session is at work.
#[test]
fn a_large_session_ends_at_once() {
    let mut f = Fixture::new();
    f.write("file", "data");
    for round in 0..3 {
        for fid in 1..30_000 {
            f.client.clone_fid(0, fid).unwrap();
        }
        for fid in 1..200 {
            f.client.walk_all(0, 30_000 + fid, &["file"]).unwrap();
            f.client.lopen(30_000 + fid, O_RDWR).unwrap();
        }
        f.client.version(8192).unwrap();
        assert_eq!(f.session.usage().fids, 0);
        f.client.attach(0, 0).unwrap();
        f.open(1, "file", O_RDWR);
        assert_eq!(f.client.read(1, 0, 4).unwrap(), b"data", "{round}");
        f.client.clunk(1).unwrap();
    }
    let begun = Instant::now();
    let dir = f.dir.path().to_owned();
    let open = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let paths = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        paths.filter(|path| path.starts_with(&dir)).count()
    };
    while open() > 8 {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "they are closed sometime"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What is counted is given back to the byte, whichever way an xattr ends.
#[test]
fn xattrs_leave_nothing_behind() {
    let mut f = Fixture::new();
    f.write("file", "");
    f.client.walk_all(0, 1, &["file"]).unwrap();
    let cycle = |f: &mut Fixture| {
        f.client.setxattr(1, 2, "user.name", b"value", 0).unwrap();
        assert_eq!(f.client.getxattr(1, 2, "user.name").unwrap(), b"value");
        f.client.clone_fid(1, 2).unwrap();
        f.client.xattrcreate(2, "user.unfinished", 100, 0).unwrap();
        assert_eq!(f.client.clunk(2), Err(Errno::EINVAL));
        f.session.usage()
    };
    let once = cycle(&mut f);
    (0..10).for_each(|_| assert_eq!(cycle(&mut f), once));
}

/// The memory of fids that were given back is for fids, but never all that the session may have.
#[test]
fn a_client_that_has_met_the_limit_still_reads_xattrs() {
    let limits = Limits {
        max_state_bytes: 2 << 20,
        ..Limits::default()
    };
    let mut f = Fixture::with(host::SecurityModel::Passthrough, limits);
    let files = 20_000;
    (1..files).for_each(|at| f.write(&at.to_string(), ""));
    f.client.setxattr(0, 1, "user.name", b"value", 0).unwrap();
    for _ in 0..2 {
        let walked = |fid: &u32| f.client.walk_all(0, *fid, &[fid.to_string()]).is_ok();
        let fids = (1..files).take_while(walked).count() as u32;
        assert!(fids < files - 1);
        (1..=fids).for_each(|fid| f.client.clunk(fid).unwrap());
        assert_eq!(f.client.getxattr(0, 1, "user.name").unwrap(), b"value");
    }
    // There are only so many of them, too.
    let values = (1..files).take_while(|&fid| f.client.xattrwalk(0, fid, "user.name").is_ok());
    assert!((100..2000).contains(&values.count()));
}
