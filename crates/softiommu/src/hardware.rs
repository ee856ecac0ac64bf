//! The machine's hardware, and the files it is behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use devices::Ioat;
use host_linux::Host;
use interpose::{Node, PathTable};
use iommu::Group;
use iommufd::Iommufd;
use platform::{DeviceOptions, Place, Platform, Smmu, Spawn};
use softiommu_machine::{Behind, Device, DeviceModel, Machine};
use vfio::{Cdev, Function};

use crate::timeline::Timeline;
use crate::{MINOR, Report, capability};

/// The major device number of `/dev/vfio/devices/*`: the kernel hands out one that is free.
const VFIO_MAJOR: u32 = 511;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Platform(#[from] platform::Error),
    #[error(transparent)]
    Vfio(#[from] vfio::Error),
}

/// See the module.
pub(crate) struct Hardware {
    platform: Platform,
    iommufd: Arc<Iommufd>,
    functions: Vec<Arc<Function>>,
}

impl Hardware {
    /// Builds the machine that a machine file describes, which has been checked.
    pub(crate) fn build(
        machine: &Machine,
        host: &Arc<Host>,
        report: &Report,
        timeline: Option<&Arc<Timeline>>,
    ) -> Result<Self, Error> {
        let spawn: Spawn = Arc::new(interpose::spawn);
        let platform = Platform::new(host.phys().clone(), spawn.clone())?;
        if let Some(timeline) = timeline {
            platform.observe(timeline.clone());
        }
        let mut smmus = BTreeMap::new();
        for iommu in &machine.iommus {
            if let Some(options) = iommu.model.smmuv3(&iommu.options) {
                let smmu = platform.add_smmu(&iommu.name, options)?;
                if let Some(timeline) = timeline {
                    timeline.watch(&iommu.name, smmu.model());
                }
                smmus.insert(iommu.name.clone(), smmu);
            }
        }
        let mut streams = Streams::of(machine);
        let mut groups = BTreeMap::<_, Arc<Group>>::new();
        let mut functions = Vec::new();
        for device in &machine.devices {
            let place = place(device, &smmus, &mut streams, &mut groups);
            if let (Some(timeline), Place::Smmu { smmu, stream_id, .. }) = (timeline, &place) {
                timeline.add_stream(smmu.name(), *stream_id, &device.name);
            }
            let (core, port) = platform.add_device(&device.name, &place)?;
            let Some(model) = device.model else { continue };
            let function = Function::new(core, port, platform.its(), |bus| match model {
                DeviceModel::Ioat => Ioat::new(bus, &spawn),
            })?;
            functions.push(function);
        }
        for (name, smmu) in &smmus {
            watch(machine, name, smmu, report);
        }
        let granted: Vec<_> = machine.grant.iter().map(|grant| capability(*grant)).collect();
        let iommufd = Iommufd::new(host.phys().clone(), MINOR, None)
            .grant(&granted)
            .doorbells(platform.doorbells());
        if let Some(timeline) = timeline {
            iommufd.observe(timeline.clone());
        }
        Ok(Self { platform, iommufd: Arc::new(iommufd), functions })
    }

    /// Puts it behind its paths, for as long as the table lives.
    pub(crate) fn add_to(self, table: &mut PathTable) {
        let Self { platform, iommufd, functions } = self;
        table.add("/dev/iommu", Node::CharDevice(iommufd));
        let platform = Arc::new(platform);
        for (minor, function) in functions.into_iter().enumerate() {
            let path = format!("/dev/vfio/devices/vfio{minor}");
            let cdev = Cdev::new(function, VFIO_MAJOR, minor as u32);
            table.add(path, Node::CharDevice(Arc::new(cdev)));
        }
        // The SMMUs stay in service with their devices' nodes.
        table.keep(platform);
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
    groups: &'a mut BTreeMap<String, Arc<Group>>,
) -> Place<'a> {
    let Behind::Iommu(name) = &device.iommu else { return Place::Direct };
    let Some(smmu) = smmus.get(name) else { return Place::Direct };
    let stream_id = device.stream_id.unwrap_or_else(|| streams.next(name));
    // A name for a group of its own that no other device can have.
    let key = device.group.clone().unwrap_or_else(|| format!("\0{}", device.name));
    let group = groups.entry(key).or_default();
    let options = DeviceOptions { pasid_bits: device.pasid_bits, ..DeviceOptions::default() };
    Place::Smmu { smmu, stream_id, options, group }
}

/// Has an SMMU tell what the machine file asks for.
fn watch(machine: &Machine, name: &str, smmu: &Smmu, report: &Report) {
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
