//! Runs `scripts/vm` with a job.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::backend::Backend;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `scripts/setup` puts things.
pub fn cache() -> PathBuf {
    match std::env::var_os("VHOST_USER_9P_CACHE") {
        Some(dir) => dir.into(),
        None => Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into()))
            .join(".cache/vhost-user-9p"),
    }
}

/// After this long a guest hangs. Only that: a busy machine may take ten times as long as an idle one.
pub const TIMEOUT: Duration = Duration::from_secs(1500);

/// Polls until `condition` holds; false when it does not within `limit`.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The SHA-256 of a file, by the host's own tool.
pub fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success(), "sha256sum {}", path.display());
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// A program of `tests/guest` for the guest, in a directory that lives as long as this does.
pub struct Compiled {
    _dir: TempDir,
    pub path: PathBuf,
}

/// Compiles `tests/guest/NAME.rs` statically, with rustc alone: the guest has no C library to link it
/// with, and cargo would link the whole workspace statically for it.
pub fn compile(name: &str) -> Compiled {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static"])
        .arg("-o")
        .arg(&path)
        .arg(repository().join("tests/guest").join(name).with_extension("rs"))
        .status()
        .unwrap();
    assert!(status.success(), "{name} does not compile");
    Compiled { _dir: dir, path }
}

/// A guest to be booted.
pub struct Vm {
    args: Vec<OsString>,
    /// QEMU rather than User-Mode Linux, which is many times faster and has none of what QEMU is
    /// asked for here: a kernel of choice, a second processor, PCI, a monitor, a reboot.
    qemu: bool,
}

impl Vm {
    pub fn on(backend: &Backend) -> Self {
        Vm::with(std::slice::from_ref(backend))
    }

    /// A guest with several shares.
    pub fn with(backends: &[Backend]) -> Self {
        Vm {
            args: backends.iter().flat_map(Backend::vm_option).collect(),
            qemu: crate::backend::peer_is_qemu(),
        }
    }

    fn option(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// A guest of QEMU, whose processors are emulated here.
    pub fn on_qemu(mut self) -> Self {
        self.qemu = true;
        self
    }

    pub fn kernel(self, name: &str) -> Self {
        self.on_qemu().option(&["--kernel", name])
    }

    pub fn cpus(self, n: u32) -> Self {
        self.on_qemu().option(&["--cpus", &n.to_string()])
    }

    pub fn memory(self, size: &str) -> Self {
        self.option(&["--memory", size])
    }

    pub fn no_mount(self) -> Self {
        self.option(&["--no-mount"])
    }

    /// Puts Debian's sqlite3 and git into the guest.
    pub fn programs(self) -> Self {
        let archive = cache().join("programs.cpio");
        assert!(
            archive.exists(),
            "run scripts/setup first: no {}",
            archive.display()
        );
        self.option(&["--programs"])
    }

    /// Where QEMU's monitor shall listen.
    pub fn qmp(self, socket: &Path) -> Self {
        self.on_qemu().option(&["--qmp", &socket.to_string_lossy()])
    }

    pub fn allow_reboot(self) -> Self {
        self.on_qemu().option(&["--allow-reboot"])
    }

    /// Each share can be unplugged: the first is device d0 in slot s0 on chardev c0, and so on.
    pub fn hot_plug(self) -> Self {
        self.option(&["--hot-plug"])
    }

    /// Puts the kernel and its initramfs into the guest's /boot.
    pub fn kexec(self) -> Self {
        self.option(&["--kexec"])
    }

    /// Puts a file (relative to the repository) into the guest's /root.
    pub fn add(mut self, file: impl AsRef<Path>) -> Self {
        self.args.push("--add".into());
        self.args.push(repository().join(file).into());
        self
    }

    /// Puts a program that `scripts/setup` built into the guest's /root.
    pub fn add_tool(self, name: &str) -> Self {
        let tool = cache().join("bin").join(name);
        assert!(tool.exists(), "run scripts/setup first: no {}", tool.display());
        self.add(tool)
    }

    /// Boots the guest with a job of `tests/guest/`.
    pub fn start(self, job: &str) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("output")).unwrap();
        let child = Command::new(repository().join("scripts/vm"))
            .args((!self.qemu).then_some("--uml"))
            .args(self.args)
            .arg("--timeout")
            .arg(TIMEOUT.as_secs().to_string())
            .arg("--job")
            .arg(repository().join("tests/guest").join(job))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Running {
            child: Mutex::new(child),
            dir,
        }
    }

    pub fn run(self, job: &str) -> Output {
        self.start(job).wait()
    }
}

/// A guest at work. Dropping it ends it.
pub struct Running {
    child: Mutex<Child>,
    dir: TempDir,
}

impl Running {
    pub fn is_finished(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// Whether the job is done and failed.
    pub fn has_failed(&self) -> bool {
        let status = self.child.lock().unwrap().try_wait().unwrap();
        status.is_some_and(|status| !status.success())
    }

    /// Waits for guests that wait for each other: when one has failed, for that one alone.
    #[track_caller]
    pub fn expect_success_of(guests: [Running; 2]) -> [Output; 2] {
        let failed = || guests.iter().position(Running::has_failed);
        wait_until(TIMEOUT * 2, || {
            failed().is_some() || guests.iter().all(Running::is_finished)
        });
        let failed = failed();
        let outputs = guests.map(Running::wait_if_finished);
        if let Some(output) = failed.and_then(|guest| outputs[guest].as_ref()) {
            output.expect_success();
        }
        outputs.map(|output| {
            let output = output.expect("both are done");
            output.expect_success();
            output
        })
    }

    fn wait_if_finished(self) -> Option<Output> {
        self.is_finished().then(|| self.wait())
    }

    pub fn wait(self) -> Output {
        let status = self.child.lock().unwrap().wait().unwrap();
        let text = fs::read(self.dir.path().join("output")).unwrap();
        Output {
            success: status.success(),
            text: String::from_utf8_lossy(&text).into_owned(),
        }
    }

    /// Kills the VMM (SIGKILL: no farewell to the backend) and waits for the script to notice.
    pub fn kill(self) {
        let script = self.child.lock().unwrap().id();
        let killed = descendants(script)
            .into_iter()
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| contains(&line, b"initrd") && !contains(&line, b"timeout"))
            })
            .filter(|pid| signal::kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok())
            .count();
        let output = self.wait();
        assert!(killed > 0, "no VMM found to kill:\n{}", output.text);
        assert!(!output.success, "the job ended by itself:\n{}", output.text);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_finished() {
            return;
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // The script ends QEMU, which SIGKILL would not let it do.
        if let Ok(pid) = libc::pid_t::try_from(child.id()) {
            let _ = signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = child.wait();
    }
}

fn contains(line: &[u8], what: &[u8]) -> bool {
    line.windows(what.len()).any(|w| w == what)
}

/// All processes below one, by /proc's parent links.
fn descendants(of: u32) -> Vec<libc::pid_t> {
    let children = |pid: &str| -> io::Result<String> {
        let mut all = String::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            all += &fs::read_to_string(task?.path().join("children"))?;
        }
        Ok(all)
    };
    let (mut found, mut todo) = (Vec::new(), vec![of.to_string()]);
    while let Some(pid) = todo.pop() {
        for child in children(&pid).unwrap_or_default().split_whitespace() {
            found.push(child.parse().unwrap());
            todo.push(child.to_owned());
        }
    }
    found
}

/// What a guest printed, and whether its job succeeded.
pub struct Output {
    success: bool,
    pub text: String,
}

impl Output {
    #[track_caller]
    pub fn expect_success(&self) {
        // Shown by the test harness only if the test fails.
        println!("{}", self.text);
        assert!(self.success, "the job failed in the guest (its output is above)");
    }
}
