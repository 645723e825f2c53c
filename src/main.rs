//! vhost-user-9p: shares a host directory with a virtual machine.
//!
//! `args` is the command line as typed, `config` what it means, checked; `socket`, `limits` and `signals` prepare the
//! process; `sandbox` makes the worker, in which the device serves sessions. This file is the only one that decides an
//! exit status.

mod args;
mod config;
mod inherited;
mod limits;
mod logger;
mod sandbox;
mod signals;
mod socket;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use caps::CapsHashSet;
use clap::Parser;
use clap::error::ErrorKind;
use device::{DeviceOptions, Listener, Stop};
use host::{CheckAccess, FileHandles, Share, Users};
use nix::sys::signal::SigSet;
use server::{Limits, Session};

use args::Args;
use config::{Config, Failure, Socket, model_name};
use sandbox::seccomp::{self, Policy, Verdict};
use sandbox::{Answer, Level, Outer, Start, Worker, privileges};

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
        Ok(status) => ExitCode::from(status),
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

fn start_log(level: args::Level) {
    let filter = match level {
        args::Level::Off => log::LevelFilter::Off,
        args::Level::Error => log::LevelFilter::Error,
        args::Level::Warn => log::LevelFilter::Warn,
        args::Level::Info => log::LevelFilter::Info,
        args::Level::Debug => log::LevelFilter::Debug,
        args::Level::Trace => log::LevelFilter::Trace,
    };
    logger::init(filter);
}

fn no_thread(error: std::io::Error) -> Failure {
    Failure::Environment(format!("No thread can be started: {error}."))
}

/// Makes a worker that serves, in the best sandbox there is, and waits for it; in the worker, serves.
fn run(config: Config) -> Result<u8, Failure> {
    let mut users = sandbox::users(&config.share).map_err(Failure::Environment)?;
    // Before any thread: threads inherit what is blocked.
    let signals = signals::block()
        .map_err(|error| Failure::Environment(format!("Signals cannot be blocked: {error}.")))?;
    // The inherited socket first, while its number cannot mean anything else.
    let mut inherited = match config.socket {
        Socket::Fd(fd) => Some(socket::inherit(fd).map_err(Failure::Environment)?),
        Socket::Path(..) => None,
    };
    inherited::close_others();
    if let Socket::Path(path, _) = &config.socket {
        socket::check(path).map_err(Failure::Environment)?;
    }
    let descriptors = limits::raise_nofile(config.rlimit_nofile)?;
    limits::forbid_core_dumps()?;
    let kept = privileges::wanted(&config.share).map_err(Failure::Environment)?;
    let levels = sandbox::levels(config.sandbox);
    for &level in &levels {
        let why = match sandbox::start(level, &config.share) {
            Ok(Start::Worker(worker)) => {
                drop(inherited);
                return serve(&config, worker, (level, kept), signals, descriptors, users.take());
            }
            Ok(Start::Outer(mut outer)) => match outer.answer() {
                Answer::Ready => return supervise(&config, outer, inherited.take()),
                Answer::Cannot(why) => why,
                Answer::Ended(status) => return Ok(status),
            },
            Err(why) => why,
        };
        let name = level.name();
        if levels.len() == 1 {
            return Err(Failure::Environment(format!(
                "--sandbox {name} is not possible here: {why}."
            )));
        }
        log::warn!("The sandbox \"{name}\" is not possible here: {why}.");
    }
    Err(Failure::Environment(
        "No sandbox is possible here; see --sandbox.".to_string(),
    ))
}

/// Hands the worker its socket and waits for its end; gives the exit status.
fn supervise(config: &Config, outer: Outer, inherited: Option<Listener>) -> Result<u8, Failure> {
    let (listener, file) = match (inherited, &config.socket) {
        (Some(listener), _) => (listener, None),
        (None, Socket::Path(path, access)) => {
            let (listener, file) = socket::listen(path, *access).map_err(Failure::Environment)?;
            (listener, Some(file))
        }
        (None, Socket::Fd(_)) => return Err(Failure::Usage("--fd cannot be used.".to_string())),
    };
    outer.send(&listener);
    drop(listener);
    Ok(outer.supervise(file.as_ref()))
}

/// What the worker does: opens the share in its sandbox and serves it, until it is told to end.
fn serve(
    config: &Config,
    mut worker: Worker,
    (level, kept): (Level, CapsHashSet),
    signals: SigSet,
    descriptors: u64,
    users: Option<Users>,
) -> Result<u8, Failure> {
    inherited::leave_stdin_and_stdout()
        .map_err(|error| Failure::Environment(format!("No descriptor is left: {error}.")))?;
    limits::grow_table(descriptors);
    device::end_when_memory_is_lost().map_err(|error| {
        Failure::Environment(format!("The loss of guest memory cannot be waited for: {error}."))
    })?;
    let Some((surroundings, directory)) = worker.confine(&config.share) else {
        return Ok(1);
    };
    // While it can: what it makes shall belong to somebody for whom the share's mount has an id.
    host::adopt(directory, &config.share);
    privileges::drop_capabilities(&kept).map_err(Failure::Environment)?;
    privileges::bind_to_parent().map_err(Failure::Environment)?;
    if let Some(verdict) = config.seccomp {
        let policy = Policy {
            verdict,
            switches_users: config.share.check_access == CheckAccess::Host,
            opens_handles: config.share.file_handles == FileHandles::Open,
        };
        seccomp::filter_process(&policy).map_err(Failure::Environment)?;
    }
    let surroundings = surroundings.with_users(users);
    let share = Share::open_in(directory, &config.share, surroundings).map_err(Failure::Environment)?;
    let share = Arc::new(share);
    let stop =
        Stop::new().map_err(|error| Failure::Environment(format!("No descriptor is left: {error}.")))?;
    let stop = Arc::new(stop);
    logger::start_writer().map_err(no_thread)?;
    signals::watch(signals, Arc::clone(&stop)).map_err(no_thread)?;
    // Without a socket there is nothing to serve, and the outer process has said why.
    let Some(listener) = worker.ready() else {
        return Ok(1);
    };
    announce(config, level, &kept);
    let session_limits = Limits {
        fd_budget: limits::session_descriptors(descriptors),
        ..config.limits
    };
    let device = DeviceOptions {
        on_thread: sandbox::enter_thread,
        ..config.device.clone()
    };
    device::serve(
        listener,
        || Session::new(Arc::clone(&share), session_limits),
        &device,
        &stop,
    )
    .map(|()| 0)
    .map_err(Failure::Environment)
}

/// One line for whoever reads the log; what the process lacks for the mode, the share itself has said.
fn announce(config: &Config, level: Level, kept: &CapsHashSet) {
    let share = &config.share;
    log::info!(
        "Sharing {} as \"{}\", {}, {}, on {}.",
        share.directory.display(),
        String::from_utf8_lossy(&config.device.tag),
        model_name(share.model),
        if share.readonly { "read-only" } else { "read-write" },
        match &config.socket {
            Socket::Path(path, _) => path.display().to_string(),
            Socket::Fd(_) => "an inherited socket".to_string(),
        },
    );
    let mut kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
    kept.sort();
    log::info!(
        "Sandbox: {}; {}; {}.",
        level.describe(),
        match config.seccomp {
            Some(Verdict::Kill) => "seccomp",
            Some(Verdict::Log) => "seccomp that only logs",
            None => "no seccomp",
        },
        match &kept[..] {
            [] => "no capabilities".to_string(),
            kept => kept.join(" "),
        },
    );
}
