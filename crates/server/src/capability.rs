//! The question that Linux asks before each write, answered without a system call.
//!
//! Writing to a file takes its file capabilities away, so Linux's kernel looks for the xattr `security.capability`
//! before every write(2); its 9p client has no memory of what it is not told to cache, and sends a Txattrwalk each time.
//! Nearly always there is none.
//!
//! Nothing tells the server that somebody else has set an xattr, but "there is none" may be out of date for a moment
//! where nobody can act on it: a file that is open for writing cannot be executed (ETXTBSY), in the guest as
//! on the host. So that answer, and no other, is remembered of files that this client has open for writing, for
//! [`BELIEVED`], and until the client itself changes anybody's capabilities. What a host's process sets on such a file
//! in the meantime is seen that much later, and a write takes it away anyhow, because the host's kernel looks for
//! itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The xattr in question.
pub(crate) const NAME: &[u8] = b"security.capability";

/// How long an answer is believed. A client that writes without a pause asks many times meanwhile; for one that
/// pauses longer, a system call more is nothing.
const BELIEVED: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Answer {
    errno: i32,
    /// Before the host was asked.
    at: Instant,
    changes: u64,
}

#[derive(Debug, Default)]
struct Writers {
    /// Fids open for writing.
    count: u32,
    answer: Option<Answer>,
}

/// What is known of files that are open for writing.
#[derive(Debug, Default)]
pub(crate) struct Capabilities {
    /// By node.
    nodes: HashMap<u32, Writers>,
    /// How often the client has changed a capability.
    changes: u64,
}

/// A question under way: when it began, and what had been changed by then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    at: Instant,
    changes: u64,
}

impl Capabilities {
    /// A fid of the node was opened for writing.
    pub(crate) fn opened(&mut self, node: u32) {
        self.nodes.entry(node).or_default().count += 1;
    }

    /// Such a fid is gone.
    pub(crate) fn closed(&mut self, node: u32) {
        if let Some(writers) = self.nodes.get_mut(&node) {
            writers.count = writers.count.saturating_sub(1);
            if writers.count == 0 {
                self.nodes.remove(&node);
            }
        }
    }

    /// The errno that answers the question at `now`, or else what [`Capabilities::answered`] wants to know.
    pub(crate) fn ask(&self, node: u32, now: Instant) -> Result<i32, Asked> {
        let answer = self.nodes.get(&node).and_then(|writers| writers.answer.as_ref());
        match answer {
            Some(answer) if answer.changes == self.changes && now < answer.at + BELIEVED => Ok(answer.errno),
            _ => Err(Asked {
                at: now,
                changes: self.changes,
            }),
        }
    }

    /// The host has answered with this error. ENODATA says that there is none, EOPNOTSUPP that there cannot be one.
    pub(crate) fn answered(&mut self, node: u32, errno: i32, asked: Asked) {
        if matches!(errno, libc::ENODATA | libc::EOPNOTSUPP)
            && let Some(writers) = self.nodes.get_mut(&node)
        {
            // What the client changed while the host was asked may or may not be in the answer: its number tells.
            writers.answer = Some(Answer {
                errno,
                at: asked.at,
                changes: asked.changes,
            });
        }
    }

    /// The client has set or removed a capability, of whichever file, and has not been told so yet.
    pub(crate) fn changed(&mut self) {
        self.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: i32 = libc::ENODATA;

    #[test]
    fn only_files_open_for_writing_are_remembered() {
        let (mut known, now) = (Capabilities::default(), Instant::now());
        let asked = known.ask(5, now).unwrap_err();
        known.answered(5, NONE, asked);
        assert!(known.ask(5, now).is_err());
        known.opened(5);
        known.opened(5);
        let asked = known.ask(5, now).unwrap_err();
        known.answered(5, NONE, asked);
        assert_eq!(known.ask(5, now).ok(), Some(NONE));
        assert!(known.ask(6, now).is_err());
        known.closed(5);
        assert_eq!(known.ask(5, now).ok(), Some(NONE));
        known.closed(5);
        known.opened(5);
        assert!(known.ask(5, now).is_err(), "another opening");
        known.closed(5);
        assert!(known.nodes.is_empty());
    }

    #[test]
    fn an_answer_is_believed_for_a_moment_and_from_before_it_was_asked_for() {
        let (mut known, now) = (Capabilities::default(), Instant::now());
        known.opened(5);
        let asked = known.ask(5, now).unwrap_err();
        known.answered(5, libc::EOPNOTSUPP, asked);
        let last = now + BELIEVED - Duration::from_nanos(1);
        assert_eq!(known.ask(5, last).ok(), Some(libc::EOPNOTSUPP));
        assert!(known.ask(5, now + BELIEVED).is_err());
        for other in [libc::EIO, libc::ESTALE, libc::EACCES] {
            let asked = known.ask(5, now + BELIEVED).unwrap_err();
            known.answered(5, other, asked);
            assert!(known.ask(5, now + BELIEVED).is_err());
        }
    }

    #[test]
    fn what_the_client_changes_is_seen_at_once() {
        let (mut known, now) = (Capabilities::default(), Instant::now());
        known.opened(5);
        let asked = known.ask(5, now).unwrap_err();
        known.answered(5, NONE, asked);
        known.changed();
        let asked = known.ask(5, now).unwrap_err();
        // Changed between the question and the answer: too late for it.
        known.changed();
        known.answered(5, NONE, asked);
        assert!(known.ask(5, now).is_err());
    }
}
