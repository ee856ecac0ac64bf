use std::any::Any;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::{Error, UserArray};

bitflags::bitflags! {
    /// What a mapping permits: Linux's `IOMMU_READ` and so on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// Devices may read.
        const READ = 1 << 0;
        /// Devices may write.
        const WRITE = 1 << 1;
        /// DMA is cache coherent.
        const CACHE = 1 << 2;
        /// Devices may not execute.
        const NOEXEC = 1 << 3;
        /// The target is device memory.
        const MMIO = 1 << 4;
    }
}

/// What addresses and sizes a paging domain can map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// The IOVAs that can be mapped, inclusive.
    pub aperture: RangeInclusive<u64>,
    /// Bit n is set if there is a leaf of 2^n bytes. Never 0.
    pub page_sizes: u64,
}

impl Geometry {
    /// The smallest leaf in bytes: every address and length is a multiple.
    pub fn min_page(&self) -> u64 {
        1 << self.page_sizes.trailing_zeros()
    }
}

/// Why a mapping could not be made. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Part of the range is mapped already.
    #[error("part of the range is mapped already")]
    Overlap,
    /// An address or length is misaligned, empty or outside the geometry.
    #[error("the range does not fit the domain's geometry")]
    Invalid,
    /// No memory for tables.
    #[error("no memory for page tables")]
    NoMemory,
}

/// What a device is attached to.
#[derive(Clone)]
pub enum Domain {
    /// All DMA aborts.
    Blocked,
    /// IOVA = physical address.
    Identity,
    /// A table that maps IOVAs to physical addresses.
    Paging(Arc<dyn PagingDomain>),
    /// A stage 1 that user space owns, over a stage 2 that it does not.
    Nested(Arc<dyn NestedDomain>),
}

impl Domain {
    /// Whether both are the same domain, not merely equal ones.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Blocked, Self::Blocked) | (Self::Identity, Self::Identity) => true,
            (Self::Paging(a), Self::Paging(b)) => Arc::ptr_eq(a, b),
            (Self::Nested(a), Self::Nested(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blocked => "blocked",
            Self::Identity => "identity",
            Self::Paging(_) => "paging",
            Self::Nested(_) => "nested",
        })
    }
}

/// A page table that its owner fills. Devices may translate through it while
/// any of these methods runs.
pub trait PagingDomain: Any + Send + Sync {
    /// What can be mapped; it never changes.
    fn geometry(&self) -> Geometry;

    /// Maps `len` bytes at `iova` to the contiguous `pa`, with the largest
    /// leaves that alignment and the geometry allow but none larger than
    /// `largest` bytes (a power of two). All of it, or nothing.
    fn map(&self, iova: u64, pa: u64, len: u64, prot: Prot, largest: u64) -> Result<(), MapError>;

    /// Unmaps what is mapped in `[iova, iova + len)`, which must cover whole
    /// leaves. The pages may be reused only after [`PagingDomain::sync`].
    fn unmap(&self, iova: u64, len: u64);

    /// Completes the invalidations that [`PagingDomain::unmap`] began: when it
    /// returns, no device uses what was unmapped.
    fn sync(&self) {}

    /// The physical address behind one IOVA.
    fn iova_to_phys(&self, iova: u64) -> Option<u64>;

    /// Makes DMA through this domain snoop whatever the device asks for; called
    /// right after allocation. Says whether that is guaranteed.
    fn enforce_cache_coherency(&self) -> bool {
        false
    }

    /// Dirty tracking, if the hardware has it.
    fn dirty(&self) -> Option<&dyn DirtyTracking> {
        None
    }
}

/// Dirty bits in a domain's leaves.
pub trait DirtyTracking {
    /// Switches recording of dirty bits on or off.
    fn set_enabled(&self, enabled: bool) -> Result<(), Error>;

    /// Reports the parts of `[iova, iova + len)` that lie in a dirty leaf, as
    /// `(iova, len)` in ascending order; unless `keep`, makes those leaves
    /// clean. Takes effect for devices before it returns.
    fn read_and_clear(&self, iova: u64, len: u64, keep: bool, report: &mut dyn FnMut(u64, u64));
}

/// A stage 1 that user space owns, over a stage 2 that the driver keeps inside.
pub trait NestedDomain: Any + Send + Sync {
    /// Executes user space's invalidations in order, up to the first error.
    /// Returns how many were carried out, and that error.
    fn invalidate(&self, array: &UserArray<'_>) -> (u32, Result<(), Error>) {
        let _ = array;
        (0, Err(Error::Unsupported("this nested domain takes its invalidations elsewhere")))
    }
}
