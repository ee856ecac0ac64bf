//! Stage 2 of a VM: one page table for all of its SMMUs, if the hardware lets it.

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::host::{Host, Object};

/// The nesting parents of a VM, shared by its vSMMUs.
///
/// vSMMUs over one physical SMMU, or over several that are alike, share a page table; where the host refuses that,
/// there is another one over the same IOAS, and every map of guest memory costs once more.
pub struct NestParents {
    host: Arc<dyn Host>,
    ioas: u32,
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
    /// Page tables are made over `ioas`, which has the guest's memory at guest-physical addresses.
    pub fn new(host: Arc<dyn Host>, ioas: u32) -> Arc<Self> {
        Arc::new(Self { host, ioas, given: Mutex::default(), made: Mutex::default() })
    }

    /// Has `page_table` tried first: one that was allocated with `IOMMU_HWPT_ALLOC_NEST_PARENT`.
    /// It has to outlive the vSMMUs.
    pub fn adopt(&self, page_table: u32) {
        self.given.lock().push(page_table);
    }

    /// The ids of the page tables in use.
    pub fn ids(&self) -> Vec<u32> {
        self.candidates().iter().map(NestParent::id).collect()
    }

    fn candidates(&self) -> Vec<NestParent> {
        let mut made = self.made.lock();
        made.retain(|parent| parent.strong_count() > 0);
        let made = made.iter().filter_map(Weak::upgrade).map(NestParent::Made);
        self.given.lock().iter().copied().map(NestParent::Given).chain(made).collect()
    }

    /// A vIOMMU for the SMMU that `device` is behind, after what it stands on.
    pub(crate) fn viommu(&self, device: u32) -> io::Result<(NestParent, Object)> {
        for parent in self.candidates() {
            match self.host.viommu(device, parent.id()) {
                Ok(id) => return Ok((parent, Object::new(&self.host, id))),
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
