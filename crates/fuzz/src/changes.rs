//! What a client changes in its memory between two looks.

use testkit::GuestMemory;

/// Unchanged bytes that are taken with the changed ones around them.
const GAP: usize = 8;

/// The memory as it was, from guest address 0 on.
#[derive(Debug)]
pub struct Changes(Vec<u8>);

impl Changes {
    /// Since it was `known`.
    pub fn of(memory: &GuestMemory, known: Vec<u8>) -> Changes {
        assert!(memory.area(0, known.len()).is_some());
        Changes(known)
    }

    fn now(&self, memory: &GuestMemory) -> Vec<u8> {
        let area = memory.area(0, self.0.len()).expect("it was there");
        area.get(0, self.0.len())
    }

    /// The changes since then: address and bytes.
    pub fn take(&mut self, memory: &GuestMemory) -> Vec<(u64, Vec<u8>)> {
        let now = self.now(memory);
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for at in (0..now.len()).filter(|at| now[*at] != self.0[*at]) {
            match spans.last_mut() {
                Some(span) if at < span.1 + GAP => span.1 = at + 1,
                _ => spans.push((at, at + 1)),
            }
        }
        let changes = spans
            .iter()
            .map(|span| (span.0 as u64, now[span.0..span.1].to_vec()));
        let changes = changes.collect();
        self.0 = now;
        changes
    }

    /// The other side has made it `now`.
    pub fn put(&mut self, memory: &GuestMemory, now: Vec<u8>) {
        memory.area(0, now.len()).expect("it was there").write(0, &now);
        self.0 = now;
    }
}
