//! The log: lines on stderr, for which nobody waits, of which a guest can cause so many and no more.
//!
//! `line` makes a line harmless, `limiter` says which are left out, `output` holds what is to be written and writes it
//! in a thread of its own. Everything in this program and the crates that it uses logs by way of the `log` crate and
//! comes through here: what is left out is not even formatted. A kind of line is a place in the source and a target;
//! where one place has several causes to be told apart, it gives each a target of its own.

mod limiter;
mod line;
mod output;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal, Stderr};
use std::panic;
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sandbox::enter_helper;
use env_filter::Filter;
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::sys::stat::fstat;

use limiter::{Answer, Limiter};
use line::Line;
use output::Output;

/// How long the end waits for a reader.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Whose lines no guest or front-end causes: this program's own, and the one before the process ends itself.
const UNLIMITED: [&str; 2] = [env!("CARGO_CRATE_NAME"), "host::give_up"];

static OUTPUT: LazyLock<Output<Stderr>> = LazyLock::new(|| Output::new(io::stderr()));
static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    filter: Filter,
    style: Style,
    limiter: Mutex<Limiter>,
    hasher: RandomState,
}

impl Logger {
    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, level: Level, line: &Line) {
        OUTPUT.push(self.style.format(level, line.as_str()).as_bytes());
    }

    /// Tells what was left out, when it is time for that, or at once; gives when it will be time for more.
    fn tell_missed(&self, all: bool) -> Option<Instant> {
        loop {
            let mut limiter = self.limiter();
            let Some(missed) = limiter.due(Instant::now(), all) else {
                return limiter.next();
            };
            drop(limiter);
            let (count, sample) = (missed.count, missed.sample);
            let text = format!("{count} more lines like this were left out: {sample}");
            self.write(missed.level, &Line::of(&text));
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        // What is more detailed than that, the operator has asked for.
        let limited = record.level() <= Level::Info && !UNLIMITED.contains(&module(record.target()));
        if !limited {
            self.write(record.level(), &Line::of(record.args()));
            return;
        }
        let kind = (record.target(), record.file(), record.line(), record.level());
        let key = self.hasher.hash_one(kind);
        let answer = self.limiter().ask(key, record.level(), Instant::now());
        match answer {
            Answer::Say(missed) => {
                let mut line = Line::of(record.args());
                self.limiter().said(key, line.as_str());
                if missed > 0 {
                    line.append(&format!(" ({missed} more like it before this one were left out)"));
                }
                self.write(record.level(), &line);
            }
            Answer::LeaveOut(true) => OUTPUT.poke(),
            Answer::LeaveOut(false) => {}
        }
    }

    fn flush(&self) {
        OUTPUT.flush(LAST_WORDS);
    }
}

/// The module of `target` that [`UNLIMITED`] would name: this crate as a whole, or one of another.
fn module(target: &str) -> &str {
    match target.strip_prefix(UNLIMITED[0]) {
        Some(rest) if rest.starts_with("::") => UNLIMITED[0],
        _ => target,
    }
}

/// Sends the log to stderr: lines up to `level`, or what RUST_LOG says. Lines are written where they are logged, or kept
/// if that would mean to wait, until [`start_writer`] is called.
pub fn init(level: LevelFilter) {
    let mut filter = env_filter::Builder::new();
    filter.filter_level(level);
    let asked = std::env::var("RUST_LOG").ok();
    let wrong = asked.and_then(|spec| filter.try_parse(&spec).err().map(|error| error.to_string()));
    let filter = filter.build();
    log::set_max_level(filter.filter());
    let logger = LOGGER.get_or_init(|| Logger {
        filter,
        style: Style::of_stderr(),
        limiter: Mutex::new(Limiter::new(Instant::now())),
        hasher: RandomState::new(),
    });
    // Fails for a second one only.
    let _ = log::set_logger(logger);
    panic::set_hook(Box::new(|info| {
        let info = info.to_string().replace('\n', " ");
        log::error!("This is a mistake in the program: {info}");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            backtrace.to_string().lines().for_each(|line| say(&line));
        }
        log::logger().flush();
    }));
    if let Some(error) = wrong {
        log::warn!("RUST_LOG is not used: {error}.");
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    /// On a terminal.
    Coloured,
    /// For the journal, which knows the time and has a number for the level.
    Journal,
}

impl Style {
    /// For what stderr is, unless the environment says otherwise.
    fn of_stderr() -> Style {
        let stderr = OUTPUT.to();
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        // What systemd has connected to the journal, as it says.
        if let (Some(journal), Ok(stat)) = (variable("JOURNAL_STREAM"), fstat(stderr))
            && journal.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
        {
            return Style::Journal;
        }
        let asked = variable("RUST_LOG_STYLE").unwrap_or_default();
        let plain = variable("NO_COLOR").is_some() || variable("TERM").is_none_or(|term| term == "dumb");
        if asked == "always" || (asked != "never" && stderr.is_terminal() && !plain) {
            Style::Coloured
        } else {
            Style::Plain
        }
    }

    /// The line, its end included.
    fn format(self, level: Level, text: &str) -> String {
        // The number of syslog(3), and the colour.
        let (priority, colour) = match level {
            Level::Error => (3, "1;31"),
            Level::Warn => (4, "33"),
            Level::Info => (6, "32"),
            Level::Debug => (7, "34"),
            Level::Trace => (7, "36"),
        };
        let now = Timestamp::now();
        match self {
            Style::Plain => format!("[{now:.0} {level:<5}] {text}\n"),
            Style::Coloured => {
                format!("\x1b[90m[\x1b[0m{now:.0} \x1b[{colour}m{level:<5}\x1b[0m\x1b[90m]\x1b[0m {text}\n")
            }
            Style::Journal => format!("<{priority}>{text}\n"),
        }
    }
}

/// Starts the thread that writes. To be called once, by the process that serves; from then on nothing waits for
/// whoever reads stderr.
pub fn start_writer() -> io::Result<()> {
    let style = LOGGER.get().map_or(Style::Plain, |logger| logger.style);
    let notice = move |lost| {
        let text = format!("{lost} lines of this log are missing here: nobody took them.");
        style.format(Level::Warn, &text).into_bytes()
    };
    let tick = || LOGGER.get().and_then(|logger| logger.tell_missed(false));
    let work = move || {
        enter_helper("log");
        OUTPUT.run(notice, tick)
    };
    OUTPUT.set_started(true);
    let thread = thread::Builder::new().name("log".to_string()).spawn(work);
    OUTPUT.set_started(thread.is_ok());
    thread.map(|_| ())
}

/// Writes `sentence` to stderr as a line of its own, whatever is logged.
pub fn say(sentence: &dyn Display) {
    let style = LOGGER.get().map_or_else(Style::of_stderr, |logger| logger.style);
    let mut line = match style {
        Style::Journal => Line::of(&format_args!("<3>{sentence}")),
        Style::Plain | Style::Coloured => Line::of(sentence),
    };
    line.append("\n");
    OUTPUT.push(line.as_str().as_bytes());
}

/// To be called last: tells what was left out, and gives what is not yet written a moment to be read.
pub fn finish() {
    if let Some(logger) = LOGGER.get() {
        logger.tell_missed(true);
    }
    OUTPUT.flush(LAST_WORDS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_gets_a_priority_and_no_time() {
        assert_eq!(Style::Journal.format(Level::Warn, "x"), "<4>x\n");
        let plain = Style::Plain.format(Level::Info, "x");
        assert!(
            plain.starts_with("[20") && plain.ends_with("Z INFO ] x\n"),
            "{plain}"
        );
        assert!(Style::Coloured.format(Level::Info, "x").ends_with("]\x1b[0m x\n"));
    }

    #[test]
    fn only_our_own_lines_are_unlimited() {
        for target in ["vhost_user_9p", "vhost_user_9p::signals", "host::give_up"] {
            assert!(UNLIMITED.contains(&module(target)), "{target}");
        }
        for target in [
            "vhost_user_9p_more",
            "host::give_up::more",
            "host",
            "vhost::vhost_user",
        ] {
            assert!(!UNLIMITED.contains(&module(target)), "{target}");
        }
    }

    /// As a process of its own: it panics, and gives up as `host::creds` does.
    const CHILD: &str = "LOGGER_TEST_CHILD";

    #[test]
    fn an_early_death_says_why_and_waits_for_nobody() {
        if std::env::var_os(CHILD).is_some() {
            init(LevelFilter::Info);
            start_writer().expect("a thread");
            let panicked = thread::spawn(|| panic!("one\ntwo")).join();
            assert!(panicked.is_err());
            log::error!(target: "host::give_up", "giving up");
            log::logger().flush();
            std::process::abort();
        }
        let child = |stderr: std::process::Stdio| {
            std::process::Command::new(std::env::current_exe().expect("a path"))
                .args([
                    "--exact",
                    "logger::tests::an_early_death_says_why_and_waits_for_nobody",
                ])
                .env(CHILD, "1")
                .env_remove("RUST_LOG")
                .env_remove("RUST_BACKTRACE")
                .env_remove("JOURNAL_STREAM")
                .stdout(std::process::Stdio::null())
                .stderr(stderr)
                .spawn()
                .expect("it starts")
        };
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut told = String::new();
        let mut running = child(writer.into());
        io::Read::read_to_string(&mut reader, &mut told).expect("UTF-8");
        assert!(!running.wait().expect("wait").success());
        let lines: Vec<_> = told.lines().collect();
        assert!(
            matches!(&lines[..], [panic, end] if panic.contains("one two") && end.ends_with("giving up")),
            "{told}"
        );

        let (_reader, writer) = io::pipe().expect("a pipe");
        nix::fcntl::fcntl(
            &writer,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .expect("fcntl");
        while io::Write::write(&mut &writer, b"x").is_ok() {}
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).expect("fcntl");
        // Would hang here.
        assert!(!child(writer.into()).wait().expect("wait").success());
    }
}
