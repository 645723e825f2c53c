//! What gives much storage back is not for the queue thread.

use std::fs;

use server::Limits;
use wire::*;

use crate::common::*;

const MUCH: usize = 2 << 20;

fn large(f: &Fixture, name: &str) {
    f.write(name, vec![1; MUCH]);
}

fn each_model(test: impl Fn(&mut Fixture)) {
    for model in MODELS {
        test(&mut Fixture::with(model, Limits::default()));
    }
}

type Removal = (&'static str, fn(&mut Fixture));

/// How the guest takes a file's name away.
fn removals() -> [Removal; 3] {
    [
        ("Tunlinkat", |f| f.client.unlinkat(0, "file", 0).unwrap()),
        ("Trenameat", |f| {
            f.create(90, "other", O_WRONLY);
            f.client.clunk(90).unwrap();
            f.client.renameat(0, "other", 0, "file").unwrap();
        }),
        ("Trename", |f| {
            f.create(90, "other", O_WRONLY);
            f.client.clunk(90).unwrap();
            f.client.walk_all(0, 91, &["other"]).unwrap();
            f.client.rename(91, 0, "file").unwrap();
            f.client.clunk(91).unwrap();
        }),
    ]
}

#[test]
fn the_last_clunk_of_a_large_file_without_a_name() {
    each_model(|f| {
        for (how, remove) in removals() {
            for open in [None, Some(O_RDONLY), Some(O_RDWR)] {
                large(f, "file");
                for fid in [1, 2] {
                    f.client.walk_all(0, fid, &["file"]).unwrap();
                    if let Some(flags) = open {
                        f.client.lopen(fid, flags).unwrap();
                    }
                }
                remove(f);
                assert!(!f.deferred(), "{how}: the fid keeps the file");
                f.client.clunk(1).unwrap();
                assert!(!f.deferred(), "{how} {open:?}: another fid keeps the file");
                f.client.clunk(2).unwrap();
                assert!(f.deferred(), "{how} {open:?}");
                assert!(f.client.clunk(2).is_err(), "{how}: it is gone");
            }
        }
    });
}

#[test]
fn a_clunk_that_frees_little_is_answered_at_once() {
    each_model(|f| {
        for (name, len, links) in [("small", 4096, 1), ("linked", MUCH, 2)] {
            f.write(name, vec![1; len]);
            if links > 1 {
                fs::hard_link(f.path(name), f.path("link")).unwrap();
            }
            f.client.walk_all(0, 1, &[name]).unwrap();
            f.client.unlinkat(0, name, 0).unwrap();
            f.client.clunk(1).unwrap();
            assert!(!f.deferred(), "{name}");
        }
        large(f, "kept");
        f.open(1, "kept", O_RDWR);
        f.client.clunk(1).unwrap();
        assert!(!f.deferred());
    });
}

#[test]
fn removing_a_large_file_by_its_fid() {
    each_model(|f| {
        large(f, "file");
        fs::hard_link(f.path("file"), f.path("link")).unwrap();
        f.client.walk_all(0, 1, &["file"]).unwrap();
        f.client.remove(1).unwrap();
        assert!(!f.deferred(), "the other name keeps it");
        f.client.walk_all(0, 1, &["link"]).unwrap();
        f.client.remove(1).unwrap();
        assert!(f.deferred());
        f.write("small", "x");
        f.client.walk_all(0, 1, &["small"]).unwrap();
        f.client.walk_all(0, 2, &["small"]).unwrap();
        f.client.remove(1).unwrap();
        assert!(!f.deferred());
        // It grew without a name.
        f.client.lopen(2, O_RDWR).unwrap();
        let mut at = 0;
        while at < MUCH {
            at += f.client.write(2, at as u64, &[1; 100_000]).unwrap() as usize;
        }
        f.client.clunk(2).unwrap();
        assert!(f.deferred());
    });
}

#[test]
fn truncating_a_large_file() {
    each_model(|f| {
        for small in [false, true] {
            let len = if small { 4096 } else { MUCH };
            let size = |size| Tsetattr {
                fid: 1,
                valid: P9_SETATTR_SIZE,
                size,
                ..Tsetattr::default()
            };
            f.write("file", vec![1; len]);
            f.client.walk_all(0, 1, &["file"]).unwrap();
            for (to, long) in [(len as u64 * 2, false), (len as u64 - 1, false), (1, !small)] {
                f.client.setattr(&size(to)).unwrap();
                assert_eq!(f.deferred(), long, "{to}");
                assert_eq!(f.host("file").len(), to);
            }
            f.write("file", vec![1; len]);
            f.client.lopen(1, O_WRONLY | O_TRUNC).unwrap();
            assert_eq!(f.deferred(), !small);
            assert_eq!(f.host("file").len(), 0);
            f.client.clunk(1).unwrap();
            assert!(!f.deferred());
        }
    });
}
