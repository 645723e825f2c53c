//! One path component, checked before any system call sees it.

use std::ffi::CStr;
use std::fmt;

/// A checked file name: 1..=255 bytes, no `/`, no NUL, neither `.` nor `..`. Kept with its NUL in place, so
/// that a system call needs no copy.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; 256],
    len: u8,
}

/// Why bytes are no name; the errno depends on the message, so the caller chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// Empty, or with `/` or NUL inside.
    Illegal,
    /// More than 255 bytes.
    TooLong,
    /// `.`
    Dot,
    /// `..`
    DotDot,
}

impl Name {
    /// Whether `bytes` are a name, without keeping them; their length.
    pub fn check(bytes: &[u8]) -> Result<u8, NameError> {
        match bytes {
            b"" => return Err(NameError::Illegal),
            b"." => return Err(NameError::Dot),
            b".." => return Err(NameError::DotDot),
            _ => {}
        }
        if bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(NameError::Illegal);
        }
        u8::try_from(bytes.len()).map_err(|_| NameError::TooLong)
    }

    /// Checks `bytes`.
    pub fn new(bytes: &[u8]) -> Result<Name, NameError> {
        let len = Name::check(bytes)?;
        let mut name = Name { bytes: [0; 256], len };
        name.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(name)
    }

    /// The name without its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The name for a system call.
    pub fn as_c_str(&self) -> &CStr {
        // Cannot fail: `new` refused inner NULs and left the byte after the name 0.
        CStr::from_bytes_until_nul(&self.bytes[..=usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_components_are_names() {
        assert_eq!(Name::new(b"").unwrap_err(), NameError::Illegal);
        assert_eq!(Name::new(b"a/b").unwrap_err(), NameError::Illegal);
        assert_eq!(Name::new(b"a\0").unwrap_err(), NameError::Illegal);
        assert_eq!(Name::new(b".").unwrap_err(), NameError::Dot);
        assert_eq!(Name::new(b"..").unwrap_err(), NameError::DotDot);
        assert_eq!(Name::new(&[b'x'; 256]).unwrap_err(), NameError::TooLong);
        let longest = Name::new(&[b'x'; 255]).unwrap();
        assert_eq!(longest.as_c_str().to_bytes(), [b'x'; 255]);
        assert_eq!(Name::new(b"...").unwrap().as_bytes(), b"...");
    }
}
