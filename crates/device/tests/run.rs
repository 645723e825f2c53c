//! Reads and writes that adjoin and are in flight at once are done together, and nobody sees it by the answers.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Rig, frame};
use device::Handler;
use host::{SecurityModel, Share, ShareOptions};
use server::{How, Limits, Neighbour, Outcome, Request, Scratch, Session};
use tempfile::TempDir;
use testkit::{Machine, MachineOptions, Pages, RingOptions, Vmm, scenario};
use wire::*;

/// What the queue asked of the session.
#[derive(Debug, Default)]
struct Counts {
    /// Runs of which something was answered.
    runs: AtomicUsize,
    in_runs: AtomicUsize,
    /// Treads and Twrites alone.
    alone: AtomicUsize,
}

impl Counts {
    fn take(&self) -> (usize, usize, usize) {
        let [runs, in_runs, alone] =
            [&self.runs, &self.in_runs, &self.alone].map(|count| count.swap(0, Ordering::Relaxed));
        (runs, in_runs, alone)
    }
}

/// A session that counts.
struct Counting(Session, Arc<Counts>);

impl Handler for Counting {
    fn handle(&self, request: &mut Request<'_>, scratch: &mut Scratch, how: How) -> Outcome {
        if matches!(request.message[4], TREAD | TWRITE) {
            self.1.alone.fetch_add(1, Ordering::Relaxed);
        }
        self.0.handle(request, scratch, how)
    }

    fn handle_run(&self, run: &mut [Neighbour<'_>], scratch: &mut Scratch) -> usize {
        let answered = self.0.handle_run(run, scratch);
        self.1
            .runs
            .fetch_add(usize::from(answered > 0), Ordering::Relaxed);
        self.1.in_runs.fetch_add(answered, Ordering::Relaxed);
        answered
    }

    fn reset(&self) {
        self.0.reset();
    }

    fn wake_count(&self) -> u64 {
        self.0.wake_count()
    }
}

/// A share with `file` in it, a machine that has it open as fid 1, and what is counted. Fields are dropped in order.
struct Setup {
    machine: Machine,
    counts: Arc<Counts>,
    dir: TempDir,
    _rig: Rig,
}

fn setup(vmm: Vmm, pages: Pages, content: &[u8]) -> Setup {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("file"), content).expect("write");
    let options = ShareOptions::new(dir.path(), SecurityModel::Squash);
    let share = Arc::new(Share::open(&options).expect("the share opens"));
    let counts = Arc::new(Counts::default());
    let theirs = Arc::clone(&counts);
    let rig = Rig::with(
        move || Counting(Session::new(share.clone(), Limits::default()), theirs.clone()),
        2,
    );
    let mut machine = rig.boot_with(&MachineOptions {
        pages,
        ring: RingOptions {
            size: 512,
            ..RingOptions::default()
        },
        ..MachineOptions::new(vmm)
    });
    machine.client.walk_all(0, 1, &["file"]).expect("walk");
    machine.client.lopen(1, P9_DOTL_RDWR).expect("open");
    counts.take();
    Setup {
        machine,
        counts,
        dir,
        _rig: rig,
    }
}

/// A Twrite without its payload, of `count` bytes.
fn write_of(offset: u64, count: u32, tag: u16) -> Vec<u8> {
    let data = &[][..];
    let write = Twrite {
        fid: 1,
        offset,
        count,
        data,
    };
    frame(write, tag)
}

impl Setup {
    /// Makes all of `sent` (message, payload, room for the reply) available at once; the replies, which come in the
    /// same order.
    fn at_once(&mut self, sent: &[(Vec<u8>, &[u8], usize)]) -> Vec<Vec<u8>> {
        let transport = self.machine.client.transport();
        let tokens: Vec<u16> = sent
            .iter()
            .map(|(message, payload, room)| transport.stage(message, payload, *room))
            .collect();
        transport.ring.notify();
        tokens
            .into_iter()
            .map(|token| {
                let (got, reply) = transport.next_reply();
                assert_eq!(got, token, "what is done at once is completed in order");
                reply
            })
            .collect()
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("file")).expect("read")
    }
}

#[test]
fn thirty_two_in_flight_take_few_system_calls() {
    for vmm in Vmm::ALL {
        for pages in [Pages::Scattered, Pages::Adjacent] {
            // Carried in the message, in a page each, in one and a half.
            for each in [700, 4096, 6000] {
                let mut setup = setup(vmm, pages, b"");
                let data = scenario::pattern(32 * each, 5);
                let place = |tag: usize| (tag * each) as u64;
                let writes: Vec<_> = (data.chunks(each).enumerate())
                    .map(|(tag, part)| (write_of(place(tag), each as u32, tag as u16), part, 4096))
                    .collect();
                for (tag, reply) in setup.at_once(&writes).iter().enumerate() {
                    let (got, message) = Rmessage::decode(reply).expect("a valid answer");
                    assert_eq!(usize::from(got), tag);
                    assert_eq!(message, Rmessage::Write(Rwrite { count: each as u32 }));
                }
                assert_eq!(setup.counts.take(), (2, 32, 0), "{each} bytes each");
                assert!(setup.content() == data, "{vmm:?}, {pages:?}, {each}");

                let reads: Vec<_> = (0..32)
                    .map(|tag| {
                        let read = Tread {
                            fid: 1,
                            offset: place(tag),
                            count: each as u32,
                        };
                        (frame(read, tag as u16), &[][..], 11 + each)
                    })
                    .collect();
                for (tag, reply) in setup.at_once(&reads).iter().enumerate() {
                    let (got, message) = Rmessage::decode(reply).expect("a valid answer");
                    assert_eq!(usize::from(got), tag);
                    let part = &data[tag * each..][..each];
                    assert!(message == Rmessage::Read(Rread { data: part }), "{tag} of {each}");
                }
                assert_eq!(setup.counts.take(), (2, 32, 0), "{each} bytes each");
            }
        }
    }
}

#[test]
fn what_stands_between_parts_a_run_and_keeps_its_place() {
    let mut setup = setup(Vmm::Crosvm, Pages::Scattered, b"");
    let page = scenario::pattern(4096, 6);
    let write = |at: u64, tag| (write_of(at * 4096, 4096, tag), &page[..], 4096);
    let size = |tag| (frame(Tgetattr { fid: 1, mask: 0x3fff }, tag), &[][..], 4096);
    let read = |count, tag| (common::read_of(count, tag), &[][..], 11 + count as usize);
    let replies = setup.at_once(&[
        write(0, 0),
        write(1, 1),
        size(2),
        write(2, 3),
        write(3, 4),
        write(4, 5),
        size(6),
        read(5000, 7),
        write(5, 8),
    ]);
    let length = |reply: &[u8]| match Rmessage::decode(reply) {
        Ok((_, Rmessage::Getattr(attr))) => attr.size,
        other => panic!("{other:?}"),
    };
    assert_eq!((length(&replies[2]), length(&replies[6])), (2 * 4096, 5 * 4096));
    assert_eq!(replies[7].len(), 5011);
    // The first two are a run, the three as well; a read and a write are none.
    assert_eq!(setup.counts.take(), (2, 5, 2));
    assert_eq!(setup.content(), page.repeat(6));
}

#[test]
fn a_bad_request_among_them_is_the_only_one_that_fails() {
    let mut setup = setup(Vmm::Qemu, Pages::Adjacent, b"");
    let page = scenario::pattern(4096, 7);
    let mut sent: Vec<_> = (0..6u16)
        .map(|at| (write_of(u64::from(at) * 4096, 4096, at), &page[..], 4096))
        .collect();
    // It says 4096 and brings 4000, so it moves less, and the next does not go on where it says it ends.
    sent[3].1 = &page[..4000];
    let replies = setup.at_once(&sent);
    for (at, reply) in replies.iter().enumerate() {
        match at {
            3 => assert_eq!(common::errno(reply, 3), 22),
            _ => assert_eq!(reply[4], RWRITE),
        }
    }
    let (_, in_runs, alone) = setup.counts.take();
    assert_eq!((in_runs, alone), (3, 3));
    let mut expected = page.repeat(6);
    expected[3 * 4096..4 * 4096].fill(0);
    assert!(setup.content() == expected);
}
