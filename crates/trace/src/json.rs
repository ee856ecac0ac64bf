//! As much of JSON as events need.

use std::fmt::Write;

/// The longest text in an event, in bytes: whoever traces may not know what it gets.
const MAX: usize = 1024;
/// The most elements of a list in an event.
const MAX_ELEMENTS: usize = 64;

/// What an event has to tell beside its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args(String);

impl Args {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// An address, a length, a register: in JSON a string of hexadecimal digits, as numbers of 64 bits would be
    /// rounded.
    #[must_use]
    pub fn hex(mut self, key: &str, value: u64) -> Self {
        self.key(key);
        // Writing to a string does not fail.
        let _ = write!(self.0, "\"{value:#x}\"");
        self
    }

    /// A count, an id, an errno.
    #[must_use]
    pub fn int(mut self, key: &str, value: i64) -> Self {
        self.key(key);
        let _ = write!(self.0, "{value}");
        self
    }

    /// A text.
    #[must_use]
    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        string(&mut self.0, value);
        self
    }

    /// Texts, of which the first 64 are kept.
    #[must_use]
    pub fn list(mut self, key: &str, values: impl IntoIterator<Item = String>) -> Self {
        self.key(key);
        self.0.push('[');
        for (index, value) in values.into_iter().take(MAX_ELEMENTS).enumerate() {
            if index > 0 {
                self.0.push(',');
            }
            string(&mut self.0, &value);
        }
        self.0.push(']');
        self
    }

    fn key(&mut self, key: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        string(&mut self.0, key);
        self.0.push(':');
    }

    /// The members of the JSON object.
    pub(crate) fn members(&self) -> &str {
        &self.0
    }
}

/// Appends a string literal.
pub(crate) fn string(out: &mut String, text: &str) {
    out.push('"');
    let end = text.floor_char_boundary(MAX);
    for char in text[..end].chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\0'..='\x1f' | '\x7f' => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            _ => out.push(char),
        }
    }
    if end < text.len() {
        out.push('…');
    }
    out.push('"');
}
