//! The text of one line, whatever is in the names that a guest chose.

use std::fmt;

/// Bytes of a line's text. With what is put before it, it stays below PIPE_BUF, so that the lines of several
/// processes on one pipe do not mix.
const MOST: usize = 3600;

/// A line that is being made. It has no end of line inside and nothing that a terminal acts upon or that changes how
/// the rest is shown: such characters are escaped. What is too long is cut, and costs no more than what is kept.
#[derive(Debug, Default)]
pub struct Line {
    text: String,
    cut: bool,
}

impl Line {
    /// The line for `text`.
    pub fn of(text: &dyn fmt::Display) -> Line {
        let mut line = Line::default();
        // Fails when the rest does not fit, which is marked.
        let _ = fmt::write(&mut line, format_args!("{text}"));
        line
    }

    /// What it says.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Adds a few words, even to a line that was cut.
    pub fn append(&mut self, words: &str) {
        self.text.push_str(words);
    }

    fn add(&mut self, text: &str) -> fmt::Result {
        if self.cut || self.text.len() + text.len() > MOST {
            if !std::mem::replace(&mut self.cut, true) {
                self.text.push('…');
            }
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut buffer = [0; 4];
        for c in text.chars() {
            match c {
                '\n' => self.add("\\n")?,
                '\r' => self.add("\\r")?,
                '\t' => self.add("\\t")?,
                c if acts(c) => self.add(&c.escape_unicode().to_string())?,
                c => self.add(c.encode_utf8(&mut buffer))?,
            }
        }
        Ok(())
    }
}

/// Whether `c` does something rather than being shown: controls (C0, C1, DEL), line separators, invisible characters,
/// and those that turn the direction of the text, with which a name can make a line read as another.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_acts() {
        let line = Line::of(&"a\nb\x1b[31m\u{202e}\u{9b}\r\t\0 äß漢 \u{2028}\u{200d}");
        assert_eq!(
            line.as_str(),
            r"a\nb\u{1b}[31m\u{202e}\u{9b}\r\t\u{0} äß漢 \u{2028}\u{200d}"
        );
    }

    /// Counts how often it is asked for more.
    struct Endless(std::cell::Cell<u32>);

    impl fmt::Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            while self.0.get() < 1_000_000 {
                self.0.set(self.0.get() + 1);
                f.write_str("\n")?;
            }
            Ok(())
        }
    }

    #[test]
    fn a_long_line_is_cut_and_costs_no_more_than_what_is_kept() {
        let endless = Endless(0.into());
        let mut line = Line::of(&endless);
        assert!(endless.0.get() <= MOST as u32, "{}", endless.0.get());
        line.append(" (more)");
        assert!(line.as_str().ends_with("\\n… (more)"));
        assert!(line.as_str().len() < MOST + 20);
        assert_eq!(Line::of(&"x".repeat(MOST)).as_str().len(), MOST);
    }
}
