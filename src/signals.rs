//! SIGTERM, SIGINT and SIGHUP end the program within a second, socket removed.

use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use device::Stop;
use nix::sys::signal::{SigSet, Signal};

use crate::logger;
use crate::sandbox::enter_helper;

/// What a request that hangs on the host may delay the end.
const PATIENCE: Duration = Duration::from_millis(600);

const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// The signals that end the program, blocked in this thread and all that it starts. So is SIGCHLD, for [`of_outer`].
///
/// SIGXFSZ is blocked too, and never waited for: the kernel sends it with each write beyond RLIMIT_FSIZE, which a
/// guest can do at will. Blocked, all that is left of it is the EFBIG that the guest gets.
pub fn block() -> nix::Result<SigSet> {
    let set = SigSet::from_iter(ENDING);
    of_outer().thread_block()?;
    SigSet::from(Signal::SIGXFSZ).thread_block()?;
    Ok(set)
}

/// What the outer process waits for: the same, and the end of its worker.
pub fn of_outer() -> SigSet {
    ENDING.iter().copied().chain([Signal::SIGCHLD]).collect()
}

/// Starts the thread that waits for `signals` and then requests `stop`; should that not end the program in time, it
/// ends it.
pub fn watch(signals: SigSet, stop: Arc<Stop>) -> std::io::Result<()> {
    let wait = move || {
        enter_helper("signals");
        let signal = loop {
            if let Ok(signal) = signals.wait() {
                break signal;
            }
        };
        log::info!("Ending on {signal}.");
        stop.request();
        thread::sleep(PATIENCE);
        log::warn!("Requests that are still at work on the host are given up.");
        logger::finish();
        process::exit(0);
    };
    thread::Builder::new().name("signals".to_string()).spawn(wait)?;
    Ok(())
}
