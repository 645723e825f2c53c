//! vhost-user-9p: shares a host directory with a virtual machine.

fn main() {}
