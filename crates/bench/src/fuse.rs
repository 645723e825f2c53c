//! The FUSE messages that virtiofsd answers, as far as the benchmark needs them (protocol 7.31, `linux/fuse.h`).

/// Bytes of `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Bytes of `fuse_entry_out`.
pub const ENTRY_OUT: usize = 128;
/// Bytes of `fuse_attr_out`.
pub const ATTR_OUT: usize = 104;
/// Bytes of `fuse_open_out`.
pub const OPEN_OUT: usize = 16;
/// The node that every mount begins with.
pub const ROOT: u64 = 1;
/// Where `nodeid` stands in the reply to LOOKUP and CREATE.
pub const ENTRY_NODE_AT: usize = OUT_HEADER;
/// Where `fh` stands in the reply to CREATE.
pub const CREATE_HANDLE_AT: usize = OUT_HEADER + ENTRY_OUT;
/// Where `fh` stands in the reply to OPEN and OPENDIR.
pub const OPEN_HANDLE_AT: usize = OUT_HEADER;
/// Where `nodeid` stands in a request.
pub const NODE_AT: usize = 16;
/// Where `fh` stands in READ, WRITE, RELEASE and READDIR.
pub const HANDLE_AT: usize = IN_HEADER;

fn request(opcode: u32, node: u64, body: &[&[u8]], payload: usize) -> Vec<u8> {
    let length: usize = IN_HEADER + body.iter().map(|b| b.len()).sum::<usize>();
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&u32::try_from(length + payload).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&opcode.to_le_bytes());
    out.extend_from_slice(&1u64.to_le_bytes()); // unique
    out.extend_from_slice(&node.to_le_bytes());
    out.extend_from_slice(&[0; 16]); // uid, gid, pid, total_extlen, padding: root
    for part in body {
        out.extend_from_slice(part);
    }
    out
}

fn name(bytes: &str) -> Vec<u8> {
    let mut out = bytes.as_bytes().to_vec();
    out.push(0);
    out
}

/// FUSE_INIT without optional features.
pub fn init() -> Vec<u8> {
    let mut body = [0u8; 64];
    body[..4].copy_from_slice(&7u32.to_le_bytes());
    body[4..8].copy_from_slice(&31u32.to_le_bytes());
    body[8..12].copy_from_slice(&(1u32 << 20).to_le_bytes()); // max_readahead
    // FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES: what lets one request carry 512 KiB.
    body[12..16].copy_from_slice(&(1u32 | 1 << 5 | 1 << 22).to_le_bytes());
    request(26, 0, &[&body], 0)
}

/// FUSE_LOOKUP.
pub fn lookup(parent: u64, entry: &str) -> Vec<u8> {
    request(1, parent, &[&name(entry)], 0)
}

/// FUSE_GETATTR without a handle.
pub fn getattr(node: u64) -> Vec<u8> {
    request(3, node, &[&[0; 16]], 0)
}

/// FUSE_SETATTR of the mode alone.
pub fn chmod(node: u64, mode: u32) -> Vec<u8> {
    let mut body = [0u8; 88];
    body[..4].copy_from_slice(&1u32.to_le_bytes()); // FATTR_MODE
    body[68..72].copy_from_slice(&mode.to_le_bytes());
    request(4, node, &[&body], 0)
}

/// FUSE_UNLINK.
pub fn unlink(parent: u64, entry: &str) -> Vec<u8> {
    request(10, parent, &[&name(entry)], 0)
}

/// FUSE_OPEN with Linux open flags.
pub fn open(node: u64, flags: u32) -> Vec<u8> {
    request(14, node, &[&flags.to_le_bytes(), &[0; 4]], 0)
}

/// FUSE_READ.
pub fn read(node: u64, handle: u64, offset: u64, size: u32) -> Vec<u8> {
    io(15, node, handle, offset, size, 0)
}

/// FUSE_WRITE; the payload follows in further descriptors.
pub fn write(node: u64, handle: u64, offset: u64, size: u32) -> Vec<u8> {
    io(16, node, handle, offset, size, size as usize)
}

/// FUSE_READDIR.
pub fn readdir(node: u64, handle: u64, offset: u64, size: u32) -> Vec<u8> {
    io(28, node, handle, offset, size, 0)
}

fn io(opcode: u32, node: u64, handle: u64, offset: u64, size: u32, payload: usize) -> Vec<u8> {
    let body: [&[u8]; 4] = [
        &handle.to_le_bytes(),
        &offset.to_le_bytes(),
        &size.to_le_bytes(),
        &[0; 20],
    ];
    request(opcode, node, &body, payload)
}

/// FUSE_RELEASE.
pub fn release(node: u64, handle: u64) -> Vec<u8> {
    request(18, node, &[&handle.to_le_bytes(), &[0; 16]], 0)
}

/// FUSE_OPENDIR.
pub fn opendir(node: u64) -> Vec<u8> {
    request(27, node, &[&[0; 8]], 0)
}

/// FUSE_CREATE.
pub fn create(parent: u64, entry: &str, flags: u32, mode: u32) -> Vec<u8> {
    request(
        35,
        parent,
        &[&flags.to_le_bytes(), &mode.to_le_bytes(), &[0; 8], &name(entry)],
        0,
    )
}
