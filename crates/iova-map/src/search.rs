//! First-fit search for an aligned hole.

use crate::room::Request;
use crate::tree::Tree;

/// What came of looking through a part of the map.
enum Outcome {
    Found(u64),
    /// Whatever follows begins after the window.
    PastWindow,
    Nothing,
}

impl<V, const L: usize, const I: usize> Tree<V, L, I> {
    /// The lowest answer to `request`.
    pub(crate) fn find_gap(&mut self, request: &Request, lo: u64) -> Option<u64> {
        let answer =
            if self.len == 0 { request.fit(0, u64::MAX) } else { self.first_fit(request, lo) };
        answer.and_then(|answer| request.within_window(answer))
    }

    fn first_fit(&mut self, request: &Request, lo: u64) -> Option<u64> {
        // The leaf around the bottom of the window, hole by hole …
        let mut path = self.path_to(lo);
        let leaf = &self.leaves[path.leaf];
        let at = leaf.rank(lo);
        let mut free = match at {
            0 => 0,
            _ => leaf.last(at - 1).checked_add(1)?,
        };
        for i in at..leaf.len() {
            if leaf.starts[i] > free
                && let Some(answer) = request.fit(free, leaf.starts[i] - 1)
            {
                return Some(answer);
            }
            free = leaf.last(i).checked_add(1)?;
        }
        // … then what lies to the right of the path, guided by the summaries.
        let mut level = 0;
        while let Some((node, slot)) = path.pop() {
            level += 1;
            match self.search_slots(level, node, slot + 1, request) {
                Outcome::Found(answer) => return Some(answer),
                Outcome::PastWindow => return None,
                Outcome::Nothing => {}
            }
        }
        let (_, last) = self.bounds(self.height, self.root);
        request.fit(last.checked_add(1)?, u64::MAX)
    }

    /// The holes before and inside the children of `node` from slot `from` on.
    fn search_slots(&mut self, level: usize, node: u32, from: usize, request: &Request) -> Outcome {
        let mut from = from;
        loop {
            let inner = &self.inners[node];
            let Some(slot) = request.may_fit(&inner.rooms, from, inner.len()) else {
                return Outcome::Nothing;
            };
            let first = inner.firsts[slot];
            if let Some(gap) = inner.gap_before(slot)
                && gap.size > 0
                && let Some(answer) = request.fit(gap.start, first - 1)
            {
                return Outcome::Found(answer);
            }
            if first > request.hi {
                return Outcome::PastWindow;
            }
            let child = inner.children[slot];
            let outcome = match level {
                1 => self.search_leaf(child, request),
                _ => self.search_slots(level - 1, child, 0, request),
            };
            if !matches!(outcome, Outcome::Nothing) {
                return outcome;
            }
            self.sharpen(level, node, slot, request);
            from = slot + 1;
        }
    }

    fn search_leaf(&self, leaf: u32, request: &Request) -> Outcome {
        let mut gaps = self.leaves[leaf].gaps().filter(|gap| gap.size > 0);
        let answer = gaps.find_map(|gap| request.fit(gap.start, gap.start + (gap.size - 1)));
        answer.map_or(Outcome::Nothing, Outcome::Found)
    }

    /// Puts right a summary that promised too much: a child in which nothing was
    /// found had its own summaries put right on the way.
    fn sharpen(&mut self, level: usize, node: u32, slot: usize, request: &Request) {
        for class in request.classes() {
            let inner = &self.inners[node];
            let before = inner.gap_before(slot).map_or(0, |gap| gap.room(class));
            let inside = self.room(level - 1, inner.children[slot], class);
            self.inners[node].rooms[class][slot] = before.max(inside);
        }
    }
}
