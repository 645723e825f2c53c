use super::*;
use proptest::prelude::*;

fn range(start: u64, end: u64) -> Range {
    Range { start, end }
}

fn inode() -> Inode {
    let file = tempfile::tempfile().unwrap();
    let access = host::Access {
        reads: true,
        writes: true,
    };
    Inode::new(LockFile::new(file.into(), access))
}

fn held(range: Range, owner: u64, write: bool) -> Held {
    let fid = u32::try_from(owner).unwrap();
    Held {
        range,
        owner,
        fid,
        write,
    }
}

#[test]
fn ranges_end_where_files_can() {
    assert_eq!(Range::new(0, 0), Some(range(0, LAST)));
    assert_eq!(Range::new(5, 1), Some(range(5, 5)));
    assert_eq!(Range::new(LAST, 1), Some(range(LAST, LAST)));
    assert_eq!(Range::new(LAST, 2), None);
    assert_eq!(Range::new(u64::MAX, 0), None);
    assert_eq!(Range::new(1, u64::MAX), None);
    assert_eq!(range(0, LAST).length(), 0);
    assert_eq!(range(3, 4).length(), 2);
}

fn same(ino: u64) -> Same {
    Same::of(&host::Identity {
        dev: 1,
        ino,
        birth: host::Time::default(),
        at_home: true,
        unique: ino,
        version: 1,
        host_type: libc::S_IFREG,
        file_type: host::FileType::Regular,
    })
}

#[test]
fn an_inode_is_taken_out_by_one_at_a_time() {
    let mut locks = Locks::default();
    let mut one = locks.take_out(same(1)).unwrap();
    assert!(locks.take_out(same(1)).is_none());
    let two = locks.take_out(same(2)).unwrap();
    let mut held_twice = inode();
    held_twice.take(held(range(0, 0), 1, true));
    held_twice.take(held(range(5, 5), 1, true));
    one.inode = Some(held_twice);
    assert!(locks.put_back(one).is_none() && locks.put_back(two).is_none());
    assert_eq!((locks.count(), locks.files()), (2, 1));
    let mut one = locks.take_out(same(1)).unwrap();
    one.inode.as_mut().unwrap().release_fid(1);
    assert!(locks.put_back(one).is_some(), "to be closed without the lock");
    assert_eq!((locks.count(), locks.files()), (0, 0));
}

#[test]
fn what_was_taken_out_before_a_reset_is_not_put_back() {
    let mut locks = Locks::default();
    let mut one = locks.take_out(same(1)).unwrap();
    let mut inode = inode();
    inode.take(held(range(0, 0), 1, true));
    one.inode = Some(inode);
    assert!(locks.reset().is_empty());
    assert!(locks.take_out(same(1)).is_none(), "still at work");
    assert!(locks.put_back(one).is_some());
    assert_eq!((locks.count(), locks.files()), (0, 0));
    assert!(locks.take_out(same(1)).is_some_and(|out| out.inode.is_none()));
}

#[test]
fn a_shared_lock_outlives_one_of_its_holders() {
    let mut locks = inode();
    locks.take(held(range(0, 9), 1, false));
    locks.take(held(range(5, 14), 2, false));
    locks.release(1, range(0, LAST));
    assert_eq!(free(&mut locks), [range(0, 4)]);
    locks.release(2, range(7, 8));
    assert_eq!(free(&mut locks), [range(7, 8)]);
    locks.release_fid(2);
    assert!(locks.is_free());
}

#[test]
fn neighbours_are_one_record() {
    let mut locks = inode();
    for at in 0..100 {
        locks.take(held(range(at, at), 1, true));
    }
    assert_eq!(locks.last(1, 50), Some(held(range(0, 99), 1, true)));
    locks.take(held(range(50, 50), 1, false));
    assert_eq!((locks.len(), locks.fids.len()), (3, 3));
    assert!(locks.splits(1, range(60, 60)) && !locks.splits(1, range(50, 50)));
    locks.take(held(range(50, 50), 1, true));
    assert_eq!((locks.len(), locks.coverage.len()), (1, 2));
}

/// What made one message take hours: 55,000 locks of the whole file and 10,000 small ones.
#[test]
fn many_owners_of_everything_are_released_in_one_sweep() {
    let mut locks = inode();
    let (all, small) = (range(0, LAST), |at: u64| range(2 * at, 2 * at));
    let of = |range, owner, fid| Held {
        fid,
        ..held(range, owner, false)
    };
    for at in 0..10_000 {
        locks.take(of(small(at), at, 1));
    }
    for owner in 0..55_000 {
        locks.take(of(all, 100_000 + owner, 2));
    }
    let last = 100_000 + 54_999;
    assert!(locks.has_more(2, 54_999) && !locks.has_more(2, 55_000));
    locks.release(last, all);
    assert_eq!(locks.next_free(), None, "others hold it");
    locks.release_fid(2);
    let free = free(&mut locks);
    assert_eq!(free.len(), 10_000);
    assert_eq!((free[0], free[9_999]), (range(19_999, LAST), range(1, 1)));
    assert_eq!((locks.len(), locks.coverage.len()), (10_000, 20_000));
    locks.release_fid(1);
    assert!(locks.is_free());
}

#[test]
fn one_file_has_no_more_places_than_the_host_can_do_with() {
    let mut locks = inode();
    let places = PLACES as u64;
    for at in 0..places / 2 {
        assert!(!locks.is_full(range(2 * at, 2 * at)));
        locks.take(held(range(2 * at, 2 * at), 1, true));
    }
    assert!(locks.is_full(range(places, places)) && locks.is_full(range(0, LAST)));
    assert!(!locks.is_full(range(4, 4)) && !locks.is_full(range(0, 8)));
}

/// All that can be unlocked on the host.
fn free(locks: &mut Inode) -> Vec<Range> {
    std::iter::from_fn(|| locks.next_free()).collect()
}

proptest! {
    /// Against a byte map of what is held, and one of what the host has.
    #[test]
    fn the_host_has_what_is_held(
        steps in prop::collection::vec((0u64..3, 0u64..32, 0u64..8, 0u8..6, 0usize..4), 1..80),
    ) {
        let mut locks = inode();
        let mut bytes = [[None::<bool>; 3]; 64];
        let mut host = [false; 64];
        for (owner, start, more, kind, calls) in steps {
            let range = range(start, start + more);
            let span = start as usize..=(start + more) as usize;
            match kind {
                0 | 1 => locks.release(owner, range),
                2 => locks.release_fid(owner as u32),
                kind => {
                    locks.take(held(range, owner, kind == 3));
                    host[span.clone()].fill(true);
                }
            }
            let span = if kind == 2 { 0..=63 } else { span };
            for byte in &mut bytes[span] {
                byte[owner as usize] = (kind > 2).then_some(kind == 3);
            }
            for _ in 0..calls {
                let Some(free) = locks.next_free() else { break };
                for at in free.start..=free.end {
                    prop_assert!(std::mem::take(&mut host[at as usize]), "locked once, unlocked once");
                }
            }
            if locks.is_free() {
                // The description is closed.
                host.fill(false);
                locks = inode();
            }
            for (at, byte) in bytes.iter().enumerate() {
                prop_assert!(host[at] || byte.iter().all(Option::is_none), "unlocked too early");
                prop_assert!(!host[at] || locks.has_pending() || byte.iter().any(Option::is_some));
                for (owner, kind) in byte.iter().enumerate() {
                    let held = locks.last(owner as u64, at as u64).filter(|held| held.range.end >= at as u64);
                    prop_assert_eq!(held.map(|h| h.write), *kind);
                }
            }
            let listed: Vec<_> = locks.held.iter().map(|(&(o, s), rest)| (rest.fid, o, s)).collect();
            prop_assert!(listed.iter().all(|key| locks.fids.contains(key)));
            prop_assert_eq!(listed.len(), locks.fids.len());
        }
    }
}
