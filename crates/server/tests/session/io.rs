//! Tread and Twrite.

use server::{How, Outcome};
use testkit::client::Errno;

use crate::common::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn what_is_written_is_read() {
    each(|mut f| {
        f.create(1, "file", O_RDWR);
        let data = pattern(16 * 1024);
        assert_eq!(f.client.write(1, 0, &data).unwrap(), 16 * 1024);
        assert_eq!(f.client.read(1, 0, 16 * 1024).unwrap(), data);
        assert_eq!(f.client.read(1, 100, 10).unwrap(), data[100..110]);
        assert_eq!(
            f.client.read(1, 16 * 1024 - 5, 100).unwrap(),
            data[16 * 1024 - 5..]
        );
        assert_eq!(f.client.read(1, 16 * 1024, 100).unwrap(), b"");
        assert_eq!(f.client.read(1, 1 << 40, 100).unwrap(), b"");
        assert_eq!(f.client.read(1, 5, 0).unwrap(), b"");
        assert_eq!(f.client.write(1, 0, b"").unwrap(), 0);
        assert_eq!(std::fs::read(f.path("file")).unwrap(), data);
    });
}

#[test]
fn large_payloads_go_in_slices() {
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    let data = pattern(500_000);
    assert_eq!(f.client.write(1, 3, &data).unwrap(), 500_000);
    let more = |f: &mut Fixture| {
        let outcomes = &f.client.transport().outcomes;
        outcomes.iter().filter(|o| **o == Outcome::More).count()
    };
    assert_eq!(more(&mut f), 3);
    assert_eq!(f.client.read(1, 3, 500_000).unwrap(), data);
    assert_eq!(more(&mut f), 3);
    // A pool thread does it at once.
    f.client.transport().how = How::Blocking;
    assert_eq!(f.client.read(1, 3, 500_000).unwrap(), data);
    assert_eq!(more(&mut f), 0);
    assert_eq!(f.client.write(1, 3, &data).unwrap(), 500_000);
    assert_eq!(more(&mut f), 0);
}

#[test]
fn a_read_ends_where_the_file_does() {
    let mut f = Fixture::new();
    for len in [1, 4095, 4096, 4097, 128 * 1024, 128 * 1024 + 4096, 200_001] {
        let data = pattern(len);
        f.write("file", &data);
        for how in [How::Inline, How::Blocking] {
            f.client.transport().how = how;
            f.open(1, "file", O_RDONLY);
            assert_eq!(f.client.read(1, 0, 400_000).unwrap(), data, "{len} {how:?}");
            f.client.clunk(1).unwrap();
        }
    }
}

#[test]
fn what_is_not_in_the_page_cache_is_read_all_the_same() {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let mut f = Fixture::new();
    let data = pattern(400_000);
    f.write("file", &data);
    let host = std::fs::File::open(f.path("file")).unwrap();
    f.open(1, "file", O_RDONLY);
    for cached in [0usize, 10, 5000, 140_000] {
        host.sync_all().unwrap();
        posix_fadvise(&host, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        // Without read-ahead only these pages come back.
        posix_fadvise(&host, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
        let mut part = vec![0; cached];
        std::os::unix::fs::FileExt::read_exact_at(&host, &mut part, 0).unwrap();
        // Where the file system has a page cache that can be emptied, this is deferred at some point.
        assert_eq!(f.client.read(1, 0, 400_000).unwrap(), data, "{cached}");
        assert!(matches!(
            f.client.transport().outcomes.last(),
            Some(Outcome::Done(400_011))
        ));
    }
}

#[test]
fn counts_are_cut_to_the_reply() {
    let mut f = Fixture::new();
    f.write("file", pattern(100_000));
    f.open(1, "file", O_RDONLY);
    let read = |count: u32| {
        let mut frame = vec![23, 0, 0, 0, 116, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        frame.extend_from_slice(&count.to_le_bytes());
        frame
    };
    assert_eq!(f.client.raw(&read(u32::MAX), 1000).len(), 1000);
    assert_eq!(f.client.raw(&read(50_000), 11).len(), 11);
    assert!(f.client.raw(&read(50_000), 10).is_empty());
    // And to msize.
    f.client.version(4096).unwrap();
    f.client.attach(0, 0).unwrap();
    f.open(1, "file", O_RDONLY);
    assert_eq!(f.client.raw(&read(50_000), 60_000).len(), 4096);
}

#[test]
fn fids_in_the_wrong_state() {
    let mut f = Fixture::new();
    f.write("file", "data");
    f.client.walk_all(0, 1, &["file"]).unwrap();
    assert_eq!(f.client.read(1, 0, 10), Err(Errno::EINVAL));
    assert_eq!(f.client.write(1, 0, b"x"), Err(Errno::EINVAL));
    assert_eq!(f.client.read(9, 0, 10), Err(Errno::EINVAL));
    assert_eq!(f.client.write(9, 0, b"x"), Err(Errno::EINVAL));
    f.client.lopen(1, O_RDONLY).unwrap();
    assert_eq!(f.client.write(1, 0, b"x"), Err(Errno::EBADF));
    assert_eq!(f.client.write(1, 0, b""), Err(Errno::EBADF));
    f.client.clone_fid(0, 2).unwrap();
    f.client.lopen(2, O_RDONLY).unwrap();
    assert_eq!(f.client.read(2, 0, 10), Err(Errno::EOPNOTSUPP));
    f.open(3, "file", O_WRONLY);
    assert_eq!(f.client.read(3, 0, 10), Err(Errno::EBADF));
    assert_eq!(f.client.read(3, 0, 0), Err(Errno::EBADF));
    assert_eq!(f.client.read(1, u64::MAX, 10), Err(Errno::EINVAL));
    assert_eq!(f.client.write(3, u64::MAX, b"x"), Err(Errno::EINVAL));
}

#[test]
fn a_payload_shorter_than_its_count_is_refused() {
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    let frame = [
        33, 0, 0, 0, 118, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0,
    ];
    let answer = f.client.transport().call(&frame, b"short", 4096, true);
    assert_eq!(answer[7..11], libc::EINVAL.to_le_bytes());
    let answer = f.client.transport().call(&frame, b"long enough", 4096, true);
    assert_eq!(answer[7..11], 10u32.to_le_bytes());
    assert_eq!(std::fs::read(f.path("file")).unwrap(), b"long enoug");
}

#[test]
fn appends_go_to_the_end_wherever_that_is() {
    each(|mut f| {
        // As with cache=none: O_WRONLY, and offsets from what this guest last saw.
        f.write("log", "one\n");
        f.open(1, "log", O_WRONLY | O_APPEND);
        f.client.write(1, 4, b"two\n").unwrap();
        // Somebody else appends.
        let mut other = std::fs::File::options().append(true).open(f.path("log")).unwrap();
        std::io::Write::write_all(&mut other, b"THREE\n").unwrap();
        f.client.write(1, 8, b"four\n").unwrap();
        assert_eq!(std::fs::read(f.path("log")).unwrap(), b"one\ntwo\nTHREE\nfour\n");
        // This client has no write-back cache, so it is the same for O_RDWR.
        f.open(2, "log", O_RDWR | O_APPEND);
        f.client.write(2, 0, b"five\n").unwrap();
        assert!(std::fs::read(f.path("log")).unwrap().ends_with(b"four\nfive\n"));
        // Without O_APPEND an offset is an offset.
        f.open(3, "log", O_WRONLY);
        f.client.write(3, 0, b"ONE").unwrap();
        assert!(std::fs::read(f.path("log")).unwrap().starts_with(b"ONE\n"));
    });
}

#[test]
fn a_large_append_is_one() {
    let mut f = Fixture::new();
    f.write("log", "x");
    f.open(1, "log", O_WRONLY | O_APPEND);
    assert_eq!(f.client.write(1, 0, &pattern(300_000)).unwrap(), 300_000);
    let outcomes = &f.client.transport().outcomes;
    assert_eq!(outcomes[..], [Outcome::Defer, Outcome::Done(11)]);
    assert_eq!(f.host("log").len(), 300_001);
}

#[test]
fn writeback_on_an_appending_fid_is_positioned() {
    // As with cache=mmap or loose: every open that writes is O_RDWR, pages come in any order.
    each(|mut f| {
        f.write("log", "0123456789");
        f.open(1, "log", O_RDWR | O_APPEND);
        f.client.write(1, 8192, b"third page").unwrap();
        f.client.write(1, 0, b"0123456789 and more").unwrap();
        let now = std::fs::read(f.path("log")).unwrap();
        assert_eq!(now.len(), 8202);
        assert!(now.starts_with(b"0123456789 and more\0"));
        assert!(now.ends_with(b"\0third page"));
        f.client.write(1, 8202, b"!").unwrap();
        assert_eq!(f.host("log").len(), 8203);
    });
}

#[test]
fn an_append_only_file_is_appended_to() {
    let chattr = |how: &str, file: &std::path::Path| {
        let status = std::process::Command::new("chattr").arg(how).arg(file).status();
        status.is_ok_and(|status| status.success())
    };
    each(|mut f| {
        f.write("log", "0123456789");
        // Needs CAP_LINUX_IMMUTABLE and a file system that has the attribute.
        if !chattr("+a", &f.path("log")) {
            println!("left out: no append-only attribute here");
            return;
        }
        // Linux refuses every descriptor that could write elsewhere; with a write-back cache it asks for one first.
        f.client.walk_all(0, 1, &["log"]).unwrap();
        assert_eq!(f.client.lopen(1, O_RDWR), Err(Errno::EPERM));
        f.client.lopen(1, O_RDWR | O_APPEND).unwrap();
        f.client.write(1, 10, b"abc").unwrap();
        f.client.write(1, 0, b"def").unwrap();
        f.open(2, "log", O_WRONLY | O_APPEND);
        f.client.write(2, 5, b"ghi").unwrap();
        f.client.clone_fid(0, 3).unwrap();
        f.client
            .lcreate(3, "log", O_WRONLY | O_APPEND, 0o644, gid())
            .unwrap();
        f.client.write(3, 5, b"jkl").unwrap();
        assert_eq!(f.client.truncate(2, 0), Err(Errno::EPERM));
        let now = std::fs::read(f.path("log")).unwrap();
        assert!(chattr("-a", &f.path("log")));
        assert_eq!(now, b"0123456789abcdefghijkl");
    });
}

#[test]
fn a_refused_rdwr_does_not_make_a_client_uncached() {
    // With a write-back cache Linux tries O_RDWR and falls back to O_WRONLY; the other files stay cached.
    use std::os::unix::fs::{PermissionsExt, chown};
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let options = host::ShareOptions {
        check_access: host::CheckAccess::Host,
        ..host::ShareOptions::new(dir.path(), host::SecurityModel::Passthrough)
    };
    // Needs the right to act as another user.
    let Ok(share) = host::Share::open(&options) else {
        return;
    };
    let mut f = Fixture::on(dir, std::sync::Arc::new(share), server::Limits::default());
    f.write("secret", "");
    f.write("log", "0123456789");
    for (name, mode) in [("secret", 0o200), ("log", 0o600)] {
        std::fs::set_permissions(f.path(name), PermissionsExt::from_mode(mode)).unwrap();
        chown(f.path(name), Some(1000), Some(1000)).unwrap();
    }
    f.client.attach(9, 1000).unwrap();
    f.client.walk_all(9, 1, &["secret"]).unwrap();
    assert_eq!(f.client.lopen(1, O_RDWR), Err(Errno::EACCES));
    f.client.lopen(1, O_WRONLY).unwrap();
    f.client.walk_all(9, 2, &["log"]).unwrap();
    f.client.lopen(2, O_RDWR | O_APPEND).unwrap();
    f.client.write(2, 0, b"abc").unwrap();
    assert_eq!(f.host("log").len(), 10);
    // One that was not refused before is a client without a write-back cache.
    f.client.walk_all(9, 3, &["log"]).unwrap();
    f.client.lopen(3, O_WRONLY).unwrap();
    f.client.write(2, 0, b"abc").unwrap();
    assert_eq!(f.host("log").len(), 13);
}

#[test]
fn a_file_beyond_the_limit_reports_what_was_written() {
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    let end = (1u64 << 63) - 1;
    // No file system has files this long: EFBIG, or EINVAL beyond what an offset can be.
    assert!(f.client.write(1, end, b"xy").is_err());
    assert_eq!(f.client.write(1, 0, b"fine").unwrap(), 4);
}
