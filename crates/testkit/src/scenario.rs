//! What every device must get right from end to end, as functions that any test can run against its own.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use wire::*;

use crate::client::{Client, Errno};
pub use crate::random::Random;
use crate::transport::Transport;

/// Bytes that differ from page to page, so that pages in a wrong order are noticed.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A host file read in the guest; a directory, a file and a symlink made in the guest and seen on the host; a large
/// file written and read back; a listing; attributes; removal. `client` is mounted on `host`, whose names beginning
/// with "e2e" are free; fid 0 is the root, fids from 100 on are free.
pub fn end_to_end<T: Transport>(client: &mut Client<T>, host: &Path) {
    host_file(client, host);
    guest_tree(client, host);
    large_file(client, host);
    listing(client, host);
}

fn host_file<T: Transport>(client: &mut Client<T>, host: &Path) {
    let path = host.join("e2e-host");
    fs::write(&path, "from the host\n").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    let qid = client.walk_all(0, 100, &["e2e-host"]).expect("walk");
    let stat = client.stat(100).expect("getattr");
    let there = fs::metadata(&path).expect("stat");
    assert_eq!((stat.qid.kind, stat.qid.path), (qid.kind, qid.path));
    assert_eq!(stat.size, 14);
    assert_eq!(stat.mode, there.mode());
    assert_eq!((stat.uid, stat.gid), (there.uid(), there.gid()));
    assert_eq!(stat.mtime_sec, there.mtime() as u64);
    assert_eq!(stat.mtime_nsec, there.mtime_nsec() as u64);
    client.lopen(100, P9_DOTL_RDONLY).expect("open");
    assert_eq!(client.read(100, 0, 4096).expect("read"), b"from the host\n");
    assert_eq!(client.read(100, 5, 3).expect("read"), b"the");
    assert_eq!(client.read(100, 14, 4096).expect("read at the end"), b"");
    client.clunk(100).expect("clunk");
    assert_eq!(client.walk(0, 100, &["e2e-none"]), Err(Errno::ENOENT));
    assert_eq!(client.walk_all(0, 100, &["e2e-host", "x"]), Err(Errno::ENOENT));
}

fn guest_tree<T: Transport>(client: &mut Client<T>, host: &Path) {
    client.mkdir(0, "e2e-dir", 0o755, gid()).expect("mkdir");
    assert_eq!(client.mkdir(0, "e2e-dir", 0o755, gid()), Err(Errno::EEXIST));
    let dir = host.join("e2e-dir");
    assert!(dir.is_dir());
    client.walk_all(0, 100, &["e2e-dir"]).expect("walk");
    client.clone_fid(100, 101).expect("clone");
    client
        .lcreate(101, "file", P9_DOTL_RDWR, 0o644, gid())
        .expect("create");
    assert_eq!(client.write(101, 0, b"from the guest").expect("write"), 14);
    assert_eq!(client.read(101, 5, 100).expect("read"), b"the guest");
    client.fsync(101, 0).expect("fsync");
    assert_eq!(fs::read(dir.join("file")).expect("read"), b"from the guest");
    client.truncate(101, 4).expect("truncate");
    client.chmod(101, 0o600).expect("chmod");
    let there = fs::metadata(dir.join("file")).expect("stat");
    assert_eq!((there.len(), there.mode() & 0o7777), (4, 0o600));
    client.symlink(100, "link", "file", gid()).expect("symlink");
    client.walk_all(100, 102, &["link"]).expect("walk");
    assert_eq!(client.readlink(102).expect("readlink"), b"file");
    client.link(100, 101, "twin").expect("link");
    assert_eq!(client.stat(101).expect("getattr").nlink, 2);
    client.renameat(100, "twin", 0, "e2e-twin").expect("rename");
    assert_eq!(fs::read(host.join("e2e-twin")).expect("read"), b"from");
    client.unlinkat(0, "e2e-twin", 0).expect("unlink");
    assert_eq!(
        client.unlinkat(0, "e2e-dir", P9_DOTL_AT_REMOVEDIR),
        Err(Errno::ENOTEMPTY)
    );
    client.unlinkat(100, "link", 0).expect("unlink");
    client.unlinkat(100, "file", 0).expect("unlink");
    // The open file is gone by name only.
    assert_eq!(client.read(101, 0, 100).expect("read"), b"from");
    client
        .unlinkat(0, "e2e-dir", P9_DOTL_AT_REMOVEDIR)
        .expect("rmdir");
    assert!(!dir.exists());
    for fid in 100..103 {
        client.clunk(fid).expect("clunk");
    }
}

fn large_file<T: Transport>(client: &mut Client<T>, host: &Path) {
    let bytes = pattern(1_500_000, 9);
    client.clone_fid(0, 100).expect("clone");
    let opened = client
        .lcreate(100, "e2e-large", P9_DOTL_RDWR, 0o644, gid())
        .expect("create");
    let most = (client.msize() - IOHDRSZ) as usize;
    let unit = match opened.iounit as usize {
        0 => most,
        unit => unit.min(most),
    };
    let mut offset = 0;
    while offset < bytes.len() {
        let end = bytes.len().min(offset + unit);
        let done = client
            .write(100, offset as u64, &bytes[offset..end])
            .expect("write");
        assert!(done > 0);
        offset += done as usize;
    }
    assert!(
        fs::read(host.join("e2e-large")).expect("read") == bytes,
        "the host sees other bytes"
    );
    let mut back = Vec::new();
    loop {
        let more = client.read(100, back.len() as u64, unit as u32).expect("read");
        if more.is_empty() {
            break;
        }
        back.extend(more);
    }
    assert!(back == bytes, "other bytes came back");
    // Neither aligned nor whole pages.
    let len = 70_001.min(unit - 1);
    let odd = client.read(100, 4099, len as u32).expect("read");
    assert!(odd == bytes[4099..4099 + len], "an odd range differs");
    client.remove(100).expect("remove");
    assert!(!host.join("e2e-large").exists());
}

fn listing<T: Transport>(client: &mut Client<T>, host: &Path) {
    let dir = host.join("e2e-list");
    fs::create_dir(&dir).expect("mkdir");
    let mut names: Vec<Vec<u8>> = (0..300)
        .map(|at| format!("{at:03}-{}", "n".repeat(at % 200)).into_bytes())
        .collect();
    for name in &names {
        fs::write(dir.join(std::ffi::OsStr::from_bytes(name)), "").expect("write");
    }
    names.extend([b".".to_vec(), b"..".to_vec()]);
    names.sort();
    client.walk_all(0, 100, &["e2e-list"]).expect("walk");
    client.lopen(100, P9_DOTL_RDONLY).expect("open");
    for count in [512, 4096, client.msize() - READDIRHDRSZ] {
        let entries = client.list(100, count).expect("readdir");
        let mut seen: Vec<Vec<u8>> = entries.into_iter().map(|entry| entry.name).collect();
        seen.sort();
        assert!(seen == names, "{count} bytes at a time: {} names", seen.len());
    }
    client.clunk(100).expect("clunk");
    fs::remove_dir_all(&dir).expect("remove");
}

/// The group to create with: our own, so that nothing needs privilege.
pub fn gid() -> u32 {
    nix::unistd::getegid().as_raw()
}
