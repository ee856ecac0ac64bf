//! VFIO devices: what is behind `/dev/vfio/devices/vfioN`.
//!
//! A [`Function`] is a PCI function of the machine: an emulated [`Device`], its configuration space, its interrupts.
//! [`Cdev`] is the file that a program opens for it: it binds the function to an iommufd, attaches it, and reads and
//! writes its regions. The device's own DMA and messages leave through a [`Bus`].
//!
//! How calls arrive is none of its business (crate `host`), nor what translates (crate `iommu`).
#![forbid(unsafe_code)]

mod cdev;
mod config;
mod device;
mod error;
mod function;
mod irqs;
mod msix;

pub use cdev::Cdev;
pub use device::{Bus, Device, Identity};
pub use error::Error;
pub use function::Function;
pub use platform::{Access, DmaError};
