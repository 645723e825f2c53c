//! What the device has to make of a kick, and whether it has.

use wire::Rmessage;

use crate::arena::Arena;
use crate::oracle::{self, Chain, Range, Ring};

/// Bytes that are compared at a time.
const LINE: usize = 1024;

/// What a kick has to lead to.
pub struct Expected {
    /// The queue.
    pub ring: Ring,
    /// The heads taken, and their chains.
    pub heads: Vec<(u16, Chain)>,
    /// The driver has broken the rules.
    pub breaks: bool,
    /// A Tflush is among them: others may be answered with nothing.
    pub flush: bool,
}

impl Expected {
    /// It has: `before` is the memory before the kick, `used` where the device was, `real` whether a session answers.
    ///
    /// # Panics
    /// When it has not.
    pub fn check(&self, memory: &Arena, before: &[u8], used: u16, real: bool) {
        let mut allowed: Vec<Range> = self
            .heads
            .iter()
            .flat_map(|(_, chain)| chain.writable.clone())
            .collect();
        if self.ring.valid(memory) {
            allowed.push(self.ring.areas()[2]);
            self.check_used(memory, used, real);
        }
        let mut before = before;
        for (gpa, after) in memory.bytes() {
            let (now, later) = before.split_at(after.len());
            before = later;
            for (line, (before, after)) in (0..).zip(now.chunks(LINE).zip(after.chunks(LINE))) {
                if before == after {
                    continue;
                }
                for at in (0..after.len()).filter(|at| before[*at] != after[*at]) {
                    let here = (gpa + (line * LINE + at) as u64, 1);
                    let ours = allowed.iter().any(|range| oracle::overlap(*range, here));
                    assert!(ours, "the device has written to {:#x}", here.0);
                }
            }
        }
    }

    /// Each chain was completed once, with the right length.
    fn check_used(&self, memory: &Arena, used: u16, real: bool) {
        let count = self.heads.len() as u16;
        if !self.breaks && count > 0 {
            assert_eq!(
                memory.u16(self.ring.used + 2),
                used.wrapping_add(count),
                "the used index"
            );
        }
        let mut left: Vec<&(u16, Chain)> = self.heads.iter().collect();
        for at in 0..count {
            let slot = u64::from(used.wrapping_add(at) & (self.ring.size - 1));
            let entry = memory.read(self.ring.used + 4 + 8 * slot, 8);
            let id = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
            let len = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let fits = |(head, chain): &&(u16, Chain)| {
                u32::from(*head) == id && self.length_fits(memory, chain, len, real)
            };
            let found = left.iter().position(fits);
            let found = found.unwrap_or_else(|| panic!("{id} was completed with {len} bytes; of {left:?}"));
            left.swap_remove(found);
        }
    }

    fn length_fits(&self, memory: &Arena, chain: &Chain, len: u32, real: bool) -> bool {
        if !chain.valid {
            return len == 0;
        }
        let room = oracle::total(&chain.writable);
        if len == 0 && (self.flush || real) {
            return true;
        }
        if !real {
            return len as usize == room.min(oracle::total(&chain.readable));
        }
        // Chains may share their reply's memory; then it is one's or the other's.
        let shared = self.heads.len() > 1;
        let mut reply = oracle::bytes(memory, &chain.writable);
        reply.truncate(len as usize);
        len as usize <= room && (shared || Rmessage::decode(&reply).is_ok())
    }
}
