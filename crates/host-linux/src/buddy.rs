//! Power-of-two blocks of physical address space, naturally aligned.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

/// Where the addresses of objects begin; below lie virtual addresses of
/// private memory.
pub(crate) const WINDOW_START: u64 = 1 << 47;
/// Where they end.
const WINDOW_END: u64 = host::MACHINE_START;
/// Smallest block, 2 MiB: one leaf of every page size that matters.
pub(crate) const MIN_ORDER: u32 = 21;
const MAX_ORDER: u32 = 46;

/// A buddy allocator over `[WINDOW_START, WINDOW_END)`, lowest address first.
#[derive(Debug)]
pub(crate) struct Buddy {
    /// Free blocks by order, from [`MIN_ORDER`].
    free: Vec<BTreeSet<u64>>,
}

impl Buddy {
    pub(crate) fn new() -> Self {
        let mut free = vec![BTreeSet::new(); (MAX_ORDER - MIN_ORDER + 1) as usize];
        // The window as its naturally aligned blocks, the largest first.
        let mut block = WINDOW_START;
        while block < WINDOW_END {
            let order = block.trailing_zeros().min((WINDOW_END - block).ilog2()).min(MAX_ORDER);
            free[(order - MIN_ORDER) as usize].insert(block);
            block += 1 << order;
        }
        Self { free }
    }

    /// A block of `1 << order` bytes, or `None` if there is none.
    pub(crate) fn alloc(&mut self, order: u32) -> Option<u64> {
        let order = order.max(MIN_ORDER);
        let mut found = (order..=MAX_ORDER).find(|&o| !self.at(o).is_empty())?;
        let block = self.at(found).pop_first()?;
        while found > order {
            found -= 1;
            self.at(found).insert(block + (1 << found));
        }
        Some(block)
    }

    /// Gives back what [`Self::alloc`] returned for `order`.
    pub(crate) fn free(&mut self, mut block: u64, order: u32) {
        let mut order = order.max(MIN_ORDER);
        // The largest blocks have no buddies in the window.
        while order < MAX_ORDER {
            let buddy = block ^ (1 << order);
            if !self.at(order).remove(&buddy) {
                break;
            }
            block &= buddy;
            order += 1;
        }
        self.at(order).insert(block);
    }

    fn at(&mut self, order: u32) -> &mut BTreeSet<u64> {
        &mut self.free[(order - MIN_ORDER) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_aligned_disjoint_and_merge_again(
            ops in prop::collection::vec((prop::bool::weighted(0.6), 12_u32..49, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut buddy = Buddy::new();
            let mut live: Vec<(u64, u32)> = Vec::new();
            for (alloc, order, pick) in ops {
                if alloc || live.is_empty() {
                    if let Some(block) = buddy.alloc(order) {
                        let order = order.max(MIN_ORDER);
                        let end = block + (1 << order);
                        prop_assert_eq!(block % (1 << order), 0);
                        prop_assert!(block >= WINDOW_START && end <= WINDOW_END);
                        for &(b, o) in &live {
                            prop_assert!(end <= b || b + (1 << o) <= block);
                        }
                        live.push((block, order));
                    }
                } else {
                    let (block, order) = live.swap_remove(pick.index(live.len()));
                    buddy.free(block, order);
                }
            }
            for (block, order) in live {
                buddy.free(block, order);
            }
            prop_assert_eq!(buddy.free, Buddy::new().free);
        }
    }
}
