//! A file system that does not answer: a FUSE mount whose process, this test, keeps every look-up waiting.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use testkit::scenario;
use wire::*;

use crate::program::{Program, answer, frame};

/// Opcodes of linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// A mounted file system, gone with the value.
struct Mount {
    target: CString,
    device: File,
    thread: Option<JoinHandle<()>>,
    /// The look-ups that wait, by their number.
    waiting: Receiver<u64>,
}

impl Mount {
    /// `None` where this process may not mount.
    fn new(target: &Path) -> Option<Mount> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let target = CString::new(target.as_os_str().as_bytes()).expect("a path");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let options = CString::new(options).expect("no NUL");
        // SAFETY: all four are strings that end with NUL and outlive the call.
        let result = unsafe {
            libc::mount(
                c"hung".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        if result != 0 {
            return None;
        }
        let (send, waiting) = channel();
        let copy = device.try_clone().expect("dup");
        Some(Mount {
            target,
            device,
            thread: Some(std::thread::spawn(move || serve(copy, &send))),
            waiting,
        })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Force: what waits is answered with an error, and the thread's read ends.
        // SAFETY: a string that ends with NUL.
        unsafe { libc::umount2(self.target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reply(mut device: &File, unique: u64, error: i32, body: &[u8]) {
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(error.to_ne_bytes());
    message.extend(unique.to_ne_bytes());
    message.extend(body);
    // ENOENT: the request was given up.
    let _ = device.write(&message);
}

/// Answers what concerns the root directory; says of each look-up that it waits.
fn serve(mut device: File, waiting: &Sender<u64>) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut buffer) {
        assert!(len >= 40);
        let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().expect("4 bytes"));
        let unique = u64::from_ne_bytes(buffer[8..16].try_into().expect("8 bytes"));
        match word(4) {
            INIT => {
                let mut body = [0; 64];
                body[0..4].copy_from_slice(&7u32.to_ne_bytes());
                body[4..8].copy_from_slice(&31u32.to_ne_bytes());
                body[20..24].copy_from_slice(&4096u32.to_ne_bytes());
                reply(&device, unique, 0, &body);
            }
            GETATTR => {
                let mut body = [0; 104];
                // Inode 1, a directory for everybody.
                body[16..24].copy_from_slice(&1u64.to_ne_bytes());
                body[76..80].copy_from_slice(&(libc::S_IFDIR | 0o777).to_ne_bytes());
                body[80..84].copy_from_slice(&2u32.to_ne_bytes());
                reply(&device, unique, 0, &body);
            }
            STATFS => reply(&device, unique, 0, &[0; 80]),
            LOOKUP => {
                let _ = waiting.send(unique);
            }
            FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => reply(&device, unique, -libc::ENOSYS, &[]),
        }
    }
}

#[test]
fn a_file_system_that_hangs_holds_up_its_own_requests_only() {
    let program = Program::start(&[]);
    let target = program.share().join("hung");
    fs::create_dir(&target).expect("mkdir");
    let Some(mount) = Mount::new(&target) else {
        println!("left out: no FUSE file system can be mounted here");
        return;
    };
    let mut machine = program.boot(512 << 10);
    machine.client.walk_all(0, 1, &["hung"]).expect("walk");
    let look = Twalk {
        fid: 1,
        newfid: 2,
        names: Names::new(&[b"name"]),
    };
    let token = machine.client.transport().send(&frame(look, 40_000), &[], 4096);
    let unique = mount
        .waiting
        .recv_timeout(testkit::vhost_user::PATIENCE)
        .expect("the look-up is under way");
    scenario::end_to_end(&mut machine.client, &program.share());
    assert!(machine.client.transport().try_reply(token).is_none());
    reply(&mount.device, unique, -libc::EIO, &[]);
    let answered = machine.client.transport().wait(token);
    let Rmessage::Lerror(error) = answer(&answered, 40_000) else {
        panic!("{answered:?}");
    };
    assert_eq!(error.ecode, libc::EIO as u32);
}

#[test]
fn everything_works_where_every_call_may_hang() {
    let program = Program::start(&["--may-hang", "always"]);
    let mut machine = program.boot(512 << 10);
    scenario::end_to_end(&mut machine.client, &program.share());
}
