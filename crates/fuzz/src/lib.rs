//! What any bytes may do to the program: a function for each way in. Each takes an input, does with it what an attacker
//! would, and panics when something that must hold does not.
//!
//! | target | the input is |
//! |---|---|
//! | [`decode`] | a message, to be decoded |
//! | [`session`] | a script of messages to a session, and of what the host does to the shared directory meanwhile |
//! | [`device`] | a script of guest memory and queue set-up, worked on by the device's queue |
//! | [`control`] | a script of vhost-user messages and descriptors, sent to the served socket |
//!
//! `corpus/` has inputs for each, recorded from our own client's ordinary work by `cargo run -p fuzz`. The tests run them
//! and some thousand mutations of them; `scripts/fuzz` searches on with libFuzzer.

mod arena;
mod changes;
pub mod control;
pub mod decode;
pub mod device;
mod expected;
mod handlers;
mod oracle;
pub mod script;
pub mod session;
pub mod watchdog;
pub mod work;
mod world;

use std::path::{Path, PathBuf};

use testkit::Random;

/// A way in.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Tries an input.
    pub run: fn(&[u8]),
    /// Changes an input into another of its kind.
    pub mutate: fn(&mut Vec<u8>, &mut Random),
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "decode",
        run: decode::run,
        mutate: decode::mutate,
    },
    Target {
        name: "session",
        run: session::run,
        mutate: session::mutate,
    },
    Target {
        name: "device",
        run: device::run,
        mutate: device::mutate,
    },
    Target {
        name: "control",
        run: control::run,
        mutate: control::mutate,
    },
];

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<Target> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Where its corpus is.
    pub fn corpus(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(self.name)
    }

    /// The inputs in its corpus, by file name.
    ///
    /// # Panics
    /// When there are none, or they cannot be read.
    pub fn inputs(&self) -> Vec<(String, Vec<u8>)> {
        let corpus = self.corpus();
        let mut inputs: Vec<_> = std::fs::read_dir(&corpus)
            .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
            .map(|entry| {
                let entry = entry.expect("an entry");
                let bytes = std::fs::read(entry.path()).expect("an input");
                (entry.file_name().to_string_lossy().into_owned(), bytes)
            })
            .collect();
        assert!(!inputs.is_empty(), "{} is empty", corpus.display());
        inputs.sort();
        inputs
    }
}
