//! The iommufd uAPI of Linux 7.3, in user space.
//!
//! A [`Context`] is what one open of `/dev/iommu` refers to: a table of objects
//! ([`Id`]) behind one lock. It has two faces:
//!
//! * **ioctls** ([`Iommufd`] makes the files): each is decoded by one codec,
//!   runs under the lock, and writes its answer after the lock is released:
//!   no argument is copied with the lock held (pinning and an access's DMA do
//!   touch memory under it). A new object stays
//!   invisible until its id has reached user space.
//! * **Rust methods** for what the kernel offers to drivers: binding and
//!   attaching devices, accesses that read, write and pin through an IOAS, and
//!   [`DmaBuf`].
//!
//! How calls arrive, and whose memory they name, is behind the traits of the
//! crate `host`; what the hardware is, behind those of `iommu`.
#![forbid(unsafe_code)]

mod access;
mod context;
mod device;
mod dmabuf;
mod error;
mod fault;
mod hwpt;
#[cfg(test)]
mod interleavings;
mod invariants;
mod ioas;
mod ioctl;
mod objects;
mod observe;
mod sw_msi;
mod sync;
mod veventq;
mod vfio_compat;
mod viommu;

pub use access::AccessHandler;
pub use context::{Context, Extension, External, Iommufd};
pub use dmabuf::DmaBuf;
pub use error::Error;
pub use ioctl::read_struct;
pub use objects::Id;
pub use observe::{Attachment, Invalidation, Observer};
