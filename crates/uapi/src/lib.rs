//! The uAPI of Linux 7.3's `/dev/iommu`: struct layouts and numbers.
//!
//! Layouts come from [`iommufd_bindings`] and [`vfio_bindings`], which bindgen
//! makes from the kernel's headers; this crate adds what they lack ([`extra`],
//! [`selftest`]), names the ioctls ([`nr`]) and lets safe code view any of the
//! structs as bytes ([`Plain`]). `cargo xtask conformance layout` compares
//! every struct here with the kernel's header.

pub mod extra;
pub mod layout;
pub mod nr;
mod plain;
pub mod selftest;

pub use iommufd_bindings as iommufd;
pub use plain::Plain;
pub use vfio_bindings::bindings::vfio;
