//! A large file goes while small requests come: freeing its blocks takes the file system long.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use wire::*;

use crate::program::{Program, answer, frame};

/// MiB of the file.
const SIZE: usize = 128;

/// Tries, each with a chance that the scheduler gives one thread all of a removal's time before the other gets any.
const TRIES: usize = 8;

#[test]
fn getattrs_go_on_while_a_large_file_is_removed() {
    let program = Program::start(&[]);
    let meanwhile = (0..TRIES).any(|_| remove(&program) > 0);
    assert!(meanwhile, "no getattr was answered while the file was removed");
}

/// Removes a large file; gives the getattrs that were answered meanwhile.
fn remove(program: &Program) -> usize {
    let mut file = File::create(program.share().join("large")).expect("create");
    for _ in 0..SIZE {
        file.write_all(&[7; 1 << 20]).expect("write");
    }
    drop(file);
    let mut machine = program.boot(4096);
    machine.client.walk_all(0, 1, &["large"]).expect("walk");
    machine.client.unlinkat(0, "large", 0).expect("unlinkat");

    let transport = machine.client.transport();
    let clunk = transport.stage(&frame(Tclunk { fid: 1 }, 1), &[], 4096);
    let start = Instant::now();
    let mut latencies = Vec::new();
    loop {
        let asked = Instant::now();
        let message = Tgetattr {
            fid: 0,
            mask: P9_GETATTR_BASIC,
        };
        let getattr = transport.stage(&frame(message, 2), &[], 4096);
        transport.ring.notify();
        let (token, reply) = transport.next_reply();
        if token == clunk {
            assert!(matches!(answer(&reply, 1), Rmessage::Clunk(_)));
            transport.wait(getattr);
            break;
        }
        assert!(matches!(answer(&reply, 2), Rmessage::Getattr(_)));
        latencies.push(asked.elapsed());
    }
    println!(
        "{SIZE} MiB were gone after {:.1} ms; {} getattrs meanwhile, the longest of {:.3} ms",
        start.elapsed().as_secs_f64() * 1e3,
        latencies.len(),
        latencies
            .iter()
            .max()
            .map_or(0.0, |longest| longest.as_secs_f64() * 1e3)
    );
    latencies.len()
}
