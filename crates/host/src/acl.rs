//! POSIX ACLs as the kernel's xattrs carry them: a version word and entries of tag, permissions and id.
//!
//! The ids inside are ids of the guest on the wire and ids of the host on disk, so they go through the id
//! maps like an owner does. The layout is `struct posix_acl_xattr_header` and `posix_acl_xattr_entry` of
//! linux/posix_acl_xattr.h, little endian.

use std::ffi::CStr;
use std::io;

use crate::idmap::{IdMaps, NO_ID};

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The xattr of the ACL that decides on access.
pub const ACCESS: &CStr = c"system.posix_acl_access";
/// The xattr of the ACL that new objects in a directory inherit.
pub const DEFAULT: &CStr = c"system.posix_acl_default";

/// Whether an xattr of this name carries an ACL.
pub fn is_acl(name: &CStr) -> bool {
    name == ACCESS || name == DEFAULT
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// Checks the form of an ACL as the kernel's posix_acl_from_xattr() does: EINVAL for a length that is no
/// header and whole entries, another version, an unknown tag, and a named entry without an id.
pub fn check(blob: &[u8]) -> io::Result<()> {
    rewrite(blob, &mut |_, _| {}, &Ok, &Ok)
}

/// Turns the guest's ids in `blob` into the host's, in place. EINVAL as [`check`]; EPERM when a named id has
/// no counterpart or is forbidden. `blob` is unspecified after an error.
pub fn to_host(blob: &mut [u8], maps: &IdMaps) -> io::Result<()> {
    translate(blob, &|id| maps.uid_to_host(id), &|id| maps.gid_to_host(id))
}

/// Turns the host's ids in `blob` into the guest's, in place; unmapped ids become the overflow id. EINVAL as
/// [`check`].
pub fn to_guest(blob: &mut [u8], maps: &IdMaps) -> io::Result<()> {
    translate(blob, &|id| Ok(maps.uid_to_guest(id)), &|id| {
        Ok(maps.gid_to_guest(id))
    })
}

type Change<'a> = &'a dyn Fn(u32) -> io::Result<u32>;

fn translate(blob: &mut [u8], uid: Change<'_>, gid: Change<'_>) -> io::Result<()> {
    let mut ids = Vec::new();
    rewrite(blob, &mut |at, id| ids.push((at, id)), uid, gid)?;
    for (at, id) in ids {
        if let Some(place) = blob.get_mut(at..at + 4) {
            place.copy_from_slice(&u32::to_le_bytes(id));
        }
    }
    Ok(())
}

/// Walks over the entries; `put` gets the place and the new value of each id that names somebody.
fn rewrite(blob: &[u8], put: &mut dyn FnMut(usize, u32), uid: Change<'_>, gid: Change<'_>) -> io::Result<()> {
    let (header, entries) = blob.split_first_chunk::<HEADER>().ok_or_else(invalid)?;
    if u32::from_le_bytes(*header) != VERSION {
        return Err(invalid());
    }
    let (entries, rest) = entries.as_chunks::<ENTRY>();
    if !rest.is_empty() {
        return Err(invalid());
    }
    for (index, &[t0, t1, p0, p1, i0, i1, i2, i3]) in entries.iter().enumerate() {
        if u16::from_le_bytes([p0, p1]) & !7 != 0 {
            return Err(invalid());
        }
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        let change = match u16::from_le_bytes([t0, t1]) {
            USER_OBJ | GROUP_OBJ | MASK | OTHER => continue,
            USER => uid,
            GROUP => gid,
            _ => return Err(invalid()),
        };
        if id == NO_ID {
            return Err(invalid());
        }
        put(HEADER + index * ENTRY + 4, change(id)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::{IdOptions, IdRange, OVERFLOW_ID};
    use proptest::prelude::*;

    fn blob(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for &(tag, perm, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    }

    fn maps() -> IdMaps {
        let range = |text: &str| text.parse::<IdRange>().unwrap();
        IdMaps::new(&IdOptions {
            uid_map: vec![range("0:100000:2000")],
            gid_map: vec![range("0:200000:2000")],
            ..IdOptions::default()
        })
        .unwrap()
    }

    #[test]
    fn named_ids_are_mapped_both_ways_and_nothing_else_is() {
        let guest = blob(&[
            (USER_OBJ, 6, NO_ID),
            (USER, 7, 1000),
            (GROUP_OBJ, 4, NO_ID),
            (GROUP, 5, 0),
            (MASK, 7, NO_ID),
            (OTHER, 0, NO_ID),
        ]);
        let host = blob(&[
            (USER_OBJ, 6, NO_ID),
            (USER, 7, 101_000),
            (GROUP_OBJ, 4, NO_ID),
            (GROUP, 5, 200_000),
            (MASK, 7, NO_ID),
            (OTHER, 0, NO_ID),
        ]);
        let mut work = guest.clone();
        to_host(&mut work, &maps()).unwrap();
        assert_eq!(work, host);
        to_guest(&mut work, &maps()).unwrap();
        assert_eq!(work, guest);
    }

    #[test]
    fn an_id_without_counterpart_is_refused_inwards_and_overflows_outwards() {
        let mut work = blob(&[(USER, 7, 5000)]);
        assert_eq!(
            to_host(&mut work, &maps()).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        let mut work = blob(&[(USER, 7, 5000)]);
        to_guest(&mut work, &maps()).unwrap();
        assert_eq!(work, blob(&[(USER, 7, OVERFLOW_ID)]));
    }

    #[test]
    fn malformed_blobs_are_invalid() {
        let good = blob(&[(USER_OBJ, 6, NO_ID), (GROUP_OBJ, 6, NO_ID), (OTHER, 4, NO_ID)]);
        check(&good).unwrap();
        let mut other_version = good.clone();
        other_version[0] = 1;
        for bad in [
            Vec::new(),
            vec![2, 0, 0],
            good[..good.len() - 1].to_vec(),
            other_version,
            blob(&[(0x40, 6, NO_ID)]),
            blob(&[(USER_OBJ, 8, NO_ID)]),
            blob(&[(USER, 6, NO_ID)]),
        ] {
            assert_eq!(
                check(&bad).unwrap_err().raw_os_error(),
                Some(libc::EINVAL),
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = check(&bytes);
            let _ = to_host(&mut bytes, &maps());
            let _ = to_guest(&mut bytes, &maps());
        }

        #[test]
        fn mapping_there_and_back_is_nothing(
            entries in proptest::collection::vec((prop_oneof![Just(USER), Just(GROUP), Just(MASK)], 0u16..8, 0u32..2000), 0..20)
        ) {
            let before = blob(&entries);
            let mut work = before.clone();
            to_host(&mut work, &maps()).unwrap();
            to_guest(&mut work, &maps()).unwrap();
            prop_assert_eq!(work, before);
        }
    }
}
