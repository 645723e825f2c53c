//! Mounts that show a part of a file system: what is moved out of that part has left the mount, and the kernel tells.

use crate::remote::unescape;

/// Whether directories can be moved out of what the mount `id` and those on it show, by the text of
/// /proc/thread-self/mountinfo; `directory` is the path of that mount's root as the kernel shows it. Where one of them shows
/// not all of its file system, they can; so they can, for all that is known, where `id` is not in the text.
pub fn can_be_left(id: Option<u64>, directory: &[u8], mounts: &str) -> bool {
    let mut known = false;
    let part = mounts.lines().any(|line| {
        // Identity, parent, device, root, mount point, and more.
        let mut fields = line.split(' ');
        let own = id.is_some() && fields.next().and_then(|field| field.parse().ok()) == id;
        let (root, point) = (fields.nth(2), fields.next().unwrap_or_default());
        let point = unescape(point);
        let below = point
            .strip_prefix(directory.strip_suffix(b"/").unwrap_or(directory))
            .is_some_and(|rest| rest.first() == Some(&b'/'));
        known |= own;
        (own || below) && root.is_some_and(|root| root != "/")
    });
    part || !known
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                          30 22 8:1 /srv/share /mnt/a\\040part rw - ext4 /dev/sda1 rw\n\
                          31 22 8:2 / /mnt/whole rw - ext4 /dev/sda2 rw\n\
                          32 31 8:1 /etc /mnt/whole/sub rw - ext4 /dev/sda1 rw\n\
                          33 22 8:3 / /mnt/other rw - ext4 /dev/sda3 rw\n\
                          34 33 8:4 / /mnt/other/sub rw - ext4 /dev/sda4 rw\n\
                          torn line\n";

    #[test]
    fn a_part_of_a_file_system_can_be_left_and_a_whole_one_not() {
        for (id, directory, left) in [
            (30, "/mnt/a part", true),
            // A part is mounted on it.
            (31, "/mnt/whole", true),
            (33, "/mnt/other", false),
            (34, "/mnt/other/sub", false),
            // In a namespace of its own, where it is all there is.
            (22, "/", true),
            (99, "/nowhere", true),
        ] {
            assert_eq!(can_be_left(Some(id), directory.as_bytes(), MOUNTS), left, "{id}");
        }
        assert!(can_be_left(None, b"/mnt/other", MOUNTS));
        assert!(can_be_left(Some(33), b"/mnt/other", ""));
        assert!(!can_be_left(Some(1), b"/", "1 1 8:1 / / rw - ext4 /dev/sda1 rw"));
        assert!(can_be_left(
            Some(1),
            b"/",
            "1 1 8:1 /srv/share / rw - ext4 /dev/sda1 rw"
        ));
    }
}
