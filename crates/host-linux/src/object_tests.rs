use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const OBJECTS: u64 = 3;

fn key(n: u64) -> Key {
    Key::Inode { dev: (0, 1), inode: n }
}

/// A backing that covers everything; these tests never access it.
fn anything() -> Segment {
    let maps = std::sync::Arc::new(crate::vma::Maps::open(std::process::id()).unwrap());
    let vma = crate::vma::Vma {
        range: 0..1 << 46,
        readable: true,
        writable: true,
        shared: true,
        offset: 0,
        dev: (0, 1),
        inode: 1,
    };
    Segment::client(1, &maps, &vma, 0)
}

proptest! {
    /// The naive model: one pin count and one address per page.
    #[test]
    fn a_page_has_one_address_while_it_is_pinned(
        ops in prop::collection::vec((any::<bool>(), 0..OBJECTS, 0_u64..3000, 1_u64..700, any::<prop::sample::Index>()), 1..60)
    ) {
        let mut table = Table::new();
        let mut live: Vec<(u64, Vec<PhysRun>)> = Vec::new();
        let mut addresses: HashMap<(u64, u64), u64> = HashMap::new();
        for (pin, n, page, pages, pick) in ops {
            if pin || live.is_empty() {
                let range = page * PAGE_SIZE..(page + pages) * PAGE_SIZE;
                let runs = table.pin_known(key(n), &range, true)
                    .or_else(|| table.pin_new(key(n), &range, true, range.end, Some(anything())))
                    .unwrap();
                let mut at = page;
                for run in &runs {
                    for pa in (run.pa..run.pa + run.len).step_by(PAGE_SIZE as usize) {
                        let known = *addresses.entry((n, at)).or_insert(pa);
                        prop_assert_eq!(known, pa, "object {} page {}", n, at);
                        // Aligned alike up to 2 MiB, so that huge leaves fit.
                        prop_assert_eq!(pa % (1 << MIN_ORDER), at * PAGE_SIZE % (1 << MIN_ORDER));
                        at += 1;
                    }
                }
                prop_assert_eq!(at, page + pages);
                live.push((n, runs));
            } else {
                let (n, runs) = live.swap_remove(pick.index(live.len()));
                for run in runs {
                    for key in table.unpin(run) {
                        table.remove_if_unpinned(key);
                    }
                }
                if !live.iter().any(|(m, _)| *m == n) {
                    prop_assert!(!table.objects.contains_key(&key(n)));
                    addresses.retain(|(m, _), _| *m != n);
                }
            }
            let mut seen: HashMap<u64, (u64, u64)> = HashMap::new();
            for (&page, &pa) in &addresses {
                prop_assert_eq!(seen.insert(pa, page), None, "two pages share an address");
            }
            let pinned: u64 = live.iter().flat_map(|(_, runs)| runs).map(|run| run.len / PAGE_SIZE).sum();
            prop_assert_eq!(table.pinned_pages(), pinned);
        }
        for (_, runs) in live {
            for run in runs {
                for key in table.unpin(run) {
                    table.remove_if_unpinned(key);
                }
            }
        }
        prop_assert!(table.objects.is_empty() && table.by_pa.is_empty());
    }
}

#[test]
fn a_large_object_is_one_aligned_run() {
    let mut table = Table::new();
    let size = 1 << 34;
    let runs = table.pin_new(key(1), &(0..size), true, size, Some(anything())).unwrap();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].pa % size, 0);
}

#[test]
fn unpinning_what_was_never_pinned_is_harmless() {
    let table = Table::new();
    assert!(table.unpin(PhysRun { pa: 1 << 48, len: 1 << 30 }).is_empty());
    assert!(table.unpin(PhysRun { pa: u64::MAX, len: u64::MAX }).is_empty());
}
