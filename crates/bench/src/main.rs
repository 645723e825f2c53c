//! Times this backend, QEMU's own virtio-9p and virtiofsd side by side: one driver at the ring, no guest between.

mod bare;
mod engine;
mod exchange;
mod fuse;
mod report;
mod station;
mod work;
mod work_9p;
mod work_fuse;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use report::{Line, Setting};
use station::{Peer, Peers, Station};

/// Times this backend beside QEMU's own virtio-9p, virtiofsd, and the bare system calls.
#[derive(Parser, Debug)]
struct Args {
    /// This backend's program
    #[arg(long, default_value = "target/release/vhost-user-9p")]
    program: PathBuf,
    /// virtiofsd's program; without it there is no such column
    #[arg(long)]
    virtiofsd: Option<PathBuf>,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    /// Also measure this backend with --poll-us 0
    #[arg(long)]
    without_poll: bool,
    /// Share mode, in QEMU's spelling (none, passthrough, mapped-xattr, mapped-file)
    #[arg(long, default_value = "none")]
    model: String,
    /// Interleaved rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds for each run
    #[arg(long, default_value_t = 300)]
    milliseconds: u64,
    /// Only the lines whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Only the lines that move no more data than a small file's
    #[arg(long)]
    metadata: bool,
    /// Where the shared files are made (a local file system)
    #[arg(long, default_value = "/var/tmp")]
    on: PathBuf,
    /// Write every figure here
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the table here
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_string()
}

fn facts(args: &Args, qemu: Option<&PathBuf>, directory: &str) -> Vec<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or(": unknown");
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let mut facts = vec![
        format!(
            "{count} x {}, {}",
            model.trim_start_matches(['\t', ' ', ':']),
            output("uname", &["-sr"])
        ),
        format!(
            "file system {}; page cache warm; share mode {}; {} rounds of {} ms, interleaved; medians",
            output("stat", &["-f", "-c", "%T", directory]),
            args.model,
            args.rounds,
            args.milliseconds
        ),
    ];
    let path = args.program.to_string_lossy();
    let mut versions = output(&path, &["--version"]);
    if let Some(qemu) = qemu {
        versions += &format!("; {}", output(&qemu.to_string_lossy(), &["--version"]));
    }
    if let Some(program) = &args.virtiofsd {
        versions += &format!("; {}", output(&program.to_string_lossy(), &["--version"]));
    }
    facts.push(versions);
    facts
}

fn run(args: &Args) -> Result<(), String> {
    let directory =
        tempfile::tempdir_in(&args.on).map_err(|error| format!("{}: {error}", args.on.display()))?;
    eprintln!("preparing files in {}", directory.path().display());
    work::prepare(directory.path()).map_err(|error| format!("preparing files: {error}"))?;
    let qemu = testkit::qtest::find_qemu().filter(|_| !args.no_qemu);
    let mut peers = vec![("ours".to_string(), Peer::Ours(Vec::new()))];
    if args.without_poll {
        peers.push((
            "no poll".to_string(),
            Peer::Ours(vec!["--poll-us".into(), "0".into()]),
        ));
    }
    if qemu.is_some() {
        peers.push(("QEMU".to_string(), Peer::Qemu));
    }
    if let Some(program) = &args.virtiofsd {
        peers.push(("virtiofsd".to_string(), Peer::Virtiofsd(program.clone())));
    }
    peers.push(("bare".to_string(), Peer::Bare));
    let known = Peers {
        ours: args.program.clone(),
        qemu: qemu.clone(),
        model: args.model.clone(),
    };
    let mut facts = facts(args, qemu.as_ref(), &directory.path().to_string_lossy());
    let mut stations = Vec::new();
    for (name, peer) in &peers {
        eprintln!("starting {name}");
        let mut station =
            Station::start(peer, &known, directory.path()).map_err(|why| format!("{name}: {why}"))?;
        if let Station::Ours(backend) = &mut station {
            let (idle, rare) = backend.rest()?;
            facts.push(format!(
                "{name}: socket taken {:.1} ms after the start; {} KiB of its own memory in a session; processor time: idle \
                 {idle:.3} %, asked 100 times a second {rare:.2} %",
                backend.ready_ms,
                backend.private_kib().unwrap_or(0)
            ));
        }
        stations.push(station);
    }
    let works: Vec<_> = work::all()
        .into_iter()
        .filter(|work| work.name.contains(&args.only))
        .filter(|work| !args.metadata || work.is_metadata())
        .collect();
    let mut lines: Vec<Line> = works
        .iter()
        .map(|work| Line {
            work: *work,
            runs: vec![Vec::new(); peers.len()],
        })
        .collect();
    let length = Duration::from_millis(args.milliseconds);
    let begin = Instant::now();
    for round in 1..=args.rounds {
        for (number, line) in lines.iter_mut().enumerate() {
            eprintln!(
                "[{:4.0} s] round {round} of {}, {} of {}: {}",
                begin.elapsed().as_secs_f64(),
                args.rounds,
                number + 1,
                works.len(),
                line.work.name
            );
            for (peer, station) in stations.iter_mut().enumerate() {
                let run = station
                    .run(&line.work, length)
                    .map_err(|why| format!("{}: {why}", peers[peer].0))?;
                line.runs[peer].push(run);
            }
        }
    }
    let setting = Setting {
        peers: peers.into_iter().map(|(name, _)| name).collect(),
        facts,
    };
    let rows: Vec<_> = lines.iter().flat_map(report::rows).collect();
    print!("{}", report::table(&setting, &rows));
    let write = |path: &PathBuf, text: String| {
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("wrote {}", path.display());
        Ok::<(), String>(())
    };
    if let Some(path) = &args.json {
        write(path, format!("{:#}\n", report::json(&setting, &lines)))?;
    }
    if let Some(path) = &args.svg {
        write(path, report::svg(&setting, &rows, &["no poll"]))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}
