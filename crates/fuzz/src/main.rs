//! Makes the corpus anew: `cargo run -p fuzz`. Inputs that are there and are not made here (`found-*`) stay.

use std::fs;

use fuzz::script::Script;
use fuzz::{Target, control, device, session, work};
use testkit::client::Errno;
use testkit::{Client, RingOptions, Vmm};

fn save(target: &str, name: &str, bytes: &[u8]) {
    let corpus = Target::named(target).expect("a target").corpus();
    fs::create_dir_all(&corpus).expect("mkdir");
    fs::write(corpus.join(name), bytes).expect("write");
}

fn main() -> Result<(), Errno> {
    sessions()?;
    devices();
    controls();
    Ok(())
}

fn ring(event_idx: bool, indirect: u16) -> RingOptions {
    RingOptions {
        size: 16,
        indirect,
        event_idx,
    }
}

/// Two pieces of work under each front-end.
fn controls() {
    for vmm in Vmm::ALL {
        for (name, piece) in work::pieces().into_iter().take(2) {
            let script = control::record(vmm, ring(vmm != Vmm::Crosvm, 8), piece);
            save(
                "control",
                &format!("{vmm:?}-{name}").to_lowercase(),
                &script.encode(),
            );
        }
    }
}

/// Each piece of work over a ring.
fn devices() {
    for (at, (name, piece)) in work::pieces().into_iter().enumerate() {
        let script = device::record(true, ring(at % 2 == 0, 8 * (at as u16 % 2)), piece);
        save("device", name, &script.encode());
    }
}

/// Each piece of work in another share mode; and, for the decoder, the first message of each type in it.
fn sessions() -> Result<(), Errno> {
    for (mode, (name, piece)) in (0..).zip(work::pieces()) {
        let mut client = Client::mount(session::Recorder::new([mode, 0, 0, 0]), 8192)?;
        piece(&mut client);
        let script: &Script = client.transport().script();
        save("session", name, &script.encode());
        for (kind, body) in &script.records {
            if let (session::MESSAGE, Some(kind)) = (*kind, body.get(6)) {
                save("decode", &format!("t-{kind}"), &body[2..]);
            }
        }
        for reply in client.transport().replies() {
            save("decode", &format!("r-{}", reply[4]), reply);
        }
    }
    Ok(())
}
