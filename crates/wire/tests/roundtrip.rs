//! What is encoded is what is decoded, for every message in both directions.

mod common;

use common::{material, rmessages, tmessages};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use wire::*;

/// Encodes into exactly enough room, and checks that nothing less will do and that nothing after it is touched.
macro_rules! encode {
    ($message:expr, $tag:expr) => {{
        let mut buf = vec![0xa5; 8 * 1024];
        let len = $message.encode($tag, &mut buf).expect("it fits");
        prop_assert!(buf[len..].iter().all(|&byte| byte == 0xa5), "wrote after its end");
        prop_assert_eq!($message.encode($tag, &mut buf[..len]), Some(len));
        prop_assert_eq!($message.encode($tag, &mut vec![0; len - 1]), None);
        buf.truncate(len);
        prop_assert_eq!(
            Header::decode(&buf),
            Some(Header {
                size: len as u32,
                kind: $message.kind(),
                tag: $tag
            })
        );
        buf
    }};
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_t_message(material in material(), tag: u16, after in vec(any::<u8>(), 0..9)) {
        let names = material.strings();
        for message in tmessages(&material, &names) {
            let mut frame = encode!(message, tag);
            let len = frame.len();
            frame.extend(&after);
            let (got_tag, got) = Tmessage::decode(&frame).expect("it is valid");
            prop_assert_eq!((got_tag, got), (tag, message));
            // A decoded list lies in the frame and takes another path to the wire.
            prop_assert_eq!(&encode!(got, tag)[..], &frame[..len]);
        }
    }

    #[test]
    fn every_r_message(material in material(), tag: u16, after in vec(any::<u8>(), 0..9)) {
        for message in rmessages(&material) {
            let mut frame = encode!(message, tag);
            let len = frame.len();
            frame.extend(&after);
            let (got_tag, got) = Rmessage::decode(&frame).expect("it is valid");
            prop_assert_eq!((got_tag, got), (tag, message));
            prop_assert_eq!(&encode!(got, tag)[..], &frame[..len]);
        }
    }

    /// Bytes that a later dialect may put after the last field are not an error.
    #[test]
    fn bytes_left_over_inside_the_size(material in material(), extra in vec(any::<u8>(), 1..9)) {
        let names = material.strings();
        for message in tmessages(&material, &names) {
            let mut frame = encode!(message, 1);
            frame.extend(&extra);
            let size = frame.len() as u32;
            frame[..4].copy_from_slice(&size.to_le_bytes());
            prop_assert_eq!(Tmessage::decode(&frame), Ok((1, message)));
        }
        for message in rmessages(&material) {
            let mut frame = encode!(message, 1);
            frame.extend(&extra);
            let size = frame.len() as u32;
            frame[..4].copy_from_slice(&size.to_le_bytes());
            prop_assert_eq!(Rmessage::decode(&frame), Ok((1, message)));
        }
    }

    #[test]
    fn directory_entries(
        entries in vec((any::<(u8, u32, u64)>(), any::<u64>(), any::<u8>(), vec(any::<u8>(), 0..300)), 0..8),
    ) {
        let mut data = vec![0; 8 * 324];
        let mut len = 0;
        let mut want = Vec::new();
        for ((kind, version, path), offset, d_type, name) in &entries {
            let qid = Qid { kind: *kind, version: *version, path: *path };
            let entry = Dirent { qid, offset: *offset, kind: *d_type, name };
            let took = entry.encode(&mut data[len..]).expect("it fits");
            prop_assert_eq!(took, 24 + name.len());
            prop_assert_eq!(entry.encode(&mut vec![0; took - 1]), None);
            len += took;
            want.push(Ok(entry));
        }
        let got: Vec<_> = Rreaddir { data: &data[..len] }.entries().collect();
        prop_assert_eq!(got, want);
    }
}

/// The lists in `common` leave no message out, and no type number means two.
#[test]
fn all_types_are_covered() {
    let t = [
        8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76, 100, 104, 108, 110, 116,
        118, 120, 122,
    ];
    let known_as_t = |kind: u8| !matches!(Tmessage::decode(&[7, 0, 0, 0, kind, 0, 0]), Ok((0, Tmessage::Unknown { kind: k })) if k == kind);
    let known_as_r = |kind: u8| !matches!(Rmessage::decode(&[7, 0, 0, 0, kind, 0, 0]), Ok((0, Rmessage::Unknown { kind: k })) if k == kind);
    for kind in 0..=u8::MAX {
        assert_eq!(known_as_t(kind), t.contains(&kind), "type {kind}");
        let is_answer = kind == 7 || kind.checked_sub(1).is_some_and(|request| t.contains(&request));
        assert_eq!(known_as_r(kind), is_answer, "type {kind}");
    }

    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let material = material().new_tree(&mut runner).expect("material").current();
    let names = material.strings();
    let mut kinds: Vec<u8> = tmessages(&material, &names).iter().map(Tmessage::kind).collect();
    kinds.retain(|&kind| known_as_t(kind));
    kinds.sort_unstable();
    assert_eq!(kinds, t);
    let mut kinds: Vec<u8> = rmessages(&material).iter().map(Rmessage::kind).collect();
    kinds.retain(|&kind| known_as_r(kind));
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), t.len() + 1);
}

#[test]
fn what_no_count_can_say_does_not_encode() {
    let long = vec![b'x'; 65_536];
    let mut buf = vec![0; 300_000];
    assert_eq!(
        Tversion {
            msize: 0,
            version: &long
        }
        .encode(0, &mut buf),
        None
    );
    assert_eq!(
        Tversion {
            msize: 0,
            version: &long[1..]
        }
        .encode(0, &mut buf),
        Some(7 + 4 + 2 + 65_535)
    );
    let entry = Dirent {
        qid: Qid::default(),
        offset: 0,
        kind: 0,
        name: &long,
    };
    assert_eq!(entry.encoded_len(), None);
    assert_eq!(entry.encode(&mut buf), None);

    let names = [&b"n"[..]; 17];
    assert_eq!(
        Twalk {
            fid: 0,
            newfid: 0,
            names: Names::new(&names)
        }
        .encode(0, &mut buf),
        None
    );
    assert_eq!(
        Twalk {
            fid: 0,
            newfid: 0,
            names: Names::new(&names[1..])
        }
        .encode(0, &mut buf),
        Some(17 + 16 * 3)
    );
    assert_eq!(
        Twalk {
            fid: 0,
            newfid: 0,
            names: Names::new(&[&long])
        }
        .encode(0, &mut buf),
        None,
        "one name too long"
    );
    let qids = [Qid::default(); 17];
    assert_eq!(
        Rwalk {
            qids: Qids::new(&qids)
        }
        .encode(0, &mut buf),
        None
    );
    assert_eq!(
        Rwalk {
            qids: Qids::new(&qids[1..])
        }
        .encode(0, &mut buf),
        Some(9 + 16 * 13)
    );

    let more = Twrite {
        fid: 0,
        offset: 0,
        count: 2,
        data: b"abc",
    };
    assert_eq!(more.encode(0, &mut buf), None, "more data than count");
    let most = Twrite {
        fid: 0,
        offset: 0,
        count: u32::MAX - 22,
        data: b"",
    };
    assert_eq!(most.encode(0, &mut buf), None, "larger than a size can be");
    assert_eq!(encode_rread_header(&mut buf, 0, u32::MAX - 10), None);
    assert_eq!(encode_rread_header(&mut buf, 0, u32::MAX - 11), Some(11));
    assert_eq!(encode_rread_header(&mut buf[..10], 0, 0), None);
    assert_eq!(encode_rreaddir_header(&mut buf[..10], 0, 0), None);
    assert_eq!(encode_lerror(&mut buf[..10], 0, 0), None);
}

/// The header helpers and the whole message agree.
#[test]
fn headers_without_payload() {
    let data = [9; 100];
    let mut whole = [0; 128];
    let mut front = [0; 11];
    assert_eq!(Rread { data: &data }.encode(3, &mut whole), Some(111));
    assert_eq!(encode_rread_header(&mut front, 3, 100), Some(11));
    assert_eq!(front, whole[..11]);
    assert_eq!(Rreaddir { data: &data }.encode(3, &mut whole), Some(111));
    assert_eq!(encode_rreaddir_header(&mut front, 3, 100), Some(11));
    assert_eq!(front, whole[..11]);

    let mut front = [0; 23];
    let twrite = Twrite {
        fid: 1,
        offset: 2,
        count: 100,
        data: &data,
    };
    assert_eq!(twrite.encode(3, &mut whole), Some(123));
    assert_eq!(Twrite { data: &[], ..twrite }.encode(3, &mut front), Some(23));
    assert_eq!(front, whole[..23]);
}

#[test]
fn lists() {
    let names = Names::new(&[b"a", b"", b"\xff b"]);
    assert_eq!(names.len(), 3);
    assert_eq!(names.iter().len(), 3);
    assert_eq!(format!("{names:?}"), r#"["a", "", "\xff b"]"#);
    let mut buf = [0; 64];
    let len = Twalk {
        fid: 1,
        newfid: 2,
        names,
    }
    .encode(0, &mut buf)
    .expect("it fits");
    let Ok((_, Tmessage::Walk(walk))) = Tmessage::decode(&buf[..len]) else {
        panic!("not a walk")
    };
    assert_eq!(walk.names, names);
    assert_ne!(walk.names, Names::new(&[b"a", b"", b"\xff"]));
    assert_ne!(walk.names, Names::new(&[b"a", b""]));
    assert_eq!(
        walk.names.into_iter().collect::<Vec<_>>(),
        [&b"a"[..], b"", b"\xff b"]
    );
    assert_eq!(walk.names.iter().len(), 3);
    assert!(Names::default().is_empty());
    assert!(Qids::default().is_empty());
    assert_eq!(
        format!("{walk:?}"),
        r#"Twalk { fid: 1, newfid: 2, names: ["a", "", "\xff b"] }"#
    );
}
