//! Taking mappings away.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Cursor, Lost, Lowest, MapError, Mapper, Parts, first_valid};
use crate::format::{TABLE_OR_PAGE, VALID};
use crate::geometry::LAST_LEVEL;
use crate::memory::TableMemory;

/// What walkers may still remember: collected over any number of calls, to be
/// invalidated once.
#[derive(Debug, Default)]
#[must_use = "TLBs must be invalidated, and tables recycled"]
pub struct Gather {
    range: Option<Range<u64>>,
    pub(super) tables: Vec<u64>,
}

impl Gather {
    /// A range that includes every leaf that was changed or removed: all TLB entries for
    /// it must go. `None` if nothing was.
    pub fn range(&self) -> Option<Range<u64>> {
        self.range.clone()
    }

    /// Whether tables were taken out: what walkers remember of tables must go too, not
    /// only of leaves.
    pub fn has_tables(&self) -> bool {
        !self.tables.is_empty()
    }

    pub(super) fn add(&mut self, range: Range<u64>) {
        self.range = Some(match self.range.take() {
            Some(known) => known.start.min(range.start)..known.end.max(range.end),
            None => range,
        });
    }
}

impl<M: TableMemory> Mapper<M> {
    /// Unmaps what is mapped in `range`, which must not cut through a leaf or a
    /// contiguous group; holes in it are no error. Nothing is unmapped on an error, except
    /// [`Lost`](MapError::Lost). Dirty state goes with the leaves: whoever wants it
    /// [collects](Self::read_dirty) it first.
    ///
    /// Tables in which nothing is left are taken out. Their memory stays untouched until
    /// the caller has invalidated what `gather` says and calls
    /// [`recycle`](Self::recycle): a walker may still be reading them.
    pub fn unmap(&mut self, range: Range<u64>, gather: &mut Gather) -> Result<(), MapError> {
        self.check_input(&range)?;
        let before = gather.tables.len();
        let result = self.unmap_checked(&range, gather);
        let in_place = gather.tables.len() == before;
        self.cursor = result.as_ref().ok().copied().flatten().filter(|_| in_place);
        result.map(drop)
    }

    fn unmap_checked(
        &self,
        range: &Range<u64>,
        gather: &mut Gather,
    ) -> Result<Option<Cursor>, MapError> {
        let Lowest { level, table, cursor } = self.lowest(range)?;
        self.check_cuts(level, table, range)?;
        // Only if its table is empty now does it take a way from the top.
        if self.remove(level, table, range, gather)? && level > self.geometry().initial_level() {
            let (level, base) = (self.geometry().initial_level(), self.table.base());
            self.prune(level, self.table_at(level, base)?, range.start, gather)?;
        }
        Ok(cursor)
    }

    /// Takes out empty tables on the way to `input`; says whether this one has become
    /// empty.
    fn prune(
        &self,
        level: i8,
        table: &[AtomicU64],
        input: u64,
        gather: &mut Gather,
    ) -> Result<bool, Lost> {
        let entry = &table[self.geometry().index(level, input) as usize];
        let descriptor = entry.load(Ordering::Acquire);
        if level < LAST_LEVEL && descriptor & TABLE_OR_PAGE == TABLE_OR_PAGE {
            let address = self.geometry().address(descriptor);
            if self.prune(level + 1, self.table_at(level + 1, address)?, input, gather)? {
                entry.store(0, Ordering::Relaxed);
                gather.tables.push(address);
            }
        }
        Ok(first_valid(table).is_none())
    }

    /// Returns tables that [`unmap`](Self::unmap) took out to the memory. Every walker
    /// has forgotten them. Empties `gather`.
    pub fn recycle(&self, gather: &mut Gather) {
        if !gather.tables.is_empty() {
            self.memory.free(self.geometry().granule().page_log2(), &gather.tables);
            gather.tables.clear();
        }
        gather.range = None;
    }

    /// Says whether the table has become empty.
    fn remove(
        &self,
        level: i8,
        table: &[AtomicU64],
        range: &Range<u64>,
        gather: &mut Gather,
    ) -> Result<bool, Lost> {
        let parts = Parts::of(self.geometry(), level, range);
        let mut removed = false;
        for (index, part) in parts.partial() {
            let entry = &table[index];
            let descriptor = entry.load(Ordering::Acquire);
            // Nothing, or a table: a leaf would be cut.
            if level == LAST_LEVEL || descriptor & TABLE_OR_PAGE != TABLE_OR_PAGE {
                continue;
            }
            let address = self.geometry().address(descriptor);
            let next = self.table_at(level + 1, address)?;
            if self.remove(level + 1, next, part, gather)? {
                entry.store(0, Ordering::Relaxed);
                gather.tables.push(address);
                removed = true;
            }
        }
        let whole = &table[parts.whole.clone()];
        if level == LAST_LEVEL {
            if take(whole) & VALID != 0 {
                removed = true;
                gather.add(parts.whole_start..parts.input(whole.len()));
            }
        } else {
            for (n, entry) in whole.iter().enumerate() {
                let descriptor = entry.load(Ordering::Acquire);
                if descriptor & VALID == 0 {
                    continue;
                }
                removed = true;
                gather.add(parts.input(n)..parts.input(n + 1));
                entry.store(0, Ordering::Relaxed);
                if descriptor & TABLE_OR_PAGE == TABLE_OR_PAGE {
                    let address = self.geometry().address(descriptor);
                    self.collect(level + 1, address, &mut gather.tables)?;
                }
            }
        }
        // Neighbours tell first: what is used together lies together.
        let (before, rest) = table.split_at(parts.whole.start);
        let after = &rest[parts.whole.len()..];
        let last = before.last().map_or(0, |entry| entry.load(Ordering::Relaxed));
        Ok(removed
            && last & VALID == 0
            && first_valid(after).is_none()
            && first_valid(before).is_none())
    }
}

/// Clears all entries; returns the union of what they held.
fn take(entries: &[AtomicU64]) -> u64 {
    let mut all = 0;
    let (lines, few) = entries.as_chunks::<8>();
    for line in lines {
        all |= line.iter().fold(0, |all, entry| all | entry.load(Ordering::Relaxed));
        line.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }
    for entry in few {
        all |= entry.load(Ordering::Relaxed);
        entry.store(0, Ordering::Relaxed);
    }
    all
}
