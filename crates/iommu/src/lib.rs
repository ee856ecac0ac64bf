//! The IOMMU core: which device uses which domain.
//!
//! * A [`Device`] belongs to a [`Group`]: the devices that the hardware cannot
//!   tell apart, which therefore always change domain together.
//! * A group has exactly one [`Domain`] at a time for its Requester IDs, and one
//!   for each PASID in use. [`Group::attach`], [`Group::replace`] and
//!   [`Group::detach`] move it between domains; a failure half-way puts every
//!   device back where it was.
//! * A [`Driver`] makes domains and programs the hardware. It sees neither
//!   groups nor owners nor ioctls.
//! * A device behind no IOMMU has a driver too, [`NoIommu`], whose domains are
//!   tables that software looks up.
//!
//! A nested domain embeds its stage-2 parent: it is given at allocation and
//! never changes, and nothing above the driver can ask for it.
//!
//! IOVAs and physical addresses are `u64` byte addresses; ranges say where they
//! are inclusive.
#![forbid(unsafe_code)]

mod domain;
mod doorbell;
mod driver;
mod error;
mod fault;
mod group;
mod noiommu;

pub use domain::{DirtyTracking, Domain, Geometry, MapError, NestedDomain, PagingDomain, Prot};
pub use doorbell::Doorbells;
pub use driver::{
    Capability, Driver, EventSink, HwInfo, PagingFlags, Pasids, ReadAt, ReservedKind,
    ReservedRegion, Target, UserArray, UserData, Viommu, ViommuHost,
};
pub use error::Error;
pub use fault::{FaultGroup, FaultHandler, FaultPerm, PageRequest, PageResponse};
pub use group::{Attachment, Device, Group, OwnerId};
pub use noiommu::{NoIommu, NoIommuDomain};
