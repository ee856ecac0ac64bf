//! Stage 2 of a VM: the page tables that its vIOMMUs stand on.

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::host::{Host, Object};

/// The nesting parents of a VM, for all of its vSMMUs.
///
/// The VMID of a vIOMMU is that of its page table. So vSMMUs over one page table share their ASIDs where they share
/// an SMMU of the host, and a guest that uses an ASID for one thing on one vSMMU and for another on the other finds its
/// translations mixed up. For a guest that does not, [`shared`](Self::shared) saves a copy of the tables, and time whenever
/// guest memory is mapped.
pub struct NestParents {
    host: Arc<dyn Host>,
    ioas: u32,
    share: bool,
    /// Made by the VMM, which also destroys them.
    given: Mutex<Vec<u32>>,
    made: Mutex<Vec<Weak<Object>>>,
}

/// One of them.
pub(crate) enum NestParent {
    Given(u32),
    Made(Arc<Object>),
}

impl NestParent {
    pub(crate) fn id(&self) -> u32 {
        match self {
            Self::Given(id) => *id,
            Self::Made(object) => object.id,
        }
    }
}

impl NestParents {
    /// A page table for each vSMMU, over an IOAS that has the guest's memory at guest-physical addresses.
    pub fn new(host: Arc<dyn Host>, ioas: u32) -> Arc<Self> {
        Self::with(host, ioas, false)
    }

    /// A page table for all vSMMUs, or as few as the host's hardware lets there be: for guests that use an ASID for the
    /// same address space on all of their SMMUs.
    pub fn shared(host: Arc<dyn Host>, ioas: u32) -> Arc<Self> {
        Self::with(host, ioas, true)
    }

    fn with(host: Arc<dyn Host>, ioas: u32, share: bool) -> Arc<Self> {
        Arc::new(Self { host, ioas, share, given: Mutex::default(), made: Mutex::default() })
    }

    /// Has `page_table` tried first, by all vSMMUs: one that was allocated with `IOMMU_HWPT_ALLOC_NEST_PARENT`. It has
    /// to outlive them.
    pub fn adopt(&self, page_table: u32) {
        self.given.lock().push(page_table);
    }

    /// The ids of the page tables in use, and of those adopted.
    pub fn ids(&self) -> Vec<u32> {
        let made = self.made.lock();
        let made = made.iter().filter_map(Weak::upgrade).map(|object| object.id);
        self.given.lock().iter().copied().chain(made).collect()
    }

    fn candidates(&self) -> Vec<NestParent> {
        let mut made = self.made.lock();
        made.retain(|parent| parent.strong_count() > 0);
        let made = made.iter().filter(|_| self.share).filter_map(Weak::upgrade);
        let given = self.given.lock();
        given.iter().copied().map(NestParent::Given).chain(made.map(NestParent::Made)).collect()
    }

    /// A vIOMMU for the SMMU that `device` is behind, after what it stands on.
    pub(crate) fn viommu(&self, device: u32) -> io::Result<(NestParent, Object)> {
        for parent in self.candidates() {
            match self.host.viommu(device, parent.id()) {
                Ok(id) => return Ok((parent, Object::new(&self.host, id))),
                // For another SMMU.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        let id = self.host.nest_parent(device, self.ioas)?;
        let made = Arc::new(Object::new(&self.host, id));
        let viommu = Object::new(&self.host, self.host.viommu(device, id)?);
        self.made.lock().push(Arc::downgrade(&made));
        Ok((NestParent::Made(made), viommu))
    }
}
