//! A session that follows a script, by message type:
//! Tclunk is answered at once; Tfsync blocks a thread until the gate opens; Tremove waits until it is granted; Tread
//! comes in slices of 4096 bytes, each filled with its number; Twrite records its payload; Tflush is one.

#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex};

use device::Handler;
use host::IoVec;
use server::{How, Outcome, Request, Scratch};
use wire::*;

/// What the test says and sees.
#[derive(Default)]
pub struct Script {
    gate: Mutex<bool>,
    opened: Condvar,
    granted: AtomicBool,
    wakes: AtomicU64,
    /// Requests that began to block or to wait.
    pub begun: AtomicUsize,
    /// Requests asked with [`How::Last`].
    pub last: AtomicUsize,
    /// Sessions made.
    pub sessions: AtomicUsize,
    /// Resets seen.
    pub resets: AtomicUsize,
    /// The last Twrite's payload.
    pub payload: Mutex<Vec<u8>>,
    /// How much of it was to be moved at a time.
    pub slice: AtomicUsize,
}

impl Script {
    /// A session that follows it.
    pub fn session(self: &Arc<Script>) -> Session {
        self.sessions.fetch_add(1, SeqCst);
        Session(Arc::clone(self))
    }

    /// Lets all that blocks go on, now and later.
    pub fn open_gate(&self) {
        *self.gate.lock().expect("no panic") = true;
        self.opened.notify_all();
    }

    /// Whether it is open.
    pub fn gate_is_open(&self) -> bool {
        *self.gate.lock().expect("no panic")
    }

    /// Something was released that nobody waits for.
    pub fn wake(&self) {
        self.wakes.fetch_add(1, SeqCst);
    }

    /// Grants what waits, now and later; noticed by the device through the wake count.
    pub fn grant(&self) {
        self.granted.store(true, SeqCst);
        self.wakes.fetch_add(1, SeqCst);
    }
}

/// One connection's.
pub struct Session(Arc<Script>);

fn put(request: &Request<'_>, offset: usize, bytes: &[u8]) -> usize {
    // SAFETY: the device keeps the reply's memory mapped until the request is completed.
    unsafe { IoVec::write(request.reply, offset, bytes) }
}

/// The shortest answer: a header.
fn answer(request: &Request<'_>) -> u32 {
    let header = Header {
        size: 7,
        kind: request.message[4] + 1,
        tag: u16::from_le_bytes([request.message[5], request.message[6]]),
    };
    let bytes = header.to_bytes();
    if put(request, 0, &bytes) < bytes.len() {
        0
    } else {
        7
    }
}

impl Session {
    fn read(&self, request: &mut Request<'_>, count: usize, tag: u16) -> Outcome {
        let slice = *request.progress as usize;
        let offset = slice * 4096;
        if offset < count {
            let bytes = [slice as u8; 4096];
            put(request, 11 + offset, &bytes[..4096.min(count - offset)]);
            *request.progress += 1;
            return Outcome::More;
        }
        let mut header = [0; 11];
        encode_rread_header(&mut header, tag, count as u32).expect("it fits");
        put(request, 0, &header);
        Outcome::Done(11 + count as u32)
    }
}

impl Handler for Session {
    fn handle(&self, request: &mut Request<'_>, _scratch: &mut Scratch, how: How) -> Outcome {
        let script = &self.0;
        let Ok((tag, message)) = Tmessage::decode(request.message) else {
            return Outcome::Done(0);
        };
        if how == How::Last {
            script.last.fetch_add(1, SeqCst);
        }
        match message {
            Tmessage::Fsync(_) if how == How::Inline => return Outcome::Defer,
            Tmessage::Fsync(_) => {
                script.begun.fetch_add(1, SeqCst);
                let gate = script.gate.lock().expect("no panic");
                drop(script.opened.wait_while(gate, |open| !*open).expect("no panic"));
            }
            Tmessage::Remove(_) if how != How::Last && !script.granted.load(SeqCst) => {
                script.begun.fetch_add(1, SeqCst);
                return Outcome::Wait { retry_ms: 60_000 };
            }
            Tmessage::Read(read) => return self.read(request, read.count as usize, tag),
            Tmessage::Write(write) => {
                let mut bytes = vec![0; write.count as usize];
                // SAFETY: the device keeps the payload's memory mapped until the request is completed.
                let there = unsafe { IoVec::read(request.payload, 0, &mut bytes) };
                bytes.truncate(there);
                *script.payload.lock().expect("no panic") = bytes;
                script.slice.store(request.slice, SeqCst);
            }
            Tmessage::Flush(flush) => {
                return Outcome::Flush {
                    oldtag: flush.oldtag,
                    len: answer(request),
                };
            }
            _ => (),
        }
        Outcome::Done(answer(request))
    }

    fn reset(&self) {
        self.0.resets.fetch_add(1, SeqCst);
    }

    fn wake_count(&self) -> u64 {
        self.0.wakes.load(SeqCst)
    }
}
