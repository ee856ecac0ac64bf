//! Devices in a context: bound, attached, replaced, detached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iommu::{Attachment, Capability, Device, FaultHandler, Group, Target};

use crate::context::{Object, State};
use crate::fault::FaultAttachment;
use crate::hwpt::{Attachable, reserves};
use crate::{Context, Error, Id};

/// A device that a driver bound to this context.
pub(crate) struct BoundDevice {
    pub(crate) device: Arc<Device>,
    /// Its place in a vIOMMU.
    pub(crate) vdevice: Option<Id>,
}

/// What the devices of one group are attached to in one context.
#[derive(Default)]
pub(crate) struct GroupAttachments {
    bound: usize,
    attached: BTreeMap<Target, GroupAttachment>,
}

impl GroupAttachments {
    /// Each HWPT in use, with how many devices use it for one target.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = (Id, usize)> + '_ {
        self.attached.values().map(|attachment| (attachment.hwpt, attachment.devices.len()))
    }
}

struct GroupAttachment {
    hwpt: Id,
    devices: BTreeSet<Id>,
}

fn key(device: &Device) -> usize {
    Arc::as_ptr(device.group()) as usize
}

impl State {
    fn attachment_of(&self, device: &Device, target: Target) -> Option<&GroupAttachment> {
        self.groups.get(&key(device))?.attached.get(&target)
    }

    /// The HWPT that this device itself, not only its group, is attached to.
    pub(crate) fn hwpt_of(&self, id: Id, device: &Device, target: Target) -> Option<Id> {
        let attachment = self.attachment_of(device, target)?;
        attachment.devices.contains(&id).then_some(attachment.hwpt)
    }

    /// The rules between a device's Requester ID and its PASIDs.
    fn check_pasids(
        &self,
        device: &Device,
        target: Target,
        hwpt: &Attachable,
    ) -> Result<(), Error> {
        let Some(group) = self.groups.get(&key(device)) else {
            return Ok(());
        };
        let compatible = hwpt.common.pasid_compatible;
        let fits = if target == Target::Rid {
            compatible || group.attached.keys().all(|target| *target == Target::Rid)
        } else {
            let rid = group.attached.get(&Target::Rid);
            compatible && rid.is_none_or(|rid| self.is_pasid_compatible(rid.hwpt))
        };
        if fits { Ok(()) } else { Err(Error::Invalid("the HWPT was not allocated for PASIDs")) }
    }

    fn attachment(hwpt: &Attachable, device: Id) -> Attachment {
        let handler = |queue: &Arc<_>| -> Arc<dyn FaultHandler> {
            Arc::new(FaultAttachment::new(Arc::clone(queue), device))
        };
        let faults = hwpt.common.fault_queue.as_ref().map(handler);
        Attachment { domain: hwpt.domain.clone(), faults }
    }

    /// Attaches one device to a HWPT. The first of its group moves the group;
    /// the others only add their reserved regions.
    fn attach_hwpt(&mut self, id: Id, target: Target, hwpt_id: Id) -> Result<(), Error> {
        let device = self.device(id)?.device.clone();
        let hwpt = self.attachable(hwpt_id)?;
        let first = match self.attachment_of(&device, target) {
            None => true,
            Some(current) if current.devices.contains(&id) => {
                return Err(Error::Busy("the device is attached already"));
            }
            Some(current) if current.hwpt != hwpt_id => {
                return Err(Error::Invalid("the device's group is attached to another HWPT"));
            }
            Some(_) => false,
        };
        if reserves(target) {
            self.ioas_mut(hwpt.ioas)?.reserve_device(id, &device)?;
        }
        if first {
            let moved = self
                .check_pasids(&device, target, &hwpt)
                .and_then(|()| self.map_doorbells(hwpt_id, &device))
                .and_then(|()| Ok(device.group().attach(target, Self::attachment(&hwpt, id))?));
            if let Err(error) = moved {
                if reserves(target) {
                    self.ioas_mut(hwpt.ioas)?.unreserve_device(id);
                }
                return Err(error);
            }
        }
        let group = self.groups.entry(key(&device)).or_default();
        let fresh = || GroupAttachment { hwpt: hwpt_id, devices: BTreeSet::new() };
        group.attached.entry(target).or_insert_with(fresh).devices.insert(id);
        self.objects.hold(hwpt_id);
        Ok(())
    }

    /// Detaches one device; the last of its group blocks the group. An
    /// automatic HWPT goes with its last device.
    fn detach_hwpt(&mut self, id: Id, target: Target) {
        let Ok(device) = self.device(id).map(|d| d.device.clone()) else {
            return;
        };
        let Some(hwpt_id) = self.hwpt_of(id, &device, target) else {
            return;
        };
        let mut gone = None;
        if let Some(group) = self.groups.get_mut(&key(&device))
            && let Some(attachment) = group.attached.get_mut(&target)
        {
            attachment.devices.remove(&id);
            if attachment.devices.is_empty() {
                group.attached.remove(&target);
                gone = device.group().detach(target);
            }
        }
        // Whatever its devices still wait for is answered here.
        drop(gone);
        if reserves(target)
            && let Ok(ioas_id) = self.attachable(hwpt_id).map(|hwpt| hwpt.ioas)
            && let Ok(ioas) = self.ioas_mut(ioas_id)
        {
            ioas.unreserve_device(id);
        }
        self.release_hwpt(hwpt_id, 1);
    }

    /// Drops `count` holds on a HWPT, and the HWPT if it was an automatic one
    /// that nobody uses any more.
    fn release_hwpt(&mut self, hwpt_id: Id, count: usize) {
        (0..count).for_each(|_| self.objects.unhold(hwpt_id));
        let unused = self.objects.users(hwpt_id) == Some(0);
        if unused && self.hwpt_paging(hwpt_id).is_ok_and(|hwpt| hwpt.auto) {
            let destroyed = self.destroy_unused(hwpt_id);
            debug_assert!(destroyed.is_ok(), "nobody uses it");
        }
    }

    /// Moves the group of one attached device to another HWPT without a gap.
    fn replace_hwpt(&mut self, id: Id, target: Target, hwpt_id: Id) -> Result<(), Error> {
        let device = self.device(id)?.device.clone();
        let old_id = self
            .hwpt_of(id, &device, target)
            .ok_or(Error::Invalid("the device is not attached"))?;
        if old_id == hwpt_id {
            return Ok(());
        }
        let hwpt = self.attachable(hwpt_id)?;
        let old_ioas = self.attachable(old_id)?.ioas;
        let members: Vec<Id> = self
            .attachment_of(&device, target)
            .map(|attachment| attachment.devices.iter().copied().collect())
            .unwrap_or_default();
        let moves = reserves(target) && hwpt.ioas != old_ioas;
        if moves {
            self.reserve_all(hwpt.ioas, &members)?;
        }
        let moved = self
            .check_pasids(&device, target, &hwpt)
            .and_then(|()| self.map_doorbells(hwpt_id, &device))
            .and_then(|()| Ok(device.group().replace(target, Self::attachment(&hwpt, id))?));
        let left = if moved.is_ok() { old_ioas } else { hwpt.ioas };
        if moves && let Ok(ioas) = self.ioas_mut(left) {
            members.iter().for_each(|id| ioas.unreserve_device(*id));
        }
        drop(moved?);
        if let Some(group) = self.groups.get_mut(&key(&device))
            && let Some(attachment) = group.attached.get_mut(&target)
        {
            attachment.hwpt = hwpt_id;
        }
        members.iter().for_each(|_| self.objects.hold(hwpt_id));
        self.release_hwpt(old_id, members.len());
        Ok(())
    }

    fn reserve_all(&mut self, ioas_id: Id, members: &[Id]) -> Result<(), Error> {
        for (done, id) in members.iter().enumerate() {
            let device = self.device(*id)?.device.clone();
            let ioas = self.ioas_mut(ioas_id)?;
            if let Err(error) = ioas.reserve_device(*id, &device) {
                members[..done].iter().for_each(|id| ioas.unreserve_device(*id));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Attaches or replaces by the id of a HWPT or of an IOAS, in which case an
    /// automatic HWPT that suits the device is found or made. Returns the HWPT.
    fn change_pt(&mut self, id: Id, target: Target, pt_id: Id, replace: bool) -> Result<Id, Error> {
        let attach = |state: &mut Self, hwpt| {
            if replace {
                state.replace_hwpt(id, target, hwpt)
            } else {
                state.attach_hwpt(id, target, hwpt)
            }
        };
        self.device(id)?;
        let candidates = match self.objects.get(pt_id)? {
            Object::HwptPaging(_) | Object::HwptNested(_) => {
                attach(self, pt_id)?;
                return Ok(pt_id);
            }
            Object::Ioas(ioas) => ioas.hwpts.clone(),
            _ => return Err(Error::Invalid("pt_id is neither an IOAS nor a HWPT")),
        };
        for hwpt in candidates {
            // One that is still being made is not found at all.
            if !self.hwpt_paging(hwpt).is_ok_and(|hwpt| hwpt.auto) {
                continue;
            }
            match attach(self, hwpt) {
                Ok(()) => return Ok(hwpt),
                // Incompatible with this device: the next one may do.
                Err(error) if error.errno() == host::Errno::INVAL => {}
                Err(error) => return Err(error),
            }
        }
        self.auto_hwpt(id, pt_id, !replace, attach, |state| state.detach_hwpt(id, target))
    }

    /// Tells what a device is attached to now.
    fn tell_attached(&self, id: Id, target: Target) {
        self.watch.tell(|observer, context| {
            let Ok(device) = self.device(id).map(|bound| &bound.device) else { return };
            let hwpt = self.hwpt_of(id, device, target);
            let viommu = hwpt.and_then(|hwpt| self.viommu_of(hwpt));
            let device = device.name();
            observer.attached(&crate::Attachment { context, id, device, target, hwpt, viommu });
        });
    }

    /// The vIOMMU that a nested HWPT was allocated in.
    fn viommu_of(&self, hwpt: Id) -> Option<Id> {
        let parent = self.hwpt_nested(hwpt).ok()?.parent;
        self.viommu(parent).is_ok().then_some(parent)
    }

    /// Forgets the group of a device once no device of it is bound.
    fn unbind_group(&mut self, device: &Device) {
        if let Some(group) = self.groups.get_mut(&key(device)) {
            group.bound -= 1;
            if group.bound == 0 {
                self.groups.remove(&key(device));
            }
        }
    }
}

impl Context {
    /// Binds a device: claims its group for this context, whose DMA aborts until
    /// it is attached. Returns the device's id.
    ///
    /// One behind no IOMMU can be bound as well, and its DMA stays what it is. What
    /// it is attached to only tells its owner physical addresses, and who lets a
    /// task open it asks for [`host::Capability::SysRawio`] ([`Context::capable`]).
    pub fn bind(&self, device: Arc<Device>) -> Result<Id, Error> {
        let coherent = device.driver().capable(&device, Capability::CacheCoherency);
        if device.has_iommu() && !coherent {
            return Err(Error::Invalid("the device's DMA is not cache coherent"));
        }
        let mut state = self.lock();
        let group: Arc<Group> = device.group().clone();
        group.claim(self.owner)?;
        let bound = BoundDevice { device: device.clone(), vdevice: None };
        let id = state.reserve(Object::Device(bound)).inspect_err(|_| {
            group.release(self.owner);
        })?;
        state.objects.finalize(id);
        // Its driver holds it: only unbinding removes it.
        state.objects.hold(id);
        state.groups.entry(key(&device)).or_default().bound += 1;
        Ok(id)
    }

    /// Detaches a device from everything and gives its group back.
    pub fn unbind(&self, id: Id) -> Result<(), Error> {
        let mut state = self.lock();
        let bound = state.device(id)?;
        let (device, vdevice) = (bound.device.clone(), bound.vdevice);
        vdevice.into_iter().for_each(|vdevice| state.entomb_vdevice(vdevice));
        let targets: Vec<Target> = state
            .groups
            .get(&key(&device))
            .map(|group| group.attached.keys().copied().collect())
            .unwrap_or_default();
        for target in targets {
            state.detach_hwpt(id, target);
            state.tell_attached(id, target);
        }
        state.objects.unhold(id);
        state.objects.remove(id)?;
        state.unbind_group(&device);
        drop(state);
        device.group().release(self.owner);
        Ok(())
    }

    /// Attaches a device, or one of its PASIDs, to a HWPT, or to an IOAS by way
    /// of an automatic HWPT. Returns the HWPT's id.
    pub fn attach(&self, id: Id, target: Target, pt_id: Id) -> Result<Id, Error> {
        self.change_pt(id, target, pt_id, false)
    }

    /// As [`Context::attach`], in place of what is attached now, without a gap.
    /// All devices of the group move. On error nothing does.
    pub fn replace(&self, id: Id, target: Target, pt_id: Id) -> Result<Id, Error> {
        self.change_pt(id, target, pt_id, true)
    }

    fn change_pt(&self, id: Id, target: Target, pt_id: Id, replace: bool) -> Result<Id, Error> {
        let mut state = self.lock();
        let hwpt = state.change_pt(id, target, pt_id, replace)?;
        state.tell_attached(id, target);
        Ok(hwpt)
    }

    /// Detaches a device or one of its PASIDs; what is not attached stays so.
    pub fn detach(&self, id: Id, target: Target) {
        let mut state = self.lock();
        state.detach_hwpt(id, target);
        state.tell_attached(id, target);
    }

    /// The device behind an id.
    pub fn bound_device(&self, id: Id) -> Result<Arc<Device>, Error> {
        Ok(self.lock().device(id)?.device.clone())
    }

    /// The HWPT that a device or one of its PASIDs is attached to.
    pub fn attached_hwpt(&self, id: Id, target: Target) -> Result<Option<Id>, Error> {
        let state = self.lock();
        let device = state.device(id)?.device.clone();
        Ok(state.hwpt_of(id, &device, target))
    }

    /// The paging domain of a HWPT.
    pub fn paging_domain(&self, hwpt_id: Id) -> Result<Arc<dyn iommu::PagingDomain>, Error> {
        Ok(self.lock().hwpt_paging(hwpt_id)?.domain.clone())
    }

    /// The domain of a nested HWPT.
    pub fn nested_domain(&self, hwpt_id: Id) -> Result<Arc<dyn iommu::NestedDomain>, Error> {
        Ok(self.lock().hwpt_nested(hwpt_id)?.domain.clone())
    }

    /// Keeps `first..=last` of an IOAS from being mapped for as long as it lives.
    pub fn reserve_iova(&self, ioas_id: Id, first: u64, last: u64) -> Result<(), Error> {
        self.lock().ioas_mut(ioas_id)?.reserve(first, last, crate::ioas::ReservedBy::Test)
    }
}
