//! What is behind the registers of a device: its model, and its disks, which are opened first.

use std::sync::Arc;

use devices::{Image, ImageError, Ioat, Namespace, Nvme, VirtioBlk};
use host_linux::PrivateFd;
use platform::Spawn;
use softiommu_machine::{Device, DeviceModel, Disk};
use vfio::Bus;

use crate::setup::Make;

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("{device}: {source}")]
    Image { device: String, source: ImageError },
    #[error("{device} has no disk: give it an image or memory")]
    None { device: String },
}

/// A device that only needs its bus.
pub(crate) enum Backed<'a> {
    /// One that is not in the crate `devices`.
    Own(&'a Make),
    Ioat,
    Nvme(Vec<Namespace>),
    VirtioBlk(Image, u32),
}

impl Backed<'_> {
    /// Opens what a device needs.
    pub(crate) fn open(device: &Device, model: DeviceModel) -> Result<Self, DiskError> {
        let name = || device.name.clone();
        let disks = device.disks();
        let opened = disks.iter().map(|disk| Ok((open(disk)?, disk.block())));
        let opened: Result<Vec<_>, _> = opened.collect();
        let mut opened = opened.map_err(|source| DiskError::Image { device: name(), source })?;
        Ok(match model {
            DeviceModel::Ioat => Self::Ioat,
            DeviceModel::Nvme => {
                let disks = opened.into_iter();
                Self::Nvme(disks.map(|(image, block)| Namespace::new(image, block)).collect())
            }
            DeviceModel::VirtioBlk => {
                let (image, block) =
                    opened.pop().ok_or_else(|| DiskError::None { device: name() })?;
                Self::VirtioBlk(image, block)
            }
        })
    }

    /// The device, on its bus.
    pub(crate) fn make(self, device: &Device, bus: Bus, spawn: &Spawn) -> Arc<dyn vfio::Device> {
        let name = &device.name;
        match self {
            Self::Own(make) => make(bus, spawn),
            Self::Ioat => Ioat::new(bus, spawn),
            Self::Nvme(namespaces) => Nvme::new(bus, spawn, name, namespaces),
            Self::VirtioBlk(image, block) => {
                let queues = device.queues.unwrap_or(1);
                VirtioBlk::new(bus, spawn, name, image, block, queues)
            }
        }
    }
}

/// Opens a disk, held where the program does not find it.
fn open(disk: &Disk) -> Result<Image, ImageError> {
    let image = match (&disk.image, disk.memory) {
        (Some(path), _) => Image::open(path, disk.read_only)?,
        (None, size) => {
            let image = Image::memory(size.map_or(0, |size| size.0))?;
            if disk.read_only { image.read_only() } else { image }
        }
    };
    image.check_blocks(disk.block())?;
    image.held_by(PrivateFd::new)
}
