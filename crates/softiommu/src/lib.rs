//! A whole IOMMU as a dev-dependency: after [`install`], `/dev/iommu` and the machine's
//! VFIO devices work in this process, whoever opens them.
//!
//! ```no_run
//! softiommu::install(softiommu::Machine::default())?;
//! let iommu = std::fs::File::options().read(true).write(true).open("/dev/iommu")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Calls into the C library from anything linked into the same executable
//! arrive here: the standard library's, those of client crates, those of C
//! code. Nothing needs `LD_PRELOAD`, root, or a kernel with iommufd.
#![forbid(unsafe_code)]

mod backed;
mod fail_nth;
mod functions;
mod hardware;
mod setup;
mod sriov;
mod stats;
mod status;
mod sysfs;
mod timeline;
mod watch;

use std::sync::Arc;

use host_linux::Host;
use interpose::{Captures, Node, PathTable};
use iommu::NoIommu;

use crate::fail_nth::{FailNth, Knob};
use crate::hardware::Hardware;
use crate::setup::OwnDevices;
use crate::watch::Watch;

pub use setup::{Setup, SetupError};
pub use softiommu_machine::{
    Behind, Device, DeviceModel, Disk, Error as MachineError, Grant, Iommu, Machine, Model,
    Overrides, PciAddress, Reserved, Size, StaleRule,
};

/// What a device of one's own is made of: see [`Setup::device`].
pub mod device {
    pub use platform::Spawn;
    pub use vfio::{Access, Bus, Device, DmaError, Identity, InUse, Work, Worker};
}

/// The minor device number of `/dev/iommu`; its major is 10 (misc).
const MINOR: u32 = 125;

/// Takes what the machine has to tell.
type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// [`install`] was called before in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process has a machine already: call softiommu::install once")]
pub struct AlreadyInstalled;

/// Gives this process the machine: `/dev/iommu` can be opened from now on. It is
/// built when it is first used.
///
/// To be called once in a process, before the first open; in tests, which share
/// a process, through a `std::sync::Once` or by ignoring [`AlreadyInstalled`].
pub fn install(machine: Machine) -> Result<(), AlreadyInstalled> {
    installed(Setup::new(machine))
}

/// As [`install`], with `report` for what the machine has to tell beside errors: explained faults
/// ([`Machine::explain_faults`]), stale translations ([`Machine::check_stale`]), each a few lines
/// of text, and one line when the trace ([`Machine::trace`]) ends. It is called by whichever thread does the DMA.
///
/// A trace is appended to what its file has, where [`install`] begins anew: several processes may have one file.
pub fn install_with(
    machine: Machine,
    report: impl Fn(&str) + Send + Sync + 'static,
) -> Result<(), AlreadyInstalled> {
    installed(Setup::new(machine).report(report))
}

fn installed(setup: Setup) -> Result<(), AlreadyInstalled> {
    // Without devices of one's own nothing else can be wrong.
    setup.install().map_err(|_| AlreadyInstalled)
}

/// The one table of what paths lead to us.
fn paths(
    machine: &Machine,
    own: &OwnDevices,
    host: &Arc<Host>,
    report: &Report,
    watch: Option<Arc<Watch>>,
) -> PathTable {
    let mut table = PathTable::new();
    if machine.iommus.iter().any(|iommu| iommu.model == Model::Mock) {
        let granted: Vec<_> = machine.grant.iter().map(|grant| capability(*grant)).collect();
        let noiommu = machine.devices.iter().map(|device| NoIommu::add_device(&device.name));
        let memory = host.phys().clone();
        let node = iommufd_selftest::device_node(memory, MINOR, &granted, noiommu.collect());
        if let Some(timeline) = watch.as_ref().and_then(|watch| watch.timeline()) {
            node.observe(timeline.clone());
        }
        table.add("/dev/iommu", Node::CharDevice(node));
    } else {
        match Hardware::build(machine, own, host, report, watch.as_ref()) {
            Ok(hardware) => hardware.add_to(&mut table),
            // The machine file was checked, so this is an image, memory or threads: there is no machine.
            Err(error) => report(&format!("softiommu: there is no machine: {error}\n")),
        }
    }
    if machine.fault_injection {
        table.add("/proc/{pid}/task/{tid}/fail-nth", Node::CharDevice(Arc::new(FailNth)));
        table.add("/sys/kernel/debug/{fault}/{knob}", Node::CharDevice(Arc::new(Knob)));
    }
    let host = host.clone();
    let status =
        move |captures: &Captures, text| match captures.pid().and_then(|pid| host.known_mm(pid)) {
            Some(mm) => status::patch(text, mm.counters()),
            None => text,
        };
    table.add("/proc/{pid}/status", Node::Patched(Arc::new(status)));
    table
}

fn capability(grant: Grant) -> host::Capability {
    match grant {
        Grant::IpcLock => host::Capability::IpcLock,
        Grant::SysResource => host::Capability::SysResource,
        Grant::SysRawio => host::Capability::SysRawio,
    }
}
