//! Why the host refused something, in one sentence for whoever runs the program: the file, the rule, the way out.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::attr::Caller;
use crate::context::Context;
use crate::name::Name;
use crate::share::Object;

/// Says it, now and then.
pub struct Explainer {
    spent: Mutex<(Option<Instant>, u32, u64)>,
}

/// At most this many sentences in [`PERIOD`]: a guest can cause as many refusals as it likes.
const SENTENCES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

impl Explainer {
    /// With nothing said yet.
    pub fn new() -> Explainer {
        Explainer {
            spent: Mutex::new((None, 0, 0)),
        }
    }

    /// Whether a sentence may be said now; how many were not since the last.
    fn may_speak(&self) -> Option<u64> {
        let mut spent = self.spent.lock().unwrap_or_else(|p| p.into_inner());
        let now = Instant::now();
        let (since, said, missed) = &mut *spent;
        if since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            (*since, *said) = (Some(now), 0);
        }
        if *said >= SENTENCES {
            *missed = missed.saturating_add(1);
            return None;
        }
        *said += 1;
        Some(std::mem::take(missed))
    }

    /// Logs one sentence about `op` on `object`, or on `name` in it.
    pub fn denied(
        &self,
        context: &Context,
        op: &'static str,
        object: &Object<'_>,
        name: Option<&Name>,
        caller: Caller,
        error: &io::Error,
    ) {
        if !log::log_enabled!(log::Level::Warn) {
            return;
        }
        let Some(missed) = self.may_speak() else { return };
        let _ = (context, object, name, caller);
        log::warn!("{op}: {error} ({missed} not shown)");
    }
}
