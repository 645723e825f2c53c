//! A directory of very many entries is listed as a stream.

use std::fs::{self, File};
use std::time::Instant;

use testkit::Machine;
use wire::*;

use crate::program::{Program, number};

/// Bytes of memory that listings may take, however long: two replies and the kernel's records.
const MEMORY: usize = 8 << 20;

/// Lists the directory of fid 1; gives the number of requests.
fn list(machine: &mut Machine, entries: usize, bytes: u32) -> usize {
    let client = &mut machine.client;
    client.clone_fid(1, 2).expect("clone");
    client.lopen(2, P9_DOTL_RDONLY).expect("open");
    let mut seen = vec![false; entries];
    let (mut cookie, mut requests, mut dots) = (0, 0, 0);
    loop {
        let page = client.readdir(2, cookie, bytes).expect("readdir");
        requests += 1;
        let Some(last) = page.last() else { break };
        cookie = last.offset;
        for entry in page {
            match std::str::from_utf8(&entry.name)
                .ok()
                .and_then(|name| name.parse::<usize>().ok())
            {
                Some(at) => assert!(!std::mem::replace(&mut seen[at], true), "{at} came twice"),
                None => dots += 1,
            }
        }
    }
    assert_eq!(dots, 2);
    assert_eq!(seen.iter().position(|seen| !seen), None, "one did not come");
    client.clunk(2).expect("clunk");
    requests
}

#[test]
fn a_directory_of_very_many_entries_streams() {
    let program = Program::start(&[]);
    let entries = number("SCALE_ENTRIES", 50_000);
    let start = Instant::now();
    fs::create_dir(program.share().join("many")).expect("mkdir");
    for at in 0..entries {
        File::create(program.share().join(format!("many/{at}"))).expect("create");
    }
    println!("{entries} entries made in {:.1} s", start.elapsed().as_secs_f64());
    let mut machine = program.boot(512 << 10);
    machine.client.walk_all(0, 1, &["many"]).expect("walk");
    let before = program.resident();
    // What Linux asks for with the largest msize, with the usual one, and a page.
    for bytes in [512_000 - 24, (128 << 10) - 24, 4096] {
        let start = Instant::now();
        let requests = list(&mut machine, entries, bytes);
        let took = start.elapsed().as_secs_f64();
        let grown = program.resident().saturating_sub(before);
        println!(
            "{entries} entries by {bytes} bytes: {requests} requests, {took:.2} s, {:.2} us an entry, {} KiB more \
             resident",
            took * 1e6 / entries as f64,
            grown >> 10
        );
        assert!(grown < MEMORY, "{grown} bytes");
    }
}
