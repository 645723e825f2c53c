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

/// Whether flock(2) takes a byte-range lock there, which is then of the same owner as those of the same description
/// (`F_OFD_SETLK`): the one replaces the other.
pub(crate) fn flock_takes_records(f_type: libc::c_long) -> bool {
    // NFS, SMB, CIFS, SMB2, AFS, 9P
    matches!(
        f_type as u32,
        0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x5346_414f | 0x0102_1997
    )
}

/// The same by name, as mountinfo in /proc has them. Not autofs: what it will mount is seen then.
const REMOTE_NAMES: &[&str] = &[
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "fuseblk", "virtiofs", "ceph", "afs", "coda", "9p",
    "gfs2", "ocfs2", "lustre", "gpfs", "pvfs2",
];

fn is_remote_name(name: &str) -> bool {
    REMOTE_NAMES.contains(&name) || name.starts_with("fuse.")
}

/// Whether such a file system is mounted below `directory` (its path as the kernel shows it), by the text of
/// /proc/thread-self/mountinfo. Nothing is asked of the file systems themselves: already the first look at one may hang.
pub fn mounted_below(directory: &[u8], mounts: &str) -> bool {
    mounts.lines().any(|line| {
        // Identity, parent, device, root, mount point, options, more of them, a hyphen, the type.
        let point = line.split(' ').nth(4).unwrap_or_default();
        let kind = line
            .split_once(" - ")
            .and_then(|(_, rest)| rest.split(' ').next());
        let below = unescape(point)
            .strip_prefix(directory.strip_suffix(b"/").unwrap_or(directory))
            .is_some_and(|rest| rest.first() == Some(&b'/'));
        below && kind.is_some_and(is_remote_name)
    })
}

/// Space, tab, newline and backslash are a backslash and three octal digits there.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'\\'
            && let Some((digits, tail)) = tail.split_at_checked(3)
            && let Some(code) = std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            out.push(code);
            rest = tail;
        } else {
            out.push(byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_below_is_told_from_one_beside() {
        let mounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                      30 22 0:40 / /srv/a\\040b/far rw,relatime shared:2 master:1 - nfs4 host:/x rw\n\
                      31 22 0:41 / /srv/near rw - tmpfs tmpfs rw\n\
                      32 22 0:42 / /home/u/f rw - fuse.sshfs host: rw\n\
                      torn line\n";
        for directory in ["/", "/srv", "/srv/a b", "/home/u"] {
            assert!(mounted_below(directory.as_bytes(), mounts), "{directory}");
        }
        for directory in ["/srv/a", "/srv/near", "/srv/a b/fa", "/home/u/f", "/tmp"] {
            assert!(!mounted_below(directory.as_bytes(), mounts), "{directory}");
        }
        assert!(!mounted_below(b"/", ""));
    }

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
