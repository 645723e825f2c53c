//! Requests that are in flight at once, handed to a session as the device does.

use server::run::adjoin;
use server::{Neighbour, Scratch};
use wire::*;

use crate::common::*;

/// Most that are handed over together.
const MOST: usize = 8;

/// One request.
#[derive(Clone, Debug)]
pub struct Sent {
    pub message: Vec<u8>,
    pub payload: Vec<u8>,
    /// Bytes of its reply buffer.
    pub room: usize,
}

fn frame<'m>(message: &impl Message<'m>, tag: u16) -> Vec<u8> {
    let mut buf = vec![0; 64];
    let len = message.encode(tag, &mut buf).unwrap();
    buf.truncate(len);
    buf
}

impl Sent {
    pub fn read(tag: u16, fid: u32, offset: u64, count: u32) -> Sent {
        Sent {
            message: frame(&Tread { fid, offset, count }, tag),
            payload: Vec::new(),
            room: Rread::HEADER_LEN + count.min(1 << 20) as usize,
        }
    }

    pub fn getattr(tag: u16, fid: u32) -> Sent {
        Sent {
            message: frame(&Tgetattr { fid, mask: 0x3fff }, tag),
            payload: Vec::new(),
            room: 160,
        }
    }

    /// `count` is more than there is when `payload` is shorter.
    pub fn write(tag: u16, fid: u32, offset: u64, count: u32, payload: Vec<u8>) -> Sent {
        let mut message = frame(
            &Twrite {
                fid,
                offset,
                count: 0,
                data: b"",
            },
            tag,
        );
        message[..4].copy_from_slice(&count.saturating_add(23).to_le_bytes());
        message[19..].copy_from_slice(&count.to_le_bytes());
        Sent {
            message,
            payload,
            room: 4096,
        }
    }
}

/// One request after the other; the replies.
pub fn one_by_one(f: &mut Fixture, sent: &[Sent]) -> Vec<Vec<u8>> {
    let backend = f.client.transport();
    sent.iter()
        .map(|one| backend.call(&one.message, &one.payload, one.room, true))
        .collect()
}

/// Runs together, the others one by one; the replies, and how many were answered in runs.
pub fn together(f: &mut Fixture, sent: &[Sent]) -> (Vec<Vec<u8>>, usize) {
    let (mut replies, mut in_runs) = (Vec::new(), 0);
    let mut rest = sent;
    while !rest.is_empty() {
        let adjoining = |pair: &&[Sent]| adjoin(&pair[0].message, &pair[1].message);
        let length = 1 + rest.windows(2).take(MOST - 1).take_while(adjoining).count();
        let (run, after) = rest.split_at(length);
        let answered = if length > 1 { call(f, run) } else { Vec::new() };
        in_runs += answered.len();
        let alone = &run[answered.len()..];
        replies.extend(answered);
        replies.extend(one_by_one(f, alone));
        rest = after;
    }
    (replies, in_runs)
}

/// Hands `run` over; the replies of those that were answered.
pub fn call(f: &Fixture, run: &[Sent]) -> Vec<Vec<u8>> {
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> = run
        .iter()
        .map(|one| {
            (
                [vec![0x5a; one.room], GUARD.to_vec()].concat(),
                one.payload.clone(),
            )
        })
        .collect();
    let lists: Vec<_> = buffers
        .iter_mut()
        .zip(run)
        .map(|((reply, payload), one)| (pieces(&mut reply[..one.room]), pieces(payload)))
        .collect();
    let mut neighbours: Vec<Neighbour<'_>> = run
        .iter()
        .zip(&lists)
        .map(|(one, (reply, payload))| Neighbour {
            message: &one.message,
            payload,
            reply,
            used: 0,
        })
        .collect();
    let answered = f.session.handle_run(&mut neighbours, &mut Scratch::default());
    let used: Vec<usize> = neighbours.iter().map(|one| one.used as usize).collect();
    for ((reply, _), one) in buffers.iter().zip(run) {
        assert_eq!(reply[one.room..], GUARD, "wrote beyond a reply buffer");
    }
    let replies = buffers.into_iter().zip(used).take(answered);
    replies.map(|((reply, _), used)| reply[..used].to_vec()).collect()
}
