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

/// Linux's `membarrier(2)`: nothing but a compiler barrier for each transaction.
#[cfg(all(feature = "membarrier", target_os = "linux"))]
#[derive(Debug, Clone, Copy)]
pub struct Membarrier(());

#[cfg(all(feature = "membarrier", target_os = "linux"))]
impl Membarrier {
    /// Registers the process, or `None` if the kernel does not know the call or a sandbox
    /// forbids it; use [`SeqCst`] then.
    pub fn new() -> Option<Self> {
        use rustix::thread::{MembarrierCommand, membarrier};
        membarrier(MembarrierCommand::RegisterPrivateExpedited).ok()?;
        membarrier(MembarrierCommand::PrivateExpedited).ok()?;
        Some(Self(()))
    }
}

#[cfg(all(feature = "membarrier", target_os = "linux"))]
impl Fence for Membarrier {
    #[inline]
    fn light(&self) {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    fn heavy(&self) {
        use rustix::thread::{MembarrierCommand, membarrier};
        // It worked in `new`, and nothing takes a registration back.
        membarrier(MembarrierCommand::PrivateExpedited)
            .expect("a registered process may issue membarrier");
    }
}
