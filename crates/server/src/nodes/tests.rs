use super::*;
use host::Time;

/// One that can be opened, so that a node without a place can be evicted, too.
pub(super) const HANDLE: &[u8] = b"\0\0\0\0kindhandle";
pub(super) const OTHER: HasHandle<'_> = &|_, _| false;

pub(super) const SAME: HasHandle<'_> = &|_, handle| handle == HANDLE;

pub(super) fn fd() -> OwnedFd {
    std::fs::File::open("/").unwrap().into()
}

pub(super) fn id(ino: u64, birth: i64) -> Identity {
    Identity {
        dev: 1,
        ino,
        birth: Time { sec: birth, nsec: 0 },
        at_home: true,
        unique: ino,
        version: 1,
        host_type: libc::S_IFDIR,
        file_type: FileType::Directory,
    }
}

pub(super) fn evict(nodes: &mut Nodes, dead: &mut Vec<OwnedFd>) -> Option<u32> {
    let victim = nodes.victim()?;
    nodes.pin(victim);
    nodes.evict(victim, Some(HANDLE), dead).then_some(victim)
}

#[test]
fn one_object_is_one_node() {
    let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
    let a = nodes.adopt(fd(), &id(1, 5), None, SAME, &mut dead);
    assert_eq!(nodes.adopt(fd(), &id(1, 5), None, SAME, &mut dead), a);
    assert_eq!((nodes.len(), nodes.open(), dead.len()), (1, 1, 1));
    // The same number and another birth is another object, whether the first has its descriptor or not.
    let b = nodes.adopt(fd(), &id(1, 6), None, SAME, &mut dead);
    assert_ne!(a, b);
    assert_eq!(evict(&mut nodes, &mut dead), Some(a));
    assert!(nodes.get(a).and_then(Node::raw).is_none());
    let c = nodes.adopt(fd(), &id(1, 7), None, SAME, &mut dead);
    assert!(c != a && c != b);
    // The same birth brings the evicted one back.
    assert_eq!(nodes.adopt(fd(), &id(1, 5), None, SAME, &mut dead), a);
    assert!(nodes.get(a).and_then(Node::raw).is_some());
}

#[test]
fn directories_moved_about_make_no_circle() {
    let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
    let a = nodes.adopt(fd(), &id(1, 1), None, SAME, &mut dead);
    let b = nodes.adopt(fd(), &id(2, 1), Some((a, b"b")), SAME, &mut dead);
    let c = nodes.adopt(fd(), &id(3, 1), Some((b, b"c")), SAME, &mut dead);
    nodes.name(a, c, b"a", &mut dead);
    nodes.name(a, a, b"a", &mut dead);
    assert_eq!(nodes.place(a), None);
    assert_eq!(nodes.place(c), Some((b, b"c".to_vec())));
    // A child keeps its parents, and takes them with it.
    nodes.release(a, &mut dead);
    nodes.release(b, &mut dead);
    assert_eq!(nodes.len(), 3);
    nodes.release(c, &mut dead);
    assert_eq!((nodes.len(), nodes.bytes.len(), dead.len()), (0, 0, 3));
}

/// The last of a million directories, each in the one before, may be given back by one message.
#[test]
fn a_long_chain_goes_bit_by_bit() {
    let (mut nodes, mut dead) = (Nodes::new(usize::MAX), Vec::new());
    let mut above = nodes.adopt(fd(), &id(0, 1), None, SAME, &mut dead);
    let all = CASCADE * 5 / 2;
    for ino in 1..all as u64 {
        let below = nodes.adopt(fd(), &id(ino, 1), Some((above, b"d")), SAME, &mut dead);
        nodes.release(above, &mut dead);
        above = below;
    }
    nodes.release(above, &mut dead);
    assert_eq!((nodes.len(), dead.len()), (all - CASCADE, CASCADE));
    for ino in [1000, 1001, 1002] {
        nodes.adopt(fd(), &id(ino, 2), None, SAME, &mut dead);
    }
    assert_eq!((nodes.len(), nodes.bytes.len(), dead.len()), (3, 0, all));
    let mut above = nodes.adopt(fd(), &id(0, 1), None, SAME, &mut dead);
    for ino in 1..all as u64 {
        let below = nodes.adopt(fd(), &id(ino, 1), Some((above, b"d")), SAME, &mut dead);
        nodes.release(above, &mut dead);
        above = below;
    }
    nodes.release(above, &mut dead);
    nodes.finish(&mut dead);
    assert_eq!(nodes.len(), 3);
}

#[test]
fn where_there_is_no_room_a_node_keeps_its_name() {
    let (mut nodes, mut dead) = (Nodes::new(100), Vec::new());
    let top = nodes.adopt(fd(), &id(1, 1), None, SAME, &mut dead);
    let node = nodes.adopt(fd(), &id(2, 1), Some((top, b"old")), SAME, &mut dead);
    nodes.set_full(true);
    let long = vec![b'n'; 28 * 1024];
    nodes.name(node, top, &long, &mut dead);
    assert_eq!(nodes.place(node), Some((top, b"old".to_vec())));
    nodes.name(node, top, b"new", &mut dead);
    assert_eq!(nodes.place(node), Some((top, b"new".to_vec())));
}

#[test]
fn beyond_the_limit_parents_are_not_kept() {
    let (mut nodes, mut dead) = (Nodes::new(3), Vec::new());
    let mut above = nodes.adopt(fd(), &id(0, 1), None, SAME, &mut dead);
    for ino in 1..10 {
        let below = nodes.adopt(fd(), &id(ino, 1), Some((above, b"d")), SAME, &mut dead);
        nodes.release(above, &mut dead);
        above = below;
    }
    assert!(nodes.len() <= 4);
}
