//! What is to be written, and the thread that writes it. Nobody else waits for whoever reads.
//!
//! The descriptor's description belongs to other processes too, so it is left as it is (no O_NONBLOCK); a thread of
//! its own can wait for it. Once it runs, that thread needs no system calls but write, futex and the clock's.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// Bytes that wait to be written.
const ROOM: usize = 256 << 10;
/// PIPE_BUF: so much is written to a pipe in one piece.
const PIECE: usize = 4096;
/// Between attempts after an error, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(30)];

#[derive(Debug)]
struct State {
    /// Whole lines.
    queue: VecDeque<u8>,
    /// Lines that found no room. While it is not 0 no other is taken, so that they are missing in one place.
    lost: u64,
    /// There is a thread that writes.
    started: bool,
    /// It has taken something that is not yet written.
    writing: bool,
    /// It shall look about.
    poked: bool,
}

impl State {
    fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.lost == 0 && !self.writing
    }

    /// Moves as many lines to `piece` as can be written in one piece.
    fn take(&mut self, piece: &mut Vec<u8>) {
        let most = self.queue.len().min(PIECE);
        let end = (0..most).rev().find(|at| self.queue[*at] == b'\n');
        piece.extend(self.queue.drain(..end.map_or(most, |end| end + 1)));
    }
}

/// A descriptor, and what is to be written to it.
#[derive(Debug)]
pub struct Output<F> {
    to: F,
    state: Mutex<State>,
    more: Condvar,
    quiet: Condvar,
}

impl<F: AsFd> Output<F> {
    /// Nothing yet for `to`.
    pub fn new(to: F) -> Output<F> {
        Output {
            to,
            state: Mutex::new(State {
                queue: VecDeque::with_capacity(ROOM),
                lost: 0,
                started: false,
                writing: false,
                poked: false,
            }),
            more: Condvar::new(),
            quiet: Condvar::new(),
        }
    }

    /// Held for a moment only: never during a system call on the descriptor, once there is a thread.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is written to.
    pub fn to(&self) -> &F {
        &self.to
    }

    /// Adds `line`, which ends with the only end of line in it. It is written at once while there is no thread for
    /// that and nobody has to be waited for.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.lost > 0 || state.queue.len() + line.len() > ROOM {
            state.lost = state.lost.saturating_add(1);
            return;
        }
        if !state.started && state.queue.is_empty() && self.ready(Duration::ZERO) {
            let _ = self.write(line);
            return;
        }
        state.queue.extend(line);
        drop(state);
        self.more.notify_one();
    }

    /// Lets the thread call `tick` soon.
    pub fn poke(&self) {
        self.state().poked = true;
        self.more.notify_one();
    }

    /// Waits until all is written, at most `time`.
    pub fn flush(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state();
        if !state.started {
            let mut piece = Vec::new();
            while !state.queue.is_empty() && self.ready(until.saturating_duration_since(Instant::now())) {
                piece.clear();
                state.take(&mut piece);
                let _ = self.write(&piece);
            }
            return;
        }
        while !state.is_quiet() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.quiet.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The thread that writes, for ever. `notice` is the line that tells how many were lost; `tick` is called now and
    /// then, and says when next at the latest.
    pub fn run(&self, notice: impl Fn(u64) -> Vec<u8>, tick: impl Fn() -> Option<Instant>) -> ! {
        let mut piece = Vec::with_capacity(PIECE);
        let mut pause = PAUSES[0];
        let mut torn = false;
        loop {
            let next = tick();
            let mut state = self.state();
            state.writing = false;
            if state.is_quiet() {
                self.quiet.notify_all();
                if !state.poked {
                    state = self.wait(state, next);
                }
                state.poked = false;
                continue;
            }
            piece.clear();
            if torn {
                piece.push(b'\n');
                torn = false;
            }
            let mut lost = 0;
            if state.queue.is_empty() {
                lost = std::mem::take(&mut state.lost);
            } else {
                state.take(&mut piece);
            }
            state.writing = true;
            drop(state);
            if lost > 0 {
                piece.extend(notice(lost));
            }
            match self.write(&piece) {
                Ok(()) => pause = PAUSES[0],
                Err(written) => {
                    torn = written > 0 && piece.get(written - 1) != Some(&b'\n');
                    let rest = piece.get(written..).unwrap_or_default();
                    let lines = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
                    let mut state = self.state();
                    state.lost += if lost > 0 { lost } else { lines };
                    drop(state);
                    thread::sleep(pause);
                    pause = PAUSES[1].min(pause * 2);
                }
            }
        }
    }

    /// Whether there is, or is about to be, a thread in [`Output::run`].
    pub fn set_started(&self, started: bool) {
        self.state().started = started;
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        match until {
            None => self.more.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let time = until.saturating_duration_since(Instant::now());
                let woken = self.more.wait_timeout(state, time);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Whether something can be written without waiting, within `time`.
    fn ready(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)];
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut fds, time), Ok(1..)) && fds[0].any().unwrap_or(false)
    }

    /// Writes all of `bytes`, however long that takes; the error is how much was written.
    fn write(&self, bytes: &[u8]) -> Result<(), usize> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match write(&self.to, rest) {
                Ok(0) => return Err(written),
                Ok(more) => written += more,
                Err(Errno::EINTR) => {}
                // Another process has set O_NONBLOCK.
                Err(Errno::EAGAIN) => thread::sleep(Duration::from_millis(20)),
                Err(_) => return Err(written),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read};
    use std::sync::Arc;

    use super::*;

    /// Only what hangs takes so long.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn notice(lost: u64) -> Vec<u8> {
        format!("lost {lost}\n").into_bytes()
    }

    fn output() -> (Arc<Output<PipeWriter>>, PipeReader) {
        let (reader, writer) = io_pipe();
        (Arc::new(Output::new(writer)), reader)
    }

    fn io_pipe() -> (PipeReader, PipeWriter) {
        std::io::pipe().expect("a pipe")
    }

    fn start(output: &Arc<Output<PipeWriter>>) {
        output.set_started(true);
        let output = Arc::clone(output);
        thread::spawn(move || output.run(notice, || None));
    }

    /// Reads lines until `last` comes.
    fn lines(reader: &mut PipeReader, last: &str) -> Vec<String> {
        let mut text = String::new();
        let mut buffer = vec![0; PIECE];
        while !text.ends_with(&format!("{last}\n")) {
            let len = reader.read(&mut buffer).expect("a pipe");
            assert!(len > 0, "{text}");
            text.push_str(std::str::from_utf8(&buffer[..len]).expect("ASCII"));
        }
        text.lines().map(str::to_string).collect()
    }

    #[test]
    fn without_a_thread_a_line_is_written_where_it_comes_from() {
        let (output, mut reader) = output();
        output.push(b"one\n");
        assert_eq!(lines(&mut reader, "one"), ["one"]);
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_lost_is_counted_where_it_is_missing() {
        for started in [true, false] {
            let (output, mut reader) = output();
            if started {
                start(&output);
            }
            let line = format!("{}\n", "x".repeat(99));
            let mut bytes = 0;
            while bytes < 1 << 20 {
                output.push(line.as_bytes());
                bytes += line.len();
            }
            let begun = Instant::now();
            output.flush(Duration::from_millis(200));
            assert!(begun.elapsed() < PATIENCE);
            assert!(output.state().queue.len() <= ROOM);
            if !started {
                start(&output);
            }
            let mut read = Vec::new();
            while read.last().is_none_or(|line: &String| !line.starts_with("lost ")) {
                let mut buffer = vec![0; 1];
                let mut line = Vec::new();
                while buffer[0] != b'\n' {
                    reader.read_exact(&mut buffer).expect("a pipe");
                    line.push(buffer[0]);
                }
                read.push(String::from_utf8_lossy(&line).trim_end().to_string());
            }
            let lost: usize = read.pop().expect("a line")[5..].parse().expect("a number");
            assert!(read.iter().all(|line| line.len() == 99));
            assert_eq!((read.len() + lost) * 100, bytes);
            output.push(b"again\n");
            assert_eq!(lines(&mut reader, "again"), ["again"]);
            output.flush(PATIENCE);
            assert!(output.state().is_quiet());
        }
    }

    #[test]
    fn a_reader_that_goes_away_stops_nobody() {
        let (output, reader) = output();
        start(&output);
        drop(reader);
        for _ in 0..100_000 {
            output.push(b"a line\n");
        }
        let begun = Instant::now();
        output.flush(Duration::from_millis(200));
        assert!(begun.elapsed() < PATIENCE);
        assert!(!output.state().is_quiet());
    }

    #[test]
    fn lines_are_written_whole_and_in_order() {
        let (output, mut reader) = output();
        start(&output);
        let reading = thread::spawn(move || lines(&mut reader, "9999"));
        for number in 0..10_000 {
            output.push(format!("{number}\n").as_bytes());
            if number % 1000 == 0 {
                output.flush(PATIENCE);
            }
        }
        let read = reading.join().expect("it reads");
        let numbers: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
        assert_eq!(read, numbers);
    }
}
