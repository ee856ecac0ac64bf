//! Physical memory: private pages by address, objects by table.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use host::{BusError, FilePart, PAGE_SIZE, PhysAllocation, PhysMemory, PhysRun};
use parking_lot::RwLock;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::buddy::WINDOW_START;
use crate::fd::PrivateFd;
use crate::memfile::key_of;
use crate::object::{Key, Table};
use crate::segment::Segment;
use crate::user_copy::{read_own, write_own, write_own_from};

/// The physical address space of one process's machine.
pub struct Phys {
    table: Arc<RwLock<Table>>,
}

impl Phys {
    pub(crate) fn new() -> Self {
        Self { table: Arc::new(RwLock::new(Table::new())) }
    }

    /// Lets children inherit our mappings, or no longer.
    pub(crate) fn inherit(&self, inherit: bool) {
        self.table.read().segments().for_each(|segment| segment.inherit(inherit));
    }

    pub(crate) fn pinned_pages(&self) -> u64 {
        self.table.read().pinned_pages()
    }

    /// Pins `range` (page-aligned) of the object `key`. An object met for the
    /// first time gets room for `size` bytes; `segment` makes a backing for the
    /// range if there is none yet.
    pub(crate) fn pin_object(
        &self,
        key: Key,
        range: &Range<u64>,
        write: bool,
        size: u64,
        segment: impl FnOnce() -> Option<Segment>,
    ) -> Option<Vec<PhysRun>> {
        let known = self.table.read().pin_known(key, range, write);
        known.or_else(|| {
            // Mapped without the lock: this takes system calls.
            let segment = segment();
            self.table.write().pin_new(key, range, write, size, segment)
        })
    }
}

impl PhysMemory for Phys {
    fn read(&self, pa: u64, buf: &mut [u8]) -> Result<(), BusError> {
        let result =
            if pa < WINDOW_START { read_own(pa, buf) } else { self.table.read().read(pa, buf) };
        result.map_err(|_| BusError { pa })
    }

    fn write(&self, pa: u64, buf: &[u8]) -> Result<(), BusError> {
        let result =
            if pa < WINDOW_START { write_own(pa, buf) } else { self.table.read().write(pa, buf) };
        result.map_err(|_| BusError { pa })
    }

    fn write_from(&self, pa: u64, from: FilePart<'_>) -> usize {
        if pa < WINDOW_START {
            write_own_from(pa, from)
        } else {
            self.table.read().write_from(pa, from)
        }
    }

    fn load(&self, pa: u64) -> Result<u64, BusError> {
        #[repr(align(8))]
        struct Word([u8; 8]);
        // Aligned, so that it is read in one piece.
        let mut word = Word([0; 8]);
        self.read(pa, &mut word.0)?;
        Ok(u64::from_le_bytes(word.0))
    }

    /// Only memory that can never shrink: elsewhere an atomic access might raise a signal.
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<u64, BusError> {
        if pa < WINDOW_START {
            return Err(BusError { pa });
        }
        self.table.read().compare_exchange(pa, current, new).map_err(|_| BusError { pa })
    }

    fn unpin(&self, run: PhysRun) {
        if run.pa < WINDOW_START {
            return;
        }
        unpin(&self.table, run);
    }

    fn alloc(&self, len: u64) -> Option<Box<dyn PhysAllocation>> {
        let len = len.checked_next_multiple_of(PAGE_SIZE).filter(|&len| len != 0)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("softiommu", flags).ok()?;
        rustix::fs::ftruncate(&fd, len).ok()?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).ok()?;
        let key = key_of(&rustix::fs::fstat(&fd).ok()?);
        let fd = PrivateFd::new(fd).ok()?;
        let segment = || Segment::of_file(fd.as_fd(), 0..len);
        let runs = self.pin_object(key, &(0..len), true, len, segment)?;
        let [run] = runs[..] else {
            // Longer than the largest block: not contiguous.
            for run in runs {
                self.unpin(run);
            }
            return None;
        };
        Some(Box::new(Allocation { run, fd, table: Arc::clone(&self.table) }))
    }
}

fn unpin(table: &RwLock<Table>, run: PhysRun) {
    let unpinned = table.read().unpin(run);
    for key in unpinned {
        // A pin may have come in between: asked again under the lock.
        let segments = table.write().remove_if_unpinned(key);
        drop(segments);
    }
}

/// A sealed memfd: an object like others, with one pin of its own.
struct Allocation {
    run: PhysRun,
    fd: PrivateFd,
    table: Arc<RwLock<Table>>,
}

impl PhysAllocation for Allocation {
    fn run(&self) -> PhysRun {
        self.run
    }

    fn fd(&self) -> std::io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        unpin(&self.table, self.run);
    }
}
