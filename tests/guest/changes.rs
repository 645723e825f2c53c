//! A guest and the host at work on the same files by turns, and at once.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::backend::{Backend, Setup};
use crate::vm::{self, Vm, wait_until};

/// Does what the guest asks for in `tests/guest/changes.sh`.
fn obey(share: &Path, words: &[&str], content: &str) {
    let path = |name: &str| share.join(name);
    match words {
        ["write", name, ..] => fs::write(path(name), content).unwrap(),
        ["replace", name, ..] => {
            fs::write(path("replacing"), content).unwrap();
            fs::rename(path("replacing"), path(name)).unwrap();
        }
        ["remove", name] => fs::remove_file(path(name)).unwrap(),
        ["link", name, new] => fs::hard_link(path(name), path(new)).unwrap(),
        _ => panic!("the guest asks for {words:?}"),
    }
}

fn host_line(n: usize) -> String {
    format!("{n} {}", "y".repeat(n % 70))
}

/// As `tests/guest/stress.rs` has it.
fn guest_line(n: usize) -> String {
    format!("{n} {}", "x".repeat(n * 37 % 200))
}

/// Somebody on the host who appends lines until told to stop.
struct Appender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Appender {
    fn start(log: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let mut log = File::options().append(true).create(true).open(log).unwrap();
        let thread = thread::spawn(move || {
            let mut lines = 0;
            while !told.load(Ordering::Relaxed) {
                log.write_all(format!("host {lines} {}\n", "y".repeat(lines % 70)).as_bytes())
                    .unwrap();
                lines += 1;
                thread::sleep(Duration::from_micros(300));
            }
            lines
        });
        Appender { stop, thread }
    }

    /// How many there are.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn changes_by_the_host_are_seen_and_nothing_appended_is_lost() {
    let share = Backend::start("passthrough");
    let talk = Setup {
        tag: "talk",
        ..Setup::ROOT
    }
    .start();
    let stress = vm::compile("stress");
    let backends = [share, talk];
    let guest = Vm::with(&backends)
        .no_mount()
        .add(&stress.path)
        .start("changes.sh");
    let [share, talk] = [backends[0].share(), backends[1].share()];

    let mut appending: Option<Appender> = None;
    let mut appended = Vec::new();
    for turn in 1.. {
        let ask = talk.join(format!("ask-{turn}"));
        wait_until(vm::TIMEOUT, || ask.exists() || guest.is_finished());
        let Ok(text) = fs::read_to_string(&ask) else { break };
        let words: Vec<_> = text.trim_end_matches('\n').splitn(3, ' ').collect();
        match words[..] {
            ["append-from-now", log] => appending = Some(Appender::start(share.join(log))),
            ["append-no-more", _] => appended.push(appending.take().unwrap().stop()),
            _ => obey(share, &words, &format!("{}\n", words.last().unwrap())),
        }
        fs::write(talk.join(format!("did-{turn}")), "").unwrap();
    }
    guest.wait().expect_success();

    for (cache, count) in ["none", "readahead", "mmap", "loose"].into_iter().zip(appended) {
        let text = fs::read_to_string(share.join(cache).join("log")).unwrap();
        let of_guest: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("guest "))
            .collect();
        let guest: Vec<_> = (0..200).map(guest_line).collect();
        let host: Vec<_> = (0..count).map(host_line).collect();
        if matches!(cache, "none" | "readahead") {
            let of_host: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("host "))
                .collect();
            assert!(
                of_host == host,
                "{cache}: {} of {count} host lines",
                of_host.len()
            );
            assert!(of_guest == guest, "{cache}: {} guest lines", of_guest.len());
            assert_eq!(text.lines().count(), 200 + count, "{cache}");
            let who: Vec<_> = text.lines().map(|line| line.starts_with("guest ")).collect();
            let turns = who.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(turns > 1, "{cache}: they did not meet");
        } else {
            // This guest writes pages where it believes the file's end to be, and so over what others
            // have appended meanwhile; its own lines are all there.
            let missing: Vec<_> = guest
                .iter()
                .filter(|line| !of_guest.contains(&line.as_str()))
                .collect();
            assert!(missing.is_empty(), "{cache}: {missing:?}");
        }
    }
    backends.into_iter().for_each(Backend::stop);
}
