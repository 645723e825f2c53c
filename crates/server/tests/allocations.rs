//! What a request allocates (nothing), and what a fid takes.

#[allow(dead_code)]
#[path = "session/common.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use host::{IoVec, SecurityModel, Share, ShareOptions};
use server::{How, Limits, Neighbour, Outcome, Request, Scratch, Session};
use wire::*;

/// Counts a thread's own allocations.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        BYTES.set(BYTES.get() + layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A session with what a request needs, all of it made beforehand.
struct Caller {
    session: Session,
    scratch: Scratch,
    reply: Vec<u8>,
    payload: Vec<u8>,
}

impl Caller {
    fn new(dir: &std::path::Path, model: SecurityModel) -> Caller {
        let share = Share::open(&ShareOptions::new(dir, model)).unwrap();
        let mut caller = Caller {
            session: Session::new(Arc::new(share), Limits::default()),
            scratch: Scratch::default(),
            reply: vec![0; 600_000],
            payload: vec![7; 600_000],
        };
        caller.call(&frame(&Tversion {
            msize: 512_000,
            version: VERSION_9P2000_L,
        }));
        caller.call(&frame(&Tattach {
            fid: 0,
            afid: NOFID,
            uname: b"",
            aname: b"",
            n_uname: 0,
        }));
        caller
    }

    fn call(&mut self, message: &[u8]) {
        // SAFETY: both buffers are this thread's and outlive the call.
        let to = [unsafe { IoVec::new(self.reply.as_mut_ptr(), self.reply.len()) }];
        // SAFETY: as above.
        let from = [unsafe { IoVec::new(self.payload.as_mut_ptr(), self.payload.len()) }];
        let mut progress = 0;
        loop {
            let mut request = Request {
                message,
                payload: &from,
                reply: &to,
                progress: &mut progress,
                slice: 128 * 1024,
            };
            match self.session.handle(&mut request, &mut self.scratch, How::Inline) {
                Outcome::More => {}
                Outcome::Done(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_ne!(self.reply[4], RLERROR, "errno {}", self.reply[7]);
    }

    /// All of `messages` at once.
    fn call_run(&mut self, messages: &[Vec<u8>; 8]) {
        // SAFETY: as in `call`.
        let from = [unsafe { IoVec::new(self.payload.as_mut_ptr(), self.payload.len()) }];
        // SAFETY: as in `call`; eight parts of one buffer.
        let to: [[IoVec; 1]; 8] =
            std::array::from_fn(|at| [unsafe { IoVec::new(self.reply.as_mut_ptr().add(at * 8192), 8192) }]);
        let mut run: [Neighbour<'_>; 8] = std::array::from_fn(|at| Neighbour {
            message: &messages[at],
            payload: &from,
            reply: &to[at],
            used: 0,
        });
        assert_eq!(self.session.handle_run(&mut run, &mut self.scratch), 8);
    }
}

fn frame<'m>(message: &impl Message<'m>) -> Vec<u8> {
    let mut buf = vec![0; 8192];
    let len = message.encode(1, &mut buf).unwrap();
    buf.truncate(len);
    buf
}

fn walk(fid: u32, newfid: u32, names: &[&[u8]]) -> Vec<u8> {
    frame(&Twalk {
        fid,
        newfid,
        names: Names::new(names),
    })
}

#[test]
fn the_usual_requests_allocate_nothing() {
    for model in [SecurityModel::Passthrough, SecurityModel::MappedXattr] {
        the_usual_requests(model);
    }
}

fn the_usual_requests(model: SecurityModel) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    std::fs::write(dir.path().join("a/b/file"), vec![1; 600_000]).unwrap();
    std::fs::write(
        dir.path()
            .join("a/b/a name that is longer than one chunk of the store"),
        "",
    )
    .unwrap();
    // A directory that changed in the last second is not remembered, in a mode that remembers any.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let mut caller = Caller::new(dir.path(), model);
    caller.call(&walk(0, 1, &[b"a", b"b", b"file"]));
    caller.call(&frame(&Tlopen { fid: 1, flags: 2 }));
    caller.call(&walk(0, 2, &[b"a", b"b"]));
    caller.call(&frame(&Tlopen { fid: 2, flags: 0 }));
    let long: &[u8] = b"a name that is longer than one chunk of the store";
    let (offset, data) = (0, &b""[..]);
    let requests = [
        frame(&Tgetattr { fid: 1, mask: 0x3fff }),
        frame(&Tstatfs { fid: 1 }),
        frame(&Tread {
            fid: 1,
            offset,
            count: 4096,
        }),
        frame(&Tread {
            fid: 1,
            offset,
            count: 500_000,
        }),
        frame(&Twrite {
            fid: 1,
            offset,
            count: 4096,
            data,
        }),
        frame(&Twrite {
            fid: 1,
            offset,
            count: 500_000,
            data,
        }),
        frame(&Treaddir {
            fid: 2,
            offset,
            count: 500_000,
        }),
        walk(0, 9, &[b"a", b"b", long]),
        walk(9, 10, &[]),
        frame(&Tlopen { fid: 9, flags: 0 }),
        frame(&Tsetattr {
            fid: 9,
            valid: P9_SETATTR_MODE,
            mode: 0o600,
            ..Tsetattr::default()
        }),
        frame(&Tclunk { fid: 9 }),
        frame(&Tclunk { fid: 10 }),
    ];
    let reads: [Vec<u8>; 8] = std::array::from_fn(|at| {
        frame(&Tread {
            fid: 1,
            offset: at as u64 * 4096,
            count: 4096,
        })
    });
    let writes: [Vec<u8>; 8] = std::array::from_fn(|at| {
        frame(&Twrite {
            fid: 1,
            offset: at as u64 * 4096,
            count: 4096,
            data,
        })
    });
    let getattrs: [Vec<u8>; 8] = std::array::from_fn(|_| frame(&Tgetattr { fid: 1, mask: 0x7ff }));
    let mapped = !matches!(model, SecurityModel::Passthrough | SecurityModel::Squash);
    let runs = if mapped { 2 } else { 3 };
    for round in 0..3 {
        for run in &[&reads, &writes, &getattrs][..runs] {
            let before = CALLS.get();
            caller.call_run(run);
            assert!(round == 0 || CALLS.get() == before, "a run of type {}", run[0][4]);
        }
        for request in &requests {
            let before = CALLS.get();
            caller.call(request);
            // The first round makes the buffers that are then kept.
            assert!(
                round == 0 || CALLS.get() == before,
                "{model:?}, message type {}",
                request[4]
            );
        }
    }
}

#[test]
fn an_idle_fid_takes_little() {
    const FIDS: u32 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    for at in 0..FIDS {
        std::fs::File::create(dir.path().join(format!("some-file-{at:05}"))).unwrap();
    }
    let mut caller = Caller::new(dir.path(), SecurityModel::Passthrough);
    let before = BYTES.get();
    for at in 0..FIDS {
        caller.call(&walk(0, 1 + at, &[format!("some-file-{at:05}").as_bytes()]));
    }
    let each = (BYTES.get() - before) / FIDS as isize;
    assert!(each <= 240, "{each} bytes");
    eprintln!("{each} bytes per idle fid");
}
