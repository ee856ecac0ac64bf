//! The mapper: makes and changes translation tables while hardware walks them.
//!
//! One writer, any number of walkers. A new table is filled while nobody can see it
//! and published by one store with release order; leaves of live tables change by
//! single atomic stores, and by compare-exchange where hardware may update them at the
//! same time. A call goes through the tables of its range once to check and once to
//! store, whatever the number of pages.
//!
//! A call that fails leaves the tables as they were: everything that can be wrong is
//! found by reading, and memory is allocated, before the first store.

mod plan;
mod protect;
mod read;
mod unmap;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::attributes::Attributes;
use crate::format::{CONTIGUOUS, TABLE, TABLE_OR_PAGE, VALID};
use crate::geometry::{Geometry, LAST_LEVEL, low_bits};
use crate::memory::{OutOfMemory, TableMemory};
use crate::walk::Table;

use plan::{Parts, Plan, Sizes};
pub use read::{Reader, Run};
pub use unmap::Gather;

/// Why a call changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// The range is empty, ends before it starts or beyond the input size.
    #[error("{0:#x?} is not a range of input addresses")]
    Input(Range<u64>),
    /// The output range ends beyond the output size.
    #[error("output addresses from {0:#x} on do not fit the output size")]
    Output(u64),
    /// An address is not a multiple of the smallest leaf, whose size this is.
    #[error("an address is not a multiple of {0:#x}")]
    Alignment(u64),
    /// None of the page sizes is the size of a block or page.
    #[error("none of the page sizes {0:#x} exists")]
    PageSizes(u64),
    /// Something is mapped at this address or after it, in the range.
    #[error("something is mapped at or after {0:#x}")]
    AlreadyMapped(u64),
    /// Nothing is mapped at this address.
    #[error("nothing is mapped at {0:#x}")]
    NotMapped(u64),
    /// The range would change a part of this block or contiguous group. Splitting it
    /// takes a moment without any translation (break before make), which only the
    /// caller can arrange: unmap it in full, invalidate, map its parts.
    #[error("the range cuts through the leaf that maps {0:#x?}")]
    CutsLeaf(Range<u64>),
    /// There is no memory for the tables.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The memory for tables denies that there is one where there should be. What was
    /// being changed is then half done.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// The table memory does not have a table that it once allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no table at {0:#x} any more")]
pub struct Lost(pub u64);

/// A set of translation tables and the memory they live in.
///
/// ```
/// use pagetable::{Attributes, Gather, Geometry, Granule, HeapPool, Mapper, Stage1Attributes};
///
/// let pool = HeapPool::new(Granule::K4, 0x1_0000_0000, 1000);
/// let geometry = Geometry::stage1(Granule::K4, 48, 48, false)?;
/// let mut mapper = Mapper::new(geometry, &pool)?;
/// let sizes = geometry.page_sizes();
/// mapper.map(0x20_0000..0x60_5000, 0x8020_0000, Stage1Attributes::DMA.into(), sizes)?;
///
/// // Two blocks of 2 MiB and five pages, one run.
/// let run = mapper.read_run(0x20_1000..u64::MAX).unwrap();
/// assert_eq!((run.output, run.length), (0x8020_1000, 0x40_4000));
///
/// let mut gather = Gather::default();
/// mapper.unmap(0x20_0000..0x60_5000, &mut gather)?;
/// // … invalidate gather.range() in every TLB, then …
/// mapper.recycle(&mut gather);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Mapper<M: TableMemory> {
    table: Table,
    memory: M,
    /// What the geometry can do.
    sizes: Sizes,
    /// New tables between allocation and use: empty between calls.
    fresh: Vec<u64>,
    /// The level 2 table that was used last, if it is still in place: the next range
    /// is likely to be close by.
    cursor: Option<Cursor>,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// The input address, in entries of level 1.
    region: u64,
    /// The address of the level 2 table.
    table: u64,
}

/// The table that holds the entries for a whole range.
#[derive(Clone, Copy)]
struct Lowest<'a> {
    level: i8,
    table: &'a [AtomicU64],
    /// The level 2 table on the way.
    cursor: Option<Cursor>,
}

impl<M: TableMemory> Mapper<M> {
    /// Empty tables of this shape. `memory` must offer tables of the granule's
    /// size and of the size of the initial table, at addresses within the output size.
    pub fn new(geometry: Geometry, memory: M) -> Result<Self, OutOfMemory> {
        let mut fresh = Vec::new();
        memory.allocate(initial_size_log2(&geometry), 1, &mut fresh)?;
        let base = fresh.pop().ok_or(OutOfMemory)?;
        let (table, sizes) = (Table::new(geometry, base), Sizes::of(&geometry));
        let mapper = Self { table, memory, sizes, fresh, cursor: None };
        for entry in mapper.table_at(geometry.initial_level(), base).map_err(|_| OutOfMemory)? {
            entry.store(0, Ordering::Relaxed);
        }
        Ok(mapper)
    }

    /// The tables, to be walked.
    pub fn table(&self) -> Table {
        self.table
    }

    /// The memory that the tables live in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    fn geometry(&self) -> &Geometry {
        self.table.geometry()
    }

    /// Maps `range` to as many bytes from `output` on.
    ///
    /// `page_sizes` has bit n set where leaves of 2^n bytes may be used, contiguous
    /// groups included: [`Geometry::page_sizes`], or a part of it. The largest that
    /// alignment and length allow are taken. Addresses must be multiples of the
    /// smallest block or page among them. Nothing in the range may be mapped.
    ///
    /// Walkers may see some leaves before others; when all must be visible to a device,
    /// the caller has a barrier to issue (DSB). There is nothing to invalidate: no TLB
    /// remembers invalid descriptors.
    pub fn map(
        &mut self,
        range: Range<u64>,
        output: u64,
        attributes: Attributes,
        page_sizes: u64,
    ) -> Result<(), MapError> {
        let offered = self.sizes.restricted_to(page_sizes);
        if offered.leaves == 0 {
            return Err(MapError::PageSizes(page_sizes));
        }
        let plan = Plan::new(self.geometry(), &range, output, attributes, offered)?;
        let mut fresh = std::mem::take(&mut self.fresh);
        let result = self.map_planned(&plan, range, &mut fresh).map(|cursor| self.cursor = cursor);
        if !fresh.is_empty() {
            self.memory.free(self.geometry().granule().page_log2(), &fresh);
            fresh.clear();
        }
        self.fresh = fresh;
        result
    }

    fn map_planned(
        &self,
        plan: &Plan,
        range: Range<u64>,
        fresh: &mut Vec<u64>,
    ) -> Result<Option<Cursor>, MapError> {
        let Lowest { level, table, cursor } = self.lowest(&range)?;
        let needed = self.check(plan, level, table, &range)?;
        if needed > 0 {
            self.memory.allocate(self.geometry().granule().page_log2(), needed, fresh)?;
        }
        self.write(plan, level, table, range, fresh, false)?;
        Ok(cursor)
    }

    /// How many new tables the range needs, if nothing is mapped in it.
    fn check(
        &self,
        plan: &Plan,
        level: i8,
        table: &[AtomicU64],
        range: &Range<u64>,
    ) -> Result<usize, MapError> {
        let parts = Parts::of(self.geometry(), level, range);
        let mut needed = 0;
        for (index, part) in parts.partial() {
            needed += self.check_entry(plan, level, &table[index], part)?;
        }
        let whole = &table[parts.whole.clone()];
        if plan.leaves_at(self.geometry(), level) {
            if let Some(n) = first_valid(whole) {
                return Err(MapError::AlreadyMapped(parts.input(n)));
            }
        } else {
            for (n, entry) in whole.iter().enumerate() {
                let start = parts.input(n);
                let part = start..start + (1 << parts.shift);
                needed += self.check_entry(plan, level, entry, &part)?;
            }
        }
        Ok(needed)
    }

    fn check_entry(
        &self,
        plan: &Plan,
        level: i8,
        entry: &AtomicU64,
        part: &Range<u64>,
    ) -> Result<usize, MapError> {
        let descriptor = entry.load(Ordering::Acquire);
        if descriptor & VALID == 0 {
            return Ok(1 + plan.tables_below(self.geometry(), level + 1, part));
        }
        if descriptor & TABLE == 0 || level == LAST_LEVEL {
            return Err(MapError::AlreadyMapped(part.start));
        }
        let next = self.table_at(level + 1, self.geometry().address(descriptor))?;
        self.check(plan, level + 1, next, part)
    }

    /// Fills the range, which [`check`](Self::check) has found to be free. A private
    /// table has not been written yet and is written in full.
    fn write(
        &self,
        plan: &Plan,
        level: i8,
        table: &[AtomicU64],
        range: Range<u64>,
        fresh: &mut Vec<u64>,
        private: bool,
    ) -> Result<(), Lost> {
        let parts = Parts::of(self.geometry(), level, &range);
        if private {
            let touched = parts.touched();
            clear(&table[..touched.start]);
            clear(&table[touched.end..]);
        }
        for (index, part) in parts.partial() {
            self.write_entry(plan, level, &table[index], part.clone(), fresh, private)?;
        }
        let whole = &table[parts.whole.clone()];
        if plan.leaves_at(self.geometry(), level) {
            plan.fill(self.geometry(), level, whole, parts.whole_start);
            return Ok(());
        }
        for (n, entry) in whole.iter().enumerate() {
            let start = parts.input(n);
            let part = start..start + (1 << parts.shift);
            self.write_entry(plan, level, entry, part, fresh, private)?;
        }
        Ok(())
    }

    fn write_entry(
        &self,
        plan: &Plan,
        level: i8,
        entry: &AtomicU64,
        part: Range<u64>,
        fresh: &mut Vec<u64>,
        private: bool,
    ) -> Result<(), Lost> {
        let descriptor = if private { 0 } else { entry.load(Ordering::Acquire) };
        if descriptor & VALID != 0 {
            let next = self.table_at(level + 1, self.geometry().address(descriptor))?;
            return self.write(plan, level + 1, next, part, fresh, false);
        }
        let address = fresh.pop().expect("as many tables as `check` has counted");
        let next = self.table_at(level + 1, address)?;
        self.write(plan, level + 1, next, part, fresh, true)?;
        // Whoever sees this descriptor sees what the table holds.
        entry.store(self.geometry().address_field(address) | TABLE_OR_PAGE, Ordering::Release);
        Ok(())
    }

    /// The table that holds the entries for all of `range`, as far down as there are
    /// tables.
    fn lowest(&self, range: &Range<u64>) -> Result<Lowest<'_>, Lost> {
        let geometry = self.geometry();
        let (stride, last) = (geometry.granule().stride(), range.end - 1);
        // An entry that the range covers in full may become a leaf itself.
        let inside =
            |shift| (range.start ^ last) >> shift == 0 && (range.end - range.start) >> shift == 0;
        let region_log2 = geometry.shift(1);
        let region = range.start >> region_log2;
        let mut cursor = self.cursor.filter(|c| c.region == region && inside(region_log2));
        let (mut level, address) = match cursor {
            Some(Cursor { table, .. }) => (2, table),
            None => (geometry.initial_level(), self.table.base()),
        };
        let mut table = self.table_at(level, address)?;
        let mut shift = geometry.shift(level);
        while inside(shift) {
            let index = (range.start >> shift) as usize & (table.len() - 1);
            let descriptor = table[index].load(Ordering::Acquire);
            if descriptor & TABLE_OR_PAGE != TABLE_OR_PAGE {
                break;
            }
            level += 1;
            shift -= stride;
            let address = geometry.address(descriptor);
            table = self.memory.table(address, 1 << stride).ok_or(Lost(address))?;
            table = table.get(..1 << stride).ok_or(Lost(address))?;
            if level == 2 {
                cursor = Some(Cursor { region, table: address });
            }
        }
        Ok(Lowest { level, table, cursor })
    }

    /// The entries of the table at `address`.
    #[inline]
    fn table_at(&self, level: i8, address: u64) -> Result<&[AtomicU64], Lost> {
        let entries = 1 << self.geometry().entries_log2(level);
        // Slices of the promised length keep every index below from panicking.
        let table = self.memory.table(address, entries).filter(|table| table.len() == entries);
        table.ok_or(Lost(address))
    }

    /// Checks that `range` has bytes, all of them below the input size.
    fn check_input(&self, range: &Range<u64>) -> Result<(), MapError> {
        check_input(self.geometry(), range, self.geometry().granule().page_log2())
    }

    /// Checks that `range` leaves no part of a leaf outside, given the table that holds
    /// the entries for all of it: what its end has in common with other tables is a
    /// boundary of this one, where no leaf is cut.
    fn check_cuts(
        &self,
        level: i8,
        table: &[AtomicU64],
        range: &Range<u64>,
    ) -> Result<(), MapError> {
        let top = self.geometry().shift(level) + self.geometry().entries_log2(level);
        for at in [range.start, range.end] {
            if at & low_bits(top) == 0 {
                continue;
            }
            if let Some(leaf) = self.cut(level, table, at)? {
                return Err(MapError::CutsLeaf(leaf));
            }
        }
        Ok(())
    }

    /// The leaf or contiguous group at or below a table that the boundary `at` would
    /// cut, if any.
    fn cut<'a>(
        &'a self,
        mut level: i8,
        mut table: &'a [AtomicU64],
        at: u64,
    ) -> Result<Option<Range<u64>>, Lost> {
        let geometry = self.geometry();
        loop {
            let descriptor = table[geometry.index(level, at) as usize].load(Ordering::Acquire);
            if descriptor & VALID == 0 {
                return Ok(None);
            }
            if level == LAST_LEVEL || descriptor & TABLE == 0 {
                let size = 1 << (geometry.shift(level) + group_log2(geometry, level, descriptor));
                let start = at & !(size - 1);
                return Ok((start != at).then_some(start..start + size));
            }
            level += 1;
            table = self.table_at(level, geometry.address(descriptor))?;
        }
    }

    /// Appends the tables below the table at `level` and `address`, and itself.
    fn collect(&self, level: i8, address: u64, tables: &mut Vec<u64>) -> Result<(), Lost> {
        if level < LAST_LEVEL {
            for entry in self.table_at(level, address)? {
                let descriptor = entry.load(Ordering::Acquire);
                if descriptor & TABLE_OR_PAGE == TABLE_OR_PAGE {
                    let next = self.geometry().address(descriptor);
                    // The last tables hold no others: most never get read.
                    if level + 1 == LAST_LEVEL {
                        tables.push(next);
                    } else {
                        self.collect(level + 1, next, tables)?;
                    }
                }
            }
        }
        tables.push(address);
        Ok(())
    }
}

impl<M: TableMemory> Drop for Mapper<M> {
    /// Gives all tables back. No walker may use them any more.
    fn drop(&mut self) {
        let (level, base) = (self.geometry().initial_level(), self.table.base());
        let mut tables = Vec::new();
        // A table that was lost takes those below it along.
        let _ = self.collect(level, base, &mut tables);
        tables.retain(|&table| table != base);
        self.memory.free(self.geometry().granule().page_log2(), &tables);
        self.memory.free(initial_size_log2(self.geometry()), &[base]);
    }
}

/// log2 of what is allocated for an initial table: 64 bytes do for any context, whatever the size of its output addresses.
fn initial_size_log2(geometry: &Geometry) -> u8 {
    geometry.initial_size_log2().max(6)
}

/// log2 of the number of entries that share a translation with this one.
fn group_log2(geometry: &Geometry, level: i8, descriptor: u64) -> u8 {
    let joined = descriptor & CONTIGUOUS != 0;
    joined.then(|| geometry.contiguous_log2(level)).flatten().unwrap_or(0)
}

fn check_input(geometry: &Geometry, range: &Range<u64>, log2: u8) -> Result<(), MapError> {
    if range.is_empty() || (range.end - 1) >> geometry.input_bits() != 0 {
        return Err(MapError::Input(range.clone()));
    }
    if (range.start | range.end) & low_bits(log2) != 0 {
        return Err(MapError::Alignment(1 << log2));
    }
    Ok(())
}

/// The place of the first valid entry.
fn first_valid(entries: &[AtomicU64]) -> Option<usize> {
    let valid = |entry: &AtomicU64| entry.load(Ordering::Relaxed) & VALID != 0;
    // By the dozen first: a decision for each entry would cost more than its load.
    let (dozens, _) = entries.as_chunks::<16>();
    let dozen = dozens.iter().position(|dozen| {
        dozen.iter().fold(0, |all, entry| all | entry.load(Ordering::Relaxed)) & VALID != 0
    });
    let from = dozen.unwrap_or(dozens.len()) * 16;
    entries[from..].iter().position(valid).map(|n| from + n)
}

fn clear(entries: &[AtomicU64]) {
    for entry in entries {
        entry.store(0, Ordering::Relaxed);
    }
}
