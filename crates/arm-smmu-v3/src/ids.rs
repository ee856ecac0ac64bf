//! ASIDs and VMIDs.

use parking_lot::Mutex;

/// Numbers of some bits. 0 is nobody's: entries in TLBs that belong to no domain have it.
pub(crate) struct Ids {
    state: Mutex<State>,
}

struct State {
    /// One bit for each number that is in use.
    used: Box<[u64]>,
    /// No number in the words before this one is free.
    from: usize,
}

impl Ids {
    pub(crate) fn new(bits: u8) -> Self {
        let mut used: Box<[u64]> = vec![0; 1 << (bits - 6)].into();
        used[0] = 1;
        Self { state: Mutex::new(State { used, from: 0 }) }
    }

    /// The smallest number that is free.
    pub(crate) fn take(&self) -> Option<u16> {
        let state = &mut *self.state.lock();
        let ahead = state.used[state.from..].iter().position(|&word| word != !0);
        state.from = ahead.map_or(state.used.len(), |ahead| state.from + ahead);
        let word = state.used.get_mut(state.from)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        Some((state.from as u32 * 64 + bit) as u16)
    }

    /// Gives a number back. No TLB knows it any more.
    pub(crate) fn give(&self, id: u16) {
        let state = &mut *self.state.lock();
        let n = usize::from(id) / 64;
        state.used[n] &= !(1 << (id % 64));
        state.from = state.from.min(n);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_but_0_can_be_had_once() {
        for bits in [8, 16] {
            let ids = Ids::new(bits);
            let all: BTreeSet<_> = std::iter::from_fn(|| ids.take()).collect();
            assert_eq!(all.len(), (1 << bits) - 1);
            assert!(!all.contains(&0));
            ids.give(77);
            assert_eq!((ids.take(), ids.take()), (Some(77), None));
        }
    }

    proptest! {
        #[test]
        fn as_a_set_would_have_it(steps in prop::collection::vec(any::<Option<u8>>(), 0..600)) {
            let ids = Ids::new(8);
            let mut free: BTreeSet<u16> = (1..256).collect();
            for step in steps {
                match step.map(u16::from) {
                    Some(id) if id != 0 && !free.contains(&id) => {
                        ids.give(id);
                        free.insert(id);
                    }
                    _ => prop_assert_eq!(ids.take(), free.pop_first()),
                }
            }
        }
    }
}
