//! Which pages of one [`super::pages::Pages`] are pinned, where, and by how
//! many holders: the general case, in parts.

use std::collections::BTreeMap;

use host::{PAGE_SIZE, PhysRun};

/// Pinned pages by index. Every part is physically contiguous and all its pages
/// have equally many holders.
#[derive(Debug, Default)]
pub(crate) struct PinnedParts(BTreeMap<u64, Part>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    last: u64,
    pa: u64,
    holds: u32,
}

impl Part {
    fn run(&self, first: u64) -> PhysRun {
        PhysRun { pa: self.pa, len: (self.last - first + 1) * PAGE_SIZE }
    }
}

impl PinnedParts {
    /// Adds runs of unpinned pages with `holds` holders, the first of which has
    /// the index `first`.
    pub(crate) fn insert(&mut self, mut first: u64, runs: &[PhysRun], holds: u32) {
        for run in runs {
            let last = first + run.len / PAGE_SIZE - 1;
            self.0.insert(first, Part { last, pa: run.pa, holds });
            first = last + 1;
        }
    }

    /// The pages of `first..=last` that are not pinned, as inclusive ranges.
    pub(crate) fn gaps(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut next = first;
        for (begin, part) in self.overlapping(first, last) {
            if next < begin {
                gaps.push((next, begin - 1));
            }
            next = part.last + 1;
        }
        if next <= last {
            gaps.push((next, last));
        }
        gaps
    }

    /// One more holder for `first..=last`, all of it pinned.
    pub(crate) fn hold(&mut self, first: u64, last: u64) {
        self.split(first);
        self.split(last + 1);
        for (_, part) in self.0.range_mut(first..=last) {
            part.holds += 1;
        }
        self.merge(first, last);
    }

    /// One holder fewer for `first..=last`; passes the runs nobody holds any
    /// more to `free` and forgets them.
    pub(crate) fn unhold(&mut self, first: u64, last: u64, mut free: impl FnMut(PhysRun)) {
        self.split(first);
        self.split(last + 1);
        let unheld: Vec<u64> = self
            .0
            .range_mut(first..=last)
            .filter_map(|(index, part)| {
                part.holds -= 1;
                (part.holds == 0).then_some(*index)
            })
            .collect();
        for index in unheld {
            if let Some(part) = self.0.remove(&index) {
                free(part.run(index));
            }
        }
        self.merge(first, last);
    }

    /// Every part as a run, with the index of its first page.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, PhysRun)> + '_ {
        self.0.iter().map(|(first, part)| (*first, part.run(*first)))
    }

    /// The runs of `first..=last`, whole parts at both ends.
    pub(crate) fn runs_of(
        &self,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = (u64, PhysRun)> + '_ {
        self.overlapping(first, last).map(|(first, part)| (first, part.run(first)))
    }

    /// The physical address and the holders, if this is one part from page 0 to
    /// `last`.
    pub(crate) fn as_whole(&self, last: u64) -> Option<(u64, u32)> {
        match self.0.first_key_value() {
            Some((0, part)) if part.last == last => Some((part.pa, part.holds)),
            _ => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &Part)> {
        let before = self.0.range(..first).next_back().filter(|(_, part)| part.last >= first);
        let from = before.map_or(first, |(index, _)| *index);
        self.0.range(from..=last).map(|(index, part)| (*index, part))
    }

    /// Makes `index` the first page of a part, if it lies in one.
    fn split(&mut self, index: u64) {
        let Some((first, part)) = self.0.range_mut(..index).next_back() else {
            return;
        };
        if part.last < index {
            return;
        }
        let tail = Part { pa: part.pa + (index - first) * PAGE_SIZE, ..*part };
        part.last = index - 1;
        self.0.insert(index, tail);
    }

    /// Joins what became equal in and around `first..=last`.
    fn merge(&mut self, first: u64, last: u64) {
        let from = self.0.range(..first).next_back().map_or(first, |(index, _)| *index);
        let to = last.saturating_add(1);
        let mut previous: Option<u64> = None;
        let indices: Vec<u64> = self.0.range(from..=to).map(|(index, _)| *index).collect();
        for index in indices {
            let part = self.0[&index];
            if let Some(before) = previous.and_then(|p| self.0.get_mut(&p).map(|part| (p, part))) {
                let (begin, before) = before;
                let contiguous = before.last + 1 == index
                    && before.pa + (index - begin) * PAGE_SIZE == part.pa
                    && before.holds == part.holds;
                if contiguous {
                    before.last = part.last;
                    self.0.remove(&index);
                    continue;
                }
            }
            previous = Some(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A physical layout with breaks: pages 0..4, 4..10 and 10.. are contiguous.
    fn pa_of(index: u64) -> u64 {
        let base = match index {
            0..4 => 0x10_0000,
            4..10 => 0x80_0000,
            _ => 0x40_0000,
        };
        base + index * PAGE_SIZE
    }

    fn pin(first: u64, last: u64) -> Vec<PhysRun> {
        let mut runs: Vec<PhysRun> = Vec::new();
        for index in first..=last {
            match runs.last_mut() {
                Some(run) if run.pa + run.len == pa_of(index) => run.len += PAGE_SIZE,
                _ => runs.push(PhysRun { pa: pa_of(index), len: PAGE_SIZE }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn counts_every_page_as_a_plain_array_does(
            ops in prop::collection::vec((any::<bool>(), 0u64..16, 0u64..8), 0..60)
        ) {
            let mut parts = PinnedParts::default();
            let mut model = [0u32; 24];
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (add, first, len) in ops {
                if add || held.is_empty() {
                    let last = first + len;
                    let gaps = parts.gaps(first, last);
                    for &(from, to) in &gaps {
                        prop_assert!((from..=to).all(|i| model[i as usize] == 0));
                        parts.insert(from, &pin(from, to), 0);
                    }
                    let missing: u64 = gaps.iter().map(|(from, to)| to - from + 1).sum();
                    let unpinned = (first..=last).filter(|i| model[*i as usize] == 0).count();
                    prop_assert_eq!(missing, unpinned as u64);
                    parts.hold(first, last);
                    (first..=last).for_each(|i| model[i as usize] += 1);
                    held.push((first, last));
                } else {
                    let (first, last) = held.swap_remove(first as usize % held.len());
                    let mut freed = Vec::new();
                    parts.unhold(first, last, |run| freed.push(run));
                    (first..=last).for_each(|i| model[i as usize] -= 1);
                    let freed: u64 = freed.iter().map(|run| run.len / PAGE_SIZE).sum();
                    let now_free = (first..=last).filter(|i| model[*i as usize] == 0).count();
                    prop_assert_eq!(freed, now_free as u64);
                }
                for index in 0..24u64 {
                    let found = parts.overlapping(index, index).next();
                    if let Some((begin, part)) = found {
                        prop_assert_eq!(part.holds, model[index as usize]);
                        prop_assert_eq!(part.pa + (index - begin) * PAGE_SIZE, pa_of(index));
                    } else { prop_assert_eq!(model[index as usize], 0) }
                }
                // Merged: no two neighbours could be one part.
                let all: Vec<_> = parts.0.iter().collect();
                for pair in all.windows(2) {
                    let ((begin, a), (next, b)) = (pair[0], pair[1]);
                    prop_assert!(
                        a.last + 1 != *next
                            || a.holds != b.holds
                            || a.pa + (next - begin) * PAGE_SIZE != b.pa
                    );
                }
            }
        }
    }
}
