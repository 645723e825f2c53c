//! The requests that have left the queue thread, and the Tflush rules.
//!
//! Linux's client sends Tflush when a task is killed in the middle of a request (`p9_client_rpc`), and frees the old
//! request's buffers as soon as Rflush is there (`p9_client_flush`, `p9_virtio_cancelled`). So before Rflush the old
//! request's descriptors must have been returned: with length 0, which the client ignores (`req_done`), if it was only
//! waiting, else with its reply. Plain data; the pool has the threads.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::job::Job;
use crate::ring::Used;

/// Most request records kept for reuse.
const SPARE_MAX: usize = 64;

/// A request that cannot be answered yet.
#[derive(Debug)]
struct Waiting {
    job: Box<Job>,
    retry: Instant,
    /// The session's wake count before it was last tried.
    seen: u64,
}

/// A request at work.
#[derive(Debug)]
struct Running {
    tag: u16,
    since: Instant,
    /// It waited, and may do so again.
    waited: bool,
}

/// An Rflush that must not go before another reply.
#[derive(Debug)]
struct Parked {
    tag: u16,
    oldtag: u16,
    used: Used,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Inflight {
    queue: VecDeque<Box<Job>>,
    waiting: Vec<Waiting>,
    /// The requests that are being worked on outside the queue thread.
    running: Vec<Running>,
    parked: Vec<Parked>,
    #[expect(
        clippy::vec_box,
        reason = "a job is boxed once and moves between lists by its pointer"
    )]
    spare: Vec<Box<Job>>,
}

/// How many requests are at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtWork {
    /// Not for long.
    pub active: usize,
    /// For so long that they may never end.
    pub stuck: usize,
    /// When the next one will be stuck.
    pub next: Option<Instant>,
}

/// What became of a request that wants to wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Waits {
    /// It waits.
    Yes,
    /// It was flushed meanwhile: completed.
    Flushed,
}

impl Inflight {
    /// A request for the pool.
    pub fn enqueue(&mut self, job: Box<Job>) {
        self.queue.push_back(job);
    }

    /// How many requests have not been taken by a thread.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The next request to begin; it is running from now on, until [`Inflight::ended`] or [`Inflight::wait_again`].
    pub fn take_queued(&mut self, now: Instant) -> Option<Box<Job>> {
        let job = self.queue.pop_front()?;
        self.start(&job, now);
        Some(job)
    }

    fn start(&mut self, job: &Job, since: Instant) {
        self.running.push(Running {
            tag: job.tag(),
            since,
            waited: job.waited(),
        });
    }

    /// Who is at work at `now`; a request that has been for `long` is stuck.
    pub fn at_work(&self, now: Instant, long: Duration) -> AtWork {
        let mut found = AtWork::default();
        for running in &self.running {
            let until = running.since + long;
            if until <= now {
                found.stuck += 1;
            } else {
                found.active += 1;
                found.next = Some(found.next.map_or(until, |next| next.min(until)));
            }
        }
        found
    }

    /// A request that was not running waits from now on.
    pub fn wait(&mut self, mut job: Box<Job>, retry: Instant, seen: u64) {
        job.note_wait();
        self.waiting.push(Waiting { job, retry, seen });
    }

    /// A request that was running waits again, unless it was flushed while it ran: then `out` gets its completion
    /// and those of the Rflushes.
    pub fn wait_again(&mut self, job: Box<Job>, retry: Instant, seen: u64, out: &mut Vec<Used>) -> Waits {
        let tag = job.tag();
        if self.parked.iter().any(|flush| flush.oldtag == tag) {
            self.ended(tag, job.used(0), out);
            self.reuse(job);
            return Waits::Flushed;
        }
        self.forget_running(tag);
        self.wait(job, retry, seen);
        Waits::Yes
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many wait or are being tried again.
    pub fn waiters(&self) -> usize {
        self.waiting.len() + self.running.iter().filter(|running| running.waited).count()
    }

    /// When the first of those that wait is due.
    pub fn next_retry(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.retry).min()
    }

    /// One that waits and is due at `now`, or has not been tried since the wake count became `wakes`; it is running
    /// from now on.
    pub fn take_due(&mut self, now: Instant, wakes: u64) -> Option<Box<Job>> {
        let due = self
            .waiting
            .iter()
            .position(|waiting| waiting.retry <= now || waiting.seen != wakes)?;
        Some(self.start_waiting(due, now))
    }

    /// Lets all that are due before `until` be due then: the queue is not open.
    pub fn put_off(&mut self, until: Instant, wakes: u64) {
        for waiting in &mut self.waiting {
            if waiting.retry <= until || waiting.seen != wakes {
                waiting.retry = until;
                waiting.seen = wakes;
            }
        }
    }

    /// Any one that waits; it is running from now on.
    pub fn take_waiting(&mut self, now: Instant) -> Option<Box<Job>> {
        (!self.waiting.is_empty()).then(|| self.start_waiting(0, now))
    }

    /// Lets all that wait begin once more; gives how many.
    pub fn requeue_waiting(&mut self) -> usize {
        let waited = self.waiting.len();
        self.queue
            .extend(self.waiting.drain(..).map(|waiting| waiting.job));
        waited
    }

    fn start_waiting(&mut self, index: usize, now: Instant) -> Box<Job> {
        // In order, so that locks are tried in the order they were asked for.
        let job = self.waiting.remove(index).job;
        self.start(&job, now);
        job
    }

    fn forget_running(&mut self, tag: u16) {
        if let Some(index) = self.running.iter().position(|running| running.tag == tag) {
            self.running.swap_remove(index);
        }
    }

    /// A running request is complete: `out` gets its completion and those of every Rflush that waited for it.
    pub fn ended(&mut self, tag: u16, used: Used, out: &mut Vec<Used>) {
        self.forget_running(tag);
        out.push(used);
        self.release(tag, out);
    }

    /// Moves the Rflushes for `tag`, and those for their tags, to `out`, oldest first.
    fn release(&mut self, tag: u16, out: &mut Vec<Used>) {
        if self.parked.is_empty() {
            return;
        }
        let mut ended = VecDeque::from([tag]);
        while let Some(tag) = ended.pop_front() {
            self.parked.retain(|flush| {
                if flush.oldtag == tag {
                    out.push(flush.used);
                    ended.push_back(flush.tag);
                }
                flush.oldtag != tag
            });
        }
    }

    /// A Tflush with tag `tag` and completion `used`. `out` gets what can be completed now, in order: requests it
    /// cancels, then perhaps itself. Gives the number of waiting requests it cancelled.
    ///
    /// Flushing a flush waits for that one to end: it stands for the request it waits for.
    pub fn flush(&mut self, oldtag: u16, tag: u16, used: Used, out: &mut Vec<Used>) -> usize {
        let mut cancelled = 0;
        let mut index = 0;
        while index < self.waiting.len() {
            if self.waiting[index].job.tag() == oldtag {
                let job = self.waiting.remove(index).job;
                out.push(job.used(0));
                self.reuse(job);
                cancelled += 1;
            } else {
                index += 1;
            }
        }
        let mut index = 0;
        let mut begun = false;
        while index < self.queue.len() {
            let job = &self.queue[index];
            if job.tag() != oldtag {
                index += 1;
            } else if job.begun() {
                begun = true;
                index += 1;
            } else if let Some(job) = self.queue.remove(index) {
                out.push(job.used(0));
                self.reuse(job);
            }
        }
        let runs = begun || self.running.iter().any(|running| running.tag == oldtag);
        if runs || self.parked.iter().any(|flush| flush.tag == oldtag) {
            self.parked.push(Parked { tag, oldtag, used });
        } else {
            out.push(used);
        }
        cancelled
    }

    /// As [`Inflight::flush`], for a Tflush that is itself in the list of what runs.
    pub fn flush_running(&mut self, oldtag: u16, tag: u16, used: Used, out: &mut Vec<Used>) -> usize {
        self.forget_running(tag);
        let cancelled = self.flush(oldtag, tag, used, out);
        if out.last() == Some(&used) {
            self.release(tag, out);
        }
        cancelled
    }

    /// Drops everything that is not running; gives how many requests that were, and how many of them waited.
    pub fn clear(&mut self) -> (usize, usize) {
        let waited = self.waiting.len();
        let dropped = self.queue.len() + waited + self.parked.len();
        self.queue.clear();
        self.waiting.clear();
        self.parked.clear();
        (dropped, waited)
    }

    /// A record for a new request.
    pub fn spare(&mut self) -> Option<Box<Job>> {
        self.spare.pop()
    }

    /// Takes back the record of a request that is done.
    pub fn reuse(&mut self, mut job: Box<Job>) {
        job.recycle();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::job;
    use std::time::Duration;

    fn used(head: u16, len: u32) -> Used {
        Used { head, len }
    }

    #[test]
    fn an_unknown_tag_is_flushed_at_once() {
        let (mut inflight, mut out) = (Inflight::default(), Vec::new());
        inflight.enqueue(job(1, 10));
        inflight.flush(11, 20, used(2, 7), &mut out);
        assert_eq!(out, [used(2, 7)]);
        // Itself as well.
        inflight.flush(21, 21, used(3, 7), &mut out);
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn what_has_not_begun_is_cancelled_before_the_rflush() {
        let (mut inflight, mut out) = (Inflight::default(), Vec::new());
        inflight.enqueue(job(1, 10));
        inflight.enqueue(job(2, 11));
        inflight.wait(job(3, 12), Instant::now(), 0);
        assert_eq!(inflight.flush(11, 20, used(4, 7), &mut out), 0);
        assert_eq!(inflight.flush(12, 21, used(5, 7), &mut out), 1);
        assert_eq!(out, [used(2, 0), used(4, 7), used(3, 0), used(5, 7)]);
        assert_eq!(
            inflight.take_queued(Instant::now()).map(|job| job.tag()),
            Some(10)
        );
        assert!(inflight.take_queued(Instant::now()).is_none() && inflight.waiting() == 0);
    }

    #[test]
    fn what_runs_ends_before_all_its_rflushes_and_theirs() {
        let (mut inflight, mut out) = (Inflight::default(), Vec::new());
        inflight.enqueue(job(1, 10));
        let running = inflight.take_queued(Instant::now()).unwrap();
        inflight.flush(10, 20, used(2, 7), &mut out);
        inflight.flush(20, 21, used(3, 7), &mut out);
        inflight.flush(10, 22, used(4, 7), &mut out);
        assert!(out.is_empty());
        inflight.ended(running.tag(), used(1, 160), &mut out);
        assert_eq!(out, [used(1, 160), used(2, 7), used(4, 7), used(3, 7)]);
        out.clear();
        inflight.flush(10, 23, used(5, 7), &mut out);
        assert_eq!(out, [used(5, 7)]);
    }

    #[test]
    fn duplicate_tags_cannot_make_flushes_wait_for_each_other() {
        let (mut inflight, mut out) = (Inflight::default(), Vec::new());
        inflight.enqueue(job(1, 5));
        let running = inflight.take_queued(Instant::now()).unwrap();
        inflight.flush(5, 9, used(2, 7), &mut out);
        inflight.flush(9, 5, used(3, 7), &mut out);
        inflight.flush(5, 9, used(4, 7), &mut out);
        inflight.ended(running.tag(), used(1, 7), &mut out);
        out.sort_by_key(|used| used.head);
        assert_eq!(out.iter().map(|used| used.head).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn flushed_while_being_retried_it_does_not_wait_again() {
        let (mut inflight, mut out) = (Inflight::default(), Vec::new());
        let now = Instant::now();
        inflight.wait(job(1, 10), now + Duration::from_secs(60), 3);
        assert!(inflight.take_due(now, 3).is_none());
        let running = inflight.take_due(now, 4).unwrap();
        assert_eq!(
            (inflight.waiting(), inflight.waiters()),
            (0, 1),
            "it keeps its place"
        );
        inflight.flush(10, 20, used(2, 7), &mut out);
        assert!(out.is_empty());
        assert_eq!(inflight.wait_again(running, now, 4, &mut out), Waits::Flushed);
        assert_eq!(out, [used(1, 0), used(2, 7)]);
        assert_eq!(inflight.waiting(), 0);
    }

    #[test]
    fn what_has_been_at_work_for_long_is_stuck() {
        let mut inflight = Inflight::default();
        let (now, long) = (Instant::now(), Duration::from_secs(1));
        for tag in 0..3 {
            inflight.enqueue(job(tag, tag));
        }
        inflight.take_queued(now);
        inflight.take_queued(now + long / 2);
        let at = |now| inflight.at_work(now, long);
        let (active, stuck) = (at(now).active, at(now).stuck);
        assert_eq!((active, stuck, at(now).next), (2, 0, Some(now + long)));
        let later = at(now + long);
        assert_eq!((later.active, later.stuck), (1, 1));
        assert_eq!(later.next, Some(now + long * 3 / 2));
        assert_eq!(at(now + long * 2).next, None);
        inflight.ended(0, used(0, 7), &mut Vec::new());
        assert_eq!(inflight.at_work(now + long, long).stuck, 0);
    }

    #[test]
    fn those_that_wait_come_in_order() {
        let mut inflight = Inflight::default();
        let now = Instant::now();
        for head in 0..3 {
            inflight.wait(job(head, head), now, 0);
        }
        let taken: Vec<_> = std::iter::from_fn(|| inflight.take_due(now, 0))
            .map(|job| job.tag())
            .collect();
        assert_eq!(taken, [0, 1, 2]);
    }
}
