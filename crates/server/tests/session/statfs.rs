//! Tstatfs.

use testkit::client::Errno;

use crate::common::*;

#[test]
fn the_figures_are_the_hosts() {
    each(|mut f| {
        let fs = f.client.statfs(0).unwrap();
        assert!(fs.bsize > 0 && fs.blocks > 0 && fs.blocks >= fs.bfree && fs.bfree >= fs.bavail);
        assert_eq!(fs.namelen, 255);
        assert_eq!(f.client.statfs(9), Err(Errno::ENOENT));
        // Of objects that cannot be opened, too.
        std::os::unix::fs::symlink("nowhere", f.path("link")).unwrap();
        f.client.walk_all(0, 1, &["link"]).unwrap();
        assert_eq!(f.client.statfs(1).unwrap().kind, fs.kind);
    });
}
