//! vhost-user-9p: shares a host directory with a virtual machine.
//!
//! `args` is the command line as typed, `config` what it means, checked; `socket`, `limits` and `signals` prepare the
//! process; then the device serves sessions. This file is the only one that decides an exit status.

mod args;
mod config;
mod inherited;
mod limits;
mod logger;
mod signals;
mod socket;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use device::Stop;
use host::Share;
use server::{Limits, Session};

use args::{Args, Level};
use config::{Config, Failure, Socket, model_name};
use socket::SocketFile;

/// What `--print-capabilities` tells: the device's type in QEMU's vhost-user.json, and the optional features.
const CAPABILITIES: &str = r#"{
  "type": "9p",
  "features": []
}
"#;

fn main() -> ExitCode {
    let status = work();
    logger::finish();
    status
}

fn work() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return not_parsed(&error),
    };
    if args.print_capabilities {
        return match std::io::stdout().write_all(CAPABILITIES.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    start_log(args.log_level);
    match Config::new(&args).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(sentence)) => fail(&sentence, 2),
        Err(Failure::Environment(sentence)) => fail(&sentence, 1),
    }
}

/// Tells why, in one line.
fn fail(sentence: &str, status: u8) -> ExitCode {
    logger::say(&format_args!("error: {}.", sentence.trim_end_matches('.')));
    ExitCode::from(status)
}

/// Help and version as they were asked for; else what is wrong with the command line as one sentence, without the
/// usage that clap prints after it.
fn not_parsed(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text.split("\n\nFor more information").next().unwrap_or_default();
    let sentence = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    fail(&format!("{sentence}; --help explains the options"), 2)
}

fn start_log(level: Level) {
    let filter = match level {
        Level::Off => log::LevelFilter::Off,
        Level::Error => log::LevelFilter::Error,
        Level::Warn => log::LevelFilter::Warn,
        Level::Info => log::LevelFilter::Info,
        Level::Debug => log::LevelFilter::Debug,
        Level::Trace => log::LevelFilter::Trace,
    };
    logger::init(filter);
}

fn no_thread(error: std::io::Error) -> Failure {
    Failure::Environment(format!("No thread can be started: {error}."))
}

fn run(config: Config) -> Result<(), Failure> {
    // Before any thread: threads inherit what is blocked.
    let signals = signals::block()
        .map_err(|error| Failure::Environment(format!("Signals cannot be blocked: {error}.")))?;
    // The inherited socket first, while its number cannot mean anything else.
    let inherited = match config.socket {
        Socket::Fd(fd) => Some(socket::inherit(fd).map_err(Failure::Environment)?),
        Socket::Path(..) => None,
    };
    if let Socket::Path(path, _) = &config.socket {
        socket::check(path).map_err(Failure::Environment)?;
    }
    let descriptors = limits::raise_nofile(config.rlimit_nofile)?;
    limits::grow_table(descriptors);
    let share = Arc::new(Share::open(&config.share).map_err(Failure::Environment)?);
    let stop =
        Stop::new().map_err(|error| Failure::Environment(format!("No descriptor is left: {error}.")))?;
    let stop = Arc::new(stop);
    let (listener, file) = match (inherited, &config.socket) {
        (Some(listener), _) => (listener, None),
        (None, Socket::Path(path, access)) => {
            let (listener, file) = socket::listen(path, *access).map_err(Failure::Environment)?;
            (listener, Some(Arc::new(file)))
        }
        (None, Socket::Fd(_)) => return Err(Failure::Usage("--fd cannot be used.".to_string())),
    };
    logger::start_writer().map_err(no_thread)?;
    signals::watch(signals, Arc::clone(&stop), file.clone()).map_err(no_thread)?;
    announce(&config, file.as_deref());
    let session_limits = Limits {
        fd_budget: limits::session_descriptors(descriptors),
        ..config.limits
    };
    let result = device::serve(
        listener,
        || Session::new(Arc::clone(&share), session_limits),
        &config.device,
        &stop,
    );
    if let Some(file) = file {
        file.remove();
    }
    result.map_err(Failure::Environment)
}

/// One line for whoever reads the log; what the process lacks for the mode, the share itself has said.
fn announce(config: &Config, file: Option<&SocketFile>) {
    let share = &config.share;
    log::info!(
        "Sharing {} as \"{}\", {}, {}, on {}.",
        share.directory.display(),
        String::from_utf8_lossy(&config.device.tag),
        model_name(share.model),
        if share.readonly { "read-only" } else { "read-write" },
        file.map_or_else(
            || "an inherited socket".to_string(),
            |file| file.path().display().to_string()
        ),
    );
}
