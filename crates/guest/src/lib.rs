//! A guest in a process: what it takes to test nested translation end to end, without a hypervisor, a kernel or hardware.
//!
//! * [`GuestRam`]: guest memory, in sealed memfds.
//! * [`Guest`]: what an operating system does with its SMMU. It is the driver [`arm_smmu_v3`] on guest memory, which knows
//!   registers and nothing else: yours, if you write a VMM, or those of the model [`smmuv3`].
//! * [`Vmm`]: the VMM's half, by ioctls only: an IOAS with the guest's memory, VFIO devices, and the accelerated vSMMU
//!   [`smmuv3_iommufd`] over them. It runs on the kernel's `/dev/iommu` as well as on that of `softiommu`.
//! * [`Engine`]: a host device that does DMA when told to, an I/OAT engine behind its VFIO file.
//! * [`Emulated`]: the same engine as a device of the VMM's own, whose DMA the model translates in software; alone, or beside
//!   devices of the host on one vSMMU.
//!
//! ```no_run
//! use guest::{Guest, GuestRam, Vmm, engine};
//!
//! let ram = GuestRam::new(0x4000_0000, 16 << 20)?;
//! let vmm = Vmm::new(&ram)?;
//! let device = vmm.open_device("/dev/vfio/devices/vfio0")?;
//! let vsmmu = vmm.vsmmu(smmuv3::Options::mmu700(), &device, 0x10)?;
//!
//! let guest = Guest::boot(vsmmu.smmu().clone(), &ram)?;
//! let stream = guest.stream(0x10)?; // translated by a stage 1 of the guest's
//! let (chain, from, to) = (ram.page()?, ram.page()?, ram.page()?);
//! for (iova, page) in [(0x1000, chain), (0x2000, from), (0x3000, to)] {
//!     stream.map(iova, page)?;
//! }
//! engine::descriptor(&ram, chain, 0x2000, 0x3000, 64, false)?;
//! assert_eq!(device.engine().run(0x1000)?, engine::Copied::Done);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod emulated;
#[allow(unsafe_code, reason = "ioctls")]
pub mod engine;
mod os;
#[allow(unsafe_code, reason = "mappings of guest memory")]
mod ram;
mod vmm;

pub use emulated::Emulated;
pub use engine::Engine;
pub use os::{Guest, GuestStream};
pub use ram::{GuestRam, Region};
pub use vmm::{Assigned, Error, Vmm, VsmmuOf};
