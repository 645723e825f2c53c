//! The threads that may block, and what waits for a lock.
//!
//! Threads are started when there is work and none is free. So many are kept for requests that take a moment: reads
//! from a disk, fsyncs. A request that takes much longer may hang (on a server that is gone, a disk that is
//! broken); the thread it has is not counted any more, and another takes its place, up to a limit. To tell when that
//! is so takes a clock, so there is one thread more than may work while all of these are busy. What is too many goes
//! again.
//!
//! A request that waits costs no thread: whichever thread is free tries it again when the session says that something
//! was released, or when its time comes. Such requests may have half of what can be in flight and no more: a guest
//! whose every request waited could not send the one that lets go. Beyond that they are answered as not granted.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use server::{How, Outcome, Scratch};

use crate::backend::Role;
use crate::handler::Handler;
use crate::inflight::{Inflight, Waits};
use crate::job::Job;
use crate::ring::Used;
use crate::vring::{STUCK, Vring, lock};

/// A request that has been at work for so long may hang.
const LONG: Duration = Duration::from_millis(100);

/// Bytes moved per system call: above any payload.
const WHOLE: usize = 1 << 30;

/// How soon waiting requests are looked at again while the queue is not open.
const CLOSED_RETRY: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct State {
    inflight: Inflight,
    threads: usize,
    idle: usize,
    /// When an idle thread will look by itself at those that wait.
    timed: Option<Instant>,
    stop: bool,
    /// It was said that a thread could not be started.
    complained: bool,
}

/// How much of what there may be.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Threads at work on requests that are not stuck; at least 1.
    pub threads: usize,
    /// Threads.
    pub max_threads: usize,
    /// Requests that wait.
    pub max_waiting: usize,
    /// As [`crate::DeviceOptions::on_thread`].
    pub on_thread: fn(Role),
}

thread_local! {
    /// This is a thread of a pool: what its role entails, threads that it starts inherit.
    static IN_POOL: Cell<bool> = const { Cell::new(false) };
}

/// The pool of one connection. Lock order: this state, then the ring.
pub struct Pool {
    handler: Arc<dyn Handler>,
    vring: Vring,
    limits: PoolLimits,
    state: Mutex<State>,
    work: Condvar,
    /// Requests that wait, readable without the lock.
    waiting: AtomicUsize,
    myself: Weak<Pool>,
}

impl Pool {
    /// A pool for requests of `vring`.
    pub fn new(handler: Arc<dyn Handler>, vring: Vring, limits: PoolLimits) -> Arc<Pool> {
        let threads = limits.threads.max(1);
        Arc::new_cyclic(|myself| Pool {
            handler,
            vring,
            limits: PoolLimits {
                threads,
                max_threads: limits.max_threads.max(threads),
                ..limits
            },
            state: Mutex::default(),
            work: Condvar::new(),
            waiting: AtomicUsize::new(0),
            myself: Weak::clone(myself),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes a request that may block. The job must hold its memory.
    pub fn defer(&self, job: Box<Job>) {
        let mut state = self.state();
        state.inflight.enqueue(job);
        self.rouse_or_work(state);
    }

    /// Takes a request that waits for something to be released. The job must hold its memory.
    pub fn wait(&self, job: Box<Job>) {
        let mut state = self.state();
        if self.crowded(&state) {
            // To be asked once more, by a thread that may block, and answered.
            state.inflight.enqueue(job);
            self.rouse_or_work(state);
            return;
        }
        // Due at once: what it waits for may have been released after it was tried.
        state
            .inflight
            .wait(job, Instant::now(), self.handler.wake_count());
        self.vring.park();
        self.publish_waiting(&state);
        self.rouse_or_work(state);
    }

    /// Whether no more requests may wait.
    fn crowded(&self, state: &State) -> bool {
        let half = usize::try_from(self.vring.most() / 2).unwrap_or(usize::MAX);
        state.inflight.waiters() >= self.limits.max_waiting.min(half)
    }

    /// Threads there may be while `stuck` are: one of them looks at the clock.
    fn bound(&self, stuck: usize) -> usize {
        (self.limits.threads + stuck + 1).min(self.limits.max_threads)
    }

    fn publish_waiting(&self, state: &State) {
        self.waiting.store(state.inflight.waiting(), Ordering::Relaxed);
    }

    fn rouse_or_work(&self, mut state: MutexGuard<'_, State>) {
        self.rouse(&mut state);
        if state.threads == 0 {
            drop(state);
            self.work_here();
        }
    }

    /// Sees to it that there is a free thread for each request that can begin, and one to look after those that
    /// wait, as far as the limit allows.
    fn rouse(&self, state: &mut State) {
        // An idle thread that was told of a request counts as idle until it takes it, and the request as queued.
        let wanted = state.inflight.queued() + usize::from(state.inflight.waiting() > 0);
        if wanted == 0 {
            return;
        }
        let stuck = state.inflight.at_work(Instant::now(), LONG).stuck;
        if state.idle >= wanted || state.threads >= self.bound(stuck) {
            self.work.notify_one();
            return;
        }
        let Some(pool) = self.myself.upgrade() else {
            return;
        };
        let inherits = IN_POOL.get();
        let started = thread::Builder::new()
            .name(format!("io-{}", state.threads))
            .spawn(move || {
                IN_POOL.set(true);
                if !inherits {
                    (pool.limits.on_thread)(Role::Pool);
                }
                pool.work();
            });
        match started {
            Ok(_) => state.threads += 1,
            Err(error) => {
                if !std::mem::replace(&mut state.complained, true) {
                    log::warn!(
                        "Cannot start a thread ({error}); {} work on slow requests.",
                        state.threads
                    );
                }
                self.work.notify_one();
            }
        }
    }

    /// Does what a pool thread would do, on the calling thread.
    fn work_here(&self) {
        let mut scratch = Scratch::default();
        loop {
            let job = self.state().inflight.take_queued(Instant::now());
            let Some(job) = job else { break };
            self.run(job, &mut scratch, How::Last);
        }
        self.answer_waiting(&mut scratch);
    }

    /// To be called after requests were answered elsewhere: something may have been released.
    #[inline]
    pub fn check_wakes(&self, seen: &mut u64) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            let wakes = self.handler.wake_count();
            if *seen != wakes {
                *seen = wakes;
                self.nudge();
            }
        }
    }

    /// Lets a free thread look at what waits.
    fn nudge(&self) {
        // Taken so that a thread between its look and its sleep is not missed.
        drop(self.state());
        self.work.notify_one();
    }

    /// A Tflush from the queue thread: what can be completed now is put in `out`, in order.
    pub fn flush(&self, oldtag: u16, tag: u16, used: Used, out: &mut Vec<Used>) {
        let mut state = self.state();
        let cancelled = state.inflight.flush(oldtag, tag, used, out);
        for _ in 0..cancelled {
            self.vring.unpark(false);
        }
        self.publish_waiting(&state);
    }

    /// A record for a new request, if one is at hand.
    pub fn spare(&self) -> Option<Box<Job>> {
        self.state().inflight.spare()
    }

    fn work(&self) {
        let mut scratch = Scratch::default();
        let mut state = self.state();
        loop {
            if state.stop {
                break;
            }
            let now = Instant::now();
            let at_work = state.inflight.at_work(now, LONG);
            let may_work = at_work.active < self.limits.threads;
            if may_work && let Some(job) = state.inflight.take_queued(now) {
                // This thread may be away for long.
                self.rouse(&mut state);
                drop(state);
                self.run(job, &mut scratch, How::Blocking);
                state = self.state();
                continue;
            }
            let wakes = self.handler.wake_count();
            if state.inflight.waiting() > 0 && !self.vring.is_open() {
                state.inflight.put_off(now + CLOSED_RETRY, wakes);
            } else if may_work && let Some(job) = state.inflight.take_due(now, wakes) {
                if self.vring.unpark(true) {
                    self.publish_waiting(&state);
                    self.rouse(&mut state);
                    drop(state);
                    self.run(job, &mut scratch, How::Blocking);
                    state = self.state();
                } else {
                    let mut none = Vec::new();
                    let retry = now + CLOSED_RETRY;
                    if state.inflight.wait_again(job, retry, wakes, &mut none) == Waits::Flushed {
                        self.vring.unpark(false);
                        let owed = self.vring.push(&mut none);
                        drop(state);
                        self.vring.announce(owed);
                        state = self.state();
                    }
                }
                continue;
            }
            if state.threads > self.bound(at_work.stuck) {
                // What this one may have been woken for, another sees to.
                self.work.notify_one();
                break;
            }
            // Until it is this thread's turn to work, or until something that waits is due.
            let work = state.inflight.queued() + state.inflight.waiting();
            let retry = match (may_work, work) {
                (false, 1..) => at_work.next,
                _ => state.inflight.next_retry(),
            };
            // One thread keeps an eye on the clock for all; another only when it has to wake earlier.
            let retry = retry.filter(|retry| state.timed.is_none_or(|timed| *retry < timed));
            state.idle += 1;
            state = match retry {
                Some(retry) => {
                    state.timed = Some(retry);
                    let time = retry.saturating_duration_since(now);
                    let woken = self.work.wait_timeout(state, time);
                    let mut state = woken.unwrap_or_else(PoisonError::into_inner).0;
                    if state.timed == Some(retry) {
                        state.timed = None;
                    }
                    state
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle -= 1;
        }
        state.threads -= 1;
    }

    /// Works on a running request until it is complete or waits again.
    fn run(&self, mut job: Box<Job>, scratch: &mut Scratch, how: How) {
        let tag = job.tag();
        let mut how = how;
        let mut out = Vec::new();
        let owed = loop {
            let seen = self.handler.wake_count();
            match job.run(self.handler.as_ref(), scratch, how, WHOLE) {
                Outcome::More => {}
                Outcome::Done(len) => {
                    let mut state = self.state();
                    state.inflight.ended(tag, job.used(len), &mut out);
                    state.inflight.reuse(job);
                    // With the state locked: a Tflush for this tag must see it running until its reply is pushed.
                    // The interrupt can wait until it is not.
                    break self.vring.push(&mut out);
                }
                Outcome::Wait { .. } if how != How::Last && self.vring.is_stopping() => how = How::Last,
                Outcome::Wait { retry_ms } if how != How::Last => {
                    let retry = Instant::now() + Duration::from_millis(u64::from(retry_ms.max(1)));
                    let mut state = self.state();
                    // One that has waited has its place.
                    if !job.waited() && self.crowded(&state) {
                        how = How::Last;
                        continue;
                    }
                    let owed = match state.inflight.wait_again(job, retry, seen, &mut out) {
                        Waits::Yes => {
                            self.vring.park();
                            None
                        }
                        Waits::Flushed => self.vring.push(&mut out),
                    };
                    self.publish_waiting(&state);
                    break owed;
                }
                Outcome::Flush { oldtag, len } => {
                    let mut state = self.state();
                    let used = job.used(len);
                    let cancelled = state.inflight.flush_running(oldtag, tag, used, &mut out);
                    for _ in 0..cancelled {
                        self.vring.unpark(false);
                    }
                    state.inflight.reuse(job);
                    self.publish_waiting(&state);
                    break self.vring.push(&mut out);
                }
                outcome @ (Outcome::Defer | Outcome::Wait { .. }) => {
                    log::error!("A request was answered with {outcome:?} where that is no answer.");
                    let mut state = self.state();
                    state.inflight.ended(tag, job.used(0), &mut out);
                    break self.vring.push(&mut out);
                }
            }
        };
        self.vring.announce(owed);
        // It may have released what another waits for, and this thread may be busy again at once.
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.nudge();
        }
    }

    /// Answers what waits with "not granted".
    fn answer_waiting(&self, scratch: &mut Scratch) {
        loop {
            let mut state = self.state();
            let Some(job) = state.inflight.take_waiting(Instant::now()) else {
                break;
            };
            self.vring.unpark(false);
            self.publish_waiting(&state);
            drop(state);
            self.run(job, scratch, How::Last);
        }
    }

    /// The queue was stopped: gives every accepted request its answer, and returns when all have theirs and every
    /// interrupt is sent; false when `given_up` says so before.
    pub fn drain(&self, given_up: &dyn Fn() -> bool) -> bool {
        self.settle(true, "stopped", given_up, || {
            // On threads of the pool: to ask once more may hang as anything on the host may.
            let mut state = self.state();
            let waited = state.inflight.requeue_waiting();
            if waited > 0 {
                for _ in 0..waited {
                    self.vring.unpark(false);
                }
                self.publish_waiting(&state);
                self.rouse_or_work(state);
            }
        })
    }

    /// The queue was disabled, or will be reset: returns when nothing moves any more but what waits for a lock, and every
    /// interrupt is sent; false when `given_up` says so before. A paused machine's memory may be saved right afterwards.
    pub fn quiesce(&self, given_up: &dyn Fn() -> bool) -> bool {
        self.settle(false, "disabled", given_up, || ())
    }

    fn settle(&self, all: bool, what: &str, given_up: &dyn Fn() -> bool, help: impl Fn()) -> bool {
        let begun = Instant::now();
        let mut warned = false;
        loop {
            help();
            if self.vring.wait_quiet(all, Duration::from_millis(20)) {
                return true;
            }
            if given_up() {
                return false;
            }
            if begun.elapsed() > STUCK {
                self.vring.make_room();
            }
            if !warned && begun.elapsed() > Duration::from_secs(5) {
                log::warn!(
                    "The queue is being {what}, but {} requests are still at work on the host; waiting for them.",
                    self.vring.accepted()
                );
                warned = true;
            }
        }
    }

    /// The device was reset: what waits is dropped without an answer, nobody is there to read it.
    pub fn reset(&self) {
        let mut state = self.state();
        let (dropped, waited) = state.inflight.clear();
        for _ in 0..waited {
            self.vring.unpark(false);
        }
        self.vring.abandon(u32::try_from(dropped).unwrap_or(u32::MAX));
        self.publish_waiting(&state);
    }

    /// The connection is gone: the threads end after what they are doing now.
    pub fn stop(&self) {
        self.reset();
        self.state().stop = true;
        self.work.notify_all();
    }
}
