//! Transactions in flight, so that an invalidation completes only after those that it concerns.
//!
//! Each [`Requester`](crate::Requester) owns a [`Marker`]: an odd number while a transaction of
//! its is between translation and completion. A `CMD_SYNC` takes down the markers that are odd and
//! completes once each of them has changed. A transaction writes its own marker only, so
//! transactions never share a cache line.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::sync::{AtomicBool, AtomicU64, Fence, Ordering};

/// Whether one requester has a transaction in flight. On a cache line of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Marker(AtomicU64);

/// All markers of one SMMU.
#[derive(Debug)]
pub(crate) struct InFlight<F> {
    markers: Mutex<Vec<Arc<Marker>>>,
    awaited: AtomicBool,
    fence: F,
}

impl<F: Fence> InFlight<F> {
    pub(crate) fn new(fence: F) -> Self {
        Self { markers: Mutex::new(Vec::new()), awaited: AtomicBool::new(false), fence }
    }

    pub(crate) fn register(&self) -> Arc<Marker> {
        let marker = Arc::new(Marker(AtomicU64::new(0)));
        self.markers.lock().push(marker.clone());
        marker
    }

    /// The requester is gone, and so is a transaction of its that nobody ended. Returns whether
    /// somebody waits for that.
    #[must_use]
    pub(crate) fn unregister(&self, marker: &Arc<Marker>) -> bool {
        self.markers.lock().retain(|m| !Arc::ptr_eq(m, marker));
        self.end(marker)
    }

    /// A transaction begins: cached state that it reads from here on stays in use until [`end`](Self::end).
    #[inline]
    pub(crate) fn begin(&self, marker: &Marker) {
        let idle = marker.0.load(Ordering::Relaxed);
        marker.0.store(idle | 1, Ordering::Relaxed);
        self.fence.light();
    }

    /// The transaction is complete. Returns whether somebody waits for that.
    #[inline]
    #[must_use]
    pub(crate) fn end(&self, marker: &Marker) -> bool {
        let busy = marker.0.load(Ordering::Relaxed);
        marker.0.store((busy | 1).wrapping_add(1), Ordering::Release);
        self.fence.light();
        self.awaited.load(Ordering::Relaxed)
    }

    /// The transactions that began before now and have not ended. While the result is not empty,
    /// [`end`](Self::end) reports to whoever ends one of them.
    pub(crate) fn outstanding(&self) -> Outstanding {
        self.fence.heavy();
        let mut outstanding = Outstanding(
            self.markers
                .lock()
                .iter()
                .filter_map(|marker| {
                    let value = marker.0.load(Ordering::Acquire);
                    (value & 1 == 1).then(|| (marker.clone(), value))
                })
                .collect(),
        );
        if !outstanding.0.is_empty() {
            // Announce first, then look again: a transaction that ended in between is not missed.
            self.awaited.store(true, Ordering::Relaxed);
            self.fence.heavy();
            outstanding.refresh();
        }
        outstanding
    }

    /// Nobody waits any more, unless `others` do.
    pub(crate) fn forget_unless(&self, others: bool) {
        if !others {
            self.awaited.store(false, Ordering::Relaxed);
        }
    }
}

/// Transactions that a `CMD_SYNC` waits for.
#[derive(Debug, Default)]
pub(crate) struct Outstanding(Vec<(Arc<Marker>, u64)>);

impl Outstanding {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops those that have ended; returns whether none is left.
    pub(crate) fn refresh(&mut self) -> bool {
        self.0.retain(|(marker, value)| marker.0.load(Ordering::Acquire) == *value);
        self.0.is_empty()
    }
}
