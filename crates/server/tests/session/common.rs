//! A session on a temporary directory, and a client that calls it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use host::{IoVec, SecurityModel, Share, ShareOptions};
use server::{How, Limits, Outcome, Request, Scratch, Session};
use tempfile::TempDir;
use testkit::client::Client;
use testkit::transport::Transport;

/// What stands behind a reply buffer and must not be touched.
pub const GUARD: [u8; 64] = [0xa5; 64];

/// Bytes of a payload that are moved at a time.
pub const SLICE: usize = 128 * 1024;

/// Calls a session as a device does.
pub struct Backend {
    pub session: Arc<Session>,
    scratch: Scratch,
    /// How requests are tried first.
    pub how: How,
    /// Outcomes of the last request, in their order.
    pub outcomes: Vec<Outcome>,
}

impl Backend {
    pub fn new(session: Arc<Session>) -> Backend {
        Backend {
            session,
            scratch: Scratch::default(),
            how: How::Inline,
            outcomes: Vec::new(),
        }
    }

    /// One call for one request; the reply, of `cap` bytes at most, is cut to the used length.
    pub fn call(&mut self, message: &[u8], payload: &[u8], cap: usize, wait: bool) -> Vec<u8> {
        let mut payload = payload.to_vec();
        let mut reply = vec![0x5a; cap];
        reply.extend_from_slice(&GUARD);
        let to = pieces(&mut reply[..cap]);
        let from = pieces(&mut payload);
        let mut progress = 0;
        let mut how = self.how;
        self.outcomes.clear();
        let len = loop {
            let mut request = Request {
                message,
                payload: &from,
                reply: &to,
                progress: &mut progress,
                slice: SLICE,
            };
            let outcome = self.session.handle(&mut request, &mut self.scratch, how);
            self.outcomes.push(outcome);
            match outcome {
                Outcome::Done(len) | Outcome::Flush { len, .. } => break len,
                Outcome::More => {}
                Outcome::Defer => {
                    assert_eq!(how, How::Inline, "only the queue thread's calls are deferred");
                    how = How::Blocking;
                }
                Outcome::Wait { .. } if !wait => break 0,
                Outcome::Wait { retry_ms } => {
                    assert_ne!(how, How::Last);
                    std::thread::sleep(Duration::from_millis(retry_ms.into()));
                }
            }
        };
        assert_eq!(reply[cap..], GUARD, "wrote beyond the reply buffer");
        reply.truncate(len as usize);
        reply
    }
}

/// The pieces a guest's buffer may come in: a header of its own, a crooked one, pages.
pub fn pieces(bytes: &mut [u8]) -> Vec<IoVec> {
    let (base, len) = (bytes.as_mut_ptr(), bytes.len());
    let mut list = Vec::new();
    let mut at = 0;
    for size in [11, 0, 100].into_iter().chain(std::iter::repeat(4096)) {
        let size = size.min(len - at);
        // SAFETY: within `bytes`, which outlives the call that the list is for.
        list.push(unsafe { IoVec::new(base.add(at), size) });
        at += size;
        if at == len {
            return list;
        }
    }
    list
}

impl Transport for Backend {
    fn rpc(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> Vec<u8> {
        self.call(message, payload, reply_cap, true)
    }
}

/// A directory, shared, with a client that has it mounted as fid 0.
pub struct Fixture {
    pub dir: TempDir,
    pub share: Arc<Share>,
    pub session: Arc<Session>,
    pub client: Client<Backend>,
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::with(SecurityModel::Passthrough, Limits::default())
    }

    pub fn with(model: SecurityModel, limits: Limits) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let share = Arc::new(Share::open(&ShareOptions::new(dir.path(), model)).unwrap());
        Fixture::on(dir, share, limits)
    }

    pub fn readonly() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "data").unwrap();
        let options = ShareOptions {
            readonly: true,
            ..ShareOptions::new(dir.path(), SecurityModel::Passthrough)
        };
        let share = Arc::new(Share::open(&options).unwrap());
        Fixture::on(dir, share, Limits::default())
    }

    pub fn on(dir: TempDir, share: Arc<Share>, limits: Limits) -> Fixture {
        let session = Arc::new(Session::new(share.clone(), limits));
        let client = Client::mount(Backend::new(session.clone()), 512_000).unwrap();
        Fixture {
            dir,
            share,
            session,
            client,
        }
    }

    /// Another client of the same share, with a session of its own.
    pub fn another(&self) -> Client<Backend> {
        let session = Arc::new(Session::new(self.share.clone(), Limits::default()));
        Client::mount(Backend::new(session), 512_000).unwrap()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, data: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), data).unwrap();
    }

    pub fn host(&self, name: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.path(name)).unwrap()
    }

    /// Whether the last request was left to another thread.
    pub fn deferred(&mut self) -> bool {
        self.client.transport().outcomes.first() == Some(&Outcome::Defer)
    }

    /// Walks from the root to `name` and opens it.
    pub fn open(&mut self, fid: u32, name: &str, flags: u32) {
        self.client.walk_all(0, fid, &[name]).unwrap();
        self.client.lopen(fid, flags).unwrap();
    }

    /// Creates a file in the root and leaves it open.
    pub fn create(&mut self, fid: u32, name: &str, flags: u32) {
        self.client.clone_fid(0, fid).unwrap();
        self.client.lcreate(fid, name, flags, 0o644, gid()).unwrap();
    }
}

/// All share modes.
pub const MODELS: [SecurityModel; 4] = [
    SecurityModel::Passthrough,
    SecurityModel::Squash,
    SecurityModel::MappedXattr,
    SecurityModel::MappedFile,
];

/// Both modes that keep host files as they are.
pub fn each(test: impl Fn(Fixture)) {
    for model in [SecurityModel::Passthrough, SecurityModel::Squash] {
        test(Fixture::with(model, Limits::default()));
    }
}

/// The group of what this process makes.
pub fn gid() -> u32 {
    std::fs::metadata("/proc/self").map_or(0, |meta| meta.gid())
}

/// Descriptors this process has open.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub const O_RDONLY: u32 = 0;
pub const O_WRONLY: u32 = 1;
pub const O_RDWR: u32 = 2;
pub const O_EXCL: u32 = 0o200;
pub const O_TRUNC: u32 = 0o1000;
pub const O_APPEND: u32 = 0o2000;
