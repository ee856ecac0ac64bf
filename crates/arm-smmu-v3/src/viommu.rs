//! vIOMMUs: a guest's share of an SMMU.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use iommu::{Device, EventSink, NestedDomain, UserArray, UserData};
use pagetable::Stage;
use parking_lot::RwLock;
use smmuv3::wire::Command;
use uapi::iommufd as u;

use crate::cmdq::{BATCH, CommandsError};
use crate::domain::{AtsUser, Domain};
use crate::driver::Behind;
use crate::error::Error;
use crate::guest_command::{Physical, Rewritten, rewrite};
use crate::nested::Nested;
use crate::platform::{DmaMemory, Registers};

/// A guest's share of an SMMU, over the stage 2 that is the guest's memory: `IOMMU_VIOMMU_TYPE_ARM_SMMUV3`.
///
/// The VMID is that of the stage 2, so vIOMMUs over the same stage 2 share the guest's ASIDs.
pub struct Viommu<R: Registers, M: DmaMemory> {
    this: Weak<Self>,
    parent: Arc<Domain<R, M>>,
    events: Arc<dyn EventSink>,
    devices: RwLock<Devices>,
}

/// The devices that the guest knows, by their StreamIDs there and here.
#[derive(Default)]
struct Devices {
    by_virtual: BTreeMap<u32, Physical>,
    by_physical: BTreeMap<u32, u32>,
}

impl<R: Registers, M: DmaMemory> Viommu<R, M> {
    /// A vIOMMU over a domain of stage 2, whose SMMU has both stages. It has no devices yet; `events` gets those of
    /// their events that are the guest's.
    pub fn new(parent: &Arc<Domain<R, M>>, events: Arc<dyn EventSink>) -> Result<Arc<Self>, Error> {
        if !parent.smmu().features().nests() {
            return Err(Error::Unsupported("the SMMU does not have both stages of translation"));
        }
        if parent.geometry().stage() != Stage::Two {
            return Err(Error::Unsupported("a parent that is not of stage 2"));
        }
        parent.begin_nesting();
        let (parent, devices) = (parent.clone(), RwLock::default());
        Ok(Arc::new_cyclic(|this| Self { this: this.clone(), parent, events, devices }))
    }

    /// The stage 2.
    pub(crate) fn parent(&self) -> &Arc<Domain<R, M>> {
        &self.parent
    }

    /// The guest's StreamID of a stream.
    pub fn virtual_id(&self, stream_id: u32) -> Option<u32> {
        self.devices.read().by_physical.get(&stream_id).copied()
    }

    /// The stream of a virtual StreamID.
    fn physical(&self, id: u32) -> Option<Physical> {
        let Physical { sid, ats } = self.devices.read().by_virtual.get(&id).copied()?;
        Some(Physical { sid, ats: ats && self.parent.smmu().permits_ats(sid) })
    }

    /// Has those streams of a batch lose ATS that do not answer: the next batch would wait for them too.
    fn leave_behind(&self, batch: &[Command]) -> Result<(), Error> {
        let sids: BTreeSet<u32> = batch
            .iter()
            .filter_map(|command| match command {
                Command::AtcInv { sid, .. } => Some(*sid),
                _ => None,
            })
            .collect();
        let users: Vec<_> =
            sids.into_iter().map(|sid| AtsUser { sid, ssid: None, whole: true }).collect();
        self.parent.smmu().forget_atc(&users, &(0..0))
    }

    /// Where the guest's events go.
    pub(crate) fn events(&self) -> &Arc<dyn EventSink> {
        &self.events
    }

    /// Executes commands of the guest, two words each, in order. Returns how many were executed and are complete, and
    /// why it was not all of them.
    ///
    /// Where a device does not answer an ATS invalidation, that is an error, and the commands up to the next `CMD_SYNC`
    /// with the invalidation among them count as executed. The device has no ATS from then on.
    pub fn run(
        &self,
        commands: impl IntoIterator<Item = Result<[u64; 2], iommu::Error>>,
    ) -> (u32, Result<(), iommu::Error>) {
        let features = self.parent.smmu().features();
        let vmid = self.parent.vmid();
        let mut commands = commands.into_iter();
        let mut done = 0;
        loop {
            // One CMD_SYNC for each batch, and in between it is another guest's turn.
            let mut batch = Vec::with_capacity(BATCH);
            // Up to where the guest's commands are done when so many of the batch are.
            let mut ends = Vec::with_capacity(BATCH);
            let mut end = done;
            let mut last = None;
            while batch.len() < BATCH && last.is_none() {
                let stream = |id| self.physical(id);
                match commands.next() {
                    None => last = Some(Ok(())),
                    Some(Err(error)) => last = Some(Err(error)),
                    Some(Ok(raw)) => match rewrite(raw, vmid, features, stream) {
                        Err(reason) => last = Some(Err(iommu::Error::Io(reason))),
                        Ok(Rewritten::Nothing) => end += 1,
                        Ok(Rewritten::Run(command)) => {
                            ends.push(end);
                            batch.push(command);
                            end += 1;
                        }
                    },
                }
            }
            if let Err(error) = self.parent.smmu().run(&batch) {
                let before = |index: usize| ends.get(index).copied().unwrap_or(end);
                return match error {
                    CommandsError::Illegal { index, .. } => {
                        (before(index), Err(iommu::Error::Io("the SMMU refuses a command")))
                    }
                    CommandsError::AtcTimeout { executed } => {
                        let reason = "a device does not answer an ATS invalidation";
                        let result = self.leave_behind(&batch[..executed.min(batch.len())]);
                        (
                            before(executed),
                            result.map_err(Into::into).and(Err(iommu::Error::Io(reason))),
                        )
                    }
                    CommandsError::Unreadable | CommandsError::Timeout => {
                        (done, Err(Error::from(error).into()))
                    }
                };
            }
            done = end;
            if let Some(last) = last {
                return (done, last);
            }
        }
    }

    /// Makes a stream known to the guest.
    pub(crate) fn add_stream(&self, virt_id: u64, stream: Physical) -> Result<(), iommu::Error> {
        let id = u32::try_from(virt_id)
            .map_err(|_| iommu::Error::Invalid("a virtual StreamID of more than 32 bits"))?;
        let devices = &mut *self.devices.write();
        let by_virtual = devices.by_virtual.entry(id);
        match (by_virtual, devices.by_physical.entry(stream.sid)) {
            (Entry::Vacant(by_virtual), Entry::Vacant(by_physical)) => {
                by_virtual.insert(stream);
                by_physical.insert(id);
                Ok(())
            }
            _ => Err(iommu::Error::Exists("a device with this virtual StreamID")),
        }
    }
}

impl<R: Registers, M: DmaMemory> Drop for Viommu<R, M> {
    fn drop(&mut self) {
        self.parent.end_nesting();
    }
}

impl<R: Registers + 'static, M: DmaMemory + 'static> iommu::Viommu for Viommu<R, M> {
    fn alloc_nested(
        &self,
        _: &Device,
        data: &UserData,
    ) -> Result<Arc<dyn NestedDomain>, iommu::Error> {
        let kind = u::iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3;
        let size = size_of::<u::iommu_hwpt_arm_smmuv3>();
        let data: u::iommu_hwpt_arm_smmuv3 = data.get(kind, size)?;
        let this = self.this.upgrade().ok_or(iommu::Error::NotFound("the vIOMMU"))?;
        Ok(Nested::new(&this, data.ste.map(u64::from_le))?)
    }

    fn invalidate(&self, array: &UserArray<'_>) -> (u32, Result<(), iommu::Error>) {
        let kind = u::iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
        if array.data_type != kind {
            return (0, Err(iommu::Error::Invalid("the type of invalidation")));
        }
        let size = size_of::<u::iommu_viommu_arm_smmuv3_invalidate>();
        self.run((0..array.entry_num).map(|index| {
            let entry: u::iommu_viommu_arm_smmuv3_invalidate = array.get_extensible(index, size)?;
            Ok(entry.cmd.map(u64::from_le))
        }))
    }

    fn add_device(&self, device: &Arc<Device>, virt_id: u64) -> Result<(), iommu::Error> {
        let Behind { stream, .. } = Behind::<R, M>::of(device)?;
        if !Arc::ptr_eq(stream.smmu(), self.parent.smmu()) {
            return Err(iommu::Error::Invalid("the device is behind another SMMU"));
        }
        self.add_stream(virt_id, Physical { sid: stream.id(), ats: stream.has_ats() })
    }

    fn remove_device(&self, virt_id: u64) {
        let Ok(id) = u32::try_from(virt_id) else { return };
        let devices = &mut *self.devices.write();
        if let Some(stream) = devices.by_virtual.remove(&id) {
            devices.by_physical.remove(&stream.sid);
        }
    }
}

impl<R: Registers + 'static, M: DmaMemory + 'static> NestedDomain for Nested<R, M> {}
