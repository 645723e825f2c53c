//! What answers requests: the session, or a stand-in in a test.

use server::{How, Neighbour, Outcome, Request, Scratch, Session};

/// A 9P session as the device sees it. Used by several threads at once.
pub trait Handler: Send + Sync {
    /// Answers one request, or says what it needs; see [`Outcome`].
    fn handle(&self, request: &mut Request<'_>, scratch: &mut Scratch, how: How) -> Outcome;
    /// Answers requests at the front of `run`, of which each belongs to the one before ([`server::run::adjoin`]), all at
    /// once; gives how many. The others, often all, are for [`Handler::handle`].
    fn handle_run(&self, run: &mut [Neighbour<'_>], scratch: &mut Scratch) -> usize {
        let _ = (run, scratch);
        0
    }
    /// The device was reset: forget everything the guest had.
    fn reset(&self);
    /// Changes whenever a request that waits may be granted.
    fn wake_count(&self) -> u64;
}

impl Handler for Session {
    fn handle(&self, request: &mut Request<'_>, scratch: &mut Scratch, how: How) -> Outcome {
        Session::handle(self, request, scratch, how)
    }

    fn handle_run(&self, run: &mut [Neighbour<'_>], scratch: &mut Scratch) -> usize {
        Session::handle_run(self, run, scratch)
    }

    fn reset(&self) {
        Session::reset(self);
    }

    fn wake_count(&self) -> u64 {
        Session::wake_count(self)
    }
}
