use std::sync::Arc;

use crate::{Errno, File, KernelFile, Mm, User};

/// A Linux capability that an ioctl can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// `CAP_IPC_LOCK`: pinned pages are not charged to the user.
    IpcLock,
    /// `CAP_SYS_RESOURCE`: may change how pages are charged.
    SysResource,
    /// `CAP_SYS_RAWIO`: may learn physical addresses.
    SysRawio,
}

impl Capability {
    /// The capability's number in `linux/capability.h`.
    pub const fn number(self) -> u32 {
        match self {
            Self::IpcLock => 14,
            Self::SysRawio => 17,
            Self::SysResource => 24,
        }
    }
}

/// The task that makes a call: Linux's `current`.
pub trait Task {
    /// The caller's address space.
    fn mm(&self) -> &Arc<dyn Mm>;

    /// The caller's user, to whom locked memory is charged.
    fn user(&self) -> Arc<User>;

    /// Whether the calling thread has this capability in its effective set.
    fn capable(&self, capability: Capability) -> bool;

    /// The soft `RLIMIT_MEMLOCK` in bytes; `u64::MAX` is unlimited.
    fn memlock_limit(&self) -> u64;

    /// The open file behind a descriptor of the caller (`fget`); `EBADF`.
    fn file(&self, fd: i32) -> Result<OpenFile, Errno>;

    /// The emulated file whose registers are mapped at a user address (`vma->vm_file`).
    fn mapped_file(&self, va: u64) -> Option<MappedFile> {
        let _ = va;
        None
    }

    /// Gives the caller a new descriptor for `file` (`anon_inode_getfd`),
    /// close-on-exec if `cloexec`; `EMFILE`.
    fn install(&self, file: Arc<dyn File>, cloexec: bool) -> Result<i32, Errno>;

    /// Takes back a descriptor that [`Task::install`] gave in this call.
    fn uninstall(&self, fd: i32);
}

/// Registers that a program has mapped.
pub struct MappedFile {
    /// Whose they are.
    pub file: Arc<dyn File>,
    /// The offset of what is at the address that was asked for, in bytes.
    pub offset: u64,
    /// How many bytes of them are mapped from there on.
    pub len: u64,
}

/// What a descriptor refers to.
pub enum OpenFile {
    /// A file of ours.
    Emulated(Arc<dyn File>),
    /// A file of the kernel's, which may or may not hold memory.
    Kernel(Arc<dyn KernelFile>),
}
