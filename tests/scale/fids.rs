//! More fids than descriptors: a cache of the guest's keeps one fid per directory entry, for good.

use std::fs;
use std::path::Path;
use std::time::Instant;

use testkit::scenario::Random;
use testkit::{Errno, Machine};
use wire::*;

use crate::program::{Program, answer, frame, number};

/// Files of a directory.
const DIRECTORY: usize = 500;
/// The first of the many fids.
const FIRST: u32 = 1000;

fn path(file: usize) -> [String; 2] {
    [format!("d{}", file / DIRECTORY), format!("f{file}")]
}

/// `count` files, each of which holds its own number.
fn plant(share: &Path, count: usize) {
    for file in 0..count {
        let [directory, name] = path(file);
        let directory = share.join(directory);
        if file % DIRECTORY == 0 {
            fs::create_dir(&directory).expect("mkdir");
        }
        fs::write(directory.join(name), file.to_string()).expect("write");
    }
}

/// Makes `count` fids from [`FIRST`] on, fid after fid of file after file; gives each file's qid.
fn walk_all(machine: &mut Machine, count: usize, files: usize) -> Vec<Qid> {
    let transport = machine.client.transport();
    let mut qids = vec![Qid::default(); files];
    let mut asked = vec![(0u16, 0usize); usize::from(u16::MAX) + 1];
    let (mut sent, mut done) = (0, 0);
    while done < count {
        while sent < count && sent - done < 64 {
            let [directory, name] = path(sent % files);
            let names: [&[u8]; 2] = [directory.as_bytes(), name.as_bytes()];
            let tag = (sent % 60_000) as u16;
            let message = Twalk {
                fid: 0,
                newfid: FIRST + sent as u32,
                names: Names::new(&names),
            };
            let token = transport.stage(&frame(message, tag), &[], 4096);
            asked[usize::from(token)] = (tag, sent);
            sent += 1;
        }
        transport.ring.notify();
        let (token, reply) = transport.next_reply();
        let (tag, at) = asked[usize::from(token)];
        let Rmessage::Walk(walk) = answer(&reply, tag) else {
            panic!("fid {at}: {:?}", answer(&reply, tag));
        };
        let qid = walk
            .qids
            .iter()
            .nth(1)
            .unwrap_or_else(|| panic!("fid {at} was not found"));
        let known = &mut qids[at % files];
        assert!(at >= files || *known == Qid::default());
        assert!(
            *known == Qid::default() || *known == qid,
            "fid {at} is another file"
        );
        *known = qid;
        done += 1;
    }
    qids
}

/// The fid stands for the file with that number: attributes, and content by way of a clone.
fn check(machine: &mut Machine, at: usize, file: usize, qid: Qid) {
    let client = &mut machine.client;
    let fid = FIRST + at as u32;
    let content = file.to_string();
    let attributes = client
        .stat(fid)
        .unwrap_or_else(|error| panic!("fid {at}: {error}"));
    assert_eq!(attributes.qid.path, qid.path, "fid {at}");
    assert_eq!(attributes.size, content.len() as u64, "fid {at}");
    client
        .clone_fid(fid, 1)
        .unwrap_or_else(|error| panic!("fid {at}: {error}"));
    client
        .lopen(1, P9_DOTL_RDONLY)
        .unwrap_or_else(|error| panic!("fid {at}: {error}"));
    assert_eq!(
        client.read(1, 0, 100).expect("read"),
        content.as_bytes(),
        "fid {at}"
    );
    client.clunk(1).expect("clunk");
}

fn many(what: &str, program: &Program, count: usize, files: usize) {
    plant(&program.share(), files);
    let mut machine = program.boot(4096);
    machine.client.stat(0).expect("getattr");
    let before = program.resident();
    let start = Instant::now();
    let qids = walk_all(&mut machine, count, files);
    let took = start.elapsed();
    let bytes = program.resident().saturating_sub(before);
    println!(
        "{what}: {count} fids of {files} files in {:.2} s ({:.1} us each), {:.1} MiB, {} bytes per fid, {} descriptors",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / count as f64,
        bytes as f64 / 1_048_576.0,
        bytes / count,
        program.descriptors()
    );
    assert!(program.descriptors() <= 1024);
    let mut paths: Vec<u64> = qids.iter().map(|qid| qid.path).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), files, "two files with one qid");

    let mut random = Random::new(5);
    let start = Instant::now();
    let samples = 4000;
    for _ in 0..samples {
        let at = random.below(count);
        check(&mut machine, at, at % files, qids[at % files]);
    }
    println!(
        "{what}: getattr, clone, open, read and clunk of {samples} fids at random: {:.1} us each",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(samples)
    );
    // Nothing else changes: new files are made, more of them open at a time than there were descriptors left.
    for more in 0..300u32 {
        machine.client.clone_fid(0, 2 + more).expect("clone");
        let name = format!("new{more}");
        machine
            .client
            .lcreate(2 + more, &name, P9_DOTL_RDWR, 0o600, 0)
            .expect("create");
        assert_eq!(
            machine.client.write(2 + more, 0, name.as_bytes()),
            Ok(name.len() as u32)
        );
    }
    for more in 0..300u32 {
        let name = format!("new{more}");
        assert_eq!(
            machine.client.read(2 + more, 0, 100).expect("read"),
            name.as_bytes()
        );
    }
    assert!(program.descriptors() <= 1024);
}

#[test]
fn fids_by_the_hundred_thousand_under_1024_descriptors() {
    let program = Program::start(&["--rlimit-nofile", "1024"]);
    many("few files", &program, number("SCALE_FIDS", 100_000), 2000);
}

#[test]
fn objects_by_the_ten_thousand_under_1024_descriptors() {
    let program = Program::start(&["--rlimit-nofile", "1024"]);
    let files = number("SCALE_FILES", 10_000);
    many("distinct files", &program, files, files);
}

#[test]
fn without_privileges_too() {
    let program = Program::start_unprivileged(&["--rlimit-nofile", "1024"]);
    many(
        "unprivileged",
        &program,
        20_000,
        number("SCALE_FILES", 10_000).min(20_000),
    );
}

/// What the host did to a file while its fid held no descriptor.
fn replaced(program: &Program, opens_handles: bool) {
    let files = 4000;
    plant(&program.share(), files);
    let mut machine = program.boot(4096);
    let qids = walk_all(&mut machine, files, files);
    let at = |file: usize| {
        let [directory, name] = path(file);
        program.share().join(directory).join(name)
    };
    // From the first ones, whose descriptors were given up long ago.
    for file in 0..300 {
        match file % 3 {
            // Another file in its place, the old one kept under another name.
            0 => {
                fs::rename(at(file), at(file).with_extension("old")).expect("rename");
                fs::write(at(file), "a successor that is none of the guest's").expect("write");
            }
            1 => fs::rename(at(file), at(file).with_extension("moved")).expect("rename"),
            _ => fs::remove_file(at(file)).expect("unlink"),
        }
    }
    let (mut found, mut stale) = (0, 0);
    for (file, qid) in qids.iter().enumerate().take(300) {
        let fid = FIRST + file as u32;
        match machine.client.stat(fid) {
            Ok(attributes) => {
                assert_eq!(attributes.qid.path, qid.path, "{file} became another file");
                assert_eq!(attributes.size, file.to_string().len() as u64);
                found += 1;
            }
            Err(Errno::ESTALE) => stale += 1,
            Err(error) => panic!("{file}: {error}"),
        }
    }
    println!("opens handles {opens_handles}: {found} found again, {stale} stale");
    match opens_handles {
        true => assert!(found >= 200, "what was renamed is found by its handle"),
        false => assert!(stale >= 200, "what was renamed is not where it was"),
    }
    for (file, &qid) in qids.iter().enumerate().skip(300).take(100) {
        check(&mut machine, file, file, qid);
    }
}

#[test]
fn an_object_that_was_replaced_is_never_taken_for_its_successor() {
    replaced(&Program::start_unprivileged(&["--rlimit-nofile", "1024"]), false);
    replaced(&Program::start(&["--rlimit-nofile", "1024"]), false);
    if nix::unistd::geteuid().is_root() {
        let open = ["--rlimit-nofile", "1024", "--file-handles", "open"];
        replaced(&Program::start(&open), true);
    }
}
