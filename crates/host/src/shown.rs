//! Names as the log shows them: whoever chose them can neither end the quotes around them nor the line, and cannot
//! make it long.

use std::fmt::{self, Write};

/// Of a path, so many bytes at its end are shown.
pub const PATH: usize = 512;

/// Bytes of a name or path, to be shown in double quotes.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    bytes: &'a [u8],
    cut: bool,
}

impl<'a> Shown<'a> {
    /// All of `bytes`.
    pub fn all(bytes: &'a [u8]) -> Shown<'a> {
        Shown { bytes, cut: false }
    }

    /// The end of `bytes`, at most `most`; whole names if there is room for one.
    pub fn end(bytes: &'a [u8], most: usize) -> Shown<'a> {
        let Some(start) = bytes.len().checked_sub(most).filter(|start| *start > 0) else {
            return Shown::all(bytes);
        };
        let end = &bytes[start..];
        let name = end.iter().position(|byte| *byte == b'/').unwrap_or(0);
        Shown {
            bytes: &end[name..],
            cut: true,
        }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cut {
            f.write_char('…')?;
        }
        for chunk in self.bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\'' => f.write_char(c)?,
                    c => write!(f, "{}", c.escape_debug())?,
                }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_within_its_quotes_and_its_line() {
        let name = b"it's \xc3\xa4 \xff\"\\\n\r\t\x1b[31m\xe2\x80\xae\xe2\x80\x8b\xc2\x9b\x7f";
        assert_eq!(
            Shown::all(name).to_string(),
            r#"it's ä \xff\"\\\n\r\t\u{1b}[31m\u{202e}\u{200b}\u{9b}\u{7f}"#
        );
    }

    #[test]
    fn of_a_long_path_the_end_is_shown() {
        let path = format!("{}/dir/file", "/name".repeat(1000));
        assert_eq!(Shown::end(path.as_bytes(), 12).to_string(), "…/dir/file");
        assert_eq!(Shown::end(path.as_bytes(), 6).to_string(), "…/file");
        assert_eq!(Shown::end(path.as_bytes(), 3).to_string(), "…ile");
        assert_eq!(Shown::end(b"/dir", 4).to_string(), "/dir");
    }
}
