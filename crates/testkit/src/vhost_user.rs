//! vhost-user messages as a front-end sends them, byte by byte: a library's front-end would refuse to send what a
//! test wants to send, and would wait for ever for an answer that does not come.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::memory::Region;

/// Front-end requests, by the numbers of the vhost-user specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Code {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SetBackendReqFd = 21,
    GetConfig = 24,
    SetConfig = 25,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
}

/// Bits of the protocol features.
#[allow(missing_docs)]
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const DEVICE_STATE: u64 = 1 << 19;
}

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// How long an answer may take. Far beyond what a loaded machine needs: it is there so that a test ends.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A message body under construction: native-endian numbers, one after another.
#[derive(Clone, Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    /// An empty body.
    pub fn new() -> Body {
        Body::default()
    }

    /// Appends a 32-bit number.
    pub fn u32(mut self, value: u32) -> Body {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Appends a 64-bit number.
    pub fn u64(mut self, value: u64) -> Body {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Body {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a memory region's description.
    pub fn region(self, region: &Region) -> Body {
        self.u64(region.gpa())
            .u64(region.len() as u64)
            .u64(region.user_addr())
            .u64(region.offset())
    }
}

/// Who is told of each message before it is sent: code, flags, body, descriptors.
pub type Tap = Box<dyn Fn(u32, u32, &[u8], &[BorrowedFd<'_>]) + Send>;

/// A front-end's end of the connection.
pub struct Socket {
    stream: UnixStream,
    tap: Option<Tap>,
    /// Whether `VHOST_USER_PROTOCOL_F_REPLY_ACK` is negotiated.
    pub reply_ack: bool,
    /// The queue that the vring messages are about.
    pub queue: u32,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("stream", &self.stream)
            .field("reply_ack", &self.reply_ack)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Connects to a back-end that listens at `path`; like the front-ends, it gives one that has just bound its
    /// socket time to listen on it.
    pub fn connect(path: &Path) -> io::Result<Socket> {
        let mut tries = 0;
        loop {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && tries < 100 => tries += 1,
                result => return Socket::new(result?),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Talks over an open stream.
    pub fn new(stream: UnixStream) -> io::Result<Socket> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Socket {
            stream,
            tap: None,
            reply_ack: false,
            queue: 0,
        })
    }

    /// Lets `tap` see all that is sent from now on.
    pub fn set_tap(&mut self, tap: Tap) {
        self.tap = Some(tap);
    }

    /// The stream itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one message with any code and flags.
    pub fn send_raw(&self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if let Some(tap) = &self.tap {
            tap(code, flags, body, fds);
        }
        let size = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut message = Body::new().u32(code).u32(VERSION | flags).u32(size).0;
        message.extend_from_slice(body);
        let fds: Vec<_> = fds.iter().map(BorrowedFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&message)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        if sent != message.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Receives the reply to a message with this code, whole.
    pub fn receive(&self, code: u32) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (got, flags, size) = (word(0), word(4), word(8));
        if got != code || flags & REPLY == 0 || flags & 3 != VERSION || size > 0x1000 {
            let what = format!("message {code} was answered with {got}, flags {flags:#x}, {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut body = vec![0; size as usize];
        (&self.stream).read_exact(&mut body)?;
        Ok(body)
    }

    fn receive_u64(&self, code: u32) -> io::Result<u64> {
        let body = self.receive(code)?;
        let bytes = body.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Sends a message and, when `ack` and the feature is negotiated, asks for and awaits its acknowledgement.
    pub fn tell(&self, code: Code, body: Body, fds: &[BorrowedFd<'_>], ack: bool) -> io::Result<()> {
        let ack = ack && self.reply_ack;
        let flags = if ack { NEED_REPLY } else { 0 };
        self.send_raw(code as u32, flags, &body.0, fds)?;
        if ack {
            let value = self.receive_u64(code as u32)?;
            if value != 0 {
                return Err(io::Error::other(format!("{code:?} was refused: {value}")));
            }
        }
        Ok(())
    }

    /// Sends a message that has a reply of its own; `flagged` as cloud-hypervisor does it, with NEED_REPLY on top.
    pub fn ask(&self, code: Code, body: Body, flagged: bool) -> io::Result<Vec<u8>> {
        let flags = if flagged && self.reply_ack { NEED_REPLY } else { 0 };
        self.send_raw(code as u32, flags, &body.0, &[])?;
        self.receive(code as u32)
    }

    /// As [`Socket::ask`], for a reply of one 64-bit number.
    pub fn ask_u64(&self, code: Code, flagged: bool) -> io::Result<u64> {
        let body = self.ask(code, Body::new(), flagged)?;
        let bytes = body.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// The message that hands over a descriptor for queue 0, or tells that there is none.
    pub fn vring_fd(&self, code: Code, fd: Option<BorrowedFd<'_>>, ack: bool) -> io::Result<()> {
        let value = u64::from(self.queue) | if fd.is_some() { 0 } else { 0x100 };
        let fds: Vec<_> = fd.into_iter().collect();
        self.tell(code, Body::new().u64(value), &fds, ack)
    }

    /// A message about the queue with one number.
    pub fn vring_state(&self, code: Code, number: u32, ack: bool) -> io::Result<()> {
        self.tell(code, Body::new().u32(self.queue).u32(number), &[], ack)
    }

    /// One region, as ADD_MEM_REG and REM_MEM_REG have it.
    pub fn region(&self, code: Code, region: &Region, file: Option<&File>, ack: bool) -> io::Result<()> {
        use std::os::fd::AsFd;
        let fds: Vec<_> = file.map(AsFd::as_fd).into_iter().collect();
        self.tell(code, Body::new().u64(0).region(region), &fds, ack)
    }

    /// Whether the back-end has closed the connection; waits for that up to [`PATIENCE`].
    pub fn closed_by_peer(&self) -> bool {
        let mut byte = [0; 1];
        match (&self.stream).read(&mut byte) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}
