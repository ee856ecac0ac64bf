//! A direct-mapped array of slots for pages of one size.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::generation::{REGIME_SHIFT, Space};
use super::slot::Slot;
use super::tlb::Data;
use crate::sync::AtomicU64;

/// The part of a page number that a key keeps: 52 bits of address and their sign.
const PAGE: u64 = (1 << REGIME_SHIFT) - 1;

/// Counts the invalidations that clear slots. A walk that began before one of them caches nothing.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

/// A reading of the [`Clock`], taken before a walk reads anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch(u64);

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Acquire))
    }

    /// To be called before the first slot is cleared.
    pub(crate) fn tick(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// See the module. A slot holds the key (page number and regime), the tag (stamp, VMID, ASID) and
/// the data.
#[derive(Debug)]
pub(crate) struct Array {
    slots: Box<[Slot<3>]>,
    /// Log2 of the page size, in bytes.
    shift: u32,
    /// Log2 of the size of the largest page that slots hold pieces of.
    piece: AtomicU8,
    /// Whether anything was ever remembered.
    used: AtomicBool,
}

#[inline]
pub(crate) fn tag(stamp: u32, space: &Space) -> u64 {
    u64::from(stamp) << 32 | u64::from(space.tag)
}

impl Array {
    pub(crate) fn new(log2: u8, shift: u32) -> Self {
        Self {
            slots: (0..1usize << log2).map(|_| Slot::default()).collect(),
            shift,
            piece: AtomicU8::new(shift as u8),
            used: AtomicBool::new(false),
        }
    }

    #[inline(always)]
    fn slot(&self, space: &Space, page: u64) -> &Slot<3> {
        &self.slots[(page.wrapping_add(space.salt.into())) as usize & (self.slots.len() - 1)]
    }

    /// Whether it is worth a look.
    #[inline(always)]
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// The entry for `address`, if it carries the [`tag`] that `wanted` says.
    #[inline(always)]
    pub(crate) fn lookup(
        &self,
        space: &Space,
        address: u64,
        wanted: impl Fn(Data) -> u64,
    ) -> Option<Data> {
        let page = address >> self.shift;
        let [key, found, data] = self.slot(space, page).read()?;
        let data = Data::from_raw(data);
        (key == space.regime | page & PAGE && found == wanted(data)).then_some(data)
    }

    /// Remembers `data` for the page around `address`, which is invalidated as part of `1 << scope`
    /// bytes; unless something was cleared since `epoch`.
    #[inline]
    #[expect(
        clippy::too_many_arguments,
        reason = "an entry, its place, and the state it belongs to"
    )]
    pub(crate) fn fill(
        &self,
        space: &Space,
        address: u64,
        scope: u32,
        data: Data,
        tag: u64,
        clock: &Clock,
        epoch: Epoch,
    ) {
        if self.piece.load(Ordering::Relaxed) < scope as u8 {
            self.piece.fetch_max(scope as u8, Ordering::AcqRel);
        }
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let page = address >> self.shift;
        let Some(mut slot) = self.slot(space, page).try_lock() else { return };
        // Whoever clears slots ticks first and then locks: either that lock comes after ours and
        // clears what we store, or ours comes after it and we see the tick.
        if clock.now().0 == epoch.0 {
            slot.set([space.regime | page & PAGE, tag, data.raw()]);
        }
    }

    /// Clears the slots that may hold a piece of `size` bytes from `address` on. Returns `false`,
    /// with nothing done, if they are a large part of the array: then retire a generation.
    #[must_use]
    pub(crate) fn clear(&self, space: &Space, address: u64, size: u64) -> bool {
        let scope = u32::from(self.piece.load(Ordering::Acquire));
        let first = address >> scope << (scope - self.shift);
        let last =
            ((address.saturating_add(size.saturating_sub(1)) >> scope) + 1) << (scope - self.shift);
        if last - first > (self.slots.len() as u64 / 8).max(1) {
            return false;
        }
        for page in first..last {
            // Always through the lock, see `fill`.
            let mut slot = self.slot(space, page).lock();
            let words = slot.words();
            if words[0] == space.regime | page & PAGE && words[1] as u32 == space.tag {
                slot.set([0; 3]);
            }
        }
        true
    }

    /// Clears every slot.
    pub(crate) fn sweep(&self) {
        for slot in &self.slots {
            slot.lock().set([0; 3]);
        }
    }
}
