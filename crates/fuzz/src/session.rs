//! A session: messages, tried in every way in which a device does, on a temporary directory in any share mode, while
//! the host renames, replaces and removes what they are about.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::{CheckAccess, IoVec, SecurityModel, Share, ShareOptions};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, SFlag, fstat};
use server::request::copy_len;
use server::{How, Limits, Outcome, Request, Scratch, Session, Usage};
use tempfile::TempDir;
use testkit::{Random, Transport};
use wire::*;

use crate::script::{HEADER, Reader, Script, parse};
use crate::{watchdog, work};

/// A message: how it is tried, room for the reply, and its bytes.
pub const MESSAGE: u8 = 0;
/// Something the host does: what, and to which of [`PATHS`].
pub const HOST: u8 = 1;

/// A message's size field stays as it is (else it is made right).
pub const AS_IT_IS: u8 = 0x80;

/// What the host changes. The messages of `testkit::random` use the same names.
const PATHS: [&str; 10] = [
    "a", "b", "c", "dir", "file", "fifo", "out", "up", "dir/a", "dir/file",
];

/// Rooms for a reply; the first are the usual ones.
const ROOMS: [usize; 8] = [8192, 8192, 4096, 8192, 160, 64, 11, 7];

const MSIZE: u32 = 8192;
const SECRET: &[u8] = b"secret of the host";
/// Bytes behind a reply buffer, not to be touched.
const GUARD: [u8; 64] = [0xa5; 64];
/// Bytes of a payload that are moved at a time.
const SLICE: usize = 1024;
/// Above any descriptor that a run has open.
const DESCRIPTORS: i32 = 80;

/// Tries a script.
///
/// # Panics
/// When a reply is not one to its message, something outside of the share changes or is opened, a special file is
/// opened, or anything is left over after Tversion.
pub fn run(data: &[u8]) {
    let _watched = watchdog::watch();
    let (header, records) = parse(data);
    let world = World::new();
    let before = open_descriptors();
    let Some(mut guest) = Guest::new(&world, header) else {
        return;
    };
    let own = Scene::of(&world, &guest.session);
    for (at, (kind, body)) in records.take(200).enumerate() {
        match kind {
            HOST => world.interfere(body),
            _ => guest.ask(body),
        }
        // What was opened wrongly mostly stays so; to look each time takes longer than all else.
        if at % 4 == 3 {
            own.check();
        }
    }
    own.check();
    guest.end();
    drop(guest);
    drop(own);
    assert_eq!(open_descriptors(), before, "descriptors are left open");
    world.check();
}

/// The shared directory, and what is beside it.
struct World {
    base: TempDir,
    secret: fs::Metadata,
}

impl World {
    fn new() -> World {
        let base = tempfile::tempdir().expect("a temporary directory");
        let outside = base.path().join("outside");
        let share = base.path().join("share");
        fs::create_dir(&outside).expect("mkdir");
        fs::write(outside.join("secret"), SECRET).expect("write");
        work::prepare(&share);
        symlink("../outside/secret", share.join("out")).expect("symlink");
        symlink("..", share.join("up")).expect("symlink");
        let secret = fs::metadata(outside.join("secret")).expect("stat");
        World { base, secret }
    }

    fn share(&self) -> PathBuf {
        self.base.path().join("share")
    }

    fn outside(&self) -> PathBuf {
        self.base.path().join("outside")
    }

    /// What another process of the host does in the share.
    fn interfere(&self, body: &[u8]) {
        let mut body = Reader(body);
        let what = body.u8();
        let mut path = || {
            let path = PATHS[usize::from(body.u8()) % PATHS.len()];
            self.share().join(path)
        };
        let (one, other) = (path(), path());
        // The host's own hand must not get out of the share through a symlink that it or the guest has put there.
        let inside = |path: &Path| {
            path.parent()
                .is_some_and(|dir| kind(dir).is_some_and(|kind| kind.is_dir()))
        };
        if !inside(&one) || !inside(&other) {
            return;
        }
        // Whatever is not possible just now is not done.
        let _ = match what % 10 {
            0 => fs::rename(&one, &other),
            1 => replace(&one, |at| symlink(self.outside().join("secret"), at)),
            2 => replace(&one, |at| symlink(self.outside(), at)),
            3 => remove(&one),
            4 if kind(&one).is_none_or(|kind| kind.is_symlink()) => return,
            4 => fs::set_permissions(
                &one,
                fs::Permissions::from_mode([0o777, 0, 0o4755, 0o444][usize::from(what / 10) % 4]),
            ),
            5 => replace(&one, |at| {
                Ok(nix::unistd::mkfifo(at, Mode::from_bits_truncate(0o666))?)
            }),
            6 => replace(&one, |at| fs::create_dir(at)),
            7 => replace(&one, |at| fs::write(at, "the host's")),
            8 => fs::hard_link(&one, &other),
            // /dev/null's number, which anybody may open and nobody notices.
            _ => replace(&one, |at| {
                let mode = Mode::from_bits_truncate(0o666);
                let device = nix::sys::stat::makedev(1, 3);
                Ok(nix::sys::stat::mknod(at, SFlag::S_IFCHR, mode, device)?)
            }),
        };
    }

    /// Nothing outside of the share has changed.
    fn check(&self) {
        let secret = self.outside().join("secret");
        let now = fs::metadata(&secret).expect("the secret is there");
        let attributes = |of: &fs::Metadata| {
            (
                of.mode(),
                of.uid(),
                of.gid(),
                of.nlink(),
                of.ctime(),
                of.ctime_nsec(),
            )
        };
        assert_eq!(
            attributes(&self.secret),
            attributes(&now),
            "the secret was changed"
        );
        assert_eq!(fs::read(&secret).expect("read"), SECRET);
        let names = |dir: &Path| fs::read_dir(dir).expect("readdir").count();
        assert_eq!((names(self.base.path()), names(&self.outside())), (2, 1));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // TempDir cannot remove what is not its user's to write; root need not care.
        let _ = fs::set_permissions(self.share(), fs::Permissions::from_mode(0o700));
    }
}

fn kind(path: &Path) -> Option<fs::FileType> {
    Some(fs::symlink_metadata(path).ok()?.file_type())
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let _ = remove(path);
    make(path)
}

/// What the process has open besides the session's descriptors, so that those can be looked at.
struct Scene {
    secret: u64,
    outside: u64,
    device: u64,
    known: Vec<i32>,
}

impl Scene {
    /// `_session` has been made, and its root is open.
    fn of(world: &World, _session: &Session) -> Scene {
        let outside = fs::metadata(world.outside()).expect("stat");
        Scene {
            secret: world.secret.ino(),
            outside: outside.ino(),
            device: outside.dev(),
            known: (0..DESCRIPTORS).filter(|fd| flags(*fd).is_some()).collect(),
        }
    }

    /// No descriptor is of anything outside of the share, and none of a special file is more than a name.
    fn check(&self) {
        for fd in (0..DESCRIPTORS).filter(|fd| !self.known.contains(fd)) {
            let Some(flags) = flags(fd) else { continue };
            // SAFETY: it was open a moment ago, and this thread alone opens and closes descriptors here.
            let stat = fstat(unsafe { BorrowedFd::borrow_raw(fd) }).expect("fstat");
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            let plain = matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR);
            assert!(
                plain || flags.contains(OFlag::O_PATH),
                "a special file is open: {kind:?}"
            );
            let outside = stat.st_dev == self.device && [self.secret, self.outside].contains(&stat.st_ino);
            assert!(!outside, "something outside of the share is open");
        }
    }
}

fn flags(fd: i32) -> Option<OFlag> {
    // SAFETY: F_GETFL does nothing to a descriptor, and says so when it is none.
    let flags = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFL).ok()?;
    Some(OFlag::from_bits_retain(flags))
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// A session and who calls it.
struct Guest {
    session: Arc<Session>,
    scratch: Scratch,
    reply: Vec<u8>,
}

impl Guest {
    fn new(world: &World, header: [u8; HEADER]) -> Option<Guest> {
        let models = [
            SecurityModel::Passthrough,
            SecurityModel::Squash,
            SecurityModel::MappedXattr,
            SecurityModel::MappedFile,
        ];
        let model = models[usize::from(header[0]) % models.len()];
        let mut options = ShareOptions::new(world.share(), model);
        options.readonly = header[1] & 7 == 7;
        if header[1] & 0x38 == 0x38 {
            options.check_access = CheckAccess::Host;
        }
        // A mode that this file system or this user cannot have.
        let share = Arc::new(Share::open(&options).ok()?);
        let limits = Limits {
            fd_budget: if header[2] & 1 == 0 { 8 } else { 40 },
            max_fids: 64,
            max_xattr_fids: 3,
            max_locks: 6,
            ..Limits::default()
        };
        let mut guest = Guest {
            session: Arc::new(Session::new(share, limits)),
            scratch: Scratch::default(),
            reply: Vec::new(),
        };
        let version = frame(Tversion {
            msize: MSIZE,
            version: VERSION_9P2000_L,
        });
        assert_eq!(guest.call(&version, How::Inline, 100), Some(RVERSION));
        assert_eq!(guest.call(&attach(), How::Inline, 100), Some(RATTACH));
        Some(guest)
    }

    /// Sends the message of a record.
    fn ask(&mut self, body: &[u8]) {
        let mut body = Reader(body);
        let (how, room) = (body.u8(), body.u8());
        let mut message = body.rest().to_vec();
        if how & AS_IT_IS == 0 {
            let len = message.len() as u32;
            if let Some(size) = message.first_chunk_mut() {
                *size = len.to_le_bytes();
            }
        }
        let room = ROOMS.get(usize::from(room)).copied().unwrap_or(usize::from(room));
        let how = [How::Inline, How::Inline, How::Blocking, How::Last][usize::from(how & 3)];
        self.call(&message, how, room);
    }

    /// One message; gives its answer's type, if there was one.
    fn call(&mut self, message: &[u8], mut how: How, room: usize) -> Option<u8> {
        // As a device does it: what is too short to be a message never gets here.
        let head: &[u8; 7] = message.first_chunk()?;
        let (message, payload) = message.split_at(copy_len(head, message.len()));
        let mut payload = payload.to_vec();
        let mut reply = vec![0x5a; room];
        reply.extend(GUARD);
        let (from, to) = (pieces(&mut payload), pieces(&mut reply[..room]));
        let mut progress = 0;
        let len = loop {
            let mut request = Request {
                message,
                payload: &from,
                reply: &to,
                progress: &mut progress,
                slice: SLICE,
            };
            match self.session.handle(&mut request, &mut self.scratch, how) {
                Outcome::Done(len) | Outcome::Flush { len, .. } => break len as usize,
                Outcome::More => {}
                Outcome::Defer => {
                    assert_eq!(how, How::Inline, "only the queue thread's calls are deferred");
                    how = How::Blocking;
                }
                Outcome::Wait { .. } => {
                    assert_ne!(how, How::Last, "there is nothing to wait for any more");
                    how = How::Last;
                }
            }
        };
        assert_eq!(reply[room..], GUARD, "more was written than there is room");
        assert!(len <= room, "{len} bytes in a buffer of {room}");
        reply.truncate(len);
        assert!(!find(&reply, SECRET), "the secret came out");
        self.reply = reply;
        let reply = &self.reply[..];
        if reply.is_empty() {
            return None;
        }
        let (tag, answer) = Rmessage::decode(reply).expect("a reply");
        assert_eq!(tag, u16::from_le_bytes([head[5], head[6]]), "the reply's tag");
        assert!(reply.len() <= MSIZE as usize, "a reply longer than msize");
        if let Rmessage::Lerror(error) = answer {
            assert!((1..134).contains(&error.ecode), "errno {}", error.ecode);
        } else {
            assert_eq!(answer.kind(), head[4] + 1, "the reply's type");
        }
        Some(reply[4])
    }

    /// Tversion leaves nothing, and the share can be mounted again.
    fn end(&mut self) {
        let version = frame(Tversion {
            msize: MSIZE,
            version: VERSION_9P2000_L,
        });
        assert_eq!(self.call(&version, How::Inline, 100), Some(RVERSION));
        assert_eq!(
            self.session.usage(),
            Usage::default(),
            "something is left after Tversion"
        );
        assert_eq!(self.call(&attach(), How::Inline, 100), Some(RATTACH));
        let getattr = frame(Tgetattr {
            fid: 0,
            mask: P9_GETATTR_ALL,
        });
        assert_eq!(self.call(&getattr, How::Inline, 200), Some(RGETATTR));
    }
}

fn find(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

fn attach() -> Vec<u8> {
    frame(Tattach {
        fid: 0,
        afid: NOFID,
        uname: b"",
        aname: b"",
        n_uname: 0,
    })
}

/// A message's bytes.
pub fn frame<'a>(message: impl Into<Tmessage<'a>>) -> Vec<u8> {
    let mut bytes = vec![0; 9000];
    let len = message.into().encode(1, &mut bytes).expect("it fits");
    bytes.truncate(len);
    bytes
}

/// The pieces a guest's buffer may come in: crooked ones, an empty one.
fn pieces(bytes: &mut [u8]) -> Vec<IoVec> {
    let (base, len) = (bytes.as_mut_ptr(), bytes.len());
    let mut list = Vec::new();
    let mut at = 0;
    for size in [11, 0, 100, 4096, 4096, len] {
        let size = size.min(len - at);
        // SAFETY: within `bytes`, which outlives the call that the list is for.
        list.push(unsafe { IoVec::new(base.add(at), size) });
        at += size;
    }
    list
}

/// A session on a share for [`crate::work`], and the script of what is asked of it.
pub struct Recorder {
    guest: Guest,
    script: Script,
    replies: Vec<Vec<u8>>,
    _world: World,
}

impl Recorder {
    /// One whose script begins with `header`.
    ///
    /// # Panics
    /// When such a session cannot be had here.
    pub fn new(header: [u8; HEADER]) -> Recorder {
        let world = World::new();
        let guest = Guest::new(&world, header).expect("a session");
        Recorder {
            guest,
            script: Script {
                header,
                ..Script::default()
            },
            replies: Vec::new(),
            _world: world,
        }
    }

    /// What was answered.
    pub fn replies(&self) -> &[Vec<u8>] {
        &self.replies
    }

    /// The script so far.
    pub fn script(&self) -> &Script {
        &self.script
    }
}

impl Transport for Recorder {
    fn rpc(&mut self, message: &[u8], payload: &[u8], reply_cap: usize) -> Vec<u8> {
        let message = [message, payload].concat();
        let mut body = vec![0, 0];
        body.extend(&message);
        self.script.records.push((MESSAGE, body));
        self.guest.call(&message, How::Inline, reply_cap);
        self.replies.push(self.guest.reply.clone());
        self.guest.reply.clone()
    }
}

/// Changes `data` into another script.
pub fn mutate(data: &mut Vec<u8>, random: &mut Random) {
    let mut script = Script::decode(data);
    script.mutate(random, |random| match random.below(4) {
        0 => (HOST, (0..3).map(|_| random.next() as u8).collect()),
        _ => {
            let mut body = vec![random.next() as u8 & 3, random.below(12) as u8];
            if random.below(8) == 0 {
                body[0] |= AS_IT_IS;
                body.extend(testkit::random::damaged_message(random));
            } else {
                let mut buf = [0; 256];
                let len = testkit::random::message(random, &mut buf);
                body.extend(&buf[..len]);
            }
            (MESSAGE, body)
        }
    });
    *data = script.encode();
}
