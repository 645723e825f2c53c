//! The queue driven from both sides, without threads where that is possible.

use super::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const AVAIL: u64 = 0x2000;

fn vring() -> (Vring, Arc<GuestMemoryMmap>) {
    let (memory, mapped) = crate::memory::tests::fake(&[(0, 0x4000)]);
    let vring = Vring::new().unwrap();
    vring.set_size(4);
    vring.set_addresses(0x1000, AVAIL, 0x3000);
    vring.set_event_idx(true);
    vring.set_memory(Some(memory));
    vring.set_enabled(true);
    vring.set_ready(true);
    (vring, mapped)
}

fn offer(mapped: &GuestMemoryMmap, heads: &[u16], idx: u16) {
    for (i, head) in heads.iter().enumerate() {
        mapped
            .write_obj(*head, GuestAddress(AVAIL + 4 + 2 * i as u64))
            .unwrap();
    }
    mapped.write_obj(idx, GuestAddress(AVAIL + 2)).unwrap();
}

fn take(vring: &Vring, done: &[Used]) -> (Vec<u16>, Round) {
    let mut heads = Vec::new();
    let round = vring.exchange(&mut done.to_vec(), &mut heads, 64, &mut ViewCache::default());
    (heads, round)
}

#[test]
fn heads_are_taken_once_and_counted_until_pushed() {
    let (vring, mapped) = vring();
    offer(&mapped, &[2, 0], 2);
    assert!(vring.request_kick());
    assert_eq!(take(&vring, &[]).0, [2, 0]);
    assert!(!vring.request_kick());
    assert_eq!(vring.next_avail(), 2);
    assert_eq!(vring.accepted(), 2);
    let used = |head| Used { head, len: 7 };
    let (heads, round) = take(&vring, &[used(0), used(2)]);
    assert!(heads.is_empty() && round.open);
    assert_eq!(vring.accepted(), 0);
    assert_eq!(mapped.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 2);
}

#[test]
fn a_jumping_index_breaks_the_ring_until_it_is_set_up_again() {
    let (vring, mapped) = vring();
    offer(&mapped, &[0], 5);
    let (heads, round) = take(&vring, &[]);
    assert!(heads.is_empty() && !round.open && !vring.is_open());
    assert!(!vring.request_kick());
    offer(&mapped, &[0], 1);
    assert!(take(&vring, &[]).0.is_empty());
    vring.set_ready(false);
    vring.set_ready(true);
    assert_eq!(take(&vring, &[]).0, [0]);
}

#[test]
fn more_in_flight_than_entries_breaks_the_ring() {
    let (vring, mapped) = vring();
    offer(&mapped, &[0, 1, 2, 3], 4);
    assert_eq!(take(&vring, &[]).0.len(), 4);
    offer(&mapped, &[0], 5);
    assert!(!take(&vring, &[]).1.open);
}

#[test]
fn beyond_the_limit_chains_stay_in_the_ring() {
    let (vring, mapped) = vring();
    vring.set_most(2);
    assert_eq!(vring.most(), 2);
    offer(&mapped, &[0, 1, 2], 3);
    let (heads, round) = take(&vring, &[]);
    assert_eq!((heads, round.full, round.open), (vec![0, 1], true, true));
    assert!(take(&vring, &[]).0.is_empty());
    let (heads, round) = take(&vring, &[Used { head: 1, len: 7 }]);
    assert_eq!((heads, round.full), (vec![2], true));
    let used = [Used { head: 0, len: 7 }, Used { head: 2, len: 7 }];
    let (heads, round) = take(&vring, &used);
    assert!(heads.is_empty() && !round.full);
    vring.wait_room();
    vring.set_most(100);
    assert_eq!(vring.most(), 4, "never more than there are entries");
}

#[test]
fn a_ring_outside_memory_is_broken_not_fatal() {
    let (vring, _) = vring();
    vring.set_addresses(0x1000, 0x10_0000, 0x3000);
    assert!(!take(&vring, &[]).1.open);
}

#[test]
fn a_disabled_or_stopped_queue_gives_nothing_and_forgets_nothing() {
    let (vring, mapped) = vring();
    offer(&mapped, &[0, 1], 2);
    vring.set_enabled(false);
    assert!(take(&vring, &[]).0.is_empty());
    vring.set_enabled(true);
    vring.set_ready(false);
    assert!(take(&vring, &[]).0.is_empty());
    vring.set_ready(true);
    assert_eq!(take(&vring, &[]).0, [0, 1]);
}

#[test]
fn disabling_waits_for_what_moves_and_not_for_what_is_parked() {
    let (vring, mapped) = vring();
    offer(&mapped, &[0, 1], 2);
    assert_eq!(take(&vring, &[]).0, [0, 1]);
    vring.park();
    let other = vring.clone();
    let worker = std::thread::spawn(move || {
        while other.is_open() {
            std::thread::yield_now();
        }
        other.announce(other.push(&mut vec![Used { head: 1, len: 7 }]));
    });
    vring.set_enabled(false);
    assert!(vring.wait_quiet(false, Duration::from_secs(60)));
    assert_eq!(vring.accepted(), 1);
    worker.join().unwrap();
    assert!(!vring.wait_quiet(true, Duration::from_millis(1)));
    assert!(!vring.unpark(true));
    assert!(vring.unpark(false));
    vring.announce(vring.push(&mut vec![Used { head: 0, len: 7 }]));
    assert!(vring.wait_quiet(true, Duration::from_secs(60)));
}

#[test]
fn nothing_is_quiet_while_an_interrupt_is_owed() {
    let (vring, mapped) = vring();
    let call = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let file = std::os::fd::AsFd::as_fd(&call).try_clone_to_owned().unwrap();
    assert!(
        vring
            .set_call(Some(EventFile::new(file.into()).unwrap()))
            .is_none()
    );
    // Of the start, unasked.
    vring.announce(vring.attend().call);
    assert_eq!(call.read(), Ok(1));
    assert!(vring.attend().call.is_none(), "once");
    offer(&mapped, &[0], 1);
    assert_eq!(take(&vring, &[]).0, [0]);
    let owed = vring.push(&mut vec![Used { head: 0, len: 7 }]);
    vring.set_ready(false);
    assert_eq!(vring.accepted(), 0);
    assert!(!vring.wait_quiet(true, Duration::from_millis(10)));
    let old = vring.set_call(None).unwrap();
    assert!(!vring.wait_told(&old, &|| true));
    vring.announce(owed);
    assert_eq!(call.read(), Ok(1));
    assert!(vring.wait_quiet(true, Duration::from_secs(60)));
    assert!(vring.wait_told(&old, &|| true));
}

#[test]
fn after_close_nothing_is_written() {
    let (vring, mapped) = vring();
    offer(&mapped, &[0], 1);
    assert_eq!(take(&vring, &[]).0, [0]);
    vring.close();
    vring.announce(vring.push(&mut vec![Used { head: 0, len: 7 }]));
    assert_eq!(mapped.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 0);
    assert!(!vring.is_open());
}
