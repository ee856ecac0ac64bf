//! vIOMMUs, the devices in them, and the hardware queues they own.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError};

use host::{PAGE_SIZE, PhysAllocation};
use iommu::{Device, Driver, EventSink, UserData, Viommu, ViommuHost};

use crate::context::{Object, State};
use crate::error::fallible;
use crate::observe::Watch;
use crate::sync::Mutex;
use crate::veventq::EventQueue;
use crate::{Error, Id};

/// A VM's slice of a physical IOMMU over a nesting parent.
pub(crate) struct ViommuObject {
    pub(crate) viommu: Arc<dyn Viommu>,
    pub(crate) driver: Arc<dyn Driver>,
    /// The nesting parent, a paging HWPT.
    pub(crate) parent: Id,
    pub(crate) events: Arc<Events>,
    /// Hardware queues by index.
    queues: BTreeMap<u32, Id>,
    /// Offsets of memory that user space may map.
    mmaps: Vec<u64>,
}

/// The event queues of one vIOMMU, by type.
pub(crate) struct Events {
    queues: Mutex<BTreeMap<u32, Arc<EventQueue>>>,
    watch: Watch,
    /// The vIOMMU, once it has an id.
    viommu: OnceLock<Id>,
}

impl Events {
    fn new(watch: &Watch) -> Self {
        Self { queues: Mutex::default(), watch: watch.clone(), viommu: OnceLock::new() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<u32, Arc<EventQueue>>) -> T) -> T {
        f(&mut self.queues.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds the one queue of a type.
    pub(crate) fn add(&self, event_type: u32, queue: Arc<EventQueue>) -> Result<(), Error> {
        self.with(|queues| match queues.entry(event_type) {
            std::collections::btree_map::Entry::Occupied(_) => {
                Err(Error::Exists("an event queue of this type"))
            }
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(queue);
                Ok(())
            }
        })
    }

    pub(crate) fn remove(&self, event_type: u32) {
        self.with(|queues| queues.remove(&event_type));
    }
}

impl EventSink for Events {
    fn report(&self, event_type: u32, data: &[u8]) -> Result<(), iommu::Error> {
        let queue = self.with(|queues| queues.get(&event_type).cloned());
        let queue = queue.ok_or(iommu::Error::Unsupported("nobody listens to these events"))?;
        let lost = !queue.push(data);
        if let Some(viommu) = self.viommu.get() {
            self.watch.tell(|observer, context| {
                observer.vevent(context, *viommu, event_type, data, lost);
            });
        }
        Ok(())
    }
}

/// A device in a vIOMMU.
pub(crate) struct VdeviceObject {
    pub(crate) viommu: Id,
    pub(crate) device: Id,
    virt_id: u64,
}

/// A hardware queue, its memory pinned and locked in the parent's IOAS.
pub(crate) struct HwQueueObject {
    viommu: Id,
    index: u32,
    depends_on: Option<Id>,
    ioas: Id,
    /// The pinned pages, in bytes.
    iova: u64,
    len: u64,
}

/// What `IOMMU_HW_QUEUE_ALLOC` asks for.
pub(crate) struct HwQueueRequest {
    pub(crate) viommu: Id,
    pub(crate) queue_type: u32,
    pub(crate) index: u32,
    pub(crate) iova: u64,
    pub(crate) len: u64,
}

/// Memory of a driver's that user space may map through the context's file.
#[derive(Default)]
pub(crate) struct Mmaps {
    areas: BTreeMap<u64, MmapArea>,
}

pub(crate) struct MmapArea {
    pub(crate) memory: Arc<dyn PhysAllocation>,
    /// The vIOMMU that owns it, once that is an object.
    pub(crate) owner: Option<Id>,
}

impl Mmaps {
    /// Takes memory at the lowest free offset, never 0.
    fn add(&mut self, memory: Arc<dyn PhysAllocation>) -> u64 {
        let mut offset = PAGE_SIZE;
        for (start, area) in &self.areas {
            if *start - offset >= memory.run().len {
                break;
            }
            offset = start + area.memory.run().len;
        }
        self.areas.insert(offset, MmapArea { memory, owner: None });
        offset
    }

    /// Offset, length and owner of every area that has an owner.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, Id)> {
        self.areas
            .iter()
            .filter_map(|(offset, area)| Some((*offset, area.memory.run().len, area.owner?)))
    }

    /// The area that exactly this offset and length name.
    pub(crate) fn find(&self, offset: u64, len: u64) -> Option<&MmapArea> {
        self.areas.get(&offset).filter(|area| area.memory.run().len == len)
    }
}

impl State {
    /// `IOMMU_VIOMMU_ALLOC`, up to the answer: the object, reserved, and what to
    /// write back into the driver's data.
    pub(crate) fn alloc_viommu(
        &mut self,
        viommu_type: u32,
        device: Id,
        parent: Id,
        data: Option<&UserData>,
    ) -> Result<(Id, Vec<u8>), Error> {
        let device = self.device(device)?.device.clone();
        let driver = device.driver().clone();
        if !driver.has_viommu(&device, viommu_type) {
            return Err(Error::Unsupported("the type of vIOMMU"));
        }
        let hwpt = self.hwpt_paging(parent)?;
        if !hwpt.nest_parent {
            return Err(Error::Invalid("the HWPT is not a nesting parent"));
        }
        fallible("a vIOMMU")?;
        let domain = hwpt.domain.clone();
        let events = Arc::new(Events::new(&self.watch));
        let mut offsets = Vec::new();
        let mmaps = &mut self.mmaps;
        let mut add_mmap = |memory| {
            let offset = mmaps.add(memory);
            offsets.push(offset);
            Ok(offset)
        };
        let host = ViommuHost { add_mmap: &mut add_mmap, events: events.clone() };
        let made = driver.alloc_viommu(&device, viommu_type, &domain, data, host);
        let (viommu, reply) = match made {
            Ok(made) => made,
            Err(error) => {
                self.remove_mmaps(&offsets);
                return Err(error.into());
            }
        };
        self.objects.hold(parent);
        let object = ViommuObject {
            viommu,
            driver,
            parent,
            events: events.clone(),
            queues: BTreeMap::new(),
            mmaps: offsets.clone(),
        };
        let id = self.reserve(Object::Viommu(object))?;
        // Just made: it is empty.
        let _ = events.viommu.set(id);
        for offset in offsets {
            if let Some(area) = self.mmaps.areas.get_mut(&offset) {
                area.owner = Some(id);
            }
        }
        Ok((id, reply))
    }

    fn remove_mmaps(&mut self, offsets: &[u64]) {
        for offset in offsets {
            self.mmaps.areas.remove(offset);
        }
    }

    pub(crate) fn dispose_viommu(&mut self, viommu: &ViommuObject) {
        self.remove_mmaps(&viommu.mmaps);
        self.objects.unhold(viommu.parent);
    }

    /// `IOMMU_VDEVICE_ALLOC`, up to the answer.
    pub(crate) fn alloc_vdevice(
        &mut self,
        viommu_id: Id,
        device_id: Id,
        virt_id: u64,
    ) -> Result<Id, Error> {
        let viommu = self.viommu(viommu_id)?;
        let bound = self.device(device_id)?;
        let device: Arc<Device> = bound.device.clone();
        if !Arc::ptr_eq(&viommu.driver, device.driver()) {
            return Err(Error::Invalid("the device is behind another IOMMU"));
        }
        if bound.vdevice.is_some() {
            return Err(Error::Exists("the device is in a vIOMMU already"));
        }
        fallible("a vDEVICE")?;
        viommu.viommu.add_device(&device, virt_id)?;
        self.objects.hold(viommu_id);
        let object = VdeviceObject { viommu: viommu_id, device: device_id, virt_id };
        let id = self.reserve(Object::Vdevice(object))?;
        self.device_mut(device_id)?.vdevice = Some(id);
        self.watch.tell(|observer, context| {
            observer.vdevice(context, viommu_id, device.name(), virt_id);
        });
        Ok(id)
    }

    pub(crate) fn dispose_vdevice(&mut self, vdevice: &VdeviceObject) {
        if let Ok(viommu) = self.viommu(vdevice.viommu) {
            viommu.viommu.remove_device(vdevice.virt_id);
        }
        if let Ok(device) = self.device_mut(vdevice.device) {
            device.vdevice = None;
        }
        self.objects.unhold(vdevice.viommu);
    }

    /// The device goes: so does its vDEVICE, whose id stays unusable.
    pub(crate) fn entomb_vdevice(&mut self, id: Id) {
        if let Ok(Object::Vdevice(vdevice)) = self.objects.entomb(id) {
            self.dispose_vdevice(&vdevice);
        }
    }

    /// `IOMMU_HW_QUEUE_ALLOC`, up to the answer.
    pub(crate) fn alloc_hw_queue(&mut self, request: &HwQueueRequest) -> Result<Id, Error> {
        let object = self.viommu(request.viommu)?;
        let viommu = object.viommu.clone();
        if !viommu.has_hw_queues(request.queue_type) {
            return Err(Error::Unsupported("the type of hardware queue"));
        }
        let ioas_id = self.hwpt_paging(object.parent)?.ioas;
        let depends_on = viommu
            .hw_queue_depends_on(request.index)
            .and_then(|index| object.queues.get(&index).copied());
        // The hardware reads physical addresses: whole, contiguous pages that
        // cannot be unmapped as long as the queue lives.
        let iova = request.iova / PAGE_SIZE * PAGE_SIZE;
        let offset = request.iova - iova;
        let len = offset
            .checked_add(request.len)
            .and_then(|len| len.checked_next_multiple_of(PAGE_SIZE))
            .ok_or(Error::Range("the queue"))?;
        let (ioas, pages) = self.ioas_and_pages(ioas_id)?;
        let runs = ioas.lock(pages, iova, len)?;
        let added = match runs.as_slice() {
            [run] => fallible("a hardware queue").and_then(|()| {
                let (index, ipa, pa) = (request.index, request.iova, run.pa + offset);
                Ok(viommu.add_hw_queue(index, ipa, pa, request.len)?)
            }),
            _ => Err(host::Fault { va: iova }.into()),
        };
        if let Err(error) = added {
            ioas.unlock(pages, iova, len);
            return Err(error);
        }
        self.objects.hold(request.viommu);
        self.objects.hold(ioas_id);
        if let Some(other) = depends_on {
            self.objects.hold(other);
        }
        let (viommu, index) = (request.viommu, request.index);
        let queue = HwQueueObject { viommu, index, depends_on, ioas: ioas_id, iova, len };
        let id = self.reserve(Object::HwQueue(queue))?;
        self.viommu_mut(request.viommu)?.queues.insert(request.index, id);
        Ok(id)
    }

    pub(crate) fn dispose_hw_queue(&mut self, queue: &HwQueueObject) {
        if let Ok(object) = self.viommu_mut(queue.viommu) {
            object.queues.remove(&queue.index);
            object.viommu.remove_hw_queue(queue.index);
        }
        if let Ok((ioas, pages)) = self.ioas_and_pages(queue.ioas) {
            ioas.unlock(pages, queue.iova, queue.len);
        }
        self.objects.unhold(queue.viommu);
        self.objects.unhold(queue.ioas);
        if let Some(other) = queue.depends_on {
            self.objects.unhold(other);
        }
    }
}

impl HwQueueObject {
    /// The objects that it holds.
    pub(crate) fn holds(&self) -> impl Iterator<Item = Id> {
        [Some(self.viommu), Some(self.ioas), self.depends_on].into_iter().flatten()
    }
}
