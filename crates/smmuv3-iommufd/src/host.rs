//! What the back-end asks of the host, as traits: [`Iommufd`](crate::Iommufd) and [`VfioDevice`](crate::VfioDevice)
//! are the real ones.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::HwInfo;

/// An iommufd: objects are named by the ids that it gives them. Errors are the `errno` of its ioctls.
///
/// What the arguments mean is said in `linux/iommufd.h`.
pub trait Host: Send + Sync {
    /// `IOMMU_GET_HW_INFO` of the SMMU that a device is behind.
    fn hw_info(&self, device: u32) -> io::Result<HwInfo>;

    /// `IOMMU_HWPT_ALLOC` with `NEST_PARENT`: a stage 2 filled from an IOAS.
    fn nest_parent(&self, device: u32, ioas: u32) -> io::Result<u32>;

    /// `IOMMU_VIOMMU_ALLOC` of an SMMUv3 over a nesting parent. `EINVAL` if the two do not fit.
    fn viommu(&self, device: u32, parent: u32) -> io::Result<u32>;

    /// `IOMMU_HWPT_ALLOC` on a vIOMMU with a stream table entry.
    fn nested(
        &self,
        device: u32,
        viommu: u32,
        ste: [u64; 2],
        fault_queue: Option<u32>,
    ) -> io::Result<u32>;

    /// `IOMMU_VDEVICE_ALLOC`.
    fn vdevice(&self, viommu: u32, device: u32, stream_id: u32) -> io::Result<u32>;

    /// `IOMMU_VEVENTQ_ALLOC`: an object, and a file to read events from. A read that finds none returns 0 or
    /// `WouldBlock`.
    fn event_queue(&self, viommu: u32, depth: u32) -> io::Result<(u32, File)>;

    /// `IOMMU_FAULT_QUEUE_ALLOC`: an object, and a file to read page requests from and to write
    /// responses to. Reads are as above.
    fn fault_queue(&self) -> io::Result<(u32, File)>;

    /// `IOMMU_HWPT_INVALIDATE` of commands in order.
    fn invalidate(&self, viommu: u32, commands: &[[u64; 2]]) -> Result<(), InvalidateError>;

    /// `IOMMU_DESTROY`.
    fn destroy(&self, object: u32) -> io::Result<()>;
}

/// Not all commands of an [`invalidate`](Host::invalidate) were carried out.
#[derive(Debug, thiserror::Error)]
#[error("command {done}: {error}")]
pub struct InvalidateError {
    /// The number of commands that the host claims to have handled.
    pub done: usize,
    /// Why it stopped.
    #[source]
    pub error: io::Error,
}

/// A device that is bound to the iommufd. It is attached to one page table at a time, its first.
pub trait Device: Send + Sync {
    /// Its id there.
    fn id(&self) -> u32;
    /// Attaches it, or replaces what it is attached to.
    fn attach(&self, page_table: u32) -> io::Result<()>;
    /// Detaches it: its transactions abort.
    fn detach(&self) -> io::Result<()>;
}

/// An object of the host that goes with its owner.
pub(crate) struct Object {
    host: Arc<dyn Host>,
    pub(crate) id: u32,
}

impl Object {
    pub(crate) fn new(host: &Arc<dyn Host>, id: u32) -> Self {
        Self { host: host.clone(), id }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Err(error) = self.host.destroy(self.id) {
            tracing::warn!(id = self.id, %error, "an object of the host stays");
        }
    }
}
