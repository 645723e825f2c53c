//! The queue thread: takes requests, answers what cannot block, hands on what can, and keeps looking for more for a
//! short while before it sleeps.
//!
//! What is small and ready goes first: a request that moves much is worked on slice by slice, one slice whenever
//! nothing small is waiting (and one per batch in any case, so that it ends). While nothing small comes at all the
//! slices are longer: each is a system call and a look at the ring, which large payloads otherwise pay for nothing.

use std::collections::VecDeque;
use std::hint;
use std::sync::Arc;
use std::time::{Duration, Instant};

use server::run::RUN_BYTES;
use server::{How, Outcome, Scratch};

use crate::chain;
use crate::event::Waiter;
use crate::handler::Handler;
use crate::job::{Job, Malformed};
use crate::poll::Poll;
use crate::pool::Pool;
use crate::ring::Used;
use crate::run;
use crate::vring::{ViewCache, Vring};

/// Most requests taken at once.
const BATCH: u16 = 64;
/// Requests read from the ring before the first of them is worked on. Each is several cache lines that the guest has
/// just written; read together, the waits for them overlap.
const AHEAD: usize = run::MOST;
/// Completions after which the driver is told, although there is more to do.
const FLUSH: usize = 16;
/// A request that moves more bytes than this is worked on when nothing smaller is ready.
const LARGE: usize = 64 * 1024;
/// Bytes of a large request that are moved before the ring is looked at, so that what is small need not wait long.
const SLICE: usize = RUN_BYTES;
/// The same after so many large requests without a small one between them that the next will hardly be one: all that
/// Linux's client moves at once.
const LONG_SLICE: usize = 512 * 1024;
/// So many.
const ALONE: u32 = 64;
/// Request records kept by the thread itself.
const SPARE_MAX: usize = 64;
/// Looks at the ring between two looks at the clock (which costs about as much as 20 of them).
const LOOKS: u32 = 32;

/// The thread's state; lives as long as the connection, so that nothing is allocated per wake-up.
pub struct Worker {
    handler: Arc<dyn Handler>,
    pool: Arc<Pool>,
    vring: Vring,
    poll: Poll,
    /// When the last request was done, before sleeping.
    slept: Option<Instant>,
    heads: Vec<u16>,
    #[expect(clippy::vec_box, reason = "as `spare`")]
    ahead: Vec<Box<Job>>,
    done: Vec<Used>,
    large: VecDeque<Box<Job>>,
    /// Large requests since the last small one.
    since_small: u32,
    #[expect(
        clippy::vec_box,
        reason = "a job is boxed once and moves between lists by its pointer"
    )]
    spare: Vec<Box<Job>>,
    scratch: Scratch,
    cache: ViewCache,
    wakes: u64,
}

impl Worker {
    /// A worker for `vring`.
    pub fn new(handler: Arc<dyn Handler>, pool: Arc<Pool>, vring: Vring, poll_max: Duration) -> Worker {
        Worker {
            handler,
            pool,
            vring,
            poll: Poll::new(poll_max),
            slept: None,
            heads: Vec::with_capacity(usize::from(BATCH)),
            ahead: Vec::with_capacity(AHEAD),
            done: Vec::with_capacity(usize::from(BATCH)),
            large: VecDeque::new(),
            since_small: 0,
            spare: Vec::new(),
            scratch: Scratch::default(),
            cache: ViewCache::default(),
            wakes: 0,
        }
    }

    /// The queue thread: serves the queue whenever `waiter` says that there may be something, until the connection is
    /// gone. A queue that was started is looked at unasked, as whatever was kicked before is not known.
    pub fn run(mut self, mut waiter: Waiter) {
        loop {
            if waiter.wait() {
                let attention = self.vring.attend();
                if attention.closed {
                    return;
                }
                waiter.watch(attention.kick);
                self.vring.announce(attention.call);
            }
            self.serve();
        }
    }

    /// Serves the queue until it has been empty for a while, or is closed, stopped, disabled or broken. All that was
    /// taken is then answered or in the pool's hands.
    pub fn serve(&mut self) {
        if let Some(slept) = self.slept.take() {
            self.poll.woke(slept.elapsed());
        }
        self.vring.suppress_kicks();
        loop {
            let round = self
                .vring
                .exchange(&mut self.done, &mut self.heads, BATCH, &mut self.cache);
            self.vring.announce(round.call);
            if !self.heads.is_empty() {
                self.batch();
                if !self.large.is_empty() {
                    self.flush();
                    self.slice();
                }
            } else if !self.large.is_empty() {
                self.slice();
            } else if !round.open {
                return;
            } else if round.full {
                // Neither polled for nor slept on: what comes next is not a chain but a completion.
                self.vring.wait_room();
            } else if !self.look(round.next_avail) {
                if !self.vring.request_kick() {
                    self.slept = Some(Instant::now());
                    return;
                }
                self.vring.suppress_kicks();
            }
        }
    }

    /// Pushes what is complete.
    fn flush(&mut self) {
        if !self.done.is_empty() {
            let owed = self.vring.push(&mut self.done);
            self.vring.announce(owed);
        }
    }

    /// Looks for chains behind position `next` for as long as it pays; true when there is one, or when the queue
    /// was closed meanwhile.
    fn look(&mut self, next: u16) -> bool {
        let window = self.poll.window();
        let Some(view) = self.cache.get().filter(|_| !window.is_zero()) else {
            return false;
        };
        let begin = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if view.avail_idx() != next {
                    self.poll.hit(begin.elapsed());
                    return true;
                }
                hint::spin_loop();
            }
            if !self.vring.is_open() {
                return true;
            }
            if begin.elapsed() >= window {
                self.poll.missed();
                return false;
            }
        }
    }

    /// Works on all of `heads`.
    fn batch(&mut self) {
        let mut heads = std::mem::take(&mut self.heads);
        let mut ahead = std::mem::take(&mut self.ahead);
        if let Some(view) = self.cache.get() {
            chain::prefetch(view, &heads);
        }
        for some in heads.chunks(AHEAD) {
            ahead.extend(some.iter().filter_map(|head| self.load(*head)));
            if let Some(view) = self.cache.get() {
                ahead.iter_mut().for_each(|job| job.read(view));
            }
            if run::is_any(&ahead, LARGE) {
                self.with_runs(&mut ahead);
            }
            for job in ahead.drain(..) {
                self.begin(job);
                self.flush_some();
            }
        }
        heads.clear();
        (self.heads, self.ahead) = (heads, ahead);
    }

    #[inline]
    fn flush_some(&mut self) {
        if self.done.len() >= FLUSH {
            self.flush();
        }
    }

    /// Works on all of `ahead`, with what belongs together done at once as far as that goes.
    #[inline(never)]
    #[expect(clippy::vec_box, reason = "as `spare`")]
    fn with_runs(&mut self, ahead: &mut Vec<Box<Job>>) {
        self.since_small = 0;
        let mut jobs = ahead.drain(..);
        while !jobs.as_slice().is_empty() {
            let length = run::length(jobs.as_slice(), LARGE);
            let run = &jobs.as_slice()[..length];
            let answered = run::answer(run, self.handler.as_ref(), &mut self.scratch, &mut self.done);
            jobs.by_ref().take(answered).for_each(|job| self.reuse(job));
            self.pool.check_wakes(&mut self.wakes);
            self.flush_some();
            for job in jobs.by_ref().take(length - answered) {
                self.begin(job);
                self.flush_some();
            }
        }
    }

    /// The request at `head`, its message not yet read; a malformed one is completed.
    fn load(&mut self, head: u16) -> Option<Box<Job>> {
        let mut job = self.spare.pop().or_else(|| self.pool.spare()).unwrap_or_default();
        let loaded = match self.cache.get() {
            Some(view) => job.walk(view, head),
            None => Err(Malformed::Short(0)),
        };
        match loaded {
            Ok(()) => Some(job),
            Err(error) => {
                log::warn!("The guest sent a chain that is no request (descriptor {head}): {error}");
                self.done.push(Used { head, len: 0 });
                self.reuse(job);
                None
            }
        }
    }

    fn begin(&mut self, mut job: Box<Job>) {
        if job.bulk() > LARGE {
            self.since_small = self.since_small.saturating_add(1);
            self.hold(&mut job);
            self.large.push_back(job);
        } else {
            self.since_small = 0;
            self.step(job);
        }
    }

    fn hold(&self, job: &mut Job) {
        if let Some(view) = self.cache.get() {
            job.hold(view.memory_arc());
        }
    }

    fn reuse(&mut self, mut job: Box<Job>) {
        if self.spare.len() < SPARE_MAX {
            job.recycle();
            self.spare.push(job);
        }
    }

    /// One step of a large request.
    fn slice(&mut self) {
        if let Some(job) = self.large.pop_front() {
            self.step(job);
        }
    }

    /// Lets the session work on `job`, and sees to what it says.
    fn step(&mut self, mut job: Box<Job>) {
        let slice = match self.since_small >= ALONE {
            true => LONG_SLICE,
            false => SLICE,
        };
        match job.run(self.handler.as_ref(), &mut self.scratch, How::Inline, slice) {
            Outcome::Done(len) => {
                self.done.push(job.used(len));
                self.reuse(job);
                self.pool.check_wakes(&mut self.wakes);
            }
            Outcome::More => {
                self.hold_once(&mut job);
                // To the front: ending one after the other lets the guest work on the first while the next is read.
                self.large.push_front(job);
            }
            Outcome::Defer => {
                self.hold_once(&mut job);
                self.pool.defer(job);
            }
            Outcome::Wait { .. } => {
                self.hold_once(&mut job);
                self.pool.wait(job);
            }
            Outcome::Flush { oldtag, len } => {
                let used = job.used(len);
                let tag = job.tag();
                self.reuse(job);
                self.flush_tag(oldtag);
                self.pool.flush(oldtag, tag, used, &mut self.done);
            }
        }
    }

    /// Lets a request keep its memory, unless it does so already (a newer mapping need not have its addresses).
    fn hold_once(&self, job: &mut Job) {
        if !job.holds() {
            self.hold(job);
        }
    }

    /// Cancels or ends what has tag `oldtag` among the large requests.
    fn flush_tag(&mut self, oldtag: u16) {
        // Each is looked at once: ending one leaves the others where they are.
        let mut index = 0;
        while index < self.large.len() {
            if self.large[index].tag() != oldtag {
                index += 1;
            } else if let Some(job) = self.large.remove(index) {
                if job.begun() {
                    self.finish(job);
                } else {
                    self.done.push(job.used(0));
                    self.reuse(job);
                }
            }
        }
    }

    /// Works on a begun large request until it is complete or in the pool.
    fn finish(&mut self, job: Box<Job>) {
        // `step` puts it at the front of the list for as long as there is more to do; take it from there.
        let rest = self.large.len();
        self.step(job);
        while self.large.len() > rest {
            self.slice();
        }
    }
}
