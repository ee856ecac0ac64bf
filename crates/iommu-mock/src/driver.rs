use std::sync::Arc;

use iommu::{
    Capability, Device, Domain, Driver, Error, Group, HwInfo, NestedDomain, PagingDomain,
    PagingFlags, Target, UserData,
};
use uapi::{Plain, selftest as t};

use crate::{MockDomain, MockNested};

/// The driver of the mock IOMMU.
#[derive(Default)]
pub struct MockDriver;

/// What the driver keeps with a device.
pub struct MockDevice {
    /// The hardware cannot track the pages that the device writes.
    pub no_dirty: bool,
    /// The device can use PASIDs.
    pub pasid: bool,
}

impl MockDriver {
    /// Puts a new device, in a group of its own, behind the IOMMU.
    pub fn add_device(
        self: &Arc<Self>,
        name: impl Into<String>,
        device: MockDevice,
    ) -> Arc<Device> {
        Device::new(name, self.clone(), Box::new(device), &Group::new())
    }
}

fn mock(device: &Device) -> Result<&MockDevice, Error> {
    device.data().ok_or(Error::Invalid("not a device of the mock IOMMU"))
}

impl Driver for MockDriver {
    fn capable(&self, device: &Device, capability: Capability) -> bool {
        match capability {
            Capability::CacheCoherency => true,
            Capability::DirtyTracking => mock(device).is_ok_and(|device| !device.no_dirty),
            Capability::EnforceCacheCoherency | Capability::PciAts => false,
        }
    }

    fn max_pasids(&self, device: &Device) -> u32 {
        if mock(device).is_ok_and(|device| device.pasid) { 1 << t::MOCK_PASID_WIDTH } else { 0 }
    }

    fn hw_info(&self, _device: &Device, data_type: u32) -> Result<HwInfo, Error> {
        if data_type != 0 && data_type != t::IOMMU_HW_INFO_TYPE_SELFTEST {
            return Err(Error::Unsupported("the type of hardware information"));
        }
        let info = t::iommu_test_hw_info { flags: 0, test_reg: t::IOMMU_HW_INFO_SELFTEST_REGVAL };
        let data = info.as_bytes().to_vec();
        Ok(HwInfo { data_type: t::IOMMU_HW_INFO_TYPE_SELFTEST, data })
    }

    fn alloc_paging(
        &self,
        _device: &Device,
        flags: PagingFlags,
        data: Option<&UserData>,
    ) -> Result<Arc<dyn PagingDomain>, Error> {
        let kind = match data {
            None => t::MOCK_IOMMUPT_DEFAULT,
            Some(data) => {
                let data: t::iommu_hwpt_selftest = data.get(t::IOMMU_HWPT_DATA_SELFTEST, 4)?;
                data.pagetable_type
            }
        };
        let dirty = flags.contains(PagingFlags::DIRTY_TRACKING);
        match kind {
            t::MOCK_IOMMUPT_DEFAULT => Ok(Arc::new(MockDomain::new(dirty))),
            t::MOCK_IOMMUPT_HUGE => Ok(Arc::new(MockDomain::huge(dirty))),
            _ => Err(Error::Unsupported("the type of page table")),
        }
    }

    fn alloc_nested(
        &self,
        _device: &Device,
        parent: &Arc<dyn PagingDomain>,
        data: &UserData,
    ) -> Result<Arc<dyn NestedDomain>, Error> {
        let parent = MockDomain::from_domain(parent.clone())
            .ok_or(Error::Incompatible("the parent is another driver's"))?;
        let data: t::iommu_hwpt_selftest = data.get(t::IOMMU_HWPT_DATA_SELFTEST, 4)?;
        Ok(Arc::new(MockNested::new(parent, data.iotlb)))
    }

    fn attach(
        &self,
        device: &Device,
        _target: Target,
        new: &Domain,
        _old: &Domain,
    ) -> Result<(), Error> {
        let device = mock(device)?;
        let parent = match new {
            Domain::Blocked | Domain::Identity => return Ok(()),
            Domain::Paging(domain) => MockDomain::from_domain(domain.clone()),
            Domain::Nested(domain) => {
                MockNested::from_domain(domain.clone()).map(|nested| nested.parent().clone())
            }
        };
        let parent = parent.ok_or(Error::Incompatible("the domain is another driver's"))?;
        if device.no_dirty && parent.tracks_dirty() && matches!(new, Domain::Paging(_)) {
            return Err(Error::Incompatible("the device's dirty pages cannot be tracked"));
        }
        Ok(())
    }

    fn block(&self, _device: &Device, _target: Target, _old: &Domain) {}
}
