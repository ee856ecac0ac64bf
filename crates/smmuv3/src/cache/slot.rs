//! One cache entry that any number of threads read without a lock while one writes it.

use crate::sync::{AtomicU64, Ordering, fence};

/// A sequence lock around `N` words. 32 bytes for `N == 3`: two to a cache line.
///
/// An odd sequence number marks a writer at work; a reader that meets one, or that sees the number
/// change, reports a miss. Readers write nothing.
#[derive(Debug)]
#[repr(align(32))]
pub(crate) struct Slot<const N: usize> {
    sequence: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> Default for Slot<N> {
    fn default() -> Self {
        Self { sequence: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl<const N: usize> Slot<N> {
    /// The words as one writer stored them together, or `None` if one is at work.
    #[inline(always)]
    pub(crate) fn read(&self) -> Option<[u64; N]> {
        let before = self.sequence.load(Ordering::Acquire);
        let words = std::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
        // Orders the loads above before the one below.
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        (before == after && before & 1 == 0).then_some(words)
    }

    /// Becomes the slot's writer unless another is.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Writer<'_, N>> {
        let sequence = self.sequence.load(Ordering::Relaxed);
        if sequence & 1 == 1 {
            return None;
        }
        self.sequence
            .compare_exchange(sequence, sequence + 1, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        // Orders the odd number before every word the writer stores.
        fence(Ordering::Release);
        Some(Writer { slot: self, sequence: sequence + 1 })
    }

    /// Becomes the slot's writer, waiting for the one at work: a handful of stores.
    pub(crate) fn lock(&self) -> Writer<'_, N> {
        loop {
            if let Some(writer) = self.try_lock() {
                return writer;
            }
            #[cfg(loom)]
            loom::thread::yield_now();
            #[cfg(not(loom))]
            std::hint::spin_loop();
        }
    }
}

/// The right to change a [`Slot`]; readers see the change when it is dropped.
pub(crate) struct Writer<'a, const N: usize> {
    slot: &'a Slot<N>,
    sequence: u64,
}

impl<const N: usize> Writer<'_, N> {
    pub(crate) fn words(&self) -> [u64; N] {
        std::array::from_fn(|i| self.slot.words[i].load(Ordering::Relaxed))
    }

    pub(crate) fn set(&mut self, words: [u64; N]) {
        for (slot, word) in self.slot.words.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
    }
}

impl<const N: usize> Drop for Writer<'_, N> {
    fn drop(&mut self) {
        self.slot.sequence.store(self.sequence.wrapping_add(1), Ordering::Release);
    }
}
