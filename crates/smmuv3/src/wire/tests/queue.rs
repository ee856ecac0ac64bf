//! Queue indexes against a queue that cannot go wrong.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::wire::register::Ring;

proptest! {
    /// Indexes that only ever increment describe the same queue as a `VecDeque`.
    #[test]
    fn indexes_follow_a_queue(
        log2size in 0_u32..5,
        pushes in prop::collection::vec(any::<bool>(), 0..200),
        start: u32,
    ) {
        let ring = Ring::new(log2size);
        let mut slots = vec![0; ring.entries() as usize];
        let mut queue = VecDeque::new();
        // Bits above the wrap flag are noise.
        let (mut prod, mut cons) = (start, start);
        for (value, push) in pushes.into_iter().enumerate() {
            if push && !ring.is_full(prod, cons) {
                slots[ring.index(prod) as usize] = value;
                queue.push_back(value);
                prod = ring.next(prod);
            } else if !push && !ring.is_empty(prod, cons) {
                prop_assert_eq!(Some(slots[ring.index(cons) as usize]), queue.pop_front());
                cons = ring.next(cons);
            }
            prop_assert_eq!(ring.len(prod, cons) as usize, queue.len());
            prop_assert_eq!(ring.is_empty(prod, cons), queue.is_empty());
            prop_assert_eq!(ring.is_full(prod, cons), queue.len() == slots.len());
        }
    }

    /// No value of the registers makes the arithmetic fail or name an entry that is not there.
    #[test]
    fn no_index_is_out_of_bounds(log2size: u32, prod: u32, cons: u32) {
        let ring = Ring::new(log2size);
        prop_assert!(ring.entries() <= 1 << 19);
        prop_assert!(ring.index(prod) < ring.entries());
        prop_assert!(ring.next(prod) <= ring.mask());
        prop_assert!(ring.len(prod, cons) < 2 * ring.entries());
    }
}

/// §3.5.1: these pairs of indexes are inconsistent; a producer may treat the queue as full.
#[test]
fn inconsistent_indexes_are_full() {
    let ring = Ring::new(3);
    // PROD.WR > CONS.RD with different wrap flags, and PROD.WR < CONS.RD with equal ones.
    for (prod, cons) in [(0b1_101, 0b0_010), (0b0_010, 0b0_101)] {
        assert!(ring.is_full(prod, cons));
        assert!(ring.len(prod, cons) > ring.entries());
    }
}
