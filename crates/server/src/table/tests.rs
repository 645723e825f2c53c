use super::*;
use host::{Identity, Time};

fn tables() -> Tables {
    let mut tables = Tables::new(Limits::default());
    let id = Identity {
        dev: 1,
        ino: 1,
        birth: Time::default(),
        at_home: true,
        unique: 1,
        version: 1,
        host_type: libc::S_IFREG,
        file_type: FileType::Regular,
    };
    let fd = std::fs::File::open("/").unwrap().into();
    let node = tables.nodes.adopt(fd, &id, None, &|_, _| false, &mut tables.dead);
    tables.add(7, 0, node, 0).unwrap();
    tables
}

#[test]
fn what_began_before_a_reset_adds_nothing_after_it() {
    let mut tables = tables();
    let (view, epoch) = (tables.pin(7).unwrap(), tables.epoch());
    assert!(tables.reset(false).is_none());
    // The request is still under way: its descriptors are open, but its fid is gone.
    assert_eq!(tables.descriptors(), 1);
    assert!(tables.pin(7).is_none());
    tables.nodes.retain(view.node);
    assert_eq!(
        tables.add(8, 0, view.node, epoch),
        Err(Failure::new(libc::ECONNRESET))
    );
    let file = std::fs::File::open("/").unwrap().into();
    let opened = tables.open(&view, file, State::File, Opened::default());
    assert_eq!(opened, Err(Failure::new(libc::EBADF)));
    assert_eq!(tables.will_lock(&view), Err(Failure::new(libc::EBADF)));
    assert!(tables.turn_xattr(&view, Xattr::default()).is_err());
    assert!(!tables.clunk(&view));
    tables.unpin(&view);
    assert_eq!(tables.counts(), (0, 0, 0));
    assert_eq!(tables.descriptors(), 0);
}

#[test]
fn much_is_dropped_elsewhere_or_bit_by_bit() {
    let many = AT_ONCE as u32 * 3;
    let fill = |tables: &mut Tables| {
        let view = tables.pin(7).unwrap();
        for number in 100..100 + many {
            tables.nodes.retain(view.node);
            tables.add(number, 0, view.node, tables.epoch()).unwrap();
        }
        view
    };
    // Nobody uses any of it.
    let mut tables = tables();
    let view = fill(&mut tables);
    tables.unpin(&view);
    let old = tables.reset(false).unwrap();
    assert_eq!((old.counts().0, old.descriptors()), (many as usize + 1, 1));
    assert_eq!(
        (tables.counts(), tables.descriptors(), tables.epoch()),
        ((0, 0, 0), 0, 1)
    );
    // A request does.
    let mut tables = super::tests::tables();
    let view = fill(&mut tables);
    assert!(tables.reset(false).is_none());
    assert!(
        (100..100 + many)
            .chain([7])
            .all(|number| tables.pin(number).is_none())
    );
    assert_eq!(tables.vacant(100), Ok(()));
    let mut added = 0;
    while tables.counts().0 > added as usize + 1 {
        tables.nodes.retain(view.node);
        tables.add(100 + added, 0, view.node, tables.epoch()).unwrap();
        added += 1;
        assert!(added < many / BY_AND_BY + 2, "{:?}", tables.counts());
    }
    assert!((100..100 + added).all(|number| tables.find(number).is_some()));
    // Twice, and with new ones among the old.
    let other = fill_again(&mut tables, 100, 100 + added, many);
    assert!(tables.reset(false).is_none());
    assert!(tables.find(100 + added).is_none());
    tables.unpin(&view);
    tables.unpin(&other);
    assert!(tables.reset(false).is_some_and(|old| old.counts().0 > 0));
}

fn fill_again(tables: &mut Tables, of: u32, from: u32, many: u32) -> View {
    let view = tables.pin(of).unwrap();
    for number in from..from + many {
        tables.nodes.retain(view.node);
        tables.add(number, 0, view.node, tables.epoch()).unwrap();
    }
    view
}

/// A lock that it took would be nobody's: the record goes without a Tclunk.
#[test]
fn what_began_before_the_end_of_a_large_session_gets_nothing_in_the_next() {
    let mut tables = tables();
    let view = tables.pin(7).unwrap();
    fill_again(&mut tables, 7, 100, AT_ONCE as u32 * 3);
    let last = tables.pin(99 + AT_ONCE as u32 * 3).unwrap();
    assert!(tables.reset(false).is_none());
    let gone = Err(Failure::new(libc::EBADF));
    for view in [&view, &last] {
        assert_eq!(tables.will_lock(view), gone);
        assert_eq!(tables.turn_xattr(view, Xattr::default()), gone);
        let file = std::fs::File::open("/").unwrap().into();
        assert_eq!(tables.open(view, file, State::File, Opened::default()), gone);
        tables.nodes.retain(view.node);
        assert_eq!(tables.turn(view, view.node), gone);
    }
    assert_eq!(tables.counts().2, 0);
}

/// Of a Tlopen and a Twalk that turns the same fid, the second to end finds that it is not what it began with.
#[test]
fn what_is_opened_is_what_the_fid_stands_for() {
    let mut tables = tables();
    let view = tables.pin(7).unwrap();
    let id = Identity {
        dev: 1,
        ino: 2,
        birth: Time::default(),
        at_home: true,
        unique: 2,
        version: 1,
        host_type: libc::S_IFDIR,
        file_type: FileType::Directory,
    };
    let fd = std::fs::File::open("/").unwrap().into();
    let node = tables.nodes.adopt(fd, &id, None, &|_, _| false, &mut tables.dead);
    assert_eq!(tables.turn(&view, node), Ok(()));
    let gone = Err(Failure::new(libc::EBADF));
    let file = std::fs::File::open("/").unwrap().into();
    assert_eq!(tables.open(&view, file, State::File, Opened::default()), gone);
    assert_eq!(tables.turn_xattr(&view, Xattr::default()), gone);
    tables.unpin(&view);
    assert_eq!(tables.pin(7).map(|view| view.state), Some(State::Walked));
}

#[test]
fn a_number_in_use_by_a_request_is_free_for_the_client() {
    let mut tables = tables();
    let view = tables.pin(7).unwrap();
    assert!(tables.clunk_idle(7, true).is_none(), "a request uses it");
    assert!(tables.clunk(&view));
    assert!(!tables.clunk(&view), "once is enough");
    tables.nodes.retain(view.node);
    let epoch = tables.epoch();
    tables.add(7, 5, view.node, epoch).unwrap();
    assert_eq!(tables.pin(7).map(|view| view.uid), Some(5));
    tables.unpin(&view);
    assert_eq!(tables.counts().0, 1);
}

#[test]
fn only_one_of_two_opens_wins() {
    let mut tables = tables();
    let (a, b) = (tables.pin(7).unwrap(), tables.pin(7).unwrap());
    let file = || OwnedFd::from(std::fs::File::open("/").unwrap());
    let how = Opened::default();
    assert_eq!(tables.open(&a, file(), State::File, how), Ok(()));
    let second = tables.open(&b, file(), State::File, how);
    assert_eq!(second, Err(Failure::new(libc::EINVAL)));
    assert_eq!(tables.descriptors(), 2);
    assert_eq!(tables.dead.len(), 1);
}
