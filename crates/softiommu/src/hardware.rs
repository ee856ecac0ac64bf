//! The machine's hardware, and the files it is behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use host_linux::Host;
use interpose::{Node, PathTable, Tree};
use iommufd::Iommufd;
use platform::{Platform, Smmu, Spawn};
use softiommu_machine::Machine;
use vfio::{Cdev, ContainerNode, Group, GroupNode};

use crate::backed::DiskError;
use crate::functions::Functions;
use crate::setup::OwnDevices;
use crate::sysfs::{self, Listed};
use crate::watch::Watch;
use crate::{MINOR, Report, capability, sriov};

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
        let mut functions = Functions::new(machine, own, &platform, &smmus, timeline, &spawn);
        functions.add_all()?;
        let (devices, groups) = functions.finish();
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
                sriov::add_to(table, &tree, &devices, VFIO_MAJOR);
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
