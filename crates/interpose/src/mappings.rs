//! Mappings of emulated files: each file's guard is dropped with the last of
//! its mapping, which `munmap` may take away in pieces.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

type Guard = Arc<dyn Any + Send + Sync>;

/// Mappings by their first address: the end, and what keeps them valid.
static MAPPINGS: Mutex<BTreeMap<usize, (usize, Guard)>> = Mutex::new(BTreeMap::new());
/// How many there are: usually none, and that is all others pay.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn page_up(len: usize) -> usize {
    len.saturating_add(host::PAGE_SIZE as usize - 1) & !(host::PAGE_SIZE as usize - 1)
}

/// Says that `[start, start + len)` now maps what `guard` guards.
pub(crate) fn add(start: usize, len: usize, guard: Box<dyn Any + Send + Sync>) {
    let mut mappings = MAPPINGS.lock();
    let released = cut(&mut mappings, start, start.saturating_add(page_up(len)));
    // A box of a box, because a box of an unsized value does not become an arc.
    mappings.insert(start, (start + page_up(len), Arc::new(guard)));
    COUNT.store(mappings.len(), Ordering::Relaxed);
    drop(mappings);
    drop(released);
}

/// What guards the mapping at an address, and where that ends.
pub(crate) fn find(address: usize) -> Option<(Guard, usize)> {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let mappings = MAPPINGS.lock();
    let (_, (end, guard)) = mappings.range(..=address).next_back()?;
    (*end > address).then(|| (Arc::clone(guard), *end))
}

/// Says that nothing of ours is mapped in `[start, start + len)` any more.
#[inline]
pub(crate) fn remove(start: usize, len: usize) {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mut mappings = MAPPINGS.lock();
    let released = cut(&mut mappings, start, start.saturating_add(page_up(len)));
    COUNT.store(mappings.len(), Ordering::Relaxed);
    drop(mappings);
    // Guards may call us; not under the lock.
    drop(released);
}

/// Says that `mremap` moved or resized a mapping.
pub(crate) fn moved(old: usize, old_len: usize, new: usize, new_len: usize) {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mut mappings = MAPPINGS.lock();
    let old_end = old.saturating_add(page_up(old_len));
    let below = mappings.range(..=old).next_back();
    let guard = below.filter(|(_, (end, _))| *end > old).map(|(_, (_, guard))| Arc::clone(guard));
    // An old length of 0 duplicates a shared mapping.
    let mut released = if old_len == 0 { Vec::new() } else { cut(&mut mappings, old, old_end) };
    let new_end = new.saturating_add(page_up(new_len));
    released.extend(cut(&mut mappings, new, new_end));
    if let Some(guard) = guard {
        mappings.insert(new, (new_end, guard));
    }
    COUNT.store(mappings.len(), Ordering::Relaxed);
    drop(mappings);
    drop(released);
}

/// Locks the table for a fork.
pub(crate) fn lock() {
    std::mem::forget(MAPPINGS.lock());
}

/// Unlocks it.
///
/// # Safety
/// After [`lock`], on its thread or on the copy of it in a child.
pub(crate) unsafe fn unlock() {
    // SAFETY: as promised by the caller.
    unsafe { MAPPINGS.force_unlock() };
}

/// Forgets all mappings without releasing anything: in a child, what they hold
/// is the parent's.
///
/// # Safety
/// As for [`unlock`], before it.
pub(crate) unsafe fn forget() {
    // SAFETY: as promised by the caller: locked, and this is the only thread.
    std::mem::forget(std::mem::take(unsafe { &mut *MAPPINGS.data_ptr() }));
    COUNT.store(0, Ordering::Relaxed);
}

/// Cuts `[start, end)` out of all mappings; the guards that lost something.
fn cut(mappings: &mut BTreeMap<usize, (usize, Guard)>, start: usize, end: usize) -> Vec<Guard> {
    let meets = |met: &(&usize, &(usize, Guard))| *met.0 < end && met.1.0 > start;
    let met: Vec<usize> =
        mappings.range(..end).rev().take_while(meets).map(|(&first, _)| first).collect();
    let mut lost = Vec::new();
    for first in met {
        let Some((last, guard)) = mappings.remove(&first) else {
            continue;
        };
        if first < start {
            mappings.insert(first, (start, Arc::clone(&guard)));
        }
        if last > end {
            mappings.insert(end, (last, Arc::clone(&guard)));
        }
        lost.push(guard);
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The naive model: one owner per page.
        #[test]
        fn cutting_agrees_with_pages(ops in prop::collection::vec((any::<bool>(), 0_usize..40, 1_usize..12), 1..60)) {
            let page = host::PAGE_SIZE as usize;
            let mut mappings = BTreeMap::new();
            let mut pages = [None::<usize>; 64];
            let mut weak = Vec::new();
            for (n, (add, start, len)) in ops.into_iter().enumerate() {
                cut(&mut mappings, start * page, (start + len) * page);
                pages[start..start + len].fill(None);
                if add {
                    let guard: Guard = Arc::new(n);
                    weak.push((n, Arc::downgrade(&guard)));
                    mappings.insert(start * page, ((start + len) * page, guard));
                    pages[start..start + len].fill(Some(n));
                }
                for (index, &owner) in pages.iter().enumerate() {
                    let at = index * page;
                    let found = mappings.range(..=at).next_back().filter(|(_, (end, _))| *end > at);
                    let found = found.and_then(|(_, (_, guard))| guard.downcast_ref::<usize>().copied());
                    prop_assert_eq!(found, owner, "page {}", index);
                }
                for (n, guard) in &weak {
                    prop_assert_eq!(guard.strong_count() > 0, pages.contains(&Some(*n)));
                }
            }
        }
    }
}
