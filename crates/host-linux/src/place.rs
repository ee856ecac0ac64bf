//! Where our own mappings go: out of the way of the client's, and known.
//!
//! The kernel would put them next to the client's, even into a hole that the
//! client has just made; a stray address of the client's would then find our
//! mapping instead of nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The part of the address space that programs rarely use.
const BEGIN: usize = 0x2000_0000_0000;
const END: usize = 0x6000_0000_0000;
/// Between two of our mappings, so that neither grows into the other.
const GUARD: usize = 1 << 30;

/// Our mappings: the end of each by its start.
static OURS: RwLock<BTreeMap<usize, usize>> = RwLock::new(BTreeMap::new());
static NEXT: AtomicUsize = AtomicUsize::new(BEGIN);

/// Addresses that are ours until it is dropped, which unmaps them.
#[derive(Debug)]
pub(crate) struct Place {
    base: usize,
    len: usize,
}

impl Place {
    /// Reserves `len` bytes, aligned so that huge pages can be mapped there.
    pub(crate) fn reserve(len: usize) -> Option<Self> {
        let step = len.checked_next_multiple_of(GUARD)? + GUARD;
        let mut hint = NEXT.fetch_add(step, Ordering::Relaxed);
        if hint + step > END {
            hint = BEGIN;
            NEXT.store(BEGIN + step, Ordering::Relaxed);
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: new addresses: the hint is not forced on anybody.
        let base =
            unsafe { mmap_anonymous(hint as *mut _, len, ProtFlags::empty(), flags) }.ok()?;
        let place = Self { base: base as usize, len };
        OURS.write().insert(place.base, place.base + len);
        Some(place)
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether an address is in a place of ours.
    pub(crate) fn is_ours(va: u64) -> bool {
        let ours = OURS.read();
        ours.range(..=va as usize).next_back().is_some_and(|(_, end)| (va as usize) < *end)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        OURS.write().remove(&self.base);
        // SAFETY: the addresses are ours alone, and nobody uses them any more.
        let unmapped = unsafe { munmap(self.base as *mut _, self.len) };
        debug_assert!(unmapped.is_ok(), "our own mapping");
    }
}
