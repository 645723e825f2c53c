//! Our own session, in this process.

use std::path::Path;
use std::sync::Arc;

use host::{IoVec, SecurityModel, Share, ShareOptions};
use server::{How, Limits, Outcome, Request, Scratch, Session, request};

use crate::ask::{MSIZE, Server};
use crate::rules::Mode;

pub struct Ours {
    session: Session,
    scratch: Scratch,
    reply: Vec<u8>,
}

impl Ours {
    pub fn start(directory: &Path, mode: Mode) -> Ours {
        let model = match mode {
            Mode::Passthrough => SecurityModel::Passthrough,
            Mode::Squash => SecurityModel::Squash,
            Mode::MappedXattr => SecurityModel::MappedXattr,
            Mode::MappedFile => SecurityModel::MappedFile,
        };
        let options = ShareOptions {
            allow_devices: mode == Mode::Passthrough,
            ..ShareOptions::new(directory, model)
        };
        let share = Share::open(&options).expect("the share opens");
        Ours {
            session: Session::new(Arc::new(share), Limits::default()),
            scratch: Scratch::default(),
            reply: vec![0; MSIZE as usize],
        }
    }
}

impl Server for Ours {
    /// As the device does it: first on the queue's thread, then on one that may block.
    fn rpc(&mut self, frame: &[u8]) -> Vec<u8> {
        let header = frame.first_chunk().expect("a frame has a header");
        let mut message = frame.to_vec();
        let mut payload = message.split_off(request::copy_len(header, frame.len()));
        // SAFETY: both vectors outlive the request, and nothing else touches them meanwhile.
        let (payload, reply) = unsafe {
            (
                [IoVec::new(payload.as_mut_ptr(), payload.len())],
                [IoVec::new(self.reply.as_mut_ptr(), self.reply.len())],
            )
        };
        let mut progress = 0;
        let mut request = Request {
            message: &message,
            payload: &payload,
            reply: &reply,
            progress: &mut progress,
            slice: 128 * 1024,
        };
        let mut how = How::Inline;
        loop {
            match self.session.handle(&mut request, &mut self.scratch, how) {
                // Nothing is under way that could be flushed.
                Outcome::Done(len) | Outcome::Flush { len, .. } => {
                    return self.reply[..len as usize].to_vec();
                }
                Outcome::More => {}
                Outcome::Defer => how = How::Blocking,
                outcome => panic!("{outcome:?} to {frame:?}"),
            }
        }
    }

    fn name(&self) -> &str {
        "vhost-user-9p"
    }
}
