//! The queue's state in one place, behind one lock: what the front-end configured, how far both sides are, and how
//! many requests are accepted.
//!
//! vhost-user-backend keeps a state of its own for each queue; here it only carries the kick descriptor and the
//! flags by which that crate registers it. Everything on a request's way, and the answer to GET_VRING_BASE, comes
//! from [`Ring`], because the crate's queue looks up every access in the memory map, knows nothing of requests in
//! flight, and interrupts without asking when EVENT_IDX is off.

mod registered;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhost_user_backend::VringMutex;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::event::EventNotifier;

use crate::memory::Memory;
use crate::ring::{RingAddresses, RingView, Used};

/// Guest memory as vhost-user-backend hands it round.
pub type GuestMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Locks `mutex`; a panic elsewhere (there is none to be) must not take the queue with it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The queue.
#[derive(Debug, Default)]
struct Ring {
    addresses: RingAddresses,
    event_idx: bool,
    /// Started: a kick descriptor is there, and GET_VRING_BASE has not come.
    ready: bool,
    /// SET_VRING_ENABLE.
    enabled: bool,
    /// The driver broke the ring's own rules; nothing more is taken until the front-end sets it up again.
    broken: bool,
    /// The connection is gone; nothing more is written.
    closed: bool,
    next_avail: u16,
    next_used: u16,
    /// Chains taken and not yet pushed.
    accepted: u32,
    /// How many may be at a time, if not as many as there are entries; the next ones stay in the ring until one is
    /// pushed.
    most: Option<u32>,
    /// How many of them wait for something that may never come (a lock); they touch no guest memory meanwhile.
    parked: u32,
    memory: Option<Arc<Memory>>,
    view: Option<RingView>,
    /// Changes with `view`.
    generation: u64,
    call: Option<Arc<EventNotifier>>,
}

impl Ring {
    fn open(&self) -> bool {
        self.ready && self.enabled && !self.broken && !self.closed
    }

    /// Forgets the mapping; it is made anew from addresses and memory when next needed.
    fn remap(&mut self) {
        self.view = None;
        self.generation += 1;
    }

    fn view(&mut self) -> Option<&RingView> {
        if self.view.is_none() {
            self.view = self
                .memory
                .as_ref()
                .and_then(|memory| RingView::new(memory, &self.addresses));
            self.generation += 1;
        }
        self.view.as_ref()
    }

    fn broke(&mut self, why: &str) {
        if !self.broken {
            log::error!(
                "The guest's driver broke the request queue ({why}). The share is dead for this guest until it \
                 resets the device."
            );
            self.broken = true;
        }
    }

    /// Pushes all of `done`, in order; gives the call descriptor when the driver wants to be told.
    fn push(&mut self, done: &mut Vec<Used>) -> Option<Arc<EventNotifier>> {
        if done.is_empty() {
            return None;
        }
        let (next_used, event_idx, closed) = (self.next_used, self.event_idx, self.closed);
        self.accepted = self
            .accepted
            .saturating_sub(u32::try_from(done.len()).unwrap_or(u32::MAX));
        let mut wanted = false;
        if let (false, Some(view)) = (closed, self.view()) {
            let (next, tell) = view.push(next_used, done, event_idx);
            self.next_used = next;
            wanted = tell;
        }
        done.clear();
        self.call.as_ref().filter(|_| wanted).map(Arc::clone)
    }

    /// Whether nothing more may be taken until something is pushed.
    fn full(&self) -> bool {
        self.most.is_some_and(|most| self.accepted >= most)
    }

    /// Takes up to `max` heads.
    fn pop(&mut self, heads: &mut Vec<u16>, max: u16) {
        let (next, accepted) = (self.next_avail, self.accepted);
        let room = self.most.map_or(max, |most| {
            u16::try_from(most.saturating_sub(accepted)).unwrap_or(max)
        });
        let Some(view) = self.view() else {
            self.broke("its areas are not guest memory");
            return;
        };
        let ready = view.avail_idx().wrapping_sub(next);
        if ready > view.size() {
            self.broke("its available index jumped");
            return;
        }
        // Every chain in flight owns at least one entry, so an honest driver cannot have more than `size`.
        if accepted + u32::from(ready) > u32::from(view.size()) {
            self.broke("it made chains available that it had not got back");
            return;
        }
        let take = ready.min(max).min(room);
        heads.extend((0..take).map(|i| view.avail_head(next.wrapping_add(i))));
        self.next_avail = next.wrapping_add(take);
        self.accepted = accepted + u32::from(take);
    }
}

/// What one exchange with the ring gave.
#[derive(Debug)]
pub struct Round {
    /// Tell the driver, after the lock is released.
    pub call: Option<Arc<EventNotifier>>,
    /// Position of the next chain.
    pub next_avail: u16,
    /// Whether requests may be taken at all.
    pub open: bool,
    /// Whether they may be once one is answered: see [`Vring::wait_room`].
    pub full: bool,
}

/// The queue thread's copy of the mapping.
#[derive(Debug, Default)]
pub struct ViewCache {
    view: Option<RingView>,
    generation: u64,
}

impl ViewCache {
    /// The mapping as of the last exchange that took a chain.
    pub fn get(&self) -> Option<&RingView> {
        self.view.as_ref()
    }
}

#[derive(Debug, Default)]
struct Shared {
    ring: Mutex<Ring>,
    /// Signalled when `accepted` or `parked` changes while somebody waits for it.
    quiet: Condvar,
    /// [`Ring::open`], readable without the lock.
    open: AtomicBool,
    /// How many wait on `quiet`.
    draining: AtomicUsize,
}

/// The queue as vhost-user-backend wants it. Clones are the same queue.
#[derive(Clone)]
pub struct Vring {
    registered: VringMutex<GuestMemory>,
    shared: Arc<Shared>,
}

impl Vring {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        lock(&self.shared.ring)
    }

    /// Changes the ring, keeps `open` in step.
    fn change<T>(&self, change: impl FnOnce(&mut Ring) -> T) -> T {
        let mut ring = self.ring();
        let result = change(&mut ring);
        self.shared.open.store(ring.open(), Ordering::Release);
        result
    }

    /// Whether requests may be taken; a glance without the lock.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.shared.open.load(Ordering::Acquire)
    }

    /// Whether GET_VRING_BASE has come: what waits must be answered now.
    pub fn is_stopping(&self) -> bool {
        !self.ring().ready
    }

    /// Guest memory changed.
    pub fn set_memory(&self, memory: Arc<Memory>) {
        self.change(|ring| {
            ring.memory = Some(memory);
            ring.remap();
        });
    }

    /// Pushes `done` in order (emptied), then takes up to `max` heads when the queue is open.
    pub fn exchange(
        &self,
        done: &mut Vec<Used>,
        heads: &mut Vec<u16>,
        max: u16,
        cache: &mut ViewCache,
    ) -> Round {
        let mut ring = self.ring();
        let call = ring.push(done);
        let mut open = ring.open();
        if open && max > 0 {
            ring.pop(heads, max);
            if ring.broken {
                open = false;
                self.shared.open.store(false, Ordering::Release);
            } else if cache.generation != ring.generation || cache.view.is_none() {
                cache.view.clone_from(&ring.view);
                cache.generation = ring.generation;
            }
        }
        let (next_avail, full) = (ring.next_avail, ring.full());
        drop(ring);
        self.tell_drain();
        Round {
            call,
            next_avail,
            open,
            full,
        }
    }

    /// Pushes `done` in order (emptied) and tells the driver if it wants to be told.
    pub fn push(&self, done: &mut Vec<Used>) {
        let call = self.ring().push(done);
        self.tell_drain();
        notify(call);
    }

    fn tell_drain(&self) {
        if self.shared.draining.load(Ordering::Relaxed) > 0 {
            self.shared.quiet.notify_all();
        }
    }

    /// Asks the driver not to kick while the queue thread looks by itself.
    pub fn suppress_kicks(&self) {
        let mut ring = self.ring();
        let event_idx = ring.event_idx;
        if ring.open()
            && let Some(view) = ring.view()
        {
            view.suppress_kicks(event_idx);
        }
    }

    /// Asks for kicks again; true when a chain came meanwhile.
    pub fn request_kick(&self) -> bool {
        let mut ring = self.ring();
        let (next, event_idx) = (ring.next_avail, ring.event_idx);
        ring.open() && ring.view().is_some_and(|view| view.request_kick(next, event_idx))
    }

    /// One accepted request waits from now on, and touches no guest memory until [`Vring::unpark`].
    pub fn park(&self) {
        let mut ring = self.ring();
        ring.parked += 1;
        drop(ring);
        self.tell_drain();
    }

    /// One waiting request goes on. With `only_open`, false (and still parked) when the queue is not open.
    pub fn unpark(&self, only_open: bool) -> bool {
        let mut ring = self.ring();
        if only_open && !ring.open() {
            return false;
        }
        ring.parked = ring.parked.saturating_sub(1);
        true
    }

    /// `count` accepted requests are dropped without an answer (the device was reset under them).
    pub fn abandon(&self, count: u32) {
        let mut ring = self.ring();
        ring.accepted = ring.accepted.saturating_sub(count);
        drop(ring);
        self.tell_drain();
    }

    /// The connection is gone: nothing is taken or pushed any more.
    pub fn close(&self) {
        self.change(|ring| ring.closed = true);
        self.tell_drain();
    }

    /// Waits until no accepted request is left but parked ones (`all`: none at all), at most `time`.
    /// True when it is so.
    pub fn wait_quiet(&self, all: bool, time: Duration) -> bool {
        self.wait_until(time, |ring| {
            let rest = if all { 0 } else { ring.parked };
            ring.accepted <= rest || ring.closed
        })
    }

    /// Waits until a request may be taken again, or none will be; not for long, so that the caller can look about.
    pub fn wait_room(&self) {
        self.wait_until(Duration::from_millis(20), |ring| !ring.full() || !ring.open());
    }

    fn wait_until(&self, time: Duration, done: impl Fn(&Ring) -> bool) -> bool {
        let until = Instant::now() + time;
        self.shared.draining.fetch_add(1, Ordering::Relaxed);
        let mut ring = self.ring();
        let done = loop {
            if done(&ring) {
                break true;
            }
            let now = Instant::now();
            if now >= until {
                break false;
            }
            // A push that missed `draining` does not wake us, so look again soon in any case.
            let nap = (until - now).min(Duration::from_millis(5));
            ring = self
                .shared
                .quiet
                .wait_timeout(ring, nap)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        self.shared.draining.fetch_sub(1, Ordering::Relaxed);
        done
    }

    /// Lets no more than `most` requests (at least one) be taken and not yet answered.
    pub fn set_most(&self, most: u32) {
        self.ring().most = Some(most.max(1));
    }

    /// How many requests can be taken and not yet answered.
    pub fn most(&self) -> u32 {
        let ring = self.ring();
        let entries = u32::from(ring.addresses.size);
        ring.most.map_or(entries, |most| most.min(entries))
    }

    /// Requests taken and not yet answered.
    pub fn accepted(&self) -> u32 {
        self.ring().accepted
    }
}

/// Writes to a call descriptor. The driver's side may be gone; there is nothing to do about it then.
pub fn notify(call: Option<Arc<EventNotifier>>) {
    if let Some(call) = call
        && let Err(error) = call.notify()
    {
        log::debug!("The call descriptor cannot be written: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhost_user_backend::VringT;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const AVAIL: u64 = 0x2000;

    fn vring() -> (Vring, Arc<GuestMemoryMmap>) {
        let (memory, mapped) = crate::memory::tests::fake(&[(0, 0x4000)]);
        let atomic = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let vring = Vring::new(atomic, 256).unwrap();
        vring.set_queue_size(4);
        vring.set_queue_info(0x1000, AVAIL, 0x3000).unwrap();
        vring.set_queue_event_idx(true);
        vring.set_memory(memory);
        vring.set_enabled(true);
        vring.set_queue_ready(true);
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
        assert_eq!(vring.queue_next_avail(), 2);
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
        vring.set_queue_ready(false);
        vring.set_queue_ready(true);
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
        vring.set_queue_info(0x1000, 0x10_0000, 0x3000).unwrap();
        assert!(!take(&vring, &[]).1.open);
    }

    #[test]
    fn a_disabled_or_stopped_queue_gives_nothing_and_forgets_nothing() {
        let (vring, mapped) = vring();
        offer(&mapped, &[0, 1], 2);
        vring.set_enabled(false);
        assert!(take(&vring, &[]).0.is_empty());
        vring.set_enabled(true);
        vring.set_queue_ready(false);
        assert!(take(&vring, &[]).0.is_empty());
        vring.set_queue_ready(true);
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
            other.push(&mut vec![Used { head: 1, len: 7 }]);
        });
        vring.set_enabled(false);
        assert_eq!(vring.accepted(), 1);
        worker.join().unwrap();
        assert!(!vring.wait_quiet(true, Duration::from_millis(1)));
        assert!(!vring.unpark(true));
        assert!(vring.unpark(false));
        vring.push(&mut vec![Used { head: 0, len: 7 }]);
        assert!(vring.wait_quiet(true, Duration::from_secs(60)));
    }

    #[test]
    fn after_close_nothing_is_written() {
        let (vring, mapped) = vring();
        offer(&mapped, &[0], 1);
        assert_eq!(take(&vring, &[]).0, [0]);
        vring.close();
        vring.push(&mut vec![Used { head: 0, len: 7 }]);
        assert_eq!(mapped.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 0);
        assert!(!vring.is_open());
    }
}
