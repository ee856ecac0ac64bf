//! The B+tree: descent, insertion, removal.
//!
//! Every inner node keeps exact bounds of its children and, per alignment, an
//! upper bound of the room inside them (see [`Inner::rooms`]).

use crate::arena::Arena;
use crate::node::{Inner, Leaf, Slot};
use crate::room::{CLASSES, Gap, RAGGED};
use crate::{Entry, InsertError};

/// Deeper than 2^32 nodes can get: neighbouring nodes of the real sizes hold at
/// least 9 children between them and the root is never a chain.
const MAX_HEIGHT: usize = 16;

/// Ranges in a leaf.
pub(crate) const LEAF: usize = 64;
/// Children of an inner node: a search looks at all of their summaries.
pub(crate) const INNER: usize = 32;

/// A B+tree with `L` ranges in a leaf and `I` children in an inner node. Tests
/// use tiny nodes to reach every edge quickly.
#[derive(Clone, Debug)]
pub(crate) struct Tree<V, const L: usize, const I: usize> {
    pub(crate) leaves: Arena<Leaf<V, L>>,
    pub(crate) inners: Arena<Inner<I>>,
    pub(crate) root: u32,
    /// Levels of inner nodes above the leaves.
    pub(crate) height: usize,
    pub(crate) len: usize,
}

/// The way from the root down to a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    steps: [(u32, u32); MAX_HEIGHT],
    len: usize,
    pub(crate) leaf: u32,
}

impl Path {
    fn new() -> Self {
        Self { steps: [(0, 0); MAX_HEIGHT], len: 0, leaf: 0 }
    }

    #[inline]
    fn push(&mut self, node: u32, slot: usize) {
        self.steps[self.len] = (node, slot as u32);
        self.len += 1;
    }

    /// The deepest inner node and the slot taken there, removed from the path.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<(u32, usize)> {
        self.len = self.len.checked_sub(1)?;
        let (node, slot) = self.steps[self.len];
        Some((node, slot as usize))
    }
}

impl<V, const L: usize, const I: usize> Tree<V, L, I> {
    pub(crate) const fn new() -> Self {
        Self { leaves: Arena::new(), inners: Arena::new(), root: 0, height: 0, len: 0 }
    }

    /// The leaf that holds `addr`, if anything does.
    #[inline]
    pub(crate) fn leaf_of(&self, addr: u64) -> u32 {
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = &self.inners[node];
            node = inner.children[inner.slot_of(addr)];
        }
        node
    }

    #[inline]
    pub(crate) fn path_to(&self, addr: u64) -> Path {
        let mut path = Path::new();
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = &self.inners[node];
            let slot = inner.slot_of(addr);
            path.push(node, slot);
            node = inner.children[slot];
        }
        path.leaf = node;
        path
    }

    /// The path to the leaf after the one `path` leads to.
    pub(crate) fn next_leaf(&self, mut path: Path) -> Option<Path> {
        let (mut node, mut slot) = path.pop()?;
        while slot + 1 == self.inners[node].len() {
            (node, slot) = path.pop()?;
        }
        path.push(node, slot + 1);
        let mut child = self.inners[node].children[slot + 1];
        while path.len < self.height {
            path.push(child, 0);
            child = self.inners[child].children[0];
        }
        path.leaf = child;
        Some(path)
    }

    /// Leaf and position of the range that contains `addr`.
    #[inline]
    pub(crate) fn find(&self, addr: u64) -> Option<(u32, usize)> {
        if self.len == 0 {
            return None;
        }
        let id = self.leaf_of(addr);
        let leaf = &self.leaves[id];
        let at = leaf.rank(addr).checked_sub(1)?;
        (leaf.last(at) >= addr).then_some((id, at))
    }

    /// First address of the range after everything `path` leads to.
    #[inline]
    fn start_after(&self, path: &Path) -> Option<u64> {
        let steps = path.steps[..path.len].iter().rev();
        steps
            .map(|&(node, slot)| (&self.inners[node], slot as usize + 1))
            .find(|(inner, next)| *next < inner.len())
            .map(|(inner, next)| inner.firsts[next])
    }

    /// Last address of the range before everything `path` leads to.
    #[inline]
    fn last_before(&self, path: &Path) -> Option<u64> {
        let steps = path.steps[..path.len].iter().rev();
        steps
            .map(|&(node, slot)| (&self.inners[node], slot as usize))
            .find(|(_, slot)| *slot > 0)
            .map(|(inner, slot)| inner.lasts[slot - 1])
    }

    /// The lowest range that shares an address with `[start, last]`.
    #[inline]
    pub(crate) fn first_overlap(&self, start: u64, last: u64) -> Option<Entry<&V>> {
        if self.len == 0 || start > last {
            return None;
        }
        let mut leaf = &self.leaves[self.leaf_of(start)];
        let mut at = leaf.first_reaching(start);
        if at == leaf.len() {
            let next = self.next_leaf(self.path_to(start))?;
            (leaf, at) = (&self.leaves[next.leaf], 0);
        }
        (leaf.starts[at] <= last).then(|| leaf.entry(at))
    }

    pub(crate) fn insert(&mut self, start: u64, last: u64, value: V) -> Result<(), InsertError<V>> {
        if start > last {
            return Err(InsertError::Backwards { value });
        }
        if self.len == 0 {
            match self.leaves.get_mut(self.root) {
                Some(leaf) => leaf.insert(0, start, last, value),
                // A map that stays small should not pay for a full node of values.
                None => self.root = self.leaves.add(Leaf::with(start, last, value, 1)),
            }
            self.len = 1;
            return Ok(());
        }
        let path = self.path_to(start);
        let leaf = &self.leaves[path.leaf];
        let at = leaf.rank(start);
        let at_end = at == leaf.len();
        let next = if at_end { self.start_after(&path) } else { Some(leaf.starts[at]) };
        if at > 0 && leaf.last(at - 1) >= start {
            let (start, last) = (leaf.starts[at - 1], leaf.last(at - 1));
            return Err(InsertError::Overlap { start, last, value });
        }
        if let Some(next) = next
            && next <= last
        {
            let (leaf, at) = self.find(next).expect("it starts here");
            let last = self.leaves[leaf].last(at);
            let start = next;
            return Err(InsertError::Overlap { start, last, value });
        }

        let edge = if at_end {
            Edge::End(Gap::between(leaf.last(at - 1), start))
        } else if at == 0 {
            Edge::Begin(Gap::between(last, leaf.starts[0]))
        } else {
            Edge::None
        };
        self.len += 1;
        if leaf.len() < L {
            self.leaves[path.leaf].insert(at, start, last, value);
            let bound = if at_end { last } else { start };
            self.widen(path, edge, bound);
        } else {
            let end_of_map = next.is_none();
            let new = Insertion { at, edge, end_of_map, start, last, value };
            self.insert_into_full(path, new);
        }
        if let Some(next) = next {
            self.note_ragged(Gap::between(last, next), next);
        }
        Ok(())
    }

    /// Insertion only ever takes room away, but for the class of holes that begin
    /// inside a page: `gap`, which ends before `next`, may be a new one of those.
    #[inline]
    fn note_ragged(&mut self, gap: Gap, next: u64) {
        let room = gap.room(RAGGED);
        if room == 0 {
            return;
        }
        let mut path = self.path_to(next);
        while let Some((node, slot)) = path.pop() {
            let known = &mut self.inners[node].rooms[RAGGED][slot];
            *known = room.max(*known);
        }
    }

    /// Tells the ancestors on `path` about a new first or last range, which
    /// begins or ends at `bound`.
    #[inline]
    fn widen(&mut self, mut path: Path, edge: Edge, bound: u64) {
        match edge {
            // It took a part of a hole they know of.
            Edge::None => {}
            // Only the very first range of the map is inserted before its leaf.
            Edge::Begin(gap) => {
                while let Some((node, slot)) = path.pop() {
                    let inner = &mut self.inners[node];
                    inner.firsts[slot] = bound;
                    inner.raise(slot, gap);
                }
            }
            Edge::End(gap) => {
                while let Some((node, slot)) = path.pop() {
                    let inner = &mut self.inners[node];
                    inner.lasts[slot] = bound;
                    inner.raise(slot, gap);
                    if slot + 1 < inner.len() {
                        break;
                    }
                }
            }
        }
    }

    fn insert_into_full(&mut self, mut path: Path, new: Insertion<V>) {
        let Insertion { at, start, last, .. } = new;
        let mut edge = new.edge;
        let bound = if at == 0 { start } else { last };
        let middle = split_point(L, at, new.end_of_map);
        let left = &mut self.leaves[path.leaf];
        let right = if middle == L {
            Leaf::with(start, last, new.value, L)
        } else {
            let mut right = left.split_off(middle);
            if at < middle {
                left.insert(at, start, last, new.value);
            } else {
                right.insert(at - middle, start, last, new.value);
            }
            right
        };
        // The slot of the node that was split covers the holes of both halves.
        // Only a new node with nothing old inside is known better.
        let mut known = (middle == L).then_some([0; CLASSES]);
        let (mut old, mut new_node, mut level) = (path.leaf, self.leaves.add(right), 0);
        while let Some((node, slot)) = path.pop() {
            let (first, last) = self.bounds(level, old);
            let (new_first, new_last) = self.bounds(level, new_node);
            let inner = &mut self.inners[node];
            inner.firsts[slot] = first;
            inner.lasts[slot] = last;
            let mut rooms = known.unwrap_or_else(|| inner.rooms_of(slot));
            raise_all(&mut rooms, &Gap::between(last, new_first).rooms());
            match edge {
                Edge::None => {}
                Edge::Begin(gap) => {
                    inner.raise(slot, gap);
                }
                Edge::End(gap) => raise_all(&mut rooms, &gap.rooms()),
            }
            if matches!(edge, Edge::End(_)) && slot + 1 < inner.len() {
                edge = Edge::None;
            }
            let entry = Slot { first: new_first, last: new_last, child: new_node, rooms };
            let at = slot + 1;
            if inner.len() < I {
                inner.insert(at, &entry);
                self.widen(path, edge, bound);
                return;
            }
            let middle = split_point(I, at, new.end_of_map);
            let mut right = inner.split_off(middle);
            if at < middle {
                inner.insert(at, &entry);
            } else {
                right.insert(at - middle, &entry);
            }
            known = (middle == I).then_some(rooms);
            (old, new_node, level) = (node, self.inners.add(right), level + 1);
        }
        self.grow(level, old, new_node);
    }

    /// A new root above the two halves of the old one.
    fn grow(&mut self, level: usize, left: u32, right: u32) {
        let mut root = Inner::new();
        for (at, child) in [left, right].into_iter().enumerate() {
            let (first, last) = self.bounds(level, child);
            let rooms = std::array::from_fn(|class| self.room(level, child, class));
            root.insert(at, &Slot { first, last, child, rooms });
        }
        if let Some(gap) = root.gap_before(1) {
            root.raise(1, gap);
        }
        self.root = self.inners.add(root);
        self.height += 1;
    }

    pub(crate) fn remove(&mut self, start: u64) -> Option<Entry<V>> {
        if self.len == 0 {
            return None;
        }
        let path = self.path_to(start);
        let leaf = &self.leaves[path.leaf];
        let at = leaf.rank(start).checked_sub(1)?;
        if leaf.starts[at] != start {
            return None;
        }
        let last = leaf.last(at);
        let previous = match at {
            0 => self.last_before(&path),
            _ => Some(leaf.last(at - 1)),
        };
        let next =
            if at + 1 == leaf.len() { self.start_after(&path) } else { Some(leaf.starts[at + 1]) };
        let gap = previous.zip(next).map(|(previous, next)| Gap::between(previous, next));
        let leaf = &mut self.leaves[path.leaf];
        let value = leaf.remove(at);
        let (begin, end) = (at == 0, at == leaf.len());
        self.len -= 1;
        if self.len > 0 {
            self.narrow(path, begin, end, gap);
        } else if self.leaves.has_grown() {
            *self = Self::new();
        }
        // A map that never was large keeps its leaf: it is often filled again.
        Some(Entry { start, last, value })
    }

    /// Tells the ancestors on `path` that its leaf lost a range, its first
    /// (`begin`) or last (`end`) or another one, which left `gap` if there are
    /// ranges on both sides. Joins nodes that have become small.
    fn narrow(&mut self, mut path: Path, mut begin: bool, mut end: bool, gap: Option<Gap>) {
        let (mut child, mut level) = (path.leaf, 0);
        while let Some((node, slot)) = path.pop() {
            let child_len = self.len_of(level, child);
            let bounds = (child_len > 0 && (begin || end)).then(|| self.bounds(level, child));
            let inner = &mut self.inners[node];
            // The slot that answers for the hole, if it is not one further up.
            let covering = if let Some((first, last)) = bounds {
                inner.firsts[slot] = first;
                inner.lasts[slot] = last;
                let hole_before = begin && slot == 0;
                let hole_slot = slot + usize::from(end);
                begin &= slot == 0;
                end &= slot + 1 == inner.len();
                (!hole_before && hole_slot < inner.len()).then_some(hole_slot)
            } else if child_len > 0 {
                Some(slot)
            } else {
                inner.remove(slot);
                begin &= slot == 0;
                end &= slot == inner.len();
                (slot > 0 && slot < inner.len()).then_some(slot)
            };
            let mut go_on = begin || end || child_len == 0;
            if let (Some(slot), Some(gap)) = (covering, gap) {
                go_on |= inner.raise(slot, gap);
            }
            if child_len == 0 {
                self.free(level, child);
            } else {
                go_on |= self.join(level, node, slot, child_len);
            }
            if !go_on {
                break;
            }
            (child, level) = (node, level + 1);
        }
        while self.height > 0 && self.inners[self.root].len() == 1 {
            self.root = self.inners.take(self.root).children[0];
            self.height -= 1;
        }
    }

    /// Joins the small child in `slot` with a neighbour, if what comes out has
    /// some air left.
    fn join(&mut self, level: usize, node: u32, slot: usize, len: usize) -> bool {
        let capacity = if level == 0 { L } else { I };
        if len > capacity / 4 {
            return false;
        }
        let inner = &self.inners[node];
        let lefts = [Some(slot), slot.checked_sub(1)].into_iter().flatten();
        let left = lefts.filter(|left| left + 1 < inner.len()).find(|&left| {
            let [a, b] = [left, left + 1].map(|slot| self.len_of(level, inner.children[slot]));
            a + b <= capacity * 3 / 4
        });
        let Some(left) = left else {
            return false;
        };
        let (into, from) = (inner.children[left], inner.children[left + 1]);
        if level == 0 {
            let from = self.leaves.take(from);
            self.leaves[into].append(from);
        } else {
            let from = self.inners.take(from);
            self.inners[into].append(&from);
        }
        self.inners[node].merge_slots(left);
        true
    }

    fn free(&mut self, level: usize, node: u32) {
        if level == 0 {
            self.leaves.take(node);
        } else {
            self.inners.take(node);
        }
    }

    pub(crate) fn len_of(&self, level: usize, node: u32) -> usize {
        match level {
            0 => self.leaves[node].len(),
            _ => self.inners[node].len(),
        }
    }

    pub(crate) fn bounds(&self, level: usize, node: u32) -> (u64, u64) {
        match level {
            0 => self.leaves[node].bounds(),
            _ => self.inners[node].bounds(),
        }
    }

    /// Bound of the room inside a node; exact if it is a leaf.
    pub(crate) fn room(&self, level: usize, node: u32, class: usize) -> u64 {
        match level {
            0 => self.leaves[node].room(class),
            _ => self.inners[node].room(class),
        }
    }

    pub(crate) fn for_each_mut(&mut self, start: u64, last: u64, mut f: impl FnMut(Entry<&mut V>)) {
        if self.len == 0 || start > last {
            return;
        }
        let mut path = self.path_to(start);
        let mut from = self.leaves[path.leaf].first_reaching(start);
        loop {
            let leaf = &mut self.leaves[path.leaf];
            for at in from..leaf.len() {
                if leaf.starts[at] > last {
                    return;
                }
                f(leaf.entry_mut(at));
            }
            match self.next_leaf(path) {
                Some(next) => path = next,
                None => return,
            }
            from = 0;
        }
    }

    pub(crate) fn memory_usage(&self) -> usize {
        let tails = self.leaves.iter().map(Leaf::memory_usage).sum::<usize>();
        self.leaves.memory_usage() + self.inners.memory_usage() + tails
    }
}

/// What an inserted range is in its leaf.
#[derive(Clone, Copy)]
enum Edge {
    None,
    /// The first, with this hole after it.
    Begin(Gap),
    /// The last, with this hole before it.
    End(Gap),
}

struct Insertion<V> {
    at: usize,
    edge: Edge,
    end_of_map: bool,
    start: u64,
    last: u64,
    value: V,
}

/// Where to split a full node that grows at `at`: at the end of the map nothing
/// comes between, so the node stays full; an append elsewhere is likely one of
/// many; otherwise in the middle.
fn split_point(capacity: usize, at: usize, end_of_map: bool) -> usize {
    if at < capacity {
        capacity / 2
    } else if end_of_map {
        capacity
    } else {
        capacity - (capacity / 8).max(1)
    }
}

fn raise_all(rooms: &mut [u64; CLASSES], by: &[u64; CLASSES]) {
    for (room, &by) in rooms.iter_mut().zip(by) {
        *room = by.max(*room);
    }
}
