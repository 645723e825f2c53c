//! The queue's state in one place, behind one lock: what the front-end configured, how far both sides are, and how
//! many requests are accepted.
//!
//! What changes under the lock and is told to others after it (an interrupt) is owed until it is told: no message of the
//! front-end that stops or changes the queue is answered before. QEMU throws its end of the call descriptor away as soon
//! as GET_VRING_BASE is answered, and with EVENT_IDX an interrupt that came too late never comes again.

mod control;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::event::{EventFile, Waiter};
use crate::memory::Memory;
use crate::ring::{RingAddresses, RingView, Used};

/// The writing of an interrupt that takes so long is stuck.
pub const STUCK: Duration = Duration::from_millis(100);

/// Locks `mutex`; a panic elsewhere (there is none to be) must not take the queue with it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a guest has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Its driver has not started the queue.
    #[default]
    None,
    /// Its driver has.
    Started,
    /// It has sent a request.
    Used,
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
    /// How far the guest has come on this connection.
    progress: Progress,
    /// Chains taken and not yet pushed.
    accepted: u32,
    /// How many may be at a time, if not as many as there are entries; the next ones stay in the ring until one is
    /// pushed.
    most: Option<u32>,
    /// How many of them wait for something that may never come (a lock); they touch no guest memory meanwhile.
    parked: u32,
    memory: Option<Arc<Memory>>,
    view: Option<RingView>,
    /// Why there is none.
    unusable: &'static str,
    /// Changes with `view`.
    generation: u64,
    kick: Option<Arc<EventFile>>,
    call: Option<Arc<EventFile>>,
    /// All call descriptors that somebody may be writing to, replaced ones too.
    calls: Vec<Weak<EventFile>>,
    /// The driver is to be told without a reason, as the queue was started or its call descriptor replaced: nobody knows
    /// what was lost before.
    call_due: bool,
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
            let made = match &self.memory {
                Some(memory) => RingView::new(memory, &self.addresses),
                None => Err("there is no guest memory"),
            };
            match made {
                Ok(view) => self.view = Some(view),
                Err(why) => self.unusable = why,
            }
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
    fn push(&mut self, done: &mut Vec<Used>) -> Option<Arc<EventFile>> {
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
            self.broke(self.unusable);
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
        if take > 0 {
            self.progress = Progress::Used;
        }
        self.next_avail = next.wrapping_add(take);
        self.accepted = accepted + u32::from(take);
    }
}

/// An interrupt that the driver is owed: for [`Vring::announce`], and soon.
#[derive(Debug)]
#[must_use]
pub struct Owed(Arc<EventFile>);

/// What one exchange with the ring gave.
#[derive(Debug)]
pub struct Round {
    /// Tell the driver.
    pub call: Option<Owed>,
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

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// Signalled when `accepted`, `parked` or `owed` changes while somebody waits for it.
    quiet: Condvar,
    /// [`Ring::open`], readable without the lock.
    open: AtomicBool,
    /// How many wait on `quiet`.
    draining: AtomicUsize,
    /// Interrupts decided on and not yet sent. Goes up under the lock, down without it.
    owed: AtomicU32,
    /// Tells the queue thread that something else than the ring changed.
    wake: EventFd,
}

/// The queue. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct Vring {
    shared: Arc<Shared>,
}

/// What the queue thread is told when it is woken.
#[derive(Debug)]
pub struct Attention {
    /// The connection is gone.
    pub closed: bool,
    /// What to wait for from now on.
    pub kick: Option<Arc<EventFile>>,
    /// An interrupt that nobody asked for.
    pub call: Option<Owed>,
}

impl Vring {
    /// A queue that is neither set up nor started. Fails when no descriptor is left.
    pub fn new() -> io::Result<Vring> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Vring {
            shared: Arc::new(Shared {
                ring: Mutex::default(),
                quiet: Condvar::new(),
                open: AtomicBool::new(false),
                draining: AtomicUsize::new(0),
                owed: AtomicU32::new(0),
                wake,
            }),
        })
    }

    /// What the queue thread sleeps on.
    pub fn waiter(&self) -> io::Result<Waiter> {
        Ok(Waiter::new(&self.shared.wake)?)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        lock(&self.shared.ring)
    }

    /// Changes the ring, keeps `open` in step, and lets the queue thread look when it was opened or closed.
    fn change<T>(&self, change: impl FnOnce(&mut Ring) -> T) -> T {
        let mut ring = self.ring();
        let before = ring.open();
        let result = change(&mut ring);
        let now = ring.open();
        self.shared.open.store(now, Ordering::Release);
        ring.call_due |= now && !before;
        if now && ring.progress == Progress::None {
            ring.progress = Progress::Started;
        }
        let rouse = before != now || ring.closed;
        drop(ring);
        if rouse {
            self.rouse();
        }
        result
    }

    fn rouse(&self) {
        // It cannot be full: nobody writes 2^64 times.
        let _ = self.shared.wake.write(1);
    }

    /// What the queue thread has to know, once it was woken.
    pub fn attend(&self) -> Attention {
        let mut ring = self.ring();
        let open = ring.open();
        let due = std::mem::take(&mut ring.call_due) && open;
        let call = ring.call.clone().filter(|_| due);
        Attention {
            closed: ring.closed,
            kick: ring.kick.clone().filter(|_| open),
            call: self.owe(call),
        }
    }

    /// To be called with the ring locked.
    #[inline]
    fn owe(&self, call: Option<Arc<EventFile>>) -> Option<Owed> {
        let call = call?;
        self.shared.owed.fetch_add(1, Ordering::Relaxed);
        Some(Owed(call))
    }

    /// Tells the driver, if there is something to tell. Not with a lock that others need.
    pub fn announce(&self, owed: Option<Owed>) {
        let Some(Owed(call)) = owed else { return };
        call.notify();
        self.shared.owed.fetch_sub(1, Ordering::Release);
        self.tell_drain();
    }

    /// Whether requests may be taken; a glance without the lock.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.shared.open.load(Ordering::Acquire)
    }

    /// How far the guest has come.
    pub fn progress(&self) -> Progress {
        self.ring().progress
    }

    /// Whether GET_VRING_BASE has come: what waits must be answered now.
    pub fn is_stopping(&self) -> bool {
        !self.ring().ready
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
        let call = self.owe(call);
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

    /// Pushes `done` in order (emptied).
    pub fn push(&self, done: &mut Vec<Used>) -> Option<Owed> {
        let mut ring = self.ring();
        let call = ring.push(done);
        let call = self.owe(call);
        drop(ring);
        self.tell_drain();
        call
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

    /// Waits until no accepted request is left but parked ones (`all`: none at all) and no interrupt is owed, at most
    /// `time`. True when it is so.
    pub fn wait_quiet(&self, all: bool, time: Duration) -> bool {
        self.wait_until(time, |ring| {
            let rest = if all { 0 } else { ring.parked };
            (ring.accepted <= rest || ring.closed) && !self.owes()
        })
    }

    fn owes(&self) -> bool {
        self.shared.owed.load(Ordering::Acquire) > 0
    }

    /// Lets go whoever is stuck in the writing of an interrupt. What it takes from the call descriptor may be lost, so this
    /// is for when the queue stops, and the driver will be told without a reason when it starts again.
    pub fn make_room(&self) {
        if !self.owes() {
            return;
        }
        let calls: Vec<_> = self.ring().calls.iter().filter_map(Weak::upgrade).collect();
        for call in calls {
            call.make_room();
        }
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
