//! `sriov_numvfs` in `/sys`: virtual functions come and go.

use std::io;
use std::sync::Arc;

use host::Errno;
use interpose::{Node, PathTable, Tree};
use parking_lot::Mutex;
use vfio::Function;

use crate::sysfs::{self, Listed};

/// A function and its virtual functions, as programs find them.
struct Sriov {
    tree: Arc<Tree>,
    function: Arc<Function>,
    vfs: Vec<Listed>,
    major: u32,
    /// One change at a time.
    turn: Mutex<()>,
}

/// Lets programs enable and disable the virtual functions that are in `devices`. Those that are enabled are shown.
pub(crate) fn add_to(table: &mut PathTable, tree: &Arc<Tree>, devices: &[Listed], major: u32) {
    for physical in devices.iter().filter(|device| device.of.is_none()) {
        let function = &physical.function;
        let is_its =
            |device: &&Listed| device.of.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, function));
        let vfs: Vec<_> = devices.iter().filter(is_its).cloned().collect();
        if vfs.is_empty() {
            continue;
        }
        let (tree, function, turn) = (tree.clone(), function.clone(), Mutex::default());
        let path = sysfs::path(function.address(), "sriov_numvfs");
        let sriov = Sriov { tree, function, vfs, major, turn };
        if let Err(error) = sriov.show(0) {
            tracing::warn!(%error, "/sys does not show virtual functions");
        }
        table.add(path, Node::Attribute(Arc::new(move |text| sriov.store(text))));
    }
}

impl Sriov {
    /// What is written to `sriov_numvfs`.
    fn store(&self, text: &[u8]) -> Result<(), Errno> {
        let count = parse(text).ok_or(Errno::INVAL)?;
        let _turn = self.turn.lock();
        let before = self.function.num_vfs();
        let set = |count| {
            self.function.set_num_vfs(count).map_err(|error| {
                tracing::debug!(%error, count, "sriov_numvfs was refused");
                error.errno()
            })
        };
        set(count)?;
        self.show(before).map_err(|error| {
            // Nobody would find them: there are none.
            let _ = set(0);
            let _ = self.show(count);
            Errno::from_io_error(&error).unwrap_or(Errno::NOMEM)
        })
    }

    /// Shows those that are enabled, where there were `before`.
    fn show(&self, before: u16) -> io::Result<()> {
        let now = self.function.num_vfs();
        let (before, enabled) = (usize::from(before), usize::from(now));
        for vf in self.vfs.iter().take(before).skip(enabled) {
            sysfs::hide(&self.tree, vf, self.major);
        }
        for vf in self.vfs.iter().take(enabled).skip(before) {
            sysfs::show(&self.tree, vf, self.major)?;
        }
        let path = |name| sysfs::path(self.function.address(), name);
        self.tree.rewrite(&path("config"), self.function.config_space())?;
        self.tree.rewrite(&path("sriov_numvfs"), format!("{now}\n"))
    }
}

/// A number of 16 bits as Linux's `kstrtou16` reads it: hexadecimal after `0x`, octal after `0`, one line end.
fn parse(text: &[u8]) -> Option<u16> {
    let text = str::from_utf8(text).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let digits = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    // No sign behind the sign.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(digits, radix).ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_does() {
        for (text, number) in
            [("4", 4), ("0\n", 0), ("+7", 7), ("0x1F", 31), ("010\n", 8), ("65535", 65535)]
        {
            assert_eq!(parse(text.as_bytes()), Some(number), "{text:?}");
        }
        for text in ["", "\n", "-1", "++1", "0x", "08", " 1", "1 ", "1\n\n", "65536", "f", "\0"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
