//! One request and its buffers, reused from request to request.

use std::sync::Arc;

use host::IoVec;
use server::request::{copy_len, moves};
use server::{How, Neighbour, Outcome, Request, Scratch};

use crate::chain::{self, ChainError, Streams};
use crate::handler::Handler;
use crate::memory::Memory;
use crate::ring::{RingView, Used};

/// size[4] type[1] tag[2]
const HEADER: usize = 7;

/// Bytes of a message that are copied before its length is known: all of one without names.
const FRONT: usize = 64;

/// Why a chain carries no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The chain itself.
    Chain(ChainError),
    /// Fewer readable bytes than a message header has.
    Short(usize),
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Malformed::Chain(error) => write!(f, "{error}"),
            Malformed::Short(len) => write!(f, "{len} readable bytes are no message"),
        }
    }
}

/// A request taken from the ring.
#[derive(Debug, Default)]
pub struct Job {
    head: u16,
    /// Private copy of the T-message, without a Twrite's payload.
    message: Vec<u8>,
    /// From piece `payload` of the readable one on it is what follows `message`.
    streams: Streams,
    payload: usize,
    /// Bytes that the request moves beside the message, as far as there are buffers for them.
    bulk: usize,
    progress: u64,
    begun: bool,
    waited: bool,
    /// Keeps the pieces mapped once the request leaves the queue thread's hands.
    memory: Option<Arc<Memory>>,
}

impl Job {
    /// Walks the chain at `head` of `ring`, and has the message brought to this processor; [`Job::read`] comes next, and
    /// best after the walks of other chains.
    pub fn walk(&mut self, ring: &RingView, head: u16) -> Result<(), Malformed> {
        self.head = head;
        self.progress = 0;
        self.begun = false;
        self.waited = false;
        self.memory = None;
        chain::walk(ring, head, &mut self.streams).map_err(Malformed::Chain)?;
        chain::prefetch_front(self.streams.readable());
        let readable = IoVec::total(self.streams.readable());
        match readable < HEADER {
            true => Err(Malformed::Short(readable)),
            false => Ok(()),
        }
    }

    /// Copies the message out of the memory of `ring`, which is that of the walk.
    pub fn read(&mut self, ring: &RingView) {
        let readable = IoVec::total(self.streams.readable());
        let mut message = std::mem::take(&mut self.message);
        message.resize(readable.min(FRONT), 0);
        self.streams.copy(ring, 0, &mut message);
        let len = match message.first_chunk() {
            Some(header) => copy_len(header, readable).max(HEADER),
            None => HEADER,
        };
        // What is there of it decided the length, and is not read again: the guest may have changed it.
        let front = message.len();
        message.resize(len, 0);
        if let Some(rest) = message.get_mut(front..) {
            self.streams.copy(ring, front, rest);
        }
        self.message = message;
        self.payload = self.streams.cut(len);
        self.bulk = match moves(&self.message) {
            0 => 0,
            most => most.min(readable.saturating_sub(len) + IoVec::total(self.streams.writable())),
        };
    }

    /// The message's tag.
    pub fn tag(&self) -> u16 {
        match self.message.get(5..HEADER) {
            Some(&[low, high]) => u16::from_le_bytes([low, high]),
            _ => u16::MAX,
        }
    }

    /// How many bytes this request moves at most, beside its message.
    pub fn bulk(&self) -> usize {
        self.bulk
    }

    /// Whether part of the work is done, so that it must be ended, not cancelled.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Notes that it waits.
    pub fn note_wait(&mut self) {
        self.waited = true;
    }

    /// Whether it has waited before.
    pub fn waited(&self) -> bool {
        self.waited
    }

    /// Keeps the guest's memory mapped for as long as this request lives.
    pub fn hold(&mut self, memory: &Arc<Memory>) {
        self.memory = Some(Arc::clone(memory));
    }

    /// Whether [`Job::hold`] was called for this request.
    pub fn holds(&self) -> bool {
        self.memory.is_some()
    }

    /// Its completion with `len` bytes.
    pub fn used(&self, len: u32) -> Used {
        let room = IoVec::total(self.streams.writable());
        Used {
            head: self.head,
            len: len.min(u32::try_from(room).unwrap_or(u32::MAX)),
        }
    }

    /// Lets `handler` work on it, `slice` bytes of its payload at a time.
    pub fn run(&mut self, handler: &dyn Handler, scratch: &mut Scratch, how: How, slice: usize) -> Outcome {
        chain::prefetch_for_write(self.streams.writable());
        let mut request = Request {
            message: &self.message,
            payload: &self.streams.readable()[self.payload..],
            reply: self.streams.writable(),
            progress: &mut self.progress,
            slice,
        };
        let outcome = handler.handle(&mut request, scratch, how);
        self.begun |= outcome == Outcome::More;
        outcome
    }

    /// The private copy of its message.
    #[inline]
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// It as one of a run.
    pub fn neighbour(&self) -> Neighbour<'_> {
        chain::prefetch_for_write(self.streams.writable());
        Neighbour {
            message: &self.message,
            payload: &self.streams.readable()[self.payload..],
            reply: self.streams.writable(),
            used: 0,
        }
    }

    /// Gives up what should not be kept while unused: the memory, and an unusually long message buffer.
    pub fn recycle(&mut self) {
        self.memory = None;
        self.message.clear();
        self.message.shrink_to(1024);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ring::RingAddresses;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// A request without memory, for bookkeeping tests.
    pub(crate) fn job(head: u16, tag: u16) -> Box<Job> {
        let mut message = vec![7, 0, 0, 0, 24];
        message.extend(tag.to_le_bytes());
        Box::new(Job {
            head,
            message,
            ..Job::default()
        })
    }

    /// A Tread or Twrite without memory that moves as much as it says.
    pub(crate) fn moving(kind: u8, fid: u32, offset: u64, count: u32) -> Box<Job> {
        let mut message = header(23 + count * u32::from(kind == 118), kind, 1);
        message.extend(fid.to_le_bytes());
        message.extend(offset.to_le_bytes());
        message.extend(count.to_le_bytes());
        Box::new(Job {
            bulk: count as usize,
            message,
            ..Job::default()
        })
    }

    fn ring() -> (RingView, Arc<GuestMemoryMmap>) {
        let (memory, mapped) = crate::memory::tests::fake(&[(0, 0x10000)]);
        let addresses = RingAddresses {
            descriptors: 0x1000,
            avail: 0x2000,
            used: 0x3000,
            size: 8,
        };
        (RingView::new(&memory, &addresses).unwrap(), mapped)
    }

    fn chain(mapped: &GuestMemoryMmap, pieces: &[(u64, u32, bool)]) {
        for (i, (address, len, writable)) in pieces.iter().enumerate() {
            let next = u16::from(i + 1 < pieces.len());
            let flags = next | u16::from(*writable) << 1;
            let mut raw = [0u8; 16];
            raw[..8].copy_from_slice(&address.to_le_bytes());
            raw[8..12].copy_from_slice(&len.to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&(i as u16 + 1).to_le_bytes());
            mapped
                .write_slice(&raw, GuestAddress(0x1000 + 16 * i as u64))
                .unwrap();
        }
    }

    fn header(size: u32, kind: u8, tag: u16) -> Vec<u8> {
        let mut bytes = size.to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(tag.to_le_bytes());
        bytes
    }

    #[test]
    fn a_twrite_keeps_its_payload_in_guest_memory() {
        let (ring, mapped) = ring();
        let mut twrite = header(23 + 5000, 118, 9);
        twrite.extend([0; 9]);
        mapped.write_slice(&twrite, GuestAddress(0x5ff0)).unwrap();
        mapped
            .write_slice(&[0, 0, 0, 0x88, 0x13, 0, 0], GuestAddress(0x8000))
            .unwrap();
        chain(
            &mapped,
            &[
                (0x5ff0, 16, false),
                (0x8000, 20, false),
                (0x9000, 4987, false),
                (0xb000, 11, true),
            ],
        );
        let mut job = Job::default();
        job.walk(&ring, 0).unwrap();
        job.read(&ring);
        assert_eq!((job.message.len(), job.tag()), (23, 9));
        let payload: Vec<_> = job.streams.readable()[job.payload..]
            .iter()
            .map(IoVec::len)
            .collect();
        assert_eq!(payload, [13, 4987]);
        assert_eq!(job.bulk(), 5000);
        assert_eq!(job.used(4096).len, 11);
    }

    #[test]
    fn a_message_is_copied_whole_and_a_lying_size_is_cut() {
        let (ring, mapped) = ring();
        for (size, copied) in [(19, 19), (7, 7), (0, 7), (u32::MAX, 24)] {
            mapped
                .write_slice(&header(size, 24, 1), GuestAddress(0x5000))
                .unwrap();
            chain(&mapped, &[(0x5000, 24, false), (0x6000, 160, true)]);
            let mut job = Job::default();
            job.walk(&ring, 0).unwrap();
            job.read(&ring);
            assert_eq!(job.message.len(), copied);
        }
    }

    #[test]
    fn how_much_it_moves_is_bounded_by_count_and_by_buffers() {
        let (ring, mapped) = ring();
        for (kind, count, bulk) in [(116, 512, 512), (116, u32::MAX, 4096), (40, 64, 64), (24, 512, 0)] {
            let mut message = header(23, kind, 1);
            message.extend([0; 12]);
            message.extend(count.to_le_bytes());
            mapped.write_slice(&message, GuestAddress(0x5000)).unwrap();
            chain(&mapped, &[(0x5000, 23, false), (0x6000, 4096, true)]);
            let mut job = Job::default();
            job.walk(&ring, 0).unwrap();
            job.read(&ring);
            assert_eq!(job.bulk(), bulk);
        }
    }

    #[test]
    fn less_than_a_header_is_no_message() {
        let (ring, mapped) = ring();
        chain(&mapped, &[(0x5000, 6, false), (0x6000, 160, true)]);
        assert_eq!(Job::default().walk(&ring, 0), Err(Malformed::Short(6)));
        chain(&mapped, &[(0x6000, 160, true)]);
        assert_eq!(Job::default().walk(&ring, 0), Err(Malformed::Short(0)));
    }
}
