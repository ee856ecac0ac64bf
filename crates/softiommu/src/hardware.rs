//! The machine's hardware, and the files it is behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use host_linux::Host;
use interpose::{Node, PathTable, Tree};
use iommu::{Group as IommuGroup, ReservedKind, ReservedRegion};
use iommufd::Iommufd;
use platform::{DeviceOptions, Place, Platform, Smmu, Spawn};
use softiommu_machine::{Behind, Device, Machine};
use vfio::{Cdev, ContainerNode, Function, Group, GroupNode};

use crate::backed::{Backed, DiskError};
use crate::setup::OwnDevices;
use crate::sysfs::{self, Listed};
use crate::watch::Watch;
use crate::{MINOR, Report, capability};

/// The major device numbers of `/dev/vfio/devices/*` and of `/dev/vfio/GROUP`: the kernel hands out ones that are free.
const VFIO_MAJOR: u32 = 511;
const GROUP_MAJOR: u32 = 510;
/// The device numbers of `/dev/vfio/vfio`.
const CONTAINER: (u32, u32) = (10, 196);

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Platform(#[from] platform::Error),
    #[error(transparent)]
    Vfio(#[from] vfio::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// See the module.
pub(crate) struct Hardware {
    platform: Platform,
    iommufd: Arc<Iommufd>,
    devices: Vec<Listed>,
    groups: Vec<Arc<Group>>,
}

impl Hardware {
    /// Builds the machine that a machine file describes, which has been checked.
    pub(crate) fn build(
        machine: &Machine,
        own: &OwnDevices,
        host: &Arc<Host>,
        report: &Report,
        watch: Option<&Arc<Watch>>,
    ) -> Result<Self, Error> {
        let spawn: Spawn = Arc::new(interpose::spawn);
        let platform = Platform::new(host.phys().clone(), spawn.clone())?;
        let timeline = watch.and_then(|watch| watch.timeline());
        if let Some(watch) = watch {
            platform.observe(watch.clone());
        }
        let mut smmus = BTreeMap::new();
        for iommu in &machine.iommus {
            if let Some(options) = iommu.model.smmuv3(&iommu.options) {
                let smmu = platform.add_smmu(&iommu.name, options)?;
                if let Some(watch) = watch {
                    watch.smmu(&iommu.name, smmu.model());
                }
                smmus.insert(iommu.name.clone(), smmu);
            }
        }
        let mut streams = Streams::of(machine);
        let mut groups = Groups::new();
        let mut devices = Vec::new();
        // The machine has been checked.
        let addresses = machine.addresses().unwrap_or_default();
        for (device, address) in machine.devices.iter().zip(addresses) {
            let (iommu_group, group) = groups.of(device);
            let window = machine.msi_window();
            let place = place(device, &smmus, &mut streams, &iommu_group, window);
            if let (Some(timeline), Place::Smmu { smmu, stream_id, .. }) = (timeline, &place) {
                timeline.add_stream(smmu.name(), *stream_id, &device.name);
            }
            let (core, port) = platform.add_device(&device.name, &place)?;
            let backed = match (device.model, own.get(&device.name)) {
                (Some(model), _) => Backed::open(device, model)?,
                (None, Some(make)) => Backed::Own(make),
                // DMA only: nothing in /dev/vfio.
                (None, None) => continue,
            };
            let make = |bus| backed.make(device, bus, &spawn);
            let its = platform.its();
            let function = Function::new(core, port, its, address, &group, &spawn, make)?;
            if device.mmap {
                function.allow_mmap();
            }
            let iommu = match &device.iommu {
                Behind::Iommu(name) => Some(name.clone()),
                Behind::None => None,
            };
            devices.push(Listed { function, minor: devices.len() as u32, iommu });
        }
        let groups = groups.known.into_values().map(|(_, group)| group).collect();
        for (name, smmu) in &smmus {
            ask(machine, name, smmu, report);
        }
        let granted: Vec<_> = machine.grant.iter().map(|grant| capability(*grant)).collect();
        let iommufd = Iommufd::new(host.phys().clone(), MINOR, None)
            .grant(&granted)
            .doorbells(platform.doorbells());
        if let Some(timeline) = timeline {
            iommufd.observe(timeline.clone());
        }
        Ok(Self { platform, iommufd: Arc::new(iommufd), devices, groups })
    }

    /// Puts it behind its paths, for as long as the table lives.
    pub(crate) fn add_to(self, table: &mut PathTable) {
        let Self { platform, iommufd, devices, groups } = self;
        match list(&devices) {
            Ok((tree, paths)) => {
                table.overlay(tree, paths);
            }
            // Whoever knows the names of the nodes has no need of it.
            Err(error) => tracing::warn!(%error, "/sys does not show the machine's devices"),
        }
        let (major, minor) = CONTAINER;
        let container = ContainerNode::new(iommufd.clone(), major, minor);
        table.add("/dev/vfio/vfio", Node::CharDevice(Arc::new(container)));
        table.add("/dev/iommu", Node::CharDevice(iommufd));
        for Listed { function, minor, .. } in devices {
            let cdev = Node::CharDevice(Arc::new(Cdev::new(function, VFIO_MAJOR, minor)));
            table.add(format!("/dev/vfio/devices/vfio{minor}"), cdev.clone());
            table.add(format!("/dev/char/{VFIO_MAJOR}:{minor}"), cdev);
        }
        for group in groups {
            let path = format!("/dev/vfio/{}", group.id());
            table.add(path, Node::CharDevice(Arc::new(GroupNode::new(group, GROUP_MAJOR))));
        }
        // The SMMUs stay in service with their devices' nodes.
        table.keep(Arc::new(platform));
    }
}

/// What `/sys` and `/dev` say of the devices, and at which paths.
fn list(devices: &[Listed]) -> std::io::Result<(Arc<Tree>, Vec<String>)> {
    let tree = Tree::new()?;
    tree.remove_at_exit();
    let paths = sysfs::fill(&tree, devices, VFIO_MAJOR)?;
    Ok((Arc::new(tree), paths))
}

/// Groups by the names that the machine file gives them.
struct Groups {
    known: BTreeMap<String, (Arc<IommuGroup>, Arc<Group>)>,
    next: u32,
}

impl Groups {
    fn new() -> Self {
        Self { known: BTreeMap::new(), next: sysfs::first_group() }
    }

    /// The group of a device, as the IOMMU core and as VFIO have it.
    fn of(&mut self, device: &Device) -> (Arc<IommuGroup>, Arc<Group>) {
        // A name for a group of its own that no other device can have.
        let key = device.group.clone().unwrap_or_else(|| format!("\0{}", device.name));
        let next = &mut self.next;
        let new = || {
            *next += 1;
            (Arc::default(), Group::new(*next - 1))
        };
        self.known.entry(key).or_insert_with(new).clone()
    }
}

/// StreamIDs that are still free, for each IOMMU.
struct Streams(BTreeMap<String, BTreeSet<u32>>);

impl Streams {
    fn of(machine: &Machine) -> Self {
        let mut taken = BTreeMap::<String, BTreeSet<u32>>::new();
        for device in &machine.devices {
            taken.entry(device.iommu.clone().into()).or_default().extend(device.stream_id);
        }
        Self(taken)
    }

    fn next(&mut self, iommu: &str) -> u32 {
        let taken = self.0.entry(iommu.to_owned()).or_default();
        let free = (0..=u32::MAX).find(|id| !taken.contains(id)).unwrap_or(0);
        taken.insert(free);
        free
    }
}

fn place<'a>(
    device: &Device,
    smmus: &'a BTreeMap<String, Arc<Smmu>>,
    streams: &mut Streams,
    group: &'a Arc<IommuGroup>,
    window: (u64, u64),
) -> Place<'a> {
    let Behind::Iommu(name) = &device.iommu else { return Place::Direct };
    let Some(smmu) = smmus.get(name) else { return Place::Direct };
    let stream_id = device.stream_id.unwrap_or_else(|| streams.next(name));
    let Device { pasid_bits, ats, pri, .. } = *device;
    let region = |first, last, kind| ReservedRegion { range: first..=last, kind };
    let mut reserved = vec![region(window.0, window.1, ReservedKind::SwMsi)];
    let more = device.reserved.iter();
    reserved.extend(more.map(|more| region(more.first, more.last, ReservedKind::Reserved)));
    let options = DeviceOptions { pasid_bits, ats, pri, reserved, ..DeviceOptions::default() };
    Place::Smmu { smmu, stream_id, options, group }
}

/// Has an SMMU tell what the machine file asks for.
fn ask(machine: &Machine, name: &str, smmu: &Smmu, report: &Report) {
    if machine.explain_faults {
        let (name, report) = (name.to_owned(), report.clone());
        let sink = move |fault: &smmuv3::ExplainedFault| {
            report(&format!("softiommu: {name}: {fault}\n"));
        };
        // As below.
        let _ = smmu.model().explain_faults(sink);
    }
    if let Some(rule) = machine.check_stale {
        let (name, report) = (name.to_owned(), report.clone());
        let sink = move |stale: &smmuv3::Stale| report(&format!("softiommu: {name}: {stale}\n"));
        // It is new: nobody checks it yet.
        let _ = smmu.model().check_stale(rule.into(), sink);
    }
}
