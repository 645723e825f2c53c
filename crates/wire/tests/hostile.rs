//! No bytes make the crate panic, and what is cut off is told so, with the tag that the answer needs.

mod common;

use common::{Material, material, rmessages, tmessages};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use wire::*;

/// The frames of both directions.
fn frames(m: &Material) -> Vec<Vec<u8>> {
    let names = m.strings();
    let mut buf = vec![0; 8 * 1024];
    let mut frames = Vec::new();
    for message in tmessages(m, &names) {
        let len = message.encode(0x1234, &mut buf).expect("it fits");
        frames.push(buf[..len].to_vec());
    }
    for message in rmessages(m) {
        let len = message.encode(0x1234, &mut buf).expect("it fits");
        frames.push(buf[..len].to_vec());
    }
    frames
}

/// Decodes in both directions, looks at everything that came out, and encodes it again.
fn exercise(frame: &[u8]) {
    let header = Header::decode(frame);
    let mut buf = vec![0; frame.len() + 64];
    match Tmessage::decode(frame) {
        Ok((tag, message)) => {
            assert_eq!(
                header.map(|header| (header.tag, header.kind)),
                Some((tag, message.kind()))
            );
            let _ = format!("{message:?}");
            if let Tmessage::Walk(walk) = message {
                assert!(walk.names.len() <= MAXWELEM);
                assert_eq!(walk.names.iter().count(), walk.names.len());
            }
            if let Tmessage::Write(write) = message {
                assert!(write.data.len() <= write.count as usize);
            }
            if let Some(len) = message.encode(tag, &mut buf) {
                assert_eq!(Tmessage::decode(&buf[..len]), Ok((tag, message)));
            } else {
                // Only a Twrite that announces more than a size can be.
                assert!(matches!(message, Tmessage::Write(write) if write.count > u32::MAX - 23));
            }
        }
        Err(error) => assert_eq!(error.tag, header.map(|header| header.tag)),
    }
    match Rmessage::decode(frame) {
        Ok((tag, message)) => {
            assert_eq!(
                header.map(|header| (header.tag, header.kind)),
                Some((tag, message.kind()))
            );
            let _ = format!("{message:?}");
            if let Rmessage::Walk(walk) = message {
                assert!(walk.qids.len() <= MAXWELEM);
                assert_eq!(walk.qids.iter().count(), walk.qids.len());
            }
            if let Rmessage::Readdir(readdir) = message {
                entries(readdir.data);
            }
            let len = message.encode(tag, &mut buf).expect("it came from as many bytes");
            assert_eq!(Rmessage::decode(&buf[..len]), Ok((tag, message)));
        }
        Err(error) => assert_eq!(error.tag, header.map(|header| header.tag)),
    }
}

/// At most one error, at the end; the bytes are all accounted for.
fn entries(data: &[u8]) {
    let all: Vec<_> = Dirents::new(data).collect();
    let good = all.iter().take_while(|entry| entry.is_ok()).count();
    assert!(all.len() - good <= 1);
    let bytes: usize = all.iter().flatten().map(|entry| 24 + entry.name.len()).sum();
    assert_eq!(bytes == data.len(), good == all.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes(frame in vec(any::<u8>(), 0..300)) {
        exercise(&frame);
        entries(&frame);
    }

    /// A header that passes, so that the fields are reached.
    #[test]
    fn random_bodies(kind: u8, body in vec(any::<u8>(), 0..200)) {
        let header = Header { size: 7 + body.len() as u32, kind, tag: 1 };
        let mut frame = header.to_bytes().to_vec();
        frame.extend(body);
        exercise(&frame);
    }

    /// Counts and lengths that are small, so that lists and entries are reached.
    #[test]
    fn small_bodies(kind: u8, body in vec(0..4u8, 0..200)) {
        let header = Header { size: 7 + body.len() as u32, kind, tag: 1 };
        let mut frame = header.to_bytes().to_vec();
        frame.extend(&body);
        exercise(&frame);
        entries(&body);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn mutated_frames(
        material in material(),
        changes in vec((any::<Index>(), prop_oneof![Just(0u8), Just(0xff), any::<u8>()]), 1..4),
        cut: Option<Index>,
    ) {
        for mut frame in frames(&material) {
            for (at, byte) in &changes {
                let len = frame.len();
                frame[at.index(len)] = *byte;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            exercise(&frame);
        }
    }

    /// Wherever a frame is cut, with its size left as it was or made to match.
    #[test]
    fn truncated_frames(material in material()) {
        for frame in frames(&material) {
            for len in 0..frame.len() {
                let want = DecodeError {
                    tag: (len >= 7).then_some(0x1234),
                    kind: DecodeErrorKind::Short,
                };
                let cut = &frame[..len];
                let payload_only = frame[4] == TWRITE && len >= Twrite::HEADER_LEN;
                if payload_only {
                    let Ok((0x1234, Tmessage::Write(write))) = Tmessage::decode(cut) else {
                        panic!("a Twrite without all of its payload decodes");
                    };
                    prop_assert_eq!(write.data, &cut[Twrite::HEADER_LEN..]);
                    prop_assert_eq!(write.count as usize, frame.len() - Twrite::HEADER_LEN);
                } else {
                    prop_assert_eq!(Tmessage::decode(cut), Err(want));
                }
                // TWRITE is no answer: either way an Rmessage has nothing to say about its body.
                if frame[4] != TWRITE || len < 7 {
                    prop_assert_eq!(Rmessage::decode(cut), Err(want));
                }

                if len >= 7 {
                    let mut cut = cut.to_vec();
                    cut[..4].copy_from_slice(&(len as u32).to_le_bytes());
                    let short_t = Tmessage::decode(&cut) == Err(want);
                    let short_r = Rmessage::decode(&cut) == Err(want);
                    let no_datasync = frame[4] == TFSYNC && len == 11;
                    let unknown = matches!(frame[4], TAUTH | RERROR);
                    prop_assert_eq!(short_t || short_r, !(no_datasync || payload_only || unknown), "type {}", frame[4]);
                }
            }
        }
    }
}

#[test]
fn sizes() {
    let clunk = |size: u32, body: &[u8]| {
        let mut frame = Header {
            size,
            kind: TCLUNK,
            tag: 0xfffe,
        }
        .to_bytes()
        .to_vec();
        frame.extend(body);
        frame
    };
    let fail = |kind| {
        Err(DecodeError {
            tag: Some(0xfffe),
            kind,
        })
    };
    let fine = Ok((0xfffe, Tmessage::Clunk(Tclunk { fid: 0x04030201 })));
    assert_eq!(Tmessage::decode(&clunk(11, &[1, 2, 3, 4])), fine);
    assert_eq!(
        Tmessage::decode(&clunk(11, &[1, 2, 3, 4, 5])),
        fine,
        "a frame longer than its message"
    );
    assert_eq!(
        Tmessage::decode(&clunk(12, &[1, 2, 3, 4, 5])),
        fine,
        "a message longer than its fields"
    );
    assert_eq!(
        Tmessage::decode(&clunk(12, &[1, 2, 3, 4])),
        fail(DecodeErrorKind::Short)
    );
    assert_eq!(
        Tmessage::decode(&clunk(u32::MAX, &[1, 2, 3, 4])),
        fail(DecodeErrorKind::Short)
    );
    assert_eq!(
        Tmessage::decode(&clunk(10, &[1, 2, 3, 4])),
        fail(DecodeErrorKind::Short),
        "what the size leaves out is not there"
    );
    for size in 0..7 {
        assert_eq!(
            Tmessage::decode(&clunk(size, &[1, 2, 3, 4])),
            fail(DecodeErrorKind::BadSize)
        );
    }
    let error = Tmessage::decode(&clunk(0, &[])).expect_err("no size");
    assert_eq!(
        error.to_string(),
        "message size is less than its header (tag 65534)"
    );
}

#[test]
fn walks_are_bounded() {
    let mut frame = Header {
        size: 17 + 17 * 2,
        kind: TWALK,
        tag: 5,
    }
    .to_bytes()
    .to_vec();
    frame.extend([0; 8]);
    frame.extend([17, 0]);
    frame.extend([0; 34]);
    let error = DecodeError {
        tag: Some(5),
        kind: DecodeErrorKind::TooManyNames,
    };
    assert_eq!(Tmessage::decode(&frame), Err(error));
    frame[15] = 16;
    assert!(Tmessage::decode(&frame).is_ok());

    let mut frame = Header {
        size: 9 + 17 * 13,
        kind: RWALK,
        tag: 5,
    }
    .to_bytes()
    .to_vec();
    frame.extend([17, 0]);
    frame.extend([0; 17 * 13]);
    assert_eq!(Rmessage::decode(&frame), Err(error));
    frame[7] = 16;
    assert!(Rmessage::decode(&frame).is_ok());
}

/// Linux before it counted a zero-copy payload in the size field: 23, whatever the count is.
#[test]
fn a_twrite_whose_size_leaves_the_payload_out() {
    let mut frame = [0; 30];
    let write = Twrite {
        fid: 1,
        offset: 2,
        count: 7,
        data: b"payload",
    };
    assert_eq!(write.encode(0, &mut frame), Some(30));
    frame[0] = 23;
    assert_eq!(
        Tmessage::decode(&frame),
        Ok((0, Tmessage::Write(Twrite { data: b"", ..write })))
    );
}
