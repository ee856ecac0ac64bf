//! Attributes: files of an overlay that programs may write.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use host::{Errno, File, FileMode, PAGE_SIZE, Task};
use parking_lot::Mutex;

use crate::paths::Store;

/// An attribute that was opened to be written, and maybe to be read.
pub(crate) struct AttributeFile {
    store: Store,
    /// The file of the tree.
    file: CString,
    /// Where the next `read` is.
    position: Mutex<u64>,
}

impl AttributeFile {
    pub(crate) fn new(store: &Store, file: CString) -> Self {
        Self { store: store.clone(), file, position: Mutex::default() }
    }
}

impl File for AttributeFile {
    fn mode(&self) -> FileMode {
        FileMode::AnonInode("[sysfs]")
    }

    fn read(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        let content = std::fs::read(OsStr::from_bytes(self.file.as_bytes()));
        let content =
            content.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NODEV))?;
        let mut position = self.position.lock();
        let start = usize::try_from(pos.unwrap_or(*position)).unwrap_or(usize::MAX);
        let left = content.get(start..).unwrap_or_default();
        let part = &left[..left.len().min(len)];
        task.mm().copy_to_user(buf, part).map_err(|_| Errno::FAULT)?;
        if pos.is_none() {
            *position += part.len() as u64;
        }
        Ok(part.len())
    }

    /// As in `/sys`: a `write` is one value, wherever it is said to begin.
    fn write(&self, task: &dyn Task, buf: u64, len: usize, _: Option<u64>) -> Result<usize, Errno> {
        let mut text = vec![0; len.min(PAGE_SIZE as usize)];
        task.mm().copy_from_user(buf, &mut text).map_err(|_| Errno::FAULT)?;
        (self.store)(&text)?;
        Ok(text.len())
    }
}
