//! Changing permissions, and dirty state.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Gather, Lowest, MapError, Mapper, group_log2};
use crate::attributes::{Attributes, PROTECTION};
use crate::format::{AF, AP_READ_ONLY, DBM, S2AP_WRITE, TABLE_OR_PAGE, VALID};
use crate::geometry::{LAST_LEVEL, Stage, low_bits};
use crate::memory::TableMemory;

/// What [`Mapper::visit`] meets on its way through a range.
enum Met<'a> {
    /// Nothing is mapped here.
    Hole(Range<u64>),
    /// A leaf, or all members of a contiguous group, with what they map in full.
    Leaf(&'a [AtomicU64], Range<u64>),
}

/// Bit 7 is AP\[2\] or S2AP\[1\]: the two stages mean the opposite by it.
const WRITE_BIT: u64 = AP_READ_ONLY;
const _: () = assert!(WRITE_BIT == S2AP_WRITE);

impl<M: TableMemory> Mapper<M> {
    /// Gives everything in `range` the permissions, DBM and AF of `attributes`; memory
    /// type, shareability and nG stay, as they cannot change in a live leaf without
    /// breaking it first. What hardware has marked dirty stays dirty while DBM stays.
    ///
    /// The whole range must be mapped and no leaf cut; nothing is changed on
    /// [`NotMapped`](MapError::NotMapped) or [`CutsLeaf`](MapError::CutsLeaf).
    /// Walkers may remember the old permissions until what `gather` says is
    /// invalidated.
    pub fn protect(
        &mut self,
        range: Range<u64>,
        attributes: Attributes,
        gather: &mut Gather,
    ) -> Result<(), MapError> {
        self.check_input(&range)?;
        let Lowest { level, table, .. } = self.lowest(&range)?;
        self.check_cuts(level, table, &range)?;
        self.visit(&range, &mut |met| match met {
            Met::Hole(hole) => Err(MapError::NotMapped(hole.start)),
            Met::Leaf(..) => Ok(()),
        })?;
        let stage = self.geometry().stage();
        let wanted = attributes.bits() & PROTECTION;
        self.visit(&range, &mut |met| {
            let Met::Leaf(entries, _) = met else { return Ok(()) };
            for entry in entries {
                update(entry, |old| {
                    let mut new = old & !PROTECTION | wanted;
                    if new & DBM != 0 && dirty(stage, old) {
                        new = new & !WRITE_BIT | old & WRITE_BIT;
                    }
                    new
                });
            }
            Ok(())
        })?;
        gather.add(range);
        Ok(())
    }

    /// Reports the parts of `range` that lie in dirty leaves, in ascending order and
    /// merged where they touch; with `clear`, makes those leaves clean that lie in the
    /// range in full. A dirty leaf has DBM set and is writable; a contiguous group is
    /// dirty if any member is.
    ///
    /// A write that goes on with an old TLB entry is not noticed: clearing counts once
    /// what `gather` says is invalidated.
    pub fn read_dirty(
        &self,
        range: Range<u64>,
        clear: bool,
        gather: &mut Gather,
        mut report: impl FnMut(Range<u64>),
    ) -> Result<(), MapError> {
        self.check_input(&range)?;
        let stage = self.geometry().stage();
        let mut pending = 0..0;
        let result = self.visit(&range, &mut |met| {
            let Met::Leaf(entries, leaf) = met else { return Ok(()) };
            if !entries.iter().any(|entry| dirty(stage, entry.load(Ordering::Relaxed))) {
                return Ok(());
            }
            if clear && range.start <= leaf.start && leaf.end <= range.end {
                for entry in entries {
                    // Hardware may be writing the entry: not without comparing.
                    update(entry, |old| if dirty(stage, old) { old ^ WRITE_BIT } else { old });
                }
                gather.add(leaf.clone());
            }
            let part = leaf.start.max(range.start)..leaf.end.min(range.end);
            if pending.end == part.start && !pending.is_empty() {
                pending.end = part.end;
            } else {
                let complete = std::mem::replace(&mut pending, part);
                if !complete.is_empty() {
                    report(complete);
                }
            }
            Ok(())
        });
        if !pending.is_empty() {
            report(pending);
        }
        result
    }

    /// Shows each hole and each leaf in `range`, in ascending order.
    fn visit<'a>(
        &'a self,
        range: &Range<u64>,
        f: &mut impl FnMut(Met<'a>) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let Lowest { level, table, .. } = self.lowest(range)?;
        self.visit_table(level, table, range, f)
    }

    fn visit_table<'a>(
        &'a self,
        level: i8,
        table: &'a [AtomicU64],
        range: &Range<u64>,
        f: &mut impl FnMut(Met<'a>) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let geometry = self.geometry();
        let shift = geometry.shift(level);
        let mut input = range.start;
        while input < range.end {
            let index = geometry.index(level, input) as usize;
            let descriptor = table[index].load(Ordering::Acquire);
            let mut next = (input | low_bits(shift)) + 1;
            let part = input..next.min(range.end);
            if descriptor & VALID == 0 {
                f(Met::Hole(part))?;
            } else if descriptor & TABLE_OR_PAGE == TABLE_OR_PAGE && level < LAST_LEVEL {
                let below = self.table_at(level + 1, geometry.address(descriptor))?;
                self.visit_table(level + 1, below, &part, f)?;
            } else {
                let group_log2 = group_log2(geometry, level, descriptor);
                let first = index >> group_log2 << group_log2;
                let inside = low_bits(shift + group_log2);
                next = (input | inside) + 1;
                f(Met::Leaf(&table[first..first + (1 << group_log2)], input & !inside..next))?;
            }
            input = next;
        }
        Ok(())
    }
}

/// Whether a leaf is marked as written to.
fn dirty(stage: Stage, descriptor: u64) -> bool {
    let written = match stage {
        Stage::One => 0,
        Stage::Two => WRITE_BIT,
    };
    descriptor & (VALID | DBM | WRITE_BIT) == VALID | DBM | written
}

/// Changes a live descriptor. Hardware may set AF where it is clear and the write bit
/// where DBM is set, and must not be overruled; anywhere else a store will do.
fn update(entry: &AtomicU64, change: impl Fn(u64) -> u64) {
    let mut old = entry.load(Ordering::Relaxed);
    if old & AF != 0 && old & DBM == 0 {
        entry.store(change(old), Ordering::Relaxed);
        return;
    }
    while let Err(now) =
        entry.compare_exchange_weak(old, change(old), Ordering::Relaxed, Ordering::Relaxed)
    {
        old = now;
    }
}
