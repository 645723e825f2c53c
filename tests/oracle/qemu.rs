//! QEMU's virtio-9p as a server.

use std::path::Path;

use testkit::{Pages, QtestDevice, QtestOptions, RingTransport, Transport, find_qemu};

use crate::ask::{MSIZE, Server};
use crate::rules::Mode;

pub struct Qemu {
    transport: RingTransport,
    _device: QtestDevice,
}

impl Qemu {
    pub fn start(directory: &Path, mode: Mode) -> Qemu {
        let program = find_qemu().expect("no QEMU: run scripts/setup, or set VHOST_USER_9P_QEMU");
        let options = QtestOptions::new(program, directory, mode.qemu());
        let (device, ring) = QtestDevice::start(&options).expect("QEMU under qtest");
        let transport = RingTransport::new(device.memory(), ring, MSIZE as usize, Pages::Adjacent);
        Qemu {
            transport,
            _device: device,
        }
    }
}

impl Server for Qemu {
    fn rpc(&mut self, frame: &[u8]) -> Vec<u8> {
        send(&mut self.transport, frame)
    }

    fn name(&self) -> &str {
        "QEMU"
    }
}

/// Splits a frame as Linux's client does: a Twrite's payload apart, room for what a Tread asks for.
pub fn send(transport: &mut dyn Transport, frame: &[u8]) -> Vec<u8> {
    let field = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("4 bytes"));
    match frame[4] {
        wire::TWRITE => transport.rpc(&frame[..23], &frame[23..], 4096),
        wire::TREAD | wire::TREADDIR => transport.rpc(frame, &[], 11 + field(19) as usize),
        _ => transport.rpc(frame, &[], 8192),
    }
}
