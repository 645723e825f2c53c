//! One request and its reply, laid out in guest memory once and sent again and again.

use testkit::layout;
use testkit::memory::{Area, GuestMemory};
use testkit::ring::Piece;

/// What a reply must look like.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// A 9P message of this type, with the exchange's tag and at least this size.
    Message(u8, u32),
    /// An Rread or Rreaddir with exactly this many bytes of payload.
    Payload(u8, u32),
    /// An Rwrite of exactly this count.
    Written(u32),
    /// A FUSE reply without error, of at least this many bytes.
    Fuse(u32),
    /// A FUSE reply without error, of exactly this many bytes.
    FuseExactly(u32),
    /// A FUSE_WRITE that wrote this many bytes.
    FuseWritten(u32),
}

/// Bytes of a reply that a later request of the same operation needs (FUSE hands out node and file handles).
#[derive(Clone, Copy, Debug)]
pub struct Carry {
    /// Where they stand in the reply.
    pub from: usize,
    /// Which later exchange wants them.
    pub exchange: usize,
    /// Where they go in its request.
    pub to: usize,
}

/// A field of the request that changes from operation to operation: a file offset.
#[derive(Clone, Copy, Debug)]
pub struct Rotate {
    /// Where the 8 bytes stand.
    pub at: usize,
    /// How far each operation moves on.
    pub step: u64,
    /// Where it starts again.
    pub limit: u64,
}

/// One request with its reply buffer.
#[derive(Debug)]
pub struct Exchange {
    request: Area,
    head: Area,
    /// The chain's readable part.
    pub readable: Vec<Piece>,
    /// The chain's writable part.
    pub writable: Vec<Piece>,
    expect: Expect,
    /// What later exchanges take from the reply.
    pub carries: Vec<Carry>,
    rotate: Option<(Rotate, u64)>,
}

impl Exchange {
    /// `frame` and one reply buffer of `capacity` bytes.
    pub fn ordinary(memory: &GuestMemory, frame: &[u8], capacity: usize, expect: Expect) -> Exchange {
        let mut exchange = Exchange::new(memory, frame, capacity, expect);
        layout::split(exchange.head.gpa(), capacity, &mut exchange.writable);
        exchange
    }

    /// `frame`, a reply header of `header` bytes, and pages for `count` bytes of payload behind it.
    pub fn reading(
        memory: &GuestMemory,
        frame: &[u8],
        header: usize,
        count: usize,
        expect: Expect,
    ) -> Exchange {
        let mut exchange = Exchange::new(memory, frame, header, expect);
        exchange.writable.push(Piece::from(&exchange.head));
        let pages = memory.alloc(count, 4096);
        layout::split(pages.gpa(), count, &mut exchange.writable);
        exchange
    }

    /// `frame` with pages of `count` bytes of payload behind it, and a reply buffer.
    pub fn writing(memory: &GuestMemory, frame: &[u8], count: usize, expect: Expect) -> Exchange {
        let mut exchange = Exchange::new(memory, frame, 4096, expect);
        let pages = memory.alloc(count, 4096);
        pages.fill(0x5a);
        layout::split(pages.gpa(), count, &mut exchange.readable);
        layout::split(exchange.head.gpa(), 4096, &mut exchange.writable);
        exchange
    }

    fn new(memory: &GuestMemory, frame: &[u8], head: usize, expect: Expect) -> Exchange {
        // A whole page each, so that no descriptor crosses one.
        let request = memory
            .alloc(frame.len().next_multiple_of(4096), 4096)
            .part(0, frame.len());
        request.write(0, frame);
        let head = memory.alloc(head.next_multiple_of(4096), 4096).part(0, head);
        let mut readable = Vec::new();
        layout::split(request.gpa(), frame.len(), &mut readable);
        Exchange {
            request,
            head,
            readable,
            writable: Vec::new(),
            expect,
            carries: Vec::new(),
            rotate: None,
        }
    }

    /// Lets the payload's pages come in reverse, as any two pages of a guest may: none continues the one before it.
    pub fn scattered(mut self) -> Exchange {
        // What comes before a payload is one piece in either direction.
        for list in [&mut self.readable, &mut self.writable] {
            if let Some(pages) = list.get_mut(1..) {
                pages.reverse();
            }
        }
        self
    }

    /// Lets the request's file offset move on with each operation, beginning at `start`.
    pub fn rotating(mut self, rotate: Rotate, start: u64) -> Exchange {
        self.rotate = Some((rotate, start % rotate.limit));
        self
    }

    /// Hands part of the reply to a later exchange.
    pub fn carrying(mut self, carry: Carry) -> Exchange {
        self.carries.push(carry);
        self
    }

    /// Writes the file offset for this operation, if it moves.
    pub fn prepare(&mut self) {
        if let Some((rotate, offset)) = &mut self.rotate {
            self.request.write(rotate.at, &offset.to_le_bytes());
            // Lanes keep their distance: if they all began at 0 again, they would read the same block in turn.
            *offset = (*offset + rotate.step) % rotate.limit;
        }
    }

    /// Overwrites 8 bytes of the request.
    pub fn patch(&self, at: usize, value: u64) {
        self.request.write(at, &value.to_le_bytes());
    }

    /// 8 bytes of the reply.
    pub fn reply_u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        self.head.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The first bytes of the reply.
    pub fn reply(&self, len: usize) -> Vec<u8> {
        self.head.get(0, len.min(self.head.len()))
    }

    /// Whether the reply of `used` bytes is what the work expects.
    pub fn check(&self, used: u32) -> Result<(), String> {
        let mut head = [0u8; 20];
        let have = head.len().min(self.head.len());
        self.head.read(0, &mut head[..have]);
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let size = word(0);
        let good = size == used
            && match self.expect {
                Expect::Message(kind, least) => head[4] == kind && size >= least,
                Expect::Payload(kind, count) => head[4] == kind && word(7) == count && size == count + 11,
                Expect::Written(count) => head[4] == 119 && word(7) == count,
                Expect::Fuse(least) => word(4) == 0 && size >= least,
                Expect::FuseExactly(exact) => word(4) == 0 && size == exact,
                Expect::FuseWritten(count) => word(4) == 0 && word(16) == count,
            };
        if good {
            Ok(())
        } else {
            Err(format!(
                "expected {:?}, got used length {used}, reply {head:?}",
                self.expect
            ))
        }
    }
}
