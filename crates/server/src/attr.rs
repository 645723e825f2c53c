//! Tgetattr and Tsetattr.

use host::{Attr, FileType, SetAttr, SetTime, Time};
use wire::{
    P9_GETATTR_BASIC, P9_SETATTR_ATIME, P9_SETATTR_ATIME_SET, P9_SETATTR_CTIME, P9_SETATTR_GID,
    P9_SETATTR_MODE, P9_SETATTR_MTIME, P9_SETATTR_MTIME_SET, P9_SETATTR_SIZE, P9_SETATTR_UID, Rgetattr,
    Rsetattr, Tgetattr, Tsetattr,
};

use crate::failure::Failure;
use crate::pin::NOGID;
use crate::request::How;
use crate::session::Session;
use crate::walk::qid_of;

/// The largest `st_blksize` told: programs make their buffers this large, some of them (Python, cp) on every open.
const BLKSIZE: u32 = 128 * 1024;

impl Session {
    /// All of stat(2). Times of birth, generation and data version are not given, and their bits in `valid` say so:
    /// Linux asks for the generation with every stat, but does not need it.
    pub(crate) fn getattr(&self, m: &Tgetattr, how: How) -> Result<Rgetattr, Failure> {
        let mut attr = Attr::default();
        // What hangs is not asked on the queue thread, so that the lock is not held for long.
        let quick = how == How::Inline && self.share.stats_in_one_call();
        let at_once = match quick {
            true => self.at_once(m.fid, |caller, object| self.share.stat(caller, object, &mut attr)),
            false => None,
        };
        match at_once {
            Some(result) => result?,
            None => {
                let pin = self.pin(m.fid, libc::ENOENT)?;
                pin.is_object()?;
                let caller = pin.caller(NOGID);
                self.named(&pin, |object| self.share.stat(caller, object, &mut attr))?;
            }
        }
        Ok(rgetattr(&attr, self.blksize()))
    }

    /// The least `st_blksize` told: a power of two, as large as a message may be.
    pub(crate) fn blksize(&self) -> u64 {
        let unit = self.iounit().min(BLKSIZE);
        1 << unit.checked_ilog2().unwrap_or(0)
    }

    /// Changes attributes, through the open descriptor when there is one. EINVAL for nanoseconds that are none.
    pub(crate) fn setattr(&self, m: &Tsetattr) -> Result<Rsetattr, Failure> {
        let set = changes(m)?;
        let pin = self.pin(m.fid, libc::EINVAL)?;
        pin.is_object()?;
        if set.size.is_some() {
            // As truncate(2). In the mapped modes these are files on the host, and what is in them is not the guest's to cut.
            match pin.file_type() {
                FileType::Regular => {}
                FileType::Directory => return Err(Failure::new(libc::EISDIR)),
                FileType::Symlink | FileType::Special => return Err(Failure::new(libc::EINVAL)),
            }
        }
        if set != SetAttr::default() {
            let caller = pin.caller(NOGID);
            self.named(&pin, |object| self.share.setattr(caller, object, &set))?;
        }
        Ok(Rsetattr)
    }
}

/// The answer to a Tgetattr; `blksize` is what [`Session::blksize`] gives.
#[inline]
pub(crate) fn rgetattr(attr: &Attr, blksize: u64) -> Rgetattr {
    Rgetattr {
        valid: P9_GETATTR_BASIC,
        qid: qid_of(attr.file_type, attr.version, attr.unique),
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        nlink: attr.nlink,
        rdev: attr.rdev,
        size: attr.size,
        blksize: attr.blksize.max(blksize),
        blocks: attr.blocks,
        atime_sec: attr.atime.sec.cast_unsigned(),
        atime_nsec: attr.atime.nsec.into(),
        mtime_sec: attr.mtime.sec.cast_unsigned(),
        mtime_nsec: attr.mtime.nsec.into(),
        ctime_sec: attr.ctime.sec.cast_unsigned(),
        ctime_nsec: attr.ctime.nsec.into(),
        ..Rgetattr::default()
    }
}

fn time(valid: u32, bit: u32, set_bit: u32, sec: u64, nsec: u64) -> Result<SetTime, Failure> {
    if valid & bit == 0 {
        return Ok(SetTime::Omit);
    }
    if valid & set_bit == 0 {
        return Ok(SetTime::Now);
    }
    // Also keeps the values out that utimensat(2) takes for "now" and "omit".
    match u32::try_from(nsec) {
        Ok(nsec) if nsec < 1_000_000_000 => Ok(SetTime::At(Time {
            sec: sec.cast_signed(),
            nsec,
        })),
        _ => Err(Failure::new(libc::EINVAL)),
    }
}

/// What a Tsetattr asks for. Unknown bits are ignored, as in QEMU.
fn changes(m: &Tsetattr) -> Result<SetAttr, Failure> {
    let has = |bit: u32| m.valid & bit != 0;
    let mut mtime = time(
        m.valid,
        P9_SETATTR_MTIME,
        P9_SETATTR_MTIME_SET,
        m.mtime_sec,
        m.mtime_nsec,
    )?;
    if has(P9_SETATTR_SIZE) && mtime == SetTime::Now {
        // A truncation moves both times by itself. To ask for it once more is not only a waste: setting mtime alone
        // takes the file's owner, while truncating takes no more than the right to write.
        mtime = SetTime::Omit;
    }
    let set = SetAttr {
        mode: has(P9_SETATTR_MODE).then_some(m.mode),
        uid: has(P9_SETATTR_UID).then_some(m.uid),
        gid: has(P9_SETATTR_GID).then_some(m.gid),
        size: has(P9_SETATTR_SIZE).then_some(m.size),
        atime: time(
            m.valid,
            P9_SETATTR_ATIME,
            P9_SETATTR_ATIME_SET,
            m.atime_sec,
            m.atime_nsec,
        )?,
        mtime,
        ctime: has(P9_SETATTR_CTIME),
    };
    // ctime moves with any other change; only on its own it needs a call.
    let alone = SetAttr {
        ctime: true,
        ..SetAttr::default()
    };
    Ok(SetAttr {
        ctime: set == alone,
        ..set
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_needs_no_times() {
        // What Linux sends for open(2) with O_TRUNC.
        let set = changes(&Tsetattr {
            valid: 0x68,
            ..Tsetattr::default()
        });
        let size = Some(0);
        assert_eq!(
            set,
            Ok(SetAttr {
                size,
                ..SetAttr::default()
            })
        );
    }

    #[test]
    fn ctime_counts_alone_only() {
        let of = |valid| {
            changes(&Tsetattr {
                valid,
                ..Tsetattr::default()
            })
        };
        assert!(of(P9_SETATTR_CTIME).is_ok_and(|set| set.ctime));
        assert!(of(P9_SETATTR_CTIME | P9_SETATTR_MODE).is_ok_and(|set| !set.ctime));
        assert_eq!(of(0x8000), Ok(SetAttr::default()));
    }

    #[test]
    fn nanoseconds_are_checked() {
        for nsec in [
            1_000_000_000,
            libc::UTIME_NOW as u64,
            libc::UTIME_OMIT as u64,
            u64::MAX,
        ] {
            let set = changes(&Tsetattr {
                valid: P9_SETATTR_ATIME | P9_SETATTR_ATIME_SET,
                atime_nsec: nsec,
                ..Tsetattr::default()
            });
            assert_eq!(set, Err(Failure::new(libc::EINVAL)));
        }
    }
}
