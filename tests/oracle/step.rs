//! The steps of a sequence, as values and as the text in which they are printed and kept.

use std::fmt;

/// Bytes that print as text: anything but letters, digits and `._-` is `%xx`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn is(&self, text: &str) -> bool {
        self.0 == text.as_bytes()
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Bytes {
        Bytes(text.as_bytes().to_vec())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in &self.0 {
            if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How a field is printed and read.
trait Field: Sized {
    fn show(&self, name: &str) -> String;
    fn parse(text: &str) -> Option<Self>;
}

fn number(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        u64::from_str_radix(digits, 16).ok()
    } else if let Some(digits) = text.strip_prefix("0o") {
        u64::from_str_radix(digits, 8).ok()
    } else {
        text.parse().ok()
    }
}

impl Field for u32 {
    fn show(&self, name: &str) -> String {
        match name {
            "mode" => format!("{self:#o}"),
            "flags" | "valid" => format!("{self:#x}"),
            _ => self.to_string(),
        }
    }
    fn parse(text: &str) -> Option<u32> {
        u32::try_from(number(text)?).ok()
    }
}

impl Field for u64 {
    fn show(&self, _name: &str) -> String {
        self.to_string()
    }
    fn parse(text: &str) -> Option<u64> {
        number(text)
    }
}

impl Field for Bytes {
    fn show(&self, _name: &str) -> String {
        self.to_string()
    }
    fn parse(text: &str) -> Option<Bytes> {
        let mut out = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            if byte == b'%' {
                let (digits, tail) = rest.split_at_checked(2)?;
                rest = tail;
                out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            } else {
                out.push(byte);
            }
        }
        Some(Bytes(out))
    }
}

/// Names with commas between; `%` alone stands for one empty name.
impl Field for Vec<Bytes> {
    fn show(&self, _name: &str) -> String {
        if self.len() == 1 && self[0].0.is_empty() {
            return "%".to_owned();
        }
        let names: Vec<String> = self.iter().map(Bytes::to_string).collect();
        names.join(",")
    }
    fn parse(text: &str) -> Option<Vec<Bytes>> {
        match text {
            "" => Some(Vec::new()),
            "%" => Some(vec![Bytes::default()]),
            _ => text.split(',').map(Bytes::parse).collect(),
        }
    }
}

macro_rules! steps {
    ($($(#[$meta:meta])* $name:ident $verb:literal { $($field:ident: $type:ty),* })*) => {
        /// One request, or one change made by the host; fields are named as in the protocol.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Step { $($(#[$meta])* $name { $($field: $type),* },)* }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Step::$name { $($field),* } => {
                        f.write_str($verb)?;
                        $(write!(f, " {}={}", stringify!($field), $field.show(stringify!($field)))?;)*
                        Ok(())
                    })*
                }
            }
        }

        impl std::str::FromStr for Step {
            type Err = String;
            fn from_str(line: &str) -> Result<Step, String> {
                let mut words = line.split_whitespace();
                let verb = words.next().ok_or("an empty line")?;
                let fields: std::collections::HashMap<&str, &str> =
                    words.filter_map(|word| word.split_once('=')).collect();
                match verb {
                    $($verb => Ok(Step::$name {
                        $($field: fields
                            .get(stringify!($field))
                            .and_then(|text| <$type as Field>::parse(text))
                            .ok_or_else(|| format!("{line}: no good {}", stringify!($field)))?,)*
                    }),)*
                    _ => Err(format!("{line}: unknown step")),
                }
            }
        }
    };
}

steps! {
    Attach "attach" { fid: u32, uid: u32 }
    Walk "walk" { fid: u32, newfid: u32, names: Vec<Bytes> }
    Clunk "clunk" { fid: u32 }
    Remove "remove" { fid: u32 }
    Lopen "lopen" { fid: u32, flags: u32 }
    Lcreate "lcreate" { fid: u32, name: Bytes, flags: u32, mode: u32, gid: u32 }
    Mkdir "mkdir" { dfid: u32, name: Bytes, mode: u32, gid: u32 }
    Mknod "mknod" { dfid: u32, name: Bytes, mode: u32, major: u32, minor: u32, gid: u32 }
    Symlink "symlink" { dfid: u32, name: Bytes, target: Bytes, gid: u32 }
    Link "link" { dfid: u32, fid: u32, name: Bytes }
    Rename "rename" { fid: u32, dfid: u32, name: Bytes }
    Renameat "renameat" { olddirfid: u32, oldname: Bytes, newdirfid: u32, newname: Bytes }
    Unlinkat "unlinkat" { dirfd: u32, name: Bytes, flags: u32 }
    Getattr "getattr" { fid: u32 }
    Setattr "setattr" { fid: u32, valid: u32, mode: u32, uid: u32, gid: u32, size: u64,
        atime_sec: u64, atime_nsec: u64, mtime_sec: u64, mtime_nsec: u64 }
    Readlink "readlink" { fid: u32 }
    Read "read" { fid: u32, offset: u64, count: u32 }
    Write "write" { fid: u32, offset: u64, data: Bytes }
    /// A Twrite of `count` times the same byte.
    Fill "fill" { fid: u32, offset: u64, byte: u32, count: u32 }
    /// The whole directory, by Treaddirs of `count` bytes.
    Readdir "readdir" { fid: u32, count: u32 }
    /// One Treaddir, at an offset that may be no cookie.
    Readpage "readpage" { fid: u32, offset: u64, count: u32 }
    Xattrwalk "xattrwalk" { fid: u32, newfid: u32, name: Bytes }
    Xattrcreate "xattrcreate" { fid: u32, name: Bytes, size: u64, flags: u32 }
    Statfs "statfs" { fid: u32 }
    Fsync "fsync" { fid: u32, datasync: u32 }
    Lock "lock" { fid: u32, kind: u32, flags: u32, start: u64, length: u64, proc_id: u32 }
    Getlock "getlock" { fid: u32, kind: u32, start: u64, length: u64, proc_id: u32 }
    Flush "flush" { oldtag: u32 }
    /// The host makes a file in the share, behind the servers' backs.
    HostFile "hostfile" { path: Bytes, mode: u32, data: Bytes }
    HostDir "hostdir" { path: Bytes, mode: u32 }
    HostSymlink "hostsymlink" { path: Bytes, target: Bytes }
    /// The host removes a file or an empty directory.
    HostRemove "hostremove" { path: Bytes }
}

/// The steps of a text, one a line; `#` starts a comment.
pub fn parse(text: &str) -> Result<Vec<Step>, String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::parse)
        .collect()
}

/// The text of steps, as [`parse`] reads it.
pub fn show(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}
