//! Structs of `linux/iommufd.h` that the bindings do not have yet.
#![allow(non_camel_case_types)]

/// `IOMMU_IOAS_NOIOMMU_GET_PA`, new in Linux 7: the physical address behind an
/// IOVA of an IOAS that a no-IOMMU device is attached to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct iommu_ioas_noiommu_get_pa {
    /// Size of this struct.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The IOAS.
    pub ioas_id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: the most bytes wanted. Out: how many are physically contiguous.
    pub length: u64,
    /// The physical address of `iova`.
    pub out_phys: u64,
}
