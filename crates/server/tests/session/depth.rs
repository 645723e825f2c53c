//! Where a directory is so deep that the kernel takes long for a name in it.

use crate::common::*;

#[test]
fn what_is_very_deep_is_not_for_the_queue_thread() {
    let mut f = Fixture::new();
    let name = "d".repeat(200);
    for at in 0..10 {
        f.write(&format!("file{at}"), "");
    }
    f.client.clone_fid(0, 1).unwrap();
    f.client.mkdir(0, "near", 0o755, gid()).unwrap();
    f.client.walk_all(0, 2, &["near"]).unwrap();
    // Up to PATH_MAX, 4096 bytes.
    for _ in 0..19 {
        f.client.mkdir(1, &name, 0o755, gid()).unwrap();
        f.client.walk_all(1, 1, &[&name]).unwrap();
    }
    f.client.renameat(0, "file0", 1, "file0").unwrap();
    assert!(!f.deferred());
    for _ in 0..3 {
        f.client.mkdir(1, &name, 0o755, gid()).unwrap();
        assert!(!f.deferred(), "nobody has seen that it is deep");
        f.client.walk_all(1, 1, &[&name]).unwrap();
    }
    f.client.renameat(0, "file1", 2, "file1").unwrap();
    assert!(!f.deferred());
    f.client.renameat(0, "file2", 1, "file2").unwrap();
    assert!(f.deferred());
    f.client.renameat(1, "file2", 2, "file2").unwrap();
    assert!(f.deferred());
    // From now on all that has to do with names there.
    f.client.mkdir(1, "more", 0o755, gid()).unwrap();
    assert!(f.deferred());
    f.client.walk_all(1, 3, &["more"]).unwrap();
    assert!(f.deferred());
    f.client.renameat(1, "more", 1, "other").unwrap();
    assert!(f.deferred());
    f.client.unlinkat(1, "other", 0x200).unwrap();
    assert!(f.deferred());
    f.client.stat(1).unwrap();
    assert!(!f.deferred());
    f.client.mkdir(2, "more", 0o755, gid()).unwrap();
    assert!(!f.deferred());
    f.client.walk_all(0, 4, &["near", "more"]).unwrap();
    assert!(!f.deferred());
}
