//! A session: messages, tried in every way in which a device does, on a temporary directory in any share mode, while
//! the host renames, replaces and removes what they are about.

use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{CheckAccess, IdMaps, IdOptions, IoVec, SecurityModel, Share, ShareOptions};
use server::request::copy_len;
use server::{How, Limits, Outcome, Request, Scratch, Session, Usage};
use testkit::{Random, Transport};
use wire::*;

use crate::script::{HEADER, Reader, Script, parse};
use crate::watchdog;
use crate::world::{PATHS, SECRET, Scene, World, open_descriptors};

/// A message: how it is tried, room for the reply, and its bytes.
pub const MESSAGE: u8 = 0;
/// Something the host does: what, and to which of its paths.
pub const HOST: u8 = 1;

/// A message's size field stays as it is (else it is made right).
pub const AS_IT_IS: u8 = 0x80;

/// Rooms for a reply; the first are the usual ones.
const ROOMS: [usize; 8] = [8192, 8192, 4096, 8192, 160, 64, 11, 7];

const MSIZE: u32 = 8192;
/// Bytes behind a reply buffer, not to be touched.
const GUARD: [u8; 64] = [0xa5; 64];
/// Bytes of a payload that are moved at a time.
const SLICE: usize = 1024;

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
    until("of the session's descriptors", || open_descriptors() == before);
    world.check();
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
        let flag = |bit: u8| header[3] & bit != 0;
        if flag(1) {
            let squash_all = Some("1234:1234".parse().expect("a pair of ids"));
            let ids = IdOptions {
                squash_all,
                ..IdOptions::default()
            };
            options.ids = IdMaps::new(&ids).expect("possible ids");
        }
        options.allow_devices = flag(2);
        options.allow_xattrs.security = flag(4);
        if options.check().is_err() {
            (options.allow_devices, options.allow_xattrs) = Default::default();
        }
        world.allow(options.allow_devices, options.allow_xattrs.security);
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
        // What is much is freed in the background.
        until("after Tversion", || self.session.usage() == Usage::default());
        assert_eq!(self.call(&attach(), How::Inline, 100), Some(RATTACH));
        let getattr = frame(Tgetattr {
            fid: 0,
            mask: P9_GETATTR_ALL,
        });
        assert_eq!(self.call(&getattr, How::Inline, 200), Some(RGETATTR));
    }
}

/// Waits until nothing is left; not for ever.
fn until(what: &str, mut nothing: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !nothing() {
        assert!(Instant::now() < end, "something is left {what}");
        std::thread::sleep(Duration::from_millis(1));
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
    script.mutate(random, |random| match random.below(8) {
        0 | 1 => vec![(HOST, (0..3).map(|_| random.next() as u8).collect())],
        2 | 3 => visit(random),
        _ => vec![any_message(random)],
    });
    *data = script.encode();
}

fn any_message(random: &mut Random) -> (u8, Vec<u8>) {
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

/// Walks somewhere from the root, lets the host do something, and does something there.
fn visit(random: &mut Random) -> Vec<(u8, Vec<u8>)> {
    let fid = 1 + random.below(7) as u32;
    let path = PATHS[random.below(PATHS.len())];
    let mut names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
    if random.below(3) == 0 {
        names.push([&b".."[..], b"a", b"secret", b"outside"][random.below(4)]);
    }
    let flags = [0, 1, 2, 0o1001, 0o2002, 0o200_000][random.below(6)];
    let walk = Twalk {
        fid: 0,
        newfid: fid,
        names: Names::new(&names),
    };
    let act: Tmessage<'_> = match random.below(6) {
        0 | 1 => Tlopen { fid, flags }.into(),
        2 => Tlcreate {
            fid,
            name: b"file",
            flags,
            mode: 0o644,
            gid: 0,
        }
        .into(),
        3 => Treaddir {
            fid,
            offset: 0,
            count: 500,
        }
        .into(),
        4 => Tsetattr {
            fid,
            valid: P9_SETATTR_SIZE | P9_SETATTR_MODE,
            mode: 0o666,
            ..Tsetattr::default()
        }
        .into(),
        _ => Tunlinkat {
            dirfd: fid,
            name: b"secret",
            flags: 0,
        }
        .into(),
    };
    let message = |frame: Vec<u8>| (MESSAGE, [vec![0, 0], frame].concat());
    let mut records = vec![
        message(frame(Tclunk { fid })),
        message(frame(walk)),
        message(frame(act)),
    ];
    if random.below(2) == 0 {
        records.insert(2, (HOST, (0..3).map(|_| random.next() as u8).collect()));
    }
    let read = Tread {
        fid,
        offset: 0,
        count: 100,
    };
    records.push(message(frame(read)));
    records
}
