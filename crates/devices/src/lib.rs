//! Emulated PCI devices, real enough for stock drivers. All DMA and every interrupt goes through the device's
//! [`vfio::Bus`], and so through the IOMMU.
//!
//! | device | what it is | what it implements |
//! |---|---|---|
//! | [`Nvme`] | an NVMe controller: any number of disks | `docs/nvme.md` |
//! | [`VirtioBlk`] | a virtio block device: one disk | `docs/virtio-blk.md` |
//! | [`Ioat`] | the DMA engine of Intel's servers (CB3): copies memory | `docs/ioat.md` |
#![forbid(unsafe_code)]

mod burst;
mod image;
mod ioat;
mod nvme;
mod scatter;
mod virtio;

pub use image::{Image, ImageError};
pub use ioat::Ioat;
pub use nvme::{Namespace, Nvme};
pub use virtio::VirtioBlk;

/// Locks the images of a device that a program takes: all, or none.
fn lock(device: &str, images: &[&Image]) -> Result<(), vfio::InUse> {
    for (n, image) in images.iter().enumerate() {
        if let Err(error) = image.lock() {
            tracing::error!(device, %error, "refused");
            images[..n].iter().for_each(|image| image.unlock());
            return Err(vfio::InUse);
        }
    }
    Ok(())
}
