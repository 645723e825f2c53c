use super::*;
use proptest::prelude::*;

fn maps(uid: &[&str], root: Option<&str>, all: Option<&str>, forbid: &[&str]) -> Result<IdMaps, String> {
    IdMaps::new(&IdOptions {
        uid_map: uid.iter().map(|t| t.parse()).collect::<Result<_, _>>()?,
        gid_map: Vec::new(),
        squash_root: root.map(str::parse).transpose()?,
        squash_all: all.map(str::parse).transpose()?,
        forbid: forbid.iter().map(|t| t.parse()).collect::<Result<_, _>>()?,
    })
}

const NOBODY: Caller = Caller {
    uid: NO_ID,
    gid: NO_ID,
};

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn without_options_nothing_changes() {
    let none = maps(&[], None, None, &[]).unwrap();
    assert!(none.is_identity());
    for id in [0, 1, 1000, 65534, u32::MAX - 1] {
        assert_eq!(none.uid_to_host(id).unwrap(), id);
        assert_eq!(none.uid_to_guest(id), id);
        assert!(none.gives_uid(id) && none.gives_gid(id));
    }
    assert_eq!(none.owner_to_host(NOBODY).unwrap(), NOBODY);
    assert_eq!(errno(none.uid_to_host(NO_ID)), Some(libc::EPERM));
}

#[test]
fn nobody_is_never_left_open_where_ids_are_restricted() {
    let (nobody, nogroup) = overflow_ids();
    let overflow = (nobody, nogroup);
    for (uid, root, all, forbid, expected) in [
        (&["0:100000:10"][..], None, None, &[][..], Some(overflow)),
        (&[], Some("1000:1001"), None, &[], Some((1000, 1001))),
        (&["0:5:1"], Some("1000:1001"), None, &["0"], Some((1000, 1001))),
        (&[], Some("1000:1001"), Some("7:8"), &[], Some((7, 8))),
        (&[], None, Some("0:0"), &[], Some((0, 0))),
        (&[], None, None, &["0"], Some(overflow)),
        (&[], None, None, &["0", "60000-65534"], None),
        (&[], None, Some("7:8"), &["8"], None),
    ] {
        let m = maps(uid, root, all, forbid).unwrap();
        let owner = m.owner_to_host(NOBODY).ok().map(|owner| (owner.uid, owner.gid));
        assert_eq!(owner, expected);
        // Nothing can be given to it.
        assert_eq!(errno(m.uid_to_host(NO_ID)), Some(libc::EPERM));
        assert_eq!(errno(m.gid_to_host(NO_ID)), Some(libc::EPERM));
        // Most operations name no group.
        let as_whom = m.caller_to_host(NOBODY).unwrap();
        assert_eq!(as_whom.gid, NO_ID);
        assert_ne!(as_whom.uid, NO_ID);
    }
}

#[test]
fn what_the_guest_can_give_is_known_from_the_hosts_side() {
    let (nobody, _) = overflow_ids();
    for (uid, root, all, forbid, reached, other) in [
        (
            &["0:1000:2"][..],
            None,
            None,
            &[][..],
            &[1000, 1001, nobody][..],
            &[0, 1, 1002, 999][..],
        ),
        (&["0:1000:2"], Some("5:5"), None, &[], &[5, 1001], &[0, 1000]),
        (&[], Some("5:5"), None, &[], &[5, 1, 70000], &[0]),
        (&[], Some("0:0"), None, &[], &[0, 1], &[]),
        (&[], Some("5:5"), Some("6:6"), &[], &[5, 6], &[0, 1, 7, nobody]),
        (&[], None, None, &["0-99"], &[100], &[0, 99]),
        (&["0:0:100"], None, None, &["0"], &[1, 99], &[0, 100, NO_ID]),
    ] {
        let m = maps(uid, root, all, forbid).unwrap();
        for &id in reached {
            assert!(m.gives_uid(id), "{m:?} {id}");
        }
        for &id in other {
            assert!(!m.gives_uid(id), "{m:?} {id}");
        }
    }
}

#[test]
fn a_map_made_without_parsing_is_checked_as_well() {
    for (guest, host) in [(u32::MAX, 0), (0, u32::MAX), (5, u32::MAX - 1)] {
        let options = IdOptions {
            uid_map: vec![IdRange {
                guest,
                host,
                count: 2,
            }],
            ..IdOptions::default()
        };
        assert!(IdMaps::new(&options).unwrap_err().contains("go beyond"));
    }
}

#[test]
fn a_range_maps_both_ways_and_what_is_outside_is_refused() {
    let m = maps(
        &["0:100000:1000", "1000:1000:1", "4294967294:7:1"],
        None,
        None,
        &[],
    )
    .unwrap();
    assert!(!m.is_identity());
    assert_eq!(m.uid_to_host(0).unwrap(), 100_000);
    assert_eq!(m.uid_to_host(999).unwrap(), 100_999);
    assert_eq!(m.uid_to_host(1000).unwrap(), 1000);
    assert_eq!(m.uid_to_host(4_294_967_294).unwrap(), 7);
    assert_eq!(errno(m.uid_to_host(1001)), Some(libc::EPERM));
    assert_eq!(m.uid_to_guest(100_999), 999);
    assert_eq!(m.uid_to_guest(101_000), OVERFLOW_ID);
    assert_eq!(m.uid_to_guest(0), OVERFLOW_ID);
    // Groups have no map of their own here.
    assert_eq!(m.gid_to_host(5).unwrap(), 5);
}

#[test]
fn squashing_comes_before_the_map_and_goes_one_way() {
    let m = maps(&["0:100000:65536"], Some("1000:1001"), None, &[]).unwrap();
    assert_eq!(m.uid_to_host(0).unwrap(), 1000);
    assert_eq!(m.gid_to_host(0).unwrap(), 1001);
    assert_eq!(m.uid_to_host(1).unwrap(), 100_001);
    assert_eq!(m.uid_to_guest(1000), OVERFLOW_ID);
    let m = maps(&[], Some("1:2"), Some("7:8"), &[]).unwrap();
    assert_eq!(m.uid_to_host(0).unwrap(), 1);
    assert_eq!(m.uid_to_host(55).unwrap(), 7);
    assert_eq!(m.gid_to_host(55).unwrap(), 8);
    assert_eq!(m.uid_to_guest(7), 7);
}

#[test]
fn a_forbidden_host_id_is_refused_however_the_guest_gets_there() {
    let m = maps(&[], None, None, &["0-999", "5000"]).unwrap();
    for id in [0, 999, 5000] {
        assert_eq!(errno(m.uid_to_host(id)), Some(libc::EPERM));
        assert_eq!(errno(m.gid_to_host(id)), Some(libc::EPERM));
        assert_eq!(m.uid_to_guest(id), id);
    }
    assert_eq!(m.uid_to_host(1000).unwrap(), 1000);
    let squashed = maps(&[], Some("1000:1000"), None, &["0"]).unwrap();
    assert_eq!(squashed.uid_to_host(0).unwrap(), 1000);
}

#[test]
fn a_mistake_is_named_in_one_sentence() {
    let parse = |t: &str| t.parse::<IdRange>().unwrap_err();
    assert_eq!(
        parse("1:2"),
        "\"1:2\" is not GUEST:HOST:COUNT, as in 0:100000:65536"
    );
    assert_eq!(
        parse("1:2:3:4"),
        "\"1:2:3:4\" is not GUEST:HOST:COUNT, as in 0:100000:65536"
    );
    assert_eq!(parse("0:0:0"), "the count in \"0:0:0\" must not be 0");
    assert_eq!(
        parse("x:0:1"),
        "the guest's first id in \"x:0:1\" must be a number from 0 to 4294967294"
    );
    assert_eq!(
        parse("0:+1:1"),
        "the host's first id in \"0:+1:1\" must be a number from 0 to 4294967294"
    );
    assert_eq!(
        parse("4294967294:0:2"),
        "the ids in \"4294967294:0:2\" go beyond 4294967294"
    );
    assert_eq!(
        "5".parse::<IdPair>().unwrap_err(),
        "\"5\" is not UID:GID, as in 1000:1000"
    );
    assert_eq!(
        "9-3".parse::<IdSpan>().unwrap_err(),
        "the range \"9-3\" ends before it begins"
    );
    assert_eq!(
        maps(&["0:1000:10", "9:5000:1"], None, None, &[]).unwrap_err(),
        "--uid-map 0:1000:10 and --uid-map 9:5000:1 overlap in the guest's ids"
    );
    assert_eq!(
        maps(&["0:1000:10", "100:1009:5"], None, None, &[]).unwrap_err(),
        "--uid-map 0:1000:10 and --uid-map 100:1009:5 overlap in the host's ids"
    );
    assert!(maps(&["0:1000:10", "10:1010:5"], None, None, &[]).is_ok());
}

proptest! {
    #[test]
    fn every_accepted_map_is_a_bijection(
        ranges in proptest::collection::vec((0u32..5000, 0u32..5000, 1u32..600), 0..6), id in 0u32..6000
    ) {
        let options = IdOptions {
            uid_map: ranges.iter().map(|&(guest, host, count)| IdRange { guest, host, count }).collect(),
            ..IdOptions::default()
        };
        if let Ok(m) = IdMaps::new(&options) {
            if let Ok(host) = m.uid_to_host(id) {
                prop_assert_eq!(m.uid_to_guest(host), id);
            }
            let guest = m.uid_to_guest(id);
            prop_assert!(guest == OVERFLOW_ID || m.uid_to_host(guest).unwrap() == id);
        }
    }

    #[test]
    fn parsing_never_panics(text in "[0-9:x-]{0,24}") {
        if let Ok(range) = text.parse::<IdRange>() {
            prop_assert_eq!(range.to_string().parse::<IdRange>().unwrap(), range);
        }
        let _ = text.parse::<IdPair>();
        let _ = text.parse::<IdSpan>();
    }
}
