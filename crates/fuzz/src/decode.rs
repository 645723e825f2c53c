//! The message codec: any bytes in both directions, and as directory entries.

use testkit::Random;
use wire::{Dirents, Rmessage, Tmessage};

use crate::script::change_bytes;

/// What decodes encodes, and decodes to the same again; nothing panics.
pub fn run(frame: &[u8]) {
    // More than enough: only a Tfsync that came without datasync grows.
    let mut buf = vec![0; frame.len() + 64];
    if let Ok((tag, message)) = Tmessage::decode(frame) {
        let _ = format!("{message:?}");
        match message.encode(tag, &mut buf) {
            Some(len) => assert_eq!(Tmessage::decode(&buf[..len]), Ok((tag, message))),
            // A Twrite may announce more than a size can be.
            None => assert!(matches!(message, Tmessage::Write(write) if write.count > u32::MAX - 23)),
        }
    }
    if let Ok((tag, message)) = Rmessage::decode(frame) {
        let _ = format!("{message:?}");
        let len = message.encode(tag, &mut buf).expect("it came from as many bytes");
        assert_eq!(Rmessage::decode(&buf[..len]), Ok((tag, message)));
    }
    let mut entries = Dirents::new(frame);
    let mut len = 0;
    for entry in entries.by_ref().map_while(Result::ok) {
        len += entry.encode(&mut buf[len..]).expect("it came from as many bytes");
    }
    assert_eq!(buf[..len], frame[..len]);
    assert!(entries.next().is_none(), "an error is the last item");
}

/// Changes `frame` a little; one in eight is a new one, and the size is mostly made right again.
pub fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    if random.below(8) == 0 {
        *frame = testkit::random::damaged_message(random);
    }
    for _ in 0..1 + random.below(3) {
        change_bytes(frame, random);
    }
    let len = frame.len() as u32;
    if let Some(size) = frame.first_chunk_mut()
        && random.below(4) > 0
    {
        *size = len.to_le_bytes();
    }
}
