//! VFIO devices: what is behind `/dev/vfio/devices/vfioN`.
//!
//! A [`Function`] is a PCI function of the machine: an emulated [`Device`], its configuration space, its interrupts.
//! [`Cdev`] is the file that a program opens for it: it binds the function to an iommufd, attaches it, and reads and
//! writes its regions. The device's own DMA and messages leave through a [`Bus`]. [`GroupNode`] and [`ContainerNode`] are
//! the files that older clients use for the same, over the same objects.
//!
//! A physical function may have virtual functions ([`Function::add_virtual`], SR-IOV), which come and go.
//!
//! How calls arrive is none of its business (crate `host`), nor what translates (crate `iommu`).
#![forbid(unsafe_code)]

mod bar;
mod binding;
mod cdev;
mod config;
mod container;
mod device;
mod error;
mod feature;
mod file;
mod function;
mod group;
mod interrupts;
mod irqs;
mod sriov;
mod user;
mod worker;

pub use cdev::Cdev;
pub use container::ContainerNode;
pub use device::{Bus, Device, Identity, InUse};
pub use error::Error;
pub use function::Function;
pub use group::{Group, GroupNode};
pub use platform::{Access, DmaError, FilePart, PciAddress, Spawn};
pub use worker::{Work, Worker};
