//! Descriptor layouts as Linux's virtio transport for 9P makes them: every descriptor lies within one page, and
//! large reads and writes carry their payload in the caller's own pages.

use crate::memory::{Area, GuestMemory, PAGE};
use crate::ring::Piece;

/// Bytes of an Rread before its payload, and of an Rlerror: what a zero-copy read has in front of its pages.
pub const READ_HEADER: usize = 11;
/// Bytes of a Twrite before its payload.
pub const WRITE_HEADER: usize = 23;
/// Linux offers this much for the reply to a zero-copy write.
pub const WRITE_REPLY: usize = 4096;

/// Appends the range as descriptors that do not cross pages.
pub fn split(gpa: u64, len: usize, out: &mut Vec<Piece>) {
    let (mut gpa, mut left) = (gpa, len);
    while left > 0 {
        let room = PAGE - (gpa as usize & (PAGE - 1));
        let take = room.min(left);
        out.push(Piece {
            gpa,
            len: take as u32,
        });
        gpa += take as u64;
        left -= take;
    }
}

/// Whether a payload's pages are neighbours (a device may merge them) or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// One after another, as huge pages and fresh kernel buffers are.
    Adjacent,
    /// In reverse order: no two can be merged.
    Scattered,
}

/// The memory of one request, and the descriptors for it. Reused for request after request without
/// allocating.
#[derive(Debug)]
pub struct Slot {
    message: Area,
    reply: Area,
    payload: Area,
    pages: Pages,
    /// The chain's readable part.
    pub readable: Vec<Piece>,
    /// The chain's writable part.
    pub writable: Vec<Piece>,
    /// How many reply bytes come before the payload, when the reply's rest is in the payload pages.
    header: usize,
}

impl Slot {
    /// Room for T-messages of `message` bytes, replies of `reply` bytes and `payload` bytes of pages.
    pub fn new(memory: &GuestMemory, message: usize, reply: usize, payload: usize, pages: Pages) -> Slot {
        let count = payload.div_ceil(PAGE);
        let most = message / PAGE + 2 + reply / PAGE + 2 + count;
        Slot {
            // As kmalloc gives it: a whole page or more is aligned to pages.
            message: memory.alloc(message, PAGE),
            reply: memory.alloc(reply.max(WRITE_REPLY), PAGE),
            payload: memory.pages(count),
            pages,
            readable: Vec::with_capacity(most),
            writable: Vec::with_capacity(most),
            header: usize::MAX,
        }
    }

    fn page(&self, at: usize) -> Area {
        let count = self.payload.len() / PAGE;
        let at = match self.pages {
            Pages::Adjacent => at,
            Pages::Scattered => count - 1 - at,
        };
        self.payload.part(at * PAGE, PAGE)
    }

    fn page_gpa(&self, at: usize) -> u64 {
        let count = self.payload.len() / PAGE;
        let at = match self.pages {
            Pages::Adjacent => at,
            Pages::Scattered => count - 1 - at,
        };
        self.payload.gpa() + (at * PAGE) as u64
    }

    fn start(&mut self, frame: &[u8]) {
        self.message.write(0, frame);
        self.readable.clear();
        self.writable.clear();
        split(self.message.gpa(), frame.len(), &mut self.readable);
        self.header = usize::MAX;
    }

    /// A T-message, and a reply buffer of `capacity` bytes.
    pub fn ordinary(&mut self, frame: &[u8], capacity: usize) {
        self.start(frame);
        assert!(capacity <= self.reply.len());
        split(self.reply.gpa(), capacity, &mut self.writable);
    }

    /// A Tread or Treaddir of `count` bytes: 11 bytes of header, then the pages.
    pub fn zero_copy_read(&mut self, frame: &[u8], count: usize) {
        self.start(frame);
        split(self.reply.gpa(), READ_HEADER, &mut self.writable);
        let mut left = count;
        for at in 0..count.div_ceil(PAGE) {
            let len = left.min(PAGE);
            split(self.page_gpa(at), len, &mut self.writable);
            left -= len;
        }
        self.header = READ_HEADER;
    }

    /// A Twrite of `count` bytes that are in the pages already ([`Slot::put_payload`]).
    pub fn zero_copy_write(&mut self, header: &[u8], count: usize) {
        self.start(header);
        let mut left = count;
        for at in 0..count.div_ceil(PAGE) {
            let len = left.min(PAGE);
            split(self.page_gpa(at), len, &mut self.readable);
            left -= len;
        }
        split(self.reply.gpa(), WRITE_REPLY, &mut self.writable);
    }

    /// Rewrites part of the T-message in place (a fid, an offset), leaving the descriptors as they are.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.message.write(at, bytes);
    }

    /// Copies a payload into the pages.
    pub fn put_payload(&mut self, bytes: &[u8]) {
        for (at, chunk) in bytes.chunks(PAGE).enumerate() {
            self.page(at).write(0, chunk);
        }
    }

    /// Copies the payload out of the pages.
    pub fn take_payload(&self, into: &mut [u8]) {
        for (at, chunk) in into.chunks_mut(PAGE).enumerate() {
            self.page(at).read(0, chunk);
        }
    }

    /// The reply's first bytes, wherever its descriptors are; `into` must not be longer than they are.
    pub fn reply(&self, into: &mut [u8]) {
        let head = into.len().min(self.header);
        let (front, rest) = into.split_at_mut(head);
        self.reply.read(0, front);
        self.take_payload(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_do_not_cross_pages() {
        let mut out = Vec::new();
        split(0x1ff0, 0x1020, &mut out);
        let lens: Vec<u32> = out.iter().map(|piece| piece.len).collect();
        assert_eq!(lens, [0x10, 0x1000, 0x10]);
        assert_eq!(out[1].gpa, 0x2000);
    }

    #[test]
    fn a_payload_in_scattered_pages_comes_back_in_order() {
        let memory = GuestMemory::new(&[(0, 1 << 20)]).expect("memfd");
        let mut slot = Slot::new(&memory, 256, 8192, 3 * PAGE, Pages::Scattered);
        let bytes: Vec<u8> = (0..2 * PAGE + 100).map(|at| (at % 251) as u8).collect();
        slot.put_payload(&bytes);
        slot.zero_copy_write(&[0; WRITE_HEADER], bytes.len());
        assert_eq!(slot.readable.len(), 4);
        assert!(slot.readable[1].gpa > slot.readable[2].gpa);
        let mut stream = Vec::new();
        for piece in &slot.readable[1..] {
            let area = memory.area(piece.gpa, piece.len as usize).expect("allocated");
            stream.extend(area.get(0, area.len()));
        }
        assert_eq!(stream, bytes);
        let mut back = vec![0; bytes.len()];
        slot.take_payload(&mut back);
        assert_eq!(back, bytes);
    }
}
