//! Disks of the machine: their images, held where the program does not find them.

use devices::{Image, ImageError, Namespace};
use host_linux::PrivateFd;
use softiommu_machine::{Device, Disk};

/// Why a disk cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {source}")]
pub(crate) struct DiskError {
    device: String,
    source: ImageError,
}

/// A disk's image and the size of its blocks.
pub(crate) struct Opened {
    pub(crate) image: Image,
    pub(crate) block: u32,
}

/// Opens all disks of a device.
pub(crate) fn open(device: &Device) -> Result<Vec<Opened>, DiskError> {
    let disks = device.disks();
    let opened = disks.iter().map(open_one).collect::<Result<_, _>>();
    opened.map_err(|source| DiskError { device: device.name.clone(), source })
}

fn open_one(disk: &Disk) -> Result<Opened, ImageError> {
    let image = match (&disk.image, disk.memory) {
        (Some(path), _) => Image::open(path, disk.read_only)?,
        (None, size) => {
            let image = Image::memory(size.map_or(0, |size| size.0))?;
            if disk.read_only { image.read_only() } else { image }
        }
    };
    image.check_blocks(disk.block())?;
    let image = image.held_by(PrivateFd::new)?;
    Ok(Opened { image, block: disk.block() })
}

pub(crate) fn namespaces(disks: Vec<Opened>) -> Vec<Namespace> {
    disks.into_iter().map(|disk| Namespace::new(disk.image, disk.block)).collect()
}
