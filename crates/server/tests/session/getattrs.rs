//! Tgetattrs handed over together: nobody sees it by the answers.

use std::sync::Arc;

use host::{MayHang, SecurityModel, Share, ShareOptions};
use server::Limits;
use server::run::adjoin;
use wire::*;

use crate::common::*;
use crate::neighbours::{Sent, call, one_by_one, together};

/// Fids 1 to 6: a file, a directory, a symlink, an open file, an open directory, a file that is gone; 7: an xattr's list;
/// 8: none.
fn prepare(f: &mut Fixture) {
    std::fs::create_dir(f.path("dir")).unwrap();
    std::os::unix::fs::symlink("file", f.path("link")).unwrap();
    f.write("file", "data");
    f.write("gone", "unlinked");
    for (fid, name) in [(1, "file"), (2, "dir"), (3, "link"), (7, "file")] {
        f.client.walk_all(0, fid, &[name]).unwrap();
    }
    f.open(4, "file", O_RDWR);
    f.open(5, "dir", O_RDONLY);
    f.open(6, "gone", O_RDONLY);
    std::fs::remove_file(f.path("gone")).unwrap();
    f.client.clunk(7).unwrap();
    f.client.xattrwalk(4, 7, "").unwrap();
    // Versions last from now on, where a kernel's clock has ticks.
    std::thread::sleep(std::time::Duration::from_millis(20));
}

fn sent(fids: &[u32]) -> Vec<Sent> {
    let number = |(tag, fid): (usize, &u32)| Sent::getattr(tag as u16, *fid);
    fids.iter().enumerate().map(number).collect()
}

#[test]
fn all_kinds_of_objects_are_answered_together() {
    each(|mut f| {
        prepare(&mut f);
        let sent = sent(&[1, 2, 3, 4, 5, 6, 0, 1]);
        let replies = call(&f, &sent);
        assert_eq!(replies.len(), 8);
        assert_eq!(replies, one_by_one(&mut f, &sent));
        for (tag, reply) in replies.iter().enumerate() {
            let (got, message) = Rmessage::decode(reply).unwrap();
            assert_eq!(usize::from(got), tag);
            assert!(matches!(message, Rmessage::Getattr(attr) if attr.valid == P9_GETATTR_BASIC));
        }
    });
}

#[test]
fn what_is_no_plain_getattr_ends_the_run() {
    let mut f = Fixture::new();
    prepare(&mut f);
    for odd in [7, 8] {
        let sent = sent(&[1, 2, odd, 3]);
        assert_eq!(call(&f, &sent).len(), 2, "{odd}");
        assert_eq!(together(&mut f, &sent).0, one_by_one(&mut f, &sent));
    }
    let mut tight = sent(&[1, 2, 3]);
    tight[1].room = 159;
    assert_eq!(call(&f, &tight).len(), 1);
    assert_eq!(together(&mut f, &tight).0, one_by_one(&mut f, &tight));
    let mut wrong = sent(&[1, 2, 3]);
    wrong[2].message[0] = 20;
    assert_eq!(call(&f, &wrong).len(), 2);
    wrong[0].message.truncate(18);
    assert_eq!(call(&f, &wrong).len(), 0);
    assert_eq!(together(&mut f, &wrong).0, one_by_one(&mut f, &wrong));
    let read = Sent::read(9, 4, 0, 4);
    assert!(adjoin(&tight[0].message, &tight[1].message));
    assert!(!adjoin(&tight[0].message, &read.message));
    assert!(!adjoin(&read.message, &tight[0].message));
}

#[test]
fn where_attributes_are_more_than_one_call_each_is_asked_for_alone() {
    for model in MODELS {
        let mut f = Fixture::with(model, Limits::default());
        prepare(&mut f);
        let sent = sent(&[1, 2, 4, 6]);
        let mapped = matches!(model, SecurityModel::MappedXattr | SecurityModel::MappedFile);
        assert_eq!(call(&f, &sent).len(), if mapped { 0 } else { 4 });
        assert_eq!(together(&mut f, &sent).0, one_by_one(&mut f, &sent));
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "data").unwrap();
    let options = ShareOptions {
        may_hang: MayHang::Always,
        ..ShareOptions::new(dir.path(), SecurityModel::Passthrough)
    };
    let share = Arc::new(Share::open(&options).unwrap());
    let f = Fixture::on(dir, share, Limits::default());
    assert_eq!(call(&f, &sent(&[0, 0])).len(), 0);
}

/// An evicted object is found again, and then the run goes on.
#[test]
fn evicted_objects_are_left_to_those_who_find_them() {
    let limits = Limits {
        fd_budget: 16,
        ..Limits::default()
    };
    let mut f = Fixture::with(SecurityModel::Squash, limits);
    let fids: Vec<u32> = (100..180).collect();
    for fid in &fids {
        f.write(&fid.to_string(), vec![0; *fid as usize]);
        f.client.walk_all(0, *fid, &[fid.to_string()]).unwrap();
    }
    let sent = sent(&fids);
    let (replies, _) = together(&mut f, &sent);
    for (reply, fid) in replies.iter().zip(&fids) {
        let (_, message) = Rmessage::decode(reply).unwrap();
        assert!(matches!(message, Rmessage::Getattr(attr) if attr.size == u64::from(*fid)));
    }
    assert_eq!(call(&f, &sent[72..]).len(), 8, "these were found last");
}
