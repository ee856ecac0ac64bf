//! Installing a machine that has more than its file says.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use host_linux::Host;
use interpose::Prefixes;
use platform::Spawn;
use softiommu_machine::Machine;

use crate::watch::Watch;
use crate::{AlreadyInstalled, Report, paths};

/// What paths of ours begin with: those of the knobs for fault injection first.
const WITH_KNOBS: &[&str] = &[
    "/proc/",
    "/sys/kernel/debug/fail",
    "/dev/iommu",
    "/dev/vfio",
    "/dev/char/511:",
    "/sys/bus/pci",
    "/sys/devices/pci",
    "/sys/kernel/iommu_groups",
    "/sys/class/iommu",
    "/sys/class/vfio-dev",
    "/sys/module/vfio",
    "/sys/module/iommufd",
];
/// How many of them are the knobs'.
const KNOBS: usize = 2;

/// Makes what is behind the registers of a device.
pub(crate) type Make = Box<dyn Fn(vfio::Bus, &Spawn) -> Arc<dyn vfio::Device> + Send + Sync>;

/// Devices that are not in the crate `devices`, by their names in the machine.
#[derive(Default)]
pub(crate) struct OwnDevices(BTreeMap<String, Make>);

impl OwnDevices {
    pub(crate) fn get(&self, name: &str) -> Option<&Make> {
        self.0.get(name)
    }
}

/// Why a machine is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// This process has one.
    #[error(transparent)]
    AlreadyInstalled(#[from] AlreadyInstalled),
    /// A device of one's own has no place.
    #[error("the machine has no [[device]] with the name `{0}` and no model: add one")]
    NoPlace(String),
}

/// A machine, about to be installed, and what its file does not say.
///
/// ```no_run
/// # use std::sync::Arc;
/// # fn my_nic(bus: softiommu::device::Bus) -> Arc<dyn softiommu::device::Device> { unimplemented!() }
/// let machine = softiommu::Machine::from_toml(
///     "[[iommu]]\nmodel = \"smmuv3\"\n[[device]]\nname = \"nic\"\niommu = \"iommu0\"\n",
/// )?;
/// softiommu::Setup::new(machine).device("nic", |bus, _spawn| my_nic(bus)).install()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Setup {
    machine: Machine,
    report: Report,
    /// The process that begins its trace file anew.
    empties: Option<u32>,
    devices: OwnDevices,
}

impl Setup {
    /// As [`install`](crate::install) has it.
    pub fn new(machine: Machine) -> Self {
        let report = |report: &str| {
            // Past the capture of test output: nobody knows which test the DMA belongs to.
            let _ = std::io::stderr().write_all(report.as_bytes());
        };
        let empties = Some(std::process::id());
        Self { machine, report: Arc::new(report), empties, devices: OwnDevices::default() }
    }

    /// Where the machine's reports go, as in [`install_with`](crate::install_with).
    #[must_use]
    pub fn report(mut self, report: impl Fn(&str) + Send + Sync + 'static) -> Self {
        (self.report, self.empties) = (Arc::new(report), None);
        self
    }

    /// Puts a device of one's own where the machine has one with this name and no model. `make` gets its way to memory and
    /// interrupts, and what starts threads that take none of the program's signals. It is called for each virtual function,
    /// too: [`Bus::virtual_function`](vfio::Bus::virtual_function) tells them apart.
    #[must_use]
    pub fn device(
        mut self,
        name: impl Into<String>,
        make: impl Fn(vfio::Bus, &Spawn) -> Arc<dyn vfio::Device> + Send + Sync + 'static,
    ) -> Self {
        self.devices.0.insert(name.into(), Box::new(make));
        self
    }

    /// Gives this process the machine, as [`install`](crate::install) does.
    pub fn install(self) -> Result<(), SetupError> {
        let Self { machine, report, empties, devices } = self;
        let places = || machine.devices.iter().filter(|device| device.model.is_none());
        let homeless = devices.0.keys().find(|name| !places().any(|device| device.name == **name));
        if let Some(name) = homeless {
            return Err(SetupError::NoPlace(name.clone()));
        }
        let prefixes = if machine.fault_injection {
            Prefixes { build: WITH_KNOBS, if_built: &[], relative: &["fail", "sriov_"] }
        } else {
            let build = WITH_KNOBS.split_at(KNOBS).1;
            Prefixes { build, if_built: &["/proc/"], relative: &["sriov_"] }
        };
        let make = move |host: &Arc<Host>| {
            let watch = Watch::start(&machine, empties == Some(std::process::id()), &report);
            paths(&machine, &devices, host, &report, watch)
        };
        Ok(interpose::install(prefixes, make).map_err(|_| AlreadyInstalled)?)
    }
}
