//! What happens below the ioctls, for who watches.

use std::sync::Arc;
use std::time::Instant;

use host::Errno;
use iommu::Target;

use crate::{Error, Id};

/// An array of invalidations, `IOMMU_HWPT_INVALIDATE`, is done with.
#[derive(Debug)]
#[non_exhaustive]
pub struct Invalidation<'a> {
    /// The context.
    pub context: u64,
    /// The vIOMMU, or the nested HWPT.
    pub target: Id,
    /// Whether it is a vIOMMU.
    pub is_viommu: bool,
    /// `IOMMU_HWPT_INVALIDATE_DATA_*` or `IOMMU_VIOMMU_INVALIDATE_DATA_*`.
    pub data_type: u32,
    /// Bytes of an entry.
    pub entry_len: u32,
    /// Entries that user space gave.
    pub entry_num: u32,
    /// Entries that were carried out.
    pub done: u32,
    /// Those that the driver has read, one after the other, as far as it read them whole: the first
    /// [`Invalidation::ENTRIES`] of them.
    pub entries: &'a [u8],
    /// What the ioctl answers.
    pub result: Result<(), Errno>,
    /// When it began.
    pub started: Instant,
}

impl Invalidation<'_> {
    /// How many entries are shown at most.
    pub const ENTRIES: usize = 64;
}

/// A device, or a PASID of it, is on another HWPT than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attachment<'a> {
    /// The context.
    pub context: u64,
    /// The device's id in it.
    pub id: Id,
    /// The device's name.
    pub device: &'a str,
    /// Which of its traffic.
    pub target: Target,
    /// What it is on now: nothing, if it was detached.
    pub hwpt: Option<Id>,
    /// The vIOMMU of that, if it is a nested HWPT of one.
    pub viommu: Option<Id>,
}

/// Who watches. Methods are called by the thread that does it, some of them with the context's lock held: do not wait,
/// and do not call back. A context is known by a number that no other context of this process has.
pub trait Observer: Send + Sync {
    /// Something was invalidated.
    fn invalidated(&self, invalidation: &Invalidation<'_>) {
        let _ = invalidation;
    }

    /// A device was attached, replaced or detached. Told for the device that was asked for, whose group goes with it.
    fn attached(&self, attachment: &Attachment<'_>) {
        let _ = attachment;
    }

    /// A device is in a vIOMMU from now on, as `virt_id`.
    fn vdevice(&self, context: u64, viommu: Id, device: &str, virt_id: u64) {
        let _ = (context, viommu, device, virt_id);
    }

    /// The hardware has an event for a vIOMMU: `data`, of the type `IOMMU_VEVENTQ_TYPE_*`. `lost`: its queue is full.
    fn vevent(&self, context: u64, viommu: Id, event_type: u32, data: &[u8], lost: bool) {
        let _ = (context, viommu, event_type, data, lost);
    }
}

/// A context's view of who watches.
#[derive(Clone)]
pub(crate) struct Watch {
    observer: Option<Arc<dyn Observer>>,
    context: u64,
}

impl Watch {
    pub(crate) fn new(observer: Option<Arc<dyn Observer>>, context: u64) -> Self {
        Self { observer, context }
    }

    /// Tells the observer, if there is one, and what it calls this context.
    #[inline]
    pub(crate) fn tell(&self, f: impl FnOnce(&dyn Observer, u64)) {
        if let Some(observer) = &self.observer {
            f(&**observer, self.context);
        }
    }

    /// Whether anybody watches.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.observer.is_some()
    }
}

/// What the observer is told of a result.
pub(crate) fn errno(result: &Result<(), Error>) -> Result<(), Errno> {
    result.as_ref().copied().map_err(Error::errno)
}
