//! Tattach.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use host::idmap::overflow_ids;
use host::{IdMaps, IdOptions, IdRange, IdSpan, SecurityModel, Share, ShareOptions};
use server::Limits;
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

/// What Linux mounts with access=any send: nobody is named, neither by the attach nor, here, by the creation.
#[test]
fn an_attach_without_a_user_makes_nothing_of_this_process_where_ids_are_restricted() {
    const NO_ID: u32 = u32::MAX;
    if gid() != 0 {
        return;
    }
    let ids = |change: &dyn Fn(&mut IdOptions)| {
        let mut options = IdOptions::default();
        change(&mut options);
        IdMaps::new(&options).unwrap()
    };
    let nobody = overflow_ids();
    for model in [SecurityModel::Passthrough, SecurityModel::Squash] {
        for (maps, owner) in [
            (ids(&|o| o.squash_root = "6000:6001".parse().ok()), (6000, 6001)),
            (ids(&|o| o.squash_all = "6000:6001".parse().ok()), (6000, 6001)),
            (ids(&|o| o.forbid.extend("0-999".parse::<IdSpan>().ok())), nobody),
            (
                ids(&|o| o.uid_map.extend("0:100000:65536".parse::<IdRange>().ok())),
                nobody,
            ),
            (ids(&|_| ()), (0, 0)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let options = ShareOptions {
                ids: maps,
                ..ShareOptions::new(dir.path(), model)
            };
            let mut f = Fixture::on(dir, Arc::new(Share::open(&options).unwrap()), Limits::default());
            f.client.attach(1, NO_ID).unwrap();
            f.client.mkdir(1, "dir", 0o755, NO_ID).unwrap();
            f.client.symlink(1, "link", "dir", NO_ID).unwrap();
            f.client
                .mknod(1, "fifo", libc::S_IFIFO | 0o644, (0, 0), NO_ID)
                .unwrap();
            f.client.lcreate(1, "file", O_RDWR, 0o4755, NO_ID).unwrap();
            f.client.chmod(1, 0o104755).unwrap();
            for name in ["dir", "link", "fifo", "file"] {
                let meta = f.host(name);
                assert_eq!((meta.uid(), meta.gid()), owner, "{model:?} {name}");
            }
        }
    }
}
