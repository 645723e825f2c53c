//! Who answers a device's requests, and the guest that changes memory meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::Handler;
use host::{IoVec, SecurityModel, Share, ShareOptions};
use server::{How, Limits, Neighbour, Outcome, Request, Scratch, Session};
use tempfile::TempDir;
use wire::{TFLUSH, TFSYNC, TLOCK, TREAD};

use crate::arena::Arena;
use crate::work;

/// The guest's memory, and how it is changed behind the device's back.
pub struct Guest {
    memory: Mutex<Arena>,
    late: Mutex<VecDeque<(u64, Vec<u8>)>>,
}

impl Guest {
    /// With memory to be laid out.
    pub fn new() -> Arc<Guest> {
        Arc::new(Guest {
            memory: Mutex::new(Arena::new()),
            late: Mutex::default(),
        })
    }

    /// The memory.
    pub fn memory(&self) -> MutexGuard<'_, Arena> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written while requests are handled, each at the next: address, bytes.
    pub fn late(&self) -> MutexGuard<'_, VecDeque<(u64, Vec<u8>)>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is being handled.
    pub fn act(&self) {
        if let Some((gpa, bytes)) = self.late().pop_front() {
            self.memory().write(gpa, &bytes);
        }
    }
}

/// Copies what it may read to what it may write, by message type at once, in slices, on another thread, or later.
pub struct Echo(pub Arc<Guest>);

impl Handler for Echo {
    fn handle(&self, request: &mut Request<'_>, _: &mut Scratch, how: How) -> Outcome {
        self.0.act();
        let kind = request.message.get(4).copied();
        let tries = *request.progress;
        *request.progress += 1;
        match kind {
            Some(TFSYNC) if how == How::Inline => {
                *request.progress = 0;
                return Outcome::Defer;
            }
            Some(TLOCK) if tries == 0 && how != How::Last => return Outcome::Wait { retry_ms: 1 },
            Some(TREAD) if tries < 2 => return Outcome::More,
            _ => {}
        }
        let mut bytes = request.message.to_vec();
        bytes.resize(bytes.len() + IoVec::total(request.payload), 0);
        // SAFETY: the device keeps payload and reply mapped until the request is completed.
        let len = unsafe {
            IoVec::read(request.payload, 0, &mut bytes[request.message.len()..]);
            IoVec::write(request.reply, 0, &bytes)
        };
        match kind {
            Some(TFLUSH) => Outcome::Flush {
                oldtag: u16::from_le_bytes([
                    request.message.get(7).copied().unwrap_or(0),
                    request.message.get(8).copied().unwrap_or(0),
                ]),
                len: len as u32,
            },
            _ => Outcome::Done(len as u32),
        }
    }

    fn reset(&self) {}

    fn wake_count(&self) -> u64 {
        0
    }
}

/// A real session on a share of its own, and a guest that changes memory while it works.
pub struct Real {
    session: Session,
    _share: TempDir,
    /// The last to go: who waits for that finds nothing of the others left.
    guest: Option<Arc<Guest>>,
}

impl Real {
    /// A fresh one.
    pub fn new(guest: Option<Arc<Guest>>) -> Real {
        let dir = tempfile::tempdir().expect("a temporary directory");
        work::prepare(dir.path());
        let options = ShareOptions::new(dir.path(), SecurityModel::Squash);
        let share = Arc::new(Share::open(&options).expect("the share opens"));
        let limits = Limits {
            fd_budget: 16,
            max_fids: 64,
            ..Limits::default()
        };
        Real {
            session: Session::new(share, limits),
            guest,
            _share: dir,
        }
    }
}

impl Handler for Real {
    fn handle(&self, request: &mut Request<'_>, scratch: &mut Scratch, how: How) -> Outcome {
        if let Some(guest) = &self.guest {
            guest.act();
        }
        self.session.handle(request, scratch, how)
    }

    fn handle_run(&self, run: &mut [Neighbour<'_>], scratch: &mut Scratch) -> usize {
        self.session.handle_run(run, scratch)
    }

    fn reset(&self) {
        self.session.reset();
    }

    fn wake_count(&self) -> u64 {
        self.session.wake_count()
    }
}
