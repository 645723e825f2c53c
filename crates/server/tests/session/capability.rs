//! What Linux asks before each write.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use host::{KernelXattrs, SecurityModel, Share, ShareOptions};
use server::Limits;
use testkit::client::Errno;

use crate::common::*;

const NAME: &str = "security.capability";

/// `VFS_CAP_REVISION_2` with CAP_NET_RAW permitted.
const VALUE: [u8; 20] = {
    let mut value = [0; 20];
    value[3] = 2;
    value[5] = 0x20;
    value
};

/// The mode, and where the host keeps the guest's capabilities in it. Setting real ones takes a privilege.
fn each(test: impl Fn(Fixture, &CStr)) {
    let f = Fixture::with(SecurityModel::MappedXattr, Limits::default());
    test(f, c"user.virtfs.security.capability");
    let dir = tempfile::tempdir().unwrap();
    let options = ShareOptions {
        allow_xattrs: KernelXattrs {
            security: true,
            trusted: false,
        },
        ..ShareOptions::new(dir.path(), SecurityModel::Squash)
    };
    let f = Fixture::on(dir, Arc::new(Share::open(&options).unwrap()), Limits::default());
    f.write("probe", "");
    if set_on_host(&f.path("probe"), c"security.capability").is_ok() {
        test(f, c"security.capability");
    }
}

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn set_on_host(file: &Path, name: &CStr) -> std::io::Result<()> {
    let file = path(file);
    // SAFETY: strings that end with NUL, and bytes of that length.
    let result = unsafe {
        libc::setxattr(
            file.as_ptr(),
            name.as_ptr(),
            VALUE.as_ptr().cast(),
            VALUE.len(),
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn remove_on_host(file: &Path, name: &CStr) {
    let file = path(file);
    // SAFETY: strings that end with NUL.
    assert_eq!(unsafe { libc::removexattr(file.as_ptr(), name.as_ptr()) }, 0);
}

fn ask(f: &mut Fixture, fid: u32) -> Result<u64, Errno> {
    let size = f.client.xattrwalk(fid, 90, NAME);
    if size.is_ok() {
        f.client.clunk(90).unwrap();
    }
    size
}

/// Only a question that reaches the host can find what the host has just set, so what does not find it cost nothing.
#[test]
fn a_file_that_is_being_written_is_not_asked_again() {
    each(|mut f, name| {
        f.write("file", "");
        f.client.walk_all(0, 1, &["file"]).unwrap();
        f.client.clone_fid(1, 2).unwrap();
        f.client.lopen(2, O_RDWR).unwrap();
        let (mut asked, mut remembered) = (0, 0);
        for round in 0..200 {
            // By the file's fid or by the open one, as Linux's client has it.
            let fid = 1 + round % 2;
            assert_eq!(ask(&mut f, fid), Err(Errno::ENODATA));
            set_on_host(&f.path("file"), name).unwrap();
            for _ in 0..5 {
                asked += 1;
                remembered += u32::from(ask(&mut f, fid) == Err(Errno::ENODATA));
            }
            let _ = ask(&mut f, fid);
            remove_on_host(&f.path("file"), name);
            f.client.write(2, 0, &[0; 4096]).unwrap();
        }
        println!("{remembered} of {asked} questions cost no system call");
        assert!(remembered > 0);
    });
}

#[test]
fn what_the_host_sets_is_seen_a_moment_later() {
    each(|mut f, name| {
        f.write("file", "");
        f.open(1, "file", O_WRONLY);
        assert_eq!(ask(&mut f, 1), Err(Errno::ENODATA));
        set_on_host(&f.path("file"), name).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(ask(&mut f, 1), Ok(20));
        assert_eq!(f.client.getxattr(1, 90, NAME).unwrap(), VALUE);
    });
}

/// Who may be about to execute a file is told what is so now.
#[test]
fn a_file_that_nobody_writes_is_asked_each_time() {
    each(|mut f, name| {
        f.write("file", "");
        f.open(1, "file", O_RDONLY);
        f.open(2, "file", O_WRONLY);
        f.client.clunk(2).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&mut f, 1), Err(Errno::ENODATA));
            set_on_host(&f.path("file"), name).unwrap();
            assert_eq!(ask(&mut f, 1), Ok(20));
            remove_on_host(&f.path("file"), name);
        }
    });
}

#[test]
fn what_the_guest_sets_is_seen_at_once() {
    each(|mut f, _| {
        f.write("file", "");
        f.open(1, "file", O_WRONLY);
        f.client.walk_all(0, 2, &["file"]).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&mut f, 1), Err(Errno::ENODATA));
            f.client.setxattr(2, 5, NAME, &VALUE, 0).unwrap();
            assert_eq!(ask(&mut f, 1), Ok(20));
            // What Linux sends before it writes to such a file.
            f.client
                .setxattr(2, 5, NAME, b"", wire::P9_XATTR_REPLACE)
                .unwrap();
        }
    });
}

/// What Linux sends before it writes to a file of the host that has capabilities, and what keeps its write from failing:
/// it ignores EOPNOTSUPP, and that alone (`cap_inode_killpriv`).
#[test]
fn capabilities_of_the_hosts_are_left_to_the_hosts_kernel() {
    let mut f = Fixture::new();
    f.write("file", "");
    if set_on_host(&f.path("file"), c"security.capability").is_err() {
        return;
    }
    f.open(1, "file", O_RDWR);
    assert_eq!(ask(&mut f, 1), Ok(20));
    let removed = f.client.setxattr(1, 90, NAME, b"", wire::P9_XATTR_REPLACE);
    assert_eq!(removed, Err(Errno::EOPNOTSUPP));
    assert_eq!(ask(&mut f, 1), Ok(20));
    f.client.write(1, 0, b"x").unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(ask(&mut f, 1), Err(Errno::ENODATA));
}

/// The host's kernel takes a file's capabilities away when it is written to, whatever the guest was told.
#[test]
fn a_write_takes_capabilities_away() {
    let mut f = Fixture::with(SecurityModel::Squash, Limits::default());
    f.write("file", "");
    f.open(1, "file", O_WRONLY);
    assert_eq!(ask(&mut f, 1), Err(Errno::ENODATA));
    if set_on_host(&f.path("file"), c"security.capability").is_err() {
        return;
    }
    f.client.write(1, 0, b"other content").unwrap();
    f.client.clunk(1).unwrap();
    f.client.walk_all(0, 1, &["file"]).unwrap();
    assert_eq!(ask(&mut f, 1), Err(Errno::ENODATA));
}
