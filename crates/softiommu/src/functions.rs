//! The functions of a machine: each device behind its IOMMU, in its group, and its virtual functions after all devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu::{Device as CoreDevice, Group as IommuGroup, ReservedKind, ReservedRegion};
use platform::{DeviceOptions, Place, Platform, Port, Smmu, Spawn};
use softiommu_machine::{Behind, Device, Machine};
use vfio::{Function, Group};

use crate::backed::Backed;
use crate::hardware::Error;
use crate::setup::OwnDevices;
use crate::sysfs::{Listed, first_group};
use crate::timeline::Timeline;

/// See the module.
pub(crate) struct Functions<'a> {
    machine: &'a Machine,
    own: &'a OwnDevices,
    platform: &'a Platform,
    smmus: &'a BTreeMap<String, Arc<Smmu>>,
    timeline: Option<&'a Arc<Timeline>>,
    spawn: &'a Spawn,
    groups: Groups,
    listed: Vec<Listed>,
}

/// A function that is about to be made.
struct Wanted<'a> {
    device: &'a Device,
    name: &'a str,
    stream_id: Option<u32>,
    options: DeviceOptions,
}

impl<'a> Functions<'a> {
    /// None of the machine's yet.
    pub(crate) fn new(
        machine: &'a Machine,
        own: &'a OwnDevices,
        platform: &'a Platform,
        smmus: &'a BTreeMap<String, Arc<Smmu>>,
        timeline: Option<&'a Arc<Timeline>>,
        spawn: &'a Spawn,
    ) -> Self {
        let (groups, listed) = (Groups::new(), Vec::new());
        Self { machine, own, platform, smmus, timeline, spawn, groups, listed }
    }

    /// What programs find, and the groups.
    pub(crate) fn finish(self) -> (Vec<Listed>, Vec<Arc<Group>>) {
        let groups = self.groups.known.into_values().map(|(_, group)| group);
        (self.listed, groups.collect())
    }

    /// Makes all of the machine, which has been checked. Numbers of files and groups do not depend on virtual functions:
    /// those come last.
    pub(crate) fn add_all(&mut self) -> Result<(), Error> {
        let addresses = self.machine.addresses().unwrap_or_default();
        let places = addresses.into_iter().zip(self.machine.stream_ids());
        let mut physical = Vec::new();
        for (device, (address, stream_id)) in self.machine.devices.iter().zip(places) {
            let Device { name, pasid_bits, ats, pri, .. } = device;
            let (pasid_bits, ats, pri) = (*pasid_bits, *ats, *pri);
            let options = DeviceOptions { pasid_bits, ats, pri, ..DeviceOptions::default() };
            let wanted = Wanted { device, name, stream_id, options };
            let (core, port, group) = self.place(&wanted)?;
            // Without a model there is DMA only, and nothing in /dev/vfio.
            let Some(backed) = self.backed(device)? else { continue };
            let make = |bus| backed.make(device, bus, self.spawn);
            let its = self.platform.its();
            let function = Function::new(core, port, its, address, &group, self.spawn, make)?;
            self.list(device, function.clone(), None);
            physical.push((wanted, function));
        }
        for (wanted, function) in physical {
            for index in 0..wanted.device.vfs {
                self.add_virtual(&wanted, &function, index)?;
            }
            function.set_num_vfs(wanted.device.num_vfs)?;
        }
        Ok(())
    }

    fn add_virtual(
        &mut self,
        of: &Wanted<'_>,
        physical: &Arc<Function>,
        index: u16,
    ) -> Result<(), Error> {
        let device = of.device;
        let name = &format!("{}-vf{index}", device.name);
        let stream_id = of.stream_id.map(|first| first + 1 + u32::from(index));
        // As in PCIe: requests for pages are the physical function's alone.
        let options = DeviceOptions { pri: false, ..of.options.clone() };
        let (core, port, group) = self.place(&Wanted { device, name, stream_id, options })?;
        let Some(backed) = self.backed(device)? else { return Ok(()) };
        let make = |bus| backed.make(device, bus, self.spawn);
        let function = physical.add_virtual(core, port, &group, self.spawn, make)?;
        self.list(device, function, Some((physical.clone(), index)));
        Ok(())
    }

    /// What is behind the registers of a device, or of its virtual functions.
    fn backed(&self, device: &Device) -> Result<Option<Backed<'a>>, Error> {
        Ok(match (device.model, self.own.get(&device.name)) {
            (Some(model), _) => Some(Backed::open(device, model)?),
            (None, own) => own.map(Backed::Own),
        })
    }

    /// Has programs find a function.
    fn list(&mut self, device: &Device, function: Arc<Function>, of: Option<(Arc<Function>, u16)>) {
        if device.mmap {
            function.allow_mmap();
        }
        let iommu = match &device.iommu {
            Behind::Iommu(name) => Some(name.clone()),
            Behind::None => None,
        };
        let minor = self.listed.len() as u32;
        self.listed.push(Listed { function, minor, iommu, of });
    }

    /// Puts a function behind its IOMMU, and into its group.
    fn place(&mut self, wanted: &Wanted<'_>) -> Result<(Arc<CoreDevice>, Port, Arc<Group>), Error> {
        let Wanted { device, name, stream_id, options } = wanted;
        let (iommu_group, group) = self.groups.of(device, name);
        let smmu = match &device.iommu {
            Behind::Iommu(name) => self.smmus.get(name),
            Behind::None => None,
        };
        let place = match (smmu, stream_id) {
            (Some(smmu), Some(stream_id)) => {
                if let Some(timeline) = self.timeline {
                    timeline.add_stream(smmu.name(), *stream_id, name);
                }
                let options = DeviceOptions { reserved: self.reserved(device), ..options.clone() };
                Place::Smmu { smmu, stream_id: *stream_id, options, group: &iommu_group }
            }
            _ => Place::Direct,
        };
        let (core, port) = self.platform.add_device(name, &place)?;
        Ok((core, port, group))
    }

    fn reserved(&self, device: &Device) -> Vec<ReservedRegion> {
        let region = |first, last, kind| ReservedRegion { range: first..=last, kind };
        let (first, last) = self.machine.msi_window();
        let more = device.reserved.iter();
        let more = more.map(|more| region(more.first, more.last, ReservedKind::Reserved));
        std::iter::once(region(first, last, ReservedKind::SwMsi)).chain(more).collect()
    }
}

/// Groups by the names that the machine file gives them.
struct Groups {
    known: BTreeMap<String, (Arc<IommuGroup>, Arc<Group>)>,
    next: u32,
}

impl Groups {
    fn new() -> Self {
        Self { known: BTreeMap::new(), next: first_group() }
    }

    /// The group of a function, as the IOMMU core and as VFIO have it.
    fn of(&mut self, device: &Device, name: &str) -> (Arc<IommuGroup>, Arc<Group>) {
        // A name for a group of its own that no other device can have.
        let key = device.group.clone().unwrap_or_else(|| format!("\0{name}"));
        let next = &mut self.next;
        let new = || {
            *next += 1;
            (Arc::default(), Group::new(*next - 1))
        };
        self.known.entry(key).or_insert_with(new).clone()
    }
}
