//! The mock hardware that the kernel's iommufd selftests expect, and a driver
//! for it like any other.
//!
//! Its page tables have leaves of every power of two from 2 KiB, its devices a
//! few numbers that invalidations change. What the tests look at from behind
//! the driver's back ([`MockDomain::set_dirty`], [`MockNested::iotlb`], …) is
//! public here and used by the test ioctl only.
#![forbid(unsafe_code)]

mod domain;
mod driver;
mod nested;
mod viommu;

pub use domain::MockDomain;
pub use driver::{MockDevice, MockDriver};
pub use nested::MockNested;
pub use viommu::MockViommu;
