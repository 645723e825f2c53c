//! Requests next to each other in the queue that adjoin in the file too: handed over together, so that one system
//! call may do for all of them.

use server::run::{RUN_BYTES, adjoin};
use server::{Neighbour, Scratch};

use crate::handler::Handler;
use crate::job::Job;
use crate::ring::Used;

/// Most requests of a run.
pub const MOST: usize = 16;

/// Whether `pair` are two requests of a run, each moving `most` bytes at the most.
#[inline]
fn belong(pair: &[Box<Job>], most: usize) -> bool {
    let small = |job: &Job| job.bulk() <= most;
    matches!(pair, [before, next] if small(before) && small(next) && adjoin(before.message(), next.message()))
}

/// Whether any of `jobs` belong together.
#[inline]
pub fn is_any(jobs: &[Box<Job>], most: usize) -> bool {
    jobs.windows(2).any(|pair| belong(pair, most))
}

/// How many at the front of `jobs` belong together: 1 for a request that is alone, 0 when there is none.
pub fn length(jobs: &[Box<Job>], most: usize) -> usize {
    let Some(first) = jobs.first() else { return 0 };
    let mut total = first.bulk();
    let follows = |pair: &&[Box<Job>]| {
        total = total.saturating_add(pair.last().map_or(0, |next| next.bulk()));
        total <= RUN_BYTES && belong(pair, most)
    };
    1 + jobs.windows(2).take(MOST - 1).take_while(follows).count()
}

/// Lets `handler` answer requests at the front of `jobs`, a run, together: puts them on `done`, and gives how many
/// they are.
pub fn answer(
    jobs: &[Box<Job>],
    handler: &dyn Handler,
    scratch: &mut Scratch,
    done: &mut Vec<Used>,
) -> usize {
    if jobs.len() < 2 {
        return 0;
    }
    let mut run = [Neighbour::default(); MOST];
    for (place, job) in run.iter_mut().zip(jobs) {
        *place = job.neighbour();
    }
    let run = &mut run[..jobs.len().min(MOST)];
    let answered = handler.handle_run(run, scratch).min(run.len());
    done.extend(
        jobs.iter()
            .zip(run)
            .take(answered)
            .map(|(job, at)| job.used(at.used)),
    );
    answered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::{job, moving};

    const MOST_EACH: usize = 64 * 1024;

    fn of(jobs: &[Box<Job>]) -> usize {
        length(jobs, MOST_EACH)
    }

    #[expect(clippy::vec_box, reason = "as the queue has them")]
    fn adjoining(kind: u8, each: u32, count: u64) -> Vec<Box<Job>> {
        let one = |at| moving(kind, 1, at * u64::from(each), each);
        (0..count).map(one).collect()
    }

    #[test]
    fn a_run_is_as_long_as_requests_adjoin() {
        assert_eq!(of(&[]), 0);
        assert!(!is_any(&[], MOST_EACH));
        for kind in [116, 118] {
            assert_eq!(of(&adjoining(kind, 4096, 1)), 1);
            assert_eq!(of(&adjoining(kind, 4096, 3)), 3);
            assert_eq!(of(&adjoining(kind, 4096, 40)), MOST);
            let mut jobs = adjoining(kind, 4096, 6);
            jobs.remove(3);
            assert_eq!(of(&jobs), 3);
            jobs.insert(2, job(0, 1));
            assert_eq!(of(&jobs), 2);
            jobs.insert(0, job(0, 1));
            assert_eq!(of(&jobs), 1);
            assert!(is_any(&jobs, MOST_EACH), "further on");
            jobs.truncate(2);
            assert!(!is_any(&jobs, MOST_EACH));
        }
    }

    #[test]
    fn its_bytes_are_bounded_and_large_requests_are_none_of_it() {
        assert_eq!(of(&adjoining(118, 32 * 1024, 8)), 4);
        assert_eq!(of(&adjoining(118, 64 * 1024, 8)), 2);
        assert_eq!(of(&adjoining(118, 64 * 1024 + 1, 8)), 1);
        let mut jobs = adjoining(116, 4096, 2);
        jobs.push(moving(116, 1, 8192, 65 * 1024));
        assert_eq!(of(&jobs), 2);
    }
}
