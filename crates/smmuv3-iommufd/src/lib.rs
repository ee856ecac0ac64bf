#![doc = include_str!("../README.md")]
//!
//! # Where things are
//!
//! [`Vsmmu`] is what a VMM holds. `back` is the model's [`Accelerator`](smmuv3::Accelerator), `slot` a device and what it
//! is attached to, `viommu` what all devices share; `events` and `faults` are the host's queues. [`Host`] and [`Device`]
//! are what they stand on, `ioctl` the real ones. [`Capabilities`] says what a guest may be promised.
#![deny(unsafe_code)]

mod back;
mod capabilities;
mod events;
mod faults;
mod host;
#[allow(unsafe_code, reason = "ioctls")]
mod ioctl;
mod parents;
mod slot;
mod viommu;
mod vsmmu;

pub use back::Statistics;
pub use capabilities::{Capabilities, HwInfo, Incompatible};
pub use host::{Device, Host, InvalidateError};
pub use ioctl::{Iommufd, VfioDevice};
pub use parents::NestParents;
pub use vsmmu::{PlugError, Vsmmu};
