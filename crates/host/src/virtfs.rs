//! What the mapped modes keep beside an object, and the two forms in which QEMU writes it: four xattrs, or a
//! few lines of text.

use std::ffi::CStr;

/// What a mapped mode keeps of an object; what is missing shows through from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Full `st_mode`, type bits included.
    pub mode: Option<u32>,
    /// Device number, glibc's `dev_t` encoding.
    pub rdev: Option<u64>,
}

impl Kept {
    /// Nothing at all.
    pub const NOTHING: Kept = Kept {
        uid: None,
        gid: None,
        mode: None,
        rdev: None,
    };

    /// These, where `newer` says nothing, else what it says.
    pub fn merged(self, newer: Kept) -> Kept {
        Kept {
            uid: newer.uid.or(self.uid),
            gid: newer.gid.or(self.gid),
            mode: newer.mode.or(self.mode),
            rdev: newer.rdev.or(self.rdev),
        }
    }

    /// The whole mode that the guest sees of an object whose host mode is `host`.
    ///
    /// Permission bits are the kept ones. The kept type counts only on a regular host file, where the mapped
    /// modes keep symlinks and special files, and only when it is one that such a file can stand for: a
    /// host-made directory, symlink or device stays one whatever its metadata say, and a mode without type
    /// bits (QEMU stores what a chmod sends) does not turn a file into nothing.
    pub fn guest_mode(&self, host: u32) -> u32 {
        let Some(mode) = self.mode else { return host };
        let host_type = host & libc::S_IFMT;
        let kept_type = match mode & libc::S_IFMT {
            t @ (libc::S_IFREG
            | libc::S_IFLNK
            | libc::S_IFCHR
            | libc::S_IFBLK
            | libc::S_IFIFO
            | libc::S_IFSOCK)
                if host_type == libc::S_IFREG =>
            {
                t
            }
            _ => host_type,
        };
        kept_type | (mode & 0o7777)
    }
}

/// `id` as QEMU keeps it: `u32::MAX` names nobody and is not written.
pub fn some_id(id: u32) -> Option<u32> {
    (id != u32::MAX).then_some(id)
}

/// The four xattrs, in QEMU's order of writing.
pub mod xattr {
    use super::{CStr, Kept};

    /// Owner, u32 little endian.
    pub const UID: &CStr = c"user.virtfs.uid";
    /// Group, u32 little endian.
    pub const GID: &CStr = c"user.virtfs.gid";
    /// Full `st_mode`, u32 little endian.
    pub const MODE: &CStr = c"user.virtfs.mode";
    /// glibc's `dev_t`, u64 little endian.
    pub const RDEV: &CStr = c"user.virtfs.rdev";
    /// Under this prefix nothing belongs to the guest.
    pub const PREFIX: &[u8] = b"user.virtfs.";

    /// A u32 of exactly four bytes. QEMU takes shorter values too and then shows what was in its memory.
    pub fn id(value: &[u8]) -> Option<u32> {
        value.try_into().ok().map(u32::from_le_bytes)
    }

    /// A u64 of exactly eight bytes.
    pub fn rdev(value: &[u8]) -> Option<u64> {
        value.try_into().ok().map(u64::from_le_bytes)
    }

    /// Calls `set` with name and value of each xattr that `kept` asks for; stops at the first error.
    pub fn each<E>(kept: &Kept, mut set: impl FnMut(&'static CStr, &[u8]) -> Result<(), E>) -> Result<(), E> {
        for (name, value) in [(UID, kept.uid), (GID, kept.gid), (MODE, kept.mode)] {
            if let Some(value) = value {
                set(name, &value.to_le_bytes())?;
            }
        }
        if let Some(rdev) = kept.rdev {
            set(RDEV, &rdev.to_le_bytes())?;
        }
        Ok(())
    }
}

/// The lines of a file in `.virtfs_metadata`.
pub mod text {
    use super::Kept;

    /// No file that QEMU or this module writes is longer: four lines with the longest numbers are 83 bytes.
    pub const LONGEST: usize = 96;
    /// How much of a file is read; hand-made ones may be longer than [`LONGEST`], but never sensibly so.
    pub const READ: usize = 1024;

    /// QEMU reads lines with fgets() into a buffer of 100 bytes.
    const LINE: usize = 99;

    /// Reads metadata text. Any order, the last line of a kind counts, unknown lines are ignored, the character
    /// after the key is not looked at: all as QEMU does. A line without a number (a file torn by a crash) says
    /// nothing, where QEMU would read 0 and give the object to root; so does -1, as it does in writing.
    pub fn parse(text: &[u8]) -> Kept {
        let mut kept = Kept::NOTHING;
        for line in text.split(|&b| b == b'\n').flat_map(|line| line.chunks(LINE)) {
            let id = |at: usize| number(line.get(at..).unwrap_or_default());
            if line.starts_with(b"virtfs.uid") {
                kept.uid = id(11).or(kept.uid);
            } else if line.starts_with(b"virtfs.gid") {
                kept.gid = id(11).or(kept.gid);
            } else if line.starts_with(b"virtfs.mode") {
                kept.mode = id(12).or(kept.mode);
            } else if line.starts_with(b"virtfs.rdev") {
                kept.rdev = id(12).map(u64::from).or(kept.rdev);
            }
        }
        kept
    }

    /// atoi(3) on glibc: white space, a sign, digits, cut to 32 bits.
    fn number(text: &[u8]) -> Option<u32> {
        let text = text.trim_ascii_start();
        let (negative, digits) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            Some((b'+', rest)) => (false, rest),
            _ => (false, text),
        };
        let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
        let mut value = 0i64;
        for &digit in digits.get(..len).filter(|d| !d.is_empty())? {
            value = value.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
        }
        // strtol() gives a long; atoi() keeps its low half.
        let value = if negative { value.wrapping_neg() } else { value } as u32;
        super::some_id(value)
    }

    /// Metadata text as QEMU's fprintf() writes it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Text {
        bytes: [u8; LONGEST],
        len: usize,
    }

    impl Text {
        /// The text for `kept`: decimal, signed 32 bits, in QEMU's order, without the lines of what is missing.
        pub fn new(kept: &Kept) -> Text {
            let mut text = Text {
                bytes: [0; LONGEST],
                len: 0,
            };
            // QEMU keeps 32 bits of a device number, which is all that Linux guests use.
            let rdev = kept.rdev.map(|rdev| rdev as u32);
            for (key, value) in [
                ("virtfs.uid=", kept.uid),
                ("virtfs.gid=", kept.gid),
                ("virtfs.mode=", kept.mode),
                ("virtfs.rdev=", rdev),
            ] {
                // -1 is QEMU's own "not there".
                if let Some(value) = value.and_then(super::some_id) {
                    let mut rest = text.bytes.get_mut(text.len..).unwrap_or_default();
                    let before = rest.len();
                    if std::io::Write::write_fmt(&mut rest, format_args!("{key}{}\n", value as i32)).is_ok() {
                        text.len += before - rest.len();
                    }
                }
            }
            text
        }

        /// The bytes of the file.
        pub fn as_bytes(&self) -> &[u8] {
            self.bytes.get(..self.len).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::text::{LONGEST, Text, parse};
    use super::*;
    use proptest::prelude::*;

    fn kept(uid: u32, gid: u32, mode: u32) -> Kept {
        Kept {
            uid: Some(uid),
            gid: Some(gid),
            mode: Some(mode),
            rdev: None,
        }
    }

    #[test]
    fn xattr_values_are_byte_for_byte_qemus() {
        let mut all = Vec::new();
        let object = Kept {
            rdev: Some(libc::makedev(8, 1)),
            ..kept(1000, 100, 0o20660)
        };
        xattr::each(&object, |name, value| {
            all.push((name.to_str().unwrap(), value.to_vec()));
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(
            all,
            [
                ("user.virtfs.uid", vec![0xe8, 3, 0, 0]),
                ("user.virtfs.gid", vec![0x64, 0, 0, 0]),
                ("user.virtfs.mode", vec![0xb0, 0x21, 0, 0]),
                ("user.virtfs.rdev", vec![1, 8, 0, 0, 0, 0, 0, 0]),
            ]
        );
        assert_eq!(0o100644u32.to_le_bytes(), [0xa4, 0x81, 0, 0]);
        assert_eq!(0o120777u32.to_le_bytes(), [0xff, 0xa1, 0, 0]);
        assert_eq!(0o40755u32.to_le_bytes(), [0xed, 0x41, 0, 0]);
    }

    #[test]
    fn xattr_values_of_another_length_say_nothing() {
        assert_eq!(xattr::id(&[0xe8, 3, 0, 0]), Some(1000));
        for odd in [&[][..], &[1, 2, 3], &[1, 2, 3, 4, 5]] {
            assert_eq!(xattr::id(odd), None);
            assert_eq!(xattr::rdev(odd), None);
        }
        assert_eq!(xattr::rdev(&[1, 8, 0, 0, 0, 0, 0, 0]), Some(0x801));
    }

    #[test]
    fn text_is_byte_for_byte_qemus() {
        assert_eq!(
            Text::new(&kept(1000, 1000, 0o100644)).as_bytes(),
            b"virtfs.uid=1000\nvirtfs.gid=1000\nvirtfs.mode=33188\n"
        );
        let device = Kept {
            rdev: Some(libc::makedev(8, 1)),
            ..kept(0, u32::MAX - 1, 0o60660)
        };
        assert_eq!(
            Text::new(&device).as_bytes(),
            b"virtfs.uid=0\nvirtfs.gid=-2\nvirtfs.mode=25008\nvirtfs.rdev=2049\n"
        );
        let mode_only = Kept {
            mode: Some(0o40755),
            rdev: Some(0),
            ..Kept::NOTHING
        };
        assert_eq!(
            Text::new(&mode_only).as_bytes(),
            b"virtfs.mode=16877\nvirtfs.rdev=0\n"
        );
        assert_eq!(Text::new(&Kept::NOTHING).as_bytes(), b"");
        let longest = Kept {
            uid: Some(1 << 31),
            gid: Some(1 << 31),
            mode: Some(1 << 31),
            rdev: Some(1 << 31),
        };
        assert!(
            Text::new(&longest)
                .as_bytes()
                .ends_with(b"virtfs.rdev=-2147483648\n")
        );
        assert!(Text::new(&longest).as_bytes().len() < LONGEST);
    }

    #[test]
    fn text_is_read_as_qemu_reads_it() {
        let plain = parse(b"virtfs.uid=1000\nvirtfs.gid=1000\nvirtfs.mode=33188\n");
        assert_eq!(plain, kept(1000, 1000, 0o100644));
        // Any order, unknown lines, blank lines, the last one counts, no newline at the end.
        let odd = parse(b"virtfs.mode=33188\n\nvirtfs.what=3\nvirtfs.gid= 7x\nvirtfs.uid=5\nvirtfs.uid=-2");
        assert_eq!(odd, kept(u32::MAX - 1, 7, 0o100644));
        assert_eq!(parse(b"virtfs.rdev=2049\n").rdev, Some(0x801));
        // Beyond 99 bytes a line is two lines.
        let mut long = vec![b'x'; 99];
        long.extend(b"virtfs.uid=3\n");
        assert_eq!(parse(&long).uid, Some(3));
    }

    #[test]
    fn torn_text_says_nothing_rather_than_root() {
        for torn in [
            &b""[..],
            b"virtfs.ui",
            b"virtfs.uid",
            b"virtfs.uid=",
            b"virtfs.uid=\n",
            b"virtfs.uid=-1\n",
        ] {
            assert_eq!(parse(torn), Kept::NOTHING, "{}", torn.escape_ascii());
        }
    }

    #[test]
    fn a_type_is_never_lost_and_never_contradicts_the_host() {
        let with = |mode| Kept {
            mode: Some(mode),
            ..Kept::NOTHING
        };
        assert_eq!(Kept::NOTHING.guest_mode(0o100600), 0o100600);
        assert_eq!(with(0o644).guest_mode(0o100600), 0o100644);
        assert_eq!(with(0o755).guest_mode(0o40700), 0o40755);
        assert_eq!(with(0o120777).guest_mode(0o100600), 0o120777);
        assert_eq!(with(0o20660).guest_mode(0o100600), 0o20660);
        assert_eq!(with(0o40755).guest_mode(0o100600), 0o100755);
        assert_eq!(with(0o100644).guest_mode(0o40700), 0o40644);
        assert_eq!(with(0o100644).guest_mode(0o120777), 0o120644);
        assert_eq!(with(0o104755).guest_mode(0o100600), 0o104755);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(uid in proptest::option::of(0..u32::MAX), gid in proptest::option::of(0..u32::MAX),
            mode in proptest::option::of(0..u32::MAX), rdev in proptest::option::of(0..u32::MAX)) {
            let kept = Kept { uid, gid, mode, rdev: rdev.map(u64::from) };
            let text = Text::new(&kept);
            prop_assert!(text.as_bytes().len() < LONGEST);
            prop_assert_eq!(parse(text.as_bytes()), kept);
            // Padding with blank lines, which a crash in mid-rewrite can leave, changes nothing.
            let mut padded = text.as_bytes().to_vec();
            padded.extend([b'\n'; 20]);
            prop_assert_eq!(parse(&padded), kept);
        }

        #[test]
        fn any_text_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), lines in "(virtfs\\.(uid|gid|mode|rdev)[=x]?[ +-]?[0-9]{0,25}\n?){0,6}") {
            let _ = parse(&bytes);
            let _ = parse(lines.as_bytes());
        }
    }
}
