use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use host::PhysAllocation;
use iommu::{Device, Error, EventSink, NestedDomain, PagingDomain, UserArray, UserData, Viommu};
use uapi::Plain;
use uapi::selftest as t;

use crate::{MockDevice, MockDomain, MockNested};

/// The mock's vIOMMU: devices by virtual id, two hardware queues, events.
pub struct MockViommu {
    this: Weak<Self>,
    parent: Arc<MockDomain>,
    events: Arc<dyn EventSink>,
    state: Mutex<State>,
    /// What user space maps; kept as long as the vIOMMU.
    _page: Option<Arc<dyn PhysAllocation>>,
}

#[derive(Default)]
struct State {
    devices: BTreeMap<u64, Arc<Device>>,
    queues: [bool; t::IOMMU_TEST_HW_QUEUE_MAX as usize],
}

impl MockViommu {
    pub(crate) fn new(
        parent: Arc<MockDomain>,
        events: Arc<dyn EventSink>,
        page: Option<Arc<dyn PhysAllocation>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            parent,
            events,
            state: Mutex::default(),
            _page: page,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The virtual id of a device.
    pub(crate) fn virt_id(&self, device: &Device) -> Option<u64> {
        let state = self.lock();
        let found =
            state.devices.iter().find(|(_, known)| std::ptr::eq(Arc::as_ptr(known), device));
        found.map(|(id, _)| *id)
    }

    /// The hardware has something to say about a device.
    pub(crate) fn report(&self, virt_id: u32) -> Result<(), Error> {
        let event = t::iommu_viommu_event_selftest { virt_id };
        self.events.report(t::IOMMU_VEVENTQ_TYPE_SELFTEST, event.as_bytes())
    }

    fn invalidate_one(&self, entry: t::iommu_viommu_invalidate_selftest) -> Result<(), Error> {
        if entry.flags & !t::IOMMU_TEST_INVALIDATE_FLAG_ALL != 0 {
            return Err(Error::Unsupported("invalidation flags"));
        }
        if entry.cache_id as usize >= t::MOCK_DEV_CACHE_NUM {
            return Err(Error::Invalid("cache_id"));
        }
        let state = self.lock();
        let device = state.devices.get(&u64::from(entry.vdev_id));
        let device = device.and_then(|device| device.data::<MockDevice>());
        let all = entry.flags & t::IOMMU_TEST_INVALIDATE_FLAG_ALL != 0;
        device
            .ok_or(Error::Invalid("vdev_id"))?
            .clear_cache((!all).then_some(entry.cache_id as usize));
        Ok(())
    }
}

impl Viommu for MockViommu {
    fn alloc_nested(
        &self,
        _device: &Device,
        data: &UserData,
    ) -> Result<Arc<dyn NestedDomain>, Error> {
        let data: t::iommu_hwpt_selftest = data.get(t::IOMMU_HWPT_DATA_SELFTEST, 4)?;
        let viommu = self.this.upgrade();
        Ok(Arc::new(MockNested::new(self.parent.clone(), data.iotlb, viommu)))
    }

    fn invalidate(&self, array: &UserArray<'_>) -> (u32, Result<(), Error>) {
        if array.data_type != t::IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST {
            return (0, Err(Error::Invalid("the type of invalidation")));
        }
        // All are read before the first takes effect.
        let size = size_of::<t::iommu_viommu_invalidate_selftest>();
        let entries: Result<Vec<_>, Error> =
            (0..array.entry_num).map(|index| array.get_extensible(index, size)).collect();
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return (0, Err(error)),
        };
        for (done, entry) in entries.into_iter().enumerate() {
            if let Err(error) = self.invalidate_one(entry) {
                return (done as u32, Err(error));
            }
        }
        (array.entry_num, Ok(()))
    }

    fn add_device(&self, device: &Arc<Device>, virt_id: u64) -> Result<(), Error> {
        let mut state = self.lock();
        if state.devices.contains_key(&virt_id) {
            return Err(Error::Exists("a device with this virtual id"));
        }
        state.devices.insert(virt_id, device.clone());
        Ok(())
    }

    fn remove_device(&self, virt_id: u64) {
        self.lock().devices.remove(&virt_id);
    }

    fn has_hw_queues(&self, queue_type: u32) -> bool {
        queue_type == t::IOMMU_HW_QUEUE_TYPE_SELFTEST
    }

    fn hw_queue_depends_on(&self, index: u32) -> Option<u32> {
        index.checked_sub(1)
    }

    fn add_hw_queue(&self, index: u32, ipa: u64, pa: u64, _len: u64) -> Result<(), Error> {
        let mut state = self.lock();
        let index = index as usize;
        match state.queues.get(index) {
            None => return Err(Error::Invalid("the index of the queue")),
            Some(true) => return Err(Error::Exists("a queue with this index")),
            Some(false) => {}
        }
        if index > 0 && !state.queues[index - 1] {
            return Err(Error::Io("the queue before this one is missing"));
        }
        if self.parent.iova_to_phys(ipa) != Some(pa) {
            return Err(Error::Invalid("the queue is not where the stage 2 has it"));
        }
        state.queues[index] = true;
        Ok(())
    }

    fn remove_hw_queue(&self, index: u32) {
        if let Some(queue) = self.lock().queues.get_mut(index as usize) {
            *queue = false;
        }
    }
}

/// The mock's part of any nested domain's vIOMMU.
pub(crate) fn of(nested: &Arc<dyn NestedDomain>) -> Option<Arc<MockViommu>> {
    let any: Arc<dyn Any + Send + Sync> = nested.clone();
    any.downcast::<MockNested>().ok()?.viommu().cloned()
}
