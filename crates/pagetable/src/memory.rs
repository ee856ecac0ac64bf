//! Where translation tables live.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::geometry::Granule;

/// No table could be allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory for translation tables")]
pub struct OutOfMemory;

/// Memory that holds translation tables: a pool on the heap, a part of a guest's
/// memory, whatever the walker will read.
///
/// Descriptors are atomic because a walker, in hardware or in another thread, may
/// read and update them at any time.
pub trait TableMemory {
    /// Allocates `count` tables of 2^`size_log2` bytes, each aligned to its size, and
    /// appends their addresses to `tables`: all or none. What they hold is
    /// unspecified; the mapper writes every entry of a table before it uses it.
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory>;

    /// Takes back tables that were allocated with the same size. No walker uses
    /// them any more.
    fn free(&self, size_log2: u8, tables: &[u64]);

    /// The `entries` descriptors from `address` on, which lie in one table, or `None`
    /// if there is no memory for tables there.
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]>;
}

impl<M: TableMemory + ?Sized> TableMemory for &M {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        (**self).allocate(size_log2, count, tables)
    }
    fn free(&self, size_log2: u8, tables: &[u64]) {
        (**self).free(size_log2, tables);
    }
    #[inline]
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        (**self).table(address, entries)
    }
}

impl<M: TableMemory + ?Sized> TableMemory for Arc<M> {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        (**self).allocate(size_log2, count, tables)
    }
    fn free(&self, size_log2: u8, tables: &[u64]) {
        (**self).free(size_log2, tables);
    }
    #[inline]
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        (**self).table(address, entries)
    }
}

/// log2 of the number of tables in a chunk: enough for 16 concatenated ones.
const CHUNK_TABLES_LOG2: u8 = 4;
/// Runs of 1 to 16 tables are kept apart, by log2.
const ORDERS: usize = 5;

type Chunk = Box<[AtomicU64]>;

/// Tables on the heap, at made-up physical addresses.
///
/// One pool may serve many mappers and any number of walkers at once. It grows by 16
/// tables at a time, keeps what is freed for the next mapper, and never moves a
/// table: looking one up takes no lock.
pub struct HeapPool {
    base: u64,
    table_log2: u8,
    limit: usize,
    /// One for each 16 tables that there may ever be.
    chunks: Box<[OnceLock<Chunk>]>,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// How many tables have ever been handed out: the index of the next one.
    used: usize,
    /// Tables that came back, by log2 of how many stand together.
    lists: [Vec<u64>; ORDERS],
}

impl HeapPool {
    /// A pool of up to `limit` tables of one granule, from the physical address
    /// `base` on, which is rounded up to a multiple of 16 tables. Nothing else may
    /// have these addresses. The limit costs 1.5 bytes for each table at once.
    pub fn new(granule: Granule, base: u64, limit: usize) -> Self {
        let table_log2 = granule.page_log2();
        let chunks = limit.div_ceil(1 << CHUNK_TABLES_LOG2);
        Self {
            base: base.next_multiple_of(1 << (table_log2 + CHUNK_TABLES_LOG2)),
            table_log2,
            limit,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            free: Mutex::default(),
        }
    }

    /// The size of the memory that the pool has taken from the heap, in bytes.
    pub fn size(&self) -> u64 {
        (self.free().used.next_multiple_of(1 << CHUNK_TABLES_LOG2) as u64) << self.table_log2
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // The lists are valid after each statement: a panic elsewhere spoils nothing.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, size_log2: u8) -> Option<usize> {
        let order = usize::from(size_log2.saturating_sub(self.table_log2));
        (order < ORDERS).then_some(order)
    }

    fn take(&self, free: &mut Free, order: usize) -> Option<u64> {
        if let Some(table) = free.lists[order].pop() {
            return Some(table);
        }
        let address = |index: usize| self.base + ((index as u64) << self.table_log2);
        let first = free.used.next_multiple_of(1 << order);
        let end = first + (1 << order);
        if end > self.limit {
            return None;
        }
        // Tables skipped for alignment serve as single ones.
        free.lists[0].extend((free.used..first).map(address));
        let entries = 1usize << (self.table_log2 - 3 + CHUNK_TABLES_LOG2);
        self.chunks[first >> CHUNK_TABLES_LOG2]
            .get_or_init(|| (0..entries).map(|_| AtomicU64::new(0)).collect());
        free.used = end;
        Some(address(first))
    }
}

impl TableMemory for HeapPool {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        let order = self.order(size_log2).ok_or(OutOfMemory)?;
        if count > self.limit >> order {
            return Err(OutOfMemory);
        }
        let before = tables.len();
        tables.reserve(count);
        let mut free = self.free();
        for _ in 0..count {
            let Some(table) = self.take(&mut free, order) else {
                free.lists[order].extend(tables.drain(before..));
                return Err(OutOfMemory);
            };
            tables.push(table);
        }
        Ok(())
    }

    fn free(&self, size_log2: u8, tables: &[u64]) {
        if let Some(order) = self.order(size_log2) {
            self.free().lists[order].extend_from_slice(tables);
        }
    }

    #[inline]
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        let offset = address.checked_sub(self.base)?;
        let chunk_log2 = self.table_log2 + CHUNK_TABLES_LOG2;
        let chunk = self.chunks.get(usize::try_from(offset >> chunk_log2).ok()?)?.get()?;
        let first = (offset as usize & ((1 << chunk_log2) - 1)) / 8;
        chunk.get(first..first.checked_add(entries)?)
    }
}

impl fmt::Debug for HeapPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapPool")
            .field("base", &format_args!("{:#x}", self.base))
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}
