//! Plain records: what an object is, who asks, and what shall change.

/// A point in time as `struct statx_timestamp` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since the epoch; negative before it.
    pub sec: i64,
    /// Nanoseconds, 0..=999_999_999.
    pub nsec: u32,
}

/// What kind of object the guest sees (a mapped mode may keep a device in a regular host file).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileType {
    /// `S_IFREG`
    #[default]
    Regular,
    /// `S_IFDIR`
    Directory,
    /// `S_IFLNK`
    Symlink,
    /// `S_IFCHR`, `S_IFBLK`, `S_IFIFO` or `S_IFSOCK`
    Special,
}

impl FileType {
    /// The type encoded in `st_mode`.
    pub fn from_mode(mode: u32) -> FileType {
        match mode & libc::S_IFMT {
            libc::S_IFREG => FileType::Regular,
            libc::S_IFDIR => FileType::Directory,
            libc::S_IFLNK => FileType::Symlink,
            _ => FileType::Special,
        }
    }
}

/// Which object this is, and which state of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Host device number.
    pub dev: u64,
    /// Host inode number.
    pub ino: u64,
    /// When the object was made, which tells it from a later one with the same inode number; zero where the file
    /// system does not know.
    pub birth: Time,
    /// Whether it is known to be on the shared directory's own mount, and not on one below.
    pub at_home: bool,
    /// Unique over all devices in the share and stable across restarts; becomes `qid.path`.
    pub unique: u64,
    /// Changes whenever content changes, never 0; becomes `qid.version`.
    pub version: u32,
    /// `S_IFMT` bits of the HOST object (a device in a mapped mode is a regular file here).
    pub host_type: u32,
    /// What the guest sees.
    pub file_type: FileType,
}

/// Attributes as the guest sees them (mode, ids and rdev already mapped).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// As [`Identity::unique`].
    pub unique: u64,
    /// As [`Identity::version`].
    pub version: u32,
    /// As [`Identity::file_type`].
    pub file_type: FileType,
    /// Full `st_mode`, type bits included.
    pub mode: u32,
    /// Owner, guest's number.
    pub uid: u32,
    /// Group, guest's number.
    pub gid: u32,
    /// Hard links.
    pub nlink: u64,
    /// Device number in glibc's `dev_t` encoding, which is what Linux's client decodes.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Preferred I/O size, bytes.
    pub blksize: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last content change.
    pub mtime: Time,
    /// Last status change.
    pub ctime: Time,
}

/// How a timestamp shall change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Omit,
    /// The host's current time.
    Now,
    /// This time.
    At(Time),
}

/// What shall change; the order of application is: size, mode, owner, times
/// (a size change moves mtime, so times come last; see `Share::setattr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New mode; type bits as the client sent them (Linux sends them, others may not).
    pub mode: Option<u32>,
    /// New owner, guest's number.
    pub uid: Option<u32>,
    /// New group, guest's number.
    pub gid: Option<u32>,
    /// New size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
    /// Move ctime (implied by any other change; alone it is a chown(-1, -1)).
    pub ctime: bool,
}

/// Who asks, in the guest's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// `n_uname` of the attach this fid descends from; `u32::MAX` when the mount named nobody.
    pub uid: u32,
    /// gid of a creating message; `u32::MAX` otherwise.
    pub gid: u32,
}

/// `statfs` as 9P wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// File system magic of the host.
    pub kind: u32,
    /// Block size, bytes.
    pub bsize: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free for users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// File system id.
    pub fsid: u64,
    /// Longest name.
    pub namelen: u32,
}
