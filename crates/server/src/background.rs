//! Work that nobody waits for: what is left of a session that has ended, locks that a file has too many of to let go of
//! them at once.
//!
//! A thread is started when there is such work and ends with the last of it. One that hangs, because a file server
//! does, holds up nothing but what comes after it here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<(usize, Work)>,
    running: bool,
}

/// One thread at most, and what it has to do.
#[derive(Clone, Default)]
pub(crate) struct Background(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    idle: Condvar,
    /// What the work that is not done yet holds.
    held: AtomicUsize,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut state = self.state();
            let Some((held, work)) = state.queue.pop_front() else {
                state.running = false;
                self.idle.notify_all();
                return;
            };
            drop(state);
            work();
            self.held.fetch_sub(held, Ordering::Relaxed);
        }
    }
}

impl Background {
    /// Has `work` done, after what came before it. It holds so many of whatever [`Background::held`] counts until then.
    /// Done here and now if no thread can be started.
    pub(crate) fn run(&self, held: usize, work: impl FnOnce() + Send + 'static) {
        self.0.held.fetch_add(held, Ordering::Relaxed);
        let start = {
            let mut state = self.0.state();
            state.queue.push_back((held, Box::new(work)));
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let inner = Arc::clone(&self.0);
            let started = thread::Builder::new()
                .name("background".to_owned())
                .spawn(move || inner.work());
            if started.is_err() {
                self.0.work();
            }
        }
    }

    /// What the work that is not done yet holds.
    pub(crate) fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Waits until there is nothing to do, but no longer than `time`; false when there is still something.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let state = self.0.state();
        let waited = self.0.idle.wait_timeout_while(state, time, |state| state.running);
        !waited.unwrap_or_else(PoisonError::into_inner).0.running
    }
}

impl std::fmt::Debug for Background {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Background({})", self.held())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_in_order_and_threads_end() {
        let (background, done) = (Background::default(), Arc::new(Mutex::new(Vec::new())));
        assert!(background.wait(Duration::ZERO));
        for round in 0..3 {
            for step in 0..10 {
                let done = Arc::clone(&done);
                background.run(2, move || done.lock().unwrap().push((round, step)));
            }
            assert!(background.wait(Duration::from_secs(60)));
            assert_eq!(background.held(), 0);
        }
        let all: Vec<_> = (0..3)
            .flat_map(|round| (0..10).map(move |step| (round, step)))
            .collect();
        assert_eq!(*done.lock().unwrap(), all);
    }
}
