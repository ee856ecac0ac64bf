//! The guest's root: an archive in the format `newc` with busybox, modules and what is to be done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::packages::Packages;
use crate::{Result, command};

/// Files and directories, one after the other, each behind a header in hexadecimal digits.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o04_0755;
const PROGRAM: u32 = 0o10_0755;

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // inode, mode, uid, gid, links, time, size, four device numbers, length of the name, a sum that is not used.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

/// Writes the archive for guests that load these modules and then do what `init` says.
pub(super) fn write(
    packages: &Packages,
    modules: &[&str],
    init: &str,
    place: &Path,
) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.add(directory, DIRECTORY, b"");
    }
    archive.add("bin/busybox", PROGRAM, &fs::read(packages.busybox()?)?);
    for (n, module) in packages.modules(modules).iter().enumerate() {
        archive.add(&format!("modules/{n}.ko"), 0o10_0644, &plain(module)?);
    }
    archive.add("init", PROGRAM, init.as_bytes());
    let path = place.join("initrd");
    fs::write(&path, archive.finish())?;
    Ok(path)
}

/// A module as the kernel takes it.
fn plain(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_none_or(|kind| kind != "xz") {
        return Ok(fs::read(module)?);
    }
    let mut xz = Command::new("xz");
    let output = xz.args(["-dc"]).arg(module).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    command::run(Command::new("xz").arg("-t").arg(module))?;
    Err(format!("{}: cannot be unpacked", module.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_one_that_others_read() {
        let mut archive = Archive::default();
        archive.add("d", DIRECTORY, b"");
        archive.add("d/file", PROGRAM, b"five!");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let at = bytes.windows(6).position(|window| window == b"d/file").unwrap();
        // The header is 110 bytes, and what follows the name begins at a multiple of four.
        let content = (at + 7).next_multiple_of(4);
        assert_eq!(&bytes[content..content + 5], b"five!");
        assert_eq!(&bytes[at - 110..at - 104], b"070701");
        assert_eq!(&bytes[at - 110 + 54..at - 110 + 62], b"00000005");
    }
}
