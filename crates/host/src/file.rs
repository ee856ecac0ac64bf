use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::{Errno, PhysRun, Task};

/// A device node that can be opened, such as `/dev/iommu`.
pub trait CharDevice: Send + Sync {
    /// `open(2)`: makes a new open file.
    fn open(&self, task: &dyn Task) -> Result<Arc<dyn File>, Errno>;

    /// What `stat(2)` tells of the node.
    fn mode(&self) -> FileMode;

    /// Whether the node is there: a device may come and go.
    fn exists(&self) -> bool {
        true
    }
}

/// What `stat(2)` tells of an open file or of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// A character device with these numbers, mode 0660.
    CharDevice {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// An anonymous inode with this name, as `/proc/self/fd` shows it:
    /// `[iommufd-pgfault]`.
    AnonInode(&'static str),
}

/// An open file: `struct file` with its operations.
///
/// The last reference dropped is the last close: an implementation releases
/// what it holds in `Drop`, so that close is synchronous. Every method may be
/// called from any thread, also while another call is under way.
pub trait File: Any + Send + Sync {
    /// What `fstat(2)` tells.
    fn mode(&self) -> FileMode;

    /// `ioctl(2)`. `arg` is the raw third argument, usually an address in
    /// [`Task::mm`].
    fn ioctl(&self, task: &dyn Task, cmd: u32, arg: u64) -> Result<i32, Errno> {
        let _ = (task, cmd, arg);
        Err(Errno::NOTTY)
    }

    /// `read(2)` or, with a position, `pread(2)`: fills `len` bytes at the
    /// address `buf` of [`Task::mm`]; returns how many.
    fn read(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        let _ = (task, buf, len, pos);
        Err(Errno::INVAL)
    }

    /// `write(2)` or, with a position, `pwrite(2)`.
    fn write(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        let _ = (task, buf, len, pos);
        Err(Errno::INVAL)
    }

    /// `mmap(2)`: says what to map instead. The caller keeps the guard until
    /// the last `munmap`.
    fn mmap(&self, task: &dyn Task, request: MmapRequest) -> Result<MmapBacking, Errno> {
        let _ = (task, request);
        Err(Errno::NODEV)
    }

    /// Where the registers that can be mapped from `offset` on are in the physical address space: `len` bytes for the DMA of
    /// devices. `None`: there are none.
    fn registers(&self, offset: u64, len: u64) -> Option<PhysRun> {
        let _ = (offset, len);
        None
    }

    /// Whether `poll(2)` would report `POLLIN` now.
    fn readable(&self) -> bool {
        false
    }

    /// Gives the file a way to say that it became readable. Called once, before
    /// the file is visible to anyone.
    fn set_notify(&self, notify: Notify) {
        let _ = notify;
    }
}

/// To be called whenever a file's [`File::readable`] may have become true.
pub type Notify = Box<dyn Fn() + Send + Sync>;

/// What the caller of `mmap(2)` asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmapRequest {
    /// Offset into the file, in bytes.
    pub offset: u64,
    /// Length in bytes, as given.
    pub len: u64,
    /// `PROT_READ` was given.
    pub read: bool,
    /// `PROT_WRITE` was given.
    pub write: bool,
    /// `PROT_EXEC` was given.
    pub exec: bool,
    /// `MAP_SHARED` (or `MAP_SHARED_VALIDATE`) was given.
    pub shared: bool,
}

/// What to map in place of the emulated file.
pub struct MmapBacking {
    /// What is there.
    pub memory: MappedMemory,
    /// Dropped when no mapping made from this answer remains.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// What is behind a mapping.
pub enum MappedMemory {
    /// A file of the kernel's.
    File {
        /// Map this file…
        fd: OwnedFd,
        /// …from this offset in bytes.
        offset: u64,
    },
    /// Registers: each access of the program, of 1 to 16 bytes, is a `pread` or `pwrite` at the offset of the file that
    /// is mapped there. Reads of what does not answer give all ones.
    Registers,
}
