//! Treads and Twrites that adjoin: whatever is done with one system call, nobody sees it by the answers or the files.

use std::io::Read;
use std::sync::Arc;

use host::{MayHang, SecurityModel, Share, ShareOptions};
use proptest::prelude::*;
use server::Limits;
use server::run::{RUN_BYTES, adjoin};
use wire::*;

use crate::common::*;
use crate::neighbours::{Sent, call, one_by_one, together};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Writes of `data`, `each` bytes a request, to fid 1.
fn writes(data: &[u8], each: usize) -> Vec<Sent> {
    let one = |(at, part): (usize, &[u8])| {
        Sent::write(at as u16, 1, (at * each) as u64, part.len() as u32, part.to_vec())
    };
    data.chunks(each).enumerate().map(one).collect()
}

/// Reads of fid 1, `each` bytes a request.
fn reads(count: u16, each: u32) -> Vec<Sent> {
    let one = |at| Sent::read(at, 1, u64::from(at) * u64::from(each), each);
    (0..count).map(one).collect()
}

/// What this thread has called for reading and for writing; `None` where the kernel does not count.
fn calls() -> Option<(u64, u64)> {
    let counts = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    let of = |name| {
        let line = counts.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|number| number.trim().parse().ok())
    };
    Some((of("syscr:")?, of("syscw:")?))
}

/// How many such calls `work` makes.
fn counted(work: impl FnOnce()) -> Option<(u64, u64)> {
    // Asking counts, too.
    let (first, second) = (calls()?, calls()?);
    work();
    let third = calls()?;
    let asking = second.0 - first.0;
    Some((third.0 - second.0 - asking, third.1 - second.1))
}

#[test]
fn one_system_call_moves_a_run() {
    each(|mut f| {
        f.create(1, "file", O_RDWR);
        let data = pattern(8 * 4096);
        let sent = writes(&data, 4096);
        let mut replies = Vec::new();
        let made = counted(|| replies = call(&f, &sent));
        assert!(matches!(made, None | Some((0, 1))), "{made:?}");
        assert_eq!(std::fs::read(f.path("file")).unwrap(), data);
        let expected: Vec<Vec<u8>> = (0..8)
            .map(|tag| vec![11, 0, 0, 0, RWRITE, tag, 0, 0, 16, 0, 0])
            .collect();
        assert_eq!(replies, expected);

        let sent = reads(8, 4096);
        let made = counted(|| replies = call(&f, &sent));
        assert!(matches!(made, None | Some((1, 0))), "{made:?}");
        assert_eq!(replies.len(), 8);
        for (at, (reply, part)) in replies.iter().zip(data.chunks(4096)).enumerate() {
            assert_eq!(reply[..11], [11, 16, 0, 0, RREAD, at as u8, 0, 0, 16, 0, 0]);
            assert_eq!(&reply[11..], part);
        }
    });
}

#[test]
fn only_what_adjoins_is_a_run() {
    let read = |fid, offset, count| Sent::read(1, fid, offset, count).message;
    let write = |fid, offset, count| Sent::write(1, fid, offset, count, Vec::new()).message;
    assert!(adjoin(&read(1, 5, 10), &read(1, 15, 1)));
    assert!(adjoin(&write(1, 5, 10), &write(1, 15, 1)));
    for other in [
        read(2, 15, 1),
        read(1, 14, 1),
        read(1, 16, 1),
        read(1, 5, 10),
        read(1, 15, 0),
        write(1, 15, 1),
    ] {
        assert!(!adjoin(&read(1, 5, 10), &other));
    }
    assert!(!adjoin(&read(1, 15, 0), &read(1, 15, 1)));
    assert!(!adjoin(&read(1, u64::MAX, 1), &read(1, 0, 1)));
    assert!(!adjoin(&read(1, 5, 10)[..22], &read(1, 15, 1)));
    assert!(!adjoin(&read(1, 5, 10), &[]));
    let mut untrue = write(1, 15, 1);
    untrue[0] = 22;
    assert!(!adjoin(&write(1, 5, 10), &untrue), "it ends before its count");
    let mut listing = [read(1, 5, 10), read(1, 15, 1)];
    listing.iter_mut().for_each(|message| message[4] = TREADDIR);
    assert!(!adjoin(&listing[0], &listing[1]));
}

#[test]
fn a_read_run_ends_where_the_file_does() {
    let mut f = Fixture::new();
    let data = pattern(3 * 1000 + 1);
    f.write("file", &data);
    f.open(1, "file", O_RDONLY);
    let sent = reads(8, 1000);
    assert_eq!(call(&f, &sent).len(), 3, "the others are not whole");
    let (replies, in_runs) = together(&mut f, &sent);
    assert_eq!(in_runs, 3);
    let lens: Vec<usize> = replies.iter().map(|reply| reply.len() - 11).collect();
    assert_eq!(lens, [1000, 1000, 1000, 1, 0, 0, 0, 0]);
}

#[test]
fn what_is_not_plain_is_left_alone() {
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    let sent = writes(&pattern(3000), 1000);
    // Alone or nothing at all.
    assert!(call(&f, &[]).is_empty());
    assert!(call(&f, &sent[..1]).is_empty());
    // One whose payload is cut short, in the middle, ends the run; in front there is none.
    for (bad, answered) in [(0, 0), (1, 0), (2, 2)] {
        let mut cut = sent.clone();
        cut[bad].payload.pop();
        assert_eq!(call(&f, &cut).len(), answered, "{bad}");
        let mut cut = sent.clone();
        cut[bad].room = 10;
        assert_eq!(call(&f, &cut).len(), answered, "{bad}");
    }
    // Whoever hands over what is no run gets answered what is one.
    for other in [
        Sent::write(2, 1, 2001, 1000, vec![0; 1000]),
        Sent::write(2, 1, 1000, 1000, vec![0; 1000]),
        Sent::write(2, 2, 2000, 1000, vec![0; 1000]),
        Sent::read(2, 1, 2000, 1000),
    ] {
        assert_eq!(call(&f, &[sent[0].clone(), sent[1].clone(), other]).len(), 2);
    }
    let mut small = reads(3, 1000);
    small[2].room = 1010;
    assert_eq!(call(&f, &small).len(), 2);
    // Never beyond what one request has moved at a time.
    let each = RUN_BYTES / 2;
    assert_eq!(call(&f, &writes(&pattern(4 * each), each)).len(), 2);
    assert!(call(&f, &writes(&pattern(4 * each), each + 1)).is_empty());
    // msize says how long a reply may be.
    f.client.version(4096).unwrap();
    f.client.attach(0, 0).unwrap();
    f.open(1, "file", O_RDONLY);
    assert_eq!(call(&f, &reads(3, 4096 - 11)).len(), 3);
    assert!(call(&f, &reads(3, 4096 - 10)).is_empty());
    assert!(call(&f, &sent).is_empty(), "not open for writing");
}

#[test]
fn more_pieces_than_a_system_call_takes_end_the_run() {
    use host::IoVec;
    use server::{Neighbour, Scratch};
    let mut f = Fixture::new();
    f.create(1, "file", O_RDWR);
    let data = pattern(3 * 400);
    let sent = writes(&data, 400);
    let mut payloads: Vec<Vec<u8>> = sent.iter().map(|one| one.payload.clone()).collect();
    // SAFETY: each byte outlives the call below.
    let byte = |byte: &mut u8| unsafe { IoVec::new(byte, 1) };
    let lists: Vec<Vec<IoVec>> = payloads
        .iter_mut()
        .map(|payload| payload.iter_mut().map(byte).collect())
        .collect();
    let mut replies = vec![vec![0; 11]; 3];
    let places: Vec<Vec<IoVec>> = replies.iter_mut().map(|reply| pieces(reply)).collect();
    let mut run: Vec<Neighbour<'_>> = (0..3)
        .map(|at| Neighbour {
            message: &sent[at].message,
            payload: &lists[at],
            reply: &places[at],
            used: 0,
        })
        .collect();
    assert_eq!(f.session.handle_run(&mut run, &mut Scratch::default()), 2);
    assert_eq!(std::fs::read(f.path("file")).unwrap(), data[..800]);
}

#[test]
fn neither_session_nor_share_are_asked_out_of_turn() {
    // Before Tversion.
    let f = Fixture::new();
    let session = server::Session::new(f.share.clone(), Limits::default());
    let fresh = Fixture {
        session: Arc::new(session),
        ..f
    };
    assert!(call(&fresh, &reads(2, 10)).is_empty());
    // A share whose system calls may hang is not for the queue thread.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), pattern(100)).unwrap();
    let mut options = ShareOptions::new(dir.path(), SecurityModel::Passthrough);
    options.may_hang = MayHang::Always;
    let share = Arc::new(Share::open(&options).unwrap());
    let mut f = Fixture::on(dir, share, Limits::default());
    f.open(1, "file", O_RDWR);
    assert!(call(&f, &reads(2, 10)).is_empty());
    assert!(call(&f, &writes(b"0123456789", 5)).is_empty());
    assert_eq!(std::fs::read(f.path("file")).unwrap(), pattern(100));
}

#[test]
fn appends_and_shares_that_are_read_only_are_done_one_by_one() {
    let mut f = Fixture::new();
    f.write("log", "x");
    for (fid, flags) in [(1, O_RDWR | O_APPEND), (2, O_WRONLY | O_APPEND)] {
        f.open(fid, "log", flags);
        let mut sent = writes(b"aabbcc", 2);
        sent.iter_mut().for_each(|one| one.message[7] = fid as u8);
        assert!(call(&f, &sent).is_empty());
    }
    assert_eq!(std::fs::read(f.path("log")).unwrap(), b"x");
    assert_eq!(call(&f, &reads(2, 1)).len(), 1, "reads do not append");

    let mut f = Fixture::readonly();
    f.open(1, "file", O_RDONLY);
    let sent = writes(b"1234", 2);
    let (replies, in_runs) = together(&mut f, &sent);
    assert_eq!((replies, in_runs), (one_by_one(&mut f, &sent), 0));
    assert_eq!(call(&f, &reads(2, 2)).len(), 2);
}

/// How one request goes on from the one before.
#[derive(Clone, Debug)]
struct Step {
    /// Something else from here on: what, with which fid, where.
    turn: Option<(bool, u32, u64)>,
    gap: i64,
    count: u32,
    /// Bytes missing from the payload.
    short: usize,
    /// Bytes of reply buffer instead of enough.
    room: Option<usize>,
    /// A size field of one's own.
    size: Option<u32>,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        10 => 0u64..20_000,
        1 => (0u64..20_000).prop_map(|n| i64::MAX as u64 - n),
        1 => (0u64..20_000).prop_map(|n| u64::MAX - n),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let turn = (
        any::<bool>(),
        prop_oneof![6 => Just(1u32), 6 => 1u32..10],
        offset(),
    );
    let count = prop_oneof![
        20 => 1u32..5000, 10 => Just(4096), 1 => Just(0), 1 => 60_000u32..140_000, 1 => Just(u32::MAX)
    ];
    (
        prop_oneof![8 => Just(None), 1 => turn.prop_map(Some)],
        prop_oneof![20 => Just(0i64), 1 => -5000i64..5000],
        count,
        prop_oneof![20 => Just(0usize), 1 => 1usize..3000],
        prop_oneof![20 => Just(None), 1 => (0usize..5000).prop_map(Some)],
        prop_oneof![40 => Just(None), 1 => any::<u32>().prop_map(Some), 1 => (0u32..40).prop_map(Some)],
    )
        .prop_map(|(turn, gap, count, short, room, size)| Step {
            turn,
            gap,
            count,
            short,
            room,
            size,
        })
}

fn requests(steps: &[Step]) -> Vec<Sent> {
    let (mut write, mut fid, mut at) = (true, 1, 0u64);
    let mut sent = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        if let Some(turn) = step.turn {
            (write, fid, at) = turn;
        }
        at = at.wrapping_add_signed(step.gap);
        let tag = number as u16;
        let mut one = if write {
            let len = (step.count as usize).min(150_000).saturating_sub(step.short);
            let payload = (0..len).map(|i| (i * 3 + number * 31) as u8).collect();
            Sent::write(tag, fid, at, step.count, payload)
        } else {
            Sent::read(tag, fid, at, step.count)
        };
        one.room = step.room.unwrap_or(one.room);
        if let Some(size) = step.size {
            one.message[..4].copy_from_slice(&size.to_le_bytes());
            // As the device copies it.
            let readable = one.message.len() + one.payload.len();
            let header = one.message.first_chunk().unwrap();
            one.message
                .truncate(server::request::copy_len(header, readable).max(7));
        }
        sent.push(one);
        at = at.wrapping_add(step.count.into());
    }
    sent
}

/// A file, and fids in all states.
fn prepared(alone: bool) -> Fixture {
    let mut f = Fixture::with(SecurityModel::Squash, Limits::default());
    f.write("file", pattern(10_000));
    f.write("log", pattern(3000));
    f.open(1, "file", O_RDWR);
    f.open(2, "file", O_RDONLY);
    f.open(3, "log", O_RDWR | O_APPEND);
    if alone {
        f.open(4, "file", O_WRONLY);
        f.open(5, "log", O_WRONLY | O_APPEND);
    }
    f.client.clone_fid(0, 6).unwrap();
    f.client.lopen(6, O_RDONLY).unwrap();
    f.client.walk_all(0, 7, &["file"]).unwrap();
    // Not everywhere; then there is no such fid.
    if f.client.setxattr(7, 8, "user.test", &pattern(2000), 0).is_ok() {
        f.client.xattrwalk(7, 8, "user.test").unwrap();
        f.client.clone_fid(7, 9).unwrap();
        f.client.xattrcreate(9, "user.more", 6000, 0).unwrap();
    }
    f
}

/// The length and the front of a file: some writes make it as long as a file can be.
fn front(f: &Fixture, name: &str) -> (u64, Vec<u8>) {
    let mut front = Vec::new();
    let file = std::fs::File::open(f.path(name)).unwrap();
    file.take(400_000).read_to_end(&mut front).unwrap();
    (f.host(name).len(), front)
}

proptest! {
    #[test]
    fn runs_give_what_the_same_requests_give_one_by_one(
        steps in prop::collection::vec(step(), 1..40),
        alone in any::<bool>(),
    ) {
        let sent = requests(&steps);
        let (mut with, mut without) = (prepared(alone), prepared(alone));
        let (replies, _) = together(&mut with, &sent);
        prop_assert_eq!(replies, one_by_one(&mut without, &sent));
        for name in ["file", "log"] {
            prop_assert_eq!(front(&with, name), front(&without, name));
        }
        prop_assert_eq!(with.session.usage(), without.session.usage());
    }
}
