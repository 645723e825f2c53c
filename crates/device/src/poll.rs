//! How long the queue thread looks at the ring before it sleeps.
//!
//! Sleeping and being woken costs more than most requests (an eventfd write by the guest's VMM, an epoll return, a
//! context switch), so while requests keep coming within `max` the thread looks for the next one itself. The time it
//! looks follows what it saw: twice the usual gap, nothing when gaps are long, and a pause of the whole idea when it
//! keeps failing (the guest's processor may be the very one we would look on), so that an idle share costs nothing and
//! a rarely used one next to nothing.

use std::time::Duration;

/// Failures in a row after which looking is given up for some wake-ups: [`PAUSE_MIN`] at first, more each time.
const MISSES: u32 = 4;
const PAUSE_MIN: u32 = 64;
const PAUSE_MAX: u32 = 8192;

/// The policy; it only counts, the caller looks at clock and ring.
#[derive(Debug)]
pub struct Poll {
    max: u64,
    window: u64,
    misses: u32,
    pause: u32,
    next_pause: u32,
}

impl Poll {
    /// Looks for at most `max`; zero: never.
    pub fn new(max: Duration) -> Poll {
        Poll {
            max: u64::try_from(max.as_nanos()).unwrap_or(u64::MAX),
            window: 0,
            misses: 0,
            pause: 0,
            next_pause: PAUSE_MIN,
        }
    }

    /// How long to look now; zero: sleep at once.
    pub fn window(&self) -> Duration {
        Duration::from_nanos(self.window)
    }

    /// A request came while looking, `gap` after the last one was done.
    pub fn hit(&mut self, gap: Duration) {
        let gap = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
        self.misses = 0;
        self.next_pause = (self.next_pause / 2).max(PAUSE_MIN);
        // Quickly up to twice the gap, slowly down to it.
        let slower = self.window - self.window / 16;
        self.window = slower.max(gap.saturating_mul(2)).min(self.max);
    }

    /// None came within the window.
    pub fn missed(&mut self) {
        self.misses += 1;
        self.window /= 2;
        if self.misses >= MISSES {
            self.misses = 0;
            self.window = 0;
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
        }
    }

    /// A kick woke the thread, `gap` after the last request was done.
    pub fn woke(&mut self, gap: Duration) {
        // The gap includes being woken, which looking would have saved.
        if gap.as_nanos() > u128::from(self.max) * 2 {
            self.window = 0;
        } else if self.pause > 0 {
            self.pause -= 1;
        } else {
            self.window = self.max;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn zero_never_looks() {
        let mut poll = Poll::new(Duration::ZERO);
        for gap in [us(0), us(1), us(100)] {
            poll.woke(gap);
            poll.hit(gap);
            assert_eq!(poll.window(), us(0));
        }
    }

    #[test]
    fn rare_requests_are_not_waited_for() {
        let mut poll = Poll::new(us(50));
        for _ in 0..10 {
            poll.woke(us(10_000));
            assert_eq!(poll.window(), us(0));
        }
    }

    #[test]
    fn quick_requests_are_and_the_window_follows_their_gap() {
        let mut poll = Poll::new(us(50));
        poll.woke(us(30));
        assert_eq!(poll.window(), us(50));
        for _ in 0..200 {
            poll.hit(us(5));
        }
        assert!(poll.window() >= us(10) && poll.window() < us(12));
        poll.hit(us(20));
        assert_eq!(poll.window(), us(40));
        poll.hit(us(45));
        assert_eq!(poll.window(), us(50));
    }

    #[test]
    fn looking_in_vain_is_given_up_and_tried_again_later() {
        let mut poll = Poll::new(us(50));
        let mut looked = 0;
        for _ in 0..100_000 {
            poll.woke(us(90));
            if poll.window() > us(0) {
                looked += 1;
                poll.missed();
            }
        }
        assert!((4..100).contains(&looked), "{looked}");
    }
}
