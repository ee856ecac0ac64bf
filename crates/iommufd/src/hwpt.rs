//! Hardware page tables: domains as objects.

use std::sync::Arc;

use iommu::{
    Capability, Device, Domain, NestedDomain, PagingDomain, PagingFlags, Target, UserData,
};
use uapi::iommufd as u;

use crate::context::{Object, State};
use crate::error::fallible;
use crate::fault::FaultQueue;
use crate::sw_msi::SwMsi;
use crate::{Error, Id};

const NEST_PARENT: u32 = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
const DIRTY_TRACKING: u32 = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
const FAULT_ID_VALID: u32 = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
const PASID: u32 = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID;

/// A paging domain that follows an IOAS.
pub(crate) struct HwptPaging {
    pub(crate) ioas: Id,
    pub(crate) domain: Arc<dyn PagingDomain>,
    /// Made by attaching a device to the IOAS; it goes with its last device.
    pub(crate) auto: bool,
    pub(crate) nest_parent: bool,
    pub(crate) enforces_coherency: bool,
    pub(crate) sw_msi: SwMsi,
    common: Common,
}

/// A stage 1 of user space's over a paging HWPT.
pub(crate) struct HwptNested {
    /// A nesting parent, or the vIOMMU that has one.
    pub(crate) parent: Id,
    pub(crate) domain: Arc<dyn NestedDomain>,
    common: Common,
}

/// What both kinds have.
#[derive(Clone, Default)]
pub(crate) struct Common {
    pub(crate) pasid_compatible: bool,
    fault: Option<Id>,
    pub(crate) fault_queue: Option<Arc<FaultQueue>>,
}

impl HwptPaging {
    pub(crate) fn fault(&self) -> Option<Id> {
        self.common.fault
    }
}

impl HwptNested {
    pub(crate) fn fault(&self) -> Option<Id> {
        self.common.fault
    }
}

/// What to allocate for `IOMMU_HWPT_ALLOC`.
pub(crate) struct HwptRequest {
    pub(crate) flags: u32,
    pub(crate) device: Id,
    pub(crate) parent: Id,
    pub(crate) fault: Id,
    pub(crate) data: Option<UserData>,
}

/// A HWPT ready to be attached.
pub(crate) struct Attachable {
    pub(crate) domain: Domain,
    pub(crate) common: Common,
    /// The IOAS whose memory it reaches.
    pub(crate) ioas: Id,
}

impl State {
    /// What there is to attach behind a HWPT's id.
    pub(crate) fn attachable(&self, id: Id) -> Result<Attachable, Error> {
        match self.objects.get(id)? {
            Object::HwptPaging(hwpt) => Ok(Attachable {
                domain: Domain::Paging(hwpt.domain.clone()),
                common: hwpt.common.clone(),
                ioas: hwpt.ioas,
            }),
            Object::HwptNested(hwpt) => Ok(Attachable {
                domain: Domain::Nested(hwpt.domain.clone()),
                common: hwpt.common.clone(),
                ioas: self.hwpt_paging(self.nest_parent(hwpt.parent))?.ioas,
            }),
            _ => Err(Error::NoObject(id)),
        }
    }

    pub(crate) fn is_pasid_compatible(&self, id: Id) -> bool {
        match self.objects.get(id) {
            Ok(
                Object::HwptPaging(HwptPaging { common, .. })
                | Object::HwptNested(HwptNested { common, .. }),
            ) => common.pasid_compatible,
            _ => false,
        }
    }

    /// A missing fault queue is an error only when everything else was right, as
    /// in the kernel.
    pub(crate) fn check_fault(&self, request: &HwptRequest) -> Result<(), Error> {
        if request.flags & FAULT_ID_VALID == 0 {
            return Ok(());
        }
        self.fault_queue(request.fault).map(drop)
    }

    /// `IOMMU_HWPT_ALLOC`, up to the answer: the object is complete but not in
    /// the table, and [`State::check_fault`] is still to be asked.
    pub(crate) fn alloc_hwpt(&mut self, request: &HwptRequest) -> Result<Object, Error> {
        let device = self.device(request.device)?.device.clone();
        let mut object = match self.objects.get(request.parent) {
            Ok(Object::Ioas(_)) => Object::HwptPaging(self.alloc_paging(
                &device,
                request.parent,
                request.flags,
                request.data.as_ref(),
            )?),
            Ok(Object::HwptPaging(_)) => Object::HwptNested(self.alloc_nested(&device, request)?),
            Ok(Object::Viommu(_)) => {
                Object::HwptNested(self.alloc_viommu_nested(&device, request)?)
            }
            _ => return Err(Error::Invalid("pt_id is no IOAS, nesting parent or vIOMMU")),
        };
        if request.flags & FAULT_ID_VALID != 0
            && let Ok(queue) = self.fault_queue(request.fault).cloned()
        {
            self.objects.hold(request.fault);
            if let Object::HwptPaging(HwptPaging { common, .. })
            | Object::HwptNested(HwptNested { common, .. }) = &mut object
            {
                common.fault = Some(request.fault);
                common.fault_queue = Some(queue);
            }
        }
        match &object {
            Object::HwptPaging(hwpt) => self.objects.hold(hwpt.ioas),
            Object::HwptNested(hwpt) => self.objects.hold(hwpt.parent),
            _ => {}
        }
        Ok(object)
    }

    /// Makes a paging domain; it is in no IOAS yet and holds nothing.
    fn alloc_paging(
        &self,
        device: &Device,
        ioas: Id,
        flags: u32,
        data: Option<&UserData>,
    ) -> Result<HwptPaging, Error> {
        if flags & !(NEST_PARENT | DIRTY_TRACKING | FAULT_ID_VALID | PASID) != 0 {
            return Err(Error::Unsupported("HWPT_ALLOC flags"));
        }
        let driver = device.driver();
        if flags & DIRTY_TRACKING != 0 && !driver.capable(device, Capability::DirtyTracking) {
            return Err(Error::Unsupported("dirty tracking for this device"));
        }
        if flags & FAULT_ID_VALID != 0 && flags & NEST_PARENT != 0 {
            return Err(Error::Unsupported("faults of a nesting parent"));
        }
        let mut wanted = PagingFlags::empty();
        wanted.set(PagingFlags::NEST_PARENT, flags & NEST_PARENT != 0);
        wanted.set(PagingFlags::DIRTY_TRACKING, flags & DIRTY_TRACKING != 0);
        wanted.set(PagingFlags::PASID, flags & PASID != 0);
        fallible("a domain")?;
        let domain = driver.alloc_paging(device, wanted, data)?;
        let enforceable = driver.capable(device, Capability::EnforceCacheCoherency);
        let enforces_coherency = enforceable && domain.enforce_cache_coherency();
        if enforceable && !enforces_coherency {
            return Err(Error::Invalid("the domain cannot enforce cache coherency"));
        }
        let common = Common { pasid_compatible: flags & PASID != 0, ..Common::default() };
        let nest_parent = flags & NEST_PARENT != 0;
        let mut sw_msi = SwMsi::default();
        sw_msi.map(domain.as_ref(), device, &self.doorbells.frames())?;
        Ok(HwptPaging {
            ioas,
            domain,
            auto: false,
            nest_parent,
            enforces_coherency,
            sw_msi,
            common,
        })
    }

    fn alloc_nested(&self, device: &Device, request: &HwptRequest) -> Result<HwptNested, Error> {
        if request.flags & !(FAULT_ID_VALID | PASID) != 0 {
            return Err(Error::Unsupported("HWPT_ALLOC flags for a nested HWPT"));
        }
        let data = request.data.as_ref().ok_or(Error::Unsupported("nesting without data"))?;
        if !device.has_iommu() {
            return Err(Error::Unsupported("nesting without an IOMMU"));
        }
        let parent = self.hwpt_paging(request.parent)?;
        if parent.auto || !parent.nest_parent {
            return Err(Error::Invalid("the HWPT is not a nesting parent"));
        }
        fallible("a nested domain")?;
        let domain = device.driver().alloc_nested(device, &parent.domain, data)?;
        let pasid_compatible = request.flags & PASID != 0;
        let common = Common { pasid_compatible, ..Common::default() };
        Ok(HwptNested { parent: request.parent, domain, common })
    }

    fn alloc_viommu_nested(
        &self,
        device: &Device,
        request: &HwptRequest,
    ) -> Result<HwptNested, Error> {
        let viommu = self.viommu(request.parent)?;
        if !Arc::ptr_eq(&viommu.driver, device.driver()) {
            return Err(Error::Invalid("the device is behind another IOMMU"));
        }
        if request.flags & !(FAULT_ID_VALID | PASID) != 0 {
            return Err(Error::Unsupported("HWPT_ALLOC flags for a nested HWPT"));
        }
        let data = request.data.as_ref().ok_or(Error::Unsupported("nesting without data"))?;
        fallible("a nested domain")?;
        let domain = viommu.viommu.alloc_nested(device, data)?;
        let pasid_compatible = request.flags & PASID != 0;
        let common = Common { pasid_compatible, ..Common::default() };
        Ok(HwptNested { parent: request.parent, domain, common })
    }

    /// The paging HWPT under a nested one, given directly or by a vIOMMU.
    pub(crate) fn nest_parent(&self, parent: Id) -> Id {
        self.viommu(parent).map_or(parent, |viommu| viommu.parent)
    }

    /// Makes the domain of a paging HWPT follow its IOAS, outside the domain's own `window`.
    pub(crate) fn join_ioas(
        &mut self,
        id: Id,
        ioas_id: Id,
        domain: Arc<dyn PagingDomain>,
        window: Option<(u64, u64)>,
    ) -> Result<(), Error> {
        let (ioas, pages) = self.ioas_and_pages(ioas_id)?;
        ioas.add_domain(pages, id, domain, window)?;
        ioas.hwpts.push(id);
        Ok(())
    }

    /// Makes a HWPT for an IOAS on the spot, attaches `device` by `attach`, and
    /// lets it follow the IOAS: first the one or the other, as `attach_first`
    /// says. Nothing is left on error.
    pub(crate) fn auto_hwpt(
        &mut self,
        device_id: Id,
        ioas_id: Id,
        attach_first: bool,
        attach: impl FnOnce(&mut Self, Id) -> Result<(), Error>,
        detach: impl FnOnce(&mut Self),
    ) -> Result<Id, Error> {
        let device = self.device(device_id)?.device.clone();
        let hwpt = self.alloc_paging(&device, ioas_id, 0, None)?;
        let (domain, window) = (hwpt.domain.clone(), hwpt.sw_msi.window());
        self.objects.hold(ioas_id);
        let id = self.reserve(Object::HwptPaging(hwpt))?;
        // Visible to nobody while the lock is held.
        self.objects.finalize(id);
        let result = if attach_first {
            attach(self, id).and_then(|()| {
                self.join_ioas(id, ioas_id, domain, window).inspect_err(|_| detach(self))
            })
        } else {
            self.join_ioas(id, ioas_id, domain, window).and_then(|()| attach(self, id))
        };
        match result {
            Ok(()) => {
                self.hwpt_paging_mut(id)?.auto = true;
                Ok(id)
            }
            Err(error) => {
                self.destroy_unused(id)?;
                Err(error)
            }
        }
    }

    pub(crate) fn dispose_hwpt_paging(&mut self, id: Id, hwpt: &HwptPaging) {
        if let Ok((ioas, pages)) = self.ioas_and_pages(hwpt.ioas) {
            ioas.remove_domain(pages, id);
            ioas.hwpts.retain(|other| *other != id);
        }
        self.objects.unhold(hwpt.ioas);
        self.drop_fault(&hwpt.common);
    }

    pub(crate) fn dispose_hwpt_nested(&mut self, hwpt: &HwptNested) {
        self.objects.unhold(hwpt.parent);
        self.drop_fault(&hwpt.common);
    }

    fn drop_fault(&mut self, common: &Common) {
        if let Some(fault) = common.fault {
            self.objects.unhold(fault);
        }
    }
}

/// Whether the target is the one that reserved regions are for.
pub(crate) fn reserves(target: Target) -> bool {
    target == Target::Rid
}
