//! The machine that `/dev/iommu` runs on: which IOMMUs there are, and which devices.
//!
//! A machine file is TOML:
//!
//! ```toml
//! grant = ["sys-resource"]   # optional: act as if programs had CAP_SYS_RESOURCE
//!
//! fault-injection = true     # optional: /proc/self/task/TID/fail-nth works
//! explain-faults = true      # optional: the walk of each DMA that faults is printed
//! check-stale = "reuse"      # optional: translations that software forgot to invalidate are reported
//! stats = true               # optional: what was done is told in numbers at the end
//! msi-window = 0xfee00000    # optional: where MSI doorbells are mapped, 1 MiB; see `MSI_WINDOW`
//! trace = "/tmp/trace.json"  # optional: what happens is written there, for https://ui.perfetto.dev
//!
//! [[iommu]]                  # one or more
//! name = "smmu0"
//! model = "smmuv3"           # or mmu600, mmu700; or mock, the hardware of the kernel's selftests
//! options = { ats = false }  # optional: what is different from the model, see `Overrides`
//!
//! [[device]]                 # optional, any number
//! name = "ioat0"
//! model = "ioat"             # what is behind /dev/vfio/devices/vfio0
//! iommu = "smmu0"            # or "none": its DMA is not translated
//! stream-id = 8              # optional
//! vfs = 4                    # optional: it has virtual functions (SR-IOV), for programs to enable
//! num-vfs = 2                # optional: so many of them are enabled from the start
//! group = "multifunction"    # optional: devices that share a domain
//! pasid-bits = 8             # optional: it has PASIDs of so many bits
//! ats = true                 # optional: it has an address translation cache (PCIe ATS)
//! pri = true                 # optional: it asks for pages that are not there (PCIe PRI, which takes ATS)
//! address = "0001:00:01.0"   # optional: of PCI; by default the next in segment 1
//! reserved = [{ first = 0xa0000, last = 0xbffff }]   # optional: IOVAs that no memory is mapped at
//! mmap = true                # optional: programs may map its registers (x86-64; not for KVM guests)
//!
//! [[device]]
//! name = "disk0"
//! model = "nvme"             # or virtio-blk
//! iommu = "smmu0"
//! image = "disk.img"         # where it is from the machine file; or memory = "64MiB"
//! read-only = true           # optional
//! block-size = 4096          # optional: 512 by default
//! # NVMe can have several disks instead: namespaces = [{ image = "a.img" }, { memory = "1GiB" }]
//! # virtio-blk can have several queues: queues = 4
//! ```
//!
//! ```
//! use softiommu_machine::{Machine, Model};
//!
//! let machine = Machine::from_toml("[[iommu]]\nmodel = \"mock\"\n")?;
//! assert_eq!(machine.iommus[0].model, Model::Mock);
//! let error = Machine::from_toml("[[iommu]]\nmodle = \"mock\"\n").unwrap_err();
//! assert!(error.to_string().contains("unknown field `modle`"));
//! # Ok::<(), softiommu_machine::Error>(())
//! ```
#![forbid(unsafe_code)]

mod argument;
mod check;
mod device;
mod disk;
mod iommu;
mod overrides;
mod places;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use device::{Behind, Device, DeviceModel, Reserved};
pub use disk::{Disk, Size};
pub use iommu::{Iommu, Model};
pub use overrides::Overrides;
pub use platform::PciAddress;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// What every program may do as if it had the capability.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grant: Vec<Grant>,
    /// Programs find the kernel's knobs for fault injection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fault_injection: bool,
    /// DMA that faults is explained, step by step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub explain_faults: bool,
    /// Translations that software forgot to invalidate are reported, by this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_stale: Option<StaleRule>,
    /// What happens is written to this file, for <https://ui.perfetto.dev>; from the working directory if relative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<PathBuf>,
    /// What was done is told in numbers at the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stats: bool,
    /// Where MSI doorbells are mapped, in each domain: the first IOVA of the 1 MiB that no memory can have.
    /// [`MSI_WINDOW`] if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msi_window: Option<u64>,
    /// Its IOMMUs: one mock, or any number of others.
    #[serde(rename = "iommu")]
    pub iommus: Vec<Iommu>,
    /// Its devices, beside those that the mock IOMMU's users make for themselves.
    #[serde(rename = "device", default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
}

/// Where MSI doorbells are mapped unless a machine file says something else: where the VMMs of the architecture put no
/// guest memory. On x86 that is where processors have their own; elsewhere it is where Linux has the window.
pub const MSI_WINDOW: u64 = if cfg!(target_arch = "x86_64") { 0xfee0_0000 } else { 0x0800_0000 };

/// The size of the window for MSI doorbells, in bytes.
pub const MSI_WINDOW_SIZE: u64 = 1 << 20;

/// When a translation that memory contradicts is a bug of the software:
/// [`smmuv3::StaleRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StaleRule {
    /// When its address is used for something else: lazy unmapping is fine.
    Reuse,
    /// When a `CMD_SYNC` completed without a command for it.
    Sync,
    /// When it is used.
    Use,
}

impl From<StaleRule> for smmuv3::StaleRule {
    fn from(rule: StaleRule) -> Self {
        match rule {
            StaleRule::Reuse => Self::Reuse,
            StaleRule::Sync => Self::Sync,
            StaleRule::Use => Self::Use,
        }
    }
}

impl FromStr for StaleRule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "reuse" => Ok(Self::Reuse),
            "sync" => Ok(Self::Sync),
            "use" => Ok(Self::Use),
            _ => Err(format!("`{name}` is none of reuse, sync, use")),
        }
    }
}

/// A Linux capability that `/dev/iommu` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// `CAP_IPC_LOCK`: pinned memory is not limited.
    IpcLock,
    /// `CAP_SYS_RESOURCE`: `IOMMU_OPTION_RLIMIT_MODE` can be set.
    SysResource,
    /// `CAP_SYS_RAWIO`: physical addresses can be asked for.
    SysRawio,
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "ipc-lock" => Ok(Self::IpcLock),
            "sys-resource" => Ok(Self::SysResource),
            "sys-rawio" => Ok(Self::SysRawio),
            _ => Err(format!("`{name}` is none of ipc-lock, sys-resource, sys-rawio")),
        }
    }
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the machine file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a machine. The message has the line and the key.
    #[error("{}{source}", in_file(path.as_deref()))]
    Parse {
        /// The file, if it was one.
        path: Option<PathBuf>,
        /// What is wrong, and where.
        source: Box<toml::de::Error>,
    },
    /// The file describes something that this version does not offer.
    #[error("{}{problem}", in_file(path.as_deref()))]
    Unsupported {
        /// The file, if it was one.
        path: Option<PathBuf>,
        /// What, and what to write instead.
        problem: String,
    },
}

fn in_file(path: Option<&Path>) -> String {
    path.map(|path| format!("in the machine file {}: ", path.display())).unwrap_or_default()
}

impl Machine {
    /// A machine with one IOMMU of this model.
    pub fn with(model: Model) -> Self {
        let (name, options) = (Iommu::default_name(), Overrides::default());
        Self {
            grant: Vec::new(),
            fault_injection: false,
            explain_faults: false,
            check_stale: None,
            trace: None,
            stats: false,
            msi_window: None,
            iommus: vec![Iommu { name, model, options }],
            devices: Vec::new(),
        }
    }

    /// The first and the last IOVA of the window for MSI doorbells.
    pub fn msi_window(&self) -> (u64, u64) {
        let first = self.msi_window.unwrap_or(MSI_WINDOW);
        (first, first + (MSI_WINDOW_SIZE - 1))
    }

    /// The machine that a machine file describes.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Self::parse(text, None)
    }

    /// The machine that the machine file at `path` describes.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let mut machine = Self::parse(&text, Some(path.to_owned()))?;
        machine.place_images(path.parent().unwrap_or(Path::new("")));
        Ok(machine)
    }

    /// Has image files whose paths are relative be where they are from the directory `at`.
    pub fn place_images(&mut self, at: &Path) {
        for device in &mut self.devices {
            let namespaces = device.namespaces.iter_mut().map(|disk| &mut disk.image);
            let images = namespaces.chain([&mut device.image]).flatten();
            images.for_each(|image| *image = at.join(&image));
        }
    }

    /// The machine as the text of a machine file.
    pub fn to_toml(&self) -> String {
        // A struct of strings and enums always has a TOML form.
        toml::to_string(self).unwrap_or_default()
    }

    fn parse(text: &str, path: Option<PathBuf>) -> Result<Self, Error> {
        let machine: Self = match toml::from_str(text) {
            Ok(machine) => machine,
            Err(source) => return Err(Error::Parse { path, source: Box::new(source) }),
        };
        match machine.find_problem() {
            Ok(()) => Ok(machine),
            Err(problem) => Err(Error::Unsupported { path, problem }),
        }
    }

    /// The IOMMU with this name.
    pub fn iommu(&self, name: &str) -> Option<&Iommu> {
        self.iommus.iter().find(|iommu| iommu.name == name)
    }
}

impl Default for Machine {
    /// One SMMUv3 with a DMA engine behind it.
    fn default() -> Self {
        Self::of(Model::Smmuv3)
    }
}

impl Machine {
    /// The machine that there is for a model if nobody says more: one IOMMU, and a DMA engine behind it unless it is
    /// the mock, whose users make their own devices.
    pub fn of(model: Model) -> Self {
        let mut machine = Self::with(model);
        if model == Model::Mock {
            return machine;
        }
        let behind = Behind::Iommu(Iommu::default_name());
        let engine = Device::new("ioat0", Some(DeviceModel::Ioat), behind);
        machine.devices.push(Device { stream_id: Some(8), ..engine });
        machine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_survives_its_text() {
        let machine = Machine::default();
        assert_eq!(Machine::from_toml(&machine.to_toml()).unwrap(), machine);
    }

    #[test]
    fn a_trace_goes_to_a_file_whose_name_is_text() {
        use std::os::unix::ffi::OsStrExt;
        let text = "trace = \"/tmp/a trace.json\"\n[[iommu]]\nmodel = \"mock\"\n";
        let machine = Machine::from_toml(text).unwrap();
        assert_eq!(machine.trace.as_deref(), Some(Path::new("/tmp/a trace.json")));
        assert_eq!(Machine::from_toml(&machine.to_toml()).unwrap(), machine);
        let trace = Some(PathBuf::from(std::ffi::OsStr::from_bytes(b"/tmp/\xff")));
        let problem = Machine { trace, ..Machine::default() }.check().unwrap_err().to_string();
        assert!(problem.contains("/tmp/") && problem.contains("not UTF-8"), "{problem}");
    }

    fn refused(text: &str) -> String {
        Machine::from_toml(text).unwrap_err().to_string()
    }

    const SMMU: &str = "[[iommu]]\nname = \"smmu0\"\nmodel = \"smmuv3\"\n";

    #[test]
    fn errors_name_the_line_the_key_and_what_is_allowed() {
        let message = refused("[[iommu]]\nname = \"a\"\nmodel = \"smmuv4\"\n");
        assert!(message.contains("line 3"), "{message}");
        assert!(message.contains("smmuv4") && message.contains("mock"), "{message}");
        assert!(refused("").contains("missing field `iommu`"));
        assert!(refused("iommu = []\n").contains("add an [[iommu]] section"));
        let message =
            refused("[[iommu]]\nmodel = \"mock\"\n[[iommu]]\nname = \"b\"\nmodel = \"mock\"\n");
        assert!(message.contains("mock") && message.contains("alone"), "{message}");
        assert!(refused(&SMMU.repeat(2)).contains("two IOMMUs are called `smmu0`"));
    }

    #[test]
    fn several_smmus_and_their_devices() {
        let text = format!(
            "{SMMU}options = {{ ats = false, stall = \"terminate\" }}\n{}\
             [[device]]\nname = \"a\"\nmodel = \"ioat\"\niommu = \"smmu0\"\nstream-id = 3\n\
             [[device]]\nname = \"b\"\niommu = \"smmu1\"\ngroup = \"g\"\npasid-bits = 8\n",
            SMMU.replace("smmu0", "smmu1").replace("smmuv3", "mmu700"),
        );
        let machine = Machine::from_toml(&text).unwrap();
        assert_eq!(machine.iommu("smmu1").unwrap().model, Model::Mmu700);
        assert_eq!(machine.iommu("smmu0").unwrap().options.ats, Some(false));
        assert_eq!(machine.devices[0].stream_id, Some(3));
        assert_eq!(machine.devices[1].group.as_deref(), Some("g"));
        assert_eq!(Machine::from_toml(&machine.to_toml()).unwrap(), machine);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name_and_what_to_write() {
        let device = |rest: &str| format!("{SMMU}[[device]]\nname = \"a\"\n{rest}");
        let message = refused(&device("iommu = \"smmu1\"\n"));
        assert!(
            message.contains("`a`") && message.contains("smmu1") && message.contains("smmu0"),
            "{message}"
        );
        let message = refused(&device("iommu = \"smmu0\"\nstream-id = 65536\n"));
        assert!(message.contains("stream-id 65536") && message.contains("65535"), "{message}");
        let message = refused(&device("iommu = \"smmu0\"\npasid-bits = 21\n"));
        assert!(message.contains("pasid-bits 21") && message.contains("20"), "{message}");
        for (keys, named) in [
            ("iommu = \"smmu0\"\npri = true\n", "ats = true"),
            ("iommu = \"none\"\nats = true\n", "ats"),
            ("iommu = \"none\"\npri = true\n", "pri"),
        ] {
            let message = refused(&device(keys));
            assert!(message.contains("`a`") && message.contains(named), "{message}");
        }
        let with = "iommu = \"smmu0\"\nats = true\npri = true\n";
        Machine::from_toml(&device(with)).unwrap();
        for (without, named) in [("ats = false, pri = false", "ATS"), ("pri = false", "PRI")] {
            let smmu = format!("{SMMU}options = {{ {without} }}\n");
            let message = refused(&device(with).replace(SMMU, &smmu));
            assert!(message.contains("`smmu0`") && message.contains(named), "{message}");
        }
        let message = refused(&device("iommu = \"none\"\nstream-id = 1\n"));
        assert!(message.contains("no IOMMU") && message.contains("stream-id"), "{message}");
        let twice = device("iommu = \"smmu0\"\nstream-id = 1\n")
            + "[[device]]\nname = \"b\"\niommu = \"smmu0\"\nstream-id = 1\n";
        let message = refused(&twice);
        assert!(message.contains("`a` and `b`") && message.contains("stream-id 1"), "{message}");
        let message = refused(&format!("{SMMU}options = {{ oas = 44 }}\n"));
        assert!(
            message.contains("smmu0") && message.contains("oas") && message.contains("48"),
            "{message}"
        );
        let message = refused(&format!("{SMMU}options = {{ stage1 = false, stage2 = false }}\n"));
        assert!(message.contains("smmu0") && message.contains("stage1"), "{message}");
        for fine in ["stage1 = false", "stage2 = false", "pri = false", "gran16k = false"] {
            Machine::from_toml(&format!("{SMMU}options = {{ {fine} }}\n")).unwrap();
        }
        let message = refused("[[iommu]]\nmodel = \"mock\"\noptions = { ats = false }\n");
        assert!(message.contains("mock") && message.contains("options"), "{message}");
        let message = refused(&format!("{SMMU}options = {{ atsc = false }}\n"));
        assert!(message.contains("atsc") && message.contains("unknown"), "{message}");
    }

    #[test]
    fn windows_and_reserved_regions_are_checked() {
        let device = "[[device]]\nname = \"a\"\niommu = \"smmu0\"\n";
        let window = |at: &str| Machine::from_toml(&format!("msi-window = {at}\n{SMMU}{device}"));
        assert_eq!(window("0x8000000").unwrap().msi_window(), (0x800_0000, 0x80f_ffff));
        assert_eq!(Machine::default().msi_window().0, MSI_WINDOW);
        for wrong in ["0x8001000", "0x1000000000000"] {
            assert!(window(wrong).unwrap_err().to_string().contains("multiple of 0x100000"));
        }
        let reserved = |first, last| {
            let text = format!("{SMMU}{device}reserved = [{{ first = {first}, last = {last} }}]\n");
            Machine::from_toml(&text)
        };
        assert_eq!(
            reserved(16, 16).unwrap().devices[0].reserved,
            [Reserved { first: 16, last: 16 }]
        );
        assert!(reserved(16, 15).unwrap_err().to_string().contains("first comes before last"));
    }

    #[test]
    fn devices_have_names_of_their_own_and_a_known_place() {
        let text = "[[iommu]]\nmodel = \"mock\"\n[[device]]\nname = \"a\"\niommu = \"none\"\n";
        let machine = Machine::from_toml(text).unwrap();
        assert_eq!(machine.devices, [Device::new("a", None, Behind::None)]);
        assert_eq!(Machine::from_toml(&machine.to_toml()).unwrap(), machine);
        let twice = format!("{text}[[device]]\nname = \"a\"\niommu = \"none\"\n");
        assert!(refused(&twice).contains("two devices are called `a`"));
        let behind = refused(&text.replace("none", "iommu0"));
        assert!(behind.contains("iommu0") && behind.contains("none"), "{behind}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Machine::from_file(Path::new("/no/such/machine.toml")).unwrap_err();
        assert!(error.to_string().contains("/no/such/machine.toml"));
    }
}
