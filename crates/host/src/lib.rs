//! The shared directory as the host has it.
//!
//! Objects are file descriptors, never path strings: an `O_PATH` descriptor names an object, a second
//! descriptor reads or writes it. [`Share`] is what the server calls; behind it one [`ShareMode`] per
//! security model decides how owner, mode and special files are kept. Every system call is in `sys`.
//! Nothing here knows of 9P or virtio.

pub mod acl;
pub mod attr;
pub mod context;
pub mod creds;
mod explain;
mod host_objects;
pub mod identity;
pub mod idmap;
pub mod iovec;
mod mapped;
pub mod mapped_file;
pub mod mapped_xattr;
pub mod mode;
mod mount_ids;
pub mod name;
pub mod options;
mod part;
mod passthrough;
mod remote;
pub mod share;
mod shown;
mod squash;
mod surroundings;
pub mod sys;
pub mod types;
pub mod users;
mod version;
pub mod virtfs;

pub use attr::{Attr, Caller, FileType, Identity, SetAttr, SetTime, StatFs, Time};
pub use context::Context;
pub use idmap::{IdMaps, IdOptions, IdPair, IdRange, IdSpan};
pub use iovec::IoVec;
pub use mode::ShareMode;
pub use mount_ids::{adopt, takes_ids};
pub use name::{Name, NameError};
pub use options::{CheckAccess, FileHandles, KernelXattrs, MayHang, MultiDevs, SecurityModel, ShareOptions};
pub use share::{Access, At, DirEntry, Handle, Listing, LockFile, Object, Opened, Share};
pub use shown::Shown;
pub use surroundings::{MountList, Surroundings};
pub use sys::close;
pub use users::Users;
