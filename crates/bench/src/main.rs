//! Times this backend, QEMU's own virtio-9p and virtiofsd side by side with one driver at the ring.

fn main() {}
