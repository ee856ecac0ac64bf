//! The atomics of the lock-free parts, exchangeable for loom's.
//!
//! `RUSTFLAGS="--cfg loom"` swaps the standard atomics for instrumented ones, so that the model
//! checker runs the very code that ships.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// The two halves of the barrier between a transaction that announces itself and an invalidation
/// that looks for transactions in flight.
///
/// Either the transaction's [`light`](Self::light) half orders before the invalidation's
/// [`heavy`](Self::heavy) half, and the invalidation sees the transaction; or it orders after, and
/// the transaction sees the invalidation. Two sequentially consistent fences do this on every
/// machine ([`SeqCst`]). Where the operating system can interrupt other processors
/// (`membarrier(2)`), the light half may be a compiler barrier and the heavy half a system call,
/// which takes the fence off the path of each transaction.
pub trait Fence: Send + Sync + 'static {
    /// Executed by each transaction.
    fn light(&self);
    /// Executed by each `CMD_SYNC` and by each change of `SMMU_CR0.SMMUEN`.
    fn heavy(&self);
}

/// The portable [`Fence`]: both halves are a sequentially consistent fence.
#[derive(Debug, Default, Clone, Copy)]
pub struct SeqCst;

impl Fence for SeqCst {
    #[inline]
    fn light(&self) {
        fence(Ordering::SeqCst);
    }

    fn heavy(&self) {
        fence(Ordering::SeqCst);
    }
}
