//! The machine that `/dev/iommu` runs on: which IOMMUs there are, and which devices.
//!
//! A machine file is TOML:
//!
//! ```toml
//! grant = ["sys-resource"]   # optional: act as if programs had CAP_SYS_RESOURCE
//!
//! fault-injection = true     # optional: /proc/self/task/TID/fail-nth works
//!
//! [[iommu]]
//! name = "iommu0"            # optional, for logs
//! model = "mock"             # the hardware of the kernel's iommufd selftests
//!
//! [[device]]                 # optional, any number
//! name = "nic0"
//! iommu = "none"             # its DMA is not translated
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

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// Its IOMMUs; exactly one in this version.
    #[serde(rename = "iommu")]
    pub iommus: Vec<Iommu>,
    /// Its devices, beside those that the mock IOMMU's users make for themselves.
    #[serde(rename = "device", default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
}

/// A device that does DMA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name, which no other device has.
    pub name: String,
    /// Which IOMMU it is behind.
    pub iommu: Behind,
}

/// Which IOMMU a device is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behind {
    /// None: its DMA uses physical addresses, and a program that may do so
    /// (`CAP_SYS_RAWIO`) binds it and asks for them.
    None,
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

/// An IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iommu {
    /// Its name in logs.
    #[serde(default = "Iommu::default_name")]
    pub name: String,
    /// Which hardware it is.
    pub model: Model,
}

impl Iommu {
    fn default_name() -> String {
        "iommu0".to_owned()
    }
}

/// A model of hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// What the kernel's iommufd selftests expect, with `IOMMU_TEST_CMD`.
    Mock,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mock => f.write_str("mock"),
        }
    }
}

impl FromStr for Model {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "mock" => Ok(Self::Mock),
            _ => Err(format!("no IOMMU model is called `{name}`; there is `mock`")),
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
        problem: &'static str,
    },
}

fn in_file(path: Option<&Path>) -> String {
    path.map(|path| format!("in the machine file {}: ", path.display())).unwrap_or_default()
}

impl Machine {
    /// A machine with one IOMMU of this model.
    pub fn with(model: Model) -> Self {
        Self {
            grant: Vec::new(),
            fault_injection: false,
            iommus: vec![Iommu { name: Iommu::default_name(), model }],
            devices: Vec::new(),
        }
    }

    /// The machine that a machine file describes.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Self::parse(text, None)
    }

    /// The machine that the machine file at `path` describes.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, Some(path.to_owned()))
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
        let names: BTreeSet<&str> = machine.devices.iter().map(|d| d.name.as_str()).collect();
        let problem = match machine.iommus.len() {
            0 => "there is no IOMMU: add an [[iommu]] section with a model",
            1 if names.len() < machine.devices.len() => {
                "two devices have the same name: give each [[device]] section its own"
            }
            1 => return Ok(machine),
            _ => "this version has one IOMMU: leave one [[iommu]] section",
        };
        Err(Error::Unsupported { path, problem })
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::with(Model::Mock)
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
    fn errors_name_the_line_the_key_and_what_is_allowed() {
        let wrong = Machine::from_toml("[[iommu]]\nname = \"a\"\nmodel = \"smmuv4\"\n");
        let message = wrong.unwrap_err().to_string();
        assert!(message.contains("line 3"), "{message}");
        assert!(message.contains("smmuv4") && message.contains("mock"), "{message}");
        let empty = Machine::from_toml("").unwrap_err().to_string();
        assert!(empty.contains("missing field `iommu`"), "{empty}");
        let two = "[[iommu]]\nmodel = \"mock\"\n[[iommu]]\nmodel = \"mock\"\n";
        assert!(Machine::from_toml(two).unwrap_err().to_string().contains("one IOMMU"));
    }

    #[test]
    fn devices_have_names_of_their_own_and_a_known_place() {
        let text = "[[iommu]]\nmodel = \"mock\"\n[[device]]\nname = \"a\"\niommu = \"none\"\n";
        let machine = Machine::from_toml(text).unwrap();
        assert_eq!(machine.devices, [Device { name: "a".into(), iommu: Behind::None }]);
        assert_eq!(Machine::from_toml(&machine.to_toml()).unwrap(), machine);
        let twice = format!("{text}[[device]]\nname = \"a\"\niommu = \"none\"\n");
        assert!(Machine::from_toml(&twice).unwrap_err().to_string().contains("same name"));
        let behind = Machine::from_toml(&text.replace("none", "iommu0")).unwrap_err().to_string();
        assert!(behind.contains("iommu0") && behind.contains("none"), "{behind}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Machine::from_file(Path::new("/no/such/machine.toml")).unwrap_err();
        assert!(error.to_string().contains("/no/such/machine.toml"));
    }
}
