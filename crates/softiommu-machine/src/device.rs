//! Devices of a machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Disk, Size};

/// A device that does DMA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Device {
    /// Its name, which no other device has.
    pub name: String,
    /// What it is. Without that there is only its DMA, and nothing in `/dev/vfio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<DeviceModel>,
    /// Which IOMMU it is behind.
    pub iommu: Behind,
    /// Its StreamID, which no other device of its IOMMU has; the next free one if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_id: Option<u32>,
    /// How many virtual functions it can have (SR-IOV); by default none. Programs enable them by `sriov_numvfs` in `/sys`,
    /// and use them with a VF token. They have the addresses and the StreamIDs that follow its own, and for the rest what it
    /// has itself except [`pri`](Self::pri). Each is a group of its own, unless there is a [`group`](Self::group) for all.
    #[serde(default, skip_serializing_if = "is_none")]
    pub vfs: u16,
    /// How many of them are enabled from the start; by default none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub num_vfs: u16,
    /// Devices with the same group share whatever is attached; otherwise a device is a group of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Bits of its PASIDs, at most 20; 0 if it has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pasid_bits: u8,
    /// It has an address translation cache (PCIe ATS), which is in use where the owner of its stage 1 wants that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ats: bool,
    /// It asks for pages that are not there (PCIe PRI). Takes ATS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pri: bool,
    /// Where it is in PCI, such as `0000:06:0d.0`; otherwise the next free place of segment 1. See
    /// [`Machine::addresses`](crate::Machine::addresses).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// IOVAs, beside the window for doorbells, that no memory can be mapped at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<Reserved>,
    /// Programs may map its registers, and each access is carried out at the price of a signal. Not for those that hand
    /// the mapping on to KVM, which has no way to do that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mmap: bool,
    /// A disk's image file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// A disk's size, if it is in memory: it begins as zeros, and ends with the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// A disk that cannot be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Bytes of a disk's block: a power of two from 512 to 4096, by default 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Queues of a virtio-blk disk, at most 64; by default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The disks of an NVMe controller that has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Disk>,
}

impl Device {
    /// A device that has its name, and for the rest what devices have that do not say.
    pub fn new(name: impl Into<String>, model: Option<DeviceModel>, iommu: Behind) -> Self {
        Self {
            name: name.into(),
            model,
            iommu,
            stream_id: None,
            vfs: 0,
            num_vfs: 0,
            group: None,
            pasid_bits: 0,
            ats: false,
            pri: false,
            address: None,
            reserved: Vec::new(),
            mmap: false,
            image: None,
            memory: None,
            read_only: false,
            block_size: None,
            queues: None,
            namespaces: Vec::new(),
        }
    }

    /// Its disks: the one that it describes itself, or its namespaces.
    pub fn disks(&self) -> Vec<Disk> {
        if self.image.is_none() && self.memory.is_none() {
            return self.namespaces.clone();
        }
        let Self { image, memory, read_only, block_size, .. } = self.clone();
        vec![Disk { image, memory, read_only, block_size }]
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(bits: &u8) -> bool {
    *bits == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_none(count: &u16) -> bool {
    *count == 0
}

/// A model of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceModel {
    /// Intel's DMA engine (CB3): copies memory.
    Ioat,
    /// An NVMe controller.
    Nvme,
    /// A virtio block device.
    VirtioBlk,
}

impl DeviceModel {
    const ALL: [(&'static str, Self); 3] =
        [("ioat", Self::Ioat), ("nvme", Self::Nvme), ("virtio-blk", Self::VirtioBlk)];

    /// It can have virtual functions.
    pub fn has_virtual_functions(self) -> bool {
        self == Self::Ioat
    }

    /// It has disks.
    pub fn has_disks(self) -> bool {
        matches!(self, Self::Nvme | Self::VirtioBlk)
    }
}

impl fmt::Display for DeviceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, model)| model == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for DeviceModel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, model)| model).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(name, _)| format!("`{name}`")).collect();
            format!("no device model is called `{name}`; there are {}", names.join(", "))
        })
    }
}

/// Which IOMMU a device is behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Behind {
    /// `"none"`: its DMA uses physical addresses, and a program that may do so
    /// (`CAP_SYS_RAWIO`) binds it and asks for them.
    None,
    /// The one with this name.
    Iommu(String),
}

impl From<String> for Behind {
    fn from(name: String) -> Self {
        if name == "none" { Self::None } else { Self::Iommu(name) }
    }
}

impl From<Behind> for String {
    fn from(behind: Behind) -> Self {
        match behind {
            Behind::None => "none".to_owned(),
            Behind::Iommu(name) => name,
        }
    }
}

/// IOVAs that a device cannot use for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reserved {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}
