use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host::{PhysAllocation, PhysMemory};
use iommu::{
    Capability, Device, Domain, Driver, Error, Group, HwInfo, NestedDomain, PagingDomain,
    PagingFlags, Pasids, Target, UserData, Viommu, ViommuHost,
};
use uapi::{Plain, selftest as t};

use crate::{MockDomain, MockNested, MockViommu};

/// The driver of the mock IOMMU.
pub struct MockDriver {
    memory: Arc<dyn PhysMemory>,
}

/// What the driver keeps with a device.
pub struct MockDevice {
    /// The hardware cannot track the pages that the device writes.
    pub no_dirty: bool,
    /// What the device can do with PASIDs.
    pub pasids: Pasids,
    state: Mutex<DeviceState>,
}

struct DeviceState {
    cache: [u32; t::MOCK_DEV_CACHE_NUM],
    /// The vIOMMU behind the nested domain it is on, and its id there.
    viommu: Option<(Arc<MockViommu>, u64)>,
    /// The next attach of the reserved PASID fails.
    reserved_pasid_fails: bool,
}

impl MockDevice {
    /// A device as it comes.
    pub fn new(no_dirty: bool, pasids: Pasids) -> Self {
        let state = DeviceState {
            cache: [t::IOMMU_TEST_DEV_CACHE_DEFAULT; t::MOCK_DEV_CACHE_NUM],
            viommu: None,
            reserved_pasid_fails: false,
        };
        Self { no_dirty, pasids, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in an entry of the device's cache.
    pub fn cache(&self, index: usize) -> Option<u32> {
        self.lock().cache.get(index).copied()
    }

    /// Zeroes one entry of the device's cache, or all.
    pub(crate) fn clear_cache(&self, index: Option<usize>) {
        let cache = &mut self.lock().cache;
        match index {
            Some(index) => cache[index] = 0,
            None => cache.fill(0),
        }
    }

    /// The device makes its vIOMMU report an event.
    pub fn trigger_event(&self) -> Result<(), Error> {
        let viommu = self.lock().viommu.clone();
        match viommu {
            Some((viommu, virt_id)) if virt_id != 0 => viommu.report(virt_id as u32),
            _ => Err(Error::NotFound("the device is on no vIOMMU")),
        }
    }
}

impl MockDriver {
    /// A driver whose vIOMMUs offer pages of `memory` to user space.
    pub fn new(memory: Arc<dyn PhysMemory>) -> Arc<Self> {
        Arc::new(Self { memory })
    }

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

    fn pasids(&self, device: &Device) -> Pasids {
        mock(device).map(|device| device.pasids).unwrap_or_default()
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
        Ok(Arc::new(MockNested::new(parent, data.iotlb, None)))
    }

    fn has_viommu(&self, _device: &Device, viommu_type: u32) -> bool {
        viommu_type == t::IOMMU_VIOMMU_TYPE_SELFTEST
    }

    fn alloc_viommu(
        &self,
        _device: &Device,
        _viommu_type: u32,
        parent: &Arc<dyn PagingDomain>,
        data: Option<&UserData>,
        host: ViommuHost<'_>,
    ) -> Result<(Arc<dyn Viommu>, Vec<u8>), Error> {
        let parent = MockDomain::from_domain(parent.clone())
            .ok_or(Error::Incompatible("the parent is another driver's"))?;
        let Some(data) = data else {
            return Ok((MockViommu::new(parent, host.events, None), Vec::new()));
        };
        // Data makes a loopback: a number out again, and at the start of two
        // pages that user space can map.
        let size = size_of::<t::iommu_viommu_selftest>();
        let mut data: t::iommu_viommu_selftest = data.get(t::IOMMU_VIOMMU_TYPE_SELFTEST, size)?;
        let page: Arc<dyn PhysAllocation> =
            self.memory.alloc(2 * host::PAGE_SIZE).ok_or(Error::NoMemory)?.into();
        let run = page.run();
        let written = self.memory.write(run.pa, &data.in_data.to_ne_bytes());
        written.map_err(|_| Error::NoMemory)?;
        data.out_data = data.in_data;
        data.out_mmap_offset = (host.add_mmap)(page.clone())?;
        data.out_mmap_length = run.len;
        let viommu = MockViommu::new(parent, host.events, Some(page));
        Ok((viommu, data.as_bytes().to_vec()))
    }

    fn attach(
        &self,
        device: &Device,
        target: Target,
        new: &Domain,
        _old: &Domain,
    ) -> Result<(), Error> {
        let mock = mock(device)?;
        let (ours, viommu) = match new {
            Domain::Blocked | Domain::Identity => (true, None),
            Domain::Paging(domain) => {
                let domain = MockDomain::from_domain(domain.clone());
                if mock.no_dirty && domain.as_ref().is_some_and(|domain| domain.tracks_dirty()) {
                    let reason = "the device's dirty pages cannot be tracked";
                    return Err(Error::Incompatible(reason));
                }
                (domain.is_some(), None)
            }
            Domain::Nested(domain) => {
                let ours = MockNested::from_domain(domain.clone()).is_some();
                (ours, crate::viommu::of(domain))
            }
        };
        if !ours {
            return Err(Error::Incompatible("the domain is another driver's"));
        }
        let mut state = mock.lock();
        match target {
            Target::Rid => {
                state.viommu = match viommu {
                    Some(viommu) => {
                        let virt_id = viommu.virt_id(device);
                        let virt_id = virt_id.ok_or(Error::NotFound("the device's vDEVICE"))?;
                        Some((viommu, virt_id))
                    }
                    None => None,
                };
            }
            // The tests have this one fail every second time.
            Target::Pasid(t::IOMMU_TEST_PASID_RESERVED) => {
                state.reserved_pasid_fails = !state.reserved_pasid_fails;
                if !state.reserved_pasid_fails {
                    return Err(Error::NoMemory);
                }
            }
            Target::Pasid(_) => {}
        }
        Ok(())
    }

    fn block(&self, device: &Device, target: Target, _old: &Domain) {
        let Ok(mock) = mock(device) else { return };
        let mut state = mock.lock();
        match target {
            Target::Rid => state.viommu = None,
            Target::Pasid(t::IOMMU_TEST_PASID_RESERVED) => state.reserved_pasid_fails = false,
            Target::Pasid(_) => {}
        }
    }
}
