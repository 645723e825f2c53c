//! Ends the process when an input takes too long: what hangs must fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Once};
use std::time::{Duration, Instant};

/// Far beyond what a loaded machine needs under AddressSanitizer.
const PATIENCE: u64 = 60;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Seconds since `START` at which the current input began, and 1; 0: none is being tried.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// While it lives, the process does not outlive `PATIENCE`.
#[derive(Debug)]
pub struct Watched(());

/// Begins to watch.
pub fn watch() -> Watched {
    static WATCHDOG: Once = Once::new();
    WATCHDOG.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let begun = BEGUN.load(Ordering::Relaxed);
                if begun != 0 && START.elapsed().as_secs() + 1 >= begun + PATIENCE {
                    eprintln!("An input has been at work for {PATIENCE} s: it hangs.");
                    // libFuzzer keeps the input of an abort as it does that of a crash.
                    std::process::abort();
                }
            }
        });
    });
    BEGUN.store(START.elapsed().as_secs() + 1, Ordering::Relaxed);
    Watched(())
}

impl Drop for Watched {
    fn drop(&mut self) {
        BEGUN.store(0, Ordering::Relaxed);
    }
}
