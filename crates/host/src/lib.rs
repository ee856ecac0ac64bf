//! What a Linux character device finds below it, as traits.
//!
//! A driver in the kernel is handed a `struct file`, the current task and its
//! address space, and pins pages of it. `iommufd` and `vfio` are written
//! against the same ideas, so they never learn how a call reached them: from an
//! interposed `ioctl()` in their own process, from a forked child, or from a
//! test that makes everything up.
//!
//! | trait | Linux | who implements it |
//! |---|---|---|
//! | [`CharDevice`], [`File`] | `struct file_operations` | `iommufd`, `vfio` |
//! | [`Task`] | `current` | `interpose`, tests |
//! | [`Mm`] | `struct mm_struct`, `pin_user_pages()` | `host-linux`, tests |
//! | [`KernelFile`] | a memfd, `memfd_pin_folios()`; `eventfd_signal()` | `host-linux`, tests |
//! | [`PhysMemory`] | RAM | `host-linux`, tests |
//!
//! **A physical address names a page, not one mapping of it**: two views of one
//! shared page pin to one physical address, in whatever process they are.
#![forbid(unsafe_code)]

pub mod fail;
mod file;
mod mm;
mod task;

pub use file::{CharDevice, File, FileMode, MappedMemory, MmapBacking, MmapRequest, Notify};
pub use mm::{
    Access, BusError, Fault, FilePart, FilePinError, KernelFile, Mm, MmCounters, PhysAllocation,
    PhysMemory, PhysRun, StartThread, User,
};
pub use rustix::io::Errno;
pub use task::{Capability, MappedFile, OpenFile, Task};

/// Physical addresses have this many bits.
pub const PHYS_BITS: u32 = 48;

/// From this physical address on there is never memory of a process: the machine has there what is its own.
pub const MACHINE_START: u64 = 0xe000_0000_0000;

/// Bytes in a page of the client's address space. Hosts with other page sizes
/// are refused at start-up.
pub const PAGE_SIZE: u64 = 4096;
