//! Devices that the command line adds to a machine, and disks that are there before a program is started.

use std::io;

use ::devices::{Image, ImageError};
use softiommu_machine::Machine;

/// Why there are no such devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicesError {
    #[error("--device: {0}")]
    Argument(String),
    #[error("{device}: {source}")]
    Image { device: String, source: ImageError },
    #[error("the current directory, which images are in: {0}")]
    Directory(#[from] io::Error),
}

/// Adds what `--device` says.
pub(crate) fn add(machine: &mut Machine, devices: &[String]) -> Result<(), DevicesError> {
    devices.iter().try_for_each(|text| machine.add_device(text)).map_err(DevicesError::Argument)
}

/// Disks are found out about now rather than inside the program, which may be in another directory by then.
pub(crate) fn check_disks(machine: &mut Machine) -> Result<(), DevicesError> {
    machine.place_images(&std::env::current_dir()?);
    let mut images = Vec::new();
    for device in &machine.devices {
        for disk in device.disks() {
            let Some(path) = &disk.image else { continue };
            let image = Image::open(path, disk.read_only).and_then(|image| {
                image.check_blocks(disk.block())?;
                image.lock()?;
                Ok(image)
            });
            let named = |source| DevicesError::Image { device: device.name.clone(), source };
            // Locked until all are: one file is not two disks.
            images.push(image.map_err(named)?);
        }
    }
    Ok(())
}
