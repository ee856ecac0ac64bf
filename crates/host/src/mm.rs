use std::any::Any;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The user's memory could not be accessed: `EFAULT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the user address {va:#x} cannot be accessed")]
pub struct Fault {
    /// The address, or one near it.
    pub va: u64,
}

/// Nothing answered at a physical address; the transaction aborts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory answers at the physical address {pa:#x}")]
pub struct BusError {
    /// The physical address.
    pub pa: u64,
}

/// Why pages of a file cannot be pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilePinError {
    /// Neither shmem (memfd, tmpfs) nor hugetlbfs.
    #[error("the file is neither a memfd, on tmpfs nor on hugetlbfs")]
    NotMemory,
    /// The range is not inside the file.
    #[error("the range ends beyond the end of the file")]
    BeyondEnd,
    /// The kernel refused for want of memory.
    #[error("no memory for the file's pages")]
    NoMemory,
}

/// How pinned pages will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Devices only read.
    Read,
    /// Devices also write.
    Write,
}

/// A physically contiguous run of bytes, both ends page-aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysRun {
    /// First physical address.
    pub pa: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A process address space: `struct mm_struct`.
pub trait Mm: Send + Sync {
    /// Reads `buf.len()` bytes at `va`. Never raises a signal.
    fn copy_from_user(&self, va: u64, buf: &mut [u8]) -> Result<(), Fault>;

    /// Writes `buf` at `va`. Never raises a signal. On a fault a prefix may
    /// have been written.
    fn copy_to_user(&self, va: u64, buf: &[u8]) -> Result<(), Fault>;

    /// Pins the page-aligned range `[va, va + len)` and passes its runs, in
    /// order and merged where contiguous, to `run`. Either the whole range is
    /// pinned or, on error, none of it: runs already passed are then void.
    /// Each run is given back through [`PhysMemory::unpin`].
    fn pin(
        &self,
        va: u64,
        len: u64,
        access: Access,
        run: &mut dyn FnMut(PhysRun),
    ) -> Result<(), Fault>;

    /// The counters behind `VmPin` and `VmLck` of `/proc/PID/status`.
    fn counters(&self) -> &MmCounters;
}

/// Pages accounted to an address space.
#[derive(Debug, Default)]
pub struct MmCounters {
    /// `mm->pinned_vm`, in pages: the `VmPin` line.
    pub pinned_vm: AtomicU64,
    /// `mm->locked_vm`, in pages: added to the `VmLck` line.
    pub locked_vm: AtomicU64,
}

/// A user and the pages charged to them: `struct user_struct`.
#[derive(Debug, Default)]
pub struct User {
    /// `user->locked_vm`, in pages.
    pub locked_vm: AtomicU64,
}

impl User {
    /// Adds `pages` unless that would exceed `limit` pages; says whether it did.
    pub fn charge(&self, pages: u64, limit: u64) -> bool {
        charge(&self.locked_vm, pages, limit)
    }
}

impl MmCounters {
    /// Adds `pages` to `locked_vm` unless that would exceed `limit` pages;
    /// says whether it did.
    pub fn charge_locked(&self, pages: u64, limit: u64) -> bool {
        charge(&self.locked_vm, pages, limit)
    }
}

fn charge(counter: &AtomicU64, pages: u64, limit: u64) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
            n.checked_add(pages).filter(|&sum| sum <= limit)
        })
        .is_ok()
}

/// A file of the kernel's that somebody passed to us: it may hold memory (a memfd, a
/// file on tmpfs or hugetlbfs), or be an eventfd.
pub trait KernelFile: Send + Sync {
    /// `memfd_pin_folios()`: pins the page-aligned range `[offset, offset + len)`
    /// as [`Mm::pin`] does.
    fn pin(&self, offset: u64, len: u64, run: &mut dyn FnMut(PhysRun)) -> Result<(), FilePinError>;

    /// Whether it is an eventfd.
    fn is_eventfd(&self) -> bool {
        false
    }

    /// `eventfd_signal()`: adds one to the counter of an eventfd, or nothing if it is full.
    /// Never waits.
    fn signal(&self) {}

    /// Has `signalled` called, on a thread that `spawn` starts, whenever somebody signals the
    /// eventfd, whose counter it takes; until what it returns is dropped.
    fn on_signal(
        &self,
        spawn: &StartThread<'_>,
        signalled: Box<dyn FnMut() + Send>,
    ) -> io::Result<Box<dyn Send + Sync>> {
        let _ = (spawn, signalled);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Starts a thread with a name.
pub type StartThread<'a> = dyn Fn(&str, Box<dyn FnOnce() + Send>) -> io::Result<()> + 'a;

/// Bytes of a file that a device puts into memory.
#[derive(Debug, Clone, Copy)]
pub struct FilePart<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Where in it they begin.
    pub offset: u64,
    /// How many they are.
    pub len: usize,
    /// The file is memory: to read it is never to wait for a disk.
    pub in_memory: bool,
}

impl FilePart<'_> {
    /// A part of it.
    #[must_use]
    pub fn part(&self, part: Range<usize>) -> Self {
        Self { offset: self.offset + part.start as u64, len: part.len(), ..*self }
    }
}

/// The physical address space that devices reach.
pub trait PhysMemory: Send + Sync {
    /// A device reads `buf.len()` bytes at `pa`. Memory that its owner has taken
    /// away aborts the access; it never raises a signal.
    fn read(&self, pa: u64, buf: &mut [u8]) -> Result<(), BusError>;

    /// A device writes `buf` at `pa`.
    fn write(&self, pa: u64, buf: &[u8]) -> Result<(), BusError>;

    /// A short cut to [`write`](Self::write): has the kernel put bytes of a file at `pa`, without a copy in between and
    /// without waiting for a disk. How many of them, from the first on; whatever the reason, the rest has to be read and
    /// written.
    fn write_from(&self, pa: u64, from: FilePart<'_>) -> usize {
        let _ = (pa, from);
        0
    }

    /// A device reads the naturally aligned little-endian word at `pa`, as a whole: what
    /// translation tables are made of.
    fn load(&self, pa: u64) -> Result<u64, BusError> {
        let mut word = [0; 8];
        self.read(pa, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// A device replaces the naturally aligned little-endian word at `pa` by `new` if it is
    /// `current`; returns what was there. Memory that cannot do that aborts the access.
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<u64, BusError> {
        let _ = (current, new);
        Err(BusError { pa })
    }

    /// Gives back a run that a pin passed, or a page-aligned part of one.
    fn unpin(&self, run: PhysRun);

    /// Allocates `len` bytes (rounded up to pages) of zeroed, physically
    /// contiguous memory; `None` if there is none.
    fn alloc(&self, len: u64) -> Option<Box<dyn PhysAllocation>>;
}

/// Memory from [`PhysMemory::alloc`], freed on drop.
pub trait PhysAllocation: Any + Send + Sync {
    /// Where it is.
    fn run(&self) -> PhysRun;

    /// A descriptor that maps this memory, from its offset 0.
    fn fd(&self) -> io::Result<OwnedFd>;
}
