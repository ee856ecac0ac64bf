//! Ranges and holes in ascending order.

use std::iter::FusedIterator;

use crate::tree::{INNER, LEAF, Path, Tree};
use crate::{Entry, node::Leaf};

/// Ranges in ascending order; see [`IovaMap::iter`](crate::IovaMap::iter) and
/// [`IovaMap::range`](crate::IovaMap::range).
#[derive(Debug)]
pub struct Iter<'a, V>(RawIter<'a, V, LEAF, INNER>);

/// Holes in ascending order; see [`IovaMap::gaps`](crate::IovaMap::gaps).
#[derive(Debug)]
pub struct Gaps<'a, V>(RawGaps<'a, V, LEAF, INNER>);

impl<'a, V> Iter<'a, V> {
    pub(crate) fn new(tree: &'a Tree<V, LEAF, INNER>, start: u64, last: u64) -> Self {
        Self(RawIter::new(tree, start, last))
    }
}

impl<'a, V> Gaps<'a, V> {
    pub(crate) fn new(tree: &'a Tree<V, LEAF, INNER>, start: u64, last: u64) -> Self {
        Self(RawGaps::new(tree, start, last))
    }
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = Entry<&'a V>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl<V> Iterator for Gaps<'_, V> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl<V> FusedIterator for Iter<'_, V> {}
impl<V> FusedIterator for Gaps<'_, V> {}

impl<V> Clone for Iter<'_, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
pub(crate) struct RawIter<'a, V, const L: usize, const I: usize> {
    tree: &'a Tree<V, L, I>,
    leaf: Option<(&'a Leaf<V, L>, Path)>,
    at: usize,
    last: u64,
}

impl<V, const L: usize, const I: usize> Clone for RawIter<'_, V, L, I> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'a, V, const L: usize, const I: usize> RawIter<'a, V, L, I> {
    pub(crate) fn new(tree: &'a Tree<V, L, I>, start: u64, last: u64) -> Self {
        let mut iter = Self { tree, leaf: None, at: 0, last };
        if tree.len > 0 && start <= last {
            let path = tree.path_to(start);
            let leaf = &tree.leaves[path.leaf];
            iter.at = leaf.first_reaching(start);
            iter.leaf = Some((leaf, path));
        }
        iter
    }
}

impl<'a, V, const L: usize, const I: usize> Iterator for RawIter<'a, V, L, I> {
    type Item = Entry<&'a V>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (mut leaf, path) = self.leaf?;
        if self.at == leaf.len() {
            self.leaf = self.tree.next_leaf(path).map(|path| (&self.tree.leaves[path.leaf], path));
            self.at = 0;
            leaf = self.leaf?.0;
        }
        let entry = leaf.entry(self.at);
        if entry.start > self.last {
            self.leaf = None;
            return None;
        }
        self.at += 1;
        Some(entry)
    }
}

#[derive(Debug)]
pub(crate) struct RawGaps<'a, V, const L: usize, const I: usize> {
    ranges: RawIter<'a, V, L, I>,
    /// First address not known to be taken or reported.
    next: Option<u64>,
}

impl<'a, V, const L: usize, const I: usize> RawGaps<'a, V, L, I> {
    pub(crate) fn new(tree: &'a Tree<V, L, I>, start: u64, last: u64) -> Self {
        Self { ranges: RawIter::new(tree, start, last), next: (start <= last).then_some(start) }
    }
}

impl<V, const L: usize, const I: usize> Iterator for RawGaps<'_, V, L, I> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = self.next?;
            let Some(range) = self.ranges.next() else {
                self.next = None;
                return (start <= self.ranges.last).then_some((start, self.ranges.last));
            };
            self.next = range.last.checked_add(1);
            if range.start > start {
                return Some((start, range.start - 1));
            }
        }
    }
}
