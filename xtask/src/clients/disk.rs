//! Images of disks, and what is in them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Result, command};

/// The size of an image in bytes.
pub(super) const SIZE: usize = 16 << 20;

/// Makes an image whose content follows from `seed`; its sum.
pub(super) fn make(path: &Path, seed: u64) -> Result<String> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = (0..SIZE / 8).flat_map(|_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state ^ state >> 29).to_le_bytes()
    });
    fs::write(path, words.collect::<Vec<u8>>())?;
    sum(path)
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(super) fn sum(path: &Path) -> Result<String> {
    let text = command::output(Command::new("sha256sum").arg(path))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
