//! File systems on which any system call may take forever, because somebody else answers it: a server, a cluster, a
//! process.

/// Their `f_type`, of statfs(2) and linux/magic.h; those without a constant there as their own sources have it.
const REMOTE: &[u32] = &[
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x6573_5546, // FUSE
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x7375_7245, // Coda
    0x0102_1997, // 9P
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x0bd0_0bd0, // Lustre
    0x4750_5346, // GPFS
    0x2003_0528, // OrangeFS
    0x0187,      // autofs, until something is mounted
];

/// Whether `f_type` is one of theirs.
pub fn is_remote(f_type: libc::c_long) -> bool {
    // The field is 32 bits wide in some ABIs, and sign-extended in others.
    REMOTE.contains(&(f_type as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ones_are_not_remote() {
        for kind in [
            libc::TMPFS_MAGIC,
            libc::EXT4_SUPER_MAGIC,
            libc::BTRFS_SUPER_MAGIC,
            libc::XFS_SUPER_MAGIC,
        ] {
            assert!(!is_remote(kind), "{kind:x}");
        }
        for kind in [libc::NFS_SUPER_MAGIC, libc::FUSE_SUPER_MAGIC] {
            assert!(is_remote(kind), "{kind:x}");
        }
        assert!(is_remote(0xff53_4d42_u32.cast_signed().into()));
    }
}
