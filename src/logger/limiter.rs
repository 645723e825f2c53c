//! How many lines a guest or a front-end can cause: some of each kind and then one now and then, and so many of all
//! kinds. What is left out is counted and told.

use std::time::{Duration, Instant};

use log::Level;

/// A kind of line has this many at once,
const BURST: u32 = 10;
/// and then one in this time.
const EVERY: Duration = Duration::from_secs(5);
/// All kinds together have this many at once,
const TOTAL_BURST: u32 = 100;
/// and then one in this time.
const TOTAL_EVERY: Duration = Duration::from_millis(100);
/// Kinds that are told apart. Should a guest be able to make more, the rest is one kind.
const KINDS: usize = 64;
/// Lines that are left out are told of within this time.
const PERIOD: Duration = Duration::from_secs(10);
/// Of a line, what names its kind when some are left out; bytes.
const SAMPLE: usize = 80;

/// A number of lines that grows with time.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u32,
    /// Up to when `left` has grown.
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, burst: u32, every: Duration, now: Instant) {
        let gone = now.saturating_duration_since(self.at);
        let more = u32::try_from(gone.as_nanos() / every.as_nanos()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more);
        if self.left >= burst {
            self.left = burst;
            self.at = self.at.max(now);
        } else {
            self.at += every * more;
        }
    }
}

#[derive(Debug)]
struct Kind {
    key: u64,
    level: Level,
    bucket: Bucket,
    /// Left out since the last line.
    missed: u64,
    /// When the first of these was.
    since: Instant,
    /// The beginning of the last line.
    sample: String,
}

impl Kind {
    fn new(key: u64, level: Level, now: Instant) -> Kind {
        Kind {
            key,
            level,
            bucket: Bucket { left: BURST, at: now },
            missed: 0,
            since: now,
            sample: String::new(),
        }
    }
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is written; so many of its kind before it were not.
    Say(u64),
    /// It is left out; whether it is the first of its kind since the last line, so that there is a time when this
    /// will be told.
    LeaveOut(bool),
}

/// Lines of one kind that were left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Missed {
    /// Their level.
    pub level: Level,
    /// How many.
    pub count: u64,
    /// How the last one that was written begins.
    pub sample: String,
}

/// The one limiter.
#[derive(Debug)]
pub struct Limiter {
    /// The first is for what finds no place.
    kinds: Vec<Kind>,
    total: Bucket,
}

impl Limiter {
    /// One that has let nothing through.
    pub fn new(now: Instant) -> Limiter {
        let mut kinds = Vec::with_capacity(KINDS);
        kinds.push(Kind::new(0, Level::Warn, now));
        Limiter {
            kinds,
            total: Bucket {
                left: TOTAL_BURST,
                at: now,
            },
        }
    }

    fn find(&self, key: u64) -> usize {
        let found = self.kinds.iter().skip(1).position(|kind| kind.key == key);
        found.map_or(0, |place| place + 1)
    }

    fn place(&mut self, key: u64, level: Level, now: Instant) -> usize {
        let found = self.find(key);
        if found > 0 {
            return found;
        }
        let new = Kind::new(key, level, now);
        if self.kinds.len() < KINDS {
            self.kinds.push(new);
            return self.kinds.len() - 1;
        }
        let forgotten = self.kinds.iter_mut().skip(1).position(|kind| {
            kind.bucket.fill(BURST, EVERY, now);
            kind.bucket.left == BURST && kind.missed == 0
        });
        match forgotten {
            Some(place) => {
                self.kinds[place + 1] = new;
                place + 1
            }
            None => 0,
        }
    }

    /// Whether a line of kind `key` may be written at `now`. To be asked before the line is made.
    pub fn ask(&mut self, key: u64, level: Level, now: Instant) -> Answer {
        self.total.fill(TOTAL_BURST, TOTAL_EVERY, now);
        let place = self.place(key, level, now);
        let kind = &mut self.kinds[place];
        kind.bucket.fill(BURST, EVERY, now);
        if kind.bucket.left == 0 || self.total.left == 0 {
            kind.missed = kind.missed.saturating_add(1);
            let first = kind.missed == 1;
            if first {
                kind.since = now;
            }
            return Answer::LeaveOut(first);
        }
        kind.bucket.left -= 1;
        self.total.left -= 1;
        Answer::Say(std::mem::take(&mut kind.missed))
    }

    /// Takes note of what a line of kind `key` says.
    pub fn said(&mut self, key: u64, text: &str) {
        let place = self.find(key);
        let sample = &mut self.kinds[place].sample;
        sample.clear();
        if text.len() <= SAMPLE {
            sample.push_str(text);
        } else {
            let end = (0..=SAMPLE).rev().find(|end| text.is_char_boundary(*end));
            sample.push_str(&text[..end.unwrap_or(0)]);
            sample.push('…');
        }
    }

    /// When to call [`Limiter::due`] next, if nothing else happens.
    pub fn next(&self) -> Option<Instant> {
        let waiting = self.kinds.iter().filter(|kind| kind.missed > 0);
        waiting.map(|kind| kind.since + PERIOD).min()
    }

    /// Takes out what was left out for long enough to be told at `now`, or all there is.
    pub fn due(&mut self, now: Instant, all: bool) -> Option<Missed> {
        let due = |kind: &&mut Kind| kind.missed > 0 && (all || now >= kind.since + PERIOD);
        let kind = self.kinds.iter_mut().find(due)?;
        Some(Missed {
            level: kind.level,
            count: std::mem::take(&mut kind.missed),
            sample: kind.sample.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> (Limiter, Instant) {
        let now = Instant::now();
        (Limiter::new(now), now)
    }

    fn said(limiter: &mut Limiter, keys: impl Iterator<Item = u64>, now: Instant) -> u64 {
        let mut said = 0;
        for key in keys {
            if let Answer::Say(_) = limiter.ask(key, Level::Warn, now) {
                limiter.said(key, &format!("line of kind {key}"));
                said += 1;
            }
        }
        said
    }

    #[test]
    fn a_kind_has_a_burst_and_then_one_now_and_then() {
        let (mut limiter, start) = limiter();
        assert_eq!(said(&mut limiter, [7; 1000].into_iter(), start), 10);
        assert_eq!(said(&mut limiter, [8; 5].into_iter(), start), 5, "another kind");
        let later = start + EVERY;
        assert_eq!(limiter.ask(7, Level::Warn, later), Answer::Say(990));
        assert_eq!(limiter.ask(7, Level::Warn, later), Answer::LeaveOut(true));
        assert_eq!(limiter.ask(7, Level::Warn, later), Answer::LeaveOut(false));
        // An hour, ten times a second.
        let mut lines = 0;
        for tenth in 1..=36_000 {
            let now = later + Duration::from_millis(100) * tenth;
            lines += said(&mut limiter, [7].into_iter(), now);
        }
        assert!((700..=721).contains(&lines), "{lines}");
        let much_later = later + Duration::from_secs(10_000);
        assert_eq!(said(&mut limiter, [7; 1000].into_iter(), much_later), 10);
    }

    #[test]
    fn what_is_left_out_is_told_once_even_if_nothing_follows() {
        let (mut limiter, start) = limiter();
        said(&mut limiter, [7; 1000].into_iter(), start);
        assert_eq!(limiter.next(), Some(start + PERIOD));
        assert_eq!(limiter.due(start, false), None);
        let told = limiter.due(start + PERIOD, false).unwrap();
        assert_eq!((told.count, told.sample.as_str()), (990, "line of kind 7"));
        assert_eq!(limiter.next(), None);
        assert_eq!(limiter.due(start + PERIOD, true), None);
        said(&mut limiter, [7; 11].into_iter(), start + PERIOD);
        assert!(limiter.due(start + PERIOD, true).is_some());
    }

    #[test]
    fn whoever_can_choose_the_kind_gets_no_more() {
        let (mut limiter, start) = limiter();
        let lines = said(&mut limiter, 1..100_000, start);
        assert!(lines <= u64::from(TOTAL_BURST), "{lines}");
        assert!(limiter.kinds.len() <= KINDS);
        // Nothing that was left out is forgotten.
        let mut left_out = 0;
        while let Some(missed) = limiter.due(start, true) {
            left_out += missed.count;
        }
        assert_eq!(left_out, 99_999 - lines);
        // For a minute, a new kind for each line.
        let mut lines = 0;
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            lines += said(&mut limiter, [2_000_000 + ms].into_iter(), now);
        }
        assert!(lines <= 600 + u64::from(TOTAL_BURST), "{lines}");
    }

    #[test]
    fn a_kind_that_was_quiet_makes_room() {
        let (mut limiter, start) = limiter();
        said(&mut limiter, 1..100, start);
        let later = start + EVERY * (BURST + 1);
        assert_eq!(said(&mut limiter, [1000; 20].into_iter(), later), 10);
        assert_ne!(limiter.find(1000), 0);
    }

    #[test]
    fn a_sample_is_short() {
        let (mut limiter, start) = limiter();
        limiter.ask(7, Level::Warn, start);
        limiter.said(7, &"ä".repeat(1000));
        let place = limiter.find(7);
        assert!(limiter.kinds[place].sample.len() <= SAMPLE + 3);
    }
}
