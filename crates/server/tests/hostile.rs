//! A guest that sends anything at all. A test binary of its own, because it counts this process's descriptors.

#[allow(dead_code)]
#[path = "session/common.rs"]
mod common;

use std::sync::Arc;

use host::{SecurityModel, Share, ShareOptions};
use proptest::prelude::*;
use server::{How, Limits, Session, Usage};
use wire::*;

use common::{Backend, descriptors};

const NAMES: [&[u8]; 12] = [
    b"file",
    b"dir",
    b"link",
    b"out",
    b"new",
    b"newer",
    b"..",
    b".",
    b"",
    b"a/b",
    b"nul\0",
    &[b'x'; 300],
];

fn fid() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..6, 1 => Just(NOFID), 1 => any::<u32>()]
}

fn name() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![6 => 0usize..6, 1 => 6usize..12].prop_map(|at| NAMES[at])
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..20_000,
        1 => any::<u64>(),
        1 => (0u64..4).prop_map(|n| i64::MAX as u64 - n),
        1 => (0u64..4).prop_map(|n| u64::MAX - n),
    ]
}

fn flags() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..4, 2 => (0u32..4).prop_map(|f| f | 0o2000), 2 => (0u32..3).prop_map(|f| f | 0o1200), 1 => any::<u32>()]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..9000, 1 => any::<u32>()]
}

/// A T-message as bytes.
fn frame<'m>(message: &impl Message<'m>) -> Vec<u8> {
    let mut buf = vec![0; 16 * 1024];
    let len = message.encode(1, &mut buf).unwrap();
    buf.truncate(len);
    buf
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let modes = prop_oneof![
        Just(0o644u32),
        Just(0o010_644),
        Just(0o100_600),
        Just(0o060_600),
        any::<u32>()
    ];
    let walk = (fid(), fid(), prop::collection::vec(name(), 0..5)).prop_map(|(fid, newfid, names)| {
        frame(&Twalk {
            fid,
            newfid,
            names: Names::new(&names),
        })
    });
    let fids = (fid(), 0u8..8).prop_map(|(fid, kind)| match kind {
        0 => frame(&Tremove { fid }),
        1 => frame(&Treadlink { fid }),
        2 => frame(&Tstatfs { fid }),
        3 => frame(&Tgetattr { fid, mask: 0x3fff }),
        4 => frame(&Tfsync { fid, datasync: 1 }),
        5 => frame(&Tattach {
            fid,
            afid: NOFID,
            uname: b"",
            aname: b"",
            n_uname: fid,
        }),
        _ => frame(&Tclunk { fid }),
    });
    let open = (fid(), name(), flags(), modes.clone(), any::<bool>()).prop_map(
        |(fid, name, flags, mode, create)| match create {
            true => frame(&Tlcreate {
                fid,
                name,
                flags,
                mode,
                gid: 0,
            }),
            false => frame(&Tlopen { fid, flags }),
        },
    );
    let io = (fid(), number(), count(), 0u8..3).prop_map(|(fid, offset, count, kind)| match kind {
        0 => frame(&Tread { fid, offset, count }),
        1 => frame(&Treaddir { fid, offset, count }),
        _ => frame(&Twrite {
            fid,
            offset,
            count,
            data: b"",
        }),
    });
    let attr =
        (fid(), 0u32..0x400, modes.clone(), number(), number()).prop_map(|(fid, valid, mode, size, nsec)| {
            frame(&Tsetattr {
                fid,
                valid,
                mode,
                uid: 0,
                gid: 0,
                size,
                atime_sec: size,
                atime_nsec: nsec,
                mtime_sec: size,
                mtime_nsec: nsec,
            })
        });
    let xattr = (fid(), fid(), 0u8..3, number(), 0u32..4, any::<bool>()).prop_map(
        |(fid, newfid, at, size, flags, create)| {
            let name: &[u8] = [&b"user.a"[..], b"", b"security.capability"][usize::from(at)];
            match create {
                true => frame(&Txattrcreate {
                    fid,
                    name,
                    size: size % 70_000,
                    flags,
                }),
                false => frame(&Txattrwalk { fid, newfid, name }),
            }
        },
    );
    let lock = (fid(), 0u8..4, 0u32..3, number(), number(), any::<bool>()).prop_map(
        |(fid, kind, flags, start, length, set)| {
            let (proc_id, client_id) = (length as u32 % 3, &b"c"[..]);
            match set {
                true => frame(&Tlock {
                    fid,
                    kind,
                    flags,
                    start,
                    length,
                    proc_id,
                    client_id,
                }),
                false => frame(&Tgetlock {
                    fid,
                    kind,
                    start,
                    length,
                    proc_id,
                    client_id,
                }),
            }
        },
    );
    let entries =
        (fid(), fid(), name(), name(), modes, 0u8..7).prop_map(|(dfid, fid, name, other, mode, kind)| {
            match kind {
                0 => frame(&Tmkdir {
                    dfid,
                    name,
                    mode,
                    gid: 0,
                }),
                1 => frame(&Tmknod {
                    dfid,
                    name,
                    mode,
                    major: 1,
                    minor: 3,
                    gid: 0,
                }),
                2 => frame(&Tsymlink {
                    dfid,
                    name,
                    target: other,
                    gid: 0,
                }),
                3 => frame(&Tlink { dfid, fid, name }),
                4 => frame(&Trename { fid, dfid, name }),
                5 => frame(&Trenameat {
                    olddirfid: dfid,
                    oldname: name,
                    newdirfid: fid,
                    newname: other,
                }),
                _ => frame(&Tunlinkat {
                    dirfd: dfid,
                    name,
                    flags: if mode & 1 == 0 { 0 } else { 0x200 },
                }),
            }
        });
    let session = prop_oneof![
        4 => Just(frame(&Tflush { oldtag: 1 })),
        1 => Just(frame(&Tversion { msize: 8192, version: VERSION_9P2000_L })),
    ];
    prop_oneof![
        8 => walk,
        6 => fids,
        5 => open,
        6 => io,
        2 => attr,
        3 => xattr,
        3 => lock,
        4 => entries,
        1 => session,
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

/// One step of a guest: a message, perhaps damaged, some payload, some room for the reply, and who handles it.
fn step() -> impl Strategy<Value = (Vec<u8>, usize, usize, How)> {
    let damage = prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    let cap = prop_oneof![6 => Just(8192usize), 1 => 0usize..300, 1 => Just(11)];
    let how = prop_oneof![Just(How::Inline), Just(How::Blocking), Just(How::Last)];
    (message(), damage, 0usize..9000, cap, how).prop_map(|(mut message, damage, payload, cap, how)| {
        if let Some((at, byte)) = damage
            && !message.is_empty()
        {
            let at = at.index(message.len());
            message[at] = byte;
        }
        (message, payload, cap, how)
    })
}

fn share(model: SecurityModel, within: &std::path::Path) -> Arc<Share> {
    let dir = within.join("share");
    std::fs::create_dir_all(dir.join("dir/sub")).unwrap();
    std::fs::write(dir.join("file"), "data").unwrap();
    std::fs::write(within.join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("..", dir.join("out")).unwrap();
    Arc::new(Share::open(&ShareOptions::new(dir, model)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing panics, nothing is written beyond a reply, nothing leaves the share, every reply is a message, and
    /// nothing is left over.
    #[test]
    fn any_sequence_is_survived(steps in prop::collection::vec(step(), 1..120), passthrough: bool) {
        let model = if passthrough { SecurityModel::Passthrough } else { SecurityModel::Squash };
        let outside = tempfile::tempdir().unwrap();
        let share = share(model, outside.path());
        let before = descriptors();
        let limits = Limits { fd_budget: 8, max_fids: 64, max_xattr_fids: 3, max_locks: 6, ..Limits::default() };
        let session = Arc::new(Session::new(share, limits));
        let mut backend = Backend::new(session.clone());
        backend.call(&frame(&Tversion { msize: 8192, version: VERSION_9P2000_L }), b"", 100, true);
        backend.call(&frame(&Tattach { fid: 0, afid: NOFID, uname: b"", aname: b"", n_uname: 0 }), b"", 100, true);
        for (message, payload, cap, how) in steps {
            backend.how = how;
            let payload = vec![0x11; payload];
            let answer = backend.call(&message, &payload, cap, false);
            if let Some(header) = Header::decode(&answer) {
                prop_assert_eq!(header.size as usize, answer.len());
                prop_assert!(Rmessage::decode(&answer).is_ok());
                if header.kind == RLERROR {
                    let errno = u32::from_le_bytes(answer[7..11].try_into().unwrap());
                    prop_assert!((1..200).contains(&errno), "errno {}", errno);
                }
            } else {
                prop_assert!(answer.is_empty());
            }
        }
        session.reset();
        prop_assert_eq!(session.usage(), Usage::default());
        prop_assert_eq!(descriptors(), before);
        // And it can begin again.
        backend.how = How::Inline;
        backend.call(&frame(&Tversion { msize: 8192, version: VERSION_9P2000_L }), b"", 100, true);
        let answer = backend.call(&frame(&Tattach { fid: 0, afid: NOFID, uname: b"", aname: b"", n_uname: 0 }), b"", 100, true);
        prop_assert_eq!(answer[4], RATTACH);
        prop_assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"secret");
        prop_assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 2);
    }
}
