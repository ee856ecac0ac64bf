//! An ordered map of non-overlapping inclusive ranges of I/O virtual addresses.
//!
//! This is what an I/O address space keeps its areas in. A terabyte guest has a
//! million of them, so every operation, the search for an aligned hole included,
//! descends one B+tree:
//!
//! | operation | cost for n ranges |
//! |---|---|
//! | [`insert`](IovaMap::insert), [`remove`](IovaMap::remove), [`get`](IovaMap::get), [`overlaps`](IovaMap::overlaps) | O(log n) |
//! | the next item of [`iter`](IovaMap::iter), [`range`](IovaMap::range), [`gaps`](IovaMap::gaps) | O(1) amortised |
//! | [`find_gap`](IovaMap::find_gap) | O(log n) amortised, see there |
//!
//! Ranges are inclusive because `[0, u64::MAX]` is one too. Neighbours are never
//! merged and never split: each range is somebody's mapping.
//!
//! ```
//! use iova_map::IovaMap;
//!
//! let mut areas = IovaMap::new();
//! areas.insert(0x1000, 0x1fff, "ring")?;
//! areas.insert(0x3000, 0x3fff, "buffer")?;
//! assert!(areas.insert(0x1fff, 0x2fff, "late").is_err());
//!
//! assert_eq!(areas.get(0x3abc).map(|area| *area.value), Some("buffer"));
//! // The lowest 8 KiB on an 8 KiB boundary, page 0 excepted.
//! assert_eq!(areas.find_gap(0x2000, 0x2000, 0, 0x1000, u64::MAX), Some(0x4000));
//! # Ok::<(), iova_map::InsertError<&str>>(())
//! ```
#![forbid(unsafe_code)]

mod arena;
mod iter;
mod node;
mod room;
mod search;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;

pub use iter::{Gaps, Iter};
use room::Request;
use tree::{INNER, LEAF, Tree};

/// A map from non-overlapping inclusive ranges `[start, last]` to values.
#[derive(Clone)]
pub struct IovaMap<V>(Tree<V, LEAF, INNER>);

/// One range of an [`IovaMap`] and its value, or a reference to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<V> {
    /// First address.
    pub start: u64,
    /// Last address, not less than `start`.
    pub last: u64,
    /// What the range was inserted with.
    pub value: V,
}

/// Why a range was not inserted. Gives the value back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum InsertError<V> {
    /// Another range is in the way.
    Overlap {
        /// First address of the lowest range in the way.
        start: u64,
        /// Its last address.
        last: u64,
        /// The value that was to be inserted.
        value: V,
    },
    /// The range ends before it starts.
    Backwards {
        /// The value that was to be inserted.
        value: V,
    },
}

impl<V> InsertError<V> {
    /// The value that was to be inserted.
    pub fn into_value(self) -> V {
        match self {
            Self::Overlap { value, .. } | Self::Backwards { value } => value,
        }
    }
}

// By hand, so that a value that cannot be printed does not get in the way of
// `unwrap()` and `?`.
impl<V> fmt::Debug for InsertError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<V> fmt::Display for InsertError<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { start, last, .. } => {
                write!(f, "overlaps the range {start:#x}..={last:#x}")
            }
            Self::Backwards { .. } => f.write_str("the range ends before it starts"),
        }
    }
}

impl<V> std::error::Error for InsertError<V> {}

impl<V> IovaMap<V> {
    /// An empty map. Allocates nothing.
    pub const fn new() -> Self {
        Self(Tree::new())
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Removes all ranges.
    pub fn clear(&mut self) {
        self.0 = Tree::new();
    }

    /// Adds the range `[start, last]`.
    ///
    /// # Errors
    /// If any address in it is taken, or `last < start`; then nothing changes.
    pub fn insert(&mut self, start: u64, last: u64, value: V) -> Result<(), InsertError<V>> {
        self.0.insert(start, last, value)
    }

    /// Removes the range that starts at `start`, not one that merely contains it.
    pub fn remove(&mut self, start: u64) -> Option<Entry<V>> {
        self.0.remove(start)
    }

    /// The range that contains `addr`.
    #[inline]
    pub fn get(&self, addr: u64) -> Option<Entry<&V>> {
        let (leaf, at) = self.0.find(addr)?;
        Some(self.0.leaves[leaf].entry(at))
    }

    /// The range that contains `addr`, to change its value.
    pub fn get_mut(&mut self, addr: u64) -> Option<Entry<&mut V>> {
        let (leaf, at) = self.0.find(addr)?;
        Some(self.0.leaves[leaf].entry_mut(at))
    }

    /// Whether any address in `[start, last]` is taken.
    pub fn overlaps(&self, start: u64, last: u64) -> bool {
        self.first_overlap(start, last).is_some()
    }

    /// The lowest range that shares an address with `[start, last]`.
    pub fn first_overlap(&self, start: u64, last: u64) -> Option<Entry<&V>> {
        self.0.first_overlap(start, last)
    }

    /// All ranges, ascending.
    pub fn iter(&self) -> Iter<'_, V> {
        self.range(0, u64::MAX)
    }

    /// The ranges that share an address with `[start, last]`, ascending.
    pub fn range(&self, start: u64, last: u64) -> Iter<'_, V> {
        Iter::new(&self.0, start, last)
    }

    /// Calls `f` with each range that shares an address with `[start, last]`,
    /// ascending, to change its value.
    pub fn for_each_mut(&mut self, start: u64, last: u64, f: impl FnMut(Entry<&mut V>)) {
        self.0.for_each_mut(start, last, f);
    }

    /// The holes in `[start, last]` as inclusive ranges, ascending, cut to it.
    pub fn gaps(&self, start: u64, last: u64) -> Gaps<'_, V> {
        Gaps::new(&self.0, start, last)
    }

    /// The lowest address `a` with `a % align == offset` such that all of
    /// `[a, a + len - 1]` is free and lies in `[lo, hi]`.
    ///
    /// `None` if there is none, and for requests that make no sense: `len` 0,
    /// `align` not a power of two, `offset` not less than `align`.
    ///
    /// # Complexity
    /// Amortised O(log n): each node knows the room below it for the alignments
    /// 1, 4 KiB, 8 KiB … 2 MiB and 1 GiB, so the search enters only nodes that
    /// hold an answer, however the holes are laid out. The summaries are upper
    /// bounds; a node whose bound has gone stale is entered in vain once for each
    /// change that made it so, and corrected, which is why this takes `&mut self`.
    ///
    /// That holds for `offset` 0 and these alignments, and also for an offset below
    /// 4 KiB as long as ranges end on page boundaries. Other requests get the same
    /// answer, but holes that are long enough and miss the alignment by
    /// more than the summaries tell have to be looked at one by one.
    pub fn find_gap(&mut self, len: u64, align: u64, offset: u64, lo: u64, hi: u64) -> Option<u64> {
        let request = Request::new(len, align, offset, lo, hi)?;
        self.0.find_gap(&request, lo)
    }

    /// Bytes on the heap, without what the values own and the allocator adds.
    pub fn memory_usage(&self) -> usize {
        self.0.memory_usage()
    }
}

impl<V> Default for IovaMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: fmt::Debug> fmt::Debug for IovaMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.iter().map(|entry| {
            let range = format!("{:#x}..={:#x}", entry.start, entry.last);
            (range, entry.value)
        });
        f.debug_map().entries(entries).finish()
    }
}

impl<'a, V> IntoIterator for &'a IovaMap<V> {
    type Item = Entry<&'a V>;
    type IntoIter = Iter<'a, V>;

    fn into_iter(self) -> Iter<'a, V> {
        self.iter()
    }
}
