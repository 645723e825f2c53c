//! Any bytes, decoded in both directions and as directory entries; what decodes encodes to the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::{Dirents, Rmessage, Tmessage};

fuzz_target!(|frame: &[u8]| {
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
});
