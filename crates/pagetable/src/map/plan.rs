//! What a call of `map` writes where: sizes of leaves, ranges cut into entries.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{MapError, check_input};
use crate::attributes::Attributes;
use crate::format::{CONTIGUOUS, TABLE_OR_PAGE, VALID};
use crate::geometry::{Geometry, LAST_LEVEL, low_bits};

/// Sizes of leaves: bit n for 2^n bytes. No size is both a block's and a group's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Of blocks and pages.
    pub(super) leaves: u64,
    /// Of contiguous groups.
    pub(super) groups: u64,
}

impl Sizes {
    pub(super) fn of(geometry: &Geometry) -> Self {
        let leaves = geometry.leaf_sizes();
        Self { leaves, groups: geometry.page_sizes() & !leaves }
    }

    #[inline]
    pub(super) fn restricted_to(self, sizes: u64) -> Self {
        Self { leaves: self.leaves & sizes, groups: self.groups & sizes }
    }
}

/// What one call of `map` writes.
pub(super) struct Plan {
    /// Output address minus input address.
    distance: u64,
    /// The attribute bits of a leaf.
    attributes: u64,
    /// Sizes of the leaves, and of the contiguous groups, that it may use.
    sizes: u64,
}

impl Plan {
    #[inline]
    pub(super) fn new(
        geometry: &Geometry,
        range: &Range<u64>,
        output: u64,
        attributes: Attributes,
        offered: Sizes,
    ) -> Result<Self, MapError> {
        let smallest = offered.leaves.trailing_zeros() as u8;
        check_input(geometry, range, smallest)?;
        if output & low_bits(smallest) != 0 {
            return Err(MapError::Alignment(1 << smallest));
        }
        let last = output.checked_add(range.end - range.start - 1);
        if last.is_none_or(|last| geometry.is_beyond_output(last)) {
            return Err(MapError::Output(output));
        }
        let distance = output.wrapping_sub(range.start);
        // A size can be used where input and output are equally aligned to it.
        let aligned = distance ^ distance.wrapping_sub(1);
        let ours = geometry.address_mask() | TABLE_OR_PAGE | CONTIGUOUS;
        let sizes = (offered.leaves | offered.groups) & aligned;
        Ok(Self { distance, attributes: attributes.bits() & !ours, sizes })
    }

    /// Whether blocks or pages may stand at `level`.
    #[inline]
    pub(super) fn leaves_at(&self, geometry: &Geometry, level: i8) -> bool {
        self.sizes >> geometry.shift(level) & 1 != 0
    }

    /// log2 of the number of leaves in a contiguous group at `level`, if there are to be any.
    #[inline]
    fn groups_at(&self, geometry: &Geometry, level: i8) -> Option<u8> {
        let log2 = geometry.granule().contiguous_log2(level)?;
        (self.sizes >> (geometry.shift(level) + log2) & 1 != 0).then_some(log2)
    }

    /// How many tables a new table at `level` needs below itself.
    pub(super) fn tables_below(&self, geometry: &Geometry, level: i8, range: &Range<u64>) -> usize {
        if level == LAST_LEVEL {
            return 0;
        }
        let parts = Parts::of(geometry, level, range);
        let edges =
            parts.partial().map(|(_, part)| 1 + self.tables_below(geometry, level + 1, part));
        let mut count = edges.sum();
        if !self.leaves_at(geometry, level) && !parts.whole.is_empty() {
            let whole = 0..1 << parts.shift;
            count += parts.whole.len() * (1 + self.tables_below(geometry, level + 1, &whole));
        }
        count
    }

    /// Writes leaves to `entries`, the first of which translates `input`.
    pub(super) fn fill(&self, geometry: &Geometry, level: i8, entries: &[AtomicU64], input: u64) {
        let shift = geometry.shift(level);
        let kind = if level == LAST_LEVEL { TABLE_OR_PAGE } else { VALID };
        let bits = self.attributes | kind;
        let output = input.wrapping_add(self.distance);
        let Some(group_log2) = self.groups_at(geometry, level) else {
            fill_run(geometry, shift, entries, output, bits);
            return;
        };
        // Single leaves up to the first whole group, groups, and single leaves.
        let group = 1usize << group_log2;
        let before = ((input >> shift).wrapping_neg() as usize & (group - 1)).min(entries.len());
        let (singles, rest) = entries.split_at(before);
        let (groups, last) = rest.split_at(rest.len() & !(group - 1));
        let mut output = output;
        for (run, bits) in [(singles, bits), (groups, bits | CONTIGUOUS), (last, bits)] {
            fill_run(geometry, shift, run, output, bits);
            output = output.wrapping_add((run.len() as u64) << shift);
        }
    }
}

/// Writes leaves with consecutive output addresses.
fn fill_run(geometry: &Geometry, shift: u8, entries: &[AtomicU64], output: u64, bits: u64) {
    let (mut rest, mut output) = (entries, output);
    while !rest.is_empty() {
        // Where the address carries into bits that stand elsewhere, a new run begins.
        let left = (geometry.straight_end(output) - output) >> shift;
        let (run, after) = rest.split_at(rest.len().min(left as usize));
        let mut descriptor = geometry.address_field(output) | bits;
        // Line by line: the additions of a line do not wait for each other.
        let (lines, few) = run.as_chunks::<8>();
        for line in lines {
            for (n, entry) in (0_u64..).zip(line) {
                entry.store(descriptor.wrapping_add(n << shift), Ordering::Relaxed);
            }
            descriptor = descriptor.wrapping_add(8 << shift);
        }
        for entry in few {
            entry.store(descriptor, Ordering::Relaxed);
            descriptor = descriptor.wrapping_add(1 << shift);
        }
        output += (run.len() as u64) << shift;
        rest = after;
    }
}

/// How a range falls on the entries of one table.
pub(super) struct Parts {
    /// log2 of what an entry spans.
    pub(super) shift: u8,
    /// Entries of which the range covers a part: at most the first and the last.
    edges: [Option<(usize, Range<u64>)>; 2],
    /// Entries that are covered in full.
    pub(super) whole: Range<usize>,
    /// The input address of the first of these.
    pub(super) whole_start: u64,
}

impl Parts {
    /// For a range that is not empty and lies below one table at `level`.
    #[inline]
    pub(super) fn of(geometry: &Geometry, level: i8, range: &Range<u64>) -> Self {
        let shift = geometry.shift(level);
        let mask = low_bits(shift);
        let index = |input| geometry.index(level, input) as usize;
        let start = (range.start + mask) & !mask;
        let end = range.end & !mask;
        if start > end {
            let inside = Some((index(range.start), range.clone()));
            return Self { shift, edges: [inside, None], whole: 0..0, whole_start: start };
        }
        let head = (range.start < start).then(|| (index(range.start), range.start..start));
        let tail = (end < range.end).then(|| (index(end), end..range.end));
        let first = if start == end { 0 } else { index(start) };
        let whole = first..first + ((end - start) >> shift) as usize;
        Self { shift, edges: [head, tail], whole, whole_start: start }
    }

    #[inline]
    pub(super) fn partial(&self) -> impl Iterator<Item = (usize, &Range<u64>)> {
        self.edges.iter().flatten().map(|(index, part)| (*index, part))
    }

    /// The input address of the n-th whole entry.
    #[inline]
    pub(super) fn input(&self, n: usize) -> u64 {
        self.whole_start + ((n as u64) << self.shift)
    }

    /// All entries that the range touches.
    pub(super) fn touched(&self) -> Range<usize> {
        let mut touched = self.whole.clone();
        for (index, _) in self.partial() {
            touched = if touched.is_empty() {
                index..index + 1
            } else {
                touched.start.min(index)..touched.end.max(index + 1)
            };
        }
        touched
    }
}
